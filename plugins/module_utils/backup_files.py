"""Backup of an app's files by restic: what it keeps, its secret files, and its SQLite databases.

SQLite's files are copied by SQLite itself while the app writes them: a copy of an open one is none.
They are told by their content, whatever they are called.

Used by programs that run without Ansible.
"""

from __future__ import annotations

import contextlib
import datetime
import grp
import json
import os
import pwd
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from . import backup_repository, backup_state, files
from .backup_jobs import alone, psql, size
from .backup_repository import restic
from .commands import Failure

SQLITE = b"SQLite format 3\0"
BESIDE = ("-wal", "-shm", "-journal")
COPIES = Path("/var/lib/carafe/backup/sqlite")
# In a process that is the owner of the file, and sees and writes what that one may. The copy has no
# log of changes beside it, and the file keeps its own.
COPY = """
import contextlib, sqlite3, sys, urllib.parse
name, copy = sys.argv[1:]
url = f"file:{urllib.parse.quote(name)}?mode=rw"
with contextlib.closing(sqlite3.connect(url, uri=True, timeout=60)) as there:
    with contextlib.closing(sqlite3.connect(copy)) as here:
        there.backup(here, pages=1000, sleep=0.01)
        here.execute("PRAGMA journal_mode = DELETE")
        ((said,),) = here.execute("PRAGMA quick_check(1)").fetchall()
        if said != "ok":
            sys.exit(said)
"""
# A repository in which a process was killed has its lock for half an hour, or for ever.
LOCKED, NONE = 11, 10
NAME_OF: dict[str, Callable[[int], str]] = {
    "uid": lambda number: pwd.getpwuid(number).pw_name,
    "gid": lambda number: grp.getgrgid(number).gr_name,
}
NUMBER_OF: dict[str, Callable[[str], int]] = {
    "uid": lambda name: pwd.getpwnam(name).pw_uid,
    "gid": lambda name: grp.getgrnam(name).gr_gid,
}


def sqlite_files(paths: Iterable[str]) -> Iterator[Path]:
    """Yield the files that SQLite has made, without following a link."""
    for top in paths:
        for folder, _, names in os.walk(top):
            for name in names:
                path = Path(folder, name)
                with contextlib.suppress(OSError):  # gone meanwhile
                    if is_sqlite(path):
                        yield path


def is_sqlite(path: Path) -> bool:
    with files.held(path) as (way, there):
        if not stat.S_ISREG(there.st_mode):
            return False
        with Path(way).open("rb") as file:
            return file.read(len(SQLITE)) == SQLITE


