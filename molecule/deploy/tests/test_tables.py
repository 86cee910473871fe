"""An app that makes its tables itself, keeps a file of SQLite's, and is set up once; and locks."""

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from conftest import SCENARIO
from testinfra.host import Host

# All of them run playbooks, by a fixture of a fixture.
pytestmark = pytest.mark.newest_release

DIARY = {
    "app_name": "diary",
    "app_path": str(SCENARIO / "files/diary"),
    "app_domains": ["diary.test"],
    "app_workers": [],
    "app_schedules": [],
    "app_static": {},
    "app_alembic": "",
    "app_shared": ["data"],
    "app_migrate_command": "",
}
MIGRATES = {
    "app_user_migrates": True,
    "app_migrate_command": "python migrate.py",
    "app_migrate_tries": 1,
    "app_setup_command": "python set_up.py",
}
# As who makes a report would: it holds what it reads until it ends.
REPORT = """
export PGAPPNAME='monthly report'
runuser -u postgres -- psql diary -c 'BEGIN' -c 'SELECT count(*) FROM public.pages' \
    -c 'SELECT pg_sleep(120)' >/dev/null 2>&1 </dev/null &
"""
KEY = "only-in-a-file-0123456789"
PID = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%sleep(120)' AND pid <> pg_backend_pid()"


@pytest.fixture
def run(playbook: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., str]:
    """Run a playbook for the diary, which is to fail or not; return what the screen shows."""

    def tried(name: str, fails: bool = False, **variables: object) -> str:
        done = playbook(name, **DIARY | variables)
        said = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, said
        return said

    return tried


def reason(said: str) -> str:
    """Return the last thing that was said before the recap, in one line."""
    return " ".join(said.partition("PLAY RECAP")[0].rpartition("fatal: ")[2].split())


@pytest.fixture
def asking(url: str) -> Iterator[Callable[[], list[float]]]:
    """Ask the diary all the time, and get how many seconds each answer took."""
    took: list[float] = []
    goes_on = True

    def ask() -> None:
        while goes_on:
            began = time.monotonic()
            answer = requests.get(url, headers={"Host": "diary.test"}, timeout=20)
            assert answer.status_code == 200, answer.text
            took.append(time.monotonic() - began)
            time.sleep(0.05)

    with ThreadPoolExecutor() as pool:
        asker = pool.submit(ask)

        def stop() -> list[float]:
            nonlocal goes_on
            goes_on = False
            asker.result()
            return took

        yield stop
        goes_on = False


def test_an_app_that_makes_its_tables_itself_comes_to_serve(
    host: Host, run: Callable[..., str], url: str
) -> None:
    said = reason(run("site", fails=True, **MIGRATES))
    assert "failed at the step migrate: app_setup_command: exit status 1; nothing serves" in said
    assert "directory: 'data/ready' Nothing serves yet. Mend that, and run again: " in said
    said = reason(run("deploy", fails=True, **MIGRATES))
    assert "not finished. Site comes first, run: " in said
    assert "data/ready" not in said
    host.check_output("touch /srv/diary/shared/data/ready")
    run("site", **MIGRATES)
    shown = requests.get(url, headers={"Host": "diary.test"}, timeout=20).json()
    assert shown == {"pages": 0, "set up": 1}
    # It may write what it keeps, and is not set up anew. A secret file is for it, and for no build.
    said = run(
        "deploy",
        **MIGRATES,
        app_secret_files={"key": KEY},
        app_environment={"KEY_FILE": "@secrets@/key"},
        app_build_commands=['test -d "$APP_SECRETS"; test ! -e "$KEY_FILE"'],
        app_hooks={"before_migrate": ['test -s "$KEY_FILE"']},
    )
    shown = requests.get(url, headers={"Host": "diary.test"}, timeout=20).json()
    assert shown == {"pages": 0, "set up": 1, "key": KEY}
    path = "/srv/diary/serving/secret-files/key"
    assert host.check_output("stat -c '%%a %%U %%G' %s", path) == "640 root diary"
    assert host.run("runuser -u www-data -- cat %s", path).rc != 0
    assert KEY not in said
    assert not host.run("grep -rl %s /srv/diary/logs /srv/diary/state", KEY).stdout


def test_nobody_waits_for_a_migration_that_waits(
    host: Host,
    run: Callable[..., str],
    asking: Callable[[], list[float]],
    eventually: Callable[..., None],
) -> None:
    changed = MIGRATES | {
        "app_environment": {"WORD": "of a changed table"},
        "app_migrate_command": "python migrate.py 'ALTER TABLE pages ADD IF NOT EXISTS text text'"
        " 'CREATE UNIQUE INDEX CONCURRENTLY days ON pages (day)'",
    }
    query = "runuser -u diary -- psql -XAtc %s diary"
    host.check_output(query, "INSERT INTO pages SELECT now() FROM generate_series(1, 2)")
    host.check_output(REPORT)
    who = ("runuser -u postgres -- psql -XAtc %s", PID)
    eventually(lambda: host.check_output(*who))
    pid = host.check_output(*who)
    said = reason(run("deploy", fails=True, **changed))
    assert "the database did not let it have a lock, once; " in said
    since = r"active, since [\d:]+ UTC, for \d+ s: SELECT pg_sleep"
    named = rf"process {pid} of postgres \(monthly report\), {since}"
    assert re.search(named, said), said
    assert max(asking()) < 5
    host.check_output(f"runuser -u postgres -- psql -XAtc 'SELECT pg_terminate_backend({pid})'")
    # The same command goes through; the next one, which is no transaction, leaves a half of itself.
    said = reason(run("deploy", fails=True, **changed))
    assert "DROP INDEX CONCURRENTLY public.days;" in said
    host.check_output(query, "DROP INDEX CONCURRENTLY public.days")
    host.check_output(query, "DELETE FROM pages")
    run("deploy", **changed)
