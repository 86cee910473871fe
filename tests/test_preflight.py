"""Each kind of bad input is found, and a good inventory is let through."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible_collections.carafe.stack.playbooks.meta import preflight as stack
from ansible_collections.carafe.stack.plugins.plugin_utils import options
from ansible_collections.carafe.stack.plugins.plugin_utils.problems import Problem, Server
from ansible_collections.carafe.stack.plugins.plugin_utils.sources import Sources, hide
from conftest import ROLES, Role

CHECKS = [
    *stack.CHECKS,
    *(x for role in ROLES for x in getattr(options.checks_of(f"roles.{role}"), "CHECKS", ())),
]

FACTS = {"distribution": "Debian", "distribution_major_version": "13", "memtotal_mb": 2048}
GOOD: dict[str, Any] = {
    "ansible_user": "deploy",
    "app_name": "guestbook",
    "app_user": "guestbook",
    "app_deploy_user": "guestbook-deploy",
    "app_environment_name": "prod",
    "backup_key": "k" * 40,
    "backup_owner": "guestbook",
    "backup_repository": "/mnt/copies",
    "app_domains": ["example.com", "localhost", "192.0.2.1", "[2001:db8::1]", "xn--bcher-kva.de"],
    "app_secret_key": "0123456789abcdef0123456789abcdef",
    "app_environment": {"DATABASE_URL": "postgresql:///x", "_a1": ""},
    "app_config": {"DEBUG": True, "2FA": "on"},
    "postgres_databases": [{"name": 'it\'s a "name", ü', "owner": "guestbook-owner"}],
    "postgres_roles": [{"name": "guestbook"}, {"name": "guestbook-owner"}],
    "postgres_memory_mb": 1024,
    "postgres_settings": {"max_connections": "100"},
    "gunicorn_workers": 2,
    "gunicorn_slots": 2,
    "gunicorn_threads": 4,
    "gunicorn_worker_memory_mb": 120,
    "supervisor_programs": [{"name": "guestbook"}, {"name": "guest-book_2.x"}],
    "nginx_sites": [
        {"name": "a", "listen": 80, "server_names": ["example.com", "*.example.com"]},
        {"name": "b", "listen": 80, "server_names": ["b.example.com", "~^c\\d+$"]},
        {"name": "c", "listen": 8080, "server_names": ["example.com"]},
        {"name": "gone", "listen": 80, "server_names": [], "state": "absent"},
    ],
}


NGINX = Role("nginx").options


def problems(facts: dict[str, Any] | None = None, contact: Any = None, **changes: Any) -> list[Any]:
    """Return what all checks of one server find when some values are changed."""
    values = {**GOOD, **changes}
    server = Server(
        *("web1", ["app"]),
        values=values,
        raw=changes,
        contact=contact or {},
        facts={**FACTS, **(facts or {})},
    )
    if "nginx_default_sites" in changes:
        for name in ("nginx_default_sites", "nginx_sites"):
            assert not list(options.check_option(server, "nginx", name, NGINX[name]))
        options.merge(server, "nginx_sites", NGINX)
    return [
        *(problem for check in CHECKS for problem in check(server)),
        *stack.check_connections([server]),
    ]


def the_only(found: list[Any]) -> Any:
    assert len(found) == 1, found
    return found[0]


def test_a_good_server_has_no_problem() -> None:
    assert problems() == []


def test_a_server_of_512_mb_can_be_poured_on_when_told_to_take_less() -> None:
    less = {"postgres_memory_mb": 128, "gunicorn_workers": 1, "gunicorn_worker_memory_mb": 60}
    assert problems(facts={"memtotal_mb": 480}, **less) == []


@pytest.mark.parametrize("name", ["app_memory_max_mb", "app_tasks_max"])
def test_a_limit_that_the_app_itself_could_not_live_with(name: str) -> None:
    # Two workers in each of two slots are promised 480 MiB.
    for value in (0, 1000000):
        assert problems(**{name: value}) == []
    for value in (1, 63):
        problem = the_only(problems(**{name: value}))
        assert problem.variable == name
    if name == "app_memory_max_mb":
        assert the_only(problems(app_memory_max_mb=479)).what.startswith(
            "is 479, less than the 480"
        )


@pytest.mark.parametrize("memory", ["75%", "100%", "2G", "800M", "1000000000"])
def test_memory_that_systemd_understands(memory: str) -> None:
    assert problems(app_build_memory=memory) == []


@pytest.mark.parametrize("memory", ["0", "0%", "101%", "2 G", "2GB", "-1", "lots", "", "2G\n"])
def test_memory_that_systemd_would_refuse(memory: str) -> None:
    assert the_only(problems(app_build_memory=memory)).variable == "app_build_memory"


@pytest.mark.parametrize(
    ("own", "fine"),
    [
        *(({"PrivateDevices": x}, True) for x in ("no", False, "")),
        ({"SystemCallFilter": "chroot mount"}, True),
        *(({"SystemCallFilter": x}, False) for x in (["chroot"], {"a": 1}, "a\nExecStart=b")),
        *(({x: "no"}, False) for x in ("private_devices", "Private Devices", "a", "A\n", "A=b")),
    ],
)
def test_an_opened_sandbox_is_settings_of_a_unit(own: dict[str, object], fine: bool) -> None:
    found = problems(app_sandbox=own)
    assert found == [] if fine else the_only(found).variable == "app_sandbox"


@pytest.mark.parametrize(
    "name",
    ["", "Guestbook", "1up", "-x", "a b", "café", "a" * 32, "a/b", "../etc", "a.b", "a;id", "a\n"],
)
def test_a_name_that_linux_does_not_take(name: str) -> None:
    problem = the_only(problems(app_name=name))
    assert problem.variable == "app_name"
    assert "not a name of a Linux user" in problem.what


@pytest.mark.parametrize("variable", ["app_user", "app_deploy_user"])
def test_a_user_that_linux_does_not_take(variable: str) -> None:
    assert the_only(problems(**{variable: "x" * 33})).variable == variable


@pytest.mark.parametrize(
    "name", ["root", "postgres", "www-data", "nginx", "sshd", "deploy", "sudo"]
)
def test_a_name_that_the_system_has(name: str) -> None:
    problem = the_only(problems(app_name=name))
    assert problem.variable == "app_name"
    assert "something else" in problem.what


def test_the_name_of_the_user_that_ansible_comes_in_as() -> None:
    assert the_only(problems(app_user="carl", ansible_user="carl")).variable == "app_user"


def test_the_app_must_not_own_its_code() -> None:
    assert the_only(problems(app_deploy_user="guestbook")).variable == "app_deploy_user"


@pytest.mark.parametrize("secret", ["", "x", "x" * 31])
def test_a_short_secret(secret: str) -> None:
    problem = the_only(problems(app_secret_key=secret))
    assert problem.variable == "app_secret_key"
    assert "secrets.token_hex" in problem.command


@pytest.mark.parametrize("name", ["", "x" * 64, "ü" * 32, "a\0b", "a\nb", "template1"])
def test_a_name_that_postgres_does_not_take(name: str) -> None:
    databases = [{"name": name, "owner": "guestbook"}]
    assert the_only(problems(postgres_databases=databases)).variable == "postgres_databases"


@pytest.mark.parametrize("name", ["", "x" * 64, "a\0b", "a\rb", "postgres", "pg_monitor", "public"])
def test_a_role_that_postgres_does_not_take(name: str) -> None:
    assert the_only(problems(postgres_roles=[{"name": name}])).variable == "postgres_roles"


@pytest.mark.parametrize(
    ("name", "told"), [("report", "postgres_roles"), ("guestbook", "app_name")]
)
def test_a_password_that_postgres_does_not_take(name: str, told: str) -> None:
    roles = [{"name": name, "password": "hush\0hush"}]
    found = the_only(problems(postgres_roles=roles))
    assert found.variable == told
    assert "NUL" in found.what
    assert "hush" not in found.what


def test_a_database_that_adds_to_the_playbook_s_repeats_no_owner() -> None:
    assert problems(postgres_databases=[{"name": "guestbook", "extensions": ["citext"]}]) == []


def test_an_owner_that_postgres_does_not_take() -> None:
    databases = [{"name": "x", "owner": "x" * 64}]
    assert "role" in the_only(problems(postgres_databases=databases)).what


@pytest.mark.parametrize(
    "name",
    ["", "https://example.com", "example.com:80", "a b", "-a.test", "a_b.test", "bücher.de", "a..b",
     "x" * 64, "a.b.c/d", "[::1", "*", "a.*", "{{ x }}"],
)  # fmt: skip
def test_what_is_no_host_name(name: str) -> None:
    assert the_only(problems(app_domains=[name])).variable == "app_domains"
    site = {"name": "a", "listen": 80, "server_names": [name]}
    assert the_only(problems(nginx_sites=[site])).variable == "nginx_sites"


@pytest.mark.parametrize("text", ["proxy.test", "192.0.2.7/24", "192.0.2.1-192.0.2.9", "unix:"])
def test_what_is_no_network_is_named_where_it_was_written(text: str) -> None:
    good = ["192.0.2.7", "2001:db8::/32"]
    for variable in ("nginx_real_ip_from", "nginx_proxy_protocol_from"):
        wired = {variable: [*good, text], "stack_web_sources": [*good, text]}
        assert the_only(problems(**wired)).variable == variable
    told = the_only(problems(nginx_real_ip_from=good, stack_web_sources=[*good, text]))
    assert told.variable == "stack_web_sources"
    assert repr(text) in told.what
    assert not problems(nginx_real_ip_from=good, stack_web_sources=good)


def test_a_wildcard_is_a_server_name_of_nginx_but_no_domain_of_the_app() -> None:
    assert the_only(problems(app_domains=["*.example.com"])).variable == "app_domains"


def test_no_domain_at_all() -> None:
    assert the_only(problems(app_domains=[])).variable == "app_domains"


def test_a_wrong_domain_is_not_told_again_for_its_site() -> None:
    site = {"name": "a", "listen": 80, "server_names": ["a b"]}
    assert the_only(problems(app_domains=["a b"], nginx_sites=[site])).variable == "app_domains"


def test_a_site_that_nobody_can_reach() -> None:
    site = {"name": "a", "listen": 80, "server_names": []}
    assert "no server_names" in the_only(problems(nginx_sites=[site])).what


def test_an_entry_that_adds_to_a_site_of_the_wiring_restates_nothing() -> None:
    wired = {"name": "a", "server_names": ["one.test"]}
    more = {"name": "a", "client_max_body_size": "1g"}
    assert not problems(nginx_default_sites=[wired], nginx_sites=[more])
    # Who restates does no harm either.
    assert not problems(nginx_default_sites=[wired], nginx_sites=[wired | more])
    other = {"name": "b", "server_names": ["one.test"]}
    problem = the_only(problems(nginx_default_sites=[wired], nginx_sites=[other]))
    assert "'one.test' on port 80 twice, in 'a' and 'b'" in problem.what


@pytest.mark.parametrize(
    ("variable", "entry"),
    [
        ("nginx_sites", {"name": "a", "state": "absent"}),
        ("nginx_streams", {"name": "a"}),
        ("supervisor_programs", {"name": "a"}),
        ("app_workers", {"name": "a"}),
        ("app_schedules", {"name": "a"}),
        ("postgres_databases", {"name": "a", "owner": "b"}),
        ("postgres_roles", {"name": "a"}),
    ],
)
def test_two_of_one_name(variable: str, entry: dict[str, Any]) -> None:
    problem = the_only(problems(**{variable: [entry, dict(entry)]}))
    assert problem.variable == variable
    assert "two" in problem.what


@pytest.mark.parametrize("variable", ["nginx_sites", "supervisor_programs", "app_workers"])
@pytest.mark.parametrize("name", ["a b", "../x", "", "a/b", "ü", "-a"])
def test_a_name_that_makes_no_file(variable: str, name: str) -> None:
    entry = {"name": name, "server_names": ["example.org"]}
    assert the_only(problems(**{variable: [entry]})).variable == variable


@pytest.mark.parametrize(
    ("option", "name", "what"),
    [
        ("pass_headers", "X-Forwarded-For", "nginx_real_ip_from"),
        ("pass_headers", "host", "which nginx sets itself"),
        ("pass_headers", "Upgrade", "which nginx reads itself"),
        ("pass_headers", "Remote_User", "letters, digits, '-'"),
        ("pass_headers", "X; return 200", "letters, digits, '-'"),
        ("cache_headers", "Cookie", "an answer of their own"),
        ("cache_headers", "Range", "which nginx reads itself"),
        ("cache_headers", "X-Forwarded-Proto", "which nginx sets itself"),
    ],
)
def test_a_header_that_no_site_can_have(option: str, name: str, what: str) -> None:
    site = {"name": "a", "listen": 80, "server_names": ["one.test"], option: [name]}
    problem = the_only(problems(nginx_sites=[site]))
    assert problem.variable == "nginx_sites"
    assert what in problem.what


@pytest.mark.parametrize("asked", ["3.1", "2.7", "3.8", "python3.12", "3", "3.12; rm", "latest"])
def test_a_python_that_there_is_none_of(asked: str) -> None:
    assert the_only(problems(app_python=asked)).variable == "app_python"


@pytest.mark.parametrize("asked", ["", "3.11", "3.12.7", "3.14", "/opt/python/bin/python3"])
def test_a_python_that_an_app_can_have(asked: str) -> None:
    assert not problems(app_python=asked)


def test_headers_that_a_site_can_have() -> None:
    site = {"name": "a", "listen": 80, "server_names": ["one.test"]}
    headers = {"pass_headers": ["Remote-User"], "cache_headers": ["X-Forwarded-For", "Accept"]}
    own = {
        "request_headers": {"X-Protocol": "$ssl_protocol", "Remote-User": "nobody", "X-Host": ""}
    }
    service = {"path": "/b/", "proxy_pass": "http://b/", "request_headers": {"Host": "b.test"}}
    assert not problems(nginx_sites=[site | headers | own | {"locations": [service]}])


@pytest.mark.parametrize(
    ("headers", "what"),
    [
        ({"Host": "a"}, "which nginx sets itself"),
        ({"x-forwarded-for": "a"}, "nginx_real_ip_from"),
        ({"Connection": "a"}, "which nginx reads itself"),
        ({"X_A": "a"}, "letters, digits, '-'"),
        ({"X-A": "a\nb"}, "a line end"),
    ],
)
@pytest.mark.parametrize("of_path", [True, False])
def test_a_request_header_that_no_app_can_be_given(headers: dict, what: str, of_path: bool) -> None:
    site = {"name": "a", "listen": 80, "server_names": ["one.test"]}
    site["upstreams"] = ["a:1"]
    wrong = {"request_headers": headers}
    more = {"locations": [{"path": "/b/", **wrong}]} if of_path else wrong
    problem = the_only(problems(nginx_sites=[site | more]))
    assert problem.variable == "nginx_sites"
    assert what in problem.what


NESTED = [
    "%s",
    "# a comment; {\n%s",
    "location /x { %s }",
    "location /x {\n  # }\n  if ($a) { %s }\n}",
    'return 200 "}; {"; location ~ "x{2}" { set $a \'#\'; %s }',
    "set $a ${b}c#d; location /x { limit_except GET { } %s }",
]


@pytest.mark.parametrize("around", NESTED)
@pytest.mark.parametrize(
    "directive",
    ["proxy_set_header X-A b;", "proxy_set_header\n  Host\t$host ;", "'proxy_set_header' a b;",
     "set_real_ip_from 0.0.0.0/0;", "add_header X-A b always;"],
)  # fmt: skip
def test_free_text_that_would_drop_what_protects(around: str, directive: str) -> None:
    site = {"name": "a", "server_names": ["one.test"], "extra": around.replace("%s", directive)}
    beside = "add_header" in directive and "location" not in around
    found = problems(nginx_sites=[site])
    assert [x.variable for x in found] == ([] if beside else ["nginx_sites"])
    found = problems(nginx_extra_http=site["extra"])
    assert [x.variable for x in found] == ["nginx_extra_http"]


@pytest.mark.parametrize("around", NESTED)
@pytest.mark.parametrize(
    "text",
    ["# proxy_set_header A b;", "", "return 200 'proxy_set_header A b;';", "proxy_hide_header X-A;",
     "set $proxy_set_header a;", 'log_format x "a; proxy_set_header A b;";',
     r'set $a "\\"; add_trailer a b;'],
)  # fmt: skip
def test_free_text_that_only_looks_like_it(around: str, text: str) -> None:
    extra = around.replace("%s", text + "\n")
    site = {"name": "a", "server_names": ["one.test"], "extra": extra}
    assert not problems(nginx_sites=[site], nginx_extra_http=extra)


def test_names_that_are_sent_to_the_first() -> None:
    site = {"name": "a", "server_names": ["one.test"], "redirect_names": ["www.one.test"]}
    assert not problems(nginx_sites=[site])
    other = {"name": "b", "server_names": ["www.one.test"]}
    assert "twice, in 'a' and 'b'" in the_only(problems(nginx_sites=[site, other])).what
    wrong = the_only(problems(nginx_sites=[site | {"server_names": ["*.one.test"]}]))
    assert "no plain first name" in wrong.what


@pytest.mark.parametrize(
    ("path", "base", "wrong"),
    [
        ("/srv/a/current/static", "", False),
        ("/srv/a/current/static", "/srv/a/current/", False),
        ("/srv/a/current", "/srv/a/current", False),
        ("/srv/a/currently", "/srv/a/current", True),
        ("/srv/a", "/srv/a/current", True),
    ],
)
def test_a_static_folder_that_is_not_below_its_base(path: str, base: str, wrong: bool) -> None:
    static = [{"url": "/static/", "path": path, "base": base}]
    site = {"name": "a", "listen": 80, "server_names": ["one.test"], "static": static}
    found = problems(nginx_sites=[site])
    assert [x.variable for x in found] == ["nginx_sites"] * wrong


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"app_domains": ["192.0.2.1", "a.test"]}, True),
        ({"app_domains": ["a.test", "[2001:db8::1]"]}, True),
        ({"app_domains": ["a.test", "1.example"]}, False),
        ({"app_domains": ["a.test", "192.0.2.1"], "certificates_source": "ca"}, False),
        ({"app_domains": ["a.test", "192.0.2.1"], "stack_https": False}, False),
        # Refused, and so nothing to say.
        ({"app_domains": ["192.0.2.1"]}, False),
    ],
)
def test_an_address_that_nobody_signs_is_told(values: dict[str, Any], told: bool) -> None:
    web = {"nginx_default_sites": [{"name": "a"}]}
    given = web | {"certificates_source": "acme", "stack_https": True} | values
    notes = list(stack.note_addresses(Server("web1", values=given)))
    assert bool(notes) is told
    assert all("https://a.test" in note for note in notes)


@pytest.mark.parametrize(
    ("path", "site", "what"),
    [
        ("/admin", {}, ""),
        ("= /", {}, ""),
        ("/", {}, "has the path '/' of 'a', which is the site itself; say it in the site's own"),
        ("^~ /", {}, "say it in the site's own"),
        ("/", {"static": ["/"]}, "say it in the site's own"),
        ("/admin", {"static": ["/"]}, ""),
        ("/static/", {"static": ["/static/"]}, "which is a static folder"),
        ("/static", {"static": ["/static/"]}, "which is a static folder"),
        ("/static/more/", {"static": ["/static/"]}, ""),
        # nginx has nothing else there to put it into.
        ("/admin", {"upstreams": []}, "leads nowhere"),
        ("/", {"upstreams": []}, "say it in the site's own"),
    ],
)
@pytest.mark.parametrize("service", ["", "http://127.0.0.1:9/"])
def test_what_is_said_of_a_path_is_never_left_out(
    path: str, site: dict[str, Any], what: str, service: str
) -> None:
    site = {"upstreams": ["a:1"], **site}
    site["static"] = [{"url": url, "path": "/srv/a"} for url in site.get("static", [])]
    site["locations"] = [{"path": path, "basic_auth": False, "proxy_pass": service}]
    if service and not site["upstreams"]:
        what = ""
    elif service:
        what = what.replace("say it in the site's own", "give the service another path")
    found = problems(nginx_sites=[{"name": "a", "listen": 80, "server_names": ["a.test"], **site}])
    assert len(found) == bool(what)
    assert all(what in x.what for x in found)


MEDIA = {"url": "/media/", "path": "/srv/a/shared/media"}


@pytest.mark.parametrize(
    ("site", "what"),
    [
        ({"uploads": [MEDIA]}, ""),
        ({"uploads": [MEDIA | {"base": "/srv/a/shared"}]}, ""),
        ({"uploads": [MEDIA | {"base": "/srv/b"}]}, "not below its base"),
        ({"uploads": [MEDIA | {"url": "/"}]}, "needs a path"),
        ({"uploads": [MEDIA | {"url": "media/"}]}, "needs a path"),
        ({"uploads": [MEDIA, MEDIA | {"url": "/media"}]}, "two meanings"),
        ({"uploads": [MEDIA], "static": [MEDIA | {"path": "/srv/a"}]}, "two meanings"),
        (
            {"uploads": [MEDIA], "upstreams": ["a:1"], "locations": [{"path": "/media"}]},
            "two meanings",
        ),
    ],
)
def test_a_folder_of_uploads_that_a_site_can_have(site: dict[str, Any], what: str) -> None:
    found = problems(nginx_sites=[{"name": "a", "listen": 80, "server_names": ["a.test"], **site}])
    assert bool(found) == bool(what)
    assert all(what in x.what for x in found)


@pytest.mark.parametrize("url", ["media/", "/media", "/", "//", "/a b/", "/a;}/", ""])
def test_a_url_that_no_uploads_can_have(url: str) -> None:
    assert the_only(problems(app_uploads={url: "media"})).variable == "app_uploads"


@pytest.mark.parametrize("folder", ["", "/srv/media", "../x", "a/../b", ".", None, "a b", "x/."])
def test_a_folder_that_no_uploads_can_have(folder: Any) -> None:
    assert the_only(problems(app_uploads={"/media/": folder})).variable == "app_uploads"


def test_uploads_of_one_server() -> None:
    uploads = {"/media/": "media", "/a/b/": "instance/b"}
    assert not problems(app_uploads=uploads, stack_is_one_server=True)
    assert "several" in the_only(problems(app_uploads=uploads, stack_is_one_server=False)).what
    assert "app_static" in the_only(problems(app_uploads=uploads, app_static={"/media": "x"})).what


def test_two_sites_for_one_host_name_on_one_port() -> None:
    sites = [
        {"name": "a", "listen": 80, "server_names": ["one.test", "two.test"]},
        {"name": "b", "listen": 80, "server_names": ["TWO.test"]},
    ]
    problem = the_only(problems(nginx_sites=sites))
    assert "'two.test' on port 80 twice, in 'a' and 'b'" in problem.what


@pytest.mark.parametrize(
    ("variable", "entry", "fine"),
    [
        ("app_requirements_override", "psycopg[binary]==3.2", True),
        ("app_requirements_override", "gunicorn-extra==1", True),
        ("app_requirements_override", "gunicorn", False),
        ("app_requirements_override", "Gunicorn[gevent]==26", False),
        (
            "app_requirements_override",
            "gunicorn @ https://a.test/gunicorn-26-py3-none-any.whl",
            False,
        ),
        ("app_requirements_override", "./vendor", False),
        ("app_extra_requirements", "gunicorn==26", False),
        ("app_extra_requirements", "gunicorn>=26", False),
        ("app_extra_requirements", "gunicorn[gevent]", True),
        ("app_extra_requirements", "gevent", True),
    ],
)
def test_what_serves_the_app_is_not_taken_away(variable: str, entry: str, fine: bool) -> None:
    brought = {"app_default_extra_requirements": ["gunicorn==27.0.1"]}
    found = problems(**brought, **{variable: [entry]})
    if fine:
        assert found == []
    else:
        assert the_only(found).variable == variable
    # Where the playbook brings none, as for the role alone, it is like any other.
    if "gunicorn" in entry:
        assert problems(**{variable: [entry]}) == []


@pytest.mark.parametrize(
    "files",
    [
        {"key.pem": " \n"},
        {"key": {"private": "hush"}},
        {"key": ["hush"]},
        {"../key": "hush"},
        {"a/b": "hush"},
        {"": "hush"},
        {".": "hush"},
    ],
)
def test_a_secret_file_that_is_none_is_named_and_not_shown(files: Any) -> None:
    problem = the_only(problems(app_secret_files=files))
    assert problem.variable == "app_secret_files"
    assert "hush" not in f"{problem.what} {problem.meant}"


def test_secret_files_have_any_plain_name() -> None:
    assert not problems(app_secret_files={"account.json": "{}", "id_rsa": "x", "A-b_c.pem": "x\n"})


@pytest.mark.parametrize("variable", ["app_environment", "app_migrate_environment", "app_config"])
@pytest.mark.parametrize("name", ["A B", "A-B", "", "é", "A=B", "A;id"])
def test_a_name_that_the_shell_does_not_take(variable: str, name: str) -> None:
    found = problems(**{variable: {name: "x"}})
    # Flask's settings are prefixed, so the empty name is FLASK_.
    assert (variable, name) == ("app_config", "") or the_only(found).variable == variable


def test_a_digit_may_not_begin_a_name() -> None:
    assert the_only(problems(app_environment={"2FA": "x"})).variable == "app_environment"


@pytest.mark.parametrize("variable", ["app_environment", "app_config"])
def test_a_value_with_a_nul_is_named_and_not_shown(variable: str) -> None:
    problem = the_only(problems(**{variable: {"TOKEN": "hush\0hush"}}))
    assert "TOKEN" in problem.what
    assert "hush" not in problem.what


# A place for each variable that is shown, or kept where others read it.
SHOWN = {
    "app_repository": str,
    "app_package": str,
    "app_extra_requirements": lambda url: ["flask", f"--extra-index-url {url}", "celery"],
    "app_requirements_override": lambda url: ["flask", f"celery @ {url}"],
    "app_build_commands": lambda url: [f"curl -sSf '{url}' -o data.json"],
    "app_hooks": lambda url: {"after_finish": [f"curl -d x {url}"]},
    "app_workers": lambda url: [{"name": "jobs", "command": f"celery -b {url} worker"}],
    "app_schedules": lambda url: [{"name": "t", "when": "daily", "command": f"curl {url}"}],
    "supervisor_programs": lambda url: [
        {"name": "x", "command": "sleep 9", "environment": {"BROKER": url}}
    ],
    "gunicorn_settings": lambda url: {"raw_env": [f"PROXY={url}"]},
    "gunicorn_requirements": lambda url: [f"x @ {url}"],
    "certificates_acme_directory": str,
}


@pytest.mark.parametrize("variable", SHOWN)
def test_a_password_in_a_url_is_refused_wherever_it_is_shown(variable: str) -> None:
    found = problems(**{variable: SHOWN[variable]("https://ann:hush@house.test/x")})
    problem = next(x for x in found if "in its URL" in x.what)
    assert problem.variable == variable
    assert not any("hush" in x.what + x.command for x in found)
    assert not any("in its URL" in x.what for x in problems(**{variable: SHOWN[variable](GIT)}))


GIT = "https://git.test/a@b.git"


@pytest.mark.parametrize("url", [GIT, "ssh://git@git.test/a", "git@git.test:a", "/srv/git/a"])
def test_a_repository_without_a_password(url: str) -> None:
    assert problems(app_repository=url) == []


@pytest.mark.parametrize("variable", ["app_environment", "app_install_environment", "app_config"])
def test_a_password_in_a_url_is_where_secrets_belong(variable: str) -> None:
    assert problems(**{variable: {"PIP_INDEX_URL": "https://ann:hush@house.test/simple"}}) == []


def test_the_environment_of_a_program() -> None:
    programs = [{"name": "a", "environment": {"A B": "x"}}]
    assert the_only(problems(supervisor_programs=programs)).variable == "supervisor_programs"


def test_more_memory_promised_than_there_is() -> None:
    problem = the_only(problems(postgres_memory_mb=1500))
    assert problem.variable == "postgres_memory_mb"
    assert "1500 for PostgreSQL + 2 workers x 2 slots x 120 + 128" in problem.what
    assert "2108 MiB of 2048" in problem.what


def test_memory_that_fits_to_the_last_mib() -> None:
    assert problems(postgres_memory_mb=2048 - 128 - 480) == []


def test_more_workers_than_the_memory_holds() -> None:
    problem = the_only(problems(gunicorn_workers=8, gunicorn_threads=1))
    assert problem.variable == "gunicorn_workers"


@pytest.mark.parametrize(
    ("interface", "worker", "speaks"),
    [
        ("asgi", "gthread", "wsgi"),
        ("asgi", "gevent", "wsgi"),
        ("wsgi", "asgi", "asgi"),
        ("wsgi", "uvicorn_worker.UvicornWorker", "asgi"),
        ("wsgi", "uvicorn.workers.UvicornWorker", "asgi"),
    ],
)
def test_a_worker_that_speaks_another_interface_than_the_app(
    interface: str, worker: str, speaks: str
) -> None:
    problem = the_only(problems(gunicorn_interface=interface, gunicorn_worker_class=worker))
    assert problem.variable == "gunicorn_worker_class"
    assert f"write app_interface: {speaks}," in problem.what


@pytest.mark.parametrize(
    ("interface", "worker"),
    [("asgi", "asgi"), ("asgi", "uvicorn_worker.UvicornWorker"), ("wsgi", "sync"), ("wsgi", "x.Y")],
)
def test_a_worker_that_speaks_what_the_app_does(interface: str, worker: str) -> None:
    assert problems(gunicorn_interface=interface, gunicorn_worker_class=worker) == []


def test_a_server_of_nothing_but_the_app_promises_no_memory_to_postgres() -> None:
    values = {k: v for k, v in GOOD.items() if not k.startswith("postgres")}
    server = Server("a", values=values, facts={**FACTS, "memtotal_mb": 480 + 128})
    assert list(stack.check_memory(server)) == []


def test_more_threads_than_connections() -> None:
    problem = the_only(problems(gunicorn_threads=25))
    assert problem.variable == "postgres_settings"
    assert problem.what.startswith("has max_connections 100, of which 3 are kept")
    assert "may open 100" in problem.what
    assert "set it to 103 or more" in problem.command


def test_as_many_threads_as_connections() -> None:
    assert problems(gunicorn_threads=24, postgres_settings={"max_connections": 99}) == []


def test_connections_that_nobody_limits_are_raised_by_the_role() -> None:
    assert problems(gunicorn_threads=50, postgres_settings={}) == []


def test_the_connections_of_all_app_servers_count_but_not_those_of_another_stack() -> None:
    limit = {"postgres_settings": {"max_connections": 30}}
    database = {**limit, "stack_app": ["app1", "app2"]}
    app = {"gunicorn_workers": 2, "gunicorn_slots": 2, "gunicorn_threads": 4}
    servers = [Server("db1", values=database)]
    servers += [Server(f"app{number}", values=app) for number in (1, 2, 3)]
    problem = the_only(list(stack.check_connections(servers)))
    assert "may open 32" in problem.what
    assert "app3" not in problem.what
    assert list(stack.check_connections(servers[:2])) == []


@pytest.mark.parametrize(
    ("distribution", "version"),
    [("Debian", "11"), ("Ubuntu", "12"), ("Debian", "14"), ("Ubuntu", "24"), ("Alpine", "3")],
)
def test_another_distribution(distribution: str, version: str) -> None:
    facts = {"distribution": distribution, "distribution_major_version": version}
    problem = the_only(problems(facts=facts))
    assert f"{distribution} {version}" in problem.what
    assert "12 (bookworm) or 13 (trixie)" in problem.what


@pytest.mark.parametrize(
    ("contact", "variable", "words"),
    [
        ({"unreachable": True, "msg": "refused"}, "ansible_host", "cannot be reached at 192.0.2.1"),
        ({"failed": True, "msg": "Missing sudo password"}, "ansible_user", "cannot become root"),
        ({"failed": True, "rc": 127, "msg": "x"}, "ansible_host", "no Python 3"),
        ({"failed": True, "msg": "odd"}, "ansible_host", "odd"),
    ],
)
def test_a_server_that_does_not_answer(contact: dict[str, Any], variable: str, words: str) -> None:
    reach = {"ansible_host": "192.0.2.1", "ansible_port": 2222, "ansible_user": "me"}
    problem = the_only(problems(contact=contact, **reach))
    assert problem.variable == variable
    assert words in problem.what
    assert "ssh -p 2222 me@192.0.2.1" in problem.command


def test_a_name_that_another_environment_has_taken() -> None:
    kept = {"ansible_local": {"guestbook": {"environment": "staging"}}}
    problem = the_only(problems(facts=kept))
    assert problem.variable == "app_name"
    assert "'staging'" in problem.what
    assert "/etc/carafe/guestbook.fact" in problem.command


@pytest.mark.parametrize(
    "kept",
    [
        {},
        {"guestbook": {"environment": "prod"}},
        {"other": {"environment": "x"}},
        {"guestbook": "error"},
    ],
)
def test_a_name_that_is_free_or_ours(kept: dict[str, Any]) -> None:
    assert problems(facts={"ansible_local": kept}) == []


@pytest.mark.parametrize("address", [None, "", "db.internal", "10.0.0", "2001:db8::1", 5])
def test_an_address_that_the_others_cannot_use(address: Any) -> None:
    server = Server("web1", peers={"db1": address})
    problem = the_only(list(stack.check_addresses(server)))
    assert problem.variable == "private_address"
    assert "db1" in problem.what


def test_an_address_that_they_can() -> None:
    assert list(stack.check_addresses(Server("web1", peers={"db1": "10.0.0.2"}))) == []


@pytest.mark.parametrize("password", [None, ""])
def test_an_empty_password(password: str | None) -> None:
    values = {"stack_db": ["db1"], "database_migrate_password": "x"}
    peers = {"db1": "10.0.0.2"}
    server = Server("web1", values={**values, "database_password": password}, peers=peers)
    assert the_only(list(stack.check_passwords(server))).variable == "database_password"
    without = Server("web1", values={"stack_db": []}, peers=peers)
    assert list(stack.check_passwords(without)) == []


TAKERS = [
    options.Taker("nginx", {"nginx_worker_processes": {}, "nginx_sites": {}}),
    options.Taker("app", {"app_name": {}, "app_source": {}}),
    options.Taker("stack", {"stack_https": {}}, {"stack_app": []}),
]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("nginx_worker_proceses", "nginx_worker_processes"),
        ("app_sorce", "app_source"),
        ("nginx_wholly_other", "`ansible-doc -t role carafe.stack.nginx` lists"),
        ("stack_htps", "the stack does not know; did you mean stack_https?"),
        ("stack_wholly_other", "the stack does not know, which has stack_https"),
    ],
)
def test_a_variable_that_no_role_knows(name: str, meant: str) -> None:
    problem = the_only(list(options.check_unknown([name, "nginx_sites"], TAKERS)))
    assert problem.variable == name
    assert meant in problem.what


def test_variables_that_are_no_business_of_a_role() -> None:
    others = ["__nginx_internal", "applet", "stack_app", "ansible_host", "app_name"]
    assert list(options.check_unknown(others, TAKERS)) == []


def test_an_option_of_the_wrong_type() -> None:
    server = Server("web1", values={"nginx_sites": "none"})
    spec = {"type": "list", "elements": "dict"}
    problem = the_only(list(options.check_option(server, "the role nginx", "nginx_sites", spec)))
    assert problem.variable == "nginx_sites"
    assert "nginx_sites" not in server.values


def test_an_option_that_is_required() -> None:
    spec = {"type": "str", "required": True}
    found = options.check_option(Server("web1"), "the role app", "app_name", spec)
    assert "the role app needs it" in the_only(list(found)).what


def test_what_is_missing_is_told_once() -> None:
    server = Server("web1", missing={"app_name"})
    server.failures.update({"app_name": ["app_root"], "vault_x": ["a", "b"]})
    server.failures["has no attribute 'memtotal_mb'"] = ["gunicorn_workers"]
    problem = the_only(list(stack.check_failures(server)))
    assert problem == Problem("vault_x", "is not set, and a needs it")


@pytest.fixture
def sources(tmp_path: Path) -> Iterator[Any]:
    for path, text in {
        "group_vars/all/app.yml": 'app_secret_key: "{{ vault_app_secret_key }}"\napp_name: x\n',
        "group_vars/prod/main.yml": "# nginx_worker_proceses: 1\nnginx_worker_proceses: 2\n",
        "inventory/prod/host_vars/web1.yml": "nginx_sites:\n  - {name: a}\n",
        "inventory/prod/hosts.yml": "prod:\n  hosts:\n    web1: {private_address: x}\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "inventory/prod/group_vars").symlink_to("../../group_vars")
    inventory = str(tmp_path / "inventory/prod")
    return Sources(tmp_path, [inventory], {"app_sorce": 1}, {"app_domains": []}, top=tmp_path)


@pytest.mark.parametrize(
    ("variable", "place"),
    [
        ("nginx_worker_proceses", "group_vars/prod/main.yml, line 2"),
        ("app_name", "group_vars/all/app.yml, line 2"),
        ("nginx_sites", "inventory/prod/host_vars/web1.yml, line 1"),
        ("private_address", "inventory/prod/hosts.yml, line 3"),
        ("app_sorce", "what -e on the command line says"),
        ("app_domains", "the vars of the play"),
        ("gunicorn_workers", "group_vars/prod/main.yml"),
    ],
)
def test_the_file_to_edit(sources: Any, variable: str, place: str) -> None:
    problem = Problem(variable, "is wrong")
    assert sources.advice(problem, "web1", ["app", "prod"]) == f"Edit {place}."


def test_what_is_not_set_is_to_be_set_in_the_environment(sources: Any) -> None:
    problem = Problem("app_name", "is not set, and the role app needs it")
    assert sources.advice(problem, "web1", ["prod"]) == "Edit group_vars/prod/main.yml."


def test_a_secret_belongs_into_the_vault(sources: Any, tmp_path: Path) -> None:
    problem = Problem("app_secret_key", "is too short")
    (tmp_path / "Makefile").touch()
    assert "make vault ENV=prod" in sources.advice(problem, "web1", ["prod"])
    (tmp_path / "group_vars/prod/vault.yml").touch()
    advice = sources.advice(problem, "web1", ["prod"])
    assert advice.endswith("ansible-vault edit group_vars/prod/vault.yml")
    assert "vault_app_secret_key" in advice


@pytest.fixture
def hooks(tmp_path: Path) -> Callable[..., list[Any]]:
    """Return what is found wrong with the entries of a point, beside these files."""

    def check(*entries: Any, **files: str) -> list[Any]:
        for name, text in files.items():
            (tmp_path / f"{name}.yml").write_text(text)
        return problems(app_hooks={"before_switch": list(entries)}, app_hooks_path=str(tmp_path))

    return check


def test_hooks_are_commands_and_task_files(hooks: Callable[..., list[Any]], tmp_path: Path) -> None:
    good = "- name: Warm\n  ansible.builtin.import_tasks: more.yml\n"
    more = "- name: Wait\n  ansible.builtin.pause:\n    seconds: 1\n"
    entries = ("true", {"tasks": "good.yml"}, {"tasks": f"{tmp_path}/more.yml"})
    assert hooks(*entries, good=good, more=more) == []


@pytest.mark.parametrize(
    "entry", [5, True, None, [], {}, {"task": "x.yml"}, {"tasks": ""}, {"tasks": "x", "when": 1}]
)
def test_a_hook_that_is_neither(hooks: Callable[..., list[Any]], entry: Any) -> None:
    problem = the_only(hooks(entry))
    assert problem.variable == "app_hooks"
    assert "in before_switch" in problem.what
    assert "neither a command nor {tasks: FILE}" in problem.what


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("- [", "YAML parsing failed"),
        ("name: x", "should be a list"),
        ("- name: x\n  no_such_module:\n", "no_such_module"),
        ("- import_tasks: gone.yml\n", "gone.yml"),
    ],
)
def test_a_task_file_that_would_stop_a_run(
    hooks: Callable[..., list[Any]], text: str, why: str
) -> None:
    problem = the_only(hooks({"tasks": "x.yml"}, x=text))
    assert "x.yml, which Ansible cannot read: " in problem.what
    assert why in problem.what


def test_a_task_file_that_is_not_there(hooks: Callable[..., list[Any]], tmp_path: Path) -> None:
    problem = the_only(hooks({"tasks": "x.yml"}))
    assert f"task file {tmp_path}/x.yml, which is not there" in problem.what


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"befor_switch": []}, "has befor_switch, and knows only before_switch, after_switch"),
        (
            {"before_switch": "true"},
            "has in before_switch the text 'true', and a list is meant: [\"true\"]",
        ),
        ({"before_switch": 5}, "has in before_switch 5, and a list is meant"),
        ({"before_switch": None}, "has in before_switch nothing, and a list is meant"),
        ("true", "is a text, and a mapping of names to values is meant"),
    ],
)
def test_hooks_of_the_wrong_form(value: Any, why: str) -> None:
    points = ("before_switch", "after_switch")
    below = {point: {"type": "list", "elements": "raw", "default": []} for point in points}
    server = Server("web1", ["app"], values={"app_hooks": value})
    spec = {"type": "dict", "options": below}
    problem = the_only(list(options.check_option(server, "the role app", "app_hooks", spec)))
    assert why in problem.what


# What the spec says of a value.


def check(name: str, value: Any, spec: dict[str, Any] | None = None) -> list[Problem]:
    """Return what is found wrong with a value of an option, as the roles have it."""
    role = name.split("_")[0]
    taker = STACK if role == "stack" else options.Taker(role, Role(role).options)
    taker.checks = options.checks_of("playbooks" if role == "stack" else f"roles.{role}")
    server = Server("web1", values={name: value})
    spec = spec or taker.options[name]
    found = list(options.check_option(server, str(taker), name, spec, taker.ranges))
    assert bool(found) != (name in server.values)
    return found


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        (
            "app_domains",
            "shop.example.com",
            "is the text 'shop.example.com', and a list is meant: [\"shop.example.com\"]",
        ),
        (
            "nginx_sites",
            [{"name": "shop", "server_names": "shop.test"}],
            "has in server_names of 'shop' the text 'shop.test', and a list is meant:"
            ' ["shop.test"]',
        ),
        ("app_environment", "A=b", "is a text, and a mapping of names to values is meant"),
        (
            "stack_https",
            "no",
            "is the text 'no', which counts as true; write true or false, with no quotes",
        ),
        ("stack_https", "maybe", "is the text 'maybe', which counts as true"),
        ("stack_https", "", "is the text ''; write true or false"),
        ("stack_https", 0, "is 0; write true or false"),
        (
            "nginx_sites",
            [{"name": "shop", "cache": "off"}],
            "has in cache of 'shop' the text 'off', which counts as true",
        ),
        ("gunicorn_workers", "four", "is 'four', and a whole number is meant"),
        ("gunicorn_workers", 1.5, "is 1.5, and a whole number is meant"),
        ("gunicorn_workers", True, "is True, and a whole number is meant"),
        ("gunicorn_workers", None, "is nothing, and a whole number is meant"),
        ("gunicorn_workers", 0, "is 0, and a number at least 1 is meant"),
        ("gunicorn_workers", "-3", "is -3, and a number at least 1 is meant"),
        ("gunicorn_timeout", -1, "is -1, and a number at least 0 is meant"),
        ("stack_https_port", 0, "is 0, and a number from 1 to 65535 is meant"),
        ("sshd_ports", [22, "70000"], "has in entry 2 70000, and a number from 1 to 65535 is"),
        (
            "nginx_sites",
            [{"name": "shop", "listen": 70000}],
            "has in listen of 'shop' 70000, and a number from 1 to 65535 is meant",
        ),
        ("app_name", ["shop"], "is a list, and a text is meant"),
        ("app_source", "svn", "is 'svn', which is none of local, git, package"),
        ("nginx_sites", [{"name": "a", "liste": 1}], "has 'a' liste, and knows only name, state,"),
        ("nginx_sites", ["a"], "has in entry 1 a text, and a mapping of names to values"),
        ("app_secret_key_fallbacks", "hush", "is a text, and a list is meant"),
    ],
)
def test_a_value_that_the_spec_does_not_take(name: str, value: Any, what: str) -> None:
    problem = the_only(check(name, value))
    assert problem.variable == name
    assert problem.what.startswith(what)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("app_domains", []),
        ("gunicorn_workers", "4"),
        ("gunicorn_timeout", 0),
        ("sshd_ports", ["22", 65535]),
        ("stack_https", "true"),
        ("app_version", 1.2),
        ("app_version", None),
        ("nginx_worker_processes", 2),
        ("nginx_sites", [{"name": "a", "server_names": ["b.test"], "listen": "8080"}]),
    ],
)
def test_a_value_that_it_takes(name: str, value: Any) -> None:
    assert check(name, value) == []


def test_a_value_of_the_command_line_is_written_as_it_is_meant(sources: Any) -> None:
    problem = Problem("app_sorce", "is wrong", meant="false")
    advice = sources.advice(problem, "web1", ["prod"])
    assert advice == "Write -e '{\"app_sorce\": false}' on the command line."


@pytest.mark.parametrize("name", [*ROLES, "stack"])
def test_a_range_is_of_a_number_that_there_is(name: str) -> None:
    place = "playbooks" if name == "stack" else f"roles.{name}"
    known = STACK.options if name == "stack" else Role(name).options
    for path in getattr(options.checks_of(place), "RANGES", {}):
        spec: dict[str, Any] = {"options": known}
        for step in path.split("."):
            spec = spec["options"][step]
        assert spec.get("elements", spec["type"]) == "int", path


# What the playbooks take.

STACK = options.read_stack(DataLoader())


def test_what_the_playbooks_take_has_the_default_of_their_wiring() -> None:
    for name, spec in STACK.options.items():
        assert spec.get("default") == STACK.defaults.get(name), name
        assert spec["description"].strip().endswith("."), name


def test_a_server_gets_only_roles_that_there_are() -> None:
    problem = the_only(problems(stack_server_roles=["hardening", "ssh"]))
    assert problem.variable == "stack_server_roles"
    assert "has 'ssh', and the roles are alerts, app, " in problem.what


def with_sites(*sites: dict[str, Any], https: bool = True) -> list[Problem]:
    given = {"nginx_default_sites": [{"name": "guestbook"}], "nginx_sites": list(sites)}
    values = {"stack_https": https, "app_name": "guestbook"}
    return list(stack.check_certificates(Server("web1", values=values, given=given)))


def test_a_site_with_no_certificate_while_https_is_on() -> None:
    problem = the_only(with_sites({"name": "shop", "server_names": ["shop.test"]}))
    assert "has the site 'shop' with no certificate" in problem.what
    assert "certificate: /var/lib/certificates/guestbook.pem" in problem.command
    assert "certificate: ''" in problem.command


@pytest.mark.parametrize(
    "site",
    [
        {"name": "shop", "certificate": ""},
        {"name": "shop", "certificate": "/var/lib/certificates/guestbook.pem"},
        {"name": "shop", "state": "absent"},
        {"name": "guestbook", "client_max_body_size": "50m"},
    ],
)
def test_a_site_that_says_what_it_means(site: dict[str, Any]) -> None:
    assert with_sites(site) == []


def test_a_site_needs_no_certificate_where_there_is_no_https() -> None:
    assert with_sites({"name": "shop"}, https=False) == []


def with_certificate(*names: str, https: bool = True) -> list[Problem]:
    item = {"name": "guestbook", "names": list(names)}
    values = {"stack_https": https, "certificates_wanted": [item]}
    given = {"certificates_default_wanted": [item]}
    return list(stack.check_certificate_names(Server("web1", values=values, given=given)))


def test_an_address_gets_no_certificate() -> None:
    problem = the_only(with_certificate())
    assert (problem.variable, "stack_https: false" in problem.command) == ("app_domains", True)
    assert with_certificate("example.com") == with_certificate(https=False) == []


OTHERS = {
    "shop": {"environment": "prod", "memory_mb": 600, "connections": 60},
    "blog": {"environment": "prod", "memory_mb": 0},
    "old": "error",
}


def test_the_memory_of_all_apps_of_the_server_counts() -> None:
    problem = the_only(problems(facts={"ansible_local": OTHERS}))
    assert problem.variable == "postgres_memory_mb"
    assert "x 120 + 600 for the app shop + 128 for the system = 2232 MiB" in problem.what
    assert "blog" not in problem.what


def test_what_the_app_itself_keeps_on_the_server_is_not_counted_twice() -> None:
    kept = {"guestbook": {"environment": "prod", "memory_mb": 9000, "connections": 9000}}
    assert problems(facts={"ansible_local": kept}) == []


def test_the_connections_of_all_apps_of_the_server_count() -> None:
    facts = {"ansible_local": OTHERS, "memtotal_mb": 4096}
    assert problems(facts=facts, gunicorn_threads=9) == []
    problem = the_only(problems(facts=facts, gunicorn_threads=10))
    assert problem.variable == "postgres_settings"
    assert "the apps may open 100" in problem.what
    assert "60 of the app shop" in problem.what


# Which variable a mistake is in.


def test_what_follows_from_a_mistake_is_not_told() -> None:
    variables = {"app_name": "A B", "app_user": "{{ app_name }}", "nginx_default_sites": [],
                 "nginx_sites": [{"name": "{{ app_user }}"}]}  # fmt: skip
    told = [Problem(x, "is wrong") for x in variables]
    left = options.without_echoes(told, {"app_name"}, variables, {})
    assert [x.variable for x in left] == ["app_name", "nginx_default_sites"]
    left = options.without_echoes(told, {"app_name", "nginx_sites"}, variables, {})
    assert [x.variable for x in left] == ["app_name", "nginx_default_sites", "nginx_sites"]
    known = {"nginx_sites": {}, "nginx_default_sites": {}}
    left = options.without_echoes(told[2:], {"app_name"}, variables, known)
    assert [x.variable for x in left] == ["nginx_default_sites"]


def test_a_list_of_the_users_adds_to_what_the_wiring_gives() -> None:
    spec = {"type": "list", "elements": "dict", "options": {
        "name": {"type": "str"}, "headers": {"type": "list", "elements": "str", "default": []},
        "listen": {"type": "int", "default": 80}}}  # fmt: skip
    known = {"nginx_sites": spec, "nginx_default_sites": spec}
    server = Server("web1", values={
        "nginx_default_sites": [{"name": "a", "headers": ["x"], "listen": 8080}],
        "nginx_sites": [{"name": "b"}, {"name": "a", "headers": ["y"]}]})  # fmt: skip
    for name in known:
        assert list(options.check_option(server, "nginx", name, spec)) == []
    options.merge(server, "nginx_sites", known)
    assert server.values["nginx_sites"] == [
        {"name": "a", "headers": ["x", "y"], "listen": 8080},
        {"name": "b", "headers": [], "listen": 80},
    ]


# Where a variable belongs.


def test_a_project_of_ones_own(tmp_path: Path) -> None:
    """With the installed collection there is nothing of ours to edit, and no make."""
    (tmp_path / "inventory/prod").mkdir(parents=True)
    (tmp_path / "inventory/prod/hosts.yml").write_text("prod: {hosts: {web1: {}}}\n")
    inventories = [str(tmp_path / "inventory/prod")]
    sources = Sources(tmp_path, inventories, {}, {}, ["prod"], top=tmp_path / "collections")
    assert sources.suggest("app_name", ["app", "prod"]) == (
        "inventory/prod/group_vars/prod/main.yml"
    )
    problem = Problem("vault_app_secret_key", "is not set, and app_secret_key needs it")
    assert sources.advice(problem, "web1", ["prod"]) == (
        "Write inventory/prod/group_vars/prod/vault.yml:"
        " ansible-playbook carafe.stack.vault -i inventory/prod"
    )


def test_a_command_is_named_as_it_was_typed(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who types the path of one has none that is found by its name."""
    monkeypatch.setattr("sys.argv", [".venv/bin/ansible-playbook", "site.yml"])
    assert sources.again() == ".venv/bin/ansible-playbook site.yml"
    assert sources.vault_command().startswith(".venv/bin/ansible-playbook carafe.stack.vault")
    assert sources.tool("ansible-vault") == ".venv/bin/ansible-vault"
    monkeypatch.setattr("sys.argv", ["/usr/bin/ansible-playbook", "site.yml"])
    assert sources.again() == "ansible-playbook site.yml"


