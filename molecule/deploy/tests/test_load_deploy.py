"""Under load, no way to change the release loses a request."""

import contextlib
import socket
import subprocess
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from conftest import Load, lossless
from testinfra.host import Host

# By Ansible's own strategy first, as users have it, then by Mitogen, where the next follows sooner.
ROUNDS = {"12": ["linear"], "13": ["linear", "mitogen_linear"]}

BROKEN = {
    "import": ({"wsgi": "import no_such_module\n"}, "no_such_module"),
    # Its first answer is a good one.
    "health": (
        {
            "wsgi": """
answers = iter([None])
app.before_request(lambda: next(answers, ("unwell", 500)))
"""
        },
        "it was well, and then not: / answered 500",
    ),
    "migration": (
        {
            "migration": """
from alembic import op
revision, down_revision = "0002", "0001"
def upgrade():
    op.execute("CREATE TABLE half (id int)")
    op.execute("ALTER TABLE no_such_table ADD x int")
"""
        },
        "no_such_table",
    ),
    "worker": ({"worker": "import no_such_worker\n"}, "no_such_worker"),
    # What only the second slot has among its open files is its private socket.
    "second slot": (
        {
            "wsgi": """
files = open("/proc/net/unix").read().splitlines()
import pathlib
links = (str(x.readlink()) for x in pathlib.Path("/proc/self/fd").iterdir() if x.is_symlink())
own = {x for x in links if x.startswith("socket:")}
sockets = [line.split() for line in open("/proc/net/unix") if "/slot-1.sock" in line]
if any(f"socket:[{fields[6]}]" in own for fields in sockets):
    raise SystemExit("the second slot cannot start")
"""
        },
        "the second slot cannot start",
    ),
}


def ok(run: subprocess.CompletedProcess[str]) -> str:
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.mark.each_release
def test_deployments_and_rollbacks(
    heavy_load: Load,
    playbook: Callable,
    code: Callable[..., Path],
    serving: Callable[[], str],
    jobs: Callable[[], dict[str, list[bool]]],
    host: Host,
) -> None:
    before, seen = serving(), set()
    rounds = ROUNDS[host.check_output("hostname").rpartition("-")[2]]
    heavy_load.go_on(400)
    for number, strategy in enumerate(rounds):
        ok(playbook("deploy", strategy, ledger_path=str(code(f"n{number}"))))
        seen.add(serving())
        ok(playbook("rollback", strategy))
        assert serving() == before
    assert len(seen) == len(rounds)
    assert {answer.release for answer in heavy_load.answers} == seen | {before}
    # Nobody waits for a slot to come back, which takes seconds. `make bench` measures the rest.
    print(f"the longest time without an answer: {heavy_load.stall():.2f} s")
    assert heavy_load.stall() < 5
    # The worker moved along each time, and was never cut off; what it is at now has not ended.
    assert set(jobs()) >= seen | {before}
    assert sum(not ended for found in jobs().values() for ended in found) <= 1


# What the inventory says otherwise of the release that fails.
FAILED = {
    "app_environment": {"WORD": "of what failed"},
    "app_schedules": [{"name": "tick", "command": "echo of what failed", "when": "yearly"}],
    "gunicorn_settings": {"proc_name": "of what failed"},
}
# Whatever runs the app, with the settings of gunicorn that the slots name.
STARTED = """
for name in ledger:ledger_0 ledger:ledger_1 ledger.jobs:ledger.jobs_0; do
  pid=$(supervisorctl pid $name)
  tr '\\0' '\\n' </proc/$pid/environ
  cat $(tr '\\0' '\\n' </proc/$pid/cmdline | grep gunicorn.conf.py)
done </dev/null
systemctl start ledger.tick
journalctl --unit ledger.tick --identifier ledger.tick --lines 1 --output cat
"""


@pytest.fixture
def started_with(
    host: Host,
    restart_server: Callable[[], None],
    published: Callable[[int], str | None],
    eventually: Callable[..., None],
) -> Callable[[str], str]:
    """Restart the server, and return what its processes were started with, all of one release."""

    def restart(release: str) -> str:
        def answered() -> str:
            site = f"http://{published(80)}/"
            answer = requests.get(site, headers={"Host": "localhost"}, timeout=30)
            return answer.headers.get("X-Release", "")

        restart_server()
        eventually(lambda: answered() == release)
        eventually(lambda: host.check_output(STARTED).count(f"APP_RELEASE={release}") == 3)
        started = host.check_output(STARTED)
        assert started.splitlines()[-1].startswith(f"tick of {release}: ")
        assert started.count("worker_class = ") == 2
        return started

    return restart


