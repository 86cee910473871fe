"""What nginx on a server must go by: what it can do, what others have there, what it has loaded."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import found, nginx, services
from ansible_collections.carafe.stack.plugins.modules import nginx_info
from conftest import ROOT, Role, load_yaml

ROLE = Role("nginx")
DEFAULTS = {
    "nginx_worker_connections": 4096,
    "nginx_extra_http": "",
    "nginx_status_port": 0,
    "nginx_real_ip_from": [],
    "nginx_proxy_protocol_from": [],
}
WIRING = {
    name: value
    for file in ("nginx", "app")
    for name, value in load_yaml(ROOT / f"playbooks/group_vars/all/{file}.yml").items()
}
SITE = {"name": "shop", "server_names": ["shop.test"]}
STREAM = {"name": "redis", "listen": "127.0.0.1:6380"}


class Server:
    """The parts of a server that the module looks at."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sites = folder / "nginx/sites-enabled"
        self.claims = folder / "claims"
        self.version = "nginx version: nginx/1.26.3\nbuilt with OpenSSL 3.5.4 30 Sep 2025"
        self.sockets = ""
        self.sites.mkdir(parents=True)
        self.claims.mkdir()

    def ask(self, *command: str) -> subprocess.CompletedProcess[str]:
        if not self.version:
            raise FileNotFoundError
        return subprocess.CompletedProcess(command, 0, "", self.version)

    def run(self, *command: str) -> str:
        return self.sockets

    def look(
        self,
        sites: list[dict] | None = None,
        streams: list[dict] | None = None,
        owner: str = "shop",
        record: bool = True,
        check_mode: bool = False,
        **settings: Any,
    ) -> dict[str, Any]:
        """Return what the module says, and leave what the role then leaves on the server."""
        sites = ROLE.value("__nginx_sites", nginx_sites=sites or [])
        streams = ROLE.value("__nginx_streams", nginx_streams=streams or [])
        found = nginx_info.look(
            owner, sites, streams, {**DEFAULTS, **settings}, DEFAULTS, check_mode
        )
        if record:
            (self.claims / f"{owner}.json").write_text(json.dumps(found["claim"]))
        return found

    def gone(self, found: dict[str, Any]) -> list[str]:
        return [Path(path).name for path in found["absent"]]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server(tmp_path)
    monkeypatch.setattr(nginx, "ETC", tmp_path / "nginx")
    monkeypatch.setattr(nginx, "CLAIMS", server.claims)
    monkeypatch.setattr(nginx, "RELEASE", tmp_path / "os-release")
    monkeypatch.setattr(nginx, "ask", server.ask)
    monkeypatch.setattr(nginx, "run", server.run)
    return server


@pytest.mark.parametrize(
    ("version", "http2_on", "post_quantum"),
    [
        ("nginx/1.22.1\nbuilt with OpenSSL 3.0.16 11 Feb 2025", False, False),
        ("nginx/1.25.1\nbuilt with OpenSSL 3.5.0 1 Jan 2025", True, True),
    ],
)
def test_abilities_follow_from_the_versions(
    server: Server, version: str, http2_on: bool, post_quantum: bool
) -> None:
    server.version = f"nginx version: {version}"
    found = server.look()
    assert (found["http2_on"], found["post_quantum"]) == (http2_on, post_quantum)


def test_a_bare_server_is_told_in_one_line_and_a_dry_run_goes_by_debian_s_release(
    server: Server, tmp_path: Path
) -> None:
    server.version = ""
    with pytest.raises(nginx.Refused, match="nginx is not installed"):
        server.look()
    for release, expected in (("12", False), ("13", True)):
        (tmp_path / "os-release").write_text(f'ID=debian\nVERSION_ID="{release}"\n')
        assert server.look(check_mode=True)["http2_on"] is expected


def test_what_one_owner_states_holds_for_all_and_a_default_is_stated_by_nobody(
    server: Server,
) -> None:
    server.look(owner="blog", nginx_worker_connections=8192)
    found = server.look(owner="shop")
    assert found["settings"]["nginx_worker_connections"] == 8192
    assert found["claim"]["settings"] == {}


