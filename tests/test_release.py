"""A release goes through the gate, on real folders and processes: what serves, what is booked."""

from __future__ import annotations

import getpass
import grp
import json
import multiprocessing
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
import types
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import (
    backup_target,
    files,
    migrations,
    programs,
    release_settings,
    release_state,
    release_steps,
    sandbox,
    unix_http,
    venvs,
)
from ansible_collections.carafe.stack.plugins.module_utils.commands import Failure, Refused
from ansible_collections.carafe.stack.plugins.module_utils.release_state import Locked
from ansible_collections.carafe.stack.plugins.modules import release as module

GATE = ["build", "load", "migrate", "probe", "switch"]
RUN_1 = {"id": "run-1", "by": "ann@desk", "machine": "desk", "pid": "1", "what": "deployment of"}
RUN_2 = RUN_1 | {"id": "run-2", "by": "bob"}
VARIABLES = {
    "environment": {"GREETING": "hello", "FLASK_SECRET_KEY": '"key-1"'},
    "migrate": {},
    "install": {},
    "secrets": ["key-1"],
}

# Stands in for systemd: a unit is a session, and the tests are one user.
UNIT = """#!/bin/sh
while [ "$1" != -- ]; do
  case $1 in
    --unit=*) unit=${1#*=} ;;
    --property=EnvironmentFile=*) file=${1#*=*=} ;;
    --property=WorkingDirectory=*) folder=${1#*=*=} ;;
    --property=User=*) user=${1#*=*=} ;;
  esac
  printf '%s\\n' "$1" >>ROOT/units/$unit.options
  shift
done
shift
echo $$ >ROOT/units/$unit
for word; do
  case $word in *'$$'*) word=$(printf %s "$word" | sed 's/[$][$]/$/g') ;; esac
  set -- "$@" "$word"
  shift
done
eval "HOME=~$(id -un)"
exec env -i HOME="$HOME" sh -c 'set -a; . "$0"; set +a; exec "$@"' "$file" BECOME \\
  sh -c 'cd "$0" && exec "$@"' "$folder" "$@"
"""
SYSTEMCTL = """#!/bin/sh
case $1 in kill) kill -s ${2#*=SIG} -- -$(cat ROOT/units/${3%.service}) ;; esac
"""
# Stands in for runuser.
BECOME = '#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n'
RUN = """#!/bin/sh
release=$(basename $(readlink ROOT/serving || echo none))
while getopts r:m option; do case $option in r) release=$OPTARG ;; m) ;; esac; done
shift $((OPTIND - 1))
set -a
. ROOT/settings/$release/environment
. ROOT/settings/$release/secrets
set +a
cd "ROOT/releases/$release" && exec "$@"
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
# Without all that http.server imports: some hundreds of these are started.
SERVER = """
import os, socket
server = socket.socket(socket.AF_UNIX)
server.bind(os.environ["PROBE_SOCKET"])
server.listen()
while True:
    client, _ = server.accept()
    client.recv(65536)
    client.sendall(b"HTTP/1.1 STATUS x\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n")
    client.close()
"""


def server(status: int) -> str:
    """Return the command of an app that gives one answer to all."""
    return f"exec {sys.executable} -I -S -c '{SERVER.replace('STATUS', str(status))}'"


class App:
    """An app on a server of one folder, and runs that work on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "bin").mkdir()
        (root / "units").mkdir()
        texts = {"runuser": BECOME, "systemd-run": UNIT, "systemctl": SYSTEMCTL}
        texts |= {"run": RUN, "alembic": ALEMBIC}
        for name, text in texts.items():
            (root / "bin" / name).write_text(text.replace("ROOT", str(root)).replace("BECOME", ""))
            (root / "bin" / name).chmod(0o755)
        (root / "database").write_text("0001\n")

    def facts(self, release: str, **changes: Any) -> dict[str, Any]:
        user, folder = getpass.getuser(), self.root / "releases" / release
        venv = self.root / "venvs" / changes.get("venv", "venv-1")
        alembic = f"{self.root}/bin/alembic"
        probe = server(200)
        commands = {"load": "true", "migrate": f"{alembic} upgrade", "probe": probe, "setup": ""}
        return {
            "name": "carafe-test-app",
            "root": str(self.root),
            "release": release,
            "asked": "",
            "revision": f"v-{release}",
            "code": f"code of {release}",
            "run": RUN_1,
            "break_lock": False,
            "user": user,
            "deploy_user": user,
            "run_command": f"{self.root}/bin/run",
            "venv": "venv-1",
            "shared": [],
            "uploads": [],
            "immutable": [],
            "static": {"/static/": "static"},
            "place": {},
            "files": {"gunicorn.conf.py": "workers = 1\n"},
            "variables": VARIABLES | changes.pop("variables", {}),
            "unpack": f"mkdir {folder}; cd {folder}; echo {changes.pop('head', '0001')} >head;"
            f" ln -s ../../venvs/{venv.name} .venv; mkdir static",
            "tasks_max": 200,
            "build_memory": "75%",
            "only_wheels": False,
            "python": "",
            "built": "",
            "build_venv": {
                **{"installer": "pip", "version": "1", "path": str(venv)},
                **{"requirements": "r.txt", "extra": ["gunicorn"]},
                "script": changes.pop(
                    "build_script", f"mkdir -p {venv}/bin; cp /bin/true {venv}/bin/python"
                ),
            }
            | changes.pop("build_venv", {}),
            "finish": f"echo {release} >static/app.{release:0>8}.css; echo x >static/{release}.txt;"
            " find static -type f >.static",
            "commands": commands | changes.pop("commands", {}),
            "migrate_enabled": True,
            "point_server": "",
            "user_migrates": False,
            "setup_again": False,
            "migrate_tries": 5,
            "expects_release": False,
            "again": "",
            "database": "",
            "servers": 1,
            "alembic": alembic,
            "migrations": "",
            "health": {"path": "", "host": "localhost", "timeout": 20, "sockets": []}
            | changes.pop("health", {}),
            "limits": {"step": 20, "build": 20, "migrate": 20} | changes.pop("limits", {}),
            "hooks": {},
            "workers": [],
            "schedules": [],
            "hashed": "[.][0-9a-f]{8,}[.]",
            "keep": 3,
            "failure": "",
            "failed_on": "",
            **changes,
        }

    def step(
        self, name: str, release: str, *steps: str, check: bool = False, **changes: Any
    ) -> dict[str, Any]:
        """Take one step, in this process, as the module does."""
        app = release_steps.Release(self.facts(release, **changes), check)
        path = f"{self.root}/bin:/usr/bin:/bin"
        own = {"PATH": path, "HOME": "/elsewhere"}
        with (
            mock.patch.dict(os.environ, own),
            mock.patch.dict(sandbox.OWN, own),
            # What pip is told is tested where a pip is; here something stands in for it.
            mock.patch.object(venvs, "pip_script", lambda wanted, root: wanted["script"]),
        ):
            module.run(app, {"step": name, "steps": list(steps)})
        return app.output

    def gate(self, plan: list[dict[str, Any]], release: str, **changes: Any) -> None:
        for trip in plan:
            self.step("gate", release, *trip["steps"], **changes)

    def deploy(self, release: str, **changes: Any) -> dict[str, Any]:
        begun = self.step("begin", release, **changes)
        self.gate(begun["plan"], release, **changes)
        return self.step("finish", release, **changes) if begun["plan"] else begun

    def fail(self, release: str, **changes: Any) -> str:
        """Deploy a release that fails, and return what the run says."""
        with pytest.raises(Failure) as failure:
            self.deploy(release, **changes)
        return str(failure.value)

    def rollback(self, asked: str = "", **changes: Any) -> dict[str, Any]:
        changes = {"run": RUN_1 | {"what": "rollback to"}, **changes}
        chosen = self.step("choose", "", asked=asked, **changes)
        self.gate(chosen["plan"], chosen["release"], **changes)
        if chosen["plan"]:
            self.step("finish", chosen["release"], **changes)
        return chosen

    def part(self, count: int, release: str, **changes: Any) -> None:
        """Begin a deployment, and take only so many steps of it."""
        steps = ["begin", *GATE, "finish"][:count]
        for name in steps:
            if name in GATE:
                self.step("gate", release, name, **changes)
            else:
                self.step(name, release, **changes)

    def units(self, containing: str = "") -> list[list[str]]:
        """Return the options of each unit that has run, or of those with one that contains this."""
        found = [x.read_text().splitlines() for x in (self.root / "units").glob("?*.options")]
        return [x for x in found if any(containing in option for option in x)]

    @property
    def serving(self) -> str:
        return (self.root / "serving").readlink().name

    @property
    def known(self) -> dict[str, Any]:
        return json.loads((self.root / "state/releases.json").read_text())

    @property
    def audit(self) -> list[str]:
        return (self.root / "state/releases.log").read_text().splitlines()

    @property
    def locked(self) -> bool:
        return (self.root / "state/lock.json").exists()

    def tree(self) -> list[str]:
        return sorted(str(path) for path in self.root.rglob("*"))


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    monkeypatch.setattr(release_settings, "accounts", lambda app, check: [])
    monkeypatch.setattr(sandbox, "check", lambda: None)
    monkeypatch.setattr(sandbox, "RUN", tmp_path)
    monkeypatch.setattr(sandbox, "mounts", lambda: True)
    monkeypatch.setattr(sandbox, "users", lambda: True)
    monkeypatch.setattr(release_settings, "UNITS", tmp_path / "units")
    monkeypatch.setattr(release_settings, "PROGRAMS", tmp_path / "programs")
    monkeypatch.setattr(release_settings, "limits", lambda app: [])
    monkeypatch.setattr(programs, "FOLDER", tmp_path / "lib")
    folders, user = release_settings.folders, getpass.getuser()
    group = grp.getgrgid(os.getgid()).gr_name
    monkeypatch.setattr(
        release_settings,
        "folders",
        lambda app: {path: (mode, user, group) for path, (mode, _, _) in folders(app).items()},
    )
    # Whoever the group of a user is, here it is this one's.
    monkeypatch.setattr(files, "group_id", lambda name: -1)
    return App(tmp_path)


