"""Templates make what their readers accept: each is parsed as the program that gets it would."""

from __future__ import annotations

import base64
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import crossplane
import pytest
from ansible_collections.carafe.stack.plugins.module_utils import release_settings, supervisord
from conftest import Role
from supervisor.datatypes import RestartUnconditionally
from supervisor.options import ServerOptions, UnhosedConfigParser

APP, GUNICORN, NGINX = Role("app"), Role("gunicorn"), Role("nginx")
SUPERVISOR = Role("supervisor")

SITE: dict[str, Any] = {
    "name": "shop.example",
    "server_names": ["shop.example.com", "*.example.org"],
    "upstreams": ["192.0.2.11:8000 weight=2", "192.0.2.12:8000"],
    "static": [{"url": "/static/", "path": "/srv/shop/static"}, {"url": "/m/", "path": "/srv/m/"}],
    "locations": [
        {"path": "/socket", "proxy_pass": "http://127.0.0.1:9000/", "buffering": False},
        {"path": "/films", "client_max_body_size": "500m"},
        {"path": "= /healthz", "basic_auth": False},
    ],
    "basic_auth": True,
    "cache": True,
    "cache_default_seconds": 30,
    "max_conns": 100,
    "rate_limit": "20r/s",
    "connection_limit": 10,
    "listen": 8080,
    "extra": "add_header X-One 1;\nadd_header X-Two 2;",
}
SITES = {
    "plain": {"name": "a", "server_names": ["a.test"], "upstreams": ["unix:/run/a.sock"]},
    "one at a time": {
        "name": "a",
        "server_names": ["a.test"],
        "upstreams": ["unix:/run/a.sock"],
        "max_conns": 1,
    },
    "uploads": {
        "name": "u",
        "server_names": ["u.test"],
        "upstreams": ["unix:/run/u.sock"],
        "uploads": [{"url": "/media/", "path": "/srv/u/shared/media", "base": "/srv/u/shared"}],
        "headers": {"Content-Security-Policy": "default-src 'self'"},
    },
    "a bare address": {
        "name": "x",
        "server_names": ["x.test", "192.0.2.1", "[2001:db8::1]"],
        "certificate": "/etc/x.pem",
        "nameless": True,
    },
    "an address of another": {
        "name": "y",
        "server_names": ["192.0.2.1", "[2001:DB8::1]", "x.test"],
        "certificate": "/etc/y.pem",
        "listen_tls": 8443,
    },
    "static only": {
        "name": "b",
        "server_names": ["b.test"],
        "static": [{"url": "/", "path": "/srv/b"}],
    },
    "everything": SITE,
    "everything over TLS": SITE
    | {
        "certificate": "/etc/ssl/shop.pem",
        "listen_tls": 8443,
        "redirect_port": 9443,
        "hsts_seconds": 31536000,
        "ocsp_stapling": True,
        "upstreams_tls": {
            "name": "app.test",
            "certificate": "/etc/a.pem",
            "trusted": "/etc/ca.pem",
        },
        "headers": {"Content-Security-Policy": "default-src 'self'; img-src \"x\" $host"},
    },
}
FOUND = {
    "ipv6": True,
    "http2_on": True,
    "post_quantum": True,
    "over_tls": True,
    "default_ports": [],
    "nameless": {"443": {"site": "x", "certificate": "/etc/x.pem", "key": "/etc/x.pem"}},
    "settings": NGINX.defaults,
}

NASTY = {
    "SPACES": "  two  words ",
    "QUOTES": """it's a "quote" and a `tick`""",
    "SHELL": "#no $HOME ${HOME} $(id) %s %% !x * ? ~ & | ; < > \\",
    "LINES": "one\ntwo\n\nthree\n",
    "TABS": "\ttab\r",
    "UNICODE": "naïve, 東京 🎉",
    "BACKSLASHES": "C:\\new\\table \\\\ \\n \\'",
    "EMPTY": "",
    "NUMBER": 8000,
    "BRACES": "{{ 1 + 1 }}",
}


def nginx_errors(tmp_path: Path, **files: str) -> list[str]:
    """Parse nginx.conf with what it includes; return what is wrong with the syntax."""
    for folder in ("modules-enabled", "sites-enabled"):
        (tmp_path / folder).mkdir()
    (tmp_path / "mime.types").write_text("types { text/html html; }")
    for name, text in files.items():
        place = name.replace("__", "/").replace("_dot_", ".")
        (tmp_path / place).write_text(text)
    payload = crossplane.parse(str(tmp_path / "nginx.conf"), comments=False)
    assert len([x for x in payload["config"] if "enabled" in x["file"]]) == len(files) - 1
    return [error["error"] for error in payload["errors"]]