def test_the_counters_of_one_owner_stay_when_another_comes(server: Server) -> None:
    server.look(owner="shop", nginx_status_port=8099)
    assert server.look(owner="blog")["settings"]["nginx_status_port"] == 8099


def test_the_port_of_the_counters_may_be_another_service_s(server: Server) -> None:
    server.sockets = 'LISTEN 0 9 127.0.0.1:8099 0.0.0.0:* users:(("other",pid=7,fd=3))\n'
    assert server.look()
    with pytest.raises(nginx.Refused, match="nginx_status_port"):
        server.look(nginx_status_port=8099)


def test_what_two_owners_state_differently_is_refused_naming_both(server: Server) -> None:
    server.look(owner="blog", nginx_worker_connections=8192)
    with pytest.raises(nginx.Refused) as refused:
        server.look(owner="shop", nginx_worker_connections=1024)
    assert all(word in str(refused.value) for word in ("nginx_worker_connections", "blog", "shop"))
    assert server.look(owner="shop", nginx_worker_connections=8192)


def test_two_words_of_who_a_visitor_is_are_refused_also_when_each_is_another_owner_s(
    server: Server,
) -> None:
    server.look(owner="blog", nginx_real_ip_from=["192.0.2.1"])
    with pytest.raises(nginx.Refused, match="nginx_real_ip_from and nginx_proxy_protocol_from"):
        server.look(owner="shop", nginx_proxy_protocol_from=["192.0.2.2"], record=False)
    assert server.look(owner="shop")


@pytest.mark.parametrize(
    ("theirs", "mine", "problem"),
    [
        ([SITE], [SITE | {"server_names": ["a.test"]}], "both have the site shop"),
        ([SITE], [{"name": "shop", "state": "absent"}], "both have the site shop"),
        ([SITE | {"name": "b"}], [SITE], "both serve shop.test on port 80"),
        (
            [SITE | {"name": "b", "listen": 81, "listen_tls": 8443, "certificate": "/x"}],
            [SITE | {"listen_tls": 8443, "certificate": "/y"}],
            "both serve shop.test on port 8443",
        ),
    ],
)
def test_what_two_owners_have_is_refused_naming_both(
    server: Server, theirs: list[dict], mine: list[dict], problem: str
) -> None:
    server.look(theirs, owner="blog")
    with pytest.raises(nginx.Refused, match=f"nginx_sites: shop and blog {problem}"):
        server.look(mine, owner="shop")


def test_two_owners_may_serve_one_name_on_two_ports(server: Server) -> None:
    server.look([SITE | {"name": "b", "listen": 81}], owner="blog")
    assert server.look([SITE], owner="shop")


def test_who_is_first_at_a_bare_address_has_it_until_it_goes(server: Server) -> None:
    def entry(name: str, address: str) -> dict[str, Any]:
        names = [f"{name}.test", address]
        return {"name": name, "server_names": names, "certificate": f"/{name}", "nameless": True}

    shop, blog = entry("shop", "192.0.2.1"), entry("blog", "[2001:db8::1]")
    found = server.look([shop], owner="shop")
    assert found["nameless"]["443"]["certificate"] == "/shop"
    assert found["addresses"] == ["https://192.0.2.1 is answered by shop."]
    found = server.look([blog], owner="blog")
    assert found["nameless"]["443"]["certificate"] == "/shop"
    assert "nameless" not in found["claim"]["sites"]["blog"]
    assert "shown the certificate of shop" in found["addresses"][0]
    # Whoever runs again, nothing changes, until the first is gone.
    assert server.look([shop], owner="shop")["nameless"]["443"]["site"] == "shop"
    assert server.look([], owner="shop")["nameless"] == {}
    assert server.look([blog], owner="blog")["nameless"]["443"]["site"] == "blog"
    # Who goes takes nobody else's along.
    left = nginx_info.look("shop", [], [], {}, DEFAULTS, False, state="absent")
    assert left["nameless"]["443"]["site"] == "blog"
    # On another port there is another.
    other = server.look([shop | {"listen_tls": 8443}], owner="shop")
    assert {k: x["site"] for k, x in other["nameless"].items()} == {"443": "blog", "8443": "shop"}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a.test"], []),
        (["192.0.2.1"], []),
        (["a.test", "192.0.2.1"], ["http://192.0.2.1 sends visitors to https://a.test, and"]),
        (["192.0.2.1", "a.test"], ["http://192.0.2.1 sends visitors to https://a.test, and"]),
        (["a.test", "[2001:db8::1]"], ["http://[2001:db8::1] sends visitors to https://a.test,"]),
    ],
)
def test_what_an_address_answers_is_told_where_the_certificate_is_for_names(
    server: Server, names: list[str], said: list[str]
) -> None:
    site = {"name": "a", "server_names": names, "certificate": "/a"}
    found = server.look([site])
    assert found["nameless"] == {}
    assert len(found["addresses"]) == len(said)
    assert all(x.startswith(y) for x, y in zip(found["addresses"], said, strict=True))


