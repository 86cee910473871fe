"""What site.yml makes of one bare server: two apps that answer, and know nothing of each other."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from testinfra.backend.base import CommandResult
from testinfra.host import Host

REPOSITORY = Path(__file__).parents[3]
VISIT = REPOSITORY / "scripts/visit"
APPS = {"guestbook": "localhost", "neighbour": "neighbour.test"}


@pytest.fixture(params=APPS)
def app(request: pytest.FixtureRequest) -> str:
    """Name of an app on the server."""
    return request.param


def as_user(host: Host, user: str, command: str):
    """Run a shell command as a user of the server, logged in or not."""
    return host.run("runuser -u %s -- sh -c %s", user, command)


def is_denied(host: Host, user: str, command: str) -> bool:
    """Whether the user may not: a path that is not there would fail, too, and prove nothing."""
    words = command.split()
    if words[0] == "cat":
        assert host.file(words[1]).exists
    answer = as_user(host, user, command)
    return answer.rc != 0 and "Permission denied" in answer.stderr


@pytest.mark.parametrize("path", ["/", "/archive", "/readyz"])
def test_page_answers(site: Callable[..., requests.Response], app: str, path: str) -> None:
    assert site(path, host=APPS[app]).status_code == 200


def test_row_goes_to_the_database_and_back(docker_name: str) -> None:
    with VISIT.open("rb") as script:
        visit = subprocess.run(
            [
                *("docker", "exec", "-i", docker_name, "python3", "-"),
                *("https://localhost", "/var/lib/certificates/ca.crt"),
            ],
            stdin=script,
            capture_output=True,
            text=True,
            check=False,
        )
    assert visit.returncode == 0, visit.stdout + visit.stderr


def test_unknown_host_gets_no_answer(published: Callable[[int], str | None]) -> None:
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://{published(80)}/", headers={"Host": "elsewhere.test"}, timeout=30)


def test_unknown_host_gets_no_answer_over_tls(site: Callable[..., requests.Response]) -> None:
    """Beside a bare address, who names no site is shown that one's certificate, and no more."""
    with pytest.raises(requests.exceptions.SSLError, match=r"elsewhere\.test"):
        site("/", host="elsewhere.test")


def by_address(host: Host, address: str) -> CommandResult:
    """Ask over TLS by an address, for which a client names no host."""
    ask = "import ssl, sys, urllib.request as u; c = ssl.create_default_context(cafile=sys.argv[2])"
    ask += "; print(u.urlopen(sys.argv[1], context=c).read())"
    url = f"https://{address}/healthz"
    return host.run("python3 -c %s %s %s", ask, url, "/var/lib/certificates/ca.crt")


def test_bare_address_is_answered_over_tls(host: Host) -> None:
    assert "release" in by_address(host, "127.0.0.1").stdout


def test_who_is_second_at_a_bare_address_is_shown_the_certificate_of_the_first(host: Host) -> None:
    assert "IP address mismatch" in by_address(host, "127.0.0.2").stderr


def test_plain_port_sends_to_tls(published: Callable[[int], str | None], app: str) -> None:
    answer = requests.post(
        f"http://{published(80)}/path?query=1",
        headers={"Host": APPS[app]},
        allow_redirects=False,
        timeout=30,
    )
    assert answer.status_code == 308
    assert answer.headers["Location"] == f"https://{APPS[app]}/path?query=1"


@pytest.mark.parametrize("path", ["/", "/static/app.css", "/static/missing.css", "/missing"])
def test_every_answer_has_the_security_headers(
    site: Callable[..., requests.Response], path: str
) -> None:
    """Once each, also where the app sends them itself."""
    answer = site(path)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] in ("strict-origin-when-cross-origin", "same-origin")
    assert "," not in answer.headers.get("X-Frame-Options", "")
    # Nobody is held to a certificate that is not for the world.
    assert "Strict-Transport-Security" not in answer.headers


def test_cookie_comes_over_tls_only(site: Callable[..., requests.Response]) -> None:
    answer = site("/api/csrf")
    assert "; Secure" in answer.headers["Set-Cookie"]


def test_hashed_file_comes_compressed_and_for_good(site: Callable[..., requests.Response]) -> None:
    page = site("/").text
    name = next(word for word in page.split('"') if "/static/dist/" in word and ".css" in word)
    answer = site(name, headers={"Accept-Encoding": "br"}, stream=True)
    assert answer.headers["Content-Encoding"] == "br"
    assert "immutable" in answer.headers["Cache-Control"]


def test_what_visitors_send_is_served_and_does_nothing(
    site: Callable[..., requests.Response], host: Host
) -> None:
    write = "cd /srv/guestbook/current/media; umask 077; echo '<script>' | tee page.html > a.png"
    assert as_user(host, "guestbook", write).rc == 0
    page, picture = site("/media/page.html"), site("/media/a.png")
    assert (page.status_code, picture.status_code) == (200, 200)
    assert page.headers["Content-Disposition"] == "attachment"
    assert page.headers["Content-Type"] == "application/octet-stream"
    assert picture.headers["Content-Type"] == "image/png"
    assert "sandbox" in picture.headers["Content-Security-Policy"]
    assert site("/media/").status_code == site("/media/missing.png").status_code == 404


def test_app_sees_who_asks_and_how(site: Callable[..., requests.Response], host: Host) -> None:
    """The release that answers is the one that current points to."""
    current = host.check_output("basename $(readlink /srv/guestbook/serving)")
    assert site("/healthz").json()["release"] == current


