"""Under load, a process of the stack is killed or restarted; what is lost is known, and bounded."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Load
from testinfra.host import Host

# What happens to each daemon on Debian 12 is what molecule/default tests.
pytestmark = pytest.mark.newest_release
MASTER = "supervisorctl pid ledger:ledger_0"


@pytest.fixture
def lossy(url: str, rows: Callable[[], list[str]]) -> Iterator[Load]:
    """Load during the test, which may lose requests, but nothing that it has acknowledged."""
    before = rows()
    with Load(url) as site:
        yield site
    assert set(rows()) >= set(before) | set(site.acknowledged)
    assert len(rows()) == len(set(rows()))


@pytest.fixture
def kill(host: Host, eventually: Callable[..., None]) -> Callable[[str], None]:
    """Kill the process whose id a command tells, and wait until the command tells another."""

    def run(command: str) -> None:
        before = host.check_output(command)
        host.check_output("kill -9 %s", before)
        eventually(lambda: host.run(command).stdout.strip() not in ("", "0", before))

    return run


def test_master_is_killed(heavy_load: Load, kill: Callable[[str], None]) -> None:
    heavy_load.go_on(400)
    kill(MASTER)
    heavy_load.go_on(600)


def test_worker_is_killed(lossy: Load, kill: Callable[[str], None]) -> None:
    lossy.go_on(400)
    began = lossy.now
    kill(f"pgrep --parent $({MASTER}) | head -1")
    ended = lossy.now
    lossy.go_on(600)
    # A POST that the worker was at may be done or not, so nothing may send it a second time.
    assert {answer.method for answer in lossy.failures} <= {"POST"}
    # Only what was in flight then: nothing that had its answer, and nothing that came later.
    assert all(x.due <= ended and x.due + x.seconds >= began for x in lossy.failures)
    print(f"a killed worker: {len(lossy.failures)} lost")


def test_supervisord_is_restarted_by_a_deployment(
    lossy: Load,
    playbook: Callable[..., subprocess.CompletedProcess[str]],
    code: Callable[[str], Path],
    host: Host,
) -> None:
    supervisord = host.check_output("cat /run/supervisord.pid")
    lossy.go_on(400)
    began = lossy.now
    run = playbook("site", ledger_path=str(code("restarted")), supervisor_log_level="warn")
    assert run.returncode == 0, run.stdout
    assert host.check_output("cat /run/supervisord.pid") != supervisord
    ended = lossy.now
    lossy.go_on(600)
    lost = [answer.due for answer in lossy.failures]
    print(f"a restarted supervisord: {len(lost)} lost of {len(lossy.answers)}")
    # Only while it was restarted: nothing before the run, and nothing after it.
    assert all(began < due < ended for due in lost)


@pytest.fixture
def restart(host: Host) -> Callable[..., str]:
    """Have the role hardening's program on this server, and run it."""
    inventory = Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent
    words = ["ansible", host.check_output("hostname"), f"--inventory={inventory}", "--become"]
    subprocess.run([*words, "--module-name=carafe.stack.hardening"], check=True)
    program = "python3 /usr/local/lib/carafe/restart-upgraded"
    return lambda *options: host.check_output(" ".join([program, *options]))


def upgrade(host: Host, path: str) -> None:
    """Put a new file into the place of one that is in use, as a package does."""
    real = host.check_output("readlink -e %s", path)
    host.check_output("cp -a %s %s.dpkg-new && mv %s.dpkg-new %s", real, real, real, real)


def test_an_upgraded_python_reaches_slots_and_workers(
    heavy_load: Load, host: Host, restart: Callable[..., str]
) -> None:
    heavy_load.go_on(400)
    upgrade(host, "/usr/bin/python3")
    listed = restart("--list")
    assert listed.count("would be restarted: /usr/bin/python3") >= 3
    said = restart()
    for number in (0, 1):
        assert f"ledger: slot {number} restarted in " in said
    assert "ledger.jobs:ledger.jobs_0 restarted: /usr/bin/python3" in said
    heavy_load.go_on(600)
    left = [line for line in restart("--list").splitlines() if "/usr/bin/python3" in line]
    # It holds the socket of the slots.
    assert "supervisor.service" in [line.partition(" ")[0] for line in left]
    assert not [line for line in left if "ledger" in line]


def test_an_upgraded_library_reaches_nginx_and_what_waits_is_named(
    lossy: Load, host: Host, restart: Callable[..., str]
) -> None:
    pid = "systemctl show --property=MainPID --value nginx"
    before = host.check_output(pid)
    lossy.go_on(400)
    upgrade(host, host.check_output("ldd /usr/sbin/nginx | grep -o '/[^ ]*libcrypto[^ ]*'"))
    began = lossy.now
    said = restart()
    ended = lossy.now
    assert "nginx gave way to a successor" in said
    assert "systemctl restart postgresql@" in said
    lossy.go_on(600)
    assert host.check_output(pid) != before
    assert host.check_output("systemctl is-active nginx") == "active"
    # It closes connections that are idle, and who asks something at that moment asks again.
    print(f"a successor of nginx: {len(lossy.failures)} lost of {len(lossy.answers)}")
    assert all(x.due <= ended and x.due + x.seconds >= began for x in lossy.failures)
