"""The slots of the two apps, and a server that each test leaves as it found it."""

import json
from collections.abc import Callable, Iterator

import pytest
from testinfra.backend.base import CommandResult
from testinfra.host import Host

SOCKETS = {"front": "/run/front.sock", "back": "127.0.0.1:8001"}


@pytest.fixture
def slots(host: Host) -> Callable[..., list[int]]:
    """Process ids of an app's slots; 0 stands for one that does not run."""

    def pids(app: str = "front") -> list[int]:
        names = " ".join(f"{app}:{app}_{number}" for number in range(2))
        return [int(line) for line in host.run(f"supervisorctl pid {names}").stdout.split()]

    return pids


@pytest.fixture
def roll(host: Host) -> Callable[..., CommandResult]:
    """Run the command that the role's entry point roll runs."""

    def run(option: str = "", app: str = "front") -> CommandResult:
        program = "python3 /usr/local/lib/carafe/gunicorn-slots"
        return host.run(f"{program} roll {option} /etc/gunicorn/{app}/slots.json")

    return run


@pytest.fixture
def ask(host: Host) -> Callable[..., dict]:
    """Ask one slot of the first app, or all of them through the app's socket."""

    def get(path: str = "/", slot: int | None = None) -> dict:
        socket = SOCKETS["front"] if slot is None else f"/var/lib/gunicorn-front/slot-{slot}.sock"
        answer = host.run(
            "curl -sS --fail-with-body --max-time 30 --unix-socket %s %s -H %s",
            socket,
            f"http://localhost{path}",
            "X-Forwarded-Proto: https",
        )
        assert answer.rc == 0, answer.stdout + answer.stderr
        return json.loads(answer.stdout)

    return get


@pytest.fixture
def load(host: Host) -> Callable[..., dict]:
    """Run a shell command under load; see files/load.py for the answer."""

    def run(command: str, app: str = "front") -> dict:
        arguments = ("python3 /opt/load.py %s sh -c %s", SOCKETS[app], command)
        return json.loads(host.check_output(*arguments))

    return run


@pytest.fixture
def point(host: Host) -> Callable[[str], None]:
    """Let the first app's code be that of a release: point("two")."""

    def link(release: str) -> None:
        host.check_output("ln -sfn %s /srv/front/current", release)

    return link


@pytest.fixture(autouse=True)
def as_found(host: Host, roll: Callable, point: Callable) -> Iterator[None]:
    """Let every test begin with the first release in both slots."""
    yield
    point("one")
    host.check_output("rm -f /srv/front/sick-* /srv/front/delay-*")
    host.check_output("echo GREETING=hello >/srv/front/environment")
    end = roll()
    assert end.rc == 0, end.stdout + end.stderr
