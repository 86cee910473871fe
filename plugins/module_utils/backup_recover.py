"""Bring the data of a server that is gone onto a new one, which has none yet.

The cluster comes whole, out of the place that the former server had in the repository, which is
only read. It is promoted with its archiving on, into the new server's own place, so that what
follows is stored from the first moment on.

Used by modules.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from . import (
    backup_files,
    backup_jobs,
    backup_repository,
    backup_restore,
    backup_shared,
    backup_state,
    backup_target,
    files,
    found,
)
from .backup_repository import as_postgres, psql
from .backup_target import Target, shown
from .commands import Failure, ask, run
from .words import one_line

NOTED = "recovered.json"
REPLAY = 24 * 3600  # seconds for which WAL is replayed
# What pgBackRest has left in postgresql.auto.conf, which is for this one recovery.
OF_RECOVERY = (
    *("restore_command", "recovery_target", "recovery_target_time", "recovery_target_name"),
    *("recovery_target_action", "recovery_target_timeline", "recovery_target_inclusive"),
    "hot_standby",
)


def noted() -> dict[str, Any]:
    return json.loads(files.read(backup_state.STATE / NOTED) or "{}")


def note(**more: Any) -> None:
    save(noted() | more)


def save(known: dict[str, Any]) -> None:
    text = json.dumps(known, indent=2) + "\n"
    path = backup_state.STATE / NOTED
    files.write(path, text, 0o640, owner=os.geteuid(), group=os.getegid())


def former(setup: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the setup by which the former server's place is read."""
    listing = backup_jobs.pgbackrest_repo(setup, "repo-ls", "--output=json", "backup")
    every = sorted(x for x in json.loads(listing or "{}") if x not in (".", setup["stanza"]))
    # PostgreSQL does not read the files of another version.
    ending = f"-{setup['version']}-{setup['cluster']}"
    there = [x for x in every if x.endswith(ending)]
    mine = [x for x in there if x == name or x.startswith(f"{name}-")]
    if len(mine) == 1:
        return setup | {"stanza": mine[0]}
    others = [x for x in every if x not in there]
    cluster = f"{setup['version']}/{setup['cluster']}"
    if not there and others:
        raise Failure(
            f"restore_from is {name!r}, and {setup['repository']} has {', '.join(others)}, whose"
            f" names end with their version of PostgreSQL and its cluster. This server has"
            f" {cluster} and cannot read them. Take one with that version, by postgres_cluster in"
            " group_vars or by Debian's release, and run the same command there."
        )
    example = (mine or there or ["NAME"])[0]
    more = f" This server has {cluster}, so not {', '.join(others)}." if others else ""
    raise Failure(
        f"restore_from is {name!r}, and {setup['repository']} has"
        f" {', '.join(there) or 'nothing'}.{more} Say which: -e restore_from={example}"
    )


def database(name: str, to: str, check: bool, place: str = "") -> list[str]:
    """Bring the cluster; the same call goes on with what was cut short."""
    setup = backup_repository.setup()
    known = noted()
    if not setup["database"] or known.get("database") == "done":
        return []
    if backup_shared.fails_over(setup):
        raise Failure(
            "What is stored of servers that are gone comes back on one server, which others follow"
            " after that. No data was touched. Leave one server in the group db of hosts.yml and"
            " none in etcd, run the same command, and then site with all of them and -e"
            " stack_convert=true"
        )
    data = Path(setup["data"])
    if known.get("database") != "begun" and found.has_databases(data):
        raise Failure(
            f"{data} has databases already, and a server that is new has none. Nothing was touched."
            " To bring an app back on a server that has it: the playbook restore, without"
            " restore_from."
        )
    old = former(backup_repository.reading(setup, place), name)
    seen = backup_jobs.inspect(old, whole=False)
    target = backup_target.parse(to, [], time.time())
    backup_target.check(target, seen)
    sentence = f"bring {old['stanza']} as of {'the latest' if target.kind == 'latest' else to}"
    if check:
        return [sentence]
    note(database="begun", stanza=old["stanza"], to=to)
    bring(setup, old, target)
    note(database="done")
    return [sentence]


