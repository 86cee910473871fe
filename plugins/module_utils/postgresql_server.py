"""One of Debian's PostgreSQL clusters: its files, its unit, and connections to it."""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import found, postgresql_pinned
from .commands import Failure, ask

try:
    import psycopg2
    from psycopg2 import sql
except ImportError:  # a bare server in a dry run; need_psycopg2() says so where it matters
    psycopg2 = sql = None

# Seconds until a server that says nothing is given up, and one that still reads its log.
SILENCE, RECOVERY = 30, 600

# One row that tells what the running server thinks of the files on its disk. PostgreSQL calls a
# wrong value and one that waits for a restart by the same words; only the second makes
# pending_restart true. Sizes are in kB, as tuned() has them.
STATE = """
SELECT
  ARRAY(
    SELECT format('%s, line %s: %s: %s', sourcefile, sourceline, name, error) FROM pg_file_settings
    WHERE position('cannot be changed without restarting the server' IN error) = 0
    AND coalesce(lower(name), '') NOT IN (SELECT lower(name) FROM pg_settings WHERE pending_restart)
    UNION ALL
    SELECT format('pg_hba.conf, line %s: %s', line_number, error)
    FROM pg_hba_file_rules WHERE error IS NOT NULL),
  (SELECT max((pg_stat_file(file, true)).modification) > pg_conf_load_time()
    FROM unnest(ARRAY[
      current_setting('hba_file'), current_setting('ssl_cert_file'), {settings}]) AS file),
  (SELECT coalesce(json_object_agg(name, CASE unit
      WHEN 'kB' THEN setting || 'kB'
      WHEN '8kB' THEN setting::bigint * 8 || 'kB'
      ELSE current_setting(name) END), '{{}}')
    FROM pg_settings WHERE pending_restart)
"""
# What is read later wins: postgresql.auto.conf is read last of all.
BEATEN = """
SELECT DISTINCT ON (1) ours.name, ours.setting, other.setting, other.sourcefile, other.sourceline
FROM pg_file_settings ours JOIN pg_file_settings other
  ON lower(other.name) = lower(ours.name) AND other.seqno > ours.seqno
WHERE ours.sourcefile = %s AND other.sourcefile <> ours.sourcefile
  AND other.setting IS DISTINCT FROM ours.setting
ORDER BY 1, other.seqno DESC
"""
READ = "SELECT EXISTS (SELECT FROM pg_file_settings WHERE sourcefile = %s)"


def need_psycopg2() -> None:
    if psycopg2 is None:
        raise Failure(
            "The server's Python has no psycopg2. Install python3-psycopg2, of postgres_packages."
        )


def one_line(text: object) -> str:
    return " ".join(str(text).split())


@contextlib.contextmanager
def as_postgres() -> Iterator[None]:
    """Be the operating system's user postgres, whom PostgreSQL lets in as its superuser."""
    if os.geteuid() != 0:
        yield
        return
    user = pwd.getpwnam("postgres")
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


