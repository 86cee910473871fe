"""A hostile app, and whoever owns its code, try what they can on a server that they share.

The table says who tries what, and by which words it is seen to be refused. Each attempt is made a
second time without the border that it meets, and succeeds then: what would be refused anyway proves
nothing.

The last module: the second app is the one of test_secrets.py.
"""

import re
import secrets
import shlex
import time
from collections.abc import Callable
from typing import NamedTuple

import pytest
from conftest import BUILD_LEAVES, BUILD_TRIES, BUILD_WROTE, NAMES, stack
from testinfra.host import Host

# What either release lets users do is the same.
pytestmark = pytest.mark.newest_release

CONNECT = "python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])'"
ADDRESS = "import socket; socket.create_connection(('169.254.169.254', 80), 3)"
BOMB = """
import os, threading
threading.stack_size(65536)
for _ in range(3000):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
os._exit(0)
"""
ASK = """
import socket, ssl, sys
name, path = sys.argv[1:]
connection = socket.create_connection(("127.0.0.1", 443), 5)
site = ssl._create_unverified_context().wrap_socket(connection, server_hostname=name)
site.sendall(f"GET {path} HTTP/1.0\\r\\nHost: {name}\\r\\n\\r\\n".encode())
answer = site.recv(100).decode().partition("\\r\\n")[0]
sys.exit(0 if " 200 " in answer else answer)
"""


class Attempt(NamedTuple):
    """What is tried, what says no, and how root takes the border away and puts it back."""

    who: tuple[str, ...]
    what: str
    command: str
    refused: str
    without: str = ""
    again: str = ""
    # Where the border is who one is, or in which sandbox: who may do it, and whether in the slots'.
    instead: tuple[str, bool] = ("", False)


APP, DEPLOY = "app", "deploy"
# The app itself, as far as whoever has taken it over gets: in the sandbox of its slots. And the
# user who builds its releases, with all the rights that it has: in no sandbox.
WHO = {APP: ("canary", True), DEPLOY: ("canary-deploy", False)}
BOTH = (APP, DEPLOY)

DATABASES = "ON DATABASE guestbook, postgres, template1"
SQL = "runuser -u postgres -- psql -Xqc"
RELOAD = f"{SQL} 'SELECT pg_reload_conf()' >/dev/null"
STATIC = "/srv/canary/current/guestbook/static"
SITE = "/etc/nginx/sites-enabled/canary.conf"
LOAD = "systemctl reload nginx; sleep 0.5"
OPEN = f"""
cp /etc/postgresql/*/main/pg_hba.conf /root
echo 'local all all peer' >/root/open.conf
echo 'host all all all trust' >>/root/open.conf
cat /root/pg_hba.conf >>/root/open.conf
tee /etc/postgresql/*/main/pg_hba.conf </root/open.conf
{SQL} 'GRANT CONNECT, TEMPORARY {DATABASES} TO PUBLIC'
{RELOAD}"""
SHUT = f"""
tee /etc/postgresql/*/main/pg_hba.conf </root/pg_hba.conf
{SQL} 'REVOKE CONNECT, TEMPORARY {DATABASES} FROM PUBLIC'
{RELOAD}; sleep 0.3"""


def sql(database: str, statement: str) -> Attempt:
    command = f"psql -X -c {shlex.quote(statement)} {database}"
    name = f"{statement.partition(' (')[0].lower()} in {database}"
    return Attempt(BOTH, name, command, "no pg_hba.conf entry", OPEN, SHUT)


def reads(what: str, file: str, *folders: str) -> Attempt:
    """Read a file; ``folders`` are those on the way that others may not enter."""
    enter = f"chmod o%sx {' '.join(folders)}; " if folders else ""
    mode = enter + f"chmod o%sr {file}"
    without, again = mode.replace("%s", "+"), mode.replace("%s", "-")
    return Attempt(BOTH, f"read {what}", f"cat {file}", "Permission denied", without, again)


def speaks(what: str, socket: str, *folders: str) -> Attempt:
    enter = f"chmod o%sx {' '.join(folders)}; " if folders else ""
    mode = enter + f"chmod o%srw {socket}"
    without, again = mode.replace("%s", "+"), mode.replace("%s", "-")
    return Attempt(
        BOTH, f"speak to {what}", f"{CONNECT} {socket}", "PermissionError", without, again
    )


