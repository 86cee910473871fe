"""Bring one app's database and files back to a moment, beside what is live, and switch by renaming.

The live cluster is not touched: it may have databases of other apps, its archiving goes on, and its
timeline stays. The past is read from a cluster beside it, into another database of this one; what
it replaces is kept under another name, until somebody says that it may go.

Each step is noted, so that a restore that was cut short is gone on with by the same command.

Used by modules, and by programs that run without Ansible.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pwd
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import (
    backup_files,
    backup_jobs,
    backup_repository,
    backup_shared,
    backup_source,
    backup_state,
    backup_target,
    files,
)
from .backup_jobs import alone
from .backup_repository import as_postgres, psql
from .backup_scratch import Scratch
from .backup_target import Target, shown
from .commands import CommandFailed, Failure
from .words import one_line

KEPT = re.compile(r"_(before|undone)_(\d{8}t\d{6})$")
LONGEST = 63  # bytes of a name in PostgreSQL
# What a database is made with, as it was; the names differ between PostgreSQL's versions.
MADE = """SELECT json_build_object(
    'encoding', pg_encoding_to_char(encoding), 'provider', datlocprovider,
    'collate', datcollate, 'ctype', datctype,
    'locale', coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale'),
    'limit', datconnlimit, 'owner', pg_get_userbyid(datdba),
    'grants', (SELECT json_agg(json_build_array(CASE grantee WHEN 0 THEN NULL
        ELSE pg_get_userbyid(grantee) END, privilege_type)) FROM aclexplode(datacl)),
    'settings', (SELECT json_agg(json_build_array(CASE setrole WHEN 0 THEN NULL
        ELSE pg_get_userbyid(setrole) END, setting))
        FROM pg_db_role_setting s, unnest(setconfig) AS setting WHERE s.setdatabase = d.oid))
    FROM pg_database d WHERE datname = {name}"""
PROVIDERS = {"c": "libc", "i": "icu", "b": "builtin"}
# Settings that are lists of names, and are kept in SQL's own syntax.
LISTS = {"search_path", "temp_tablespaces", "local_preload_libraries", "session_preload_libraries"}
# When what was reached last was written; the WAL of an idle server has none.
REACHED = "SELECT coalesce(extract(epoch FROM pg_last_xact_replay_timestamp()), {at})"
# Who has rights in a database, or is named in its policies.
NAMED = """SELECT coalesce(json_agg(DISTINCT rolname), '[]') FROM pg_shdepend
    JOIN pg_roles r ON r.oid = refobjid
    WHERE refclassid = 'pg_authid'::regclass AND deptype <> 'o'
      AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())"""
EXTENSIONS = """SELECT coalesce(json_object_agg(extname, nspname), '{}')
    FROM pg_extension e JOIN pg_namespace n ON n.oid = extnamespace WHERE extname <> 'plpgsql'"""
ROWS = """SELECT coalesce(json_object_agg(name, (xpath('/row/n/text()',
      query_to_xml('SELECT count(*) AS n FROM ' || name, false, true, '')))[1]::text::bigint), '{}')
    FROM (SELECT format('%I.%I', n.nspname, c.relname) AS name FROM pg_class c
      JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE c.relkind = 'r' AND c.relpersistence = 'p'
        AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_%'
        AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass
          AND objid = c.oid AND deptype = 'e')) AS t"""
END = """ALTER DATABASE {d} ALLOW_CONNECTIONS false;
SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = {l};"""


def name(text: str) -> str:
    """Return a name as SQL has it."""
    return '"' + text.replace('"', '""') + '"'


def literal(text: str) -> str:
    quoted = "'" + text.replace("'", "''") + "'"
    return f"E{quoted}".replace("\\", "\\\\") if "\\" in text else quoted


class Restore:
    """One restore of an app on this server, and how far it is."""

    def __init__(self, app: str) -> None:
        self.name = app
        self.path = backup_state.STATE / f"restoring-{app}.json"
        self.progress: dict[str, Any] = json.loads(files.read(self.path) or "{}")

    def save(self, **more: Any) -> None:
        self.progress |= more
        text = json.dumps(self.progress, indent=2) + "\n"
        files.write(self.path, text, 0o600, owner=os.geteuid(), group=os.getegid())

    def done(self, step: str) -> bool:
        return step in self.progress.get("done", [])

    def note(self, step: str, **more: Any) -> None:
        self.save(done=[*self.progress.get("done", []), step], **more)

    @property
    def environment(self) -> str:
        """Return whose past it is; '' for that of this server."""
        return self.progress.get("environment", "")

    @property
    def words(self) -> str:
        """Return what goes on with it."""
        to, place = self.progress["to"], self.progress.get("place", "")
        copied = f"copy_data with -e copy_from={self.environment}" if self.environment else ""
        where = f" -e restore_place={place}" if place else ""
        return f"the playbook {copied or 'restore with'} -e restore_to='{to}'{where}"

    @property
    def target(self) -> Target:
        return Target(**self.progress["target"])

    def beside(self, database: str) -> str:
        return f"{database}_restoring"

    def former(self, database: str) -> str:
        return f"{database}_before_{self.progress['id']}"


def new_moment() -> str:
    return time.strftime("%Y%m%dt%H%M%S", time.gmtime())


def app_of(app: str) -> dict[str, Any]:
    return backup_files.app_of(app)


def databases_of(setup: Mapping[str, Any], told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return an app's databases that are brought back here: what follows gets them by that."""
    if not setup["database"] or not told["databases"] or backup_shared.follows(setup):
        return []
    return told["databases"]


