"""The program that the timers of a server's backups run.

backup database full|diff|incr    a backup of the cluster
backup files APP                  a snapshot of an app's files
backup mark                       a row whose moment the drill comes back to
backup drill                      the proof that all of it can be restored
backup copy                       a second copy of all that is stored
backup fetch FOLDER               that copy, brought into a folder
backup point NAME                 a named restore point, and its WAL in the repository
backup restore APP                what was asked for, brought beside what is live
"""

from __future__ import annotations

import sys

from . import backup_copy, backup_drill, backup_files, backup_jobs, backup_restore
from .commands import Failure


def main() -> str | None:
    word, *more = sys.argv[1:] or [""]
    if word == "database" and more and more[0] in ("full", "diff", "incr"):
        return backup_jobs.job(f"database-{more[0]}", lambda: backup_jobs.database(more[0]))
    if word == "files" and more:
        return backup_jobs.job(f"files-{more[0]}", lambda: backup_files.back_up(more[0]))
    if word == "drill":
        return backup_jobs.job("drill", backup_drill.run)
    if word == "copy":
        return backup_jobs.job("copy", backup_copy.run)
    if word == "restore" and more:
        return backup_jobs.job(f"restore-{more[0]}", lambda: backup_restore.prepare(more[0]))
    try:
        if word == "mark":
            backup_jobs.mark()
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
