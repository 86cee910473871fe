"""What others put into an app's folders: root passes it by or refuses it, and touches nothing else.

Whoever builds a release runs the code of all of its dependencies as the deploy user, and the app
writes what is shared. Here each of a list of things is put, as they could, at each path that root
comes by, before each step of a release. The step is taken by root, in a process of its own: it ends
in time, it fails in words or not at all, and what is outside of the app's folders stays as it is.
"""

from __future__ import annotations

import contextlib
import grp
import multiprocessing
import os
import pwd
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import (
    files,
    programs,
    release_settings,
    sandbox,
)
from ansible_collections.carafe.stack.plugins.module_utils.commands import Failure
from test_release import GATE, App

pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="only root can try what it does among others"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

# Of base-passwd, so that every Debian has them; neither of them runs anything where tests do.
USER, DEPLOY = "nobody", "games"
SECONDS = 20
# Until which of its steps the third release has come, and what is tried then.
STEPS = ["begin", *GATE, "workers", "finish", "begin again", "choose", "revert", "report", "list"]
# The new release serves by then, and nothing that others put there takes it back.
SERVES = STEPS.index("workers")
NEVER_FAIL = ("workers", "finish", "revert", "report", "list")

# Stand in for runuser and for systemd, since these users are in each other's groups only on a
# server, and no systemd may be here.
BECOME = """#!/bin/sh
user=
while [ "$1" != -- ]; do
  case $1 in -u) user=$(id -u "$2"); shift ;; --reuid=*) user=${1#--reuid=} ;; esac
  shift
done
shift
exec /usr/bin/setpriv --reuid="$user" --regid="$(id -g "$user")" --groups=GROUP -- "$@"
"""
UNIT = """#!/bin/sh
while [ "$1" != -- ]; do
  case $1 in
    --unit=*) unit=${1#*=} ;;
    --property=EnvironmentFile=*) file=${1#*=*=} ;;
    --property=WorkingDirectory=*) folder=${1#*=*=} ;;
    --property=User=*) user=$(id -u "${1#*=*=}") ;;
  esac
  shift
done
shift
echo $$ >ROOT/units/$unit
for word; do
  case $word in *'$$'*) word=$(printf %s "$word" | sed 's/[$][$]/$/g') ;; esac
  set -- "$@" "$word"
  shift
done
set -a
. "$file"
exec /usr/bin/setpriv --reuid="$user" --regid="$(id -g "$user")" --groups=GROUP -- \
  sh -c 'cd "$0" && exec "$@"' "$folder" "$@"
"""


class Server(App):
    """The app's folder, as its users have it, and what is outside of it."""

    def __init__(self, top: Path) -> None:
        self.top, self.outside = top, top / "outside"
        (top / "app").mkdir(mode=0o755)
        super().__init__(top / "app")
        for name, text in (("runuser", BECOME), ("systemd-run", UNIT)):
            text = text.replace("GROUP", str(ids(USER)[1])).replace("ROOT", str(self.root))
            (self.root / "bin" / name).write_text(text)
            (self.root / "bin" / name).chmod(0o755)
        os.chown(self.root / "database", *ids(DEPLOY))
        self.outside.mkdir(mode=0o755)
        (self.outside / "folder").mkdir(mode=0o700)
        for name in ("file", "folder/file"):
            (self.outside / name).write_text("only root's\n")
            (self.outside / name).chmod(0o600)

    def facts(self, release: str, **changes: Any) -> dict[str, Any]:
        facts = super().facts(release, **changes)
        # The interpreter of the tests may lie in root's home.
        probe = facts["commands"]["probe"].replace(sys.executable, "/usr/bin/python3")
        return facts | {
            "commands": facts["commands"] | {"probe": probe},
            "user": USER,
            "deploy_user": DEPLOY,
            "shared": ["data", "data/inner"],
            "uploads": [],
            "finish": "umask 022; chmod -R o+rX static; " + facts["finish"],
        }


def ids(user: str) -> tuple[int, int]:
    entry = pwd.getpwnam(user)
    return entry.pw_uid, entry.pw_gid


# What is put there.


def link(aim: str) -> Callable[[Server, Path], None]:
    return lambda server, path: path.symlink_to(server.outside / aim)


def second_name(server: Server, path: Path) -> None:
    path.hardlink_to(server.outside / "file")


def pipe(server: Server, path: Path) -> None:
    os.mkfifo(path, 0o666)


def unix_socket(server: Server, path: Path) -> None:
    # By a short name: an address has 108 bytes.
    folder = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)