def test_an_inventory_with_no_group_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "hosts.ini").write_text("[app]\nweb1\n")
    sources = Sources(tmp_path, [str(tmp_path / "hosts.ini")], {}, {}, ["app", "all"])
    assert sources.suggest("app_name", ["web", "app"]) == "group_vars/app/main.yml"
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "group_vars/app.yml").write_text("app_name: A\n")
    assert sources.suggest("app_domains", ["web", "app"]) == "group_vars/app.yml"
    advice = sources.advice(Problem("app_name", "is wrong"), "web1", ["web", "app"])
    assert advice == "Edit group_vars/app.yml, line 1."


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("app_version=v1", "app_version=v1"),
        ("vault_app_secret_key=hush", "vault_app_secret_key=…"),
        ("secret=app_secret_key", "secret=app_secret_key"),
        ("secret=hush", "secret=…"),
        ("app_version=v1 database_password=hush now", "app_version=v1 database_password=…"),
        ('{"database_password": "hush"}', "{…}"),
        ("--vault-password-file=x", "--vault-password-file=x"),
        ("app_repository=https://ann:hush@git.test/a", "app_repository=…"),
        ('{"app_repository": "ssh://git:hush@git.test/a"}', "…"),
    ],
)
def test_the_command_to_run_again_has_no_secret(word: str, said: str) -> None:
    assert hide(word) == said


