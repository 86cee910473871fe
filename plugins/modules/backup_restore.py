#!/usr/bin/python
"""Bring one app's data on a server back to a moment of the past."""

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_restore
short_description: Bring one app's database and files back to a moment
description:
  - V(plan) says what there is to restore, what O(to) means, and what was written since, for which
    it reads WAL for 20 seconds at most; it changes nothing. V(left) says only what restores have
    left on the server, which it knows without the repository.
  - V(prepare) brings the past beside what is live, by a unit of systemd's that goes on when the
    connection breaks. V(switch) gives the two each other's names, which takes a moment.
  - What a restore has replaced is kept. V(undo) makes it live again, V(drop) removes it.
  - V(cancel) gives up what was prepared and not switched.
  - V(reconnect) restarts what runs of the app, whose connections have ended with the switch.
    V(finish) forgets the restore after that; until then the same stages go on with it.
  - V(recover) and V(recover_files) bring the data of a server that is gone onto a new one.
  - With O(source), V(plan) and V(prepare) are of another environment's data, masked before they
    come into the live cluster. Its inventory is read on the control machine. What opens its
    backups is on this server for the time of the stage alone, below C(/run), and its backups are
    only read.
author: [Carafe (@carafe)]
options:
  stage:
    description: What to do.
    type: str
    choices:
      [plan, left, prepare, switch, reconnect, finish, undo, drop, cancel, recover, recover_files]
    required: true
  owner:
    description: Whose data it is.
    type: str
    required: true
  to:
    description: The moment, see the playbook restore.
    type: str
    default: ""
  moment:
    description:
      - Which restore is undone, or its former data dropped, by the moment in their names.
      - For V(prepare) the moment that these names will have, the same on all servers of an app.
    type: str
    default: ""
  place:
    description:
      - Where it is read, V(copy) for the second place, or a folder of the server with such a copy.
      - When empty, it is the repository.
    type: str
    default: ""
  from_server:
    description: Name of the server that is gone, or of its place in the repository.
    type: str
    default: ""
  source:
    description: Another environment, whose data are copied. Without it, the past is this server's.
    type: dict
    suboptions:
      environment:
        description: Its name, which is that of its inventory. When empty, there is none.
        type: str
      allowed:
        description: Environments whose data may come here.
        type: list
        elements: str
      project:
        description: Folder on the control machine with C(inventory/) and the masks.
        type: path
      masks:
        description:
          - Files of SQL in O(source.project), which run as the database's owner, in this order.
            The control machine puts a dictionary with C(name) and C(sql) into the place of each.
        type: list
        elements: raw
      server:
        description: Host name of the server that is meant, where the place has those of several.
        type: str
      files:
        description: Whether the files come, too.
        type: bool
      repository:
        description: As backup_repository of that environment. The control machine fills this in.
        type: str
      key:
        description: As backup_key. The control machine fills this in, as what follows.
        type: str
      s3_endpoint:
        description: As backup_s3_endpoint.
        type: str
      s3_region:
        description: As backup_s3_region.
        type: str
      s3_key:
        description: As backup_s3_key.
        type: str
      s3_secret:
        description: As backup_s3_secret.
        type: str
      s3_ca:
        description: As backup_s3_ca. The file is on this server, too.
        type: str
      ssh_key:
        description: As backup_ssh_key.
        type: str
      ssh_known_hosts:
        description: As backup_ssh_known_hosts.
        type: list
        elements: str
attributes:
  check_mode:
    description: Looks, changes nothing, and says what it would change.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
"""

EXAMPLES = r"""
- name: See what can be restored
  carafe.stack.backup_restore:
    stage: plan
    owner: shop
    to: 2026-11-22 10:00:00+00
  become: true
"""

RETURN = r"""
plan:
  description: What there is, and what the moment means.
  type: dict
  returned: for the stage plan
lines:
  description: The same for people, a line each.
  type: list
  elements: str
  returned: for the stage plan
changes:
  description: What was changed, a sentence for each.
  type: list
  elements: str
  returned: success