def test_a_stream_of_two_owners_is_refused(server: Server) -> None:
    server.look(streams=[STREAM], owner="blog")
    with pytest.raises(nginx.Refused, match=r"nginx_streams: shop and blog both have .* redis"):
        server.look(streams=[STREAM], owner="shop")


def test_a_site_that_is_not_listed_any_more_goes_and_others_stay(server: Server) -> None:
    (server.sites / "stranger.conf").write_text("server {}")
    server.look([SITE | {"name": "theirs", "server_names": ["b.test"]}], owner="blog")
    server.look([SITE, SITE | {"name": "www", "server_names": ["www.test"]}], streams=[STREAM])
    gone = server.gone(server.look([SITE]))
    assert gone == ["cache-www", "maintenance-www", "www.htpasswd", "www.conf", "redis.stream"]
    assert server.gone(server.look([SITE])) == []


def test_a_site_of_a_run_that_was_cut_short_before_its_record_goes_too(server: Server) -> None:
    for name, owner in (("late", "shop"), ("theirs", "blog")):
        text = f"#\n# Ansible managed\n#\n# The site {name} of {owner}. Change it through it.\n"
        (server.sites / f"{name}.conf").write_text(text)
    (server.sites / "late.stream").write_text("# The service late of shop. Change it.\n")
    gone = server.gone(server.look([SITE]))
    assert gone == ["cache-late", "maintenance-late", "late.htpasswd", "late.conf", "late.stream"]


def test_the_header_that_is_looked_for_is_the_one_that_is_written() -> None:
    found = {
        "settings": ROLE.defaults,
        "ipv6": True,
        "http2_on": True,
        "over_tls": False,
        "nameless": {},
    }
    for template, variable, entry in (
        ("site.conf.j2", "__nginx_site", ROLE.value("__nginx_sites", nginx_sites=[SITE])[0]),
        ("stream.j2", "__nginx_stream", ROLE.value("__nginx_streams", nginx_streams=[STREAM])[0]),
    ):
        values = {variable: entry, "__nginx_found": found, "nginx_owner": "shop"}
        text = ROLE.render(f"etc/nginx/sites-enabled/{template}", **values)
        assert nginx.HEADER.findall(text) == ["shop"]


@pytest.mark.parametrize(
    ("others", "sites", "expected"),
    [
        ([], [], False),
        ([], [SITE | {"certificate": "/a.pem"}], True),
        (["b.example"], [SITE], True),
        (["shop"], [SITE], False),
        (["shop"], [{"name": "shop", "state": "absent"}], False),
    ],
)
def test_whether_nginx_listens_for_tls_follows_from_all_sites_of_the_server(
    server: Server, others: list[str], sites: list[dict[str, Any]], expected: bool
) -> None:
    for name in others:
        (server.sites / f"{name}.conf").write_text("server {\n    ssl_certificate /b.pem;\n}\n")
    assert server.look(sites)["over_tls"] is expected


SS = 'LISTEN 0 511 {} 0.0.0.0:* users:(("{}",pid=7,fd=6))'


