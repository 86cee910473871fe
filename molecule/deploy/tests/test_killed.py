"""A deployment that is killed at any step, and then run again, ends as one that was not."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import LINEAR, WAITS, Load
from testinfra.host import Host

STEPS = ("unpack", "build", "load", "migrate", "probe", "switch", "slots", "workers", "finish")


# What the lock names last is what is at work; the first step is before the lock, and begins a log.
BEGAN = {step: f"grep -q '\"{step}\"' /srv/ledger/state/lock.json" for step in STEPS}
BEGAN["unpack"] = (
    "test $(ls /srv/ledger/logs | wc -l) != $(grep -c began /srv/ledger/state/releases.json)"
)
BEGAN["slots"] = (
    "test -e /srv/ledger/state/lock.json"
    " && tr '\\0' '\\n' </proc/$(supervisorctl pid ledger:ledger_0)/environ"
    " | grep -qx APP_RELEASE=$(basename $(readlink /srv/ledger/serving))"
    " && test $(basename $(readlink /srv/ledger/serving)) != %s"
)

FILES = "cd %s && find . %s -printf '%%P %%y %%M %%u %%g\n' | sort"
PROCESSES = """
for process in ledger:ledger_0 ledger:ledger_1 ledger.jobs:ledger.jobs_0; do
  tr '\\0' '\\n' </proc/$(supervisorctl pid $process)/environ | grep ^APP_RELEASE
done
"""


@pytest.fixture
def state(host: Host) -> Callable[[], dict]:
    """Get what a deployment leaves on the server, without the names and times that differ."""

    def read() -> dict:
        current = host.check_output("basename $(readlink /srv/ledger/serving)")
        books = json.loads(host.file("/srv/ledger/state/releases.json").content_string)
        release = f"/srv/ledger/releases/{current}"
        code = "-not -name '*.css*' -not -path '*/__pycache__/*'"
        return {
            "files": host.check_output(FILES % ("/srv/ledger", "-maxdepth 1")),
            "release": host.check_output(FILES % (release, code)),
            # The very first release came from none.
            "books": sorted(books[current].keys() - {"from"}),
            "broken": [name for name in books if "broken" in books[name]],
            "processes": set(host.check_output(PROCESSES).split()) == {f"APP_RELEASE={current}"},
        }

    return read


@pytest.fixture
def kill(
    host: Host,
    command: Callable[..., list[str]],
    serving: Callable[[], str],
    go: Callable[[], object],
) -> Callable[[str, str], None]:
    """Begin a deployment of some code, and kill its run when a step is at work."""

    def run(step: str, path: str) -> None:
        # The last step is over too soon to be met.
        hooks = {"before_finish": [WAITS]}
        began = BEGAN[step].replace("%s", serving())
        deployment = subprocess.Popen(
            command("deploy", ledger_path=path, app_hooks=hooks),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=LINEAR,
        )
        try:
            while host.run(began).rc:
                assert deployment.poll() is None, f"it ended before {step}"
                time.sleep(0.05)
        finally:
            os.killpg(deployment.pid, signal.SIGKILL)
            deployment.communicate()
            go()

    return run


# Of the build, the test below says the same, and more.
@pytest.mark.either_release
@pytest.mark.parametrize("step", [step for step in STEPS if step != "build"])
def test_killed_deployment_is_made_up_for(
    load: Load,
    playbook: Callable[..., subprocess.CompletedProcess[str]],
    code: Callable[[str], Path],
    state: Callable[[], dict],
    kill: Callable[[str, str], None],
    step: str,
) -> None:
    wanted, path = state(), str(code(f"killed{step}"))
    kill(step, path)
    again = playbook("deploy", ledger_path=path, app_break_lock=True)
    assert again.returncode == 0, again.stdout
    assert state() == wanted


def test_lock_of_a_killed_deployment_is_told_from_one_at_work(
    load: Load,
    playbook: Callable[..., subprocess.CompletedProcess[str]],
    command: Callable[..., list[str]],
    code: Callable[[str], Path],
    state: Callable[[], dict],
    kill: Callable[[str, str], None],
    host: Host,
    go: Callable[[], object],
) -> None:
    wanted, path = state(), str(code("locked"))
    kill("build", path)
    refused = playbook("deploy", ledger_path=path)
    assert refused.returncode != 0
    assert "It is dead" in refused.stdout + refused.stderr
    assert "-e app_break_lock=true" in refused.stdout + refused.stderr
    host.check_output("rm /var/tmp/go")
    hooks = {"before_switch": [WAITS]}
    with subprocess.Popen(
        command("deploy", ledger_path=path, app_break_lock=True, app_hooks=hooks),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=LINEAR,
    ) as at_work:
        while host.run(BEGAN["switch"]).rc and at_work.poll() is None:
            time.sleep(0.05)
        second = playbook("deploy", ledger_path=str(code("second")))
        go()
        assert second.returncode != 0
        assert "It is at work on this machine" in second.stdout + second.stderr
    assert at_work.returncode == 0
    assert state() == wanted
    idle = playbook("deploy", ledger_path=path)
    assert " changed=0 " in idle.stdout, idle.stdout
