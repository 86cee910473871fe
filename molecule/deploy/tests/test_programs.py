"""What works beside the web: background workers and schedules, as the inventory has them."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from testinfra.host import Host

RUNS = "/srv/ledger/logs/schedules"


def test_schedule_runs_in_the_release_that_serves(host: Host, serving: Callable[[], str]) -> None:
    host.check_output("systemctl start ledger.tick.service")
    said = host.check_output(
        "journalctl --unit ledger.tick --identifier ledger.tick --lines 1 --output cat"
    )
    assert said == f'tick of {serving()}: 100% "quoted" back\\slash /srv/ledger/home'
    noted = json.loads(host.check_output("cat %s/tick.json", RUNS))[-1]
    assert (noted["result"], noted["output"]) == ("success", f"{said}\n")
    assert 0 <= noted["ended"] - noted["began"] < 60
    timer = host.check_output("systemctl list-timers --all ledger.tick.timer")
    assert "-01-01 00:00:00" in timer
    assert host.service("ledger.tick.timer").is_enabled


@pytest.fixture
def site(
    playbook: Callable[..., subprocess.CompletedProcess[str]],
) -> Callable[..., str]:
    """Run site.yml with other variables."""

    def run(**variables: object) -> str:
        done = playbook("site", **variables)
        assert done.returncode == 0, done.stdout
        # Warnings are wrapped.
        return " ".join((done.stdout + done.stderr).split())

    return run


@pytest.mark.newest_release
def test_what_is_not_in_the_lists_any_more_is_gone_and_a_schedule_that_fails_is_told_of(
    host: Host, site: Callable[..., str], playbook: Callable
) -> None:
    fails = {"name": "tock", "command": "echo no such cart; exit 3"}
    files = (
        "ls /etc/supervisor/conf.d /etc/systemd/system /etc/systemd/system/timers.target.wants"
        " | grep ^ledger[.].*[.]"
    )
    before = host.check_output(files).split()
    timer = "ledger.tick.timer"
    assert before == ["ledger.workers.conf", "ledger.tick.service", timer, timer]
    site(
        app_workers=[],
        app_schedules=[fails | {"when": "Mon 03:00"}],
    )
    after = host.check_output(files).split()
    timer = "ledger.tock.timer"
    assert after == ["ledger.tock.service", timer, timer]
    assert "jobs" not in host.check_output("supervisorctl status || true")
    assert "ledger.tick" not in host.check_output("systemctl list-timers --all")
    assert host.check_output("ls %s", RUNS) == ""
    assert host.run("systemctl start ledger.tock").rc == 1
    assert "no such cart" in playbook("schedules").stdout
    told = site(app_schedules=[fails | {"when": "Tue 03:00"}])
    assert "ledger, the schedule tock: its last run failed, exit status 3, at " in told
    assert "Tue " in host.check_output("systemctl list-timers --all ledger.tock.timer")
    assert "RUNNING" in host.check_output("supervisorctl status ledger.jobs:*")


# Asks the database who it is, by each way there is to it, and notes in which slice it runs.
ASK = """
for where in /run/postgresql /var/run/postgresql /tmp localhost ::1; do
  psql --no-password -XAtc 'SELECT session_user' -h $where ledger || true
done >/srv/ledger/cache/%s 2>&1
cat /proc/self/cgroup >>/srv/ledger/cache/%s
"""


def test_a_build_reaches_no_database_and_a_hook_beside_the_migration_does(
    playbook: Callable[..., subprocess.CompletedProcess[str]],
    code: Callable[[str], Path],
    host: Host,
) -> None:
    run = playbook(
        "deploy",
        ledger_path=str(code("asking")),
        app_build_commands=[ASK % ("build", "build")],
        app_hooks={"before_migrate": [ASK % ("hook", "hook")]},
    )
    assert run.returncode == 0, run.stdout
    said = {x: host.check_output("cat /srv/ledger/cache/%s", x) for x in ("build", "hook")}
    assert said["hook"].count("ledger-deploy") == 2, said["hook"]
    assert said["build"].count("psql: error: ") == 5, said["build"]
    assert "ledger-deploy" not in said["build"]
    assert all("/carafe-ledger.slice/" in text for text in said.values()), said