# What the server has that Carafe did not bring.


PERSON = {"uid": 1000, "gecos": "Anna Smith", "home": "/home/guestbook", "shell": "/bin/bash"}
OF_THE_APP = {"uid": 998, "gecos": "", "home": "/srv/guestbook", "shell": "/usr/sbin/nologin"}
SERVICE = {"uid": 120, "gecos": "", "home": "/var/lib/gitea", "shell": "/usr/sbin/nologin"}


def beside(known: bool = False, /, **found: Any) -> list[Any]:
    facts = {"found": found, "ansible_local": {"guestbook": {}} if known else {}}
    # What is not set is not there in these tests.
    return problems(facts=facts, app_root="/srv/guestbook")


@pytest.mark.parametrize("name", ["guestbook", "guestbook-deploy"])
@pytest.mark.parametrize("user", [PERSON, SERVICE, OF_THE_APP])
def test_a_user_that_was_there_before(name: str, user: dict[str, Any]) -> None:
    problem = the_only(beside(users={name: user, "root": PERSON}))
    assert problem.variable == "app_name"
    assert f"uid {user['uid']}" in problem.what
    assert user["home"] in problem.what
    assert f"sudo deluser {name}" in problem.command
    # The same app, put there by an earlier run.
    assert beside(True, users={name: user}) == []