def test_release_that_passes_serves_and_is_written_down(app: App) -> None:
    took = app.deploy("a")["took"]
    assert [line.split()[0] for line in took] == ["begin", *GATE, "workers", "finish", "in", "no"]
    assert app.serving == "a"
    assert (app.root / "current/head").exists()
    told = {"revision": "v-a", "code": "code of a", "by": "ann@desk", "head": "0001"}
    assert app.known["a"].items() >= told.items()
    assert "deployment of a  ok" in app.audit[-1]
    assert not app.locked
    assert app.step("begin", "a")["live"]
    assert not app.step("begin", "b", check=True)["live"]


def test_dependencies_are_installed_with_variables_of_their_own(app: App) -> None:
    secret = "https://me:a b$c@index.test"
    hook = f"""test "$PIP_INDEX_URL" = '{secret}'"""
    variables = {"install": {"PIP_INDEX_URL": secret}}
    # The app's own steps have none of them: they may hold what its user must not know.
    load = {"load": "! env | grep PIP_"}
    app.deploy("a", variables=variables, hooks={"before_build": [hook]}, commands=load)
    assert "PIP_INDEX_URL: parameter not set" in app.fail("b", hooks={"before_build": [hook]})


def test_a_build_is_told_no_secret_and_all_else(app: App) -> None:
    secret = "p w/1"
    url = {"DATABASE_URL": "postgresql://me:p%20w%2F1@db/shop", "TOKEN": secret}
    environment = {**VARIABLES["environment"], **url, "FLASK_SECRET_KEY_FALLBACKS": '["k"]'}
    variables = {"environment": environment, "secrets": ["key-1", secret]}
    app.deploy("a", variables=variables)
    told = release_settings.from_text((app.root / "settings/a/build.secrets").read_text())
    word = release_settings.STAND_IN
    assert told == {
        "DATABASE_URL": f"postgresql://me:{word}@db/shop",
        "TOKEN": word,
        "FLASK_SECRET_KEY": f'"{word}"',
        "FLASK_SECRET_KEY_FALLBACKS": f'["{word}"]',
    }
    lines = app.units(containing="ProtectSystem=strict")
    assert lines, "a build has a sandbox of its own"
    settings = f"{app.root}/settings/a"
    for unit in lines:
        assert f"--property=BindReadOnlyPaths={settings}/build.secrets:{settings}/secrets" in unit


@pytest.mark.parametrize("secret", ['a"quote', "back\\slash", "ümlaut", "two words/1+1"])
@pytest.mark.parametrize(
    "write",
    [
        *(str, json.dumps, lambda x: json.dumps({"deep": [x]}, ensure_ascii=False)),
        *(urllib.parse.quote, urllib.parse.quote_plus),
        lambda x: f"redis://:{urllib.parse.quote(x, safe='')}@cache/0",
    ],
)
def test_a_secret_is_known_however_it_is_written(write: Callable[[str], str], secret: str) -> None:
    variables = {"FLASK_MAIL": write(secret), "PLAIN": "a"}
    plain, found = release_settings.split(variables, [secret])
    assert (plain, found) == ({"PLAIN": "a"}, {"FLASK_MAIL": write(secret)})
    told = release_settings.stand_ins(found, [secret])["FLASK_MAIL"]
    assert release_settings.STAND_IN in told
    assert write(secret).strip('"') not in told


def test_a_secret_file_is_the_app_s_to_read_and_no_build_s(app: App) -> None:
    app.deploy("a")
    assert not app.units(containing="secret-files")
    variables = {"files": {"key.pem": "--- it's the key\n", "b.json": "{}"}}
    told = app.step("begin", "b", check=True, variables=dict(variables))
    assert "secret-files/key.pem is new" in told["diff"]
    assert "the key" not in told["diff"]
    app.deploy("b", variables=dict(variables))
    folder = app.root / "settings/b/secret-files"
    assert folder.stat().st_mode & 0o777 == 0o750
    assert {x.name: x.read_text() for x in folder.iterdir()} == variables["files"]
    assert {x.stat().st_mode & 0o777 for x in folder.iterdir()} == {0o640}
    builds = app.units(containing="ProtectSystem=strict")
    hidden = app.units(containing=f"--property=TemporaryFileSystem={folder}:ro")
    assert hidden
    assert all(unit in builds for unit in hidden)
    # One that is not listed any more is not there any more.
    app.step("begin", "b", run=RUN_2, variables={"files": {"b.json": "{}"}})
    assert [x.name for x in folder.iterdir()] == ["b.json"]


def test_a_rollback_has_the_secret_files_of_what_serves(app: App) -> None:
    app.deploy("a", variables={"files": {"key": "old", "gone": "x"}})
    app.deploy("b", variables={"files": {"key": "new"}})
    app.rollback()
    assert app.serving == "a"
    folder = app.root / "settings/a/secret-files"
    assert {x.name: x.read_text() for x in folder.iterdir()} == {"key": "new"}
    app.deploy("c")
    app.rollback("a")
    assert not folder.exists()


def test_a_build_writes_no_virtual_environment_that_another_release_has(app: App) -> None:
    mine = f"--property=ReadWritePaths={app.root}/venvs/venv-1"
    app.deploy("a")
    assert all(mine in unit for unit in app.units(containing="ProtectSystem=strict"))
    shutil.rmtree(app.root / "units")
    (app.root / "units").mkdir()
    app.deploy("b")
    built = app.units(containing="ProtectSystem=strict")
    assert built
    assert not any(mine in unit for unit in built)


def test_hooks_outside_of_the_build_have_nothing_of_what_it_is_told(app: App) -> None:
    variables = {"install": {"PIP_INDEX_URL": "https://me:word@index.test"}}
    hooks = {"before_migrate": [{"tasks": "x.yml"}, "! env | grep PIP_"]}
    app.step("begin", "a", variables=variables, hooks=hooks)
    app.step("gate", "a", "build", variables=variables, hooks=hooks)
    command = {"point": "before_migrate", "command": "! env | grep PIP_"}
    app.step("hook", "a", variables=variables, hooks=hooks, **command)
    command = {"point": "after_build", "command": "env | grep PIP_"}
    app.step("hook", "a", variables=variables, hooks=hooks, **command)


def test_every_step_is_in_the_sandbox(app: App) -> None:
    app.deploy("a", hooks={point: ["true"] for point in POINTS})
    units = app.units()
    # Virtual environment, build, load, migration, probe, and the hooks.
    assert len(units) == 5 + len(POINTS)
    assert all("--property=NoNewPrivileges=yes" in unit for unit in units)
    assert all("--property=RestrictNamespaces=yes" in unit for unit in units)
    # Where the app may have no more than its share.
    where = f"--property=Slice={release_settings.slice_of(getpass.getuser())}"
    assert all(where in unit for unit in units)
    built = app.units(containing="ProtectSystem=strict")
    assert all("--property=TasksMax=100" in unit for unit in built)


def test_wheels_only_refuses_what_would_be_built(app: App) -> None:
    assert "app_only_wheels: ./house" in app.fail("a", built="./house", only_wheels=True)
    app.deploy("a", built="./house")


