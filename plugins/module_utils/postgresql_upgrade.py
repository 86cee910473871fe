"""Take a PostgreSQL cluster to the major version of the server's Debian, and back.

pg_upgradecluster copies the data while both clusters are down. The former cluster stays as it was,
down, until it is dropped. What is done so far is noted, so that an upgrade that was cut short goes
on, and so that the way back is known.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import backup_repository, backup_state, files, found, postgresql_config
from . import postgresql_upgrade_checks as checks
from .commands import CommandFailed, Failure, ask, run
from .postgresql_server import Server, Session, one_line, psycopg2, sql

STATE = Path("/var/lib/carafe/postgres-upgrade.json")
# What its backups go by: another version has others, and the way back wants these again.
BACKED_UP_BY = (backup_repository.PGBACKREST.parent, backup_repository.SETUP)
KEPT = Path("/var/lib/carafe/postgres-upgrade")
CREATE = Path("/etc/postgresql-common/createcluster.d/zz-carafe-upgrade.conf")
# Whatever a server's new clusters are made with, pg_upgrade wants the former one's.
LIKE_THE_FORMER = "# For the time of an upgrade, by Carafe.\ninitdb_options = ''\n"
# pg_upgradecluster runs it with the former version, the cluster's name, the new version and the
# phase, init between making the new cluster and pg_upgrade, which needs libraries of extensions
# that are only loaded at the start of a server. The other settings come after the copy.
HOOK = Path("/etc/postgresql-common/pg_upgradecluster.d/carafe")
PRELOADED = "carafe-upgrade.conf"
HOOK_PROGRAM = f"""\
#!/bin/sh
# For the time of an upgrade, by Carafe.
test "$4" != init || cat >"/etc/postgresql/$3/$2/conf.d/{PRELOADED}" <<'SETTINGS'
{{settings}}SETTINGS
"""
BINARIES = Path("/usr/lib/postgresql")
CONTROL = "Data page checksum version"
LARGEST_SAID = 1500  # characters of what pg_upgrade says

LOCALES = """
SELECT pg_encoding_to_char(encoding), datcollate, datctype, datlocprovider, {icu}
FROM pg_database WHERE datname = 'template0'
"""
# Of what people have made, in one database: relations by kind, and the bytes of tables. An upgrade
# copies files as they are.
RELATIONS = """
SELECT relkind::text, count(*), sum(CASE WHEN relkind IN ('r', 'm') THEN pg_relation_size(oid) END)
FROM pg_class WHERE oid >= 16384 AND relkind IN ('r', 'm', 'v', 'S', 'i', 'p', 'f')
AND relnamespace NOT IN (SELECT oid FROM pg_namespace WHERE nspname ~ '^pg_') GROUP BY 1
UNION ALL SELECT 'lo', count(*), 0 FROM pg_largeobject_metadata HAVING count(*) > 0
"""
KINDS = {
    "r": "tables",
    "m": "materialized views",
    "v": "views",
    "S": "sequences",
    "i": "indexes",
    "p": "partitioned tables",
    "f": "foreign tables",
    "lo": "large objects",
}
OLDER_COLLATIONS = """
SELECT n.nspname, c.collname FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace
WHERE c.collversion IS DISTINCT FROM pg_collation_actual_version(c.oid)
AND c.collversion IS NOT NULL
"""
OLDER_DATABASE = """
SELECT datcollversion IS DISTINCT FROM pg_database_collation_actual_version(oid)
FROM pg_database WHERE datname = current_database() AND datcollversion IS NOT NULL
"""
# PostgreSQL's own are those of the new cluster, where an index may have been sorted by those of the
# former one.
SORTED_BY = """
SELECT DISTINCT c.collname, c.collprovider::text, c.collversion
FROM pg_index i, unnest(i.indcollation) o JOIN pg_collation c ON c.oid = o
WHERE c.oid < 16384 AND c.collversion IS NOT NULL AND i.indexrelid >= 16384 ORDER BY 1, 2
"""
# The order in which they were made: one may need another.
OLDER_EXTENSIONS = """
SELECT e.extname, e.extversion, a.default_version
FROM pg_extension e JOIN pg_available_extensions a ON a.name = e.extname
WHERE e.extversion IS DISTINCT FROM a.default_version AND a.default_version IS NOT NULL
ORDER BY e.oid
"""
# Rows lie in their partitions by the order that held when they were written.
PARTITIONED = """
SELECT p.partrelid::regclass::text FROM pg_partitioned_table p
WHERE p.partstrat = 'r' AND EXISTS (SELECT FROM unnest(p.partcollation) o
  JOIN pg_collation c ON c.oid = o WHERE c.collname NOT IN ('C', 'POSIX', 'ucs_basic'))
