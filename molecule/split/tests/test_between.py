"""Who stands between two servers, with whatever certificate, gets nothing of what they say."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Visitors, address
from testinfra.host import Host

PROGRAM = (Path(__file__).parents[1] / "files/between.py").read_text()
FOLDER = "/run/between"
OWN = "/etc/internal-tls/guestbook/server.pem"
# What another server may show: a certificate that it made for the right address, one of the stack's
# own that is for another server, or none.
MADE = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=x -days 9"
    " -addext subjectAltName=IP:%s,DNS:app.guestbook.internal,DNS:db.guestbook.internal"
    f" -keyout {FOLDER}/made -out {FOLDER}/made.crt && cat {FOLDER}/made.crt >>{FOLDER}/made"
)
CERTIFICATES = {"made by itself": f"{FOLDER}/made", "of another server": OWN, "none": "-"}


@contextmanager
def between(host: Host, whom: str, kind: str, port: int, certificate: str) -> Iterator[Host]:
    """Take the place of a server, as another one sees it."""
    host.check_output(f"mkdir -m 755 {FOLDER} && printf %%s %s >{FOLDER}/between.py", PROGRAM)
    host.check_output(MADE, whom)
    host.check_output("ip address add %s/32 dev lo", whom)
    try:
        command = f"python3 {FOLDER}/between.py {kind} {whom} {port} {certificate} {FOLDER}"
        unit = "--collect --unit=between --quiet"
        host.check_output(f"systemd-run {unit} {command}")
        deadline = time.monotonic() + 20
        while not host.file(f"{FOLDER}/ready").exists:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield host
    finally:
        host.run("systemctl stop between")
        host.check_output(f"ip address del %s/32 dev lo && rm -r {FOLDER}", whom)


def heard(host: Host) -> str:
    assert host.file(f"{FOLDER}/came").exists, "nobody has come by, so that this proves nothing"
    return host.run(f"tr -cd '[:print:]' <{FOLDER}/heard").stdout


CONNECT = "import os, psycopg; psycopg.connect(os.environ['DATABASE_URL'], connect_timeout=9)"


@pytest.mark.parametrize("shows", CERTIFICATES)
@pytest.mark.parametrize("who", ["guestbook", "guestbook-deploy"])
def test_who_stands_in_for_the_database_gets_no_password(
    server: Callable[[str], Host], shows: str, who: str
) -> None:
    app, database = server("app-1"), address(server("db"))
    run = f"runuser -u {who} -- /srv/guestbook/bin/run {'-m' if 'deploy' in who else ''} python -c"
    # The app itself may come by as well, and is to say no more.
    with between(app, database, "postgresql", 5432, CERTIFICATES[shows]):
        answer = app.run(f'{run} "{CONNECT}"')
        assert answer.rc != 0
        assert "certificate" in answer.stderr or "SSL" in answer.stderr
        assert heard(app) == ""
    app.check_output(f'{run} "{CONNECT}"')


def test_who_stands_in_for_the_database_would_understand_a_password(
    server: Callable[[str], Host],
) -> None:
    """What the test above goes without: the way of a client that asks for no certificate."""
    app, database = server("app-1"), address(server("db"))
    careless = CONNECT.replace("=9", "=2").replace(
        "']", "'].partition('?')[0] + '?sslmode=require'", 1
    )
    with between(app, database, "postgresql", 5432, CERTIFICATES["made by itself"]):
        app.run(f'/srv/guestbook/bin/run python -c "{careless}"')
        assert "p@ss/word" in heard(app)


ASK = (
    "import http.client; c = http.client.HTTPConnection('127.0.0.1', 80, timeout=20);"
    " c.request('{}', '/readyz', b'', {{'Host': 'localhost', 'Cookie': 'session=sweet-secret'}});"
    " print(c.getresponse().status)"
)


def ask(web: Host, eventually: Callable[..., None]) -> None:
    """Be visitors until nginx has asked who stands there, and a few more; all get an answer."""

    def visit() -> bool:
        for method in ("GET", "POST"):
            answer = web.check_output(f'python3 -c "{ASK.format(method)}"')
            assert int(answer) < 500, answer
        return web.file(f"{FOLDER}/came").exists

    # nginx leaves out for a while what has not answered.
    eventually(visit, seconds=30)
    visit()


@pytest.mark.parametrize("shows", CERTIFICATES)
def test_who_stands_in_for_an_app_server_gets_no_request(
    server: Callable[[str], Host], eventually: Callable[..., None], shows: str
) -> None:
    """The other app server answers all of them."""
    web, app = server("web"), address(server("app-1"))
    with between(web, app, "http", 8443, CERTIFICATES[shows]):
        ask(web, eventually)
        # Without TLS it hears how nginx asks for it, and no more.
        said = heard(web)
        assert said == "" or shows == "none"
        assert not [word for word in ("GET", "POST", "readyz", "sweet-secret") if word in said]


def test_who_stands_in_for_an_app_server_would_understand_a_request(
    server: Callable[[str], Host], eventually: Callable[..., None]
) -> None:
    """What the test above goes without: the way of an nginx that asks for no certificate."""
    web, app = server("web"), address(server("app-1"))
    site = "/etc/nginx/sites-enabled/guestbook.conf"
    web.check_output(f"cp -p {site} /run/site && sed -i s/verify.on/verify\\ off/ {site}")
    try:
        web.check_output("systemctl reload nginx")
        with between(web, app, "http", 8443, CERTIFICATES["made by itself"]):
            ask(web, eventually)
            assert "sweet-secret" in heard(web)
    finally:
        web.check_output(f"mv /run/site {site} && systemctl reload nginx")


# As a client with the certificate of a server: prints what the app's server says.
COME = """
import socket, ssl, sys
context = ssl.create_default_context(cafile="/etc/internal-tls/guestbook/ca.pem")
if sys.argv[2]:
    context.load_cert_chain(sys.argv[2])
