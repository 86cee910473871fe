"""The server's power fails at random moments of what takes long, and comes back."""

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REPOSITORY, Load
from testinfra.host import Host

SEED = 20261127
CHOICE = random.Random(SEED)
MOMENTS = [round(CHOICE.uniform(1, 25), 1) for _ in range(8)]
BACKUPS = [round(CHOICE.uniform(3, 14), 1) for _ in range(3)]
COPIES = [round(CHOICE.uniform(0.2, 5), 1) for _ in range(2)]
RESTORES = [round(CHOICE.uniform(4, 30), 1) for _ in range(4)]
PROBLEMS = """
import sys
sys.path.insert(0, "/usr/local/lib/carafe/backup")
from carafe import backup_state
print(*(x["what"] for x in backup_state.problems() if x["level"] == "red"), sep="; ")
"""
BACK = 30  # seconds until a server serves again whose power has failed
PHOTO = "/srv/ledger/shared/uploads/photo"


def end(words: list[str]) -> None:
    """Run a command that is to end well."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def red(host: Host) -> Callable[[], str]:
    """Get what is wrong with the backups."""
    return lambda: host.check_output("python3 -I -c %s", PROBLEMS)


@pytest.fixture
def run(command: Callable[..., list[str]]) -> Callable[..., None]:
    """Run a playbook that is to end well."""

    return lambda playbook, **variables: end(command(playbook, **variables))


@pytest.fixture
def kept(host: Host) -> Callable[[], dict[str, set[str]]]:
    """Get the rows of each database that a restore has replaced."""

    def ask(query: str, database: str) -> list[str]:
        words = "runuser -u postgres -- psql -XAtc %s %s"
        return host.check_output(words, query, database).split()

    def read() -> dict[str, set[str]]:
        names = ask("SELECT datname FROM pg_database WHERE datname ~ '^ledger_before_'", "postgres")
        return {name: set(ask("SELECT id FROM public.rows", name)) for name in names}

    return read


@pytest.fixture
def fail(
    kill_server: Callable[[], None], serves: Callable[[], float], host: Host
) -> Callable[[list[str], float], None]:
    """Let the power fail while a command is at work, and wait until the site serves again."""

    def run(words: list[str], seconds: float) -> None:
        work = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ
        )
        time.sleep(seconds)  # the moment at which it happens, not something that is waited for
        is_over = work.poll() is not None
        kill_server()
        # Behind the page of a switch that was cut short, the same command lets visitors in.
        is_closed = host.file("/var/lib/nginx/maintenance-ledger/on").exists
        lasts = 0 if is_closed else serves()
        said = work.communicate()[0]
        how = "it was over" if is_over else "the page was on" if is_closed else "it was at work"
        print(f"power fails after {seconds} s, {how}: serves {lasts:.1f} s later")
        assert lasts < BACK
        assert is_over or work.returncode != 0, said

    return run


@pytest.mark.parametrize("seconds", MOMENTS)
def test_the_power_fails_during_a_deployment(
    tmp_path: Path,
    command: Callable[..., list[str]],
    kill_server: Callable[[], None],
    serves: Callable[[], float],
    books: Callable[[], dict],
    rows: Callable[[], list[str]],
    seconds: float,
) -> None:
    noted, before = books(), set(rows())
    path = tmp_path / "ledger"
    shutil.copytree(REPOSITORY / "molecule/deploy/files/ledger", path)
    (path / "ledger/static/word.css").write_text(f"{seconds}")
    deployment = subprocess.Popen(
        command("deploy", ledger_path=str(path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    time.sleep(seconds)  # the moment at which it happens, not something that is waited for
    is_over = deployment.poll() is not None
    kill_server()
    print(f"power fails after {seconds} s: serves {serves():.1f} s later")
    said = deployment.communicate()[0]
    assert is_over or deployment.returncode != 0, said
    assert set(rows()) >= before
    # What serves is the release before or the new one, and the books say which.
    has = books()
    assert has["serving"] in has["known"] or has["serving"] == noted["serving"]
    again = subprocess.run(
        command("deploy", ledger_path=str(path), app_break_lock=True),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert again.returncode == 0, again.stdout
    serves()
    assert set(rows()) >= before


@pytest.mark.parametrize(
    ("work", "seconds"),
    [*(("backup", x) for x in BACKUPS), *(("copy", x) for x in COPIES)],
)
def test_the_power_fails_during_a_backup_or_its_copy(
    load: Load,
    command: Callable[..., list[str]],
    docker_name: str,
    fail: Callable[[list[str], float], None],
    red: Callable[[], str],
    eventually: Callable[..., None],
    work: str,
    seconds: float,
) -> None:
    load.go_on(20)
    words = command("backup", backup_type="full")
    if work == "copy":
        end(words)
        words = ["docker", "exec", docker_name, "systemctl", "start", "carafe-backup-copy"]
    fail(words, seconds)
    end(words)
    eventually(lambda: red() == "")


@pytest.mark.parametrize("seconds", RESTORES)
def test_the_power_fails_during_a_restore(
    host: Host,
    url: Callable[[], str],
    command: Callable[..., list[str]],
    fail: Callable[[list[str], float], None],
    run: Callable[..., None],
    kept: Callable[[], dict[str, set[str]]],
    rows: Callable[[], list[str]],
    serves: Callable[[], float],
    red: Callable[[], str],
    eventually: Callable[..., None],
    seconds: float,
) -> None:
    with Load(url(), 20) as site:
        site.go_on(80)
    before = set(rows())
    host.check_output(f"echo {seconds} >{PHOTO}")
    run("backup", backup_type="incr")
    moment = host.check_output("runuser -u postgres -- psql -XAtc 'SELECT clock_timestamp()'")
    with Load(url(), 20) as site:
        site.go_on(80)
    after = set(rows())
    assert after >= before | set(site.acknowledged) > before
    host.check_output("rm %s", PHOTO)
    given = {"restore_to": moment, "restore_confirm": "ledger"}
    fail(command("restore", **given), seconds)
    assert set(rows()) >= before
    run("restore", **given)
    serves()
    assert set(rows()) == before
    assert host.file(PHOTO).content_string == f"{seconds}\n"
    # What it replaced is there, with all that was acknowledged.
    assert set().union(*kept().values()) >= after
    for name in kept():
        run("restore", restore_drop=name.removeprefix("ledger_before_"), restore_confirm="ledger")
    assert kept() == {}
    assert not host.file("/var/lib/carafe/backup/restoring-ledger.json").exists
    run("backup", backup_type="incr")
    eventually(lambda: red() == "")