@pytest.mark.parametrize("proxy", ["nginx_real_ip_from", "nginx_proxy_protocol_from"])
@pytest.mark.parametrize("ipv6", [True, False])
@pytest.mark.parametrize("site", SITES.values(), ids=SITES)
def test_nginx_understands_each_kind_of_site(
    site: dict[str, Any], ipv6: bool, proxy: str, tmp_path: Path
) -> None:
    server = {proxy: ["192.0.2.1"], "nginx_extra_http": "map $a $b {\n  1 2;\n}"}
    server |= {"nginx_status_port": 8099}
    found = FOUND | {"ipv6": ipv6, "settings": NGINX.defaults | server}
    settings = {"__nginx_found": found, "nginx_sites": [site], "nginx_sources": ["192.0.2.0/24"]}
    stream = {"name": "redis", "listen": "127.0.0.1:6380", "upstreams": ["unix:/run/redis.sock"]}
    sites = NGINX.value("__nginx_sites", **settings)
    streams = NGINX.value("__nginx_streams", nginx_streams=[stream])
    assert not nginx_errors(
        tmp_path,
        nginx_dot_conf=NGINX.render("etc/nginx/nginx.conf.j2", **settings),
        **{
            "sites-enabled__x_dot_conf": NGINX.render(
                "etc/nginx/sites-enabled/site.conf.j2", __nginx_site=sites[0], **settings
            ),
            "sites-enabled__x_dot_stream": NGINX.render(
                "etc/nginx/sites-enabled/stream.j2", __nginx_stream=streams[0], **settings
            ),
        },
    )


@pytest.mark.parametrize(("port", "places"), [(0, []), (8099, ["127.0.0.1:8099"])])
def test_only_the_server_itself_sees_what_nginx_counts(port: int, places: list[str]) -> None:
    found = FOUND | {"settings": NGINX.defaults | {"nginx_status_port": port}}
    text = NGINX.render("etc/nginx/nginx.conf.j2", __nginx_found=found)
    servers = [x for x in text.split("server {")[1:] if "stub_status" in x]
    assert [re.findall(r"listen (\S+);", x)[0] for x in servers] == places


@pytest.mark.parametrize(
    ("path", "proxy_pass", "written"),
    [
        ("/a", "http://127.0.0.1:9000/b", ("/a/", "http://127.0.0.1:9000/b/")),
        ("/a/", "http://127.0.0.1:9000/b", ("/a/", "http://127.0.0.1:9000/b/")),
        ("/a", "http://127.0.0.1:9000/", ("/a/", "http://127.0.0.1:9000/")),
        ("/a", "http://127.0.0.1:9000", ("/a", "http://127.0.0.1:9000")),
        ("/a", "http://unix:/run/a.sock:/b", ("/a/", "http://unix:/run/a.sock:/b/")),
        ("/a", "http://unix:/run/a.sock", ("/a", "http://unix:/run/a.sock")),
        ("= /a", "http://127.0.0.1:9000/b", ("= /a", "http://127.0.0.1:9000/b")),
    ],
)
def test_another_service_is_reached_below_its_path_only(
    path: str, proxy_pass: str, written: tuple[str, str]
) -> None:
    sites = [{"name": "a", "locations": [{"path": path, "proxy_pass": proxy_pass}]}]
    text = NGINX.render(
        "etc/nginx/sites-enabled/site.conf.j2",
        __nginx_site=NGINX.value("__nginx_sites", nginx_sites=sites)[0],
        __nginx_found=FOUND,
        nginx_sites=sites,
    )
    assert re.findall(r"location (.+) \{\n(?:(?! *location).*\n)*?.*proxy_pass (.+);", text) == [
        written
    ]


@pytest.mark.parametrize(
    ("upstreams", "max_conns", "each"),
    [
        (1, 0, ["", ""]),
        (1, 9, [" max_conns=4"] * 2),
        (1, 1, [" max_conns=1"]),
        (2, 9, [" max_conns=9"] * 2),
    ],
)
def test_an_upstream_gets_no_more_than_its_share(
    upstreams: int, max_conns: int, each: list[str]
) -> None:
    site = {"name": "a", "upstreams": ["unix:/a", "unix:/b"][:upstreams], "max_conns": max_conns}
    sites = NGINX.value("__nginx_sites", nginx_sites=[site])
    path = "etc/nginx/sites-enabled/site.conf.j2"
    text = NGINX.render(path, __nginx_site=sites[0], __nginx_found=FOUND)
    assert re.findall(r"    server unix:.*max_fails=\d(?: fail_timeout=5s)?(.*);", text) == each