def left(app: str) -> dict[str, Any]:
    """Return what restores have left here; that is known without the repository."""
    found = {"kept": kept(backup_repository.setup(), app_of(app))}
    return found | {"restoring": Restore(app).progress}


def wanted(
    app: str, place: str = "", source: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """Return the setup by which the past is read, and which databases and folders of it are due."""
    told, own = app_of(app), backup_repository.setup()
    if source and place:
        raise Failure(
            f"restore_place is of this server's own backups, and those of {source['environment']}"
            " are read out of its backup_repository. Run the same command without it."
        )
    setup = source["setup"] if source else backup_repository.reading(own, place)
    return setup, databases_of(own, told), told["paths"] if not source or source["files"] else []


def plan(
    app: str, to: str, place: str = "", source: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return what there is to restore, and what a target means; refuse one that is out of reach.

    The past is this server's, or that of a source in another environment.
    """
    now, (setup, databases, paths) = time.time(), wanted(app, place, source)
    # Points that were made where another server led.
    backup_shared.sync(backup_repository.setup())
    found: dict[str, Any] = left(app) | {"backups": [], "snapshots": []}
    if not databases and not paths:
        return found
    if databases:
        known = backup_repository.info(setup)
        found["window"] = backup_jobs.window(known) | {"newest": newest(now)}
        if place or source:
            # What was written since it was copied is not there. The time is one of whole seconds.
            seen = backup_jobs.inspect(setup, whole=False)
            found["window"] |= seen | {"newest": seen["newest"] + 1}
        found["backups"] = [
            f"{x['type']} {x['label']}, done {shown(x['timestamp']['stop'])}"
            for x in known["backup"]
        ]
        found["points"] = [] if source else backup_state.points()[-20:]
    if paths:
        snapshots = backup_files.snapshots(setup, app, bool(source))
        snapshots = backup_source.of_one(source, snapshots) if source else snapshots
        found["snapshots"] = [shown(x["at"]) for x in snapshots]
    if not to:
        return found
    target = backup_target.parse(to, found.get("points") or (), now)
    if place and target.kind == "latest" and "window" in found:
        raise Failure(
            f"{setup['repository']} ends before now. Name a moment that it has, before"
            f" {shown(found['window']['newest'])}: -e restore_to="
        )
    if "window" in found:
        backup_target.check(target, found["window"], now)
        found["backup"] = backup_target.backup_before(known["backup"], target.at)
    if source and target.kind == "latest" and databases:
        target.at = found["window"]["newest"]
    found["target"] = {"kind": target.kind, "at": target.at, "name": target.name}
    if paths and not snapshots:
        raise Failure(
            f"The repository has no snapshot of {app}'s files by {setup['host']}, so they cannot be"
            " brought back. Nothing was touched. Make one first, with the playbook backup; for"
            " those of a server that is gone, see restore_from in docs/how-to/backups.md."
        )
    if paths:
        found["snapshot"] = chosen(snapshots, target)
    found["loses"] = (
        f"what was written since {shown(target.at)}, {backup_state.ago(now - target.at)} ago"
        if not source
        else "what is live here"
    )
    return found


def newest(now: float) -> float:
    """Return up to which moment one can go back: to now, unless WAL does not reach the archive."""
    seen = backup_state.archiving()
    if seen and (seen["failed"] or 0) > (seen["archived"] or 0):
        return seen["archived"] or 0
    return now


def chosen(snapshots: list[dict[str, Any]], target: Target) -> dict[str, Any]:
    """Return the first snapshot of the files after a moment of the database, or the last one.

    A row may name a file; a file that no row names does no harm.
    """
    after = [x for x in snapshots if x["at"] >= target.at and target.kind != "latest"]
    found = after[0] if after else snapshots[-1]
    release = found["tagged"].get("release", "")
    owners = backup_files.owners_of(found["tagged"])
    return {"id": found["id"], "at": found["at"], "release": release, "owners": owners}


def begin(
    app: str,
    to: str,
    moment: str = "",
    place: str = "",
    source: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Note what is to be restored; the same once more goes on with what was cut short.

    ``moment`` is the name under which what is live is kept, the same on all servers of an app.
    Nothing is returned where the server has nothing of the app's to bring back.
    """
    restore, environment = Restore(app), source["environment"] if source else ""
    masks = source["masks"] if source else []
    if restore.progress:
        check_leads(restore)
        begun = tuple(restore.progress.get(x, "") for x in ("to", "place", "environment"))
        if begun != (to, place, environment):
            raise Failure(
                f"A restore of {app} to {begun[0]!r} was begun and is not done. Go on with it:"
                f" {restore.words}; or give it up first: the playbook restore with -e"
                f" restore_cancel={app}"
            )
        if restore.progress.get("masks", []) != masks and not restore.done("switching"):
            done = [x for x in restore.progress["done"] if x not in ("dumped", "loaded")]
            restore.save(done=done, masks=masks)
        return restore.progress
    setup, databases, paths = wanted(app, place, source)
    if not databases and not paths:
        return {}
    found = plan(app, to, place, source)
    moment = moment or new_moment()
    target = Target(**found["target"])
    for database in databases:
        if len(database["name"].encode()) > LONGEST - len(f"_before_{moment}"):
            raise Failure(f"The name of the database {database['name']} is too long to keep it.")
    if databases and not source:
        if target.kind == "latest":
            target.kind, target.name = "name", f"restore-{app}-{moment}"[:LONGEST]
            backup_jobs.point(target.name, stored=True)
            target.at = time.time()
        elif not place:
            # A moment is reached only where something was written after it.
            backup_jobs.mark()
            backup_jobs.switch(setup)
    restore.save(
        **{"id": moment, "to": to, "place": place, "done": [], "began": time.time()},
        target={"kind": target.kind, "at": target.at, "name": target.name},
        backup=found.get("backup", ""),
        snapshot=found.get("snapshot"),
        databases=databases,
        paths=paths,
        **{"environment": environment, "masks": masks},
        newest_wal=found.get("window", {}).get("newest_wal", ""),
    )
    return restore.progress


def check_leads(restore: Restore) -> None:
    """Refuse to go on where another server has come to lead since the restore was begun."""
    if restore.progress.get("databases") and backup_shared.follows(backup_repository.setup()):
        raise Failure(
            f"A restore of {restore.name} to {restore.progress['to']!r} was begun here while this"
            " server led, and another one leads by now. Give it up, and begin anew: the playbook"
            f" restore with -e restore_cancel={restore.name}"
        )


def prepare(app: str) -> tuple[str, dict[str, Any]]:
    """Bring everything beside what is live, so that only names are left to change."""
    restore, setup = Restore(app), backup_repository.setup()
    if not restore.progress:
        raise Failure("Nothing is asked for. Begin with the playbook restore.")
    if restore.environment:
        read = backup_source.setup(app)
    else:
        read = backup_repository.reading(setup, restore.progress.get("place", ""))
    backup_repository.check_place(read)
    with alone(f"-restore-{app}"), backup_source.forgotten(app):
        if restore.progress["databases"] and not restore.done("loaded"):
            dump(read, restore)
            load(setup, restore)
        if restore.progress["paths"] and not restore.done("files"):
            bring_files(read, restore)
    return "ready to switch", {"differences": restore.progress.get("differences", {})}


# The database: out of the past, into another one of the live cluster.


def dumps_of(setup: Mapping[str, Any], app: str) -> Path:
    return Path(setup["data"]).parent / f".carafe-dumps-{app}"


def dump(setup: dict[str, Any], restore: Restore) -> None:
    if restore.done("dumped"):
        return
    names = tuple(x["name"] for x in restore.progress["databases"])
    scratch, folder = Scratch(f"restore-{restore.name}", setup), dumps_of(setup, restore.name)
    files.remove(folder)
    folder.mkdir(mode=0o700)
    os.chown(folder, pwd.getpwnam("postgres").pw_uid, -1)
    known, seen = backup_repository.info(setup), {}
    scratch.make()
    try:
        # The copy, and then the dump and what is loaded from it.
        scratch.room(known["backup"][-1], times=2)
        target, backup = restore.target, ""
        if target.kind == "name":
            backup = restore.progress["backup"]
        # Where others are on the server, theirs are left out.
        try:
            scratch.restore(target.words, backup, names)
        except Failure as failed:
            # One that is younger than the backup comes by its WAL alone.
            if "include" not in str(failed):
                raise
            scratch.make()
            scratch.restore(target.words, backup)
        with scratch.serving(to_the_end=target.kind == "latest"):
            if target.kind == "latest":
                scratch.check_end(restore.progress["newest_wal"])
                target.at = float(scratch.ask(REACHED.format(at=target.at)))
                restore.save(target=dataclasses.asdict(target))
            elif restore.environment:
                scratch.promote()
            for one in names:
                made = scratch.ask(MADE.format(name=literal(one)))
                if not made:
                    raise Failure(f"There was no database {one} at {shown(target.at)}.")
                made = json.loads(made)
                if masks := restore.progress.get("masks"):
                    scratch.ask(f"ALTER ROLE {name(made['owner'])} LOGIN")
                    backup_source.mask(scratch, one, made["owner"], masks)
                seen[one] = {
                    "made": made,
                    "named": json.loads(scratch.ask(NAMED, one)),
                    "extensions": json.loads(scratch.ask(EXTENSIONS, one)),
                    "rows": json.loads(scratch.ask(ROWS, one)),
                }
                place = ("-h", scratch.run, "-p", str(setup["port"]), "-d", one)
                file = f"--file={folder / one}.dump"
                as_postgres(scratch.programs / "pg_dump", "--format=custom", file, *place)
    finally:
        scratch.stop()
        scratch.remove()
    restore.note("dumped", seen=seen)


def load(setup: dict[str, Any], restore: Restore) -> None:
    """Load the dumps as the databases' owners: what an app has written never runs as superuser."""
    folder, differences = dumps_of(setup, restore.name), {}
    programs = Path("/usr/lib/postgresql", setup["version"], "bin")
    login, password = login_of(restore.name), secrets.token_urlsafe(32)
    for database in restore.progress["databases"]:
        one, seen = database["name"], restore.progress["seen"][database["name"]]
        owner, new = seen["made"]["owner"], restore.beside(one)
        psql(setup, f"DROP DATABASE IF EXISTS {name(new)} WITH (FORCE);")
        psql(setup, created(new, seen["made"]))
        for extension, schema in seen["extensions"].items():
            made = (
                ""
                if schema in ("public", "pg_catalog")
                else (f"CREATE SCHEMA IF NOT EXISTS {name(schema)} AUTHORIZATION {name(owner)};")
            )
            more = f"CREATE EXTENSION IF NOT EXISTS {name(extension)} WITH SCHEMA {name(schema)};"
            psql(setup, made + more, new)
        let_in(setup, login, password, owner)
        strangers = stand_ins(setup, restore, seen["named"])
        try:
            listing = contents(programs, folder / f"{one}.dump", set(seen["extensions"].values()))
            (folder / "list").write_text(listing)
            (folder / "list").chmod(0o644)
            as_postgres(
                programs / "pg_restore",
                *("--no-owner", "--exit-on-error", f"--use-list={folder / 'list'}"),
                *("-h", backup_repository.SOCKET, "-p", str(setup["port"])),
                *("-U", login, "-d", new, folder / f"{one}.dump"),
                PGPASSWORD=password,
            )
            # Not as the superuser: it computes what indexes of the app's compute.
            as_postgres(
                *("psql", "-Xq", "-h", backup_repository.SOCKET, "-p", str(setup["port"])),
                *("-U", login, "-d", new, "-c", "ANALYZE"),
                PGPASSWORD=password,
            )
        except CommandFailed as failed:
            raise Failure(
                f"The database {one} of {shown(restore.target.at)} cannot be loaded as its owner"
                f" {owner}: {failed} Nothing that is live was touched. What only a superuser may"
                f" make is to be there before: see docs/how-to/backups.md"
            ) from None
        finally:
            psql(setup, f"DROP ROLE IF EXISTS {name(login)};")
            if strangers:
                psql(setup, f"DROP OWNED BY {strangers}; DROP ROLE {strangers};", new)
                others = [x for x in restore.progress["stand_ins"] if x not in seen["named"]]
                restore.save(stand_ins=others)
        rows = json.loads(psql(setup, ROWS, new))
        if rows != seen["rows"]:
            wrong = sorted(
                x for x in rows.keys() | seen["rows"].keys() if rows.get(x) != seen["rows"].get(x)
            )
            raise Failure(
                f"The database {one} did not come over whole: {', '.join(wrong[:5])} differ."
                " Nothing that is live was touched. Run this again."
            )
        psql(setup, granted(setup, new, seen["made"]))
        differences[one] = difference(setup, one, rows)
    restore.note("loaded", differences=differences)
    files.remove(folder)


def stand_ins(setup: Mapping[str, Any], restore: Restore, named: Iterable[str]) -> str:
    """Have roles that cannot log in for those that this server has not; return them as SQL has it.

    A dump gives rights to roles of another environment, or of another time.
    """
    there = psql(setup, "SELECT rolname FROM pg_roles").splitlines()
    begun = restore.progress.get("stand_ins", [])
    missing = [x for x in named if x not in there or x in begun]
    # Before they are made, so that a restore that was cut short knows them again.
    restore.save(stand_ins=sorted({*begun, *missing}))
    psql(setup, "".join(f"CREATE ROLE {name(x)} NOLOGIN;" for x in missing if x not in there))
    return ", ".join(map(name, missing))


def difference(setup: Mapping[str, Any], database: str, rows: Mapping[str, int]) -> list[str]:
    """Return what the switch will change, a line for each table that has another number of rows."""
    try:
        live = json.loads(psql(setup, ROWS, database))
    except (Failure, ValueError):
        return [f"the database {database} is not there now"]
    return [
        f"{table}: {live.get(table, 'not there')} rows now, {rows.get(table, 'none')} then"
        for table in sorted(live.keys() | rows.keys())
        if live.get(table) != rows.get(table)
    ]


def created(database: str, made: Mapping[str, Any]) -> str:
    provider = PROVIDERS[made["provider"]]
    words = [f"CREATE DATABASE {name(database)} OWNER {name(made['owner'])} TEMPLATE template0"]
    words += [f"ENCODING {literal(made['encoding'])} LOCALE_PROVIDER {provider}"]
    words += [f"LC_COLLATE {literal(made['collate'])} LC_CTYPE {literal(made['ctype'])}"]
    if made["locale"]:
        words.append(f"{provider.upper()}_LOCALE {literal(made['locale'])}")
    return " ".join([*words, f"CONNECTION LIMIT {made['limit']};"])


def granted(setup: Mapping[str, Any], database: str, made: Mapping[str, Any]) -> str:
    """Return who may do what with a database, and its settings, as they were."""
    there = set(psql(setup, "SELECT rolname FROM pg_roles").splitlines())
    words = [f"REVOKE ALL ON DATABASE {name(database)} FROM PUBLIC;"] * bool(made["grants"])
    for role, privilege in made["grants"] or []:
        if role is None or role in there:
            who = "PUBLIC" if role is None else name(role)
            words.append(f"GRANT {privilege} ON DATABASE {name(database)} TO {who};")
    for role, setting in made["settings"] or []:
        if role is None or role in there:
            key, _, value = setting.partition("=")
            whose = f"ALTER ROLE {name(role)} IN DATABASE" if role else "ALTER DATABASE"
            value = value if key in LISTS else literal(value)
            words.append(f"{whose} {name(database)} SET {name(key)} TO {value};")
    return "\n".join(words)


def login_of(app: str) -> str:
    return f"{app}-restoring"


def let_in(setup: Mapping[str, Any], login: str, password: str, owner: str) -> None:
    """Have a login that acts as an owner, for as long as it is needed; pg_hba.conf knows it."""
    psql(
        setup,
        f"DROP ROLE IF EXISTS {name(login)};"
        f"CREATE ROLE {name(login)} LOGIN PASSWORD {literal(password)} IN ROLE {name(owner)};"
        f"ALTER ROLE {name(login)} SET role TO {literal(owner)};",
    )


def contents(programs: Path, dump: Path, schemas: Iterable[str]) -> str:
    """Return what a dump has, without the extensions, which are there already."""
    made = {f" SCHEMA - {x} " for x in schemas if x != "public"}
    out = (" EXTENSION - ", " COMMENT - EXTENSION ", *made)
    lines = as_postgres(programs / "pg_restore", "--list", dump).stdout.splitlines()
    return "".join(f"{line}\n" for line in lines if not any(x in line for x in out))


# The files.


def bring_files(setup: dict[str, Any], restore: Restore) -> None:
    snapshot = restore.progress["snapshot"]
    for path in map(Path, restore.progress["paths"]):
        if os.path.ismount(path):
            raise Failure(
                f"{path} is a mount, which cannot be exchanged by its name. Restore its files by"
                " hand: docs/how-to/backups.md"
            )
        target = place_beside(path)
        files.remove(target)
        target.mkdir(mode=0o700)
        backup_files.restored(setup, restore.name, snapshot, target, path)
    restore.note("files")


def place_beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.restoring")


def place_before(path: Path, moment: str, word: str = "before") -> Path:
    return path.with_name(f"{path.name}.{word}-{moment}")


# The switch, and the ways back.


def switch(app: str) -> list[str]:
    """Let what was brought beside take the place of what is live; return what is kept."""
    restore, setup = Restore(app), backup_repository.setup()
    progress, moved = restore.progress, []
    with alone(f"-restore-{app}"):
        if restore.done("switched"):
            return []
        check_leads(restore)
        for what, step in (("database", "loaded"), ("files", "files")):
            if progress["databases" if what == "database" else "paths"] and not restore.done(step):
                raise Failure(f"The {what} of {app} is not beside yet. Run the same command again.")
        if not restore.done("switching"):
            restore.note("switching")
        if progress["databases"]:
            pairs = [
                (x["name"], restore.former(x["name"]), restore.beside(x["name"]))
                for x in progress["databases"]
            ]
            moved += rename(setup, pairs)
        for path in map(Path, progress["paths"]):
            there = place_beside(path) / str(path).lstrip("/")
            if there.is_dir():
                former = place_before(path, progress["id"])
                if path.exists():
                    path.rename(former)
                    moved.append(str(former))
                there.rename(path)
            files.remove(place_beside(path))
        restore.note("switched")
    entry = f"{shown(progress['target']['at'])} is live; kept as {progress['id']}"
    backup_state.note(f"restore-{app}", progress["began"], "ok", entry, kept=moved)
    return moved


def finish(app: str) -> None:
    """Forget a restore with which all is done, after what runs of the app has connected anew."""
    restore = Restore(app)
    with alone(f"-restore-{app}"):
        if restore.done("switched"):
            restore.path.unlink()


def rename(setup: Mapping[str, Any], pairs: list[tuple[str, str, str]]) -> list[str]:
    """Give live databases another name, and those beside theirs, all at once."""
    there = set(psql(setup, "SELECT datname FROM pg_database").splitlines())
    due = [x for x in pairs if x[2] in there]
    words, moved = [], []
    for live, _, new in due:
        for one in (live, new):
            if one in there:
                psql(setup, END.format(d=name(one), l=literal(one)))
    try:
        for live, former, new in due:
            if live in there:
                words.append(f"ALTER DATABASE {name(live)} RENAME TO {name(former)};")
                moved.append(former)
                words.append(f"ALTER DATABASE {name(former)} ALLOW_CONNECTIONS true;")
            words.append(f"ALTER DATABASE {name(new)} RENAME TO {name(live)};")
            words.append(f"ALTER DATABASE {name(live)} ALLOW_CONNECTIONS true;")
        if words:
            psql(setup, "\n".join(["BEGIN;", *words, "COMMIT;"]))
    finally:
        after = set(psql(setup, "SELECT datname FROM pg_database").splitlines())
        # Those of an earlier call, too, which was cut short.
        for one in {one for pair in pairs for one in pair} & after:
            psql(setup, f"ALTER DATABASE {name(one)} ALLOW_CONNECTIONS true;")
    return moved


def kept(setup: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return what restores have replaced and is still there, by the moment of the restore."""
    found: dict[str, list[str]] = {}
    if databases_of(setup, told):
        names = psql(setup, "SELECT datname FROM pg_database ORDER BY 1").splitlines()
        mine = {x["name"] for x in told["databases"]}
        for one in names:
            match = KEPT.search(one)
            if match and one[: match.start()] in mine:
                found.setdefault(match[2], []).append(one)
    for path in map(Path, told["paths"]):
        for one in sorted(path.parent.glob(f"{path.name}.*-*")):
            match = re.search(r"\.(before|undone)-(\d{8}t\d{6})$", one.name)
            if match:
                found.setdefault(match[2], []).append(str(one))
    return found


def of_moment(setup: Mapping[str, Any], told: Mapping[str, Any], moment: str) -> list[str]:
    """Return what was kept of a restore; a server that has nothing of the app's keeps nothing."""
    if not told["paths"] and not databases_of(setup, told):
        return []
    found = kept(setup, told)
    if moment not in found:
        has = f"Kept are {', '.join(found)}." if found else "Nothing is kept."
        raise Failure(f"Nothing is kept of {moment!r}. {has}")
    return found[moment]


def undo(app: str, moment: str) -> list[str]:
    """Let what a restore has replaced be live again; what it brought is kept instead."""
    setup, told = backup_repository.setup(), app_of(app)
    undone = f"undone: {moment}"
    # The same command once more, since it was cut short on another server.
    if (backup_state.read(f"restore-{app}") or {}).get("message") == undone:
        return []
    things = of_moment(setup, told, moment)
    if not things:
        return []
    now, moved = new_moment(), []
    with alone(f"-restore-{app}"):
        pairs = [
            (one, f"{one}_undone_{now}", old)
            for old in things
            if not old.startswith("/")
            for one in [KEPT.sub("", old)]
        ]
        moved += rename(setup, pairs) if pairs else []
        for old in map(Path, (x for x in things if x.startswith("/"))):
            path = old.with_name(re.sub(r"\.(before|undone)-\w+$", "", old.name))
            aside = place_before(path, now, "undone")
            if path.exists():
                path.rename(aside)
                moved.append(str(aside))
            old.rename(path)
    backup_state.note(f"restore-{app}", time.time(), "ok", undone, kept=moved)
    return moved


def drop(app: str, moment: str) -> list[str]:
    """Remove what a restore has replaced, for good."""
    setup, told = backup_repository.setup(), app_of(app)
    things = of_moment(setup, told, moment)
    for one in things:
        if one.startswith("/"):
            files.remove(one)
        else:
            psql(setup, f"DROP DATABASE {name(one)} WITH (FORCE);")
    return things


def cancel(app: str) -> list[str]:
    """Give up a restore that is not done; what is live stays."""
    restore, setup = Restore(app), backup_repository.setup()
    if not restore.progress:
        return []
    with alone(f"-restore-{app}"):
        if restore.done("switching") and not backup_shared.follows(setup):
            to, moment = restore.progress["to"], restore.progress["id"]
            raise Failure(
                f"The restore of {app} to {to!r} is being switched to, and cannot be given up. Go"
                f" on with it: -e restore_to='{to}'; and take it back after that: -e"
                f" restore_undo={moment}"
            )
        Scratch(f"restore-{app}", setup).remove()
        files.remove(dumps_of(setup, app))
        backup_source.clear(app)
        # Where another server leads by now, a restore there begins anew, and removes them first.
        databases = [] if backup_shared.follows(setup) else restore.progress["databases"]
        for database in databases:
            one = name(restore.beside(database["name"]))
            psql(setup, f"DROP DATABASE IF EXISTS {one} WITH (FORCE);")
        if databases:
            for role in (login_of(app), *restore.progress.get("stand_ins", [])):
                psql(setup, f"DROP ROLE IF EXISTS {name(role)};")
        for path in map(Path, restore.progress["paths"]):
            files.remove(place_beside(path))
        restore.path.unlink()
    return [f"the restore of {app} to {one_line(restore.progress['to'])}"]
