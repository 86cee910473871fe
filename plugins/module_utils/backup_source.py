"""The backups of another environment, for as long as a copy of its data is made.

They are only read: nothing here makes a stanza, archives, or locks. What opens them stands below
/run, where a restart of the server forgets it, and goes with the copy.

Used by modules, and by programs that run without Ansible.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from . import backup_jobs, backup_repository, files
from .backup_repository import as_postgres
from .backup_scratch import Scratch
from .commands import Failure
from .words import one_line

FOLDER = Path("/run/carafe-backup-source")
# Host, machine, PostgreSQL's version and cluster: see backup_server.stanza.
STANZA = re.compile(r".+-[0-9a-f]{8}-(\d+)-.+")
# A mask may have been told something before, such as that a table is not there to be dropped.
SAID = re.compile(
    r"psql:\S*:(\d+): (?!(?:DEBUG|LOG|INFO|NOTICE|WARNING):)(?:ERROR: +(\w{5}): )?(.*)"
)
# A statement is wrong whatever the rows are. What else PostgreSQL says may have a row in it.
WITHOUT_ROWS = "42"


def lay(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Write what opens the other place; return what is to be copied, and how it is read."""
    clear(name)
    own, folder = backup_repository.setup(), FOLDER / name
    place = backup_repository.parse(given["repository"])
    if place.kind == "folder" and not Path(place.path).is_dir():
        raise Failure(
            f"The backups of {given['environment']} are in {place.path}, a folder of its own"
            " server, and this server has no such folder. Mount it here, or have them in a store"
            " that both reach: backup_repository in docs/how-to/backups.md"
        )
    for above in (FOLDER, folder):
        above.mkdir(mode=0o700, exist_ok=True)
        above.chmod(0o711)  # whatever the umask is
    for user in ("root", *(("postgres",) if own["database"] else ())):
        who, where = pwd.getpwnam(user), folder / user
        where.mkdir(mode=0o700)
        os.chown(where, who.pw_uid, who.pw_gid)
    if place.kind == "sftp":
        files.write(folder / "root/id", given["ssh_key"], 0o600)
        known = "".join(f"{x}\n" for x in given["ssh_known_hosts"] or [])
        files.write(folder / "root/known_hosts", known, 0o600)
    setup = {
        **own,
        "repository": given["repository"],
        "key": given["key"],
        "s3": {x: given[f"s3_{x}"] for x in ("endpoint", "region", "key", "secret", "ca")},
        **{"is_mount": False, "read_only": True, "ssh": str(folder / "root")},
        "config": str(folder / "pgbackrest.conf"),
    }
    if own["database"]:
        configure(setup, folder)
        setup["stanza"] = stanza(own, setup, given)
        configure(setup, folder)
    files.write(folder / "setup.json", json.dumps(setup), 0o600)
    shared = own["repository"] == setup["repository"]
    return {**given, "setup": setup, "mine": own["host"] if shared else ""}


def configure(setup: Mapping[str, Any], folder: Path) -> None:
    more = {"lock-path": folder / "postgres/lock", "spool-path": folder / "postgres/spool"}
    text = backup_repository.text(setup, setup["stanza"], setup["data"], setup["port"], **more)
    files.write(Path(setup["config"]), text, 0o640, "root", "postgres")


def stanza(own: Mapping[str, Any], setup: dict[str, Any], given: Mapping[str, Any]) -> str:
    """Return the name under which the other database server stores its cluster."""
    try:
        said = backup_jobs.pgbackrest_repo(setup, "repo-ls", "--output=json", "backup")
    except Failure as failed:
        raise Failure(
            f"The backups of {given['environment']} cannot be read from here:"
            f" {backup_jobs.explained(one_line(str(failed), 400))}"
        ) from None
    # Where both have one place, this server's own is there, too.
    mine = own["stanza"] if own["repository"] == setup["repository"] else ""
    there = sorted(x for x in json.loads(said or "{}") if x not in (".", mine))
    versions = {x: found[1] for x in there if (found := STANZA.fullmatch(x))}
    found = [x for x, version in versions.items() if version == own["version"]]
    if there and not found:
        raise Failure(
            f"{given['repository']} has backups of {', '.join(there)}, whose names end with their"
            f" version of PostgreSQL and its cluster. This server has {own['version']}, and cannot"
            " read them: a copy needs the same version on both."
        )
    return chosen(found, given, "database")


def chosen(there: Iterable[str], given: Mapping[str, Any], what: str) -> str:
    """Return which of several servers is meant."""
    there, said = sorted(there), f"{given['server']}-"
    # The name of a server, or of its place in the repository, which begins with that.
    found = [x for x in there if f"{x}-".startswith(said) or said.startswith(f"{x}-")] or there
    if not found:
        raise Failure(
            f"{given['repository']} has no backup of the {what} of {given['environment']}. Make"
            f" one: ansible-playbook playbooks/backup.yml -i inventory/{given['environment']}"
        )
    if len(found) > 1:
        raise Failure(
            f"{given['repository']} has backups of the {what} of {', '.join(found)}. Say which: -e"
            f" backup_source_server={found[0]}"
        )
    return found[0]


def of_one(source: Mapping[str, Any], snapshots: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the snapshots of the files of the server that is meant."""
    others = [x for x in snapshots if x["hostname"] != source["mine"]]
    host = chosen({x["hostname"] for x in others}, source, "files")
    return [x for x in others if x["hostname"] == host]


def setup(name: str) -> dict[str, Any]:
    """Return by what a copy is read that was begun."""
    text = files.read(FOLDER / name / "setup.json")
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


def mask(scratch: Scratch, database: str, owner: str, masks: Iterable[Mapping[str, str]]) -> None:
    """Run the masks in the copy that nobody else can reach, as who owns the database.

    By a login of that one: what an app has written, such as a trigger, never runs as superuser.
    """
    file = scratch.folder / "mask.sql"
    for one in masks:
        file.write_text(one["sql"], encoding="utf-8")
        done = as_postgres(
            *("psql", "-Xq", "-o", "/dev/null", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=verbose"),
            *("-h", scratch.run, "-p", str(scratch.setup["port"]), "-U", owner, "-d", database),
            *("-f", file),
            check=False,
        )
        if done.returncode:
            raise Failure(
                f"The mask {one['name']} fails{where(done.stderr)}. Nothing that is live was"
                " touched, and what was brought is removed. Mend the mask, and run the same command"
                " again."
            )


def where(said: str) -> str:
    """Return where a mask fails, and why; nothing of the rows that it was to mask."""
    found = SAID.search(said)
    if not found:
        return f": {one_line(said, 200)}" if said.startswith("psql: error: ") else ""
    line, code, why = found.groups(default="")
    state = f", SQLSTATE {code}" if code else ""
    return f" in line {line}{state}" + (f": {why}" if code.startswith(WITHOUT_ROWS) else "")