def writes(folder: str, who: tuple[str, ...] = BOTH, closed: bool = False) -> Attempt:
    """Put a link where root writes; into a closed folder others do not even look."""
    without, again = ("777", "750") if closed else ("o+w", "o-w")
    return Attempt(
        who,
        f"plant a link in {folder}",
        f"ln -s /etc/nologin {folder}/planted",
        "Permission denied",
        f"chmod {without} {folder}",
        f"chmod {again} {folder}; rm -f {folder}/planted",
    )


def forges(app: str) -> Attempt:
    log = f"/srv/{app}/state/releases.log"
    return Attempt(
        BOTH,
        f"forge a line of what was released of {app}",
        f"echo forged >>{log}",
        "Permission denied",
        f"chmod o+w {log}",
        f"chmod o-w {log}; sed -i /^forged$/d {log}",
    )


ATTEMPTS = [
    sql("guestbook", "SELECT 1"),
    sql("postgres", "SELECT 1"),
    sql("template1", "SELECT 1"),
    sql("postgres", "CREATE TEMPORARY TABLE mine ()"),
    sql("postgres", "SELECT lo_create(0)"),
    Attempt(
        BOTH,
        "enter the neighbour's database over the network with its own password",
        'cd /srv/canary/serving; eval "$(cat environment secrets || cat migrate.*)";'
        """ psql -X -c 'SELECT 1' "$(echo "$DATABASE_URL" | sed s:/canary?:/guestbook?:)" """,
        "no pg_hba.conf entry",
        OPEN,
        SHUT,
    ),
    Attempt(
        BOTH,
        "be the superuser over the network",
        "psql -X -c 'SELECT 1' \"host=$address user=postgres dbname=postgres\"",
        "rejects connection",
        OPEN,
        SHUT,
    ),
    speaks("the neighbour past nginx", "/run/guestbook.sock"),
    speaks(
        "a slot of the neighbour",
        "/var/lib/gunicorn-guestbook/slot-0.sock",
        "/var/lib/gunicorn-guestbook",
    ),
    speaks("supervisord", "/run/supervisor.sock"),
    reads("its secrets", "/srv/guestbook/serving/secrets"),
    reads("its settings", "/srv/guestbook/serving/environment"),
    reads("its code", "/srv/guestbook/current/wsgi.py"),
    reads("what its release printed", "$log", "/srv/guestbook/logs"),
    reads("what its slots print", "/var/log/supervisor/guestbook_0.log", "/var/log/supervisor"),
    reads("who visits it", "/var/log/nginx/access.log", "/var/log/nginx"),
    reads("what the database logs", "$postgres", "/var/log/postgresql"),
    Attempt(
        BOTH,
        "read the journal",
        "journalctl --lines 1 _UID=0",
        "insufficient permissions",
        "for user in canary canary-deploy; do gpasswd -a $user systemd-journal; done",
        "for user in canary canary-deploy; do gpasswd -d $user systemd-journal; done",
    ),
    Attempt(
        BOTH,
        "read the environment of its processes",
        "cat /proc/$pid/environ",
        # The sandbox shows nothing of other users' processes.
        "Permission denied|No such file",
        instead=("guestbook", False),
    ),
    Attempt(
        BOTH,
        "send its processes a signal",
        "kill -s 0 $pid",
        "not permitted",
        instead=("guestbook", False),
    ),
    Attempt(
        (DEPLOY,),
        "show the neighbour's visitors by a link in a static folder",
        f"ln -s /var/log/nginx/access.log {STATIC}/seen-$number.txt &&"
        f" python3 -c {shlex.quote(ASK)} canary.test /static/seen-$number.txt",
        # nginx leaves it to the app, which may not read it.
        r"HTTP/1\.1 (404|500)",
        f"cp -p {SITE} /root; sed -i 's/\\(disable_symlinks\\) on[^;]*/\\1 off/' {SITE}; {LOAD}",
        f"mv /root/canary.conf {SITE}; rm {STATIC}/seen-*; {LOAD}",
    ),
    Attempt(
        BOTH,
        "ask for the cloud's metadata",
        f"python3 -c {shlex.quote(ADDRESS)}",
        "ConnectionRefusedError",
        "nft flush chain inet carafe output",
        "nft -f /etc/carafe-firewall.nft",
    ),
    *map(forges, ["guestbook", "canary"]),
    Attempt(
        (APP,),
        "be root in a namespace of its own",
        "unshare --user true",
        "not permitted",
        instead=("canary", False),
    ),
    Attempt(
        (APP,),
        "start processes without end",
        f"/srv/canary/bin/run python3 -c {shlex.quote(BOMB)}",
        "can't start new thread",
        "cp -p /srv/canary/bin/run /root; sed -i /^prlimit/d /srv/canary/bin/run",
        "mv /root/run /srv/canary/bin/run",
    ),
    *[writes(f"/srv/canary{x}") for x in ("", "/bin", "/settings", "/state")],
    *[writes(f"/srv/canary/{x}", closed=True) for x in ("archives", "logs")],
    writes("/etc/cron.d", (DEPLOY,)),
]