def test_a_user_that_has_nothing_to_do_with_the_app() -> None:
    assert beside(users={"anna": PERSON}, groups={"anna": {"gid": 1000, "members": []}}) == []


def test_a_user_of_another_name_is_told_as_what_names_it() -> None:
    facts = {"found": {"users": {"anna": PERSON}}}
    problem = the_only(problems(facts=facts, app_user="anna", app_root="/srv/guestbook"))
    assert problem.variable == "app_user"
    assert "'Anna Smith'" in problem.what


@pytest.mark.parametrize("name", ["guestbook", "other"])
def test_an_app_s_name_that_another_environment_has_on_a_server_without_apps(name: str) -> None:
    facts = {"found": {"environments": {name: "staging", "blog": "prod"}}}
    found = problems(facts=facts, app_environment_name="prod")
    if name == "other":
        assert found == []
        return
    problem = the_only(found)
    assert problem.variable == "app_name"
    assert "'staging'" in problem.what
    assert "rm /etc/carafe/guestbook.environment" in problem.command
    assert problems(facts=facts, app_environment_name="staging") == []


@pytest.mark.parametrize(
    ("group", "free"),
    [
        ({"gid": 998, "members": []}, True),
        ({"gid": 1001, "members": []}, False),
        ({"gid": 998, "members": ["anna"]}, False),
    ],
)
def test_a_group_that_was_there_before(group: dict[str, Any], free: bool) -> None:
    found = beside(groups={"guestbook": group})
    assert found == [] if free else "the group 'guestbook'" in the_only(found).what


