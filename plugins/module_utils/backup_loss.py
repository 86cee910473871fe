"""What a restore would lose: what was written since its moment, by the WAL and by the files.

The WAL is read for some seconds at most, one segment after the other, so that little disk is taken.
What it says counts: transactions that were committed, and the rows that they have written. A table
that was rewritten since is one whose rows are all new.

Used by modules.
"""

from __future__ import annotations

import datetime
import json
import os
import pwd
import re
import stat
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import backup_archive, backup_files, backup_jobs, backup_repository, backup_state, files
from .backup_files import BESIDE, COPIES
from .backup_repository import as_postgres, psql
from .backup_target import shown
from .commands import Failure

SECONDS = 20  # for which WAL is read
SLACK = 60  # seconds by which a store's clock may be ahead
SHOWN = 8  # tables, and files, that are named
RECORD = re.compile(
    r"rmgr: (\w+) .*?tx: +(\d+), lsn: ([0-9A-F]+/[0-9A-F]+), prev \S+, desc: (\S+)(.*)"
)
RELATION = re.compile(r"blkref #0: rel \d+/(\d+)/(\d+)")
COMMIT = re.compile(r"(?:(\d+): )?(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?) UTC")
SUBTRANSACTIONS = re.compile(r"subxacts: ([\d ]+)")
# Where what a record does to rows is counted: inserted, updated, deleted.
KINDS = {"INSERT": 0, "MULTI_INSERT": 0, "UPDATE": 1, "HOT_UPDATE": 1, "DELETE": 2}
WORDS = ("inserted", "updated", "deleted")
# What is below is of PostgreSQL's catalogs, which ANALYZE and the like write, too.
FIRST_OF_USERS = 16384
TABLES = """SELECT coalesce(json_object_agg(pg_relation_filenode(c.oid),
        CASE relkind WHEN 't' THEN '' ELSE format('%s.%s', nspname, relname) END), '{}')
    FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE relkind IN ('r', 'm', 't')"""
Rows = dict[tuple[int, int], list[int]]


@dataclass
class Written:
    """What committed transactions have written, by the number of the database."""

    since: Mapping[int, float]  # the databases that count, and from when on
    transactions: dict[int, int] = field(default_factory=dict)
    last: dict[int, float] = field(default_factory=dict)
    rows: Rows = field(default_factory=dict)  # by database and file
    reached: float = 0  # the last commit that was read, of any database
    open: dict[int, Rows] = field(default_factory=dict)  # of those that are not done yet

    def take(self, kind: str, transaction: int, word: str, more: str) -> None:
        """Count a record of the WAL."""
        if kind != "Transaction":
            self.write(transaction, word.removesuffix("+INIT"), more)
        elif word.startswith("COMMIT"):
            self.commit(transaction, more)

    def write(self, transaction: int, word: str, more: str) -> None:
        relation = RELATION.search(more)
        if word not in KINDS or not relation:
            return
        place = int(relation[1]), int(relation[2])
        if place[0] not in self.since or place[1] < FIRST_OF_USERS:
            return
        many = re.search(r"\d+", more) if word == "MULTI_INSERT" else None
        counts = self.open.setdefault(transaction, {}).setdefault(place, [0, 0, 0])
        counts[KINDS[word]] += int(many[0]) if many else 1

    def commit(self, transaction: int, more: str) -> None:
        found = COMMIT.search(more)
        if not found:
            return
        at = datetime.datetime.fromisoformat(f"{found[2]}+00:00").timestamp()
        self.reached = max(self.reached, at)
        touched = set()
        for one in (int(found[1] or transaction), *below(more)):
            for place, counts in self.open.pop(one, {}).items():
                if at > self.since[place[0]]:
                    touched.add(place[0])
                    there = self.rows.setdefault(place, [0, 0, 0])
                    self.rows[place] = [x + y for x, y in zip(there, counts, strict=True)]
        for database in touched:
            self.transactions[database] = self.transactions.get(database, 0) + 1
            self.last[database] = max(self.last.get(database, 0), at)


def below(more: str) -> list[int]:
    """Return the transactions within one that its end names."""
    found = SUBTRANSACTIONS.search(more)
    return [int(x) for x in found[1].split()] if found else []


def plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


# The database.


