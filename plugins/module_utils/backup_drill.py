"""The proof that what is in the repository can be restored, each night before anybody needs it.

A cluster beside the live one is brought to a random moment of the last day, between two rows of
which the first is to be there, and the second is not. Then it is promoted to be looked at whole; it
archives nothing, and nothing of it is kept.

Used by programs that run without Ansible.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import time
from pathlib import Path
from typing import Any

from . import (
    backup_archive,
    backup_files,
    backup_jobs,
    backup_repository,
    backup_shared,
    backup_state,
    files,
)
from .backup_jobs import Lost, alone
from .backup_repository import as_postgres, psql, restic
from .backup_scratch import Scratch
from .backup_target import Target, shown
from .commands import Failure
from .words import one_line

DAY = 86400
MARKERS = """SELECT coalesce(json_agg(extract(epoch FROM at) ORDER BY at), '[]')
    FROM carafe_backup.markers WHERE at > to_timestamp({since})"""
NAMES = """SELECT coalesce(json_agg(datname ORDER BY datname), '[]') FROM pg_database
    WHERE datallowconn AND NOT datistemplate"""
# Of the largest tables, as far as counting them is no load on the live cluster.
COUNTS = """SELECT coalesce(json_object_agg(name, (xpath('/row/n/text()',
      query_to_xml('SELECT count(*) AS n FROM ' || name, false, true, '')))[1]::text::bigint), '{}')
    FROM (SELECT format('%I.%I', n.nspname, c.relname) AS name FROM pg_class c
      JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND c.relpages < 20000
        AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'carafe_backup')
        AND n.nspname NOT LIKE 'pg\\_%'
      ORDER BY c.relpages DESC, 1 LIMIT 20) AS t"""
SHARE = 0.5  # of a table's rows may have come or gone since, and a few in any case
FEW = 1000
SAMPLE, LARGEST = 20, 32 << 20  # files that are read back, and bytes of one


def run(databases: bool = True, apps: bool = True) -> tuple[str, dict[str, Any]]:
    """Do all of the drill that this server has something for."""
    setup, parts = backup_repository.setup(), {}
    backup_repository.check_place(setup)
    said = []
    with alone("-drill"):
        if setup["database"] and databases:
            parts["database"] = database(setup)
            said.append(parts["database"]["said"])
        folder = backup_repository.FOLDER / "apps"
        for path in sorted(folder.glob("*.json")) if apps else ():
            app = backup_files.app_of(path.stem)
            # One that keeps no files has no repository of them, and its server may have no restic.
            if app["paths"] or app["more_paths"]:
                parts[path.stem] = sample(setup, path.stem)
                said.append(parts[path.stem]["said"])
    return "; ".join(said) or "there is nothing to restore", parts


# The database.


def moments(setup: dict[str, Any], since: float) -> tuple[float, float]:
    """Return two rows' moments, one after the other, of which a random one of the last day."""
    query = MARKERS.format(since=max(since, time.time() - DAY))
    # On a new server there is none, nor a table for them.
    backup_jobs.mark()
    backup_jobs.mark()
    found = json.loads(psql(setup, query))
    if len(found) < 2:
        raise Failure(
            "PostgreSQL keeps no markers in carafe_backup.markers. See systemctl status"
            " carafe-backup-marker.timer"
        )
    first = random.SystemRandom().randrange(len(found) - 1)
    return found[first], found[first + 1]


def database(setup: dict[str, Any]) -> dict[str, Any]:
    began = time.time()
    seen = backup_jobs.inspect(setup, whole=False)
    if seen["lost"]:
        raise Lost(backup_archive.described(seen["lost"]), **seen)
    before, after = moments(setup, seen["oldest"])
    if backup_shared.follows(setup):
        backup_jobs.archived(setup)
    else:
        backup_jobs.switch(setup)
    target = Target("time", (before + after) / 2)
    scratch = Scratch("drill", setup)
    scratch.make()
    try:
        scratch.room(backup_repository.info(setup)["backup"][-1])
        scratch.restore(target.words)
        restored = time.time()
        with scratch.serving():
            rows = json.loads(scratch.ask(MARKERS.format(since=0)))
            if before not in rows or after in rows:
                raise Failure(
                    f"The copy stopped at another moment than {shown(target.at)}: the row before it"
                    f" is {'there' if before in rows else 'missing'}, the one after it"
                    f" {'there' if after in rows else 'missing'}. Make a full backup: systemctl"
                    " start carafe-backup-full"
                )
            replayed = time.time()
            look_whole(scratch)
            compared = compare(setup, scratch)
    finally:
        scratch.stop()
        scratch.remove()
    now = time.time()
    return {
        "said": f"the database as of {shown(target.at)}, {compared} tables compared",
        "target": target.at,
        "seconds": {
            "restore": round(restored - began, 1),
            "replay": round(replayed - restored, 1),
            "look": round(now - replayed, 1),
        },
    }