@pytest.mark.parametrize(
    ("place", "sites", "streams", "name"),
    [
        ("0.0.0.0:80", [], [], "80"),
        ("127.0.0.1:80", [SITE], [], "80"),
        ("[::]:8080", [SITE | {"listen": 8080}], [], "8080"),
        ("*:443", [SITE | {"certificate": "/a"}], [], "443"),
        ("127.0.0.1:6380", [], [STREAM], "127.0.0.1:6380"),
        ("0.0.0.0:6380", [], [STREAM], "127.0.0.1:6380"),
        ("0.0.0.0:81", [SITE | {"extra": "listen 81;"}], [], "81"),
    ],
)
def test_a_port_that_another_service_has_is_refused(
    server: Server, place: str, sites: list[dict], streams: list[dict], name: str
) -> None:
    server.sockets = SS.format(place, "python3")
    with pytest.raises(nginx.Refused) as refused:
        server.look(sites, streams)
    assert f"is to listen on {name}: another service has this port, {place}" in str(refused.value)
    server.sockets = SS.format(place, "nginx")
    assert server.look(sites, streams)


@pytest.mark.parametrize(
    ("place", "streams"),
    [
        ("192.0.2.1:6380", [STREAM]),
        ("127.0.0.1:6380", [STREAM | {"udp": True}]),
        ("0.0.0.0:443", []),
        ("127.0.0.1:6380", [STREAM | {"state": "absent"}]),
    ],
)
def test_a_port_on_another_address_or_of_another_kind_is_free(
    server: Server, place: str, streams: list[dict]
) -> None:
    server.sockets = SS.format(place, "python3")
    assert server.look(streams=streams)


def test_an_owner_is_a_file_name(server: Server) -> None:
    with pytest.raises(nginx.Refused, match=r"nginx_owner is '\.\./shop', and needs letters"):
        server.look(owner="../shop")


def test_a_record_that_cannot_be_read_is_told_in_one_line(server: Server) -> None:
    (server.claims / "blog.json").write_text("{")
    with pytest.raises(nginx.Failure, match=r"blog\.json"):
        server.look([SITE])
    # One's own is written anew.
    (server.claims / "shop.json").write_text("")
    (server.claims / "blog.json").unlink()
    assert server.look([SITE])


@pytest.mark.parametrize(
    ("change", "due"),
    [
        (None, []),
        ("nginx/nginx.conf", ["daemon-reload", "reload"]),
        ("nginx/sites-enabled/gone.conf", ["daemon-reload", "reload"]),
        ("units/carafe.conf", ["daemon-reload", "reload"]),
        ("cert.pem", ["daemon-reload", "reload"]),
        # As its package has started it, with nobody connected.
        ("loaded", ["daemon-reload", "restart"]),
        ("shown: inactive", ["daemon-reload", "start"]),
        ("shown: disabled", ["daemon-reload", "enable"]),
        ("shown: stale", ["daemon-reload"]),
    ],
)
def test_what_is_due_is_asked_of_the_server(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str | None, due: list
) -> None:
    (tmp_path / "units").mkdir()
    for name in ("nginx/nginx.conf", "nginx/sites-enabled/gone.conf", "units/carafe.conf"):
        (tmp_path / name).touch()
    (tmp_path / "cert.pem").symlink_to("real.pem")
    (tmp_path / "real.pem").touch()
    (tmp_path / "loaded").touch()
    for path in [x for x in tmp_path.rglob("*") if x.name != "loaded"]:
        os.utime(path, (1, 1), follow_symlinks=False)
    monkeypatch.setattr(nginx, "LOADED", tmp_path / "loaded")
    monkeypatch.setattr(nginx, "DROP_INS", tmp_path / "units")
    shown = {"ActiveState": "active", "UnitFileState": "enabled", "NeedDaemonReload": "no"}
    if change and change.startswith("shown"):
        shown |= {
            "shown: inactive": {"ActiveState": "inactive"},
            "shown: disabled": {"UnitFileState": "disabled"},
            "shown: stale": {"NeedDaemonReload": "yes"},
        }[change]
    elif change in ("nginx/sites-enabled/gone.conf", "loaded"):
        (tmp_path / change).unlink()
    elif change == "cert.pem":
        # The link is as it was, and what it points to is another certificate.
        (tmp_path / "real.pem").write_text("new")
        os.utime(tmp_path / "real.pem", (2**33, 2**33))
    elif change:
        os.utime(tmp_path / change, (2**33, 2**33))
    sandbox = {"ActiveState": "inactive", "UnitFileState": "static", "NeedDaemonReload": "no"}
    monkeypatch.setattr(services, "show", lambda *_: [shown, sandbox])
    if change == "nginx/sites-enabled/gone.conf":
        os.utime(tmp_path / "nginx/sites-enabled", (2**33, 2**33))
    assert nginx.due([str(tmp_path / "cert.pem")]) == due