def copy(path: Path, folder: Path) -> Path:
    """Have SQLite copy a file, as the user that it belongs to."""
    there = path.lstat()
    place = folder / str(path).lstrip("/")
    if there.st_uid == 0:
        who: dict[str, Any] = {}
    else:
        who = {"user": there.st_uid, "group": there.st_gid, "extra_groups": []}
    # Each in a folder of its own, which only that user can write, and nobody else's name is in.
    work = folder / f".{os.urandom(8).hex()}"
    work.mkdir(mode=0o700)
    os.chown(work, there.st_uid, there.st_gid)
    done = subprocess.run(
        [sys.executable, "-I", "-c", COPY, str(path), str(work / "copy")],
        **{"capture_output": True, "text": True, "errors": "replace", "cwd": "/"},
        **{"check": False, "env": {"PATH": os.defpath}, **who},
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no copy"])[-1]
        raise Failure(f"SQLite does not copy {path}: {said}. Look at it: sqlite3 {path} .dbinfo")
    place.parent.mkdir(parents=True, exist_ok=True)
    (work / "copy").rename(place)
    files.remove(work)
    # From here on nobody else can put another thing into its place.
    files.set_attributes(place, stat.S_IMODE(there.st_mode), there.st_uid, there.st_gid)
    return place


def app_of(name: str) -> dict[str, Any]:
    """Return what the role has left of an app."""
    text = files.read(backup_repository.FOLDER / "apps" / f"{name}.json")
    if text is None:
        raise Failure(f"No files of {name} are backed up here. Run its site with --tags backup.")
    return json.loads(text)


def release_of(app: dict[str, Any]) -> str:
    try:
        return Path(app["release"]).resolve().name if app["release"] else ""
    except OSError:
        return ""


def back_up(name: str) -> tuple[str, dict[str, Any]]:
    """Store an app's files; once a day, let go of what is older than is kept."""
    setup, app = backup_repository.setup(), app_of(name)
    backup_repository.check_place(setup)
    folder = COPIES / name
    with alone(f"-files-{name}"):
        files.remove(folder)
        folder.mkdir(parents=True)
        for above in (COPIES, folder):
            above.chmod(0o711)
        # Before the files: what is restored with them is at least as old.
        moment = database_moment(setup)
        paths = [x for x in (*app["paths"], *app["more_paths"]) if Path(x).exists()]
        if not paths:
            raise Failure(f"None of {', '.join(app['paths'])} is there. See backup_paths.")
        copied = {str(x): str(copy(x, folder)) for x in sqlite_files(paths)}
        excluded = [f"{x}{suffix}" for x in copied for suffix in ("", *BESIDE)]
        tags = [f"app={name}", f"release={release_of(app)}", f"database={moment}"]
        tags += owner_tags(paths)
        listing = folder / ".exclude"
        # In a file of patterns, what looks like a variable is one.
        listing.write_text("".join(f"{quoted(x)}\n".replace("$", "$$") for x in excluded))
        try:
            found = store(setup, name, [*paths, *copied.values()], tags, listing)
            pruned = forget(setup, name)
        finally:
            files.remove(folder)
    message = f"{found['total_files_processed']} files, {size(found['data_added'])} new"
    if copied:
        message += f", {len(copied)} of SQLite's"
    details = {"snapshot": found["snapshot_id"], "sqlite": sorted(copied), "pruned_at": pruned}
    return message, {**details, "moment": moment, "files": found["total_files_processed"]}


def each(paths: Iterable[str | Path]) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield all that is there and below, without following a link."""
    for top in paths:
        below = (Path(x, y) for x, folders, names in os.walk(top) for y in (*folders, *names))
        for path in (Path(top), *below):
            with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                yield path, path.lstat()


def owner_tags(paths: Iterable[str]) -> list[str]:
    """Return whose the files are, by name: restic brings numbers, which each server gives anew."""
    numbers, found = set(), []
    for _, there in each(paths):
        numbers |= {("uid", there.st_uid), ("gid", there.st_gid)}
    for kind, number in sorted(numbers):
        with contextlib.suppress(KeyError):  # nobody's
            found.append(f"{kind}-{number}={NAME_OF[kind](number)}")
    return found


def owners_of(tagged: dict[str, str]) -> dict[str, str]:
    return {k: x for k, x in tagged.items() if k.startswith(("uid-", "gid-"))}


def own(top: Path, owners: dict[str, str]) -> None:
    """Give files to those who have the names of their owners here; to root where nobody has.

    By the number, it could be somebody else. A number that had no name stays.
    """
    numbers = {}
    for key, name in owners.items():
        try:
            numbers[key] = NUMBER_OF[key[:3]](name)
        except KeyError:
            numbers[key] = 0
    seen = set()  # with several names, which are to be given once
    for path, there in each([top]):
        if there.st_nlink > 1 and not stat.S_ISDIR(there.st_mode):
            if there.st_ino in seen:
                continue
            seen.add(there.st_ino)
        uid = numbers.get(f"uid-{there.st_uid}", there.st_uid)
        gid = numbers.get(f"gid-{there.st_gid}", there.st_gid)
        if (uid, gid) != (there.st_uid, there.st_gid):
            os.chown(path, uid, gid, follow_symlinks=False)


def quoted(path: str) -> str:
    """Return a path as a pattern of restic's that is this one path."""
    return "".join(f"\\{x}" if x in "*?[]\\" else x for x in path)


def database_moment(setup: dict[str, Any]) -> str:
    """Return where the database is, as the place in its WAL and the time; '' without one."""
    if not setup["database"]:
        return ""
    return psql(
        setup,
        "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()"
        " ELSE pg_current_wal_lsn() END || '@' || extract(epoch FROM clock_timestamp())::bigint",
    )


def store(
    setup: dict[str, Any], name: str, paths: list[str], tags: list[str], excluded: Path
) -> dict[str, Any]:
    """Make a snapshot; make the repository where there is none, and free it of a dead lock."""
    words = ["backup", "--json", "--quiet", f"--exclude-file={excluded}", f"--host={setup['host']}"]
    words += [word for tag in tags for word in ("--tag", tag)]
    begin(setup, name)
    done = restic(setup, name, *words, *paths)
    summary = [json.loads(x) for x in done.stdout.splitlines() if '"summary"' in x]
    if not summary or not summary[-1].get("snapshot_id"):
        raise Failure("restic ended well, and has made no snapshot. Run it by hand to see why.")
    return summary[-1]


def begin(setup: dict[str, Any], name: str) -> None:
    """Have a repository that nobody dead has locked."""
    done = restic(setup, name, "cat", "config", check=False)
    if done.returncode == 0:
        restic(setup, name, "unlock")  # only locks whose process is gone or silent
        return
    text = f"{done.stdout}{done.stderr}"
    if done.returncode != NONE and not missing(text):
        why = backup_repository.RESTIC.get(done.returncode, "")
        if "wrong password" in text:
            why = backup_repository.RESTIC[12]
        raise Failure(
            f"The repository of the files cannot be opened: {why or backup_repository.said(done)}."
            " Put the former key back in the vault, or name another backup_repository, and run"
            " site with --tags backup."
        )
    restic(setup, name, "init")


def missing(text: str) -> bool:
    """Tell whether restic says that there is no repository; Debian 12's has no status for it."""
    return "Is there a repository at the following location" in text


def snapshots(setup: dict[str, Any], name: str, anybody: bool = False) -> list[dict[str, Any]]:
    """Return the snapshots of an app's files, the oldest first, each with its moment as ``at``."""
    whose = [] if anybody else [f"--host={setup['host']}"]
    # It only asks, and a place that may not be written, or that a dead process has locked, answers.
    text = restic(setup, name, "snapshots", "--json", "--no-lock", *whose).stdout
    found = json.loads(text or "[]") or []
    for entry in found:
        entry["at"] = epoch(entry["time"])
        entry["tagged"] = dict(x.split("=", 1) for x in entry.get("tags") or [] if "=" in x)
    return sorted(found, key=lambda entry: entry["at"])


def epoch(text: str) -> float:
    """Return a time as restic writes it, with nanoseconds, in seconds since the epoch."""
    text = re.sub(r"(\.\d{6})\d*", r"\1", text).replace("Z", "+00:00")
    return datetime.datetime.fromisoformat(text).timestamp()


def forget(setup: dict[str, Any], name: str) -> float:
    """Let go of old snapshots, and of what only they had, once a day; return when that was."""
    last = backup_state.read(f"files-{name}") or {}
    since = (last.get("details") or {}).get("pruned_at", 0)
    if time.time() - since < 86400:
        return since
    days = setup["retention_days"]
    words = ("--group-by=host", f"--keep-within={days}d", "--keep-last=2", "--prune", "--quiet")
    restic(setup, name, "forget", f"--host={setup['host']}", *words)
    return time.time()


def check(setup: dict[str, Any], name: str, share: str = "") -> None:
    """Have restic read its repository; what a share of it holds is compared with its sums."""
    restic(setup, name, "check", "--quiet", *([f"--read-data-subset={share}"] if share else []))


def restored(
    setup: dict[str, Any], name: str, snapshot: dict[str, Any], target: Path, path: Path
) -> None:
    """Restore a folder of a snapshot below another, with SQLite's copies in their places."""
    number = snapshot["id"]
    copies = COPIES / name / str(path).lstrip("/")
    words = [f"--include={quoted(str(x))}" for x in (path, copies)]
    restic(setup, name, "restore", number, "--target", target, "--quiet", *words)
    below = target / str(copies).lstrip("/")
    for folder, _, names in os.walk(below):
        for one in names:
            place = target / str(path).lstrip("/") / Path(folder, one).relative_to(below)
            place.parent.mkdir(parents=True, exist_ok=True)
            Path(folder, one).rename(place)
    if not (target / str(path).lstrip("/")).exists():
        raise Failure(f"The snapshot {number[:8]} of {name} has no {path}.")
    files.remove(target / str(COPIES).lstrip("/"))
    own(target / str(path).lstrip("/"), snapshot["owners"])
