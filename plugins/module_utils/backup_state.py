"""What is known of a server's backups: what each job left of itself, and what is wrong with it.

Each kind of job has a file of its own, ``/var/lib/carafe/backup/<what>.json``, with

``began``, ``ended``   seconds since the epoch
``result``             ok, or failed
``message``            one line: what came out, or what failed and what to do next
``details``            what else there is to know, by the kind of job
``last_ok``            when one last ended well, kept over those that fail

``<what>`` is database-full, database-diff, database-incr, files-<app>, drill, copy, restore-<app>.
Of servers that take each other's place with the database, drill-database and copy-database are
noted apart: what is the cluster's, whichever of them has done it, is known to all of them.
``/etc/carafe/backup/expected.json`` has what is to happen on this server, and how often.

Used by modules, and by programs that run without Ansible.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import files
from .words import one_line

STATE = Path("/var/lib/carafe/backup")
EXPECTED = Path("/etc/carafe/backup/expected.json")
RED, YELLOW = "red", "yellow"
# A database's backups build on each other: the newest of any kind is what a restore begins with.
DATABASE = ("database-full", "database-diff", "database-incr")
# What is done once for servers that take each other's place: the one that leads answers for it.
SHARED = (*DATABASE, "drill-database", "copy-database")
POINTS = "points.json"
PATIENCE = 20  # seconds for systemd or PostgreSQL to answer
SEGMENT = 16 << 20  # bytes of WAL in a file
# Archiving: seconds after which a failure is no hiccup any more, and segments that may wait.
HICCUP, WAITING = 300, 8
ARCHIVING = """SELECT json_build_object(
    'mode', current_setting('archive_mode'), 'data', current_setting('data_directory'),
    'archived', extract(epoch FROM last_archived_time),
    'failed', extract(epoch FROM last_failed_time),
    'failures', failed_count, 'failed_wal', last_failed_wal, 'follows', pg_is_in_recovery(),
    'since', extract(epoch FROM pg_postmaster_start_time())) FROM pg_stat_archiver"""


def path_of(what: str) -> Path:
    return STATE / f"{what}.json"


def read(what: str) -> dict[str, Any] | None:
    """Return what the last job of a kind left, or None where there was none."""
    try:
        found = json.loads(files.read(path_of(what)) or "null")
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "ended" in found else None


def note(what: str, began: float, result: str, message: str, **details: Any) -> dict[str, Any]:
    """Write what became of a job."""
    now = time.time()
    entry = {
        **{"began": began, "ended": now, "result": result, "message": one_line(message, 1000)},
        **{"details": details, "last_ok": now},
    }
    if result != "ok":
        entry["last_ok"] = (read(what) or {}).get("last_ok")
    text = json.dumps(entry, indent=2) + "\n"
    files.write(path_of(what), text, 0o640, owner=os.geteuid(), group=os.getegid())
    return entry


def expected() -> dict[str, dict[str, Any]]:
    """Return what is to happen here: for each kind its timer, and the most seconds between two."""
    try:
        return json.loads(files.read(EXPECTED) or "{}").get("jobs", {})
    except (OSError, ValueError):
        return {}


def points() -> list[dict[str, Any]]:
    """Return the named restore points that are known, the newest last."""
    try:
        return json.loads(files.read(STATE / POINTS) or "[]")
    except ValueError:
        return []


def ask(*command: str, user: str | None = None) -> str:
    """Ask a program something; '' where it does not say."""
    who: dict[str, Any] = {"user": user, "group": user, "extra_groups": []} if user else {}
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "PGCONNECT_TIMEOUT": str(PATIENCE)}
    try:
        done = subprocess.run(
            command,
            **{"capture_output": True, "text": True, "errors": "replace", "cwd": "/"},
            **{"check": False, "timeout": PATIENCE, "env": environment, **who},
        )
    except (OSError, KeyError, ValueError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def archiving() -> dict[str, Any] | None:
    """Return how PostgreSQL's archiving goes; None where it does not say."""
    try:
        port = json.loads(files.read(EXPECTED) or "{}").get("port", 5432)
    except (OSError, ValueError):
        port = 5432
    words = ("psql", "-XAtq", "-p", str(port), "-d", "postgres", "-c", ARCHIVING)
    try:
        found = json.loads(ask(*words, user="postgres"))
    except ValueError:
        return None
    try:
        ready = [*Path(found["data"], "pg_wal/archive_status").glob("*.ready")]
    except OSError:
        ready = []
    return found | {"ready": len(ready), "ready_bytes": len(ready) * SEGMENT}


def timers(names: list[str]) -> dict[str, str]:
    """Return what systemd says of each timer: active where it runs."""
    said = ask("systemctl", "is-active", *names).split() if names else []
    return dict(zip(names, said, strict=False))


def ago(seconds: float) -> str:
    """Return how long that is, as people say it."""
    for name, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {name}"
    return f"{max(seconds, 0):.0f} seconds"