def test_the_wiring_s_sites_take_an_entry_more_and_a_new_site() -> None:
    default = {"name": "app", "server_names": ["a.test"], "static": [{"url": "/s/", "path": "/s"}]}
    sites = ROLE.value(
        "__nginx_sites",
        nginx_default_sites=[default],
        nginx_sites=[
            {
                "name": "app",
                "server_names": ["www.a.test"],
                "static": [{"url": "/m/", "path": "/m"}],
                "client_max_body_size": "1g",
                "headers": {"X-A": "1"},
            },
            {"name": "other", "server_names": ["b.test"]},
        ],
    )
    assert [site["name"] for site in sites] == ["app", "other"]
    assert sites[0]["server_names"] == ["a.test", "www.a.test"]
    assert [x["url"] for x in sites[0]["static"]] == ["/s/", "/m/"]
    assert (sites[0]["client_max_body_size"], sites[0]["headers"]) == ("1g", {"X-A": "1"})
    assert sites[1]["client_max_body_size"] == "10m"


def rendered(site: dict[str, Any], **settings: Any) -> str:
    found = {
        "settings": ROLE.defaults | settings,
        "ipv6": True,
        "http2_on": True,
        "over_tls": False,
        "nameless": {},
    }
    entry = ROLE.value("__nginx_sites", nginx_sites=[SITE | site])[0]
    path = "etc/nginx/sites-enabled/site.conf.j2"
    return ROLE.render(path, __nginx_site=entry, __nginx_found=found, nginx_owner="shop")


def test_whom_a_site_sends_requests_to_is_found_in_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstreams = ["10.0.0.11:8443", "10.0.0.12:8443 backup"]
    sites = tmp_path / "etc/nginx/sites-enabled"
    sites.mkdir(parents=True)
    (sites / "../nginx.conf").write_text("# Ansible managed\n")
    (sites / "shop.conf").write_text(rendered({"upstreams": upstreams, "max_conns": 9}))
    (sites / "theirs.conf").write_text("upstream theirs { server 127.0.0.1:9; }\n")
    monkeypatch.setattr(found, "ROOT", tmp_path)
    assert found.nginx()["pools"] == {SITE["name"]: ["10.0.0.11:8443", "10.0.0.12:8443"]}


def hidden(text: str) -> re.Pattern[str]:
    return re.compile(re.findall(r'location ~\* "(.*)" \{', text)[0], re.IGNORECASE)


@pytest.mark.parametrize("url", ["/static/", "/", "/a.b/", "/.well-known/"])
def test_hidden_are_the_names_of_files_and_folders(url: str) -> None:
    name = hidden(rendered({"static": [{"url": url, "path": "/srv/x"}], "upstreams": ["a:1"]}))
    for path in (
        ".env",
        "a/.git/b",
        "a~",
        "A.BAK",
        "a.sql.gz",
        "b.old/c",
        "a\nb/.env",
        "#a#",
        "a.bak.7z",
    ):
        assert name.search(url + path), path
    for path in ("a.css", "a.b/c.js", ".well-known/a", "a~b", "sql", "a.sqlx", "a.2024.css"):
        assert not name.search(url + path), path


def test_a_site_can_hide_other_names_or_none() -> None:
    static = {"static": [{"url": "/s/", "path": "/srv/x"}]}
    name = hidden(rendered(static | {"hidden_name": r"\.key$"}))
    assert name.search("/s/a.key")
    assert not name.search("/s/.env")
    assert "location ~*" not in rendered(static | {"hidden_name": ""})
    assert hidden(rendered(static, nginx_hidden_name="unused")).search("/s/.env")


def told(text: str) -> dict[str, str]:
    """Return the headers that the app is told where the cache may answer, and their values."""
    cached = text.partition("location = /.cached {")[2]
    assert "proxy_pass_request_headers off;" in cached
    return dict(re.findall(r"proxy_set_header (\S+) (.*);", cached))


