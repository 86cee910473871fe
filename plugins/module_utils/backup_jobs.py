"""What the timers of a server's backups begin: each job notes how it went, by what is there.

An exit status of 0 proves nothing here: pgBackRest ends with it for a backup that is corrupted, and
for a repository that it cannot read. So each job looks at what came out of it.

Used by programs that run without Ansible.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import backup_archive, backup_repository, backup_shared, backup_state, files
from .backup_repository import pgbackrest, psql
from .commands import Failure
from .words import one_line

LOCK = Path("/run/carafe-backup.lock")
# In the database where no app may leave anything. What is older than the drill looks back goes.
MARK = """
CREATE SCHEMA IF NOT EXISTS carafe_backup;
REVOKE ALL ON SCHEMA carafe_backup FROM PUBLIC;
CREATE TABLE IF NOT EXISTS carafe_backup.markers (at timestamptz PRIMARY KEY);
DELETE FROM carafe_backup.markers WHERE at < clock_timestamp() - interval '3 days';
INSERT INTO carafe_backup.markers VALUES (clock_timestamp());
"""
LEAST = 16 << 20  # bytes that a folder must have left
POINT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@contextlib.contextmanager
def alone(name: str = "") -> Iterator[None]:
    """Wait until no other job of the kind is at work: two at once would fail both."""
    path = LOCK.with_name(f"carafe-backup{name}.lock")
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def job(what: str, work: Callable[[], tuple[str, dict[str, Any]]]) -> str | None:
    """Do a job, and note how it went; return its failure in a line.

    What another server does for this one is left to it, and nothing is noted.
    """
    began, setup = time.time(), {}
    with contextlib.suppress(Failure):  # the work says it
        setup = backup_repository.setup()
    try:
        if setup and backup_shared.elsewhere(setup, what):
            return None
    except Failure as problem:
        return one_line(str(problem), 1000)
    try:
        message, details = work()
    except (Failure, OSError, ValueError, KeyError) as problem:
        said = str(problem) or type(problem).__name__
        backup_state.note(what, began, "failed", said, **getattr(problem, "details", {}))
        return one_line(said, 1000)
    else:
        backup_state.note(what, began, "ok", message, **details)
        return None
    finally:
        backup_shared.sync(setup)


class Lost(Failure):
    """What is missing or broken in the repository, with the details."""

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details


def size(number: float) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


# The database.


def database(kind: str) -> tuple[str, dict[str, Any]]:
    """Make a backup of the cluster, and look at all that is in the repository."""
    setup = backup_repository.setup()
    backup_repository.check_place(setup)
    room(setup)
    with alone():
        began = time.time()
        done = pgbackrest(setup, "backup", f"--type={kind}", check=False)
        if done.returncode:
            raise Failure(explained(backup_repository.said(done)))
        newest = backup_repository.info(setup)["backup"][-1]
        if newest["error"] or newest["timestamp"]["stop"] < began - 1:
            raise Lost(
                f"pgBackRest ended well, and its newest backup is {newest['label']}"
                f"{', which has errors in it' if newest['error'] else ''}. Look: sudo -u postgres"
                f" pgbackrest --stanza={setup['stanza']} info",
                backup=newest["label"],
            )
        found = inspect(setup, whole=kind != "incr")
        if found["corrupt"]:
            raise Lost(corrupted(found["corrupt"]), **found)
        if found["lost"]:
            raise Lost(backup_archive.described(found["lost"]), **found)
        bytes_ = newest["info"]["repository"]["delta"]
        found |= {"backup": newest["label"], "type": newest["type"], "bytes": bytes_}
        return f"{newest['type']} backup {newest['label']}, {size(bytes_)}", found


def room(setup: dict[str, Any]) -> None:
    """Refuse where a folder is full: pgBackRest would wait for a minute, and say something else."""
    place = backup_repository.parse(setup["repository"])
    if place.kind == "folder" and shutil.disk_usage(place.path).free < LEAST:
        raise Failure(
            f"{place.path} is full. See by what: df -h {place.path}; make room there, or lower"
            " backup_retention_days in group_vars and run site with --tags backup"
        )


def explained(text: str) -> str:
    """Return what pgBackRest says with what it means: it names neither a key nor a full disk."""
    if "[029]" in text or "[031]" in text or "cipher" in text.lower():
        return (
            f"{text} Mostly backup_key is not the one that the repository was made with. Put the"
            " former one back in the vault, and run site with --tags backup"
        )
    if "[082]" in text:
        return (
            f"{text} PostgreSQL cannot archive. See why: journalctl -u 'postgresql@*'; and whether"
            " the place is full, or cannot be reached"
        )
    if "No space left" in text or "[064]" in text:
        return f"{text} See whether the place is full (df -h), and lower backup_retention_days"
    if "[028]" in text or "[051]" in text:
        return (
            f"{text} The repository has another cluster under this name. Give this server a place"
            " of its own: another backup_repository. Never run stanza-upgrade for it"
        )
    return text


def corrupted(text: str) -> str:
    return (
        f"the repository is corrupted: {text} What is broken there cannot be restored. Look at the"
        " disk of backup_repository, and make a full backup: systemctl start carafe-backup-full"
    )


def inspect(setup: dict[str, Any], whole: bool) -> dict[str, Any]:
    """Look at the repository by content: what is corrupt in it, and what WAL it lacks."""
    known = backup_repository.info(setup)
    backups = known.get("backup") or []
    if not backups:
        raise Failure("there is no backup to restore. Make one: systemctl start carafe-backup-full")
    found: dict[str, Any] = {"corrupt": "", "lost": [], "holes": [], **window(known)}
    if whole:
        found["corrupt"] = verify(setup)
    names, histories, found["newest"] = archive(setup, known)
    found["newest_wal"] = backup_archive.newest(names)
    # Its WAL from the newest backup on leads to now; what lacks before is a hole between backups.
    newest = max(backups, key=lambda x: x["timestamp"]["stop"])
    oldest = min(backups, key=lambda x: x["timestamp"]["stop"])
    found["lost"] = backup_archive.missing(names, newest["archive"]["start"], histories)
    holes = backup_archive.missing(names, oldest["archive"]["start"], histories)
    found["holes"] = [x for x in holes if x not in found["lost"]]
    return found


def window(known: dict[str, Any]) -> dict[str, Any]:
    """Return from which moment on one can be reached; the last is that of the newest WAL."""
    stops = [x["timestamp"]["stop"] for x in known.get("backup") or []]
    return {"oldest": min(stops, default=None), "newest_backup": max(stops, default=None)}


def verify(setup: dict[str, Any]) -> str:
    """Return what pgBackRest finds broken, '' where nothing is; its exit status says nothing."""
    done = pgbackrest(setup, "verify", "--output=text", check=False)
    text = f"{done.stdout}\n{done.stderr}"
    if done.returncode == 0 and re.search(r"status: ok", text) and "status: error" not in text:
        return ""
    wrong = [x.strip() for x in text.splitlines() if re.search(r"error|invalid|missing|ERROR", x)]
    bad = [x for x in wrong if not re.search(r": 0\b|errors: 0|status: ok", x)]
    return one_line("; ".join(bad[:4]) or text, 400)


def archive(
    setup: dict[str, Any], known: dict[str, Any]
) -> tuple[list[str], dict[int, str], float]:
    """Return the archive of the cluster's newest backup: its files, histories, and its end."""
    newest = max(known["archive"], key=lambda x: (x.get("database") or {}).get("id", 0))
    folder = f"archive/{setup['stanza']}/{newest['id']}"
    done = pgbackrest_repo(setup, "repo-ls", "--recurse", "--output=json", folder)
    listing = json.loads(done or "{}")
    names, histories = backup_archive.look(listing), {}
    newest = max((listing[x].get("time", 0) for x in names), default=0)
    for name in names:
        if found := backup_archive.HISTORY.fullmatch(name.rpartition("/")[2]):
            text = pgbackrest_repo(setup, "repo-get", f"{folder}/{name}")
            histories[int(found[1], 16)] = text
    return names, histories, newest