@pytest.mark.parametrize("where", ["site", "server"])
def test_an_error_page_of_one_s_own_is_not_ended(where: str) -> None:
    own = "error_page 502 /sorry.html;"
    site = {"name": "a", "upstreams": ["unix:/a"], "max_conns": 9}
    sites = NGINX.value("__nginx_sites", nginx_sites=[site | {"extra": own * (where == "site")}])
    settings = NGINX.defaults | {"nginx_extra_http": own * (where == "server")}
    path = "etc/nginx/sites-enabled/site.conf.j2"
    found = FOUND | {"settings": settings}
    text = NGINX.render(path, __nginx_site=sites[0], __nginx_found=found)
    assert "/.unavailable" not in text


def test_a_site_with_a_mistake_is_found_by_this_test_s_parser(tmp_path: Path) -> None:
    broken = "server { listen 80; proxy_pass http://x; }\n"
    main = "events {}\nhttp { include sites-enabled/*.conf; }"
    assert nginx_errors(tmp_path, nginx_dot_conf=main, **{"sites-enabled__x_dot_conf": broken})


def environment_of(
    tmp_path: Path, environment: dict[str, Any], migrate: bool = False, **more: Any
) -> dict[str, str]:
    """Return what a process gets when the app's own command runs it."""
    variables = {
        "app_name": "shop",
        "app_secret_key": "0123456789abcdef" * 4,
        "app_root": str(tmp_path),
        "app_environment": environment,
        "app_migrate_environment": {"ONLY_MIGRATIONS": "it's", **environment},
        **more,
    }
    folder = tmp_path / "settings/1"
    for path in (tmp_path / "bin", tmp_path / "releases/1", folder):
        path.mkdir(parents=True, exist_ok=True)
    (folder / "code").symlink_to("../../releases/1")
    (tmp_path / "serving").symlink_to("settings/1")
    (tmp_path / "bin/run").write_text(APP.render("srv/app/bin/run.j2", **variables))
    (tmp_path / "bin/run").chmod(0o755)
    facts = {"name": "shop", "user": "shop", "deploy_user": "shop-deploy", "workers": []}
    facts |= {"schedules": [], "files": {}, "run_command": f"{tmp_path}/bin/run"}
    told = base64.b64decode(APP.value("__app_variables", **variables))
    wanted = release_settings.wanted(facts | {"variables": json.loads(told)})
    for name, (text, _, _) in wanted.items():
        (folder / name).write_text(text)
    # Root would become the app's user, which is not there.
    (tmp_path / "bin/id").write_text("#!/bin/sh\necho 1000\n")
    (tmp_path / "bin/id").chmod(0o755)
    show = "import json, os; print(json.dumps(dict(os.environ)))"
    result = subprocess.run(
        [tmp_path / "bin/run", *(["-m"] if migrate else []), sys.executable, "-c", show],
        env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "HOME": "/nowhere"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(result.stdout)


def test_values_arrive_in_the_process_exactly_as_given(tmp_path: Path) -> None:
    arrived = environment_of(tmp_path, NASTY)
    assert {name: arrived[name] for name in NASTY} == {**NASTY, "NUMBER": "8000"}


def test_a_process_has_a_home_of_its_own_and_knows_the_folder_of_its_release(
    tmp_path: Path,
) -> None:
    arrived = environment_of(tmp_path, {"CONFIG": "it's @release@/a b:@release@"})
    release = tmp_path / "releases/1"
    assert arrived["CONFIG"] == f"it's {release}/a b:{release}"
    assert arrived["HOME"] == str(tmp_path / "home")
    assert "APP_SECRETS" not in arrived
    assert (tmp_path / "home").is_dir()
    assert arrived["PYTHONUNBUFFERED"] == "1"
    assert arrived["USER"] == arrived["LOGNAME"] == "1000"  # what id says here


def test_a_process_knows_the_folder_of_its_secret_files(tmp_path: Path) -> None:
    folder = tmp_path / "settings/1/secret-files"
    folder.mkdir(parents=True)
    arrived = environment_of(tmp_path, {"KEY": "file:@secrets@/it's a key"})
    assert arrived["APP_SECRETS"] == str(folder)
    assert arrived["KEY"] == f"file:{folder}/it's a key"


def test_what_the_app_states_of_its_surroundings_wins(tmp_path: Path) -> None:
    stated = {"HOME": "/elsewhere", "PYTHONUNBUFFERED": "", "SHELL": "/bin/bash"}
    arrived = environment_of(tmp_path, stated)
    assert {name: arrived[name] for name in stated} == stated


def test_flask_settings_arrive_as_json(tmp_path: Path) -> None:
    config = {"MAX_CONTENT_LENGTH": 1000, "GREETING": 'say "ünï" $x', "DEEP__KEY": {"a": [True]}}
    arrived = environment_of(tmp_path, {}, app_config=config, app_domains=["a.test", "b.test"])
    assert {name: json.loads(arrived[f"FLASK_{name}"]) for name in config} == config
    assert json.loads(arrived["FLASK_TRUSTED_HOSTS"]) == ["a.test", "b.test"]
    assert json.loads(arrived["FLASK_SECRET_KEY"]) == "0123456789abcdef" * 4


def test_only_a_migration_gets_the_environment_of_migrations(tmp_path: Path) -> None:
    for folder in ("serving", "migrating"):
        (tmp_path / folder).mkdir()
    assert "ONLY_MIGRATIONS" not in environment_of(tmp_path / "serving", {})
    arrived = environment_of(tmp_path / "migrating", {}, migrate=True)
    assert arrived["ONLY_MIGRATIONS"] == "it's"


def test_gunicorn_reads_its_settings(tmp_path: Path) -> None:
    conf = tmp_path / "gunicorn.conf.py"
    files = GUNICORN.value(
        "gunicorn_files",
        gunicorn_directory="/srv/x",
        gunicorn_user="x",
        gunicorn_name="x",
        gunicorn_access_log=True,
        gunicorn_settings={"raw_env": ["A=it's \\n"], "proc_name": 'ü"', "keepalive": 3},
    )
    conf.write_text(files["gunicorn.conf.py"])
    settings = runpy.run_path(str(conf))
    assert settings["wsgi_app"] == "wsgi:app"
    assert settings["workers"] == 2
    assert settings["accesslog"] == "-"
    assert settings["raw_env"] == ["A=it's \\n"]
    assert settings["proc_name"] == 'ü"'
    assert settings["keepalive"] == 3


def test_a_setting_of_gunicorn_wins_over_what_the_role_computes(tmp_path: Path) -> None:
    settings = {"workers": 7, "loglevel": "debug"}
    text = GUNICORN.value("__gunicorn_conf", gunicorn_settings=settings)
    (tmp_path / "conf.py").write_text(text)
    assert runpy.run_path(str(tmp_path / "conf.py"))["workers"] == 7


@pytest.mark.parametrize(
    ("memory", "cores", "slots", "workers"),
    [(2048, 2, 2, 2), (1024, 8, 2, 1), (64, 2, 2, 1), (64 * 1024, 8, 1, 8)],
)
def test_workers_fit_the_cores_and_the_memory(
    memory: int, cores: int, slots: int, workers: int
) -> None:
    facts = {"memtotal_mb": memory, "processor_vcpus": cores}
    assert GUNICORN.value("gunicorn_workers", ansible_facts=facts, gunicorn_slots=slots) == workers


def test_the_slots_command_gets_json() -> None:
    files = GUNICORN.value(
        "gunicorn_files", gunicorn_directory='/srv/"x"', gunicorn_health_timeout=5
    )
    config = json.loads(files["slots.json"])
    assert config["directory"] == '/srv/"x"'
    assert config["health"]["timeout"] == 5
    assert config["command"][0] == '/srv/"x"/.venv/bin/python'


def supervised(tmp_path: Path, program: dict[str, Any]) -> Any:
    """Return the first process of a program, as supervisord reads it from the role's file."""
    text = supervisord.program_text(supervisord.DEFAULTS | program)
    (tmp_path / "program.conf").write_text(text.replace("/var/log/supervisor", str(tmp_path)))
    parser = UnhosedConfigParser()
    assert parser.read(str(tmp_path / "program.conf"))
    (group,) = ServerOptions().process_groups_from_parser(parser)
    return group.process_configs[0]


def test_a_program_of_supervisord_gets_its_environment_exactly_as_given(tmp_path: Path) -> None:
    # The one thing that its kind of file cannot hold is a carriage return.
    environment = {name: str(value).replace("\r", "") for name, value in NASTY.items()}
    environment |= {"LIST": 'a,b="c",%(x)s'}
    show = "import json, os, sys; print(json.dumps([dict(os.environ), sys.argv[1:]]))"
    command = f"{sys.executable} -c '{show}' %(process_num)d 'a b'"
    program = {"name": "x", "command": command, "environment": environment}
    process = supervised(tmp_path, program)
    result = subprocess.run(
        shlex.split(process.command), capture_output=True, text=True, check=True
    )
    arrived, arguments = json.loads(result.stdout)
    assert arguments == ["0", "a b"]
    assert {name: arrived.get(name) for name in environment} == environment


@pytest.mark.parametrize("address", ["unix:///run/x.sock", "tcp://127.0.0.1:9000"])
def test_supervisord_opens_the_socket_of_a_program(address: str, tmp_path: Path) -> None:
    program = {"name": "x", "command": "/bin/cat", "socket": address, "numprocs": 2}
    owner = {"socket_owner": "nobody:nogroup", "socket_mode": "0600"}
    parser = UnhosedConfigParser()
    text = supervisord.program_text(supervisord.DEFAULTS | program | owner)
    parser.read_string(text.replace("/var/log/supervisor", str(tmp_path)))
    (group,) = ServerOptions().process_groups_from_parser(parser)
    assert group.socket_config.url == address
    assert getattr(group.socket_config, "mode", 0o600) == 0o600
    assert [x.name for x in group.process_configs] == ["x_0", "x_1"]


def test_a_program_dies_and_comes_back(tmp_path: Path) -> None:
    process = supervised(tmp_path, {"name": "x", "command": "/bin/cat", "stopwaitsecs": 40})
    assert process.autostart
    assert process.autorestart is RestartUnconditionally
    assert process.stopwaitsecs == 40
    assert process.stdout_logfile_backups == 5


def test_supervisord_reads_its_own_file() -> None:
    parser = UnhosedConfigParser()
    parser.read_string(SUPERVISOR.render("etc/supervisor/supervisord.conf.j2"))
    assert parser["unix_http_server"]["chmod"] == "0700"
    assert parser["include"]["files"] == "/etc/supervisor/conf.d/*.conf"


def test_app_cannot_write_where_its_code_and_its_settings_are() -> None:
    app = {"root": "/srv/shop", "user": "shop", "deploy_user": "shop-deploy"}
    folders = release_settings.folders(app | {"shared": ["instance", "media/uploads"]})
    assert folders["/srv/shop/shared/media/uploads"] == (0o750, "shop", "shop")
    assert folders["/srv/shop/releases"][1] == "shop-deploy"
    # What decides what starts is not for who deploys, either.
    for name in ("settings", "state", "state/built", "state/venvs"):
        assert folders[f"/srv/shop/{name}"] == (0o755, "root", "root")


def test_a_program_is_merged_over_the_wirings_one() -> None:
    programs = SUPERVISOR.value(
        "__supervisor_programs",
        supervisor_default_programs=[{"name": "shop", "command": "x", "numprocs": 2}],
        supervisor_programs=[{"name": "shop", "priority": 1}, {"name": "mine", "command": "y"}],
    )
    assert programs == [
        {"name": "shop", "command": "x", "numprocs": 2, "priority": 1},
        {"name": "mine", "command": "y"},
    ]


def test_the_server_keeps_what_an_app_takes_of_it() -> None:
    files = APP.value(
        "__app_place", app_name="shop", app_secret_key="x", app_claims={"memory_mb": 240}
    )
    text, mode = files["/etc/carafe/shop.fact"]
    # Numbers, or the preflight of another app would not count them.
    assert json.loads(text) == {"environment": "prod", "memory_mb": 240}
    assert oct(mode) == "0o644"


def test_numbers_and_truth_values_may_come_as_text() -> None:
    """As ``-e app_keep_releases=3`` brings them."""
    texts = {
        **{"app_health_timeout": "9", "app_step_timeout": "10", "app_build_timeout": "11"},
        **{"app_migrate_timeout": "12", "app_keep_releases": "3", "app_break_lock": "false"},
    }
    told = APP.value("__app_facts_all", app_name="shop", app_secret_key="x", __app_run={}, **texts)
    assert told["limits"] == {"step": 10, "build": 11, "migrate": 12}
    assert (told["keep"], told["health"]["timeout"], told["break_lock"]) == (3, 9, False)
    slots = GUNICORN.value(
        "__gunicorn_slots_settings",
        **{"gunicorn_directory": "/srv", "gunicorn_health_timeout": "7"},
    )
    assert slots["health"]["timeout"] == 7
    program = GUNICORN.value(
        "gunicorn_program",
        **{"gunicorn_directory": "/srv", "gunicorn_user": "www-data", "gunicorn_slots": "3"},
    )
    assert program["numprocs"] == 3
