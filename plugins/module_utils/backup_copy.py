"""Bring the data of one app in another environment, such as production, out of its backups.

It is a restore beside what is live, from another place: see backup_restore.

Used by modules.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from . import (
    backup_files,
    backup_jobs,
    backup_repository,
    backup_restore,
    backup_source,
    backup_state,
    backup_target,
)
from .backup_restore import Restore
from .backup_target import Target, shown
from .commands import Failure, ask

SHOWN = 5  # of the newest backups


def plan(app: str, given: Mapping[str, Any], to: str) -> dict[str, Any]:
    """Return what there is to copy; refuse what is out of reach. Nothing is changed."""
    own, told = backup_repository.setup(), backup_restore.app_of(app)
    name = f"{app}.plan"
    with backup_source.forgotten(name):
        setup = backup_source.lay(name, own, given)
        return look(own, setup, told, app, given, to)


def look(
    own: Mapping[str, Any],
    setup: dict[str, Any],
    told: Mapping[str, Any],
    app: str,
    given: Mapping[str, Any],
    to: str,
) -> dict[str, Any]:
    now = time.time()
    target = backup_target.parse(to, [], now)
    found: dict[str, Any] = {"backups": [], "databases": [], "paths": [], "snapshot": None}
    if own["database"] and told["databases"]:
        known = backup_repository.info(setup, setup["config"])
        seen = backup_jobs.inspect(setup, whole=False, config=setup["config"])
        backup_target.check(target, seen, now)
        if target.kind == "latest" and seen["lost"]:
            raise Failure(
                f"The archive of {setup['stanza']} lacks {seen['lost'][0]}, so its latest moment"
                f" cannot be reached. Name an earlier one, from {shown(seen['oldest'])} on: -e"
                " copy_to="
            )
        found["stanza"], found["newest_wal"] = setup["stanza"], seen["newest_wal"]
        found["oldest"] = seen["oldest"]
        found["backups"] = [
            f"{x['type']} {x['label']}, done {shown(x['timestamp']['stop'])},"
            f" {backup_jobs.size(x['info']['size'])}"
            for x in known["backup"][-SHOWN:]
        ]
        found["databases"] = told["databases"]
    if told["paths"] and given["files"]:
        every = backup_files.snapshots(setup, app, anybody=True)
        mine = own["host"] if own["repository"] == setup["repository"] else ""
        hosts = sorted({x["hostname"] for x in every} - {mine})
        host = backup_source.chosen(hosts, given, "files")
        found["snapshot"] = backup_restore.chosen(
            [x for x in every if x["hostname"] == host], target
        )
        found["paths"] = told["paths"]
    if not found["databases"] and not found["paths"]:
        found["nothing"] = True
    found["target"] = {"kind": target.kind, "at": target.at, "name": target.name}
    return found


def begin(
    app: str, given: Mapping[str, Any], masks: list[dict[str, str]], to: str
) -> tuple[Restore, bool]:
    """Note what is to be copied, and lay what opens it; tell whether there is anything."""
    own, restore = backup_repository.setup(), Restore(app)
    told, environment = backup_restore.app_of(app), given["environment"]
    if restore.progress and (restore.progress.get("from"), restore.progress["to"]) != (
        environment,
        to,
    ):
        whose = restore.progress.get("from")
        what = f"copy of {whose}'s data" if whose else "restore"
        raise Failure(
            f"A {what} to {restore.progress['to']!r} was begun and is not done. Go on with it by"
            " its own words, or give it up first, with the playbook restore: -e"
            f" restore_cancel={app} -e restore_confirm={app}"
        )
    setup = backup_source.lay(app, own, given, masks)
    if restore.progress:
        return restore, True
    found = look(own, setup, told, app, given, to)
    if found.get("nothing"):
        return restore, False
    moment = time.strftime("%Y%m%dt%H%M%S", time.gmtime())
    for database in found["databases"]:
        if len(database["name"].encode()) > backup_restore.LONGEST - len(f"_before_{moment}"):
            raise Failure(f"The name of the database {database['name']} is too long to keep it.")
    restore.save(
        **{"id": moment, "to": to, "done": [], "began": time.time(), "app": app},
        **{"from": environment, "newest_wal": found.get("newest_wal", ""), "backup": ""},
        **{x: found[x] for x in ("target", "snapshot", "databases", "paths")},
    )
    return restore, True


def bring(app: str, given: Mapping[str, Any], masks: list[dict[str, str]], to: str) -> list[str]:
    """Bring it beside what is live, by a unit that goes on when the connection breaks."""
    unit = f"carafe-backup-restore@{app}.service"
    if ask("systemctl", "is-active", unit).stdout.strip() == "activating":
        raise Failure(f"{unit} is at work. Wait for it, and run this again: journalctl -fu {unit}")
    before = (backup_state.read(f"restore-{app}") or {}).get("ended")
    with backup_source.forgotten(app):
        restore, is_due = begin(app, given, masks, to)
        if not is_due:
            return []
        ask("systemctl", "start", unit)
    entry = backup_state.read(f"restore-{app}")
    if entry is None or entry["ended"] == before:
        raise Failure(f"{unit} has left no word. See journalctl -u {unit}")
    if entry["result"] != "ok":
        raise Failure(entry["message"])
    reached = Target(**Restore(app).progress["target"]).at
    lines = [f"{x}: {y}" for x, z in entry["details"]["differences"].items() for y in z]
    from_ = f"{restore.progress['from']} as of {shown(reached)}"
    return [f"bring {from_} beside what is live", *lines]


def lines(found: Mapping[str, Any], given: Mapping[str, Any], masks: list[str]) -> list[str]:
    """Return for people what a copy would bring, and what it would replace."""
    if found.get("nothing"):
        return ["this server keeps nothing of the app that could be replaced"]
    said, kind = [], found["target"]["kind"]
    if found["databases"]:
        names = ", ".join(x["name"] for x in found["databases"])
        to = f"the end of its WAL, {found['newest_wal']}"
        to = to if kind == "latest" else shown(found["target"]["at"])
        said.append(f"database {names}: from {found['stanza']} of {given['environment']}, {to}")
        said.append(f"moments from {shown(found['oldest'])} on can be reached; its backups are")
        said += [f"  {x}" for x in found["backups"]]
        said.append(f"masked by {', '.join(masks)}" if masks else "NOT masked: no file does it")
    if found["snapshot"]:
        said.append(
            f"files {', '.join(found['paths'])}: as of {shown(found['snapshot']['at'])}, and no"
            " mask changes them"
        )
    return [*said, "what is live here is replaced, and kept until it is told to go"]
