"""A release goes through the gate, on real folders and processes: what serves, what is booked."""

from __future__ import annotations

import contextlib
import getpass
import io
import json
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from conftest import ROOT, load_module

RELEASE = ROOT / "roles/app/files/release.py"
DEPLOYMENT = ("unpack", "build", "load", "migrate", "probe", "switch", "finish")
ROLLBACK = ("choose", "probe", "switch", "finish")
LOCKED = 75

# Stands in for runuser and setpriv: the tests are one user.
BECOME = '#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n'
RUN = """#!/bin/sh
while getopts r:m option; do case $option in r) release=$OPTARG ;; m) ;; esac; done
shift $((OPTIND - 1))
cd "$release" && exec "$@"
"""
# A database that knows one number, the migration it is at, and code that knows its own.
ALEMBIC = """#!/bin/sh
case $1 in
  current) echo "$(cat ROOT/database) (head)" ;;
  history) echo "0001 -> 0002 (head), second"; echo "<base> -> 0001, first" ;;
  upgrade) cp head ROOT/database ;;
  downgrade) echo "$2" >ROOT/database ;;
esac
"""
# A supervisord of one process, which fails at its start where its release has a file "bad".
SUPERVISORCTL = """#!/bin/sh
cd ROOT
case $1 in
  status)
    if [ "$2" != 'worker:*' ]; then echo "${2%:*}: ERROR (no such group)"
    elif [ -e pid ]; then echo "worker:worker_0   RUNNING   pid $(cat pid), uptime 0:00:01"
    else echo "worker:worker_0   BACKOFF   Exited too quickly"; fi ;;
  restart)
    [ ! -e pid ] || kill "$(cat pid)"
    rm -f pid
    [ -e current/bad ] && exit 1
    APP_RELEASE=$(basename $(readlink current)) sleep 300 >/dev/null 2>&1 </dev/null &
    echo $! >pid ;;
  tail) echo "cannot import bad" ;;
esac
"""
SERVER = """
import http.server, os, socketserver
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(STATUS)
        self.end_headers()
    def address_string(self):
        return "unix"
socketserver.UnixStreamServer(os.environ["PROBE_SOCKET"], Handler).serve_forever()
"""


