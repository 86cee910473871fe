"""A cluster beside the live one, made from the repository, for a look at a moment of the past.

It archives nothing, listens on a private socket, takes little memory, and pauses at its target: it
never serves. It has a configuration of pgBackRest of its own, since a restore cleans the spool
folder of the one that it is given.

Used by programs that run without Ansible.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import backup_archive, backup_repository, files
from .backup_repository import as_postgres, psql
from .commands import Failure
from .words import one_line

# What a standby must not have less of than the cluster had; pg_controldata has it.
LEAST = {
    "max_connections": "max_connections setting",
    "max_worker_processes": "max_worker_processes setting",
    "max_wal_senders": "max_wal_senders setting",
    "max_prepared_transactions": "max_prepared_xacts setting",
    "max_locks_per_transaction": "max_locks_per_xact setting",
}
STATE = """SELECT CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state()
    ELSE 'promoted' END"""
SPARE = 512 << 20  # bytes that are left on the disk
REPLAY = 6 * 3600  # seconds for which WAL is replayed


class Scratch:
    """A cluster in a folder beside that of the live one."""

    def __init__(self, name: str, setup: dict[str, Any]) -> None:
        self.folder = Path(setup["data"]).parent / f".carafe-{name}"
        self.data, self.run = self.folder / "data", self.folder / "run"
        self.log, self.name = self.folder / "log", name
        # That of another environment has a key that stays away from the disk.
        self.setup = {"config": str(self.folder / "pgbackrest.conf"), **setup}
        self.programs = Path("/usr/lib/postgresql", setup["version"], "bin")
        self.server: subprocess.Popen[bytes] | None = None

    def make(self) -> None:
        """Have empty folders, which postgres alone may look into, and the configuration."""
        self.remove()
        owner = pwd.getpwnam("postgres")
        for folder in (self.folder, self.data, self.run, self.folder / "spool"):
            folder.mkdir(mode=0o700)
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        more = {"lock-path": self.run / "lock", "spool-path": self.folder / "spool"}
        text = backup_repository.text(
            self.setup, self.setup["stanza"], self.data, self.setup["port"], **more
        )
        files.write(Path(self.setup["config"]), text, 0o640, "root", "postgres")

    def room(self, backup: dict[str, Any], times: int = 1) -> None:
        """Refuse what does not fit: a full disk would stop the live cluster.

        What is live says nothing of it: one restores mostly what was emptied or dropped.
        """
        needed, free = backup["info"]["size"] * times, shutil.disk_usage(self.folder.parent).free
        if free < needed * 1.1 + SPARE:
            raise Failure(
                f"There is no room for a copy beside the live cluster: it needs"
                f" {int(needed * 1.1 + SPARE) >> 20} MiB in {self.folder.parent}, and"
                f" {free >> 20} are free. Make room there, and run this again."
            )

    def restore(self, target: list[str], backup: str = "", databases: tuple[str, ...] = ()) -> None:
        """Have pgBackRest bring a backup; it says nothing of WAL, which is read at the start."""
        words = [f"--pg1-path={self.data}", *target]
        words += [f"--set={backup}"] if backup else []
        words += [f"--db-include={name}" for name in databases]
        done = backup_repository.pgbackrest(self.setup, "restore", *words, check=False)
        if done.returncode:
            raise Failure(f"pgBackRest cannot restore: {backup_repository.said(done)}")

    def settings(self) -> dict[str, str]:
        """Return what it runs with; given at its start, it beats what ALTER SYSTEM has said."""
        said = as_postgres(self.programs / "pg_controldata", self.data).stdout
        control = dict(line.split(":", 1) for line in said.splitlines() if ":" in line)
        preload = ""
        with contextlib.suppress(Failure):
            preload = psql(self.setup, "SHOW shared_preload_libraries")
        return {
            **{name: control[shown].strip() for name, shown in LEAST.items()},
            "data_directory": str(self.data),
            "hba_file": str(self.folder / "pg_hba.conf"),
            "ident_file": str(self.folder / "pg_ident.conf"),
            "external_pid_file": "",
            "unix_socket_directories": str(self.run),
            "listen_addresses": "",
            "port": str(self.setup["port"]),
            "ssl": "off",
            "archive_mode": "off",
            # Nor does it take another server's changes, where it has subscribed to them.
            "max_logical_replication_workers": "0",
            "recovery_target_action": "pause",
            "hot_standby": "on",
            "shared_buffers": "32MB",
            "maintenance_work_mem": "32MB",
            "huge_pages": "off",
            "jit": "off",
            "autovacuum": "off",
            "fsync": "off",
            "logging_collector": "off",
            "log_destination": "stderr",
            "log_min_messages": "log",
            "shared_preload_libraries": preload,
            "cluster_name": f"carafe-{self.name}",
        }

    def start(self) -> None:
        # Only postgres gets into its folder, and may be anybody there.
        (self.folder / "pg_hba.conf").write_text("local all all trust\n")
        (self.folder / "pg_ident.conf").write_text("")
        (self.folder / "postgresql.conf").write_text("")
        for name in ("pg_hba.conf", "pg_ident.conf", "postgresql.conf"):
            (self.folder / name).chmod(0o644)
        words = [x for name, value in self.settings().items() for x in ("-c", f"{name}={value}")]
        config = f"--config_file={self.folder / 'postgresql.conf'}"
        with self.log.open("wb") as log:
            self.server = subprocess.Popen(
                [str(self.programs / "postgres"), config, *words],
                **{"stdout": log, "stderr": log, "stdin": subprocess.DEVNULL, "cwd": "/"},
                **{"user": "postgres", "group": "postgres", "extra_groups": []},
                env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
            )

    def ask(self, query: str, database: str = "postgres") -> str:
        return psql(self.setup, query, database, socket=str(self.run))

    def wait(self, to_the_end: bool = False) -> None:
        """Wait until it pauses at its target. One that ends before, or promotes, has failed.

        Without a target it is to go to the end of all WAL, where it promotes.
        """
        until, wanted = time.monotonic() + REPLAY, "promoted" if to_the_end else "paused"
        while time.monotonic() < until:
            if self.server is None or self.server.poll() is not None:
                raise Failure(self.why())
            # It answers once it is consistent.
            with contextlib.suppress(Failure):
                if self.ask(STATE) == wanted:
                    return
            if not to_the_end and "selected new timeline" in self.log.read_text(errors="replace"):
                raise Failure(
                    "The copy did not stop where it was to: its WAL ended before. Look for what is"
                    " missing: systemctl start carafe-backup-drill"
                )
            time.sleep(0.2)
        raise Failure(f"The copy did not reach its target within {REPLAY} s.")

    def why(self) -> str:
        """Return why it ended, by the last words of its log."""
        text = self.log.read_text(errors="replace")
        if "recovery ended before configured recovery target was reached" in text:
            return (
                "The WAL in the repository ends, or has a gap, before the moment that was asked"
                " for. See which moments can be reached: the playbook restore without a"
                " confirmation; and what is missing: systemctl start carafe-backup-drill"
            )
        bad = [x for x in text.splitlines() if re.search(r"\b(FATAL|PANIC|ERROR):", x)]
        return f"The copy does not start: {one_line(' '.join(bad[-3:]) or text[-400:], 500)}"

    def check_end(self, newest: str) -> None:
        """Refuse one that is at the end, and has not seen the newest WAL that was to be had."""
        place = self.ask("SELECT pg_last_wal_replay_lsn()")
        if backup_archive.segment_of(place) < backup_archive.number(newest)[1]:
            raise Failure(
                f"The copy ends at {place}, before {newest}, which is the newest WAL there. The"
                " repository may be out of reach at times. Run the same command again."
            )

    def promote(self) -> None:
        """Let it write; it archives nothing all the same, and is thrown away after."""
        self.ask("SELECT pg_promote(true, 600)")

    def stop(self) -> None:
        if self.server and self.server.poll() is None:
            self.server.send_signal(2)  # the fast way
            try:
                self.server.wait(120)
            except subprocess.TimeoutExpired:
                self.server.kill()
                self.server.wait()
        self.server = None

    def remove(self) -> None:
        """Remove it; one that a killed job has left running goes with its unit."""
        files.remove(self.folder)

    @contextlib.contextmanager
    def serving(self, to_the_end: bool = False) -> Iterator[Scratch]:
        self.start()
        try:
            self.wait(to_the_end)
            yield self
        finally:
            self.stop()