def bring(setup: dict[str, Any], old: dict[str, Any], target: Target) -> None:
    unit = f"postgresql@{setup['version']}-{setup['cluster']}.service"
    config = backup_repository.FOLDER / "recover.conf"
    text = backup_repository.text(old, old["stanza"], setup["data"], setup["port"])
    files.write(config, text, 0o640, "root", "postgres")
    run("systemctl", "stop", unit)
    words = [*target.words, *(["--target-action=promote"] if target.kind != "latest" else [])]
    old = old | {"config": str(config)}
    done = backup_repository.pgbackrest(old, "restore", "--delta", *words, check=False)
    if done.returncode:
        raise Failure(f"pgBackRest cannot restore: {backup_repository.said(done)}")
    # A smaller server would not replay what a larger one has written while it lets readers in.
    auto = Path(setup["data"], "postgresql.auto.conf")
    owner = auto.stat()
    files.write(
        auto, f"{files.read(auto) or ''}hot_standby = 'off'\n", 0o600, owner.st_uid, owner.st_gid
    )
    run("systemctl", "start", "--no-block", unit)
    wait(setup, unit)
    for name in OF_RECOVERY:
        psql(setup, f"ALTER SYSTEM RESET {name}")
    psql(setup, "SELECT pg_reload_conf()")
    config.unlink()


def wait(setup: dict[str, Any], unit: str) -> None:
    """Wait until all is replayed, and it writes."""
    until, quiet = time.monotonic() + REPLAY, time.monotonic()
    while time.monotonic() < until:
        words = ("-q", "-h", backup_repository.SOCKET, "-p", str(setup["port"]))
        state = as_postgres("pg_isready", *words, check=False).returncode
        if state == 0:
            if psql(setup, "SELECT pg_is_in_recovery()") == "f":
                return
        elif state == 1:  # it replays
            quiet = time.monotonic()
        elif time.monotonic() - quiet > 60:
            said = ask("journalctl", f"--unit={unit}", "--lines=8", "--output=cat").stdout
            raise Failure(
                f"PostgreSQL does not come up with what was brought: {one_line(said, 500)} See"
                " /var/log/postgresql, and run the same command again."
            )
        time.sleep(0.3)
    raise Failure(f"PostgreSQL has not replayed all WAL within {REPLAY} s.")


def has_files(path: Path) -> bool:
    return path.is_dir() and any(x.is_file() for x in path.rglob("*"))


def forget_begun(owner: str, everything: bool = False) -> None:
    """Forget what was begun here, once the owner's data are in use: none is to be replaced then.

    With ``everything``, for an owner that leaves, also what was done with its files.
    """
    known = noted()
    due = {x for x in ("database", f"files-{owner}") if known.get(x) == "begun"}
    due |= {f"files-{owner}"} if everything else set()
    due |= {f"brought-{owner}"} if f"files-{owner}" in due else set()
    if due & known.keys():
        save({name: value for name, value in known.items() if name not in due})


def bring_files(owner: str, name: str, to: str, check: bool, place: str = "") -> list[str]:
    """Bring an app's files onto a server that has none of them."""
    setup, told = backup_repository.setup(), backup_files.app_of(owner)
    if not told["paths"] or noted().get(f"files-{owner}") == "done":
        return []
    paths = [Path(x) for x in told["paths"]]
    full = [str(x) for x in paths if has_files(x)]
    if full and noted().get(f"files-{owner}") != "begun":
        raise Failure(
            f"{', '.join(full)} has files already. Nothing was touched. To bring an app back on a"
            " server that has it: the playbook restore, without restore_from."
        )
    setup = backup_repository.reading(setup, place)
    every = backup_files.snapshots(setup, owner, anybody=True)
    hosts = sorted({x["hostname"] for x in every})
    host = name if name in hosts else next((x for x in hosts if name.startswith(f"{x}-")), "")
    host = host or (hosts[0] if len(hosts) == 1 else "")
    if not host:
        raise Failure(
            f"restore_from is {name!r}, and the files of {owner} are from"
            f" {', '.join(hosts) or 'nobody'}. Say which: -e restore_from=HOST"
        )
    target = backup_target.parse(to, [], time.time())
    snapshot = backup_restore.chosen([x for x in every if x["hostname"] == host], target)
    sentence = f"bring the files of {owner} as of {shown(snapshot['at'])}"
    if check:
        return [sentence]
    note(**{f"files-{owner}": "begun"})
    moment = backup_restore.new_moment()
    for path in paths:
        beside = backup_restore.place_beside(path)
        if str(path) in noted().get(f"brought-{owner}", []):
            continue
        files.remove(beside)
        beside.mkdir(mode=0o700)
        backup_files.restored(setup, owner, snapshot, beside, path)
        # Somebody may have written since this was begun.
        if has_files(path):
            path.rename(backup_restore.place_before(path, moment))
        files.remove(path)
        (beside / str(path).lstrip("/")).rename(path)
        files.remove(beside)
        note(**{f"brought-{owner}": [*noted().get(f"brought-{owner}", []), str(path)]})
    note(**{f"files-{owner}": "done"})
    return [sentence]