def database(setup: dict[str, Any], app: str, names: Iterable[str], since: float) -> list[str]:
    """Return for people what was written in an app's databases after a moment."""
    numbers = json.loads(
        psql(setup, "SELECT coalesce(json_object_agg(datname, oid::bigint), '{}') FROM pg_database")
    )
    lines = [f"{x}: it is not there now" for x in names if x not in numbers]
    there = [x for x in names if x in numbers]
    restored = backup_state.read(f"restore-{app}") or {}
    # Loading is writing, too.
    if there and restored.get("result") == "ok" and restored["ended"] > since:
        since = restored["ended"]
        lines.append(f"since the last restore, which was done {shown(since)}:")
    if not there:
        return lines
    written = Written({numbers[x]: since for x in there})
    whole = read(setup, written, since)
    for name in there:
        lines += of_one(name, written, numbers[name], json.loads(psql(setup, TABLES, name)))
    if not whole:
        end = f"until {shown(written.reached)} only" if written.reached else "a part only"
        lines.append(f"that is {end}: more WAL than can be read in {SECONDS} s came since")
    return lines


def of_one(name: str, written: Written, number: int, tables: Mapping[str, str]) -> list[str]:
    """Return what was written in one database, the tables with most of it first."""
    count = written.transactions.get(number, 0)
    if not count:
        return [f"{name}: no transaction has written rows"]
    many, last = plural(count, "transaction"), shown(written.last[number])
    found: dict[str, list[int]] = {}
    gone = False
    for (where, file), counts in written.rows.items():
        table = tables.get(str(file))
        if where == number and table:
            found[table] = counts
        elif where == number and table is None:
            gone = True
    most = sorted(found, key=lambda table: (-sum(found[table]), table))
    lines = [f"{name}: {many} with rows written, the last {last}"]
    for table in most[:SHOWN]:
        said = ", ".join(f"{x} {word}" for x, word in zip(found[table], WORDS, strict=True) if x)
        lines.append(f"  {table}: {said}")
    if len(most) > SHOWN:
        lines.append(f"  {plural(len(most) - SHOWN, 'more table')}")
    if gone:
        lines.append("  more in tables that were dropped, emptied or rewritten since")
    return lines


def read(setup: dict[str, Any], written: Written, since: float) -> bool:
    """Count what the WAL since a moment has; tell whether that was all of it."""
    until = time.monotonic() + SECONDS
    current = psql(setup, "SELECT pg_walfile_name(pg_current_wal_lsn())")
    timeline, last = backup_archive.number(current)
    first, archived = span(listing(setup), timeline, last, since)
    with files.scratch("carafe-wal-") as made:
        folder = Path(made)
        os.chown(folder, pwd.getpwnam("postgres").pw_uid, -1)
        for number in range(first, last + 1):
            # A record may go on in the next one.
            names = [
                backup_archive.name(timeline, x) for x in range(number, min(number, last - 1) + 2)
            ]
            for one in names:
                bring(setup, one, folder, backup_archive.number(one)[1] <= archived)
            end = number + 1 if len(names) > 1 else 0
            for record in records(setup, folder, names, end, strict=number + 1 < last):
                written.take(*record)
                if time.monotonic() > until:
                    return False
            files.remove(folder / names[0])
            if time.monotonic() > until and number < last:
                return False
    return True


def listing(setup: dict[str, Any]) -> dict[str, float]:
    """Return when each file of the archive came there."""
    known = backup_repository.info(setup)
    newest = max(known["archive"], key=lambda x: (x.get("database") or {}).get("id", 0))
    folder = f"archive/{setup['stanza']}/{newest['id']}"
    text = backup_jobs.pgbackrest_repo(setup, "repo-ls", "--recurse", "--output=json", folder)
    found = json.loads(text or "{}")
    return {path: found[path].get("time", 0) for path in backup_archive.look(found)}


def span(came: Mapping[str, float], timeline: int, last: int, since: float) -> tuple[int, int]:
    """Return the first segment that may have something after a moment, and the last archived one.

    A segment comes into the archive after the last commit in it.
    """
    there = {
        backup_archive.number(name)[1]: at
        for path, at in came.items()
        for name in [path.rpartition("/")[2]]
        if backup_archive.SEGMENT.fullmatch(name) and backup_archive.number(name)[0] == timeline
    }
    archived = max(there, default=-1)
    after = [number for number, at in there.items() if at >= since - SLACK]
    return min([*after, archived + 1 if there else last, last]), archived