class Session:
    """One connection at a time to the cluster, and the list of what was changed through it."""

    def __init__(self, place: dict[str, Any] | None = None) -> None:
        self.place = place or {}
        self.check = False
        self.changes: list[str] = []
        self.version = 0  # known from the first connection on, which is to no owner's database
        self.open("postgres")

    def open(self, database: str) -> None:
        """Connect to a database; statements take effect one by one.

        In one that somebody owns, they ask PostgreSQL's own catalogs and grant privileges, which
        runs no code of the owner's. SET ROLE would be no border there: such code resets it.
        """
        with as_postgres():
            self.connection = psycopg2.connect(
                dbname=database,
                user="postgres",
                **self.place,
                client_encoding="UTF8",
                options=postgresql_pinned.options(self.version // 10000),
            )
        self.version = self.connection.server_version
        self.connection.autocommit = True
        self.cursor = self.connection.cursor()

    def rows(self, query: Any, *values: object) -> list[tuple]:
        self.cursor.execute(query, values or None)
        return self.cursor.fetchall()

    def is_standby(self) -> bool:
        """Tell whether it only follows another server, which alone takes writes."""
        return self.rows("SELECT pg_is_in_recovery()") == [(True,)]

    def databases(self) -> list[str]:
        """Return the databases that people have made."""
        query = "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate"
        return sorted(name for (name,) in self.rows(query) if name != "postgres")

    def change(self, sentence: str, template: str, **parts: Any) -> None:
        """Run one statement, unless only checking; note what it does, never the secret in it.

        Parts that are texts are names.
        """
        self.changes.append(sentence)
        if not self.check:
            parts = {k: sql.Identifier(x) if isinstance(x, str) else x for k, x in parts.items()}
            self.cursor.execute(sql.SQL(template).format(**parts))


class Server:
    """A cluster, by its version and its name, as pg_lsclusters has them."""

    def __init__(self, version: str, name: str = "main"):
        self.version, self.name = version, name
        self.config = Path("/etc/postgresql", version, name)
        self.settings_file = self.config / "conf.d/carafe.conf"
        self.hba_file = self.config / "pg_hba.conf"
        self.data = Path(self.look().get("data") or Path("/var/lib/postgresql", version, name))
        self.program = Path("/usr/lib/postgresql", version, "bin/postgres")
        self.unit = f"postgresql@{version}-{name}.service"

    def look(self) -> dict[str, Any]:
        """Return what is to be seen of the cluster without asking it; nothing before it is made."""
        return found.cluster(self.version, self.name)

    def place(self) -> dict[str, Any]:
        """Return where this cluster listens, and no other one."""
        seen = self.look()
        host = {"host": seen["socket"]} if seen.get("socket") else {}
        return {"port": seen["port"], **host} if seen else {}

    def is_installed(self) -> bool:
        return self.config.is_dir() and self.program.exists()

    def ask_program(self, name: str, file: Path) -> subprocess.CompletedProcess[str]:
        """Ask PostgreSQL's program, not the running server, for a setting as a file has it."""
        command = [self.program, "-C", name, "-D", self.data, f"--config-file={file}"]
        user: dict[str, Any] = {}
        if os.geteuid() == 0:  # the program refuses to be root
            user = {"user": "postgres", "group": "postgres", "extra_groups": []}
        options: dict[str, Any] = {"cwd": "/", "env": {"LC_ALL": "C"}, **user}
        return subprocess.run(command, capture_output=True, text=True, check=False, **options)

    def journal(self) -> str:
        said = ask("journalctl", f"--unit={self.unit}", "--lines=12", "--output=cat").stdout
        return f"Its unit, {self.unit}, says: {one_line(said)}"

    def wait(self) -> Session:
        """Return a session with the server, as soon as it lets one in."""
        start = time.monotonic()
        while True:
            try:
                return Session(self.place())
            except psycopg2.OperationalError as error:
                passed = time.monotonic() - start
                # A server that was killed, or restored from a copy, first reads its log.
                if passed > RECOVERY or (passed > SILENCE and not self.is_starting()):
                    raise Failure(
                        f"PostgreSQL does not run. {one_line(error)} {self.journal()}"
                    ) from None
                time.sleep(0.1)

    def is_starting(self) -> bool:
        """Tell whether the server is there and takes nobody yet."""
        place = [f"--{name}={value}" for name, value in self.place().items()]
        return ask("pg_isready", "--quiet", *place).returncode == 1

    def beaten(self, session: Session) -> list[str]:
        """Return which of our settings another file has the last word on, a sentence for each."""
        rows = session.rows(BEATEN, str(self.settings_file))
        if not rows and not session.rows(READ, str(self.settings_file))[0][0]:
            raise Failure(
                f"PostgreSQL does not read {self.settings_file}, so that none of the role's"
                " settings is in force. Add the line include_dir = 'conf.d' to"
                f" {self.config}/postgresql.conf and run the playbook again."
            )
        return [beaten(*row) for row in rows]

    def state(self, session: Session) -> tuple[list[str], bool, dict[str, str]]:
        """Return what is wrong in the files, whether they are newer than what runs, and which
        settings wait for a restart, with the values that they have."""
        # Reading pg_file_settings is what makes pg_settings.pending_restart true in this session.
        session.rows("SELECT count(*) FROM pg_file_settings")
        query = sql.SQL(STATE).format(settings=sql.Literal(str(self.settings_file)))
        return session.rows(query)[0]

    def reload(self, session: Session) -> None:
        """Have the files read anew, and wait until they are."""
        (before,) = session.rows("SELECT pg_conf_load_time()")
        session.rows("SELECT pg_reload_conf()")
        deadline = time.monotonic() + SILENCE
        while session.rows("SELECT pg_conf_load_time()") == [before]:
            if time.monotonic() > deadline:
                raise Failure(f"PostgreSQL did not read its files anew. {self.journal()}")
            time.sleep(0.01)


def beaten(name: str, ours: str, theirs: str, file: str, line: int) -> str:
    by, way = f"{file}, line {line}", f"take it out of {file}"
    if file.endswith("/postgresql.auto.conf"):
        by = "ALTER SYSTEM"
        way = f"take that back by ALTER SYSTEM RESET {name}"
    return (
        f"{name} is {theirs!r} by {by}, which beats the {ours!r} that the role postgres has"
        f" written. Say it in postgres_settings in group_vars, or {way}."
    )


def session_now(server: Server | None = None) -> Session | None:
    """Return a session with the server, or None where it lets nobody in at this moment."""
    place = server.place() if server else None
    # Of a cluster that is not there, libpq would ask another one.
    if psycopg2 is None or (server and not place):
        return None
    try:
        return Session(place)
    except (psycopg2.OperationalError, KeyError):  # KeyError: there is no user postgres either
        return None


def report(changes: list[str], diff: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return a module's result: sentences, also where --diff looks for them."""
    said = [{"prepared": "".join(f"{change}\n" for change in changes)}] if changes else []
    return {"changed": bool(changes), "changes": changes, "diff": [*(diff or []), *said]}
