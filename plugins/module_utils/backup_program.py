"""The program that the timers of a server's backups run.

backup database full|diff|incr    a backup of the cluster
backup files APP                  a snapshot of an app's files
backup mark                       a row whose moment the drill comes back to
backup drill                      the proof that all of it can be restored
backup copy                       a second copy of all that is stored
backup fetch FOLDER               that copy, brought into a folder
backup point NAME                 a named restore point, and its WAL in the repository
backup restore APP                what was asked for, brought beside what is live
backup catch-up HISTORY           WAL that who led before has not archived; by PostgreSQL
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from . import (
    backup_copy,
    backup_drill,
    backup_files,
    backup_jobs,
    backup_repository,
    backup_restore,
    backup_shared,
    backup_state,
)
from .commands import Failure


def in_parts(what: str, work: Callable[[bool, bool], tuple[str, dict]]) -> str | None:
    """Do a job in one, or what is the cluster's and what is this server's each by itself."""
    try:
        setup = backup_repository.setup()
    except Failure:  # which the work says
        setup = {}
    if not setup or not backup_shared.fails_over(setup):
        return backup_jobs.job(what, lambda: work(True, True))
    failed = [backup_jobs.job(f"{what}-database", lambda: work(True, False))]
    # Where no app keeps files, there is nothing else.
    if what in backup_state.expected():
        failed.append(backup_jobs.job(what, lambda: work(False, True)))
    return "; ".join(filter(None, failed)) or None


def main() -> str | None:
    word, *more = sys.argv[1:] or [""]
    if word == "database" and more and more[0] in ("full", "diff", "incr"):
        return backup_jobs.job(f"database-{more[0]}", lambda: backup_jobs.database(more[0]))
    if word == "files" and more:
        return backup_jobs.job(f"files-{more[0]}", lambda: backup_files.back_up(more[0]))
    if word == "drill":
        return in_parts("drill", backup_drill.run)
    if word == "copy":
        return in_parts("copy", backup_copy.run)
    if word == "restore" and more:
        return backup_jobs.job(f"restore-{more[0]}", lambda: backup_restore.prepare(more[0]))
    try:
        if word == "mark":
            backup_jobs.mark()
            return None
        if word == "catch-up" and more:
            backup_jobs.catch_up(more[0])
            return None
        if word == "fetch" and more:
            print(backup_copy.fetch(more[0]))
            return None
        if word == "point" and more:
            backup_jobs.point(more[0])
            return None
    except Failure as failure:
        return str(failure)
    return __doc__