def test_what_the_app_is_told_where_the_cache_may_answer_is_the_key_or_the_same_for_all() -> None:
    site = {
        "upstreams": ["a:1"],
        "cache": True,
        "pass_headers": ["Remote-User", "X-Forwarded-Prefix"],
        # Some that must not be: they are nginx's, or somebody's, or dropped.
        "cache_headers": ["Accept", "X-Forwarded-Prefix", "Cookie", "Host", "Range", "X-Host"],
    }
    for settings in ({}, {"nginx_real_ip_from": ["192.0.2.1"]}):
        text = rendered(site, **settings)
        key = re.findall(r'proxy_cache_key "(.*)";', text)[0].split("\\n")
        values = told(text)
        assert {"accept", "x-forwarded-prefix"} < values.keys()
        assert not {"cookie", "host", "range", "x-host", "remote-user"} & values.keys()
        variables = {x for x in values.values() if "$" in x}
        assert variables | {"$request_uri"} == set(key)
        assert "$http_cookie" in text.partition("_is_anybodys {")[0]
        assert "$http_remote_user" in text.partition("_is_anybodys {")[0]


def test_an_app_behind_a_cache_can_be_told_who_asks_and_keeps_an_answer_for_each() -> None:
    site = {"upstreams": ["a:1"], "cache": True, "cache_headers": ["X-Forwarded-For", "User-Agent"]}
    text = rendered(site)
    assert told(text)["x-forwarded-for"] == "$remote_addr"
    assert told(text)["user-agent"] == "$http_user_agent"
    assert told(text)["X-Real-IP"] == "0.0.0.0"
    assert "$request_uri\\n$remote_addr\\n$http_user_agent" in text


def test_headers_are_dropped_once_each_and_none_that_nginx_sets() -> None:
    dropped = [x.lower() for x in ROLE.value("__nginx_dropped_headers")]
    own = ROLE.value("__nginx_own_headers")
    assert len(dropped) == len(set(dropped)) > 300
    assert not {*own, "x-forwarded-for", "x-real-ip", "accept", "origin", "user-agent"} & {*dropped}
    assert not [x for x in dropped if not re.fullmatch("[a-z0-9-]+", x)]


def test_the_address_of_who_asks_is_nginx_s_own_word_behind_a_proxy_too() -> None:
    site = {"upstreams": ["a:1"], "pass_headers": ["X-Forwarded-For", "X-Forwarded-User"]}
    text = rendered(site, nginx_real_ip_from=["192.0.2.1"])
    assert "map $trusted_proxy $remote_addr" not in text
    assert "map $trusted_proxy $shop_passed_1 {\n    1 $http_x_forwarded_user;" in text
    assert re.findall("proxy_set_header X-Forwarded-For (.*);", text) == ["$remote_addr"]


@pytest.mark.parametrize(
    ("extra", "extra_http", "ours"),
    [("", "", True), ("error_page 404 /a;", "", False), ("", "error_page 404 /a;", False)],
)
def test_each_place_with_a_page_of_its_own_has_all_of_ours_or_one_s_own_are_left_alone(
    extra: str, extra_http: str, ours: bool
) -> None:
    site = {
        "upstreams": ["a:1"],
        "max_conns": 9,
        "client_max_body_size": "1k",
        "extra": extra,
        "static": [{"url": "/s/", "path": "/srv/s"}],
        "uploads": [{"url": "/u/", "path": "/srv/u"}],
        "locations": [
            {"path": "/films", "client_max_body_size": "2g"},
            {"path": "/any", "client_max_body_size": "0"},
            {"path": "/all", "client_max_body_size": 0},
            {"path": "/usual", "client_max_body_size": None},
            {"path": "/api/", "proxy_pass": "http://b/", "client_max_body_size": "3K"},
            {"path": "/as-ever"},
        ],
    }
    text = rendered(site, nginx_extra_http=extra_http)
    places = dict(re.findall(r"\n    location (?:\^~ )?(\S+) \{\n(.*?)\n    \}", text, re.S))
    pages = {k: re.findall(r"error_page (413|502) (\S+);", v) for k, v in places.items()}
    if not ours:
        assert not any(pages.values())
        assert "/.too-large" not in text
        return
    busy = ("502", "/.unavailable")
    small, large = ("413", "/.too-large/1k"), ("413", "/.too-large/2g")
    assert pages["/s/"] == pages["/u/"] == [small, busy]
    assert pages["/films"] == [large, busy]
    assert pages["/api/"] == [("413", "/.too-large/3K"), busy]
    # Where any size is taken, none is named.
    assert pages["/any"] == pages["/all"] == [busy]
    assert "client_max_body_size 0;" in places["/all"]
    assert pages["/as-ever"] == pages["/usual"] == []
    said = re.findall(r"location = (/\.too-large/\S+) \{.*?more than ([^,]*),", text, re.S)
    assert said == [
        ("/.too-large/1k", "1 KB"),
        ("/.too-large/2g", "2 GB"),
        ("/.too-large/3K", "3 KB"),
    ]