def pgbackrest_repo(setup: dict[str, Any], command: str, *words: str) -> str:
    """Read in the repository itself; these commands know no stanza."""
    options = [x for x in words if x.startswith("--")]
    paths = [x for x in words if not x.startswith("--")]
    more = [f"--stanza={setup['stanza']}"] if command == "repo-get" else []
    return backup_repository.as_postgres(
        "pgbackrest", command, *backup_repository.configured(setup), *more, *options, *paths
    ).stdout


def mark() -> None:
    """Write a row whose moment a drill comes back to, where rows are written."""
    setup = backup_repository.setup()
    if not backup_shared.follows(setup):
        psql(setup, MARK)
    backup_shared.sync(setup)


def point(name: str, stored: bool = False) -> str:
    """Make a named restore point; ``stored``, return when it is in the repository."""
    if not POINT.fullmatch(name):
        raise Failure(f"{name!r} is no name of a point: letters, digits, '.', '_' and '-'.")
    setup = backup_repository.setup()
    psql(setup, f"SELECT pg_create_restore_point('{name}')")
    at = time.time()
    if stored:
        switch(setup)
    path = backup_state.STATE / backup_state.POINTS
    known = [x for x in backup_state.points() if x["name"] != name][-99:]
    text = json.dumps([*known, {"name": name, "at": at}], indent=2) + "\n"
    files.write(path, text, 0o640, owner=os.geteuid(), group=os.getegid())
    backup_shared.sync(setup)
    return name


