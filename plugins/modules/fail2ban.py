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
done:
  description: What systemd was asked to do, for instance C(reload), or is to do in check mode.
  type: list
  elements: str
  returned: success
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.carafe.stack.plugins.module_utils import claims, fail2ban, files

CLAIMS = Path("/etc/carafe/fail2ban.d")
JAIL = {
    "name": {"type": "str", "required": True},
    **{name: {"type": "str"} for name in ("filter", "log", "journal")},
    "ports": {"type": "list", "elements": "int"},
    **{name: {"type": "int"} for name in ("retries", "within_seconds", "ban_seconds")},
}
JAILS = {"type": "list", "elements": "dict", "default": [], "options": JAIL}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "owner": {"type": "str", "default": "default"},
            "default_jails": JAILS,
            "jails": JAILS,
            "ignore": {"type": "list", "elements": "str", "default": []},
            **{name: {"type": "int", "default": x} for name, x in fail2ban.DEFAULTS.items()},
        },
        supports_check_mode=True,
    )
    owner, dry = module.params["owner"], module.check_mode
    installed = fail2ban.CLIENT.exists()
    if not installed and not dry:
        module.fail_json(
            msg="fail2ban is not installed. Set fail2ban_manage_packages to true in the inventory's"
            " group_vars, or install what fail2ban_packages has, and run the playbook again."
        )
    mine = fail2ban.stated(module.params)
    try:
        with claims.locked(CLAIMS, dry):
            everybody = claims.read(CLAIMS, owner, mine)
            if problems := claims.conflicts(everybody, CLAIMS, fail2ban.single(everybody)):
                raise fail2ban.Failure(" ".join(problems))
            before = files.read(fail2ban.JAILS)
            after = fail2ban.jail_file(fail2ban.composed(everybody, owner))
            if before != after:
                fail2ban.write(after, dry)
            claimed = claims.claim(CLAIMS, owner, mine, dry)
            # Without fail2ban this is a dry run on a bare server.
            verbs = fail2ban.due(before != after) if installed else ["start"]
            if not dry:
                fail2ban.do(verbs)
    except (fail2ban.Failure, claims.Unreadable) as failure:
        module.fail_json(msg=str(failure))
    path = str(fail2ban.JAILS)
    module.exit_json(
        changed=before != after or claimed or bool(verbs),
        done=verbs,
        diff={
            "before_header": path,
            "after_header": path,
            "before": before or "",
            "after": after,
        },
    )


if __name__ == "__main__":
    main()
