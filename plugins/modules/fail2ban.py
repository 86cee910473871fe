#!/usr/bin/python
"""Write what fail2ban is to watch, and let it run with that."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fail2ban
short_description: Give fail2ban its jails, and have them in force
description:
  - Writes the jails, which fail2ban tries before they land, and starts it, or lets it load what has
    changed. It asks the server, so that what an interrupted run has left undone is made up for, and
    so that bans are made again that somebody has thrown away.
  - Each owner states what it wants in C(/etc/carafe/fail2ban.d). Jails and addresses of all owners
    add up. A value that is the default states nothing. Where two state different values of one
    setting, or of one option of a jail, nothing is changed, and the failure names both.
  - The files of the role fail2ban come first, see there.
author: [Carafe (@carafe)]
options:
  owner:
    description: Whose jails these are, an app for instance.
    type: str
    default: default
  state:
    description:
      - V(absent) takes back what this owner states, so that there is what the others state. Where
        there is no other, fail2ban stays as it is.
    type: str
    choices: [present, absent]
    default: present
  default_jails:
    description: Jails that entries of O(jails) with the same name change.
    type: list
    elements: dict
    default: []
    suboptions: &jail
      name:
        description: Name of the jail.
        type: str
        required: true
      filter:
        description: Filter that recognizes a failure. The default is that of the jail's name.
        type: str
      log:
        description: Log file to read. While there is none, the jail is left out.
        type: str
      journal:
        description: Lines of the journal to read, where there is no log.
        type: str
      ports:
        description: Ports that are closed to who is banned, all when empty.
        type: list
        elements: int
      retries:
        description: Number of failures that lead to a ban.
        type: int
      within_seconds:
        description: Seconds within which they have to happen.
        type: int
      ban_seconds:
        description: Seconds that the first ban lasts, where O(seconds) is not right.
        type: int
  jails:
    description: Further jails, and changes to those in O(default_jails).
    type: list
    elements: dict
    default: []
    suboptions: *jail
  ignore:
    description: Addresses and networks that are never banned, besides the server's own.
    type: list
    elements: str
    default: []
  seconds:
    description: Seconds that the first ban of an address lasts.
    type: int
    default: 600
  max_seconds:
    description: Seconds that a ban lasts at most.
    type: int
    default: 604800
attributes:
  check_mode:
    description: Looks, changes nothing, and says what it would change.
    support: full
  diff_mode:
    description: Shows the composed settings.
    support: full
"""

EXAMPLES = r"""
- name: Ban who guesses passwords
  carafe.stack.fail2ban:
    owner: shop
    jails:
      - name: sshd
        retries: 3
    ignore: [192.0.2.0/24]
"""

RETURN = r"""
changes:
  description: What was written and done, a few words for each.
  type: list
  elements: str
  returned: success
done:
  description: What systemd was asked to do, for instance C(reload), or is to do in check mode.
  type: list
  elements: str
  returned: success
"""

from pathlib import Path

from ansible_collections.carafe.stack.plugins.module_utils.module import (
    Module,
    choice,
    entries,
    options,
    without_default,
)

from ..module_utils import claims, fail2ban, file_set, services
from ..module_utils.commands import Failure

CLAIMS = Path("/etc/carafe/fail2ban.d")
JAIL = {
    "name": {"type": "str", "required": True},
    **without_default("filter", "log", "journal"),
    "ports": {"type": "list", "elements": "int"},
    **without_default("retries", "within_seconds", "ban_seconds", type="int"),
}
ARGUMENTS = {
    **{"default_jails": entries(JAIL), "jails": entries(JAIL)},
    "state": choice("present", "absent", default="present"),
    **options(owner="default", ignore=[], **fail2ban.DEFAULTS),
}


def ban(wanted: dict, dry: bool) -> dict:
    owner, installed = wanted["owner"], fail2ban.CLIENT.exists()
    leaves = wanted["state"] == "absent"
    if leaves and (gone := claims.left(CLAIMS, owner, dry)) is not None:
        return {**gone, "done": []}
    if not installed and not dry:
        raise Failure(
            "fail2ban is not installed. Set fail2ban_manage_packages to true in the inventory's"
            " group_vars, or install what fail2ban_packages has, and run the playbook again."
        )
    mine = None if leaves else fail2ban.claim(wanted)
    with claims.locked(CLAIMS, dry):
        everybody = claims.agreed(CLAIMS, owner, mine, fail2ban.once)
        newest = [*everybody][-1] if leaves else owner
        written = file_set.write([fail2ban.file(fail2ban.composed(everybody, newest))], dry)
        claimed = claims.claim(CLAIMS, owner, mine, dry)
        # Without fail2ban this is a dry run on a bare server.
        verbs = fail2ban.due(bool(written.paths)) if installed else ["start"]
        if not dry:
            services.act(fail2ban.UNIT, verbs)
    changed = bool(written.paths or claimed or verbs)
    changes = [f"write {x}" for x in written.paths] + [f"{x} {fail2ban.UNIT}" for x in verbs]
    return {"changed": changed, "changes": changes, "done": verbs, "diff": written.diff}


def main() -> None:
    module = Module(ARGUMENTS)
    module.answer(ban, module.params, module.check_mode)


if __name__ == "__main__":
    main()
