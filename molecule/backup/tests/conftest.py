"""What the tests of backups share."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

STATE = "/var/lib/carafe/backup"
LIBRARY = """
import json, sys
sys.path.insert(0, "/usr/local/lib/carafe/backup")
from carafe import backup_jobs, backup_restore, backup_state
from carafe.commands import Failure
try:
    print(json.dumps({}))
except Failure as failure:
    print(json.dumps({{"refused": str(failure)}}))
"""
Admin = Callable[..., str]
Job = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def admin(host: Host) -> Admin:
    """Run a statement as the superuser, over the unix socket."""

    def run(statement: str, database: str = "shop") -> str:
        return host.check_output(
            "runuser -u postgres -- psql -XqAt -v ON_ERROR_STOP=1 -c %s %s", statement, database
        )

    return run


@pytest.fixture(scope="module")
def called(host: Host) -> Callable[[str], Any]:
    """Call a function of the program on the server; a refusal is returned as such."""
    return lambda text: json.loads(host.check_output("python3 -I -c %s", LIBRARY.format(text)))


def state(host: Host, what: str) -> dict[str, Any]:
    return json.loads(host.check_output("cat %s/%s.json", STATE, what))


@pytest.fixture(scope="module")
def job(host: Host) -> Job:
    """Run a job as its timer does; return what it has left of itself."""

    def run(unit: str) -> dict[str, Any]:
        began = float(host.check_output("date +%s"))
        # A few of these within seconds are too many for systemd.
        host.run("systemctl reset-failed carafe-backup-%s", unit)
        host.run("systemctl start carafe-backup-%s", unit)
        what = f"database-{unit}" if unit in ("full", "diff", "incr") else unit
        left = state(host, what.replace("restore@", "restore-"))
        assert left["ended"] >= began
        return left

    return run


@pytest.fixture(scope="module")
def first_stored(host: Host) -> Callable[[], None]:
    """Wait for the backups that the role has begun."""

    def wait() -> None:
        for unit, what in (("full", "database-full"), ("files-shop", "files-shop")):
            deadline, ask = time.monotonic() + 120, f"systemctl is-active carafe-backup-{unit}"
            while host.run(ask).stdout.strip() == "activating":
                assert time.monotonic() < deadline
                time.sleep(0.5)
            assert state(host, what)["result"] == "ok"

    return wait


@pytest.fixture(scope="module", autouse=True)
def stored(first_stored: Callable[[], None]) -> None:
    first_stored()


@pytest.fixture
def problems(called: Callable[[str], Any]) -> Callable[..., list[str]]:
    """Ask what is wrong, of one level; each has its next command."""

    def ask(level: str = "red") -> list[str]:
        found = called("backup_state.problems()")
        assert all(x["next"] for x in found)
        return [x["what"] for x in found if x["level"] == level]

    return ask


@pytest.fixture
def playbook(host: Host) -> Callable[..., tuple[bool, str]]:
    """Run a playbook of the scenario's on this server."""

    def run(book: str, **variables: str) -> tuple[bool, str]:
        name = host.check_output("hostname")
        given = {"backup_restore_to": "", "backup_restore_moment": "", **variables}
        done = subprocess.run(
            [
                *("ansible-playbook", "--limit", name, "--extra-vars", json.dumps(given)),
                *("--inventory", Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent),
                Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"]) / f"{book}.yml",
            ],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"},
        )
        return done.returncode == 0, done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def rows(admin):
    """Have a table of the owner's; return what adds a row, with its moment."""
    if admin("SELECT to_regclass('public.rows') IS NULL") == "t":
        admin(
            'SET ROLE "shop-owner"; CREATE TABLE public.rows (text text, at timestamptz DEFAULT'
            " clock_timestamp()); GRANT INSERT, SELECT ON public.rows TO shop;"
            " CREATE INDEX ON public.rows USING gin (text public.gin_trgm_ops)"
        )

    def add(text):
        return admin(f"INSERT INTO public.rows VALUES ('{text}') RETURNING at")

    return add


@pytest.fixture(scope="module")
def texts(admin):
    return lambda: admin("SELECT string_agg(text, ' ' ORDER BY at) FROM public.rows")
