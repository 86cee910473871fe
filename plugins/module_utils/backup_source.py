"""The place of another environment's backups, for as long as a copy of its data is made.

It is only read: nothing here makes a stanza, archives, or locks. What opens it stands below /run,
where a restart of the server forgets it, and goes with the copy.

Used by modules, and by programs that run without Ansible.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from . import backup_jobs, backup_repository, files
from .backup_repository import as_postgres
from .commands import Failure
from .words import one_line

FOLDER = Path("/run/carafe-backup-copy")


def lay(
    name: str,
    own: Mapping[str, Any],
    given: Mapping[str, Any],
    masks: Iterable[Mapping[str, str]] = (),
) -> dict[str, Any]:
    """Write what opens the other place, and return the setup by which it is read."""
    clear(name)
    place, folder = backup_repository.parse(given["repository"]), FOLDER / name
    if place.kind == "folder" and not Path(place.path).is_dir():
        raise Failure(
            f"The backups of {given['environment']} are in {place.path}, a folder of its own"
            " server, and this server has no such folder. Mount it here, or have them in a store"
            " that both reach: backup_repository in docs/how-to/backups.md"
        )
    FOLDER.mkdir(mode=0o711, exist_ok=True)
    folder.mkdir(mode=0o711)
    for user in ("root", *(("postgres",) if own["database"] else ())):
        who, where = pwd.getpwnam(user), folder / user
        where.mkdir(mode=0o700)
        os.chown(where, who.pw_uid, who.pw_gid)
        if place.kind == "sftp":
            lines = "".join(f"{x}\n" for x in given["ssh_known_hosts"])
            files.write(where / "id", given["ssh_key"], 0o600, user, user)
            files.write(where / "known_hosts", lines, 0o600, user, user)
    setup = {
        **own,
        "repository": given["repository"],
        "key": given["key"],
        "s3": {x: given[f"s3_{x}"] for x in ("endpoint", "region", "key", "secret", "ca")},
        **{"is_mount": False, "read_only": True, "ssh": str(folder)},
        "config": str(folder / "pgbackrest.conf"),
    }
    if own["database"]:
        write(setup, "none")
        setup["stanza"] = stanza(own, setup, given)
        write(setup, setup["stanza"])
    text = json.dumps({"setup": setup, "given": dict(given), "masks": list(masks)})
    files.write(folder / "source.json", text, 0o600, "root", "root")
    return setup


def write(setup: Mapping[str, Any], name: str) -> None:
    private = Path(setup["ssh"], "postgres")
    more = {"lock-path": private / "lock", "spool-path": private / "spool"}
    text = backup_repository.text(setup, name, setup["data"], setup["port"], **more)
    files.write(Path(setup["config"]), text, 0o640, "root", "postgres")


def stanza(own: Mapping[str, Any], setup: dict[str, Any], given: Mapping[str, Any]) -> str:
    """Return the name under which the other database server stores its cluster."""
    where = setup["config"]
    try:
        said = backup_jobs.pgbackrest_repo(
            setup, "repo-ls", "--output=json", "backup", config=where
        )
    except Failure as failed:
        raise Failure(
            f"The backups of {given['environment']} cannot be read from here:"
            f" {backup_jobs.explained(one_line(str(failed), 400))}"
        ) from None
    mine = own["stanza"] if own["repository"] == setup["repository"] else ""
    there = sorted(x for x in json.loads(said or "{}") if x not in (".", mine))
    found = [x for x in there if f"-{own['version']}-" in x]
    if there and not found:
        raise Failure(
            f"{given['repository']} has backups of {', '.join(there)}, and this server has"
            f" PostgreSQL {own['version']}: a copy needs the same major version on both."
        )
    return chosen(found, given, "database")


def chosen(there: list[str], given: Mapping[str, Any], what: str) -> str:
    """Return the one of several servers that is meant."""
    server = given["server"]
    found = [x for x in there if x == server or x.startswith(f"{server}-")] or there
    if not found:
        raise Failure(
            f"{given['repository']} has no backup of the {what} of {given['environment']}. Make"
            f" one: ansible-playbook playbooks/backup.yml -i inventory/{given['environment']}"
        )
    if len(found) > 1:
        raise Failure(
            f"{given['repository']} has backups of {', '.join(found)}. Say which server's {what} is"
            f" meant: -e copy_server={found[0]}"
        )
    return found[0]


def held(name: str) -> dict[str, Any]:
    """Return what was laid here for a copy."""
    text = files.read(FOLDER / name / "source.json")
    if text is None:
        raise Failure(
            "What opens the other environment's backups is not here any more. Run the playbook"
            " copy_data again, with the same words: it goes on."
        )
    return json.loads(text)


@contextlib.contextmanager
def forgotten(name: str) -> Iterator[None]:
    """Let go of what opens the other place when the work is done, however it ends."""
    try:
        yield
    finally:
        clear(name)


def clear(name: str) -> None:
    files.remove(FOLDER / name)


# The masks.


def closed(database: str, owner: str) -> str:
    """Return SQL that keeps all but superusers out, those who act as the owner, too."""
    return (
        f"REVOKE ALL ON DATABASE {database} FROM PUBLIC;"
        f"REVOKE CONNECT ON DATABASE {database} FROM {owner};"
    )


def opened(database: str, owner: str, anybody: bool) -> str:
    return f"GRANT ALL ON DATABASE {database} TO {owner};" + (
        f"GRANT CONNECT, TEMPORARY ON DATABASE {database} TO PUBLIC;" if anybody else ""
    )


def mask(
    setup: Mapping[str, Any],
    database: str,
    login: str,
    password: str,
    masks: Iterable[Mapping[str, str]],
) -> None:
    """Run the masks as the owner, each in a transaction; what fails says none of the data."""
    for one in masks:
        done = as_postgres(
            *("psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=terse"),
            *("--single-transaction", "-h", backup_repository.SOCKET, "-p", str(setup["port"])),
            *("-U", login, "-d", database, "-f", "-"),
            **{"check": False, "text": one["sql"], "PGPASSWORD": password},
        )
        if done.returncode:
            said = backup_repository.said(done).replace("psql:<stdin>", one["name"])
            raise Failure(
                f"The mask {one['name']} fails: {one_line(said, 400)} Nothing that is live was"
                " touched. Mend it, and run the same command again."
            )


# Roles that the other environment has, and this one has not.

NAMED = """SELECT DISTINCT r.rolname FROM pg_shdepend d JOIN pg_roles r ON r.oid = d.refobjid
    WHERE d.refclassid = 'pg_authid'::regclass AND d.deptype <> 'o'
      AND d.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())"""


# The files.


def owners(live: Path, brought: Path) -> None:
    """Give what was brought the numbers that its users have on this server.

    Users of one name have another number on each server; folders that both have tell which.
    """
    users: dict[int, int] = {}
    groups: dict[int, int] = {}
    folders = [brought, *(x for x in brought.rglob("*") if x.is_dir() and not x.is_symlink())]
    for one in folders:
        here = live / one.relative_to(brought)
        if here.is_dir() and not here.is_symlink():
            there, mine = one.lstat(), here.lstat()
            users.setdefault(there.st_uid, mine.st_uid)
            groups.setdefault(there.st_gid, mine.st_gid)
    for one in [brought, *brought.rglob("*")]:
        was = one.lstat()
        user, group = users.get(was.st_uid, was.st_uid), groups.get(was.st_gid, was.st_gid)
        if (user, group) != (was.st_uid, was.st_gid):
            os.chown(one, user, group, follow_symlinks=False)
            if not one.is_symlink():
                one.chmod(was.st_mode & 0o7777)