def device(server: Server, path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # zero, which never ends
    except PermissionError:
        pytest.skip("root may make no device here")


def file(server: Server, path: Path) -> None:
    path.write_text("planted\n../../../outside/file\n/etc/passwd\n")


def folder(server: Server, path: Path) -> None:
    path.mkdir()
    (path / "link").symlink_to(server.outside)
    os.mkfifo(path / "pipe")


KINDS = {
    "link to a file": link("file"),
    "link to a folder": link("folder"),
    "link to nothing": link("nothing"),
    "link to itself": lambda server, path: path.symlink_to(path.name),
    "second name": second_name,
    "pipe": pipe,
    "socket": unix_socket,
    "device": device,
    "file": file,
    "folder": folder,
}
# Where: below the folders that others may write to, and beside what is root's. The releases a and
# b have served, c is on its way; x is nobody's.
PATHS = [
    *(
        "releases/c",
        "releases/c/.venv",
        "releases/c/static",
        "releases/c/.static",
        "releases/c/head",
    ),
    *("releases/c/static/app.0000000b.css", "releases/c/x", "releases/x", "releases/x y\n\x1b[2J"),
    *("releases/b", "releases/b/.static", "releases/b/static", "releases/b/.venv"),
    *("releases/b/static/app.0000000b.css", "releases/a", "releases/a/.static"),
    *("venvs/venv-1", "venvs/venv-1/bin", "venvs/venv-1/bin/python", "venvs/venv-1/x", "venvs/x"),
    *("shared/data/inner", "shared/data/x", "cache/x", "uv/1"),
    *("archives/x", "settings/x", "state/built/x", "state/venvs/x"),
]


@pytest.fixture(scope="module")
def top() -> Iterator[Path]:
    """Where all users come by, which is not so of the folders that pytest makes."""
    folder = Path(tempfile.mkdtemp(prefix="carafe-planted-"))
    folder.chmod(0o755)
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)


@pytest.fixture(scope="module")
def server(top: Path) -> Iterator[Server]:
    """A server on which two releases have served, with a copy of it before each step of a third."""
    own, groups = release_settings.folders, files.group_id

    def folders(app: dict[str, Any]) -> dict[str, tuple[int, str, str]]:
        groups = {x: grp.getgrgid(ids(x)[1]).gr_name for x in (USER, DEPLOY)}
        return {
            path: (mode, user, groups.get(group, group))
            for path, (mode, user, group) in own(app).items()
        }

    def group_id(name: str | int | None) -> int:
        return ids(name)[1] if name in (USER, DEPLOY) else groups(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox, "check", lambda: None)
        patch.setattr(sandbox, "RUN", top)
        patch.setattr(sandbox, "mounts", lambda: True)
        patch.setattr(sandbox, "users", lambda: True)
        patch.setattr(release_settings, "accounts", lambda app, check: [])
        patch.setattr(release_settings, "UNITS", top / "units")
        patch.setattr(release_settings, "PROGRAMS", top / "programs")
        patch.setattr(release_settings, "limits", lambda app: [])
        patch.setattr(programs, "FOLDER", top / "lib")
        patch.setattr(release_settings, "folders", folders)
        patch.setattr(files, "group_id", group_id)
        made = Server(top)
        with umask(0o022):
            for release in "ab":
                made.deploy(release)
            for number, step in enumerate(STEPS[: SERVES + 2]):
                keep(made, number)
                take(made, step)
            keep(made, len(STEPS))
        yield made


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def keep(server: Server, number: int) -> None:
    subprocess.run(["cp", "-a", server.root, server.top / f"before-{number}"], check=True)


def restore(server: Server, step: str) -> None:
    subprocess.run(["rm", "-rf", server.root], check=True)
    # The revert of a release that serves, and what comes after a whole one.
    number = {"revert": SERVES, "report": SERVES}.get(step, STEPS.index(step))
    number = len(STEPS) if step in ("begin again", "choose", "list") else number
    subprocess.run(["cp", "-a", server.top / f"before-{number}", server.root], check=True)


def take(server: Server, step: str) -> None:
    limits = {"limits": {"step": 5, "build": 5, "migrate": 5}, "health": {"timeout": 5}}
    trouble = {"failure": "slot 0 is not healthy"}
    run = {"id": "run-2", "by": "bob", "machine": "desk", "pid": "1", "what": "rollback to"}
    match step:
        case "begin again":
            server.step("begin", "c", **limits)
        case "choose":
            server.step("choose", "", asked="b", run=run, **limits)
        case "revert":
            server.step("revert", "c", **trouble, **limits)
        case "report":
            with pytest.raises(Failure, match="slot 0 is not healthy"):
                server.step("report_failure", "c", **trouble, **limits)
        case "list":
            table = server.step("list", "")["table"]
            assert not any("\x1b" in line or "\n" in line for line in table)
        case _ if step in GATE:
            server.step("gate", "c", step, **limits)
        case _:
            server.step(step, "c", **limits)