def bring(setup: dict[str, Any], name: str, folder: Path, archived: bool) -> None:
    """Have a segment in a folder; one that is not archived yet does not go from where it is."""
    place = folder / name
    if place.is_symlink() or place.exists():
        return
    if archived:
        words = (f"--stanza={setup['stanza']}", "archive-get", name, place)
        done = as_postgres("pgbackrest", *words, check=False)
        if done.returncode or not place.exists():
            raise Failure(f"the archive does not give {name}: {backup_repository.said(done)}")
    else:
        place.symlink_to(Path(setup["data"], "pg_wal", name))


def records(
    setup: Mapping[str, Any], folder: Path, names: list[str], end: int, strict: bool
) -> Iterator[tuple[str, int, str, str]]:
    """Yield the records that begin in the first of the segments; ``end`` is the number of the next.

    ``strict``: their end is not that of all WAL, where reading fails.
    """
    program = f"/usr/lib/postgresql/{setup['version']}/bin/pg_waldump"
    kinds = [f"--rmgr={x}" for x in ("Heap", "Heap2", "Transaction")]
    with subprocess.Popen(
        [program, *kinds, f"--path={folder}", *names],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL},
        **{"text": True, "errors": "replace", "cwd": "/"},
        **{"user": "postgres", "group": "postgres", "extra_groups": []},
        env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", "TZ": "UTC"},
    ) as process:
        try:
            for line in process.stdout or ():
                found = RECORD.match(line)
                if not found:
                    continue
                if end and backup_archive.segment_of(found[3]) >= end:
                    return
                yield found[1], int(found[2]), found[4], found[5]
            said = process.stderr.read() if process.stderr else ""
            if strict and process.wait():
                raise Failure(f"{names[0]} cannot be read: {said.strip()[:300]}")
        finally:
            process.kill()


# The files.


def of_files(
    setup: dict[str, Any], app: str, paths: Iterable[str], snapshot: Mapping[str, Any]
) -> list[str]:
    """Return for people in what an app's files differ from a snapshot of them."""
    text = backup_files.restic(setup, app, "ls", "--json", "--no-lock", snapshot["id"]).stdout
    nodes = (json.loads(line) for line in text.splitlines())
    stored = {x["path"]: x for x in nodes if x.get("type") == "file"}
    new, changed, gone = differences(stored, app, [*paths], snapshot["at"])
    since = f"files since {shown(snapshot['at'])}"
    if not (new or changed or gone):
        return [f"{since}: none has changed"]
    lines = [f"{since}: {len(new)} new, {len(changed)} changed, {len(gone)} deleted"]
    named = [*new, *changed]
    lines += [f"  {path}" for path in named[:SHOWN]]
    return lines + ([f"  {len(named) - SHOWN} more"] if len(named) > SHOWN else [])


def differences(
    stored: Mapping[str, Mapping[str, Any]], app: str, paths: list[str], at: float
) -> tuple[list[str], list[str], list[str]]:
    """Return which files are new, changed and gone since they were stored, by size and time.

    SQLite's were stored as copies, whose times are their own.
    """
    tops = tuple(f"{x}/" for x in paths)
    copies = {x.removeprefix(str(COPIES / app)) for x in stored if x.startswith(f"{COPIES}/{app}/")}
    beside = {f"{x}{suffix}" for x in copies for suffix in BESIDE}
    before = {x for x in stored if x.startswith(tops)} | {x for x in copies if x.startswith(tops)}
    live = {
        str(path): there
        for path, there in backup_files.each(paths)
        if stat.S_ISREG(there.st_mode) and str(path) not in beside
    }
    changed = []
    for path in sorted(live.keys() & before):
        there = live[path]
        if path in copies:
            log = Path(f"{path}-wal")
            times = [there.st_mtime, *([log.stat().st_mtime] if log.exists() else [])]
            differs = max(times) > at
        else:
            then = stored[path]
            # A time has nanoseconds, which a float has not.
            differs = then.get("size", 0) != there.st_size or (
                abs(backup_files.epoch(then["mtime"]) - there.st_mtime) > 1e-5
            )
        if differs:
            changed.append(path)
    return sorted(live.keys() - before), changed, sorted(before - live.keys())
