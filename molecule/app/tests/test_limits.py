"""What an app may take of the server that others need."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
import requests
from testinfra.host import Host

# Starts processes without end, and leaves those that it got for a while.
BOMB = """
import os, sys, time
count = 0
try:
    while count < 3000:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        count += 1
except OSError as error:
    print(count, error.strerror, flush=True)
time.sleep(60)
"""
LIMIT = 1000  # converge.yml


@pytest.fixture
def bomb(host: Host, docker_name: str) -> Iterator[str]:
    """Have the app isso start all the processes that it can; return what it said."""
    host.check_output("printf %%s %s >/tmp/bomb.py", BOMB)
    process = subprocess.Popen(
        ["docker", "exec", docker_name, "/srv/isso/bin/run", "python3", "/tmp/bomb.py"],
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process.stdout.readline()
    # Its slots and what it left in the background, which supervisord starts again.
    host.run("pkill -KILL -u isso")
    process.kill()
    process.wait()
    host.check_output("rm /tmp/bomb.py")


def test_an_app_that_starts_processes_without_end_leaves_its_neighbour_serving(
    host: Host,
    bomb: str,
    site: Callable[..., requests.Response],
    eventually: Callable[..., None],
) -> None:
    count, _, error = bomb.partition(" ")
    assert error == "Resource temporarily unavailable\n"
    assert int(count) < LIMIT
    # It has none left itself.
    assert host.run("/srv/isso/bin/run true").rc != 0
    # The neighbour answers, and starts what it needs.
    began = time.monotonic()
    assert site("/get", host="httpbin.test").status_code == 200
    host.check_output("supervisorctl restart httpbin:httpbin_0")
    eventually(lambda: site("/get", host="httpbin.test").status_code == 200, seconds=10)
    assert time.monotonic() - began < 10


def test_all_that_runs_an_app_s_code_has_the_limit(
    host: Host, eventually: Callable[..., None]
) -> None:
    def limits() -> list[list[str]]:
        """Of a slot's master and one of its workers."""
        found = host.run(
            "pid=$(supervisorctl pid isso:isso_0)"
            ' && worker=$(pgrep -P $pid | head -n 1) && test -n "$worker"'
            " && grep -h '^Max processes' /proc/$pid/limits /proc/$worker/limits"
        )
        return [line.split()[2:4] for line in found.stdout.splitlines()]

    # It may be about to start again, when what the test before has left of processes ends.
    eventually(lambda: limits() == [[str(LIMIT), str(LIMIT)]] * 2, seconds=30)
    for option in ("", "-m"):
        assert host.check_output(f"/srv/isso/bin/run {option} sh -c 'ulimit -p'") == str(LIMIT)


SLICE = "carafe-isso.slice"


def test_the_slice_says_what_the_app_may_have(host: Host) -> None:
    shown = host.check_output(f"systemctl show -P MemoryMax -P TasksMax {SLICE}")
    assert shown.split() == [str(700 * 2**20), str(LIMIT)]


@pytest.mark.parametrize("program", ["isso:isso_0", "isso:isso_1"])
def test_what_supervisord_starts_of_an_app_is_in_its_slice(host: Host, program: str) -> None:
    pid = host.check_output("supervisorctl pid %s", program)
    for process in (pid, *host.run(f"pgrep -P {pid}").stdout.split()):
        assert f"/{SLICE}/carafe-supervised-" in host.check_output(f"cat /proc/{process}/cgroup")
        # It has left the service, and not its sandbox.
        assert "Seccomp:\t2" in host.check_output(f"cat /proc/{process}/status")


def test_a_schedule_of_the_app_is_in_its_slice(host: Host) -> None:
    host.check_output("systemctl start isso.where.service")
    assert f"/{SLICE}/" in host.check_output("journalctl -t isso.where --output cat -n 20")


def test_a_killed_supervisord_leaves_nothing_behind_and_comes_back(
    host: Host, site: Callable[..., requests.Response], eventually: Callable[..., None]
) -> None:
    programs = ["isso:isso_0", "isso:isso_1"]
    before = [host.check_output("supervisorctl pid %s", x) for x in programs]
    host.check_output("systemctl kill --kill-whom=main --signal=KILL supervisor")
    eventually(lambda: not any(host.file(f"/proc/{x}").exists for x in before), seconds=20)
    eventually(lambda: site("/?uri=/", host="comments.test").status_code < 500, seconds=20)
    after = [host.check_output("supervisorctl pid %s", x) for x in programs]
    assert not set(before) & set(after)
    scopes = host.check_output("systemctl list-units --plain --no-legend carafe-supervised-*")
    assert len(scopes.splitlines()) == len(programs) + 2  # those of httpbin
