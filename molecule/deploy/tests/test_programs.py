"""What works beside the web: background workers and schedules, as the inventory has them."""

import subprocess
from collections.abc import Callable

import pytest
from testinfra.host import Host


def test_schedule_runs_in_the_release_that_serves(host: Host, serving: Callable[[], str]) -> None:
    host.check_output("systemctl start ledger.tick.service")
    said = host.check_output(
        "journalctl --unit ledger.tick --identifier ledger.tick --lines 1 --output cat"
    )
    assert said == f'tick of {serving()}: 100% "quoted" back\\slash /srv/ledger'
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
        return done.stdout

    return run


@pytest.mark.newest_release
def test_what_is_not_in_the_lists_any_more_is_gone(host: Host, site: Callable[..., str]) -> None:
    files = (
        "ls /etc/supervisor/conf.d /etc/systemd/system /etc/systemd/system/timers.target.wants"
        " | grep ^ledger[.].*[.]"
    )
    before = host.check_output(files).split()
    timer = "ledger.tick.timer"
    assert before == ["ledger.workers.conf", "ledger.tick.service", timer, timer]
    site(
        app_workers=[],
        app_schedules=[{"name": "tock", "command": "true", "when": "Mon 03:00"}],
    )
    after = host.check_output(files).split()
    timer = "ledger.tock.timer"
    assert after == ["ledger.tock.service", timer, timer]
    assert "jobs" not in host.check_output("supervisorctl status || true")
    assert "ledger.tick" not in host.check_output("systemctl list-timers --all")
    site(app_schedules=[{"name": "tock", "command": "true", "when": "Tue 03:00"}])
    assert "Tue " in host.check_output("systemctl list-timers --all ledger.tock.timer")
    assert "RUNNING" in host.check_output("supervisorctl status ledger.jobs:*")
