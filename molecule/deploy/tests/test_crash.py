"""Under load, a process of the stack is killed or restarted; what is lost is known, and bounded."""

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Load
from testinfra.host import Host

MASTER = "supervisorctl pid ledger:ledger_0"
THREADS = 4  # gunicorn_threads: as many requests may be in flight in a worker
WELL_AGAIN = 20  # seconds; generous, since the machine may be slow


@pytest.fixture
def lossy(url: str, rows: Callable[[], list[str]]) -> Iterator[Load]:
    """Load during the test, which may lose requests, but nothing that it has acknowledged."""
    before = rows()
    with Load(url) as site:
        yield site
    assert set(rows()) >= set(before) | set(site.acknowledged)
    assert len(rows()) == len(set(rows()))


def wait_for_another(host: Host, command: str, before: str) -> None:
    deadline = time.monotonic() + WELL_AGAIN
    while (now := host.run(command).stdout.strip()) in ("", "0", before):
        assert time.monotonic() < deadline, f"still {now!r}"
        time.sleep(0.2)
    time.sleep(3)


def test_master_is_killed(load: Load, host: Host) -> None:
    time.sleep(2)
    master = host.check_output(MASTER)
    host.check_output(f"kill -9 {master}")
    wait_for_another(host, MASTER, master)


def test_worker_is_killed(lossy: Load, host: Host) -> None:
    time.sleep(2)
    worker = host.check_output(f"pgrep --parent $({MASTER}) | head -1")
    host.check_output(f"kill -9 {worker}")
    wait_for_another(host, f"pgrep --parent $({MASTER}) | head -1", worker)
    # A POST that the worker was at may be done or not, so nothing may send it a second time.
    assert {answer.method for answer in lossy.failures} <= {"POST"}
    assert len(lossy.failures) <= THREADS
    print(f"a killed worker: {len(lossy.failures)} lost")


def test_supervisord_is_restarted_by_a_deployment(
    lossy: Load,
    playbook: Callable[..., subprocess.CompletedProcess[str]],
    code: Callable[[str], Path],
    host: Host,
) -> None:
    supervisord = host.check_output("cat /run/supervisord.pid")
    run = playbook("site", ledger_path=str(code("restarted")), supervisor_log_level="warn")
    assert run.returncode == 0, run.stdout
    assert host.check_output("cat /run/supervisord.pid") != supervisord
    time.sleep(3)
    lost = [answer.due for answer in lossy.failures]
    print(f"a restarted supervisord: {len(lost)} lost, from {min(lost)} to {max(lost)}")
    assert max(lost, default=0) - min(lost, default=0) < WELL_AGAIN