@pytest.mark.parametrize(
    ("folders", "free"),
    [
        ({}, True),
        ({"other": ["index.html"]}, True),
        ({"guestbook": ["app.py", "bin"]}, False),
        # Names that an app of Carafe's has, too, are no mark of it.
        ({"guestbook": ["archives", "bin", "cache"]}, False),
        ({"guestbook": ["(a file)"]}, False),
    ],
)
def test_a_folder_that_was_there_before(folders: dict[str, list[str]], free: bool) -> None:
    found = beside(folders=folders)
    assert found == [] if free else "/srv/guestbook" in the_only(found).what
    assert beside(True, folders=folders) == []


@pytest.mark.parametrize(
    ("unit", "free"),
    [
        ("guestbook.service", False),
        ("guestbook.nightly.timer", False),
        ("guestbook-old.service", True),
        ("guestbookx.service", True),
        ("old.guestbook.service", True),
    ],
)
def test_a_unit_that_was_there_before(unit: str, free: bool) -> None:
    found = beside(units=[unit])
    assert found == [] if free else unit in the_only(found).what


@pytest.mark.parametrize(
    ("port", "name", "unit", "says"),
    [
        (80, "apache2", "apache2.service", "sudo systemctl disable --now apache2.service"),
        (8080, "caddy", "caddy.service", "sudo systemctl disable --now caddy.service"),
        (80, "docker-proxy", "docker.service", "sudo docker ps"),
        (80, "nginx", "docker-abc.scope", "stop it, or"),
        (80, "", "", "stop it, or"),
        (80, "nginx", "nginx.service", ""),
        (80, "nginx", "", ""),
        (443, "caddy", "caddy.service", ""),
        (3306, "mariadbd", "mariadb.service", ""),
    ],
)
def test_a_port_that_another_server_holds(port: int, name: str, unit: str, says: str) -> None:
    both = [
        {"host": x, "port": port, "name": name, "pid": 612 if name else 0, "unit": unit}
        for x in ("0.0.0.0", "[::]")
    ]
    found = beside(listeners=both)
    if not says:
        assert found == []
        return
    problem = the_only(found)
    assert f"needs port {port}, which {name or 'another program'}" in problem.what
    assert "web1" in problem.what
    assert says in problem.command
    assert not name or "pid 612" in problem.what


