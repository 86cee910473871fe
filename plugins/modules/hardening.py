#!/usr/bin/python
"""Bring time zone, host name, kernel settings, journal and nightly upgrades into force."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hardening
short_description: Bring a server's own settings into force
description:
  - Sets time zone, host name, kernel settings and what is upgraded by night, starts what keeps the
    time and what upgrades, and restarts journald where it has not read its file. It asks the
    server, so that what an interrupted run has left undone is made up for.
  - Each owner states what it wants in C(/etc/carafe/hardening.d), and what all state together comes
    into force. A value that is the default states nothing. Where two state different values of
    one setting, nothing is changed, and the failure names both.
  - The files of the role hardening come first, see there.
author: [Carafe (@carafe)]
options:
  owner:
    description: Whose settings these are, an app for instance.
    type: str
    default: default
  state:
    description:
      - V(absent) takes back what this owner states, so that the server has what the others state.
        Where there is no other, the server stays as it is.
    type: str
    choices: [present, absent]
    default: present
  upgrade_origins:
    description: Where packages are upgraded from by night.
    type: list
    elements: str
    default: ["origin=Debian,codename=${distro_codename}-security,label=Debian-Security"]
  reboot_time:
    description: Time of day at which the server reboots when an upgrade needs it. Empty is never.
    type: str
    default: ""
  restart_time:
    description: >-
      Time of day at which what runs with upgraded libraries is restarted, as far as that loses
      no request. Empty is never.
    type: str
    default: ""
  sysctl:
    description: Kernel settings besides those of the role, or instead of them, by name.
    type: dict
    default: {}
  timezone:
    description: Time zone, by its name in C(/usr/share/zoneinfo). Empty leaves it as it is.
    type: str
    default: Etc/UTC
  hostname:
    description: The server's name for itself. Empty leaves it as it is.
    type: str
    default: ""
attributes:
  check_mode:
    description: Looks, changes nothing, and says what it would change.
    support: full
  diff_mode:
    description: Shows each file and setting that differs.
    support: full
"""

EXAMPLES = r"""
- name: Reboot at half past three when an upgrade needs it
  carafe.stack.hardening:
    owner: shop
    reboot_time: "03:30"
"""

RETURN = r"""
changes:
  description: The same as RV(done); where an owner leaves, what it stated as well.
  type: list
  elements: str
  returned: success
done:
  description: A few words for each thing that was done, or is due in check mode.
  type: list
  elements: str
  returned: success
refused:
  description: A sentence for each kernel setting that cannot be set here, as in a container.
  type: list
  elements: str
  returned: success
waits:
  description: >-
    A sentence for each service that runs a program or library as it was before an upgrade, apart
    from supervisord's programs.
  type: list
  elements: str
  returned: success
"""

from pathlib import Path

from ansible_collections.carafe.stack.plugins.module_utils.module import Module, choice, options

from ..module_utils import claims, hardening

CLAIMS = Path("/etc/carafe/hardening.d")
ARGUMENTS = {
    "state": choice("present", "absent", default="present"),
    **options(owner="default", sysctl={}, **hardening.DEFAULTS),
}


def harden(wanted: dict, dry: bool) -> dict:
    owner = wanted["owner"]
    hardening.check(wanted)
    mine = hardening.claim(wanted) or None
    if wanted["state"] == "absent":
        mine = None
        if (gone := claims.left(CLAIMS, owner, dry)) is not None:
            return {**gone, "done": [], "refused": [], "waits": []}
    with claims.locked(CLAIMS, dry):
        everybody = claims.agreed(CLAIMS, owner, mine)
        server = hardening.Server(hardening.composed(everybody), dry)
        server.bring_about()
        claimed = claims.claim(CLAIMS, owner, mine, dry)
    if server.done:
        server.diff.append({"before": "", "after": "\n".join([*server.done, ""])})
    return {
        "changed": bool(server.done) or claimed,
        "changes": server.done,
        "done": server.done,
        "refused": server.refused,
        "waits": server.waits,
        "diff": server.diff,
    }


def main() -> None:
    module = Module(ARGUMENTS)
    module.answer(harden, module.params, module.check_mode)


if __name__ == "__main__":
    main()