POINTS = [
    f"{when}_{what}"
    for what in ("build", "migrate", "switch", "finish")
    for when in ("before", "after")
]
UNWELL = server(500)
# What fails at which step.
SPOILED = [
    ("build", {"build_script": "echo no such package; exit 3"}),
    ("build", {"finish": "echo no such asset; exit 3"}),
    ("build", {"hooks": {"after_build": ["echo no such hook; exit 3"]}}),
    ("load", {"commands": {"load": "echo no such module; exit 3"}}),
    ("migrate", {"commands": {"migrate": "echo no such table; exit 3"}}),
    ("probe", {"commands": {"probe": "echo no such port; exit 3"}}),
    ("probe", {"commands": {"probe": UNWELL}, "health": {"timeout": 5}}),
    ("switch", {"hooks": {"before_switch": ["echo no such hook; exit 3"]}}),
    ("switch", {"hooks": {"after_switch": ["echo no such hook; exit 3"]}}),
]


UV = """#!/bin/sh
echo "$UV_DEFAULT_INDEX" "$@" >>ROOT/asked
case " $* " in
  *" venv "*) mkdir -p ROOT/venvs/venv-1/bin; cp /bin/true ROOT/venvs/venv-1/bin/python ;;
  *) touch ROOT/venvs/venv-1/by-uv; exit STATUS ;;
esac
"""


@pytest.fixture(autouse=True)
def without_files_of_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(venvs, "OF_THE_SERVER", [])
    for name in [x for x in os.environ if x.startswith("PIP_")]:
        monkeypatch.delenv(name)


def with_uv(app: App, status: int = 0) -> dict[str, Any]:
    """Put a uv there, and return the facts of an app that is built with it."""
    uv = app.root / "uv/1/bin/uv"
    uv.parent.mkdir(parents=True)
    uv.write_text(UV.replace("ROOT", str(app.root)).replace("STATUS", str(status)))
    uv.chmod(0o755)
    return {"build_venv": {"installer": "uv"}}


@pytest.mark.parametrize("installer", ["uv", "pip"])
def test_a_python_that_cannot_be_had_is_refused_by_the_name_of_its_variable(
    app: App, installer: str
) -> None:
    with_uv(app, status=2)
    lock = {"lock": "uv.lock"} if installer == "uv" else {}
    said = app.fail("a", python="3.99", build_venv={"installer": installer, **lock})
    assert "app_python: this server has no Python 3.99" in said.splitlines()[0]
    assert "UV_PYTHON_INSTALL_MIRROR" in said
    assert not (app.root / "venvs/venv-1/bin").exists()


def test_uv_builds_the_virtual_environment_as_pip_is_told_to(app: App) -> None:
    install = {"install": {"PIP_INDEX_URL": "https://house"}}
    done = app.deploy("a", variables=install, build_script="exit 1", **with_uv(app))
    asked = (app.root / "asked").read_text().splitlines()
    assert all(line.startswith("https://house ") for line in asked)
    assert asked[-1].endswith("pip gunicorn")
    assert (app.root / "venvs/venv-1/by-uv").exists()
    assert not any("pip" in line for line in done["took"])
    assert "UV_DEFAULT_INDEX" not in os.environ


def test_pip_builds_it_anew_and_the_run_says_so_when_uv_fails(app: App) -> None:
    done = app.deploy("a", **with_uv(app, status=2))
    assert not (app.root / "venvs/venv-1/by-uv").exists()
    assert done["took"][-1] == "pip has built the virtual environment: uv could not (exit status 2)"
    # Only the run that built it.
    assert not any("pip" in line for line in app.deploy("b", run=RUN_2)["took"])


def test_pip_builds_it_when_uv_cannot_be_told_what_pip_is_told(app: App) -> None:
    install = {"install": {"PIP_KEYRING_PROVIDER": "subprocess"}}
    done = app.deploy("a", variables=install, **with_uv(app))
    assert not (app.root / "asked").exists()
    assert "no counterpart of pip's setting keyring-provider" in done["took"][-1]


@pytest.mark.parametrize(("step", "spoiled"), SPOILED)
def test_release_that_fails_is_broken_and_the_old_one_serves_with_its_own_settings(
    app: App, step: str, spoiled: dict[str, Any]
) -> None:
    app.deploy("a")
    before = serving_settings(app)
    changed = {
        "variables": {"environment": {"GREETING": "other"}},
        "files": {"gunicorn.conf.py": "workers = 9\n"},
        "schedules": [{"name": "tick", "command": "true", "when": "daily", "timeout": 9}],
    }
    said = app.fail("b", venv="venv-2", **changed, **spoiled)
    assert said.startswith(f"b failed at the step {step}")
    assert "no such" in said or "answered 500" in said
    assert "a serves" in said
    assert app.serving == "a"
    # What a slot, a worker or the server would start with.
    assert serving_settings(app) == before
    assert app.known["b"]["broken"].startswith(step)
    assert f"failed at {step}" in app.audit[-1]
    assert not app.locked
    app.deploy("b")
    assert app.serving == "b"
    assert "broken" not in app.known["b"]


PRINTED = "x1b owned \\033[2J \\033]0;x\\007 \\342\\200\\256 \\001"
FORGED = "eve\n2026-01-01 00:00:00 UTC  ann@desk  deployment of c  ok  1.0 s\u2028\x1b[2Jmallory"
# What an app prints, by where it is printed; what a step says of it has none of it.
PRINTING = {
    "build": {"finish": f"printf '{PRINTED}'; exit 3"},
    "load": {"commands": {"load": f"printf '{PRINTED}' >&2; exit 3"}},
    "migrate": {"commands": {"migrate": f"printf '{PRINTED}'; exit 3"}},
    "probe": {
        "commands": {"probe": server(0).replace("HTTP/1.1 0", "x1b owned")},
        "health": {"timeout": 2},
    },
    "after_switch": {"hooks": {"after_switch": [f"printf '{PRINTED}'; exit 3"]}},
}


@pytest.mark.parametrize("step", PRINTING)
def test_what_an_app_prints_is_shown_escaped_and_kept_where_root_alone_reads(
    app: App, step: str
) -> None:
    app.deploy("a")
    said = app.fail("b", **PRINTING[step])
    assert said.replace("\n", "").replace("\t", "").isprintable()
    if step != "probe":
        assert "owned \\x1b[2J" in said
    for path in app.root.rglob("*"):
        if path.is_file() and b"x1b owned" in path.read_bytes():
            assert path.parent.name == "logs"
            assert path.stat().st_mode & 0o777 == 0o640
    assert "broken, at" in "".join(app.step("list", "")["table"])


@pytest.mark.parametrize("server", ["", "other"])
def test_what_a_slot_or_a_task_file_printed_is_not_written_down(app: App, server: str) -> None:
    app.deploy("a")
    app.part(6, "b")
    trouble = {"failure": "slot 1 is not healthy\nx1b owned \x1b[2J", "failed_on": server}
    app.step("revert", "b", **trouble)
    with pytest.raises(Failure) as failure:
        app.step("report_failure", "b", **trouble)
    assert server or "x1b owned \\x1b[2J" in str(failure.value)
    assert app.known["b"]["broken"] == f"{server or 'slots'}: slot 1 is not healthy"
    assert "owned" not in "".join(path.read_text() for path in (app.root / "state").glob("*.*"))


def test_what_an_app_prints_as_it_is_loaded_is_no_migration(app: App) -> None:
    says = f"printf 'x1b owned \\033[2J\\nLoading settings ...\\n\\n'; {app.root}/bin/alembic"
    app.deploy("a", alembic=says)
    assert app.known["a"]["head"] == "0001"


def test_books_and_logs_of_an_older_carafe_are_taken_from_other_readers(app: App) -> None:
    app.deploy("a")
    assert app.step("begin", "a")["place"] == []
    older = [app.root / x for x in ("state/releases.log", "state/releases.json", "logs/a.log")]
    for path in older:
        path.chmod(0o644)
    assert set(app.step("begin", "a", check=True)["place"]) == set(map(str, older))
    assert older[0].stat().st_mode & 0o777 == 0o644
    app.step("begin", "a")
    assert {path.stat().st_mode & 0o777 for path in older} == {0o640}
    assert app.step("begin", "a")["live"]
    assert app.step("begin", "a")["place"] == []


def test_each_event_is_one_line_of_the_audit_log(app: App) -> None:
    """Whoever deploys says who they are: a name and a revision can have anything in them."""
    eve = {"run": RUN_2 | {"by": FORGED}, "revision": FORGED}
    app.deploy("a", **eve)
    app.fail("b", commands={"load": "false"}, **eve)
    app.part(2, "c", **eve)
    with pytest.raises(Locked) as locked:
        app.step("begin", "d")
    app.deploy("d", break_lock=True)
    text = (app.root / "state/releases.log").read_text()
    assert len(text.splitlines()) == text.count("\n") == 4
    assert text.replace("\n", "").isprintable()
    assert all(len(line.split("  ")) in (3, 5) for line in text.splitlines())
    for line in [str(locked.value), *app.step("list", "")["table"]]:
        assert line.isprintable()
    assert all(x.stat().st_mode & 0o777 == 0o640 for x in (app.root / "state").glob("releases.*"))