@pytest.mark.parametrize(
    ("unit", "says"),
    [
        ("caddy.service", "sudo systemctl disable --now caddy.service"),
        ("internal-tls-guestbook.service", ""),
        # Another app's, which is not to be stopped.
        ("internal-tls-blog.service", "give it another port"),
    ],
)
def test_a_port_between_servers_that_another_server_holds(unit: str, says: str) -> None:
    holder = {"host": "*", "port": 8443, "name": "x", "pid": 9, "unit": unit}
    tunnel = {"name": "app", "listen": "10.0.0.11:8443", "connect": "unix:/x", "clients": ["a"]}
    found = problems(
        facts={"found": {"listeners": [holder, holder | {"port": 443}]}},
        **{"internal_tls_tunnels": [tunnel], "internal_tls_owner": "guestbook"},
    )
    if not says:
        assert found == []
        return
    problem = the_only(found)
    assert problem.variable == "internal_tls_tunnels"
    assert "needs port 8443 for 'app', which x (pid 9" in problem.what
    assert problem.command.startswith(says if says.startswith("give") else f"stop it: {says}")


@pytest.mark.parametrize(
    ("late", "says"), [(0, ""), (-299, ""), (3600, "60 minutes behind"), (-900, "15 minutes ahead")]
)
def test_a_clock_that_is_wrong_is_told(late: int, says: str) -> None:
    notes = [*stack.note_clock(Server("web1", facts={"clock": time.time() - late}))]
    assert bool(notes) == bool(says)
    assert all(f"The clock of web1 is {says}" in x for x in notes)
    assert [*stack.note_clock(Server("web1"))] == []


