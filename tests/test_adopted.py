"""What somebody has configured by hand is told apart from what Debian brings, and goes on."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import adopted, file_set, found
from conftest import ROOT

DEBIAN = """\
user www-data;
events { worker_connections 768; }
http {
	sendfile on;
	types_hash_max_size 2048; # server_tokens off;
	include /etc/nginx/mime.types;
	ssl_protocols TLSv1 TLSv1.1 TLSv1.2 TLSv1.3;
	ssl_prefer_server_ciphers on;
	access_log /var/log/nginx/access.log;
	gzip on;
	include /etc/nginx/conf.d/*.conf;
	include /etc/nginx/sites-enabled/*;
}
"""
THEIRS = DEBIAN.replace(
    "\tgzip on;",
    """\
	gzip off;
	client_max_body_size 100m;
	log_format main '$remote_addr "{ $request }" # not a comment';
	map $http_upgrade $connection_upgrade { default upgrade; '' close; }
	map $uri $legacy { "~^/(?<x>a{2})$" 1; default ""; }
	upstream back {
		server 127.0.0.1:9000; # a } brace
	}
	server {
		listen 80 default_server;
		location / { proxy_pass http://back; access_log /srv/logs/a.log main; }
	}
	include /etc/nginx/snippets/ours.conf;
""",
)
PACKAGED = "server { listen 80 default_server; }"
MANAGED = "#\n# Ansible managed\n#\n# What all sites share. Paths are relative.\nhttp {}\n"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server's files, of which those are as packaged that the test names."""
    monkeypatch.setattr(found, "ROOT", tmp_path)
    for name in (
        "nginx/sites-enabled",
        "nginx/sites-available",
        "nginx/conf.d",
        "supervisor/conf.d",
    ):
        (tmp_path / "etc" / name).mkdir(parents=True)
    (tmp_path / "etc/nginx/sites-available/default").write_text(PACKAGED)
    (tmp_path / "etc/nginx/sites-enabled/default").symlink_to("../sites-available/default")
    (tmp_path / "etc/nginx/nginx.conf").write_text(DEBIAN)

    def packaged(*_: str) -> dict[str, str]:
        site = tmp_path / "etc/nginx/sites-available/default"
        digests = {"/etc/nginx/nginx.conf": DEBIAN, "/etc/supervisor/supervisord.conf": "[x]\n"}
        digests["/etc/nginx/sites-available/default"] = PACKAGED
        assert site.exists()
        return {k: hashlib.md5(v.encode()).hexdigest() for k, v in digests.items()}

    monkeypatch.setattr(found, "as_packaged", packaged)
    return tmp_path / "etc"


def test_what_debian_brings_is_nobody_s(server: Path) -> None:
    assert found.nginx()["by_hand"] is False
    assert found.goes_on("nginx", server / "nginx/nginx.conf") == {}
    assert found.default_ports() == []


def test_a_statement_ends_where_nginx_ends_it() -> None:
    names = [x.title for x in adopted.inside(THEIRS, "http")]
    assert "map $uri" in names
    assert "upstream back" in names
    assert "log_format main" in names
    assert len(names) == len(adopted.inside(DEBIAN, "http")) + 7
    for broken in ("http { gzip on;", "http { } }"):
        assert adopted.inside(broken, "http") == []


def test_what_ours_does_not_say_goes_on(server: Path) -> None:
    (server / "nginx/nginx.conf").write_text(THEIRS)
    (server / "nginx/sites-available/blog").write_text("server { error_log /var/www/l/e.log; }")
    (server / "nginx/sites-enabled/blog").symlink_to("../sites-available/blog")
    (server / "nginx/sites-enabled/.swp").write_text("")
    said = found.nginx()
    assert said["by_hand"]
    assert said["sites"] == ["blog"]
    wanted = ["client_max_body_size", "include /etc/nginx/snippets/ours.conf", "log_format main"]
    assert said["kept"] == [*wanted, "map $uri", "server", "upstream back"]
    assert "map $http_upgrade" in said["gone"]
    assert "gzip" in said["gone"]
    files = found.goes_on("nginx", server / "nginx/nginx.conf")
    text = files.pop(server / "nginx/conf.d/adopted.conf")
    assert "include sites-enabled/blog;" in text
    assert "sites-enabled/default" not in text
    assert "a{2}" in text
    assert "# a } brace" in text
    assert "gzip" not in text
    assert "ReadWritePaths=-/srv/logs -/var/www/l\n" in files.pop(adopted.DROP_IN)
    assert files == {}
    assert found.default_ports() == [80]
    # And once it is ours, the same site is still the default one.
    (server / "nginx/conf.d/adopted.conf").write_text(text)
    (server / "nginx/nginx.conf").write_text(MANAGED)
    assert found.default_ports() == [80]
    assert found.goes_on("nginx", server / "nginx/nginx.conf") == {}
    after = {"sites": ["blog", "default"], "by_hand": False, "upstreams": ["back"], "pools": {}}
    assert found.nginx() == after


def test_a_site_that_was_dead_before_stays_so(server: Path) -> None:
    only = DEBIAN.replace("sites-enabled/*;", "sites-enabled/*.conf;")
    (server / "nginx/nginx.conf").write_text(only)
    (server / "nginx/sites-enabled/blog").write_text("server { }")
    assert found.nginx()["sites"] == []
    assert found.goes_on("nginx", server / "nginx/nginx.conf") == {}


def test_debian_s_own_site_that_somebody_has_changed_is_a_site(server: Path) -> None:
    (server / "nginx/sites-available/default").write_text(PACKAGED.replace("80", "[::]:80"))
    assert found.nginx()["sites"] == ["default"]
    (text,) = found.goes_on("nginx", server / "nginx/nginx.conf").values()
    assert "include sites-enabled/default;" in text
    assert found.default_ports() == [80]


def test_what_nginx_would_hear_twice_is_told(server: Path) -> None:
    (server / "nginx/conf.d/tuning.conf").write_text("gzip on; map $a $b { }\nserver_tokens off;\n")
    twice = ["gzip in conf.d/tuning.conf", "server_tokens in conf.d/tuning.conf"]
    assert found.nginx()["twice"] == twice


def test_ours_are_what_nginx_conf_says() -> None:
    text = (ROOT / "roles/nginx/templates/etc/nginx/nginx.conf.j2").read_text()
    bare = re.sub(r"\{\{.*?\}\}", "x", re.sub(r"\{%.*?%\}", "", text))
    told = (ROOT / "roles/nginx/templates/etc/nginx/sites-enabled/told.conf.j2").read_text()
    says = {x.name for x in adopted.inside(bare, "http")} - {"x"}
    assert says, "the template could not be read"
    assert "proxy_set_header" in told
    says -= {"include", "map", "geo", "server", "log_format"}
    assert says <= adopted.OURS


PROGRAMS = """\
[unix_http_server]
file=/run/x.sock ; [not:a section]
[program:a]
command=sleep 1
environment=A="[x]"
[inet_http_server]
port=*:9001
[group:b]
programs=a
[include]
files = /etc/supervisor/conf.d/*.conf conf.d/*.ini
  /srv/*/supervisor.conf
"""


def test_the_programs_of_a_supervisord_conf_go_on(server: Path) -> None:
    path = server / "supervisor/supervisord.conf"
    path.write_text(PROGRAMS)
    said = found.supervisor()
    assert said["kept"] == ["program:a", "group:b"]
    assert said["gone"] == ["inet_http_server"]
    assert said["includes"] == ["conf.d/*.ini", "/srv/*/supervisor.conf"]
    ((place, text),) = found.goes_on("supervisor", path).items()
    assert place == server / "supervisor/conf.d/adopted.conf"
    assert '[program:a]\ncommand=sleep 1\nenvironment=A="[x]"' in text
    assert "[group:b]" in text
    assert "inet" not in text
    path.write_text("[x]\n")
    assert found.supervisor()["by_hand"] is False
    assert found.goes_on("supervisor", path) == {}


@pytest.mark.parametrize(
    ("text", "is_debians", "kept"),
    [
        ("# x\nlocal   all   postgres   peer\nlocal all all peer\n", True, ["local all all peer"]),
        ("local all postgres peer\n", True, []),
        ("host shop anna 10.0.0.0/8 md5 # why\n", False, ["host shop anna 10.0.0.0/8 md5"]),
        ("host all \\\n all 0/0 md5\n", False, ["host all   all 0/0 md5"]),
    ],
)
def test_lines_of_pg_hba_conf(text: str, is_debians: bool, kept: list[str]) -> None:
    assert adopted.is_debians(text) is is_debians
    assert adopted.hba(text) == kept


def test_a_copy_of_what_is_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_set, "BACKUPS", tmp_path / "backups")
    path, copy = tmp_path / "a.conf", tmp_path / "backups" / str(tmp_path)[1:] / "a.conf"

    def write(content: bytes) -> None:
        item = file_set.File(path, owner=None, group=None, content=content)
        file_set.FileSet([item], False, backup=lambda path: path.name != "b.conf").write()

    for text in (b"# Managed by Ansible.\n1\n", b"# Managed by Ansible.\n2\n"):
        write(text)
    assert not copy.exists()
    path.write_bytes(b"by hand\n")
    write(b"# Managed by Ansible.\n3\n")
    assert copy.read_bytes() == b"by hand\n"
    assert copy.stat().st_mode & 0o777 == 0o600
    # A second one does not take the place of the first, and the same is not kept twice.
    for text in (b"again\n", b"by hand\n"):
        path.write_bytes(text)
        write(b"# Managed by Ansible.\n3\n")
    assert copy.read_bytes() == b"by hand\n"
    assert copy.with_name("a.conf.2").read_bytes() == b"again\n"
    assert not copy.with_name("a.conf.3").exists()
    other = tmp_path / "b.conf"
    other.write_bytes(b"as its package has brought it\n")
    item = file_set.File(other, owner=None, group=None, content=b"new\n")
    file_set.FileSet([item], False, backup=lambda path: path.name != "b.conf").write()
    assert not copy.with_name("b.conf").exists()


@pytest.mark.parametrize(
    ("rules", "claimed", "count"),
    [
        ("local all postgres peer\nlocal all all peer\n", False, 0),
        ("host a a 10.0.0.0/8 md5\n", False, 1),
        ("# Managed by Ansible, role postgres.\nhost a a 10.0.0.0/8 md5\n", False, 0),
        ("host a a 10.0.0.0/8 md5\n", True, None),
    ],
)
def test_what_is_seen_of_a_cluster(server: Path, rules: str, claimed: bool, count: int) -> None:
    folder = server / "postgresql/17/main"
    folder.mkdir(parents=True)
    (server / "os-release").write_text('VERSION_ID="13"\n')
    text = "port = 5433 # x\n#port = 1\ndata_directory = '/data/17'\ninclude_dir = 'conf.d'\n"
    (folder / "postgresql.conf").write_text(text)
    (folder / "pg_hba.conf").write_text(rules)
    (folder / "conf.d").mkdir()
    (folder / "conf.d/z.conf").write_text("port 5434\n")
    (server.parent / "data/17/base/16384").mkdir(parents=True)
    if claimed:
        (server / "carafe/postgres.d").mkdir(parents=True)
        (server / "carafe/postgres.d/shop.json").write_text("{}")
    (cluster,) = found.postgresql()["clusters"]
    assert (cluster["port"], cluster["runs"], cluster["reads_conf_d"]) == (5434, False, True)
    assert cluster["claims"] == ({"shop": {"databases": [], "roles": None}} if claimed else {})
    assert cluster.get("hba") == count
    assert cluster.get("has_databases") is (None if claimed else True)