def serving_settings(app: App) -> dict[str, str]:
    folder = (app.root / "serving").resolve()
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and "code" not in path.parts
    }


def test_named_health_path_must_exist(app: App) -> None:
    probe = server(404)
    app.deploy("a", commands={"probe": probe})
    assert "healthz answered 404" in app.fail(
        "b", commands={"probe": probe}, health={"path": "/healthz", "timeout": 5}
    )


def test_guessed_health_path_is_told(app: App) -> None:
    probe = server(404)
    assert "/ answered 404" in app.deploy("a", commands={"probe": probe})["took"][-1]


def test_probe_has_its_users_home(app: App) -> None:
    probe = f"echo $HOME >{app.root}/said; {app.facts('')['commands']['probe']}"
    app.deploy("a", commands={"probe": probe})
    assert (app.root / "said").read_text().strip() == pwd.getpwnam(getpass.getuser()).pw_dir


# The lock.


def test_second_run_stops_at_once_is_told_who_works_and_writes_nothing(app: App) -> None:
    app.part(2, "a")
    before = app.tree()
    for step in ("begin", "choose"):
        with pytest.raises(Locked) as refused:
            app.step(step, "b", run=RUN_2)
        lock, says = refused.value.lock, str(refused.value)
        assert lock["pid"] == "1"
        assert "ann@desk holds the lock" in says
        assert "deployment of a" in says
        assert "last step, build" in says
    assert app.tree() == before
    for name in GATE[1:]:
        app.step("gate", "a", name)
    app.step("finish", "a")
    assert app.serving == "a"