@pytest.fixture(scope="module")
def service_unit() -> str:
    return "supervisor.service"


@pytest.fixture(autouse=True)
def second_app(host: Host, request: pytest.FixtureRequest) -> None:
    """Have it where test_secrets.py has not brought it."""
    if not host.file("/srv/canary/current").exists:
        values = {name: secrets.token_hex(24) for name in NAMES}
        variables = stack(host, values, request.getfixturevalue("authority"))
        assert request.getfixturevalue("playbook")("site", **variables) == 0


@pytest.fixture(scope="module")
def places(host: Host) -> str:
    """Tell a shell what has another name on each server."""
    return host.check_output("""
    echo "pid=$(supervisorctl pid guestbook:guestbook_0)"
    echo "log=$(ls /srv/guestbook/logs/*-*.log | head -n 1)"
    echo "postgres=$(ls /var/log/postgresql/*-main.log)"
    echo "address=$(hostname -I | cut -d ' ' -f 1)"
    """)


@pytest.fixture
def metadata(host: Host) -> None:
    """Let nginx answer there."""
    host.run("ip address add 169.254.169.254/32 dev lo")


@pytest.fixture
def attempt(
    host: Host, inside: Callable[[str], tuple[bool, str]], places: str
) -> Callable[..., tuple[bool, str]]:
    """Make an attempt as a user, in the sandbox of the slots or outside of it."""

    def run(command: str, user: str, sandboxed: bool) -> tuple[bool, str]:
        script = f"cd /; export HOME=/; {places}\nnumber={time.monotonic_ns()}\n{command}"
        become = f"setpriv --reuid {user} --regid {user} --init-groups sh -c {shlex.quote(script)}"
        if sandboxed:
            return inside(become)
        done = host.run(become)
        return done.rc == 0, done.stdout + done.stderr

    return run


@pytest.mark.usefixtures("metadata")
@pytest.mark.parametrize(
    ("who", "tried"),
    [pytest.param(who, x, id=f"{who}: {x.what}") for x in ATTEMPTS for who in x.who],
)
def test_an_app_gets_nothing_of_its_neighbour(
    host: Host, places: str, attempt: Callable[..., tuple[bool, str]], who: str, tried: Attempt
) -> None:
    succeeded, said = attempt(tried.command, *WHO[who])
    assert not succeeded, said
    assert re.search(tried.refused, said), said
    # It is this border that it meets.
    try:
        host.check_output(f"set -e\n{places}\n{tried.without}")
        whoever = tried.instead if tried.instead[0] else WHO[who]
        deadline = time.monotonic() + 10
        # A service may take a moment to load what was changed.
        while not succeeded and time.monotonic() < deadline:
            succeeded, said = attempt(tried.command, *whoever)
        assert succeeded, said
    finally:
        host.check_output(f"{places}\n{tried.again}")


@pytest.mark.parametrize(("number", "tried"), enumerate(BUILD_TRIES.values()), ids=BUILD_TRIES)
def test_a_build_gets_nothing_of_its_own_app(
    host: Host, attempt: Callable[..., tuple[bool, str]], number: int, tried: str
) -> None:
    said = host.file(BUILD_WROTE % number).content_string
    assert said.endswith("got nothing\n"), said
    # The same user does outside of the sandbox.
    succeeded, said = attempt(tried, *WHO[DEPLOY])
    assert succeeded, said


def test_nothing_of_a_build_is_left(host: Host, attempt: Callable[..., tuple[bool, str]]) -> None:
    look = "pgrep -u canary-deploy -x sleep; ls /tmp/left-by-a-build"
    assert host.run(look).stdout == ""
    try:
        attempt(BUILD_LEAVES, *WHO[DEPLOY])
        assert len(host.run(look).stdout.splitlines()) == 2
    finally:
        host.run("pkill -u canary-deploy -x sleep; rm -f /tmp/left-by-a-build")