class App:
    """An app on a server of one folder, and runs that work on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("bin", "releases", "venvs", "archives", "logs"):
            (root / folder).mkdir()
        texts = {"runuser": BECOME, "setpriv": BECOME, "run": RUN, "alembic": ALEMBIC}
        texts["supervisorctl"] = SUPERVISORCTL
        for name, text in texts.items():
            (root / "bin" / name).write_text(text.replace("ROOT", str(root)))
            (root / "bin" / name).chmod(0o755)
        (root / "database").write_text("0001\n")
        (root / "environment").touch()

    def book(self, release: str, **changes: Any) -> dict[str, Any]:
        user, folder = getpass.getuser(), self.root / "releases" / release
        venv = self.root / "venvs" / changes.get("venv", "venv-1")
        alembic = f"{self.root}/bin/alembic"
        return {
            "name": "carafe-test-app",
            "root": str(self.root),
            "release": release,
            "revision": f"v-{release}",
            "check": False,
            "run": {
                "id": "run-1",
                "by": "ann@desk",
                "machine": "desk",
                "pid": "1",
                "what": "deployment of",
            },
            "break_lock": False,
            "user": user,
            "deploy_user": user,
            "run_command": f"{self.root}/bin/run",
            "venv": "venv-1",
            "unpack": f"mkdir {folder}; cd {folder}; echo {changes.pop('head', '0001')} >head;"
            f" ln -s ../../venvs/{venv.name} .venv; mkdir static",
            "install_file": "",
            "build_venv": f"mkdir -p {venv}; touch {venv}/.complete",
            "finish": f"echo {release} >static/app.{release:0>8}.css; echo x >static/{release}.txt;"
            " find static -type f >.static",
            "boot_command": "true",
            "migrate_command": f"{alembic} upgrade",
            "alembic": alembic,
            "migrations": "",
            "probe_command": f"exec {sys.executable} -c '{SERVER.replace('STATUS', '200')}'",
            "health_path": "/",
            "health_host": "localhost",
            "health_timeout": 20,
            "hooks": {},
            "environment_file": f"{self.root}/environment",
            "workers": [],
            "schedules": [],
            "hashed": "[.][0-9a-f]{8,}[.]",
            "keep": 3,
            "trouble": "",
            "elsewhere": "",
            "switched": False,
            **changes,
        }

    def step(self, name: str, release: str, **changes: Any) -> subprocess.CompletedProcess[str]:
        """Take one step, in this process: starting Python takes longer than most steps."""
        book = io.StringIO(json.dumps(self.book(release, **changes)))
        code, out, err = 0, io.StringIO(), io.StringIO()
        with (
            mock.patch.object(sys, "argv", ["release.py", name]),
            mock.patch.object(sys, "stdin", book),
            mock.patch.dict(os.environ, PATH=f"{self.root}/bin:/usr/bin:/bin", HOME="/elsewhere"),
            contextlib.redirect_stdout(out),
        ):
            try:
                load_module(RELEASE, "release").main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
                err.write(f"{end.code}\n")
        return subprocess.CompletedProcess(name, code, out.getvalue(), err.getvalue())

    def go(
        self, steps: tuple[str, ...], release: str, **changes: Any
    ) -> subprocess.CompletedProcess[str]:
        """Take the steps, to the end or the first that fails."""
        for name in steps:
            done = self.step(name, release, **changes)
            if done.returncode:
                break
            if name == "choose":
                release = json.loads(done.stdout)["release"]
        return done

    def deploy(self, release: str, **changes: Any) -> subprocess.CompletedProcess[str]:
        return self.go(DEPLOYMENT, release, **changes)

    def rollback(self, release: str = "", **changes: Any) -> subprocess.CompletedProcess[str]:
        run = self.book("")["run"] | {"what": "rollback to"}
        return self.go(ROLLBACK, release, run=run, **changes)

    @property
    def serving(self) -> str:
        return (self.root / "current").readlink().name

    @property
    def books(self) -> dict[str, Any]:
        return json.loads((self.root / "releases.json").read_text())

    @property
    def audit(self) -> list[str]:
        return (self.root / "releases.log").read_text().splitlines()

    @property
    def locked(self) -> bool:
        return (self.root / "lock.json").exists()


@pytest.fixture
def app(tmp_path: Path) -> App:
    return App(tmp_path)


def ok(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_release_that_passes_serves_and_is_booked(app: App) -> None:
    took = ok(app.deploy("a"))["took"]
    assert [line.split()[0] for line in took] == [*DEPLOYMENT[1:], "in"]
    assert app.serving == "a"
    assert app.books["a"].items() >= {"revision": "v-a", "by": "ann@desk", "head": "0001"}.items()
    assert "deployment of a  ok" in app.audit[-1]
    assert not app.locked
    assert ok(app.step("see", "a"))["live"]
    assert not ok(app.step("see", "b"))["live"]


def test_hooks_of_the_build_have_what_dependencies_are_installed_with(
    app: App, tmp_path: Path
) -> None:
    file = tmp_path / "install.environment"
    file.write_text("PIP_INDEX_URL='https://me:a b$c@index.test'\n")
    hook = """test "$PIP_INDEX_URL" = 'https://me:a b$c@index.test'"""
    ok(app.deploy("a", install_file=str(file), hooks={"before_build": [hook]}))
    assert app.deploy("b", hooks={"before_build": [hook]}).returncode == 1


@pytest.mark.parametrize(
    ("step", "spoiled"),
    [
        ("build", {"build_venv": "echo no such package; exit 3"}),
        ("build", {"finish": "echo no such asset; exit 3"}),
        ("build", {"hooks": {"after_build": ["echo no such hook; exit 3"]}}),
        ("load", {"boot_command": "echo no such module; exit 3"}),
        ("migrate", {"migrate_command": "echo no such table; exit 3"}),
        ("probe", {"probe_command": "echo no such port; exit 3"}),
        ("probe", {"probe_command": f"exec {sys.executable} -c '{SERVER.replace('STATUS', '500')}'",
                   "health_timeout": 2}),
        ("switch", {"hooks": {"before_switch": ["echo no such hook; exit 3"]}}),
        ("switch", {"hooks": {"after_switch": ["echo no such hook; exit 3"]}}),
    ],
)  # fmt: skip
def test_release_that_fails_is_broken_and_the_old_one_serves(
    app: App, step: str, spoiled: dict[str, Any]
) -> None:
    ok(app.deploy("a"))
    done = app.deploy("b", **spoiled)
    assert done.returncode == 1
    assert f"b failed at the step {step}" in done.stderr
    assert "no such" in done.stderr or "answered 500" in done.stderr
    assert "a serves" in done.stderr
    assert app.serving == "a"
    assert app.books["b"]["broken"].startswith(step)
    assert f"failed at {step}" in app.audit[-1]
    assert not app.locked
    ok(app.deploy("b"))
    assert app.serving == "b"
    assert "broken" not in app.books["b"]


def test_probe_has_its_users_home(app: App) -> None:
    probe = f"echo $HOME >{app.root}/home; {app.book('')['probe_command']}"
    ok(app.deploy("a", probe_command=probe))
    assert (app.root / "home").read_text().strip() == pwd.getpwnam(getpass.getuser()).pw_dir


def test_second_run_stops_at_once_and_is_told_who_works(app: App) -> None:
    ok(app.go(("unpack", "build"), "a"))
    for step in ("see", "build", "choose"):
        done = app.step(step, "b", run={"id": "run-2", "by": "bob", "what": "deployment of"})
        assert done.returncode == LOCKED
        lock = json.loads(done.stdout)["lock"]
        assert lock["pid"] == "1"
        assert "ann@desk holds the lock" in lock["says"]
        assert "deployment of a" in lock["says"]
        assert "last step, build" in lock["says"]
    ok(app.go(DEPLOYMENT[2:], "a"))
    assert app.serving == "a"


def test_of_runs_at_the_same_time_one_gets_the_lock(app: App) -> None:
    ok(app.step("unpack", "a"))
    command = [sys.executable, RELEASE, "build"]
    processes = []
    for number in range(6):
        book = app.book("a")
        book["run"]["id"] = f"run-{number}"
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            env={"PATH": f"{app.root}/bin:/usr/bin:/bin"},
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(json.dumps(book).encode())
        process.stdin.close()
        processes.append(process)
    assert sorted(process.wait() for process in processes) == [0] + [LOCKED] * 5


def test_lock_of_a_dead_run_can_be_broken_and_the_dead_stays_dead(app: App) -> None:
    ok(app.go(DEPLOYMENT[:4], "a"))
    second = {"id": "run-2", "by": "bob", "what": "deployment of"}
    ok(app.deploy("a", run=second, break_lock=True))
    assert any("bob  broke the lock of ann@desk" in line for line in app.audit)
    ok(app.go(("unpack", "build"), "b", run=second))
    done = app.step("load", "b")
    assert done.returncode == 1
    assert "lost the lock" in done.stderr
    assert "bob" in done.stderr


@pytest.mark.parametrize("steps", range(1, len(DEPLOYMENT)))
def test_run_cut_short_after_any_step_is_made_up_for(app: App, steps: int) -> None:
    ok(app.deploy("a"))
    ok(app.go(DEPLOYMENT[:steps], "b"))
    ok(app.deploy("b", run=app.book("")["run"] | {"id": "run-2"}, break_lock=True))
    assert app.serving == "b"
    assert ok(app.step("see", "b"))["live"]
    assert app.books["b"].keys() == app.books["a"].keys() | {"from"}


def test_rollback_goes_to_the_release_before_and_further(app: App) -> None:
    for release in "abc":
        ok(app.deploy(release))
    for release in "ba":
        ok(app.rollback())
        assert app.serving == release
    done = app.rollback()
    assert done.returncode == 1
    assert (
        "There is no older release to go back to. These are whole and have served: c, b"
        in done.stderr
    )
    ok(app.rollback("c"))
    assert app.serving == "c"


def test_rollback_does_not_go_to_what_was_gone_back_from(app: App) -> None:
    ok(app.deploy("a"))
    ok(app.deploy("b"))
    ok(app.rollback())
    ok(app.deploy("c"))
    ok(app.rollback())
    assert app.serving == "a"


def test_rollback_skips_what_is_broken(app: App) -> None:
    ok(app.deploy("a"))
    assert app.deploy("b", boot_command="false").returncode == 1
    ok(app.deploy("c"))
    ok(app.rollback())
    assert app.serving == "a"


def test_slots_that_do_not_get_well_bring_the_old_release_back(app: App) -> None:
    ok(app.deploy("a"))
    ok(app.go(DEPLOYMENT[:-1], "b"))
    assert ok(app.step("back", "b", trouble="slot 1 is not healthy", switched=True))["to"] == "a"
    assert app.serving == "a"
    done = app.step("undone", "b", trouble="slot 1 is not healthy")
    assert done.returncode == 1
    assert "slot 1 is not healthy" in done.stderr
    assert app.books["b"]["broken"] == "slots: slot 1 is not healthy"
    assert not app.locked


@pytest.mark.parametrize("steps", range(2, len(DEPLOYMENT) + 1))
def test_release_that_fails_elsewhere_is_given_up_here(app: App, steps: int) -> None:
    ok(app.deploy("a"))
    ok(app.go(DEPLOYMENT[:steps], "b"))
    switched = "switch" in DEPLOYMENT[:steps]
    changes = {"elsewhere": "other", "trouble": "not healthy\nits log", "switched": switched}
    assert ok(app.step("back", "b", **changes))["to"] == ("a" if switched else "")
    done = app.step("undone", "b", **changes)
    assert done.returncode == 1
    assert "deployment of b is given up here, since it failed on other: not healthy" in done.stderr
    assert "its log" not in done.stderr
    assert app.serving == "a"
    assert app.books["b"]["broken"] == "other: not healthy"
    assert "failed on other" in app.audit[-1]
    assert not app.locked
    ok(app.deploy("b"))
    assert app.serving == "b"


def test_release_that_served_well_here_before_stays_when_it_fails_elsewhere(app: App) -> None:
    ok(app.deploy("a"))
    changes = {"elsewhere": "other", "trouble": "not healthy"}
    assert ok(app.step("back", "a", **changes))["to"] == ""
    assert app.step("undone", "a", **changes).returncode == 1
    assert app.serving == "a"
    assert "broken" not in app.books["a"]


def test_rollback_that_is_refused_elsewhere_leaves_nothing_behind(app: App) -> None:
    ok(app.deploy("a"))
    ok(app.deploy("b"))
    changes = {"elsewhere": "other", "trouble": "These migrations lie between"}
    run = app.book("")["run"] | {"what": "rollback to"}
    ok(app.step("choose", "", run=run))
    ok(app.step("back", "a", run=run, **changes))
    done = app.step("undone", "a", run=run, **changes)
    assert "rollback to a is given up here, since it failed on other: These" in done.stderr
    assert "broken" not in app.books["a"]
    assert not app.locked


def test_step_that_failed_has_taken_itself_back(app: App) -> None:
    ok(app.deploy("a"))
    why = app.deploy("b", probe_command="false").stderr
    audit = app.audit
    assert ok(app.step("back", "b", trouble=why))["to"] == ""
    done = app.step("undone", "b", trouble=why)
    assert done.returncode == 1
    assert done.stderr.strip() == why.splitlines()[0]
    assert app.audit == audit


# Migrations.


def test_rollback_across_a_migration_is_refused_until_told(app: App) -> None:
    ok(app.deploy("a"))
    ok(app.deploy("b", head="0002"))
    done = app.rollback()
    assert done.returncode == 1
    assert "0001 -> 0002 (head), second" in done.stderr
    assert "<base>" not in done.stderr
    assert "app_rollback_migrations=downgrade" in done.stderr
    assert app.serving == "b"
    assert not app.locked


def test_rollback_keeps_the_schema_when_told(app: App) -> None:
    ok(app.deploy("a"))
    ok(app.deploy("b", head="0002"))
    ok(app.rollback(migrations="keep"))
    assert app.serving == "a"
    assert (app.root / "database").read_text() == "0002\n"


@pytest.mark.parametrize("healthy", [True, False])
def test_rollback_undoes_migrations_when_told(app: App, healthy: bool) -> None:
    ok(app.deploy("a"))
    ok(app.deploy("b", head="0002"))
    run = app.book("")["run"] | {"what": "rollback to"}
    changes = {"run": run, "migrations": "downgrade"}
    if not healthy:
        changes["probe_command"] = "false"
    assert ok(app.step("choose", "", **changes))["downgrade"] == "0001"
    done = app.go(("downgrade", "probe", "switch", "finish"), "a", **changes)
    assert (done.returncode == 0) is healthy
    # What was undone in vain is done again.
    assert (app.root / "database").read_text() == ("0001\n" if healthy else "0002\n")
    assert app.serving == ("a" if healthy else "b")
    assert app.books[app.serving]["head"] == ("0001" if healthy else "0002")


def test_failure_after_a_migration_says_what_is_ahead(app: App) -> None:
    ok(app.deploy("a"))
    done = app.deploy("b", head="0002", probe_command="false")
    assert "ahead of the code that serves" in done.stderr
    assert "0001 -> 0002 (head), second" in done.stderr


# What stays, what goes.


def test_static_files_of_the_last_two_releases_stay(app: App) -> None:
    def static() -> set[str]:
        return {path.name for path in (app.root / "current/static").iterdir()}

    def hashed(releases: str) -> set[str]:
        return {f"app.{release:0>8}.css" for release in releases}

    for release in "abcd":
        ok(app.deploy(release))
    assert static() == hashed("bcd") | {"d.txt"}
    ok(app.rollback())
    assert static() >= hashed("bcd")


def test_old_releases_go_and_what_is_needed_stays(app: App) -> None:
    for number, release in enumerate("abcde", 1):
        ok(app.deploy(release, venv=f"venv-{number}", keep=2))
    assert {path.name for path in (app.root / "releases").iterdir()} == {"d", "e"}
    assert {path.name for path in (app.root / "venvs").iterdir()} == {"venv-4", "venv-5"}
    assert app.books.keys() == {"d", "e"}
    ok(app.rollback(keep=1))
    assert app.serving == "d"
    assert (app.root / "releases/d").exists()


def test_broken_releases_are_kept_but_not_all(app: App) -> None:
    for number in range(4):
        assert app.deploy(f"x{number}", boot_command="false").returncode == 1
    ok(app.deploy("a"))
    assert {path.name for path in (app.root / "releases").iterdir()} == {"a", "x2", "x3"}


def test_list_shows_what_serves_and_what_is_broken(app: App) -> None:
    ok(app.deploy("a"))
    assert app.deploy("b", boot_command="false").returncode == 1
    table = ok(app.step("listing", ""))["table"]
    assert table[0].split() == ["release", "revision", "when", "by", "migration"]
    rows = {line.split()[0]: line for line in table[1:]}
    assert rows["a"].endswith("serves")
    assert "v-a" in rows["a"]
    assert "ann@desk" in rows["a"]
    assert "broken, at load" in rows["b"]


def test_hooks_run_in_the_release_at_their_step(app: App) -> None:
    points = [
        f"{when}_{what}"
        for what in ("build", "migrate", "switch", "finish")
        for when in ("before", "after")
    ]
    hooks = {point: [f'echo "{point} $(basename $PWD)" >>{app.root}/hooks'] for point in points}
    ok(app.deploy("a", hooks=hooks))
    assert (app.root / "hooks").read_text().splitlines() == [f"{point} a" for point in points]


FILE = {"tasks": "x.yml"}


def test_commands_beside_task_files_are_left_to_the_tasks(app: App) -> None:
    hooks = {"before_switch": [f"touch {app.root}/hooked", FILE], "after_switch": ["true"]}
    ok(app.deploy("a", hooks=hooks))
    assert not (app.root / "hooked").exists()
    ok(app.go(DEPLOYMENT[:5], "b"))
    ok(app.step("hook", "b", point="before_switch", command=hooks["before_switch"][0]))
    assert (app.root / "hooked").exists()


def test_hook_before_the_build_has_the_lock_and_the_dependencies(app: App) -> None:
    hooks = {"before_build": [FILE], "after_build": [FILE]}
    ok(app.step("unpack", "a"))
    for command in ("", f"test -e {app.root}/venvs/venv-1/.complete"):
        ok(app.step("hook", "a", point="before_build", command=command))
        assert app.locked
    other = {"id": "run-2", "by": "bob", "what": "deployment of"}
    for step in ("hook", "build"):
        done = app.step(step, "a", run=other, point="before_build", command="")
        assert done.returncode == LOCKED
    ok(app.step("build", "a", hooks=hooks))
    # What comes after the build is part of it.
    assert not ok(app.step("see", "a", break_lock=True))["built"]
    took = ok(app.go(DEPLOYMENT[2:], "a", hooks=hooks))["took"]
    assert [x.split()[0] for x in took[:4]] == ["build", "before_build", "before_build", "build"]
    assert ok(app.step("see", "a"))["built"]


@pytest.mark.parametrize(
    ("point", "switched"),
    [("before_migrate", False), ("after_switch", True), ("before_finish", True)],
)
def test_hook_that_fails_is_a_release_that_fails(app: App, point: str, switched: bool) -> None:
    ok(app.deploy("a"))
    ok(app.go(DEPLOYMENT[: 6 if switched else 3], "b"))
    done = app.step("hook", "b", point=point, command="echo no such page; exit 3")
    assert done.returncode == 1
    assert done.stderr.startswith(f"{point}: exit status 3")
    changes = {"trouble": done.stderr.strip(), "switched": switched}
    assert ok(app.step("back", "b", **changes))["to"] == ("a" if switched else "")
    done = app.step("undone", "b", **changes)
    assert f"b failed at the step {point}: exit status 3" in done.stderr
    assert "no such page" in done.stderr
    assert app.books["b"]["broken"].startswith(f"{point}: exit status 3")
    assert app.serving == "a"
    assert not app.locked


def test_slots_that_fail_after_a_hook_are_told_from_it(app: App) -> None:
    ok(app.deploy("a"))
    ok(app.go(DEPLOYMENT[:6], "b"))
    ok(app.step("hook", "b", point="after_switch", command="true"))
    ok(app.step("back", "b", trouble="slot 1 is not healthy", switched=True))
    assert app.books["b"]["broken"] == "slots: slot 1 is not healthy"


def test_hook_that_fails_at_the_very_end_leaves_the_release_serving(app: App) -> None:
    ok(app.deploy("a"))
    end = ok(app.deploy("b", hooks={"after_finish": ["echo no such page; exit 3"]}))
    assert end["failed"].startswith("after_finish: exit status 3; see")
    assert app.serving == "b"
    assert "broken" not in app.books["b"]
    assert not app.locked
    # As one of several entries, which tasks run.
    done = app.step("hook", "b", point="after_finish", command="exit 3")
    assert done.stderr.startswith("after_finish: exit status 3; see")


def test_dry_run_changes_nothing(app: App) -> None:
    ok(app.deploy("a"))
    before = sorted(str(path) for path in app.root.rglob("*"))
    ok(app.step("see", "b", check=True))
    ok(app.step("choose", "a", check=True))
    assert sorted(str(path) for path in app.root.rglob("*")) == before


def test_bare_server_has_no_release(tmp_path: Path) -> None:
    app = App(tmp_path)
    assert not ok(app.step("see", "a", root=f"{tmp_path}/nowhere"))["live"]


@pytest.fixture
def worker(app: App) -> Iterator[Callable[[], str]]:
    """Get the process of the app's worker, which ends with the test."""

    def pid() -> str:
        file = app.root / "pid"
        return file.read_text().strip() if file.exists() else ""

    yield pid
    if pid():
        os.kill(int(pid()), signal.SIGTERM)


