"""A deployment that is killed at any step, and then run again, ends as one that was not."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Load
from testinfra.host import Host

STEPS = ("unpack", "build", "load", "migrate", "probe", "switch", "finish")


# What the lock names last is what is at work; the first step is before the lock, and begins a log.
BEGAN = {step: f"grep -q '\"{step}\"' /srv/ledger/lock.json" for step in STEPS}
BEGAN["unpack"] = (
    "test $(ls /srv/ledger/logs | wc -l) != $(grep -c began /srv/ledger/releases.json)"
)

FILES = "cd %s && find . %s -printf '%%P %%y %%M %%u %%g\n' | sort"
SLOTS = """
for slot in 0 1; do
  tr '\\0' '\\n' </proc/$(supervisorctl pid ledger:ledger_$slot)/environ | grep ^APP_RELEASE
done
"""


@pytest.fixture
def state(host: Host) -> Callable[[], dict]:
    """Get what a deployment leaves on the server, without the names and times that differ."""

    def read() -> dict:
        current = host.check_output("basename $(readlink /srv/ledger/current)")
        books = json.loads(host.file("/srv/ledger/releases.json").content_string)
        release = f"/srv/ledger/releases/{current}"
        code = "-not -name '*.css*' -not -path '*/__pycache__/*'"
        return {
            "files": host.check_output(FILES % ("/srv/ledger", "-maxdepth 1")),
            "release": host.check_output(FILES % (release, code)),
            "books": sorted(books[current]),
            "broken": [name for name in books if "broken" in books[name]],
            "slots": set(host.check_output(SLOTS).split()) == {f"APP_RELEASE={current}"},
        }

    return read


@pytest.mark.parametrize("step", STEPS)
def test_killed_deployment_is_made_up_for(
    load: Load,
    host: Host,
    command: Callable[..., list[str]],
    playbook: Callable[..., subprocess.CompletedProcess[str]],
    code: Callable[[str], Path],
    state: Callable[[], dict],
    step: str,
) -> None:
    clean = playbook("deploy", ledger_path=str(code(f"clean{step}")))
    assert clean.returncode == 0, clean.stdout
    wanted = state()
    changed = str(code(f"killed{step}"))
    run = subprocess.Popen(
        command("deploy", ledger_path=changed),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while host.run(BEGAN[step]).rc and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    if step != "unpack":
        refused = playbook("deploy", ledger_path=changed)
        assert refused.returncode != 0
        assert "It is dead" in refused.stdout + refused.stderr
    again = playbook("deploy", ledger_path=changed, app_break_lock=True)
    assert again.returncode == 0, again.stdout
    assert state() == wanted
    # Nothing is left to do.
    idle = playbook("deploy", ledger_path=changed)
    assert " changed=0 " in idle.stdout, idle.stdout
