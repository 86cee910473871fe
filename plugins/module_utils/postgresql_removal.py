"""Dump and drop what an owner has in a PostgreSQL cluster that others use, too."""

from __future__ import annotations

import os
import subprocess
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import claims, files, postgresql_config
from .commands import Failure
from .postgresql_pinned import PINNED
from .postgresql_server import Server, Session, one_line, psycopg2, session_now

# Dumps wait here for the control machine to fetch them.
DUMPS = Path("/var/lib/carafe-dumps")


@dataclass
class Owned:
    """What is an owner's alone."""

    databases: list[str]
    roles: list[str]


def owned(owner: str) -> Owned:
    """Return the databases and roles that an owner claims and no other does."""
    everybody = claims.read(postgresql_config.FOLDER, owner, None)
    theirs = {x["name"] for data in everybody.values() for x in data.get("databases", [])}
    roles_of_others = {x for data in everybody.values() for x in roles(data)} | {"postgres"}
    mine = claims.stored(postgresql_config.FOLDER, owner) or {}
    databases = [x for x in mine.get("databases", []) if x["name"] not in theirs]
    # One that a database only lets in, a reader for instance, may be somebody's.
    made = roles(mine) if mine.get("roles") is None else mine["roles"]
    return Owned(
        [x["name"] for x in databases],
        [x for x in made if x not in roles_of_others],
    )


def roles(claim: dict[str, Any]) -> list[str]:
    """Return the roles that a claim names; one of an older Carafe names those of databases only."""
    named = [x for database in claim.get("databases", []) for x in database["roles"]]
    return list(dict.fromkeys([*named, *claim.get("roles", [])]))


def session(server: Server, owner: str) -> Session | None:
    """Return a session, or None where PostgreSQL is gone from the server."""
    found = session_now(server)
    if found is None and server.is_installed():
        raise Failure(
            f"PostgreSQL lets nobody in, and may have data of {owner}. See why: systemctl status"
            f" {server.unit}, and run this again once it runs."
        )
    return found


def dump(server: Server, owner: str, names: Iterable[str], user: str, module: Any) -> list[dict]:
    """Dump databases into files that only root and one user can read; return where they are."""
    found, folder = [], DUMPS / owner
    for name in names:
        path = folder / f"{urllib.parse.quote(name, safe='')}.dump"
        found.append({"database": name, "path": str(path)})
        if module.check_mode:
            continue
        # Nobody may list them; one knows the name of what one is to fetch.
        for place in (DUMPS, folder):
            place.mkdir(exist_ok=True)
            place.chmod(0o711)
        write(server, name, path)
        os.chown(path, files.user_id(user), -1)
    return found


def write(server: Server, name: str, path: Path) -> None:
    # As for every session of the superuser: no name of an owner's is found by itself.
    options = " ".join(f"-c {key}={value}" for key, value in PINNED.items() if key != "role")
    command = [server.program.parent / "pg_dump", "--format=custom", "--no-password"]
    files.remove(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    with os.fdopen(descriptor, "wb") as file:
        done = subprocess.run(
            [*command, f"--dbname={psycopg2.extensions.make_dsn(dbname=name, **server.place())}"],
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd="/",
            env={"LC_ALL": "C.UTF-8", "PATH": os.defpath, "PGOPTIONS": options},
            user="postgres",
            group="postgres",
            extra_groups=[],
            check=False,
        )
    if done.returncode:
        path.unlink()
        raise Failure(
            f"The database {name} could not be dumped, so it was not dropped:"
            f" {one_line(done.stderr)} Mend that and run this again, or add -e app_dump=false to"
            " the command if nobody wants its data."
        )


def forget(owner: str) -> None:
    """Remove the dumps from the server: by now the control machine has them."""
    files.remove(DUMPS / owner)
    if DUMPS.is_dir() and not any(DUMPS.iterdir()):
        DUMPS.rmdir()


def existing(session: Session, names: Iterable[str]) -> list[str]:
    """Return the databases that are there, one that lets nobody in as well."""
    has = {name for (name,) in session.rows("SELECT datname FROM pg_database")}
    return [name for name in names if name in has]


def drop(session: Session, owned: Owned) -> None:
    """Drop an owner's databases, whoever is connected to them, and then its roles."""
    try:
        for name in existing(session, owned.databases):
            session.change(f"drop database {name}", "DROP DATABASE {d} WITH (FORCE)", d=name)
        for name in members(session, owned):
            session.change(f"drop role {name}", "DROP ROLE {r}", r=name)
    except psycopg2.Error as error:
        raise Failure(
            f"PostgreSQL says: {one_line(error)}. Mend that on the server, as postgres, and run"
            " this again."
        ) from None


def members(session: Session, owned: Owned) -> list[str]:
    """Return the roles that are to go and are there.

    An owner's role for migrations, which an older Carafe did not claim, and the one that acts while
    a password is rotated, are members of its roles, and named after the app.
    """
    found = [name for (name,) in session.rows("SELECT rolname FROM pg_roles ORDER BY 1")]
    named = [name for name in owned.roles if name in found]
    for database in owned.databases:
        for name, group in session.rows(
            "SELECT pg_get_userbyid(member), pg_get_userbyid(roleid) FROM pg_auth_members"
            " WHERE pg_get_userbyid(member) = ANY (%s)",
            [f"{database}-deploy", f"{database}-rotating"],
        ):
            if group in owned.roles:
                named.append(name)
        # Once a password is rotated, the latter is no member any more, and lets nobody in.
        query = "SELECT rolname FROM pg_roles WHERE rolname = %s AND NOT rolcanlogin"
        named += [name for (name,) in session.rows(query, f"{database}-rotating")]
    return list(dict.fromkeys(named))