def restarted(app: App, release: str, **changes: Any) -> dict[str, str]:
    return ok(app.step("workers", release, workers=["worker"], **changes))["restarted"]


def test_worker_moves_to_what_serves_and_then_stays(app: App, worker: Callable[[], str]) -> None:
    ok(app.deploy("a"))
    assert restarted(app, "a") == {"worker": "it is BACKOFF"}
    before = worker()
    assert restarted(app, "a") == {}
    assert worker() == before
    ok(app.deploy("b"))
    assert restarted(app, "b", check=True) == {"worker": "it runs another release"}
    assert worker() == before
    assert restarted(app, "b") == {"worker": "it runs another release"}
    assert worker() != before


def test_worker_gets_a_changed_environment(app: App, worker: Callable[[], str]) -> None:
    ok(app.deploy("a"))
    restarted(app, "a")
    before = worker()
    time.sleep(0.05)
    (app.root / "environment").touch()
    assert restarted(app, "a") == {"worker": "its environment has changed"}
    assert worker() != before


def test_worker_that_does_not_come_up_says_why_and_leaves_the_lock(
    app: App, worker: Callable[[], str]
) -> None:
    ok(app.deploy("a"))
    restarted(app, "a")
    for step in DEPLOYMENT[:-1]:
        ok(app.step(step, "b"))
    (app.root / "current/bad").touch()
    failed = app.step("workers", "b", workers=["worker"])
    assert failed.returncode == 1
    assert "the worker worker: it is BACKOFF" in failed.stderr
    assert "cannot import bad" in failed.stderr
    assert app.locked
    ok(app.step("back", "b", trouble="the worker worker", switched=True))
    assert restarted(app, "b") == {"worker": "it is BACKOFF"}
    done = app.step("undone", "b", trouble="the worker worker", switched=True)
    assert "b failed at the step workers: the worker worker" in done.stderr
    assert app.serving == "a"
    assert not app.locked


def test_worker_that_supervisord_does_not_know_yet_is_left_to_it(app: App) -> None:
    ok(app.deploy("a"))
    told = ok(app.step("workers", "a", workers=["new"]))
    assert told["restarted"] == {}
    assert told["unknown"] == ["new"]


def test_schedule_with_a_time_that_is_none_stops_before_anything(app: App) -> None:
    schedules = [{"name": "cleanup", "when": "every now and then"}]
    failed = app.step("see", "a", schedules=schedules)
    assert failed.returncode == 1
    assert "app_schedules: cleanup" in failed.stderr
    ok(app.step("see", "a", schedules=[{"name": "cleanup", "when": "Mon *-*-* 03:00"}]))