ORDER BY 1
"""
OPEN_DATABASES = "SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1"


def noted() -> dict[str, Any]:
    """Return what is known of an upgrade of this server, nothing where there was none."""
    try:
        return json.loads(files.read(STATE) or "{}")
    except ValueError:
        return {}


def note(**state: Any) -> None:
    if not STATE.parent.is_dir():
        STATE.parent.mkdir(mode=0o750)
    files.write(STATE, json.dumps(state, indent=2) + "\n", 0o640, "root", "root")


def backed_up() -> float:
    """Return when the newest backup of the databases has ended, 0 where there is none."""
    known = [backup_state.read(x) or {} for x in backup_state.DATABASE]
    return max(float(x.get("last_ok") or 0) for x in known)


def older(version: str, name: str) -> str:
    """Return the version of the newest cluster of this name that is older, '' where none is."""
    versions = [
        x["version"]
        for x in found.clusters()
        if x["name"] == name and x["version"].isdecimal() and int(x["version"]) < int(version)
    ]
    return max(versions, key=int, default="")


class Upgrade:
    """The way of a cluster from one version to another."""

    def __init__(self, former: str, version: str, name: str):
        self.former, self.version, self.name = former, version, name
        self.old, self.new = Server(former, name), Server(version, name)
        if not self.new.look():
            self.new.data = checks.place_of_copy(self.old.data, former, version, name)
        self.state = noted()
        self.warnings: list[str] = []
        if (self.state.get("former"), self.state.get("version")) != (former, version):
            self.state = {}

    # What is there.

    def step(self) -> str:
        """Return how far it is: '' (nothing done), copied, serving."""
        return self.state.get("step", "") if self.new.look() else ""

    def room(self) -> list[dict[str, Any]]:
        """Return what the copy takes, and what is free, on each disk."""
        return checks.room(self.old.data, self.new.data, self.former)

    def binary(self, version: str, program: str) -> Path:
        return BINARIES / version / "bin" / program

    # Before anything is stopped.

    def refuse(self) -> None:
        """Refuse what would fail half-way, or be lost, while everybody is served as before."""
        if not self.binary(self.version, "pg_upgrade").exists():
            raise Failure(
                f"PostgreSQL {self.version} is not installed. Nothing was touched. Install it:"
                f" sudo apt-get install postgresql-{self.version}"
            )
        checks.refuse_place(self.new.data)
        checks.refuse_tablespaces(self.old.data, self.former, self.version)
        checks.refuse_what_would_be_lost(self.old.wait(), self.former, self.name)
        checks.refuse_full_disks(self.room())
        done = ask(
            *("pg_upgradecluster", "--check", "--force-packages"),
            *(f"--version={self.version}", self.former, self.name),
        )
        if done.returncode:
            said = one_line(done.stdout + done.stderr)[-LARGEST_SAID:]
            raise Failure(
                f"{self.former}/{self.name} cannot be upgraded. Nothing was touched."
                f" pg_upgradecluster says: {said}"
            )
        self.ask_pg_upgrade()

    def ask_pg_upgrade(self) -> None:
        """Let pg_upgrade compare the cluster that runs with an empty one of the new version."""
        session = self.old.wait()
        query = LOCALES.format(icu="daticulocale" if session.version >= 150000 else "NULL")
        encoding, collate, ctype, provider, icu = session.rows(query)[0]
        scratch = self.new.data.parent / "carafe-check"
        made = next((x for x in reversed(scratch.parents) if not x.exists()), scratch)
        files.remove(scratch)
        options = [f"--encoding={encoding}", f"--lc-collate={collate}", f"--lc-ctype={ctype}"]
        if provider == "i":
            options += ["--locale-provider=icu", f"--icu-locale={icu}"]
        if self.has_checksums(self.old):
            options.append("--data-checksums")
        scratch.mkdir(mode=0o700, parents=True)
        # Whatever the umask is: PostgreSQL's user goes through them.
        for folder in (x for x in scratch.parents if x.is_relative_to(made)):
            folder.chmod(0o755)
        shutil.chown(scratch, "postgres", "postgres")
        try:
            self.as_postgres(
                self.binary(self.version, "initdb"), "-D", scratch, "--no-sync", *options
            )
            with (scratch / "postgresql.conf").open("a") as file:
                file.write(preloaded(session))
            self.as_postgres(
                *(self.binary(self.version, "pg_upgrade"), "--check"),
                *("-b", self.binary(self.former, "postgres").parent),
                *("-B", self.binary(self.version, "postgres").parent),
                *("-d", self.old.config, "-D", scratch, "-s", scratch),
                *("-p", str(self.old.place()["port"])),
                folder=scratch,
            )
        except CommandFailed as failed:
            said = one_line(" ".join([str(failed), *reports(scratch)]))[-LARGEST_SAID:]
            raise Failure(
                f"PostgreSQL {self.version} does not take the data of {self.former}/{self.name} as"
                f" it is. Nothing was touched. {said}{self.missing_packages()}"
            ) from None
        finally:
            files.remove(made)

    def missing_packages(self) -> str:
        """Return which packages the former version has and the new one lacks, in a sentence."""
        said = ask(
            "pg_upgradecluster", "--check", f"--version={self.version}", self.former, self.name
        ).stdout
        names = re.findall(r"(?m)^\S+ is installed, but (\S+) is missing$", said)
        return f" Perhaps this helps: sudo apt-get install {' '.join(names)}" if names else ""

    def as_postgres(self, *command: str | Path, folder: Path = Path("/")) -> str:
        done = subprocess.run(
            command,
            user="postgres",
            group="postgres",
            extra_groups=[],
            cwd=folder,
            env={"LC_ALL": "C.UTF-8", "PATH": os.defpath},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            said = one_line(reason(f"{done.stdout}\n{done.stderr}"))[-LARGEST_SAID:]
            raise CommandFailed(f"{Path(command[0]).name} says: {said}")
        return done.stdout

    def has_checksums(self, server: Server) -> bool:
        said = run(server.program.parent / "pg_controldata", server.data)
        values = dict(x.split(":", 1) for x in said.splitlines() if ":" in x)
        return values[CONTROL].strip() != "0"

    # The copy.

    def copy(self) -> list[str]:
        """Stop the former cluster, and have its data and configuration in the new one."""
        if self.step():
            return []
        self.recover()
        session = self.old.wait()
        settings = preloaded(session)
        relations, sorted_by = self.relations(self.old), self.sorted_by(session)
        port = self.old.place()["port"]
        self.state = {
            "former": self.former,
            "version": self.version,
            "name": self.name,
            "port": port,
            "relations": relations,
            "sorted_by": sorted_by,
            "began": time.time(),
        }
        note(**self.state)
        keep_what_backups_go_by()
        with like_the_former(settings):
            # pg_upgrade has looked at what it needs. Not every package of the former one is.
            done = ask(
                *("pg_upgradecluster", "--method=upgrade", "--no-start", "--force-packages"),
                *(f"--jobs={os.cpu_count() or 1}", f"--version={self.version}"),
                *(self.former, self.name, self.new.data),
            )
        if done.returncode:
            self.recover()
            said = one_line(reason(done.stdout + done.stderr))[-LARGEST_SAID:]
            raise Failure(
                f"PostgreSQL could not be upgraded, and {self.former}/{self.name} runs as before."
                f" pg_upgradecluster says: {said}"
            )
        # It is enabled by name, which start.conf has no word in: both would start at boot.
        run("systemctl", "disable", "--quiet", self.old.unit)
        self.bring_along()
        if not self.has_checksums(self.new):
            self.as_postgres(
                self.binary(self.version, "pg_checksums"), "--enable", "-D", self.new.data
            )
        self.state["step"] = "copied"
        note(**self.state)
        return [f"copy {self.former}/{self.name} to {self.version}/{self.name}"]

    def bring_along(self) -> None:
        """Copy what pg_upgradecluster leaves behind: settings, and lines that are not ours."""
        files.remove(self.new.config / "conf.d" / PRELOADED)
        for path in sorted((self.old.config / "conf.d").iterdir()):
            target = self.new.config / "conf.d" / path.name
            shutil.copy2(path, target)
            shutil.chown(target, path.stat().st_uid, path.stat().st_gid)
        kept = postgresql_config.FOLDER / f"adopted-{self.former}-{self.name}.conf"
        if kept.exists():
            target = postgresql_config.FOLDER / f"adopted-{self.version}-{self.name}.conf"
            shutil.copy2(kept, target)

    def recover(self) -> None:
        """Let the former cluster serve again. A copy that was cut short never did, and goes."""
        if not self.state or self.step():
            return
        if self.new.look():
            run("pg_dropcluster", "--stop", self.version, self.name)
        # One that was undone may have kept its place.
        if not checks.owners_of(self.new.data):
            files.remove(self.new.data)
        self.make_serve(self.old)
        files.remove(STATE)
        self.state = {}

    def make_serve(self, server: Server) -> None:
        """Run a cluster on the port that apps know, now and at each boot."""
        port = str(self.state["port"])
        run("pg_conftool", server.version, server.name, "set", "port", port)
        start = server.config / "start.conf"
        files.write(start, "auto\n", 0o644, "postgres", "postgres")
        run("systemctl", "daemon-reload")
        run("systemctl", "enable", "--quiet", server.unit)
        run("systemctl", "start", server.unit)
        server.wait()

    # What a copy needs before it serves.

    def finish(self) -> list[str]:
        """Bring extensions and sorting up to date in the cluster that runs now, and compare it."""
        if self.step() == "serving":
            return []
        session, changes = self.new.wait(), []
        for (database,) in session.rows(OPEN_DATABASES):
            session.open(database)
            changes += self.refresh(session, database)
        if lost := less(self.state["relations"], self.relations(self.new)):
            raise Failure(f"After the upgrade there is less than before: {'; '.join(lost)}.")
        self.state |= {"step": "serving", "ended": time.time()}
        note(**self.state)
        return [*changes, f"serve from {self.version}/{self.name}"]

    def refresh(self, session: Session, database: str) -> list[str]:
        """Bring one database up to date. What is sorted by other rules is sorted anew."""
        done: list[str] = []
        session.changes = done
        try:
            for name, has, wanted in session.rows(OLDER_EXTENSIONS):
                session.change(
                    f"{database}: take {name} from {has} to {wanted}",
                    "ALTER EXTENSION {e} UPDATE",
                    e=name,
                )
            collations = session.rows(OLDER_COLLATIONS)
            is_older = session.rows(OLDER_DATABASE) == [(True,)]
            if collations or is_older or self.sorts_otherwise(session, database):
                session.change(
                    f"{database}: sort the indexes anew, since Debian sorts otherwise now",
                    "REINDEX DATABASE {d}",
                    d=database,
                )
                if tables := [name for (name,) in session.rows(PARTITIONED)]:
                    self.warnings.append(
                        f"Debian sorts texts otherwise now, and in the database {database} these"
                        f" tables have their rows in partitions by the former order:"
                        f" {', '.join(tables)}. Dump and restore them, unless their bounds are"
                        " plain ASCII."
                    )
            for schema, name in collations:
                session.cursor.execute(
                    sql.SQL("ALTER COLLATION {} REFRESH VERSION").format(
                        sql.Identifier(schema, name)
                    )
                )
            if is_older:
                session.change(
                    f"{database}: note the rules by which it sorts",
                    "ALTER DATABASE {d} REFRESH COLLATION VERSION",
                    d=database,
                )
        except psycopg2.Error as error:
            raise Failure(
                f"The database {database} could not be brought up to date: {one_line(error)}"
            ) from None
        return done

    def sorted_by(self, session: Session) -> dict[str, list[list[str]]]:
        """Return the versions of PostgreSQL's own collations by which indexes are sorted."""
        found = {}
        for (database,) in session.rows(OPEN_DATABASES):
            session.open(database)
            found[database] = [list(x) for x in session.rows(SORTED_BY)]
        return found

    def sorts_otherwise(self, session: Session, database: str) -> bool:
        now = session.rows(SORTED_BY)
        had = self.state.get("sorted_by", {}).get(database, [])
        return bool({tuple(x) for x in now} - {tuple(x) for x in had})

    def relations(self, server: Server) -> dict[str, Any]:
        """Return what is in each database: by kind, how many there are, and the tables' bytes."""
        session, counted = server.wait(), {}
        for name in session.databases():
            session.open(name)
            rows = session.rows(RELATIONS)
            counted[name] = {kind: [count, int(size or 0)] for kind, count, size in sorted(rows)}
        return counted

    def analyze(self) -> list[str]:
        """Gather the statistics that queries are planned by, coarse ones first."""
        if self.state.get("analyzed"):
            return []
        port = str(self.new.place()["port"])
        self.as_postgres(
            self.binary(self.version, "vacuumdb"),
            *("--all", "--analyze-in-stages", "--no-password", f"--port={port}"),
            f"--jobs={os.cpu_count() or 1}",
        )
        self.state["analyzed"] = True
        note(**self.state)
        return ["gather statistics of all databases"]

    # The way back, and its end.

    def undo(self) -> list[str]:
        """Let the former cluster serve again. What was written since stays in the new one."""
        if not self.step():
            raise Failure(
                f"{self.version}/{self.name} does not come from an upgrade, so there is nothing to"
                " go back from. Nothing was touched."
            )
        if not self.old.look():
            raise Failure(
                f"{self.former}/{self.name} was dropped, so there is no way back to it. A restore"
                " from a backup is the way to former data."
            )
        kept = f"undone-{time.strftime('%Y%m%d%H%M%S', time.gmtime())}"
        run("systemctl", "disable", "--now", "--quiet", self.new.unit)
        spare = str(self.old.look()["port"])
        run("pg_conftool", self.version, self.name, "set", "port", spare)
        files.write(self.new.config / "start.conf", "manual\n", 0o644, "postgres", "postgres")
        run("pg_renamecluster", self.version, self.name, kept)
        run("systemctl", "daemon-reload")
        bring_back_what_backups_go_by()
        self.make_serve(self.old)
        files.remove(STATE)
        return [f"serve from {self.former}/{self.name}", f"keep the new one: {self.version}/{kept}"]

    def drop(self) -> list[str]:
        """Remove the former cluster, and with it the way back."""
        if self.step() != "serving":
            raise Failure(
                f"{self.version}/{self.name} does not serve yet, and {self.former}/{self.name} has"
                " the data. Nothing was touched. Finish the upgrade first."
            )
        run("pg_dropcluster", "--stop", self.former, self.name)
        files.remove(postgresql_config.FOLDER / f"adopted-{self.former}-{self.name}.conf")
        files.remove(STATE)
        files.remove(KEPT)
        return [f"drop {self.former}/{self.name}"]