def test_no_page_of_nginx_s_own_asks_for_a_password() -> None:
    site = {"upstreams": ["a:1"], "max_conns": 9, "basic_auth": True}
    entry = ROLE.value("__nginx_sites", nginx_sites=[SITE | site])[0]
    found = {"settings": ROLE.defaults, "ipv6": True, "http2_on": True, "nameless": {}}
    text = ROLE.render(
        "etc/nginx/sites-enabled/site.conf.j2",
        __nginx_site=entry,
        __nginx_found=found,
        nginx_challenge_root="/srv/challenges",
        nginx_challenge_peers=["10.0.0.14"],
    )
    places = dict(re.findall(r"\n    location (?:= |\^~ )?([/@]\S+) \{\n(.*?)\n    \}", text, re.S))
    off = {path for path, inner in places.items() if "auth_basic off;" in inner}
    own = {"/.maintenance/page", "/.too-large/10m", "/.unavailable"}
    assert off == {*own, "/.well-known/acme-challenge/", "@challenge-peers"}


@pytest.mark.parametrize(
    ("said", "limit"),
    [
        ({}, 10 * 2**20),
        ({"nginx_client_max_body_size": "64k"}, 65536),
        ({"nginx_sites": [{"name": "other", "client_max_body_size": "1g"}]}, 10 * 2**20),
        ({"nginx_sites": [{"name": "shop", "client_max_body_size": "1G"}]}, 2**30),
        ({"nginx_sites": [{"name": "shop", "client_max_body_size": 5000}]}, 5000),
        # The app has one limit for all paths, and nginx guards each.
        (
            {
                "nginx_sites": [
                    {
                        "name": "shop",
                        "client_max_body_size": "1m",
                        "locations": [
                            {"path": "/films", "client_max_body_size": "500m"},
                            {"path": "/a"},
                            {"path": "/b", "proxy_pass": "http://b", "client_max_body_size": "2g"},
                        ],
                    }
                ]
            },
            500 * 2**20,
        ),
        ({"nginx_sites": [{"name": "shop", "client_max_body_size": "0"}]}, None),
        ({"nginx_sites": [{"name": "shop", "client_max_body_size": 0}]}, None),
        *(
            ({"nginx_sites": [{"name": "shop", "locations": [{"path": "/a", **own}]}]}, limit)
            for own, limit in (
                ({"client_max_body_size": "0"}, None),
                ({"client_max_body_size": 0}, None),
                ({"client_max_body_size": None}, 10 * 2**20),
            )
        ),
    ],
)
def test_the_app_is_told_what_nginx_lets_through_by_playbooks_without_nginx_too(
    said: dict[str, Any], limit: int | None
) -> None:
    app = {"app_name": "shop", "stack_database": "", "stack_cache": False}
    app["stack_database_environment"] = {}
    told = Role("app").value("app_default_environment", **WIRING, **app, **said)
    assert told == ({} if limit is None else {"APP_MAX_BODY_SIZE": str(limit)})


def test_the_wiring_knows_the_role_s_own_limit() -> None:
    assert f"default('{ROLE.defaults['nginx_client_max_body_size']}')" in str(
        WIRING["stack_max_body_sizes"]
    )