"""

import xmlrpc.client  # nosec B411 # of supervisord, by its own socket
from pathlib import Path

from ansible_collections.carafe.stack.plugins.module_utils.module import (
    Module,
    choice,
    options,
    without_default,
)

from ..module_utils import (
    backup_loss,
    backup_recover,
    backup_repository,
    backup_restore,
    backup_source,
    backup_state,
    supervisord,
)
from ..module_utils.backup_target import shown
from ..module_utils.commands import Failure, ask
from ..module_utils.postgresql_server import report
from ..module_utils.words import one_line

STAGES = (
    *("plan", "left", "prepare", "switch", "reconnect", "finish", "undo", "drop", "cancel"),
    *("recover", "recover_files"),
)
PROGRAMS = Path("/etc/supervisor/conf.d")
SOURCE = {
    **without_default("environment", "repository", "s3_endpoint", "s3_region", "s3_ca", "server"),
    **without_default("key", "s3_secret", "ssh_key", no_log=True),
    **without_default("s3_key", no_log=False),
    **without_default("allowed", "ssh_known_hosts", type="list", elements="str"),
    "masks": {"type": "list", "elements": "raw"},
    "project": {"type": "path"},
    "files": {"type": "bool"},
}
ARGUMENTS = {
    "stage": choice(*STAGES, required=True),
    "owner": {"type": "str", "required": True},
    **options(to="", moment="", from_server="", place=""),
    "source": {"type": "dict", "options": SOURCE},
}


def plan(given: dict, _: bool) -> dict:
    source, name = given.get("source"), f"{given['owner']}.plan"
    with backup_source.forgotten(name):
        source = source and backup_source.lay(name, source)
        found = backup_restore.plan(given["owner"], given["to"], given["place"], source)
    if "target" in found and found["target"]["kind"] != "latest" and not source:
        found["lost"] = lost(given["owner"], found, given["place"])
    return {"plan": found, "lines": [*lines(found), *copied(source)], **report([])}


def copied(source: dict | None) -> list[str]:
    """Return for people what a copy of another environment's data is."""
    if not source:
        return []
    masks = ", ".join(x["name"] for x in source["masks"])
    files = ", and no mask changes a file" if source["files"] else ""
    whose = source["setup"].get("stanza") or source["repository"]
    return [f"these are the data of {source['environment']}, {whose}, masked by {masks}{files}"]


def lost(owner: str, found: dict, place: str = "") -> list[str]:
    """Return what a restore would lose; what cannot be counted keeps nobody from it."""
    setup = backup_repository.reading(backup_repository.setup(), place)
    told, said = backup_restore.app_of(owner), []
    counts = []
    if "window" in found:
        names = [x["name"] for x in told["databases"]]
        counts.append(lambda: backup_loss.database(setup, owner, names, found["target"]["at"]))
    if "snapshot" in found:
        counts.append(lambda: backup_loss.of_files(setup, owner, told["paths"], found["snapshot"]))
    for count in counts:
        try:
            said += count()
        except (Failure, OSError, ValueError) as problem:
            said.append(f"what that is cannot be counted: {one_line(str(problem), 300)}")
    return said


def left(given: dict, _: bool) -> dict:
    found = backup_restore.left(given["owner"])
    return {"plan": found, "lines": lines(found), **report([])}


def lines(found: dict) -> list[str]:
    """Return for people what can be restored, and what that would mean."""
    said = []
    if "window" in found:
        window = found["window"]
        said.append(
            f"database: {len(found['backups'])} backups; moments from {shown(window['oldest'])} to"
            f" {shown(window['newest'])} can be reached"
        )
        said += [f"  {x}" for x in found["backups"][-5:]]
        said += [f"  point {x['name']}, {shown(x['at'])}" for x in found["points"][-5:]]
    if found.get("snapshots"):
        said.append(
            f"files: {len(found['snapshots'])} snapshots, from {found['snapshots'][0]} to"
            f" {found['snapshots'][-1]}"
        )
    if "target" in found:
        said.append(f"this would bring back {shown(found['target']['at'])}")
        said.append(f"it loses {found['loses']}")
        said += [f"  {x}" for x in found.get("lost", ())]
    if found.get("snapshot"):
        said.append(
            f"files as of {shown(found['snapshot']['at'])}, of the release"
            f" {found['snapshot']['release'] or 'that is not known'}"
        )
    for moment, things in found["kept"].items():
        said.append(f"kept of the restore {moment}: {', '.join(things)}")
    if found["restoring"]:
        said.append(f"not done yet: the restore to {found['restoring']['to']!r}")
    return said


