"""Under load, a process of the stack is killed or restarted; what is lost is known, and bounded."""

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from conftest import Load
from testinfra.host import Host

# What happens to each daemon on Debian 12 is what molecule/default tests.
pytestmark = pytest.mark.newest_release
MASTER = "supervisorctl pid ledger:ledger_0"


@pytest.fixture
def lossy(
    url: str, rows: Callable[[], list[str]], request: pytest.FixtureRequest
) -> Iterator[Load]:
    """Load during the test, which may lose requests, but nothing that it has acknowledged."""
    before = rows()
    with Load(url, getattr(request, "param", 200)) as site:
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


# What is restarted is met by each request of some seconds: no need to have many.
@pytest.mark.parametrize("lossy", [50], indirect=True)
def test_supervisord_is_restarted_by_a_deployment(
    lossy: Load,
    playbook: Callable[..., subprocess.CompletedProcess[str]],
    code: Callable[[str], Path],
    host: Host,
) -> None:
    supervisord = host.check_output("cat /run/supervisord.pid")
    lossy.go_on(100)
    began = lossy.now
    run = playbook("site", ledger_path=str(code("restarted")), supervisor_log_level="warn")
    assert run.returncode == 0, run.stdout
    assert host.check_output("cat /run/supervisord.pid") != supervisord
    ended = lossy.now
    lossy.go_on(150)
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


def test_an_upgraded_library_reaches_nginx(
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
    lossy.go_on(600)
    assert host.check_output(pid) != before
    assert host.check_output("systemctl is-active nginx") == "active"
    # It closes connections that are idle, and who asks something at that moment asks again.
    print(f"a successor of nginx: {len(lossy.failures)} lost of {len(lossy.answers)}")
    assert all(x.due <= ended and x.due + x.seconds >= began for x in lossy.failures)


JOBS = "ledger.jobs:ledger.jobs_0"
STARTED = "SELECT extract(epoch FROM pg_postmaster_start_time())"


@pytest.fixture
def stale(host: Host) -> Callable[[], None]:
    """Have PostgreSQL be upgraded, and not restarted."""
    return lambda: upgrade(host, host.check_output("ls /usr/lib/postgresql/*/bin/postgres"))


@pytest.fixture
def started(host: Host) -> Callable[[], str]:
    """Get the moment at which PostgreSQL was started."""
    return lambda: host.check_output("runuser -u ledger -- psql -XAtc %s ledger", STARTED)


@pytest.fixture
def running(host: Host, eventually: Callable[..., None]) -> Callable[[str], None]:
    """Wait until supervisord runs a process."""
    status = "supervisorctl status %s"
    return lambda process: eventually(lambda: "RUNNING" in host.run(status, process).stdout)


@pytest.fixture
def asked(url: str) -> Iterator[Callable[[int], Future[int]]]:
    """Ask for what takes PostgreSQL some seconds, and get the status of the answer, later."""
    with ThreadPoolExecutor() as pool:

        def ask(seconds: int) -> Future[int]:
            answer = pool.submit(requests.get, f"{url}/query/{seconds}", timeout=60)
            time.sleep(0.5)
            return pool.submit(lambda: answer.result().status_code)

        yield ask


def test_an_upgraded_postgresql_is_restarted_while_requests_wait(
    heavy_load: Load,
    restart: Callable[..., str],
    stale: Callable[[], None],
    started: Callable[[], str],
    asked: Callable[[int], Future[int]],
    running: Callable[[str], None],
) -> None:
    heavy_load.go_on(200)
    for seconds in (0, 3, 1):
        stale()
        before = started()
        assert "would be restarted while requests wait" in restart("--list")
        answer = asked(seconds)
        said = restart()
        assert "restarted, while requests waited for " in said
        print(said)
        assert started() != before
        assert answer.result() == 200
        heavy_load.go_on(200)
    assert "postgresql" not in restart("--list")
    running(JOBS)
    print(f"the longest wait: {heavy_load.stall():.1f} s")


@pytest.mark.parametrize("killed", [False, True], ids=["in vain", "killed meanwhile"])
def test_for_a_request_that_goes_on_postgresql_is_left_alone(
    load: Load,
    host: Host,
    restart: Callable[..., str],
    stale: Callable[[], None],
    started: Callable[[], str],
    asked: Callable[[int], Future[int]],
    running: Callable[[str], None],
    eventually: Callable[..., None],
    killed: bool,
) -> None:
    stale()
    before = started()
    answer = asked(15)
    if killed:
        host.run("timeout --signal=KILL 4 python3 /usr/local/lib/carafe/restart-upgraded")
    else:
        said = restart()
        assert "; a request takes longer than 10 s. When it suits: systemctl restart post" in said
    masters = host.check_output("supervisorctl pid ledger:ledger_0 ledger:ledger_1").split()
    eventually(lambda: "T" not in host.check_output(f"ps -o state= {' '.join(masters)}"))
    assert answer.result() == 200
    load.go_on(100)
    assert started() == before
    running(JOBS)


def test_for_who_is_connected_postgresql_is_left_alone(
    load: Load, host: Host, restart: Callable[..., str], stale: Callable[[], None]
) -> None:
    stale()
    query = "psql -c 'SELECT pg_sleep(5)' ledger"
    host.check_output(f"runuser -u ledger-deploy -- {query} >/dev/null 2>&1 &")
    load.go_on(50)
    assert re.search(r"; psql \(\d+\)[^;]* may be using it\. When it suits", restart())