def look_whole(scratch: Scratch) -> None:
    """Read every page, index and row. pg_amcheck makes its extension for that, so it writes."""
    scratch.promote()
    place = ("-h", scratch.run, "-p", str(scratch.setup["port"]), "-U", "postgres")
    checked = as_postgres(
        scratch.programs / "pg_amcheck",
        *("--all", "--install-missing", "--heapallindexed", *place),
        check=False,
    )
    if checked.returncode:
        text = one_line(checked.stdout or checked.stderr, 400)
        raise Failure(
            f"The database is corrupted in the backup: {text}. See what PostgreSQL says of the"
            " live one: journalctl -u 'postgresql@*'; the playbook restore brings an earlier moment"
        )
    dumped = subprocess.run(
        [str(scratch.programs / "pg_dumpall"), *map(str, place)],
        **{"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "cwd": "/", "check": False},
        **{"user": "postgres", "group": "postgres", "extra_groups": []},
        env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
    )
    if dumped.returncode:
        raise Failure(
            "The copy cannot be dumped:"
            f" {one_line(dumped.stderr.decode(errors='replace'), 400)}. Look whether the live"
            " ones can, each as its owner"
        )


def compare(setup: dict[str, Any], scratch: Scratch) -> int:
    """Compare counts with the live ones; an empty copy of full tables is no backup."""
    count = 0
    for name in json.loads(scratch.ask(NAMES)):
        live_names = json.loads(psql(setup, NAMES))
        if name not in live_names:
            continue
        live, copied = json.loads(psql(setup, COUNTS, name)), json.loads(scratch.ask(COUNTS, name))
        for table in live.keys() & copied.keys():
            count += 1
            bound = max(FEW, live[table] * SHARE)
            if abs(live[table] - copied[table]) > bound:
                raise Failure(
                    f"The table {table} of {name} has {copied[table]} rows in the backup and"
                    f" {live[table]} now. If that is right, all is well from tomorrow on; if not,"
                    " see the playbook restore"
                )
    return count


# An app's files.


def sample(setup: dict[str, Any], name: str) -> dict[str, Any]:
    """Read some files of the newest snapshot back, and compare those that have not changed."""
    with alone(f"-files-{name}"):
        found = backup_files.snapshots(setup, name)
        if not found:
            raise Failure(
                f"There is no snapshot of {name}'s files. Make one: systemctl start"
                f" carafe-backup-files-{name}"
            )
        try:
            backup_files.check(setup, name, share="5%")
        except Failure as failed:
            raise Failure(
                f"The repository of {name}'s files is corrupted: {failed} Look at the disk of"
                f" backup_repository, and store anew: systemctl start carafe-backup-files-{name}"
            ) from None
        newest = found[-1]
        listing = restic(setup, name, "ls", "--json", newest["id"]).stdout.splitlines()
        entries = [x for x in map(json.loads, listing) if x.get("type") == "file"]
        small = [x for x in entries if x.get("size", 0) <= LARGEST]
        chosen = random.SystemRandom().sample(small, min(SAMPLE, len(small)))
        folder = backup_state.STATE / f"drill-{name}"
        files.remove(folder)
        folder.mkdir(mode=0o700)
        try:
            same = read_back(setup, name, newest["id"], chosen, folder)
        finally:
            files.remove(folder)
    said = f"{len(chosen)} files of {name} read back, {same} of them as they are now"
    return {"said": said, "snapshot": newest["id"], "files": len(entries)}


def read_back(
    setup: dict[str, Any], name: str, snapshot: str, chosen: list[dict], folder: Path
) -> int:
    if not chosen:
        return 0
    words = [x for entry in chosen for x in ("--include", backup_files.quoted(entry["path"]))]
    restic(setup, name, "restore", snapshot, "--target", folder, "--quiet", *words)
    same = 0
    for entry in chosen:
        copied = folder / entry["path"].lstrip("/")
        if not copied.is_file() or copied.stat().st_size != entry.get("size", 0):
            raise Failure(
                f"{entry['path']} of {name} does not come back as it was stored. Look at the"
                f" repository: restic check --read-data; and store anew: systemctl start"
                f" carafe-backup-files-{name}"
            )
        there = files.status(entry["path"])
        # As it was when it was stored: its time says so.
        unchanged = (
            there
            and there.st_size == entry.get("size", 0)
            and (abs(there.st_mtime - backup_files.epoch(entry["mtime"])) < 0.001)
        )
        if unchanged:
            if digest(Path(entry["path"])) != digest(copied):
                raise Failure(
                    f"{entry['path']} has not been written since it was stored, and comes back with"
                    " another content: the disk or the repository is corrupted. Compare the two."
                )
            same += 1
    return same


def digest(path: Path) -> str:
    with files.held(path) as (way, _), Path(way).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