def keep_what_backups_go_by() -> None:
    files.remove(KEPT)
    KEPT.mkdir(mode=0o700)
    for path in BACKED_UP_BY:
        if path.exists():
            run("cp", "--archive", path, KEPT)


def bring_back_what_backups_go_by() -> None:
    for path in BACKED_UP_BY:
        kept = KEPT / path.name
        if kept.is_dir():
            run("cp", "--archive", "--no-target-directory", kept, path)
        elif kept.exists():
            run("cp", "--archive", kept, path)
    files.remove(KEPT)


def less(had: dict[str, Any], has: dict[str, Any]) -> list[str]:
    """Return what there is less of, a few words for each. More is what came until the stop."""
    found = []
    for database, kinds in had.items():
        for kind, (count, size) in kinds.items():
            left, bytes_left = has.get(database, {}).get(kind, [0, 0])
            if left < count or bytes_left < size:
                found.append(
                    f"{database} has {left} of {count} {KINDS[kind]}, of {size} bytes {bytes_left}"
                )
    return found


def reason(said: str) -> str:
    """Return what PostgreSQL's programs say, without warnings and what went well.

    Each database that is sorted by an older Debian's rules makes three lines at each connection.
    """
    lines = re.split(r"\n(?!\t)", said)
    return "\n".join(x for x in lines if not re.match(r"\s*(WARNING|DETAIL|HINT):|.* ok\s*$", x))


def reports(folder: Path) -> Iterator[str]:
    """Yield what pg_upgrade has written into files: what it has found, and why a server ended."""
    for path in sorted(folder.glob("**/*.txt")):
        yield files.read(path) or ""
    for path in sorted(folder.glob("**/pg_upgrade_server.log")):
        yield from re.findall(r"FATAL: .*", files.read(path) or "")


def preloaded(session: Session) -> str:
    """Return what a configuration says for the libraries that a server loads at its start."""
    (value,) = session.rows("SELECT current_setting('shared_preload_libraries')")[0]
    quoted = value.replace("'", "''")
    return f"shared_preload_libraries = '{quoted}'\n" if value else ""


@contextlib.contextmanager
def like_the_former(settings: str) -> Iterator[None]:
    wanted = [(CREATE, LIKE_THE_FORMER, 0o644)]
    if settings:
        wanted.append((HOOK, HOOK_PROGRAM.format(settings=settings), 0o755))
    try:
        for path, text, mode in wanted:
            if not path.parent.is_dir():
                path.parent.mkdir(mode=0o755)
            files.write(path, text, mode, "root", "root")
        yield
    finally:
        for path, _, _ in wanted:
            files.remove(path)