@pytest.mark.either_release
@pytest.mark.parametrize("way", BROKEN)
def test_broken_release(
    url: str,
    rows: Callable[[], list[str]],
    playbook: Callable,
    code: Callable[..., Path],
    serving: Callable[[], str],
    host: Host,
    started_with: Callable[[str], str],
    way: str,
) -> None:
    before, (spoiled, reason) = serving(), BROKEN[way]
    with lossless(url, rows) as load:
        path = str(code(way.replace(" ", ""), **spoiled))
        run = playbook("deploy", ledger_path=path, **FAILED)
        ended = load.now
        assert run.returncode != 0
        assert reason in run.stdout + run.stderr
        assert serving() == before
        if way == "import":
            assert "broken" in ok(playbook("releases"))
        worker = host.check_output("supervisorctl pid ledger.jobs:ledger.jobs_0")
        assert f"APP_RELEASE={before}" in host.check_output(f"tr '\\0' ' ' </proc/{worker}/environ")
        tables = host.check_output("runuser -u ledger -- psql -XAtc '\\dt' ledger")
        assert "half" not in tables
        load.go_on(100, after=ended)
    assert {answer.release for answer in load.answers if answer.due > ended} == {before}
    # Nothing of it is what the server starts with, either.
    assert "of what failed" not in started_with(before)


def test_broken_rollback(
    url: str,
    rows: Callable[[], list[str]],
    playbook: Callable,
    code: Callable[..., Path],
    serving: Callable[[], str],
    host: Host,
    started_with: Callable[[str], str],
) -> None:
    # What the inventory has, whatever the tests before have left.
    ok(playbook("deploy"))
    older, word = serving(), {"app_environment": {"WORD": "of the newer"}}
    ok(playbook("deploy", ledger_path=str(code("newer")), **word))
    newer, wsgi = serving(), f"/srv/ledger/releases/{older}/wsgi.py"
    # As a library does that somebody has removed from the server.
    host.check_output(f"cp -p {wsgi} /root/ && echo 'import no_such_module' >>{wsgi}")
    try:
        with lossless(url, rows) as load:
            run = playbook("rollback")
            ended = load.now
            assert run.returncode != 0
            assert "no_such_module" in run.stdout + run.stderr
            assert serving() == newer
            load.go_on(100, after=ended)
        assert {answer.release for answer in load.answers} == {newer}
        assert started_with(newer).count("WORD=of the newer\n") == 3
    finally:
        host.check_output(f"cp -p /root/wsgi.py {wsgi}")
    ok(playbook("deploy"))
    assert serving() == older


# What the inventory of an app that speaks ASGI says.
ASGI = {"app_wsgi": "asgi:app", "app_interface": "asgi"}
OPEN = """GET /live HTTP/1.1\r
Host: localhost\r
Upgrade: websocket\r
Connection: Upgrade\r
Sec-WebSocket-Version: 13\r
Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r
\r
"""
HELLO = b"\x81\x85\0\0\0\0hello"  # as a client says it, with a mask that changes nothing
SERVICE_RESTART = b"\x03\xf4"  # 1012, of a frame that closes


@pytest.fixture
def websocket(url: str) -> Iterator[Callable[[], socket.socket]]:
    """Open a websocket through nginx."""
    with contextlib.ExitStack() as stack:

        def connect() -> socket.socket:
            place = urllib.parse.urlsplit(url)
            client = socket.create_connection((place.hostname, place.port), 60)
            stack.enter_context(client)
            client.sendall(OPEN.encode())
            assert client.recv(4096).startswith(b"HTTP/1.1 101 ")
            return client

        yield connect


@pytest.mark.newest_release
def test_an_app_that_speaks_asgi(
    load: Load,
    playbook: Callable,
    code: Callable[..., Path],
    serving: Callable[[], str],
    websocket: Callable[[], socket.socket],
) -> None:
    before = serving()
    refused = playbook("deploy", app_wsgi=ASGI["app_wsgi"])
    assert refused.returncode != 0
    assert "write app_interface: asgi beside app_wsgi" in refused.stdout
    # From one interface to the other, and from one release of it to the next.
    ok(playbook("deploy", **ASGI))
    first = serving()
    client = websocket()
    client.sendall(HELLO)
    assert client.recv(4096)[2:].decode() == f"{first} heard hello"
    ok(playbook("deploy", ledger_path=str(code("asgi")), **ASGI))
    second = serving()
    assert client.recv(4096)[2:4] == SERVICE_RESTART
    client = websocket()
    client.sendall(HELLO)
    assert client.recv(4096)[2:].decode() == f"{second} heard hello"
    client.close()
    ended = load.now
    load.go_on(50, after=ended)
    assert {answer.release for answer in load.answers} == {before, first, second}
    assert {answer.release for answer in load.answers if answer.due > ended} == {second}