def test_of_runs_at_the_same_time_one_gets_the_lock(app: App) -> None:
    app.deploy("a")
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()

    def begin(number: int) -> None:
        try:
            app.step("begin", "b", run=RUN_1 | {"id": f"run-{number}"})
            results.put("begun")
        except Locked:
            results.put("refused")

    runs = [fork.Process(target=begin, args=[number]) for number in range(6)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert sorted(results.get() for _ in runs) == ["begun"] + ["refused"] * 5


def test_lock_of_a_dead_run_can_be_broken_and_the_dead_stays_dead(app: App) -> None:
    app.part(4, "a")
    app.deploy("a", run=RUN_2, break_lock=True)
    assert any("bob  broke the lock of ann@desk" in line for line in app.audit)
    app.part(2, "b", run=RUN_2)
    with pytest.raises(Failure, match=r"lost the lock .* to bob"):
        app.step("gate", "b", "load")


THEIRS = json.dumps(RUN_2 | {"since": 0, "steps": [], "from": "a"})


@pytest.mark.parametrize(
    ("step", "changes"),
    [
        ("probe", {"commands": {"probe": "TAKE; " + server(200)}}),
        ("migrate", {"commands": {"migrate": "TAKE; exit 3"}}),
        ("switch", {"hooks": {"after_switch": ["TAKE; exit 3"]}}),
    ],
    ids=["well", "failed", "failed after the switch"],
)
def test_a_step_of_a_dead_run_gives_no_lock_back_that_was_taken_meanwhile(
    app: App, step: str, changes: dict[str, Any]
) -> None:
    lock = app.root / "state/lock.json"
    take = f"echo '{THEIRS}' >{lock}"
    changes = json.loads(json.dumps(changes).replace("TAKE", json.dumps(take)[1:-1]))
    app.deploy("a")
    app.part(GATE.index(step) + 1, "b")
    with pytest.raises(Failure):
        app.step("gate", "b", step, **changes)
    assert json.loads(lock.read_text()) == json.loads(THEIRS)
    # Whether it is well is for the other run to say.
    assert "broken" not in app.known["b"]


@pytest.mark.parametrize("steps", range(1, 7))
def test_run_cut_short_after_any_step_is_made_up_for(app: App, steps: int) -> None:
    app.deploy("a")
    app.part(steps, "b")
    app.deploy("b", run=RUN_2, break_lock=True)
    assert app.serving == "b"
    assert app.step("begin", "b")["live"]
    assert app.known["b"].keys() == app.known["a"].keys() | {"from"}


def test_what_was_cut_short_after_the_switch_is_not_what_a_failure_goes_back_to(app: App) -> None:
    app.deploy("a")
    app.part(6, "b")
    assert app.serving == "b"
    app.step("begin", "c", run=RUN_2, break_lock=True)
    app.step("gate", "c", "build", "switch", run=RUN_2)
    trouble = {"run": RUN_2, "failure": "slot 0 is not healthy"}
    app.step("revert", "c", **trouble)
    assert app.serving == "a"


# Back.


def test_rollback_goes_to_the_release_before_and_further(app: App) -> None:
    for release in "abc":
        app.deploy(release)
    for release in "ba":
        app.rollback()
        assert app.serving == release
    with pytest.raises(Failure, match=r"no older release .* whole and have served: c, b"):
        app.rollback()
    app.rollback("c")
    assert app.serving == "c"


def test_rollback_knows_a_release_by_the_part_of_its_id_that_tells_the_code(app: App) -> None:
    app.deploy("aaaa-1111")
    app.deploy("bbbb-1111")
    app.rollback("aaaa")
    assert app.serving == "aaaa-1111"


def test_rollback_does_not_go_to_what_was_gone_back_from(app: App) -> None:
    app.deploy("a")
    app.deploy("b")
    app.rollback()
    app.deploy("c")
    app.rollback()
    assert app.serving == "a"


def test_rollback_skips_what_is_broken(app: App) -> None:
    app.deploy("a")
    app.fail("b", commands={"load": "false"})
    app.deploy("c")
    app.rollback()
    assert app.serving == "a"


def test_rollback_has_its_own_settings_and_the_secrets_of_now(app: App) -> None:
    old = {"GREETING": "old", "FLASK_SECRET_KEY": '"key-1"', "URL": "x://key-1@db", "GONE": "key-1"}
    new = {"GREETING": "new", "FLASK_SECRET_KEY": '"key-2"', "URL": "x://socket"}
    app.deploy("a", variables={"environment": old})
    app.deploy("b", variables={"environment": new, "secrets": ["key-2"]})
    app.rollback()
    folder = app.root / "serving"
    environment = release_settings.from_text((folder / "environment").read_text())
    secrets = release_settings.from_text((folder / "secrets").read_text())
    assert environment == {"GREETING": "old"}
    # What was secret is as it is now: another one, no secret any more, and not there any more.
    assert secrets == {"FLASK_SECRET_KEY": '"key-2"', "URL": "x://socket"}


def test_slots_that_do_not_get_well_bring_the_old_release_back(app: App) -> None:
    app.deploy("a")
    app.part(6, "b")
    trouble = {"failure": "slot 1 is not healthy\nits log"}
    app.step("revert", "b", **trouble)
    assert app.serving == "a"
    with pytest.raises(Failure, match="b failed at the step slots: slot 1 is not healthy"):
        app.step("report_failure", "b", **trouble)
    assert app.known["b"]["broken"] == "slots: slot 1 is not healthy"
    assert not app.locked


def test_very_first_release_that_fails_in_the_slots_never_starts_again(app: App) -> None:
    app.part(6, "a")
    app.step("revert", "a", failure="slot 0 is not healthy")
    assert not (app.root / "serving").is_symlink()
    with pytest.raises(Failure, match="nothing serves yet"):
        app.step("report_failure", "a", failure="slot 0 is not healthy")


@pytest.mark.parametrize("steps", range(2, 8))
def test_release_that_fails_elsewhere_is_given_up_here(app: App, steps: int) -> None:
    app.deploy("a")
    app.part(steps, "b", run=RUN_2)
    changes = {"run": RUN_2, "failed_on": "other", "failure": "not healthy\nits log"}
    app.step("revert", "b", **changes)
    with pytest.raises(Failure) as failure:
        app.step("report_failure", "b", **changes)
    said = str(failure.value)
    assert "deployment of b is given up here, since it failed on other: not healthy" in said
    # A server of another kind may have failed, and this is the last that is said of it.
    assert "its log" in said
    assert app.serving == "a"
    assert app.known["b"]["broken"] == "other: not healthy"
    assert "failed on other" in app.audit[-1]
    assert not app.locked
    app.deploy("b")
    assert app.serving == "b"


def test_release_that_served_well_here_before_stays_when_it_fails_elsewhere(app: App) -> None:
    app.deploy("a")
    changes = {"run": RUN_2, "failed_on": "other", "failure": "not healthy"}
    app.step("revert", "a", **changes)
    with pytest.raises(Failure):
        app.step("report_failure", "a", **changes)
    assert app.serving == "a"
    assert "broken" not in app.known["a"]


def test_rollback_that_is_refused_elsewhere_leaves_nothing_behind(app: App) -> None:
    app.deploy("a")
    app.deploy("b")
    changes = {"failed_on": "other", "failure": "These migrations lie between"}
    run = RUN_2 | {"what": "rollback to"}
    app.step("choose", "", run=run)
    app.step("revert", "a", run=run, **changes)
    with pytest.raises(Failure, match="rollback to a is given up here, since it failed on other"):
        app.step("report_failure", "a", run=run, **changes)
    assert "broken" not in app.known["a"]
    assert not app.locked


def test_step_that_failed_has_taken_itself_back(app: App) -> None:
    app.deploy("a")
    why = app.fail("b", run=RUN_2, commands={"probe": "false"})
    audit = app.audit
    app.step("revert", "b", run=RUN_2, failure=why)
    with pytest.raises(Failure) as failure:
        app.step("report_failure", "b", run=RUN_2, failure=why)
    assert str(failure.value) == why
    assert app.audit == audit


# Migrations.


def test_rollback_across_a_migration_is_refused_until_told(app: App) -> None:
    app.deploy("a")
    app.deploy("b", head="0002")
    with pytest.raises(Failure) as failure:
        app.rollback()
    assert "0001 -> 0002 (head), second" in str(failure.value)
    assert "<base>" not in str(failure.value)
    assert "app_rollback_migrations=downgrade" in str(failure.value)
    assert app.serving == "b"
    assert not app.locked


def test_rollback_keeps_the_schema_when_told(app: App) -> None:
    app.deploy("a")
    app.deploy("b", head="0002")
    app.rollback(migrations="keep")
    assert app.serving == "a"
    assert (app.root / "database").read_text() == "0002\n"


@pytest.mark.parametrize("healthy", [True, False])
def test_rollback_undoes_migrations_when_told(app: App, healthy: bool) -> None:
    app.deploy("a")
    app.deploy("b", head="0002")
    changes: dict[str, Any] = {"migrations": "downgrade"}
    if healthy:
        app.rollback(**changes)
    else:
        with pytest.raises(Failure):
            app.rollback(commands={"probe": "false"}, **changes)
    # What was undone in vain is done again.
    assert (app.root / "database").read_text() == ("0001\n" if healthy else "0002\n")
    assert app.serving == ("a" if healthy else "b")
    assert app.known[app.serving]["head"] == ("0001" if healthy else "0002")


def test_failure_after_a_migration_says_what_is_ahead(app: App) -> None:
    app.deploy("a")
    said = app.fail("b", head="0002", commands={"probe": "false"})
    assert "ahead of the code that serves" in said
    assert "0001 -> 0002 (head), second" in said


# What stays, what goes.


def test_static_files_of_the_last_two_releases_stay(app: App) -> None:
    def static() -> set[str]:
        return {path.name for path in (app.root / "current/static").iterdir()}

    def hashed(releases: str) -> set[str]:
        return {f"app.{release:0>8}.css" for release in releases}

    for release in "abcd":
        app.deploy(release)
    assert static() == hashed("bcd") | {"d.txt"}
    app.rollback()
    assert static() >= hashed("bcd")


@pytest.mark.parametrize("immutable", ["/static/assets/", "/static/", "/", "/static/assets/index-"])
def test_static_files_of_a_bundler_stay_where_that_is_said(app: App, immutable: str) -> None:
    def finish(letters: str) -> str:
        write = f"mkdir -p static/assets; echo x >'static/assets/index-{letters}.js'"
        return f"{write}; find static -type f >.static"

    app.deploy("a", finish=finish("BfQ2x9aZ"), immutable=[immutable])
    app.deploy("b", finish=finish("Cq_-0Zx1"), immutable=[immutable])
    names = {x.name for x in (app.root / "releases/b/static/assets").iterdir()}
    assert names == {"index-BfQ2x9aZ.js", "index-Cq_-0Zx1.js"}


@pytest.mark.parametrize("immutable", [[], ["/other/"], ["/statics/"], ["/static/assetsx/"]])
def test_static_files_with_no_hash_go_where_nothing_is_said(app: App, immutable: list) -> None:
    finish = (
        "mkdir -p static/assets; echo x >static/assets/index-{}.js; find static -type f >.static"
    )
    app.deploy("a", finish=finish.format("BfQ2x9aZ"), immutable=immutable)
    app.deploy("b", finish=finish.format("CqW30Zx1"), immutable=immutable)
    names = {x.name for x in (app.root / "releases/b/static/assets").iterdir()}
    assert names == {"index-CqW30Zx1.js"}


def test_old_releases_go_and_what_is_needed_stays(app: App) -> None:
    for number, release in enumerate("abcde", 1):
        app.deploy(release, venv=f"venv-{number}", keep=2)
    for kind in ("releases", "settings"):
        assert {path.name for path in (app.root / kind).iterdir()} == {"d", "e"}
    assert {path.name for path in (app.root / "venvs").iterdir()} == {"venv-4", "venv-5"}
    assert {path.name for path in (app.root / "state/venvs").iterdir()} == {"venv-4", "venv-5"}
    assert {path.name for path in (app.root / "state/built").iterdir()} == {"d", "e"}
    assert app.known.keys() == {"d", "e"}
    app.rollback(keep=1)
    assert app.serving == "d"
    assert (app.root / "releases/d").exists()


def test_broken_releases_are_kept_but_not_all(app: App) -> None:
    for number in range(4):
        app.fail(f"x{number}", commands={"load": "false"})
    app.deploy("a")
    assert {path.name for path in (app.root / "releases").iterdir()} == {"a", "x2", "x3"}


def test_list_shows_what_serves_and_what_is_broken(app: App) -> None:
    app.deploy("a")
    app.fail("b", commands={"load": "false"})
    table = app.step("list", "")["table"]
    assert table[0].split() == ["release", "revision", "when", "by", "migration"]
    rows = {line.split()[0]: line for line in table[1:]}
    assert rows["a"].endswith("serves")
    assert "v-a" in rows["a"]
    assert "ann@desk" in rows["a"]
    assert "broken, at load" in rows["b"]


# Hooks.

POINTS = [
    f"{when}_{what}"
    for what in ("build", "migrate", "switch", "finish")
    for when in ("before", "after")
]
FILE = {"tasks": "x.yml"}


def test_hooks_run_in_the_release_at_their_step(app: App) -> None:
    hooks = {point: [f'echo "{point} $(basename $PWD)" >>{app.root}/hooks'] for point in POINTS}
    app.deploy("a", hooks=hooks)
    assert (app.root / "hooks").read_text().splitlines() == [f"{point} a" for point in POINTS]


def test_without_task_files_the_gate_is_one_trip_and_else_one_more_for_each_point(app: App) -> None:
    assert app.step("begin", "a")["plan"] == [{"steps": GATE, "point": ""}]
    hooks = {point: [FILE] for point in POINTS}
    plan = app.step("begin", "a", hooks=hooks, run=RUN_2, break_lock=True)["plan"]
    assert [trip["point"] for trip in plan] == POINTS[:6]
    steps = [step for trip in plan for step in trip["steps"]]
    assert steps == ["venv", *GATE]


def test_several_servers_wait_for_the_migration_and_then_for_all_probes(app: App) -> None:
    for number, migrates in enumerate((True, False)):
        changes = {"servers": 2, "migrate_enabled": migrates, "break_lock": True}
        plan = app.step("begin", "a", run=RUN_2 | {"id": str(number)}, **changes)["plan"]
        assert [trip["steps"] for trip in plan] == [
            ["build", "load", *(["migrate"] if migrates else [])],
            ["probe"],
            ["switch"],
        ]


def test_a_point_on_another_server_is_made_right_before_the_migration(app: App) -> None:
    plan = app.step("begin", "a", point_server="db")["plan"]
    assert [trip["steps"] for trip in plan] == [["build", "load"], ["migrate", "probe", "switch"]]
    commands = {"migrate": ""}
    run = RUN_2 | {"id": "2"}
    (trip,) = app.step(
        "begin", "a", point_server="db", commands=commands, run=run, break_lock=True
    )["plan"]
    assert "migrate" not in trip["steps"]


def moment(app: App, asked: str) -> dict[str, Any]:
    return app.step("moment", "", asked=asked)


def test_the_moment_before_a_release_is_its_point(app: App) -> None:
    """Whichever server has made it, and also where the migration failed."""
    app.deploy("a", point_server="db", restore_point="before-a-x")
    assert moment(app, "a")["moment"] == "before-a-x"
    assert "before-a-x" in moment(app, "a")["says"]
    app.fail("b", restore_point="before-b-x", commands={"migrate": "false"})
    assert moment(app, "b")["moment"] == "before-b-x"


@pytest.mark.parametrize("by", ["migrate", "load", "after_switch"])
def test_the_moment_before_a_release_without_a_point_is_before_it_changed_anything(
    app: App, by: str
) -> None:
    """Whatever changes something: without backups its migration, the app itself, or being there."""
    began, changes = time.time(), f"sleep 0.2; date +%s.%N >{app.root}/changed"
    commands = {"migrate": "", "load": "true"} | ({by: changes} if by != "after_switch" else {})
    hooks = {by: [changes]} if by == "after_switch" else {}
    app.deploy("a-1", commands=commands, hooks=hooks, user_migrates=by == "load")
    told = moment(app, "a")
    at = backup_target.parse(told["moment"], [], time.time()).at
    assert began < at < float((app.root / "changed").read_text()) - 0.2
    assert "The last moment before a-1 was" in told["says"]


def test_a_rollback_leaves_the_moment_before_a_release_as_it_is(app: App) -> None:
    commands = {"migrate": ""}
    app.deploy("a", commands=dict(commands))
    app.deploy("b", commands=dict(commands))
    before = moment(app, "a")
    app.rollback("a")
    assert moment(app, "a") == before
    # Released once more, it is another one.
    app.rollback("b")
    app.deploy("a", commands=dict(commands))
    assert moment(app, "a")["moment"] > before["moment"]


def test_a_release_that_migrates_no_more_does_not_go_back_to_its_former_point(app: App) -> None:
    app.deploy("a", restore_point="before-a-x")
    app.deploy("b")
    began = time.time()
    app.deploy("a", commands={"migrate": ""})
    assert backup_target.parse(moment(app, "a")["moment"], [], began).at > began


def test_nothing_is_said_of_a_release_that_the_books_do_not_have(app: App) -> None:
    app.deploy("a")
    assert moment(app, "b") == moment(app, "") == {"moment": "", "says": ""}


@pytest.mark.parametrize(
    "early", [{"user_migrates": True}, {"commands": {"setup": "true"}}], ids=["itself", "set up"]
)
def test_no_server_loads_what_another_one_still_sets_up(app: App, early: dict) -> None:
    for number, migrates in enumerate((True, False)):
        changes = {"servers": 2, "migrate_enabled": migrates, "break_lock": True, **early}
        plan = app.step("begin", "a", run=RUN_2 | {"id": str(number)}, **changes)["plan"]
        assert [trip["steps"] for trip in plan] == [
            ["build", *(["migrate"] if migrates else [])],
            ["load"],
            ["probe"],
            ["switch"],
        ]


def test_a_server_that_does_not_migrate_notes_that_the_app_was_set_up(app: App) -> None:
    said = app.root / "said"
    commands = {"setup": f"echo set up >>{said}"}
    app.deploy("a", commands=dict(commands), servers=2, migrate_enabled=False)
    # It has become the one that does.
    app.deploy("b", commands=dict(commands), servers=2)
    assert not said.exists()


def test_hooks_around_a_migration_run_without_one(app: App) -> None:
    hooks = {f"{when}_migrate": [f"echo {when} >>{app.root}/hooks"] for when in ("before", "after")}
    app.deploy("a", hooks=hooks, commands={"migrate": ""})
    assert (app.root / "hooks").read_text() == "before\nafter\n"


def test_without_any_of_it_there_is_no_such_step(app: App) -> None:
    (trip,) = app.step("begin", "a", commands={"migrate": ""})["plan"]
    assert "migrate" not in trip["steps"]


def test_an_app_is_set_up_once_before_it_is_loaded_and_again_when_asked(app: App) -> None:
    said = app.root / "said"
    commands = {"setup": f"echo set up >>{said}", "load": f"echo load >>{said}"}
    for name in "ab":
        app.deploy(name, commands=dict(commands))
    app.deploy("c", commands=dict(commands), setup_again=True)
    assert said.read_text().splitlines() == ["set up", "load", "load", "set up", "load"]


def test_a_set_up_that_fails_is_run_again(app: App) -> None:
    said = app.root / "said"
    commands = {"setup": f"echo x >>{said}; test -e {app.root}/well"}
    said_of_it = "failed at the step migrate: app_setup_command: exit status 1"
    assert said_of_it in app.fail("a", commands=dict(commands))
    (app.root / "well").touch()
    for name in "bc":
        app.deploy(name, commands=dict(commands))
    assert said.read_text() == "x\nx\n"


def test_the_app_s_user_migrates_before_the_app_is_loaded_where_that_is_said(app: App) -> None:
    (trip,) = app.step("begin", "a", user_migrates=True)["plan"]
    assert trip["steps"] == ["build", "migrate", "load", "probe", "switch"]


def test_a_migration_that_waits_for_a_lock_is_tried_again_and_names_who_has_it(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "PAUSE", 0)
    answers = {"others": "7 is in the way of shop", "invalid": ""}
    monkeypatch.setattr(migrations, "ask", lambda database, question: answers[question])
    tries, locked = app.root / "tries", "echo canceling statement due to lock timeout >&2; exit 1"
    count = f'echo "$PGOPTIONS" >>{tries}'
    thrice = f"{count}; [ $(wc -l <{tries}) = 3 ] || {{ {locked}; }}"
    app.deploy("a", commands={"migrate": thrice})
    assert tries.read_text() == " -c lock_timeout=3s\n" * 3
    tries.unlink()
    said = app.fail("b", commands={"migrate": f"{count}; {locked}"}, database="shop")
    assert "have a lock, 5 times; a serves.\n" in said
    assert "\n7 is in the way of shop\nAs before, a serves." in said
    assert len(tries.read_text().splitlines()) == 5
    # Any other reason is told at once.
    tries.unlink()
    assert "exit status 1" in app.fail("c", commands={"migrate": f"{count}; exit 1"})
    assert len(tries.read_text().splitlines()) == 1


def test_a_try_that_fails_for_what_the_one_before_left_tells_both(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "PAUSE", 0)
    answers = {"others": "7 is in the way", "invalid": "DROP INDEX ix"}
    monkeypatch.setattr(migrations, "ask", lambda database, question: answers[question])
    once = (
        f"mkdir {app.root}/once || {{ echo ix exists; exit 1; }}; echo due to lock timeout; exit 1"
    )
    assert "ix exists\n7 is in the way\nDROP INDEX ix\n" in app.fail(
        "a", commands={"migrate": once}, database="shop"
    )


def test_a_database_on_another_server_is_asked_by_whoever_migrates(app: App) -> None:
    # As it is in a release's virtual environment.
    (app.root / "bin/python").symlink_to("/usr/bin/python3")
    commands = {"migrate": "echo due to lock timeout; exit 1"}
    known = {"environment": {"DATABASE_URL": "postgresql+pg8000://a:hush@127.0.0.1:1/shop"}}
    said = app.fail("a", commands=commands, migrate_tries=1, variables=known)
    assert "Who is in the way, PostgreSQL says on the database's server: sudo" in said
    assert "hush" not in said
    # An app that has another kind of database is told nothing of it.
    assert "PostgreSQL" not in app.fail("b", commands=dict(commands), migrate_tries=1)
    # What helps is no reason of its own.
    (app.root / "bin/python").unlink()
    (app.root / "bin/python").symlink_to("/bin/false")
    said = app.fail("c", commands=dict(commands), migrate_tries=1, variables=known)
    assert "the database did not let it have a lock, once" in said.splitlines()[0]


def test_an_app_that_migrates_as_it_is_loaded_does_not_wait_for_long_either(app: App) -> None:
    command = f'echo "${{PGOPTIONS:-}}" >>{app.root}/said'
    app.deploy("a", commands={"load": command}, user_migrates=True)
    app.deploy("b", commands={"load": command})
    assert (app.root / "said").read_text() == " -c lock_timeout=3s\n\n"


# What a removal asks.


@pytest.fixture
def removing(app: App, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What tells that the app of this server is being removed."""
    monkeypatch.setattr(release_state, "CLAIMS", app.root / "claims")
    return app.root / "claims/carafe-test-app.removing"


def test_whoever_removes_an_app_learns_who_is_at_work_on_it(app: App, removing: Path) -> None:
    app.deploy("a")
    app.step("begin", "b")
    other = {"run": RUN_2, "break_lock": False}
    with pytest.raises(Locked, match=r"ann@desk holds the lock of \S+ since .* deployment of b"):
        app.step("remove", "", **other)
    assert not removing.exists()
    app.step("remove", "", **{**other, "break_lock": True})
    assert removing.exists()


def test_no_release_begins_while_the_app_is_removed(app: App, removing: Path) -> None:
    app.deploy("a")
    app.deploy("b")
    app.step("remove", "", check=True)
    app.deploy("b")
    app.step("remove", "")
    words = r"ann@desk removes carafe-test-app since 20.*Nothing was touched.*playbooks/remove\.yml"
    # One that serves already would not take the lock, and still be served anew.
    for step, release in (("begin", "b"), ("begin", "c"), ("choose", "")):
        with pytest.raises(Locked, match=words) as refused:
            app.step(step, release, run=RUN_2)
        # By these the control machine tells whether that run is alive.
        assert {"machine", "pid"} <= refused.value.lock.keys()
    # One that began in between has looked before.
    with pytest.raises(Locked, match=words):
        release_steps.Release(app.facts("c", run=RUN_2)).take_lock()
    assert not app.locked
    # Removals go on with each other, also where the app's own folder is gone by then.
    app.step("remove", "", run=RUN_2)
    shutil.rmtree(app.root / "state")
    app.step("remove", "", run=RUN_2)
    with pytest.raises(Locked, match=words.replace("ann@desk", "bob")):
        app.step("begin", "c")
    assert not (app.root / "state").exists()
    app.step("begin", "c", break_lock=True)
    assert not removing.exists()


def test_a_run_notes_whose_the_place_is_before_it_makes_anything(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    fact = app.root / "claims/shop.fact"
    monkeypatch.setattr(release_settings, "CLAIMS", fact.parent)

    def killed(_: Any, check: bool) -> list[str]:
        if check:
            return []
        assert fact.read_text() == "{}"
        raise KeyboardInterrupt

    monkeypatch.setattr(release_settings, "accounts", killed)
    with pytest.raises(KeyboardInterrupt):
        app.step("begin", "a", place={str(fact): ["{}", 0o644]})


# What a failure says.


def test_a_step_says_one_line_and_the_end_of_the_run_all_of_it(app: App) -> None:
    app.deploy("a")
    changes = {"again": "ansible-playbook x.yml", "run": RUN_2}
    why = app.fail("b", commands={"load": "echo no such page; exit 3"}, **changes)
    first, *_, last = why.splitlines()
    assert first == "b failed at the step load: exit status 3; a serves."
    assert "\nno such page\n" in why
    assert last == "As before, a serves. Mend that, and run again: ansible-playbook x.yml"
    with pytest.raises(Failure) as failure:
        app.step("report_failure", "b", failure=f"{first}\nWhy stands at the end", **changes)
    assert str(failure.value) == why
    # Nor does a later run, whether it fails with the same words or others, say it for its own.
    for other in (first, "nginx refuses it"):
        with pytest.raises(Failure) as failure:
            app.step("report_failure", "b", failure=other, **changes)
        assert "no such page" not in str(failure.value)
        app.fail("b", commands={"load": "echo no such page; exit 3"}, **changes)


def test_the_log_of_an_earlier_try_is_not_shown_as_this_one_s(app: App) -> None:
    for again in ("probe", "load"):
        # Built as a whole, so that its log stays.
        broken = {"commands": {again: f"echo of the {again}; exit 1"}}
        said = app.fail("a", run=RUN_2 | {"id": again}, **broken)
    assert "of the load" in said
    assert "of the probe" in (app.root / "logs/a.log").read_text()
    assert "of the probe" not in said
    # One that prints nothing shows nothing.
    monthly = {"commands": {"load": ""}, "workers": [], "health": {"timeout": 0}}
    assert "of the" not in app.fail("a", run=RUN_2 | {"id": "third"}, **monthly).split("--- ")[0]


def test_where_nothing_has_served_site_comes_first(app: App) -> None:
    app.fail("a", commands={"load": "false"})
    changes = {"expects_release": True, "again": "ansible-playbook /deploy/deploy.yml -i deploy"}
    why = app.fail("b", run=RUN_2, **changes)
    assert why == "No release has served on this server yet"
    with pytest.raises(Failure) as failure:
        app.step("report_failure", "b", failure=why, run=RUN_2, **changes)
    assert (
        "not finished. Site comes first, run: ansible-playbook /deploy/site.yml -i deploy"
        in str(failure.value)
    )
    assert not app.locked
    app.deploy("a")
    app.deploy("b", **changes)


def test_a_link_to_what_never_served_is_not_what_serves(app: App) -> None:
    app.part(6, "a")
    (app.root / "state/lock.json").unlink()
    assert "exit status 1; nothing serves yet." in app.fail("b", commands={"load": "false"})


def test_commands_beside_task_files_are_left_to_the_tasks(app: App) -> None:
    hooks = {"before_switch": [f"touch {app.root}/hooked", FILE], "after_switch": ["true"]}
    app.deploy("a", hooks=hooks)
    assert not (app.root / "hooked").exists()
    app.part(5, "b")
    app.step("hook", "b", point="before_switch", command=hooks["before_switch"][0])
    assert (app.root / "hooked").exists()


def test_hook_before_the_build_has_the_dependencies(app: App) -> None:
    hooks = {"before_build": [FILE], "after_build": [FILE]}
    app.step("begin", "a", hooks=hooks)
    app.step("gate", "a", "venv", hooks=hooks)
    test = f"test -x {app.root}/venvs/venv-1/bin/python"
    app.step("hook", "a", point="before_build", command=test)
    app.step("gate", "a", "build", hooks=hooks)
    # What comes after the build is part of it.
    assert not app.step("begin", "a", check=True, break_lock=True)["built"]
    app.step("gate", "a", *GATE[1:], hooks=hooks)
    app.step("finish", "a", hooks=hooks)
    assert app.step("begin", "a")["built"]


@pytest.mark.parametrize(
    ("point", "steps"), [("before_migrate", 3), ("after_switch", 6), ("before_finish", 6)]
)
def test_hook_that_fails_is_a_release_that_fails(app: App, point: str, steps: int) -> None:
    app.deploy("a")
    app.part(steps, "b")
    with pytest.raises(Failure, match="exit status 3"):
        app.step("hook", "b", point=point, command="echo no such page; exit 3")
    changes = {"failure": f"{point}: exit status 3"}
    app.step("revert", "b", **changes)
    with pytest.raises(Failure) as failure:
        app.step("report_failure", "b", **changes)
    assert f"b failed at the step {point}: exit status 3" in str(failure.value)
    assert "no such page" in str(failure.value)
    assert app.known["b"]["broken"].startswith(f"{point}: exit status 3")
    assert app.serving == "a"
    assert not app.locked


def test_slots_that_fail_after_a_hook_are_told_from_it(app: App) -> None:
    app.deploy("a")
    app.part(6, "b")
    app.step("hook", "b", point="after_switch", command="true")
    app.step("revert", "b", failure="slot 1 is not healthy")
    assert app.known["b"]["broken"] == "slots: slot 1 is not healthy"


def test_a_release_that_does_not_stay_well_is_taken_back(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix_http, "PATIENCE", 0.2)
    app.deploy("a")
    health = {"path": "/healthz", "sockets": [str(app.root / "slot-1.sock")]}
    # In its slots it has been well, and is gone by the end.
    failed = app.fail("b", health=dict(health))
    assert "slot-1 did not stay healthy: not healthy within 0.2 s: no answer to /healthz" in failed
    why = {"failure": failed}
    app.step("revert", "b", **why)
    assert app.serving == "a"
    with pytest.raises(Failure, match="b failed at the step finish: slot-1 did not stay healthy"):
        app.step("report_failure", "b", **why)
    assert app.known["b"]["broken"].startswith("finish: slot-1 did not stay healthy")
    assert not app.locked


def test_hook_that_fails_at_the_very_end_leaves_the_release_serving(app: App) -> None:
    app.deploy("a")
    end = app.deploy("b", hooks={"after_finish": ["echo no such page; exit 3"]})
    assert end["after_finish"].startswith("after_finish: exit status 3\nThe end of")
    assert end["after_finish"].endswith("no such page\n")
    assert app.serving == "b"
    assert "broken" not in app.known["b"]
    assert not app.locked


# Dry runs.


def test_dry_run_changes_nothing_and_says_what_it_would_write(app: App) -> None:
    app.deploy("a")
    before = app.tree()
    variables = {"environment": {"GREETING": "a secret greeting", "NEW": "x"}}
    told = app.step("begin", "b", check=True, variables=variables)
    assert "settings/b/environment: GREETING is changed" in told["diff"]
    assert "NEW is new" in told["diff"]
    assert "a secret greeting" not in told["diff"]
    app.step("choose", "", asked="a", check=True)
    assert app.tree() == before


def test_bare_server_has_no_release(app: App, tmp_path: Path) -> None:
    told = app.step("begin", "a", root=f"{tmp_path}/nowhere", check=True)
    assert not told["live"]
    assert f"{tmp_path}/nowhere" in told["place"]
    assert not (tmp_path / "nowhere").exists()


def test_schedule_with_a_time_that_is_none_stops_before_anything(app: App) -> None:
    schedule = {"name": "cleanup", "command": "true", "when": "every now and then", "timeout": 9}
    with pytest.raises(Failure, match="app_schedules: cleanup has a time"):
        app.step("begin", "a", schedules=[schedule])
    assert not app.locked
    app.step("begin", "a", schedules=[schedule | {"when": "Mon *-*-* 03:00"}])


# What heals.


@pytest.mark.parametrize("harm", ["folder", "python", "files"])
def test_virtual_environment_that_is_gone_or_half_there_is_built_anew(app: App, harm: str) -> None:
    build = "for x in 1 2 3; do touch ROOT/venvs/venv-1/$x; done".replace("ROOT", str(app.root))
    script = f"{app.facts('')['build_venv']['script']}; {build}"
    app.deploy("a", build_script=script)
    folder = app.root / "venvs/venv-1"
    match harm:
        case "folder":
            shutil.rmtree(folder)
        case "python":
            (folder / "bin/python").unlink()
        case "files":
            (folder / "2").unlink()
    assert not app.step("begin", "a", check=True)["live"]
    app.deploy("a", build_script=script)
    assert (folder / "2").exists()
    assert app.step("begin", "a")["live"]


def test_settings_that_were_changed_on_the_server_are_not_what_serves(app: App) -> None:
    app.deploy("a")
    (app.root / "serving/environment").write_text("GREETING=other\n")
    assert not app.step("begin", "a", check=True)["live"]
    app.deploy("a")
    assert "hello" in (app.root / "serving/environment").read_text()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}'])
def test_damaged_history_is_named_and_made_anew_once_removed(app: App, text: str) -> None:
    for release in "abc":
        app.deploy(release)
    path = app.root / "state/releases.json"
    path.write_text(text)
    for changes in ({}, {"break_lock": True}):
        with pytest.raises(Failure, match=r"releases\.json is damaged: .* Remove it"):
            app.step("begin", "d", **changes)
    path.unlink()
    app.deploy("d", keep=9)
    assert {x.name for x in (app.root / "releases").iterdir()} == set("abcd")
    app.rollback()
    assert app.serving == "c"


def test_history_that_is_lost_with_all_else_that_is_known_costs_no_release(app: App) -> None:
    for release in "abc":
        app.deploy(release)
    shutil.rmtree(app.root / "state")
    app.deploy("d", keep=9)
    assert {x.name for x in (app.root / "releases").iterdir()} == set("abcd")
    app.rollback("a")
    assert app.serving == "a"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_damaged_lock_is_told_and_can_be_broken(app: App, text: str) -> None:
    app.deploy("a")
    (app.root / "state/lock.json").write_text(text)
    with pytest.raises(Failure, match=r"lock\.json"):
        app.step("begin", "b")
    app.deploy("b", break_lock=True)
    assert app.serving == "b"
    assert not app.locked


def test_step_that_never_ends_is_ended(app: App) -> None:
    app.deploy("a")
    said = app.fail("b", commands={"load": "sleep 300 & sleep 300"}, limits={"step": 1})
    assert "it did not end within 1 s, app_step_timeout" in said
    assert app.serving == "a"


def test_the_end_of_the_probed_server_does_not_hold_up_the_switch(app: App) -> None:
    waits = f"until test -e {app.root}/switched; do sleep 0.05; done; touch {app.root}/ended; exit"
    probe = f"trap '{waits}' TERM; {server(200).removeprefix('exec ')} & wait"
    hooks = {"after_switch": [f"touch {app.root}/switched"]}
    app.deploy("a", commands={"probe": probe}, hooks=hooks)
    assert (app.root / "ended").exists()


@pytest.mark.parametrize("status", [200, 500])
def test_nothing_of_the_probed_server_is_left(
    app: App, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One of its own, with a short name: other tests, and other runs of this one, probe meanwhile.
    own = tempfile.mkdtemp()
    monkeypatch.setattr(tempfile, "tempdir", own)
    slowly = f"trap 'sleep 2; exit' TERM; {server(status).removeprefix('exec ')} & wait"
    probe = f"echo $$ >{app.root}/probed; {slowly}"
    changes = {"commands": {"probe": probe}, "health": {"timeout": 2}}
    if status == 200:
        app.deploy("a", **changes)
    else:
        app.fail("a", **changes)
    assert not Path("/proc", (app.root / "probed").read_text().strip()).exists()
    assert not list(Path(own).glob("carafe-test-app-*"))
    shutil.rmtree(own)


def test_what_a_step_leaves_running_does_not_hold_it_up(app: App) -> None:
    began = time.monotonic()
    app.deploy("a", commands={"load": f"sleep 600 & echo $! >{app.root}/left"})
    assert time.monotonic() - began < 300
    subprocess.run(["kill", (app.root / "left").read_text().strip()], check=True)


def test_full_disk_after_the_switch_takes_back_what_can_be_taken_back(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.deploy("a")
    app.part(6, "b")
    before = app.tree()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write", full)
    trouble = {"failure": "No space left on device"}
    app.step("revert", "b", **trouble)
    with pytest.raises(Failure, match="No space left on device; a serves"):
        app.step("report_failure", "b", **trouble)
    assert app.serving == "a"
    assert not app.locked
    assert set(app.tree()) <= set(before)


@pytest.mark.parametrize(
    ("memory", "tasks", "said"),
    [(700, 1000, ["MemoryMax=700M", "TasksMax=1000"]), (0, 0, ["infinity", "infinity"])],
)
def test_the_slice_of_an_app_has_its_limits(memory: int, tasks: int, said: list[str]) -> None:
    app = {"name": "my-app", "user": "my-app", "memory_max_mb": memory, "tasks_max": tasks}
    (unit,) = release_settings.limits(app)
    # A hyphen would be a slice within a slice.
    assert unit.path.name == r"carafe-my\x2dapp.slice"
    lines = unit.content.decode().splitlines()[-2:]
    assert all(line.endswith(words) for line, words in zip(lines, said, strict=True))


@pytest.mark.parametrize(
    ("home", "shell", "known"),
    [
        ("/home/shop", "/bin/bash", True),
        ("/home/shop", "/bin/bash", False),
        ("/srv/shop", "/usr/sbin/nologin", False),
    ],
)
def test_a_user_that_was_there_before_is_not_taken_for_the_app_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str, shell: str, known: bool
) -> None:
    monkeypatch.setattr(release_settings, "CLAIMS", tmp_path)
    if known:
        (tmp_path / "shop.fact").write_text("{}")
    user = pwd.struct_passwd(("shop", "x", 1000, 1000, "Anna", home, shell))
    app = {"name": "shop", "root": "/srv/shop"}
    if known:
        release_settings.refuse_somebody(app, user)
        return
    with pytest.raises(Refused, match=f"a user shop already.*home {home}, shell {shell}"):
        release_settings.refuse_somebody(app, user)


def test_a_schedule_that_leaves_takes_its_last_run_along(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it comes back, what another server has run meanwhile is not made up for."""
    asked: list[str] = []
    monkeypatch.setattr(release_settings, "STAMPS", tmp_path)
    monkeypatch.setattr(release_settings, "ask", lambda *words: asked.append(" ".join(words)))
    monkeypatch.setattr(release_settings, "run", lambda *words: asked.append(" ".join(words)))
    monkeypatch.setattr(release_settings, "show", lambda *_: [])
    app.deploy("a")
    name = app.root.name
    state = types.SimpleNamespace(app={"name": name}, root=app.root)
    (tmp_path / "units").mkdir(exist_ok=True)
    kept = tmp_path / f"stamp-{name}-two.night.timer"
    for path in (tmp_path / f"units/{name}.night.timer", kept):
        path.touch()
    stamp = tmp_path / f"stamp-{name}.night.timer"
    stamp.touch()
    assert release_settings.apply_schedules(state, True) == [f"{name}.night.timer"]
    assert stamp.exists()
    assert release_settings.apply_schedules(state, False) == [f"{name}.night.timer"]
    assert asked[0] == f"systemctl disable --now {name}.night.timer"
    assert not stamp.exists()
    assert kept.exists()