def problems(
    now: float | None = None,
    ask_archiving: Callable[[], dict[str, Any] | None] = archiving,
    ask_timers: Callable[[list[str]], dict[str, str]] = timers,
) -> list[dict[str, str]]:
    """Return what is wrong, the worst first: how bad (red or yellow), what, and what to do next.

    Nothing is wrong where nothing is expected: this server has no backup by Carafe.
    """
    jobs = expected()
    if not jobs:
        return []
    now = time.time() if now is None else now
    archives = any(x in jobs for x in DATABASE)
    seen = ask_archiving() if archives else None
    mine = answered(jobs, seen)
    found = [
        *stopped(jobs, ask_timers),
        *of_jobs(mine, now),
        *(of_archiving(seen, now) if archives and (mine == jobs or seen is None) else ()),
    ]
    return sorted(found, key=lambda problem: problem["level"] != RED)


def answered(
    jobs: dict[str, dict[str, Any]], seen: dict[str, Any] | None
) -> dict[str, dict[str, Any]]:
    """Return what this server answers for: what is the cluster's, only while it leads."""
    if "drill-database" not in jobs or not (seen or {}).get("follows"):
        return jobs
    return {what: job for what, job in jobs.items() if what not in SHARED}


def problem(level: str, what: str, then: str) -> dict[str, str]:
    return {"level": level, "what": what, "next": then}


def stopped(
    jobs: dict[str, dict[str, Any]], ask_timers: Callable[[list[str]], dict[str, str]]
) -> Iterator[dict[str, str]]:
    """What is never begun ends in no failure that anybody could see."""
    names = sorted({job["timer"] for job in jobs.values()})
    states = ask_timers(names)
    for name in names:
        if states.get(name) != "active":
            yield problem(
                RED,
                f"{name} does not run, so nothing begins this backup",
                f"systemctl enable --now {name}",
            )


def of_jobs(jobs: dict[str, dict[str, Any]], now: float) -> Iterator[dict[str, str]]:
    known = {what: read(what) for what in jobs}
    whole = max((known.get(x) or {}).get("last_ok") or 0 for x in DATABASE)
    # Only these look whether all that is in the repository is whole.
    verified = max((known.get(x) or {}).get("last_ok") or 0 for x in DATABASE[:2])
    for what, job in jobs.items():
        unit, last = job["timer"].replace(".timer", ".service"), known[what]
        journal = f"journalctl -u {unit}"
        # A server that is new has until its first one was due.
        late = now - ((last or {}).get("last_ok") or job["since"]) > job["seconds"]
        if last is None:
            if late:
                yield problem(RED, f"{what}: there is none yet", f"systemctl start {unit}")
            elif what == "database-full":
                yield problem(YELLOW, f"{what}: there is none yet", f"systemctl start {unit}")
        elif last["result"] != "ok" and not (what in DATABASE and verified > last["ended"]):
            yield problem(RED, f"{what}: {last['message']}", journal)
        elif holes := (last.get("details") or {}).get("holes"):
            yield problem(
                YELLOW,
                f"the archive lacks {holes[0]}{f' and {len(holes) - 1} more' * (len(holes) > 1)}:"
                " the moments from there to the next backup cannot be reached",
                "look at the disk of backup_repository, then: systemctl start carafe-backup-full",
            )
        elif late and not (what in DATABASE[1:] and now - whole <= job["seconds"]):
            age = ago(now - (last.get("last_ok") or last["ended"]))
            yield problem(RED, f"{what}: the last good one is {age} old", journal)


def of_archiving(seen: dict[str, Any] | None, now: float) -> Iterator[dict[str, str]]:
    """Without WAL, what was written since the last backup is lost with the disk, and fills it."""
    if seen is None:
        yield problem(
            RED,
            "PostgreSQL does not say how its archiving goes",
            "systemctl status 'postgresql@*'",
        )
        return
    if seen["mode"] == "off":
        yield problem(
            RED, "archive_mode is off: PostgreSQL archives no WAL", "systemctl restart postgresql"
        )
        return
    archived, failed = seen["archived"] or 0, seen["failed"] or 0
    waits = f"{seen['ready']} segments ({seen['ready_bytes'] >> 20} MiB) of WAL wait in pg_wal"
    journal = "journalctl -u 'postgresql@*' -n 50; pgbackrest's words are in it"
    if failed > archived:
        # It is tried again every minute at least, so the time since the last success says it.
        long = now - max(archived, seen["since"]) > HICCUP
        yield problem(
            RED if long else YELLOW,
            f"archiving of WAL fails since {ago(now - max(archived, seen['since']))}, at"
            f" {seen['failed_wal']}; {waits}",
            journal,
        )
    elif seen["ready"] > WAITING:
        yield problem(YELLOW, f"archiving of WAL is behind: {waits}", journal)
