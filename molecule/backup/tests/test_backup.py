"""What is stored is whole, comes back as it was, and what is wrong with it is told."""

import json
import time

import pytest

STATE = "/var/lib/carafe/backup"


@pytest.fixture(scope="module")
def admin(host):
    """Run a statement as the superuser, over the unix socket."""

    def run(statement, database="shop"):
        return host.check_output(
            "runuser -u postgres -- psql -XqAt -v ON_ERROR_STOP=1 -c %s %s", statement, database
        )

    return run


@pytest.fixture(scope="module")
def job(host):
    """Run a job as its timer does; return what it has left of itself."""

    def run(unit, what=""):
        host.run("systemctl start carafe-backup-%s", unit)
        return state(host, what or unit)

    return run


def state(host, what):
    return json.loads(host.check_output("cat %s/%s.json", STATE, what))


@pytest.fixture(scope="module")
def stored(host, job):
    """Wait for the backups that the role has begun."""
    for unit, what in (("full", "database-full"), ("files-shop", "files-shop")):
        until = time.monotonic() + 120
        while host.run("systemctl is-active carafe-backup-%s", unit).stdout.strip() == "activating":
            assert time.monotonic() < until
            time.sleep(0.5)
        assert state(host, what)["result"] == "ok"


PROBLEMS = """
import json, sys
sys.path.insert(0, "/usr/local/lib/carafe/backup")
from carafe import backup_state
print(json.dumps(backup_state.problems()))
"""


@pytest.fixture
def problems(host):
    def ask(level="red"):
        found = json.loads(host.check_output("python3 -I -c %s", PROBLEMS))
        assert all(x["next"] for x in found)
        return [x["what"] for x in found if x["level"] == level]

    return ask


def test_nothing_is_wrong(problems, stored):
    assert problems() == []


@pytest.mark.parametrize(
    ("path", "mode", "group"),
    [
        ("/etc/pgbackrest/pgbackrest.conf", 0o640, "postgres"),
        ("/etc/carafe/backup/setup.json", 0o600, "root"),
        ("/backup/files", 0o700, "root"),
        ("/backup/pgbackrest", 0o750, "postgres"),
        (f"{STATE}/database-full.json", 0o640, "root"),
    ],
)
def test_nobody_else_reads_the_key_or_what_is_stored(host, stored, path, mode, group):
    file = host.file(path)
    assert (file.mode, file.group) == (mode, group)


def test_a_new_cluster_has_checksums(admin):
    assert admin("SHOW data_checksums") == "on"


@pytest.mark.parametrize("unit", ["full", "diff", "incr", "marker", "drill", "files-shop"])
def test_timers_begin_all_of_it_at_each_boot_too(host, unit):
    timer = host.service(f"carafe-backup-{unit}.timer")
    assert timer.is_enabled
    assert timer.is_running


def test_a_job_takes_what_nobody_else_wants(host):
    shown = host.check_output(
        "systemctl show -p Nice,IOSchedulingClass,CPUWeight %s", "carafe-backup-drill"
    )
    assert shown.splitlines() == ["CPUWeight=10", "Nice=19", "IOSchedulingClass=3"] or (
        "Nice=19" in shown and "CPUWeight=10" in shown
    )


def test_no_secret_is_in_a_unit_or_on_a_command_line(host):
    key = "a-key-that-opens-the-backups-of-this-test"
    assert host.run("grep -r %s /etc/systemd /usr/local/lib/carafe", key).rc == 1
