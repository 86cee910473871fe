"""Under load, no way to change the release loses a request."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Load
from testinfra.host import Host

ROUNDS = [3, 10]
SLOWLY = 3  # of them by Ansible's own strategy, the others by Mitogen
ADDED = 0.25  # seconds of latency that a deployment may add

BROKEN = {
    "import": ({"wsgi": "import no_such_module\n"}, "no_such_module"),
    "health": ({"wsgi": "app.before_request(lambda: ('unwell', 500))\n"}, "/ answered 500"),
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


@pytest.mark.parametrize("rounds", ROUNDS)
def test_deployments_and_rollbacks(
    load: Load,
    playbook: Callable,
    code: Callable[..., Path],
    serving: Callable[[], str],
    jobs: Callable[[], dict[str, list[bool]]],
    rounds: int,
) -> None:
    before, seen = serving(), set()
    time.sleep(5)
    quiet = load.latency(0.99)
    for number in range(rounds):
        strategy = "linear" if number < SLOWLY else "mitogen_linear"
        ok(playbook("deploy", strategy, ledger_path=str(code(f"n{number}"))))
        seen.add(serving())
        ok(playbook("rollback", strategy))
        assert serving() == before
    assert len(seen) == rounds
    assert {answer.release for answer in load.answers} == seen | {before}
    assert load.latency(0.99) < quiet + ADDED
    # The worker moved along each time, and was never cut off; what it is at now has not ended.
    assert set(jobs()) >= seen | {before}
    assert sum(not ended for found in jobs().values() for ended in found) <= 1


@pytest.mark.parametrize("way", BROKEN)
def test_broken_release(
    load: Load,
    playbook: Callable,
    code: Callable[..., Path],
    serving: Callable[[], str],
    host: Host,
    way: str,
) -> None:
    before, (spoiled, reason) = serving(), BROKEN[way]
    run = playbook("deploy", ledger_path=str(code(way.replace(" ", ""), **spoiled)))
    assert run.returncode != 0
    assert reason in run.stdout + run.stderr
    assert serving() == before
    assert "broken" in ok(playbook("releases"))
    worker = host.check_output("supervisorctl pid ledger.jobs:ledger.jobs_0")
    assert f"APP_RELEASE={before}" in host.check_output(f"tr '\\0' ' ' </proc/{worker}/environ")
    tables = host.check_output("runuser -u ledger -- psql -XAtc '\\dt' ledger")
    assert "half" not in tables
    time.sleep(2)
    asked = len(load.answers)
    time.sleep(1)
    assert {answer.release for answer in load.answers[asked:]} <= {before, ""}