def plant(server: Server, path: str, kind: str) -> None:
    """Put it there, as whoever owns the folder could."""
    place = server.root / path
    subprocess.run(["rm", "-rf", place], check=True)
    KINDS[kind](server, place)
    if kind != "second name":
        owner = place.parent.stat()
        os.chown(place, owner.st_uid, owner.st_gid, follow_symlinks=False)


def look(path: Path) -> dict[str, Any]:
    """Return all that is known of what is there, and below."""
    found = {}
    for one in [path, *path.rglob("*")]:
        there = one.lstat()
        text = one.read_text() if stat.S_ISREG(there.st_mode) else ""
        found[str(one)] = (there.st_mode, there.st_uid, there.st_gid, there.st_mtime, text)
    return found


def child(server: Server, step: str, results: Any) -> None:
    os.setsid()
    os.umask(0o022)
    try:
        take(server, step)
        results.put("")
    except Failure as failure:
        results.put(f"Failure: {failure}")
    except OSError as error:
        # The module makes one line of it.
        results.put(f"OSError: {error}")
    except BaseException:
        results.put(f"crash: {traceback.format_exc()}")


def outcome(server: Server, step: str) -> str:
    """Take a step in a process of its own; return '' or how it failed."""
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    process = fork.Process(target=child, args=(server, step, results))
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
        return f"hang: {step} did not end within {SECONDS} s"
    return results.get(timeout=5)


# In turns, so that each two of step, path and kind meet; all of them take five times as long.
ALL = "CARAFE_PLANT_ALL" in os.environ
CASES = [
    (step, path, kind)
    for i, step in enumerate(STEPS)
    for j, path in enumerate(PATHS)
    for k, kind in enumerate(KINDS)
    if ALL or (i + j + k) % 5 == 0
    # The release that is on its way is not there yet.
    if not (step in ("begin", "build") and path.startswith("releases/c/"))
]


@pytest.mark.parametrize(("step", "path", "kind"), CASES)
def test_what_is_planted_is_refused_or_passed_by(
    server: Server, step: str, path: str, kind: str
) -> None:
    restore(server, step)
    plant(server, path, kind)
    before = look(server.outside)
    said = outcome(server, step)
    assert look(server.outside) == before
    assert not said.startswith(("hang", "crash")), said
    if said:
        assert "\n" not in said.partition("\nThe end of ")[0].strip(), said
        assert said.partition(":")[0] in ("Failure", "OSError")
    if step in NEVER_FAIL:
        assert not said


# Puts one thing after another into a place, as fast as it can.
FLAP = """
while :; do
  for x in PATHS; do
    mkdir -p $x/y/z; ln -s OUTSIDE $x/y/link; rm -rf $x
    ln -s OUTSIDE/folder $x; rm -rf $x
    mkfifo $x; rm -rf $x
  done
done
"""


@pytest.mark.parametrize(
    ("step", "paths"),
    [
        ("begin again", "releases/c venvs/venv-1"),
        ("build", "releases/c venvs/venv-1"),
        ("switch", "releases/b/static releases/b/.static"),
        ("finish", "releases/x venvs/x releases/b"),
        ("list", "releases/x releases/b"),
    ],
)
def test_what_changes_all_the_time_leads_root_nowhere(
    server: Server, step: str, paths: str
) -> None:
    restore(server, step)
    before = look(server.outside)
    script = FLAP.replace("OUTSIDE", str(server.outside)).replace("PATHS", paths)
    user, group = ids(DEPLOY)
    run_as = {"cwd": server.root, "user": user, "group": group, "extra_groups": []}
    with subprocess.Popen(["sh", "-c", script], stderr=subprocess.DEVNULL, **run_as) as flapping:
        said = outcome(server, step)
        flapping.kill()
    assert look(server.outside) == before
    assert not said.startswith(("hang", "crash")), said
    assert step not in NEVER_FAIL or not said


def test_what_an_app_leaves_of_its_probe_goes(
    server: Server, top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restore(server, "probe")
    (top / "tmp").mkdir()
    (top / "tmp").chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(top / "tmp"))
    probe = server.facts("c")["commands"]["probe"]
    deep = "cd $(dirname $PROBE_SOCKET) && (for i in $(seq 1500); do mkdir d && cd -P d; done)"
    left = "ln -s /etc link && mkfifo pipe"
    server.step("gate", "c", "probe", commands={"probe": f"{deep}; {left}; {probe}"})
    assert not list((top / "tmp").iterdir())