def prepare(given: dict, check: bool) -> dict:
    owner, unit = given["owner"], f"carafe-backup-restore@{given['owner']}.service"
    source = given.get("source")
    if check:
        plan(given, check)
        return report([f"bring {given['to']} beside what is live"])
    # It reads what is laid for it.
    if source and ask("systemctl", "is-active", unit).stdout.strip() == "activating":
        raise Failure(f"{unit} is at work. Wait for it: journalctl -fu {unit}; and run this again.")
    with backup_source.forgotten(owner):
        source = source and backup_source.lay(owner, source)
        words = (given["to"], given["moment"], given["place"], source)
        return brought(owner, unit, backup_restore.begin(owner, *words))


def brought(owner: str, unit: str, progress: dict) -> dict:
    """Have the unit bring what is noted; return what came of it."""
    done = progress.get("done", [])
    # On a server that keeps nothing of the app there is nothing to do.
    if not progress or "switching" in done:
        return {"differences": [], "moment": progress.get("id", ""), **report([])}
    before = (backup_state.read(f"restore-{owner}") or {}).get("ended")
    ask("systemctl", "start", unit)
    entry = backup_state.read(f"restore-{owner}")
    if entry is None or entry["ended"] == before:
        raise Failure(f"{unit} has left no word. See journalctl -u {unit}")
    if entry["result"] != "ok":
        raise Failure(entry["message"])
    differences = [f"{x}: {line}" for x, y in entry["details"]["differences"].items() for line in y]
    return {
        "differences": differences,
        "moment": progress["id"],
        **report([f"bring {shown(progress['target']['at'])} beside what is live", *differences]),
    }


def switch(given: dict, check: bool) -> dict:
    if check or not backup_restore.Restore(given["owner"]).progress:
        return report([])
    moved = backup_restore.switch(given["owner"])
    return report(["switch", *(f"keep {x}" for x in moved)])


def finish(given: dict, check: bool) -> dict:
    if not check:
        backup_restore.finish(given["owner"])
    return report([])


def reconnect(given: dict, check: bool) -> dict:
    """Restart the app's programs, one after the other: a pool of theirs has dead connections."""
    owner, done = given["owner"], []
    if not (PROGRAMS / f"{owner}.conf").exists():
        return report([])
    try:
        rpc = supervisord.connect()
        for info in rpc.getAllProcessInfo():
            mine = info["group"] == owner or info["group"].startswith(f"{owner}.")
            if not mine or not info["pid"]:
                continue
            process = f"{info['group']}:{info['name']}"
            done.append(f"restart {process}")
            if not check:
                supervisord.stop(rpc, process)
                rpc.startProcess(process, True)
    except (OSError, xmlrpc.client.Fault) as error:
        raise Failure(
            f"The data is switched, and supervisord does not restart {owner}: {error}. Do it:"
            f" supervisorctl restart {owner}:*"
        ) from None
    return report(done)


def back(given: dict, check: bool) -> dict:
    act = backup_restore.undo if given["stage"] == "undo" else backup_restore.drop
    if check:
        return report([f"{given['stage']} {given['moment']}"])
    return report([f"{given['stage']} {x}" for x in act(given["owner"], given["moment"])])


def cancel(given: dict, check: bool) -> dict:
    if check:
        return report([])
    return report([f"give up {x}" for x in backup_restore.cancel(given["owner"])])


def recover(given: dict, check: bool) -> dict:
    if check and not backup_repository.SETUP.exists():
        return report([f"bring the data of {given['from_server']}"])
    words = (given["from_server"], given["to"], check, given["place"])
    return report(backup_recover.database(*words))


def recover_files(given: dict, check: bool) -> dict:
    if check and not backup_repository.SETUP.exists():
        return report([f"bring the files of {given['from_server']}"])
    words = (given["owner"], given["from_server"], given["to"], check, given["place"])
    return report(backup_recover.bring_files(*words))


WORK = {
    **{"plan": plan, "left": left, "prepare": prepare, "switch": switch, "cancel": cancel},
    **{"reconnect": reconnect, "finish": finish},
    **{"recover": recover, "recover_files": recover_files},
}


def main() -> None:
    module = Module(ARGUMENTS)
    module.answer(WORK.get(module.params["stage"], back), module.params, module.check_mode)


if __name__ == "__main__":
    main()