try:
    with socket.create_connection((sys.argv[1], 8443), 10) as plain:
        with context.wrap_socket(plain, server_hostname="app.guestbook.internal") as connection:
            connection.sendall(b"GET /healthz HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n")
            print(connection.recv(100).decode())
except OSError:
    pass
"""


@pytest.mark.parametrize(
    ("who", "certificate", "gets_in"),
    [
        ("web", OWN, True),
        ("web", "", False),
        ("web", "made", False),
        # From itself, where no firewall is between.
        ("app-1", OWN, False),
    ],
)
def test_only_a_web_server_reaches_the_app(
    server: Callable[[str], Host], who: str, certificate: str, gets_in: bool
) -> None:
    host, app = server(who), address(server("app-1"))
    if certificate == "made":
        host.check_output(f"mkdir -p {FOLDER}")
        host.check_output(MADE.replace("app.guestbook", "web.guestbook"), app)
        certificate = f"{FOLDER}/made"
    answer = host.run("python3 -c %s %s %s", COME, app, certificate).stdout
    host.run(f"rm -rf {FOLDER}")
    assert answer.startswith("HTTP/1.0 200") is gets_in


def test_a_stopped_app_lets_no_request_in(
    server: Callable[[str], Host], eventually: Callable[..., None]
) -> None:
    """So nginx asks another server, with a POST too: no word of TLS is said, and no request."""
    app = server("app-1")
    app.check_output("supervisorctl stop guestbook:*")
    try:
        ready = "python3 -c %s %s %s"
        gone = (server("web"), ready, COME, address(app), OWN)
        eventually(lambda: not gone[0].run(*gone[1:]).stdout)
        for _ in range(6):
            assert server("web").check_output(f'python3 -c "{ASK.format("POST")}"') != "502"
    finally:
        app.check_output("supervisorctl start guestbook:*")
    eventually(lambda: server("web").run(*gone[1:]).stdout.startswith("HTTP/1.0 200"))


# As docs/how-to/several-servers.md has it: who signs, who is trusted, and whether a certificate of
# before lets in.
ANOTHER_CA = (("old", ["old", "new"], True), ("new", ["old", "new"], True), ("new", ["new"], False))


def test_no_request_is_lost_while_another_ca_takes_over(
    server: Callable[[str], Host],
    playbook: Callable[..., tuple[int, str]],
    url: str,
) -> None:
    """With a release in the midst of it."""
    visitor = Visitors(url)
    visitor.start()
    place = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "internal-ca.pem")
    texts = {"old": place.read_text()}
    content = "content=\"{{ lookup('carafe.stack.internal_ca') }}\""
    # The tests after this one go by it.
    words = ["-m", "ansible.builtin.copy", "-a", f"dest={place} {content}"]
    subprocess.run(["ansible", "localhost", *words], check=True, capture_output=True)
    texts["new"] = place.read_text()
    web, app, before = server("web"), address(server("app-1")), "/root/before.pem"
    web.check_output(f"cp {OWN} {before}")
    for signs, trusted, let_in in ANOTHER_CA:
        given = {
            "internal_tls_ca_key": texts[signs],
            "internal_tls_trusted": [texts[name] for name in trusted],
        }
        status, said = playbook("site", "--tags=internal_tls,nginx,postgres", **given)
        assert status == 0, said
        for certificate, comes_in in ((OWN, True), (before, let_in)):
            answer = web.run("python3 -c %s %s %s", COME, app, certificate).stdout
            assert answer.startswith("HTTP/1.0 200") is comes_in
        if signs != "old" and let_in:
            status, said = playbook("deploy", app_environment={"CA": "another"})
            assert status == 0, said
    visitor.done.set()
    visitor.join()
    assert visitor.count > 100
    assert visitor.failures == {"GET": [], "POST": []}