def test_a_port_for_tls_where_a_site_has_a_certificate() -> None:
    caddy = {"host": "*", "port": 443, "name": "caddy", "pid": 9, "unit": "caddy.service"}
    sites = [{"name": "a", "server_names": ["example.com"], "certificate": "/x.pem"}]
    found = problems(facts={"found": {"listeners": [caddy]}}, nginx_sites=sites)
    assert "needs port 443" in the_only(found).what


def test_a_site_and_a_program_that_were_there_before() -> None:
    upstream = the_only(beside(nginx={"upstreams": ["a", "back"]}))
    assert "an upstream of that name" in upstream.what
    site = the_only(beside(nginx={"sites": ["a.conf", "blog", "z.conf"]}))
    assert site.variable == "nginx_sites"
    assert "/etc/nginx/sites-enabled/a.conf" in site.what
    program = the_only(beside(supervisor={"programs": ["guestbook.conf", "other.conf"]}))
    assert program.variable == "app_name"
    assert "/etc/supervisor/conf.d/guestbook.conf" in program.what


def cluster(name: str = "17/main", **changes: Any) -> dict[str, Any]:
    version, name = name.split("/")
    folder = f"/etc/postgresql/{version}/{name}"
    return {
        **{"version": version, "name": name, "port": 5432, "runs": True},
        **{"socket": "/var/run/postgresql", "data": f"/var/lib/postgresql/{version}/{name}"},
        **{"reads_conf_d": True, "hba_file": f"{folder}/pg_hba.conf", "claims": {}},
        **{"databases": {}, "roles": [], "altered": [], "hba": 0, "has_databases": False},
        **{"confs": [], **changes},
    }


def of_clusters(*clusters: dict[str, Any], **changes: Any) -> list[Any]:
    facts = {"found": {"postgresql": {"clusters": list(clusters)}}}
    return problems(facts=facts, **{"stack_host_roles": ["postgres"], **changes})


def test_one_cluster_of_debian_s_own_version_needs_no_word() -> None:
    assert of_clusters() == []
    assert of_clusters(cluster()) == []
    assert of_clusters(cluster(runs=False, socket="")) == []
    assert of_clusters(cluster(port=5433), postgres_cluster="17/main") == []


@pytest.mark.parametrize(
    ("there", "stated", "says"),
    [
        (["17/main", "17/other"], "", "17/main (port 5432, running) and 17/other"),
        (["16/main"], "", "16/main (port 5432, running), where Debian's own is 17/main"),
        (["17/shop"], "", "which one is the app's?"),
        (["16/main", "17/main"], "", "which one is the app's?"),
        (["16/main", "17/main"], "15/main", "is '15/main', and web1 has 16/main"),
        (["17/main"], "main", "not a version and a name"),
        (["17/main"], "17-main", "not a version and a name"),
        ([], "16/main", "has no PostgreSQL yet"),
        (["16/main", "17/main"], "16/main", ""),
        ([], "17/main", ""),
    ],
)
def test_which_cluster_is_the_app_s(there: list[str], stated: str, says: str) -> None:
    found = of_clusters(*map(cluster, there), postgres_cluster=stated)
    if not says:
        assert found == []
        return
    problem = the_only(found)
    assert problem.variable == "postgres_cluster"
    assert says in problem.what


def test_data_that_debian_s_upgrade_left_behind_is_to_be_taken_along_first() -> None:
    left = cluster("15/main", claims={"guestbook": {"databases": [], "roles": []}}, is_former=True)
    problem = the_only(of_clusters(left))
    assert "the data of guestbook is in 15/main yet" in problem.what
    assert "carafe.stack.upgrade_postgres" in problem.command
    # Staying with it would be no way either: its claims are those of Debian's own.
    assert the_only(of_clusters(left, postgres_cluster="15/main")).what == problem.what
    assert of_clusters(left, upgrade_postgres=True) == []


def test_a_cluster_that_carafe_has_is_told_from_one_beside_it() -> None:
    assert (
        of_clusters(
            cluster(claims={"guestbook": {"databases": [], "roles": []}}),
            # Somebody's, or what an upgrade has left as the way back.
            cluster("16/main", port=5433, hba=2, has_databases=True, databases={"x": "y"}),
        )
        == []
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"reads_conf_d": False}, "does not read conf.d"),
        ({"hba_file": "/etc/hba"}, "whose hba_file on web1 is /etc/hba"),
        ({"socket": "/tmp"}, "whose unix socket on web1 is in /tmp"),
        ({"data": "/home/pg/17"}, "sandbox keeps it out of"),
        ({"refused": "FATAL: no"}, "does not let the unix user postgres in on web1 (FATAL: no)"),
    ],
)
def test_a_cluster_that_cannot_be_configured(changes: dict[str, Any], says: str) -> None:
    problem = the_only(of_clusters(cluster(**changes)))
    assert says in problem.what
    # The other one is nobody's business.
    both = [cluster(port=5433), cluster("16/main", **changes)]
    assert of_clusters(*both, postgres_cluster="17/main") == []


def test_a_port_that_debian_s_cluster_would_go_around() -> None:
    docker = {"host": "*", "port": 5432, "name": "docker-proxy", "pid": 9, "unit": "docker.service"}
    found = problems(facts={"found": {"listeners": [docker]}})
    assert "port 5432, which docker-proxy (pid 9" in the_only(found).what


