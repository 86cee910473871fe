"""Under load, no way to change the release loses a request."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Load
from testinfra.host import Host

ROUNDS = 10
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
    # The second slot has the private socket of that name as its second.
    "second slot": (
        {
            "wsgi": """
import socket
if os.environ.get("LISTEN_FDS") == "2":
    with socket.socket(fileno=os.dup(4)) as private:
        if private.getsockname().endswith("slot-1.sock"):
            raise SystemExit("the second slot cannot start")
"""
        },
        "the second slot cannot start",
    ),
}


def ok(run: subprocess.CompletedProcess[str]) -> str:
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_deployments_and_rollbacks(
    load: Load, playbook: Callable, code: Callable[..., Path], serving: Callable[[], str]
) -> None:
    time.sleep(5)
    quiet = load.latency(0.99)
    for number in range(ROUNDS):
        before = serving()
        ok(playbook("deploy", ledger_path=str(code(f"n{number}"))))
        deployed = serving()
        assert deployed != before
        ok(playbook("rollback"))
        assert serving() == before
        ok(playbook("deploy", ledger_path=str(code(f"m{number}"))))
    assert len({answer.release for answer in load.answers if answer.release}) > ROUNDS
    assert load.latency(0.99) < quiet + ADDED


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
    tables = host.check_output("runuser -u ledger -- psql -XAtc '\\dt' ledger")
    assert "half" not in tables
    time.sleep(2)
    asked = len(load.answers)
    time.sleep(1)
    assert {answer.release for answer in load.answers[asked:]} <= {before, ""}