def test_only_ssh_the_web_and_what_an_app_brings_listen_on_the_network(host: Host) -> None:
    addresses = host.check_output("ss -Hltn | awk '{print $4}'").split()
    open_ports = {
        address.rpartition(":")[2] for address in addresses if not address.startswith("127.")
    }
    # ngircd is what an app has brought along, by app_extra_packages.
    assert open_ports == {"22", "80", "443", "6667"}


SECRETS = ["environment", "secrets", "migrate.environment", "migrate.secrets"]


@pytest.mark.parametrize("path", [*(f"serving/{name}" for name in SECRETS), "current/wsgi.py"])
@pytest.mark.parametrize("user", ["www-data", "nobody", "the other app"])
def test_stranger_reads_neither_secrets_nor_code(
    host: Host, app: str, path: str, user: str
) -> None:
    other = next(name for name in APPS if name != app)
    stranger = other if user == "the other app" else user
    assert is_denied(host, stranger, f"cat /srv/{app}/{path}")


def test_app_reads_its_environment_and_code(host: Host, app: str) -> None:
    assert as_user(host, app, f"cd /srv/{app} && cat serving/secrets current/wsgi.py").rc == 0


def test_app_does_not_read_what_migrations_use(host: Host, app: str) -> None:
    assert is_denied(host, app, f"cat /srv/{app}/serving/migrate.secrets")


@pytest.mark.parametrize(
    "path", ["current/wsgi.py", "current/new", "current/.venv/new", "releases/new", "bin/run"]
)
def test_app_cannot_change_the_code(host: Host, app: str, path: str) -> None:
    assert is_denied(host, app, f"echo >> /srv/{app}/{path}")


def test_nginx_reads_static_files(host: Host, app: str) -> None:
    path = f"/srv/{app}/current/guestbook/static/app.css"
    assert as_user(host, "www-data", f"cat {path}").rc == 0


def database(host: Host, user: str, name: str, statement: str):
    """Run one SQL statement over the unix socket, as peer authentication knows the user."""
    return as_user(host, user, f'psql -XAtc "{statement}" {name}')


def test_app_reads_and_writes_rows(host: Host, app: str) -> None:
    statement = "BEGIN; UPDATE users SET name = name; SELECT count(*) FROM posts; ROLLBACK"
    assert database(host, app, app, statement).rc == 0


@pytest.mark.parametrize(
    "statement",
    ["CREATE TABLE x ()", "DROP TABLE posts", "ALTER TABLE posts ADD x int", "DROP SCHEMA public"],
)
def test_app_cannot_change_tables(host: Host, app: str, statement: str) -> None:
    answer = database(host, app, app, statement)
    assert answer.rc != 0
    assert "permission denied" in answer.stderr or "must be owner" in answer.stderr


def test_app_cannot_enter_its_neighbours_database(host: Host) -> None:
    for name in ("guestbook", "postgres", "template1"):
        answer = database(host, "neighbour", name, "SELECT 1")
        assert "no pg_hba.conf entry" in answer.stderr


def test_database_refuses_who_is_not_in_the_operating_system(host: Host) -> None:
    answer = as_user(host, "www-data", "psql -U guestbook -c 'SELECT 1' guestbook")
    assert "Peer authentication failed" in answer.stderr


@pytest.mark.either_release
def test_maintenance_comes_and_goes(host: Host, app: str) -> None:
    # By another address than the one that ssh comes from, which is let in.
    ask = f"""python3 - <<'END'
import http.client, socket, ssl
context = ssl.create_default_context(cafile="/var/lib/certificates/ca.crt")
connection = http.client.HTTPConnection("{APPS[app]}")
plain = socket.create_connection(("127.0.0.1", 443))
connection.sock = context.wrap_socket(plain, server_hostname="{APPS[app]}")
connection.request("GET", "/archive")
print(connection.getresponse().status)
END"""
    for state, status in (("on", "503"), ("off", "200")):
        playbook(host, "maintenance", app, state=state)
        assert host.check_output(ask) == status


def test_what_a_server_consists_of_is_written_down(host: Host, tmp_path: Path) -> None:
    """tests/test_sbom.py holds it against the schema."""
    file = tmp_path / "shop.cdx.json"
    playbook(host, "sbom", "guestbook", sbom_file=str(file))
    bill = json.loads(file.read_text())
    found = {x["purl"]: x["version"] for x in bill["components"]}
    names = {purl.partition("@")[0] for purl in found}
    database = f"pkg:deb/debian/postgresql-{host.check_output('ls /etc/postgresql')}"
    assert names >= {"pkg:pypi/flask", "pkg:pypi/gunicorn", database}
    (nginx,) = (
        version for purl, version in found.items() if purl.startswith("pkg:deb/debian/nginx@")
    )
    assert nginx == host.package("nginx").version
    assert bill["metadata"]["component"]["version"] == host.check_output(
        "basename $(readlink /srv/guestbook/serving)"
    )


def playbook(host: Host, name: str, app: str, **variables: Any) -> None:
    """Run a playbook for an app of this server."""
    server = host.check_output("hostname")
    variables |= {
        "stack_name": server.replace("default-", "debian"),
        "app_name": app,
        "app_domains": [APPS[app]],
    }
    run = subprocess.run(
        [
            "ansible-playbook",
            REPOSITORY / f"playbooks/{name}.yml",
            *("--inventory", Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent),
            *("--limit", server, "--extra-vars", json.dumps(variables)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