def switch(setup: dict[str, Any], seconds: int = 90) -> str:
    """Have all WAL up to now in the repository; return the last segment's name."""
    # Where nothing was written since the last one, it is the begin of a segment, which is none yet.
    name = psql(setup, "SELECT pg_walfile_name(pg_switch_wal() - 1)")
    until = time.monotonic() + seconds
    while True:
        last = psql(setup, "SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver")
        if last[:24] >= name and last[8:24] >= name[8:24]:
            return name
        if time.monotonic() > until:
            raise Failure(
                f"PostgreSQL has not archived {name} within {seconds} s. See journalctl -u"
                " 'postgresql@*' -u patroni, and run this again."
            )
        time.sleep(0.2)


def archived(setup: dict[str, Any], seconds: int = 180) -> None:
    """Wait until all WAL that this server has seen by now is in the repository, by who leads."""
    lsn = psql(setup, "SELECT pg_last_wal_replay_lsn()")
    until = time.monotonic() + seconds
    while True:
        names, _, _ = archive(setup, backup_repository.info(setup))
        newest = backup_archive.newest(names)
        if newest and backup_archive.number(newest)[1] >= backup_archive.segment_of(lsn):
            return
        if time.monotonic() > until:
            raise Failure(
                f"What was written up to {lsn} is not in {setup['repository']} within {seconds} s."
                " See the archive of the server that leads: the playbook status"
            )
        time.sleep(2)


def catch_up(history: str) -> None:
    """Archive what the former leader had no time for, before the history of the new timeline.

    PostgreSQL takes what it has got from another server for archived. It runs this itself, in its
    folder, as it archives the history.
    """
    path, stanza = Path(history).resolve(), backup_repository.own_stanza()
    listing = backup_repository.as_postgres(
        "pgbackrest", "repo-ls", "--recurse", "--output=json", f"archive/{stanza}"
    ).stdout
    there = backup_archive.look(json.loads(listing or "{}"))
    here = [x.name for x in path.parent.iterdir()]
    for name in backup_archive.owed(path.read_text(), here, there):
        words = (f"--stanza={stanza}", "archive-push", path.parent / name)
        backup_repository.as_postgres("pgbackrest", *words)
