"""Who stands between two servers, with whatever certificate, gets nothing of what they say."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import address
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
    return host.run(f"cat {FOLDER}/heard").stdout


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
