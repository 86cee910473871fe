#!/usr/bin/python
"""Take a PostgreSQL cluster to another major version, and back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_upgrade
short_description: Take a PostgreSQL cluster to another major version, and back
description:
  - >-
    Copies the data by C(pg_upgradecluster), while the cluster is down, together with all of its
    configuration. The former cluster stays as it was, down, until it is dropped.
  - Goes on where an upgrade was cut short.
author: [Carafe (@carafe)]
options:
  state:
    description:
      - V(look) says how far the upgrade is, and what it will take.
      - >-
        V(checked) refuses what would fail half-way or be lost, such as replication slots, while
        everybody is served.
      - V(copied) stops the former cluster and copies it. The new one has its configuration, and is
        down.
      - >-
        V(finished) brings extensions and sorting up to date in the new cluster, which runs, and
        compares it with what the former one had.
      - V(analyzed) gathers the statistics that queries are planned by.
      - V(undone) lets the former cluster serve again. The new one is kept, under another name.
      - V(dropped) removes the former cluster, and with it the way back.
    type: str
    required: true
    choices: [look, checked, copied, finished, analyzed, undone, dropped]
  version:
    description: Major version that the cluster is to have, such as V(17).
    type: str
    required: true
  cluster:
    description: Name of the cluster.
    type: str
    default: main
attributes:
  check_mode:
    support: full
    description: Looks and checks, and changes nothing.
"""

EXAMPLES = r"""
- name: See what an upgrade will take
  carafe.stack.postgresql_upgrade:
    state: look
    version: "17"
  become: true
  register: upgrade

- name: Copy the data
  carafe.stack.postgresql_upgrade:
    state: copied
    version: "17"
  become: true
"""

RETURN = r"""
former:
  description: Major version of the cluster that is older, empty where there is none.
  type: str
  returned: success
step:
  description: >-
    How far the upgrade is. Empty before it began, V(copied) when the new cluster has the data,
    V(serving) when it serves.
  type: str
  returned: success
done:
  description: Whether nothing of the upgrade is left to do.
  type: bool
  returned: with V(look)
bytes:
  description: Bytes of the data that is to be copied.
  type: int
  returned: with V(look)
room:
  description: What the copy takes on each disk, and what is free there, in words.
  type: str
  returned: with V(look)
  sample: 680 MB below /var/lib/postgresql/17, where 5,300 MB are free
backed_up:
  description: When the newest backup of the databases ended, in seconds since the epoch, or 0.
  type: float
  returned: with V(look)
owners:
  description: The apps that the cluster is configured for.
  type: list
  elements: str
  returned: with V(look)
changes:
  description: What was changed, or would be, a sentence for each.
  type: list
  elements: str
  returned: success
"""

from ansible_collections.carafe.stack.plugins.module_utils.module import Module, choice, options

from ..module_utils import claims, postgresql_config
from ..module_utils import postgresql_upgrade_checks as checks
from ..module_utils.commands import Failure
from ..module_utils.postgresql_server import need_psycopg2, report
from ..module_utils.postgresql_upgrade import Upgrade, backed_up, older

STATES = ("look", "checked", "copied", "finished", "analyzed", "undone", "dropped")
SENTENCES = {
    "copied": "copy the data of {0} to {1}",
    "finished": "serve from {1}",
    "analyzed": "gather statistics of all databases",
    "undone": "serve from {0}, and keep {1}",
    "dropped": "drop {0}",
}


def look(upgrade: Upgrade) -> dict:
    """Return what there is to be known before it begins."""
    disks = upgrade.room()
    return {
        "bytes": sum(disk["bytes"] for disk in disks),
        "room": checks.listed_room(disks),
        "backed_up": backed_up(),
        "done": upgrade.step() == "serving" and bool(upgrade.state.get("analyzed")),
        "owners": sorted(claims.read(postgresql_config.FOLDER, "", None)),
    }


def act(state: str, upgrade: Upgrade, check: bool) -> dict:
    former = f"{upgrade.former}/{upgrade.name}"
    if state == "look":
        return {**report([]), **look(upgrade)}
    if state == "checked":
        if not upgrade.step() and not check:
            upgrade.recover()
        if not upgrade.step():
            upgrade.refuse()
        return report([])
    if check:
        return report([SENTENCES[state].format(former, f"{upgrade.version}/{upgrade.name}")])
    work = {
        "copied": upgrade.copy,
        "finished": upgrade.finish,
        "analyzed": upgrade.analyze,
        "undone": upgrade.undo,
        "dropped": upgrade.drop,
    }
    return report(work[state]())


def answer(module: Module) -> dict:
    given = module.params
    need_psycopg2()
    former = older(given["version"], given["cluster"])
    if not former:
        if given["state"] in ("look", "dropped"):
            return {**report([]), "former": "", "step": ""}
        raise Failure(
            f"There is no cluster {given['cluster']} of a version before {given['version']}, so"
            " there is nothing to upgrade, and no way back."
        )
    upgrade = Upgrade(former, given["version"], given["cluster"])
    result = act(given["state"], upgrade, module.check_mode)
    for warning in upgrade.warnings:
        module.warn(warning)
    return {**result, "former": former, "step": upgrade.step()}


def main() -> None:
    module = Module(
        {
            "state": choice(*STATES, required=True),
            "version": {"type": "str", "required": True},
            **options(cluster="main"),
        }
    )
    module.answer(answer, module)


if __name__ == "__main__":
    main()