def test_a_database_and_a_role_that_were_there_before() -> None:
    mine = {"postgres_databases": [{"name": "guestbook", "owner": "guestbook-owner"}]}
    there = cluster(databases={"guestbook": "anna"}, roles=["anna", "guestbook-owner"])
    database, role = of_clusters(there, **mine)
    assert (database.variable, role.variable) == ("app_name", "app_name")
    assert "it is anna's" in database.what
    assert "'guestbook-owner'" in role.what
    assert of_clusters(there, **mine, stack_adopt=True) == []
    claim = {"databases": ["guestbook"], "roles": ["guestbook-owner"]}
    known = {**there, "claims": {"guestbook": claim}}
    assert of_clusters(known, **mine, postgres_owner="guestbook") == []
    # One that somebody has made beside it is theirs all the same.
    theirs = known | {"databases": {**there["databases"], "wordpress": "anna"}}
    more = {"postgres_databases": [*mine["postgres_databases"], {"name": "wordpress"}]}
    (problem,) = of_clusters(theirs, **more, postgres_owner="guestbook")
    assert "'wordpress'" in problem.what
    older = {**there, "claims": {"guestbook": claim | {"roles": None}}}
    assert of_clusters(older, **mine, postgres_owner="guestbook") == []


@pytest.mark.parametrize(
    ("gets", "is_told"),
    [
        ({"member_of": ["pg_monitor"], "connection_limit": 3}, False),
        ({"member_of": ["pg_monitor", "guestbook-owner"]}, True),
        ({"member_of": ["pg_monitor"], "password": "x" * 20}, True),
        ({"member_of": []}, True),
        ({}, True),
    ],
)
def test_a_role_that_was_there_may_be_let_to_watch(gets: dict[str, Any], is_told: bool) -> None:
    """That of the metrics stays where they are switched off, and may come back."""
    there = cluster(roles=["prometheus"])
    found = of_clusters(there, postgres_roles=[{"name": "prometheus", **gets}])
    assert ["'prometheus'" in x.what for x in found] == [True] * is_told


BY_HAND: dict[str, dict[str, Any]] = {
    "nginx": {
        **{"by_hand": True, "is_debians": True, "main": True, "sites": ["blog"]},
        **{"extra": ["x.conf"], "kept": ["upstream y"], "gone": ["gzip"], "twice": []},
    },
    "supervisor": {
        **{"by_hand": True, "main": True, "programs": ["x.conf"], "kept": ["program:y"]},
        **{"gone": ["inet_http_server"], "includes": []},
    },
    "postgresql": {
        "clusters": [
            cluster(hba=3, has_databases=True, databases={"theirs": "a"}, altered=["work_mem"])
        ]
    },
}


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("nginx", ["its sites go on (blog)", "nginx.conf is replaced", "upstream y", "of gzip"]),
        ("supervisor", ["its programs go on (x.conf)", "program:y go on", "inet_http_server are"]),
        ("postgresql", ["its databases stay (theirs)", "stays and wins (work_mem)"]),
    ],
)
def test_what_is_configured_by_hand_is_told_and_taken_with_a_word(
    kind: str, says: list[str]
) -> None:
    roles = {"stack_host_roles": ["nginx", "supervisor", "postgres"]}
    facts = {"found": {kind: BY_HAND[kind]}}
    problem = the_only(problems(facts=facts, **roles, stack_adopt=False))
    assert problem.variable == "stack_adopt"
    assert "write stack_adopt: true" in problem.command
    for text in says:
        assert text in problem.what
    assert problems(facts=facts, **roles, stack_adopt=True) == []
    # A server without that role is not asked for it.
    assert problems(facts=facts, stack_host_roles=["app"]) == []


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("nginx", {"twice": ["gzip in conf.d/x.conf"]}, "has gzip in conf.d/x.conf"),
        ("nginx", {"is_debians": False}, "is not Debian's package"),
        ("supervisor", {"includes": ["/srv/*.ini"]}, "reads /srv/*.ini"),
    ],
)
def test_what_no_word_makes_good(kind: str, changes: dict[str, Any], says: str) -> None:
    facts = {"found": {kind: {**BY_HAND[kind], **changes}}}
    problem = the_only(problems(facts=facts, stack_host_roles=[kind], stack_adopt=True))
    assert says in problem.what


SHOP = {"name": "shop", "listen": 80, "server_names": ["shop.test"], "upstreams": ["a:1"]}


@pytest.mark.parametrize("size", ["10m", "500M", "64k", "2g", "0", 1024, ""])
@pytest.mark.parametrize("of_path", [True, False])
def test_a_size_of_nginx_s(size: Any, of_path: bool) -> None:
    has = {"client_max_body_size": size}
    has = {"locations": [{"path": "/a", **has}]} if of_path else has
    assert not problems(nginx_sites=[SHOP | has])


@pytest.mark.parametrize("size", ["10 m", "10mb", "10MiB", "1t", "lots", "-1", "1.5g", "10m;"])
@pytest.mark.parametrize("of_path", [True, False])
def test_what_is_no_size_of_nginx_s(size: str, of_path: bool) -> None:
    has = {"client_max_body_size": size}
    has = {"locations": [{"path": "/a", **has}]} if of_path else has
    assert repr(size) in the_only(problems(nginx_sites=[SHOP | has])).what
    of_all = the_only(problems(nginx_client_max_body_size=size))
    assert of_all.variable == "nginx_client_max_body_size"


@pytest.mark.parametrize(
    ("site", "known", "what"),
    [
        ({"basic_auth": True}, {"shop": {"ann": "a b:c"}}, ""),
        ({"locations": [{"path": "/a", "basic_auth": True}]}, {"shop": {"ann": "x"}}, ""),
        ({"basic_auth": True}, {"shop": "# two\nann:$apr1$a$b\nbob:{SSHA}ab==\n"}, ""),
        # Of one that is not switched on any more.
        ({}, {"shop": {"ann": "x"}}, ""),
        ({"basic_auth": True}, {}, "names nobody who may see the site 'shop'"),
        ({"locations": [{"path": "/a", "basic_auth": True}]}, {}, "names nobody"),
        ({}, {"shpo": {"ann": "x"}}, "there is no such site"),
        ({"basic_auth": True}, {"shop": {"ann": ""}}, "the entry 'ann'"),
        ({"basic_auth": True}, {"shop": {"ann": None}}, "the entry 'ann'"),
        ({"basic_auth": True}, {"shop": {"an:n": "x"}}, "the entry 'an:n'"),
        ({"basic_auth": True}, {"shop": {"an n": "x"}}, "the entry 'an n'"),
        ({"basic_auth": True}, {"shop": "ann:$apr1$a$b\nbob:s3cret"}, "the entry 'line 2'"),
    ],
)
def test_who_may_see_a_site(site: dict[str, Any], known: dict[str, Any], what: str) -> None:
    found = problems(nginx_sites=[SHOP | site], nginx_htpasswd=known)
    assert [x.variable for x in found] == ["nginx_htpasswd"] * bool(what)
    assert all(what in x.what for x in found)
    assert not any("s3cret" in x.what for x in found)


def test_a_visitor_s_address_is_taken_from_one_place() -> None:
    balancer = {"nginx_proxy_protocol_from": ["192.0.2.7"]}
    assert not problems(**balancer)
    both = the_only(problems(**balancer, nginx_real_ip_from=["192.0.2.8"]))
    assert both.variable == "nginx_proxy_protocol_from"
    assert "nginx_real_ip_from" in both.what


S3 = {
    **{"backup_copy_s3_endpoint": "s3.example.com", "backup_copy_s3_key": "AK"},
    "backup_copy_s3_secret": "SK",
}
SFTP = {"backup_copy_ssh_key": "key", "backup_copy_ssh_known_hosts": ["host key"]}


@pytest.mark.parametrize(
    "changes",
    [
        {"backup_copy_repository": ""},
        {"backup_copy_repository": "/mnt/other"},
        {"backup_copy_repository": "s3://bucket", **S3},
        {"backup_copy_repository": "sftp://me@host/b", **SFTP, "backup_database": True},
        # Two stores may have a bucket of the same name.
        {
            **{"backup_repository": "s3://bucket", "backup_copy_repository": "s3://bucket", **S3},
            **{"backup_s3_endpoint": "s3.example.net", "backup_s3_key": "AK"},
            "backup_s3_secret": "SK",
        },
    ],
)
def test_a_second_place_for_backups_is_let_through(changes: dict[str, Any]) -> None:
    assert problems(**changes) == []


@pytest.mark.parametrize(
    ("changes", "variable", "says"),
    [
        ({"backup_copy_repository": "ftp://host"}, "backup_copy_repository", "no place for"),
        ({"backup_copy_repository": "/mnt/copies"}, "backup_copy_repository", "is in"),
        ({"backup_copy_repository": "/mnt/copies/b"}, "backup_copy_repository", "is in"),
        ({"backup_copy_repository": "/mnt"}, "backup_copy_repository", "is in"),
        (
            {"backup_copy_repository": "s3://bucket", **S3, "backup_copy_s3_secret": ""},
            *("backup_copy_s3_secret", "is empty"),
        ),
        (
            {"backup_copy_repository": "sftp://me@host/b", **SFTP, "backup_copy_ssh_key": ""},
            *("backup_copy_ssh_key", "is empty"),
        ),
        (
            {
                "backup_copy_repository": "s3://bucket",
                **S3,
                "backup_copy_s3_endpoint": "https://s3",
            },
            *("backup_copy_s3_endpoint", "is a URL"),
        ),
    ],
)
def test_a_second_place_that_is_none_is_told(
    changes: dict[str, Any], variable: str, says: str
) -> None:
    found = the_only(problems(**changes))
    assert found.variable == variable
    assert says in found.what
