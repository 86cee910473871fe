#!/usr/bin/python
"""Drop what comes in to a server, except what its apps let in."""

from __future__ import annotations

DOCUMENTATION = r"""
module: firewall
short_description: Drop what comes in, except what is allowed, and never lock the operator out
description:
  - Brings the nftables table C(inet carafe) into force, and touches no other. Of what goes out it
    refuses only what asks the cloud's metadata service.
  - Several owners, each an app for instance, may let things in on one server. What each one claims
    is kept in
    C(/etc/carafe/firewall.d/), and the rules are composed of all claims.
  - Rules are refused under which the ssh connection that the module came by could not have been
    opened.
  - New rules are in force at once, and taken back after O(revert_seconds) unless they are confirmed
    by another call, which is
    to come by a new connection. Until then neither they nor the claim are those of the next boot.
author: [Carafe (@carafe)]
options:
  state:
    description:
      - V(present) brings rules into force, V(confirmed) keeps those of the last call, now and at
        each boot, and V(planned)
        only checks them and says what is due.
      - V(absent) takes back what this owner claims, as V(present) brings it. Where there is no
        other owner, the rules stay.
    type: str
    choices: [planned, present, absent, confirmed]
    default: present
  owner:
    description: Whose claim this is.
    type: str
    default: default
  allow:
    description: What this owner lets in, besides ssh. What leaves the list is closed, unless
      another owner lets it in.
    type: list
    elements: dict
    default: []
    suboptions:
      ports:
        description: Ports, each a number or a range such as V(8000-8010).
        type: list
        elements: str
        default: []
      protocol:
        description: Protocol of the ports. C(vrrp) has none, and needs sources.
        type: str
        choices: [tcp, udp, vrrp]
        default: tcp
      sources:
        description: Addresses and networks that may connect. Empty means anybody.
        type: list
        elements: str
        default: []
      comment:
        description: What the ports are for. At most 120 bytes, with no double quote.
        type: str
        default: ""
  ssh_ports:
    description: Ports of ssh. This and what follows the server has once, so two owners cannot state
      it differently.
    type: list
    elements: int
    default: [22]
  ssh_sources:
    description: Addresses and networks that may use ssh. Empty means anybody.
    type: list
    elements: str
    default: []
  ssh_unlimited:
    description: Addresses and networks that may open as many ssh connections as they like.
    type: list
    elements: str
    default: []
  ssh_rate:
    description: New ssh connections per minute that one source may open in the long run. V(0) means
      no limit.
    type: int
    default: 10
  ssh_burst:
    description: New ssh connections that one source may open at once.
    type: int
    default: 20
  trusted_interfaces:
    description: Names of network interfaces on which all that comes in is accepted.
    type: list
    elements: str
    default: []
  metadata:
    description: Whether programs of users other than root may reach the metadata service of the
      cloud that the server is in.
    type: bool
    default: false
  revert_seconds:
    description: Seconds, 20 or more, after which rules are taken back unless they are confirmed.
    type: int
    default: 60
attributes:
  check_mode:
    description: Looks, changes nothing, and says what it would change.
    support: full
  diff_mode:
    description: Shows the rules, and what is due for them.
    support: full
"""

EXAMPLES = r"""
- name: Let in the web
  carafe.stack.firewall:
    owner: shop
    allow:
      - ports: ["80", "443"]
        comment: web
  register: rules

- name: Open a new connection
  ansible.builtin.wait_for_connection:
  vars:
    ansible_ssh_extra_args: -S none
  when: rules.unconfirmed

- name: Keep the rules
  carafe.stack.firewall:
    owner: shop
    state: confirmed
  when: rules.unconfirmed
"""

RETURN = r"""
due:
  description: Why something was to be done, in a few words each. Empty when all is as it should be.
  type: list
  elements: str
  returned: when O(state) is V(present) or V(absent)
unconfirmed:
  description: Whether rules are in force that wait for their confirmation.
  type: bool
  returned: when O(state) is V(present) or V(absent)
"""

from ansible_collections.carafe.stack.plugins.module_utils.module import (
    Module,
    choice,
    entries,
    options,
)

from ..module_utils import claims, commands, files, firewall, programs, ssh_peer, takeback
from ..module_utils.commands import Refused
from ..module_utils.firewall_rules import DEFAULTS, claim, compose, once

ALLOW = {
    "protocol": choice("tcp", "udp", "vrrp", default="tcp"),
    **options(ports=[], sources=[], comment=""),
}
ARGUMENTS = {
    "state": choice("planned", "present", "absent", "confirmed", default="present"),
    "allow": entries(ALLOW),
    **options(owner="default", revert_seconds=60),
    **options(**{name.removeprefix("firewall_"): value for name, value in DEFAULTS.items()}),
}
# Of this module's own text, so that they travel with it.
PROGRAM = programs.names(firewall, takeback, claims, commands, files)


def present(params: dict, check: bool) -> dict:
    """Bring the rules into force; return what was due for that, and what changed."""
    owner, leaves = params["owner"], params["state"] == "absent"
    if leaves and (gone := claims.left(firewall.CLAIMS, owner, check)) is not None:
        return {**gone, "due": gone["changes"], "unconfirmed": False}
    mine = claim(params["allow"], {x: params[x.removeprefix("firewall_")] for x in DEFAULTS})
    mine = None if leaves else mine
    if params["revert_seconds"] < 20:
        raise Refused(
            "firewall_revert_seconds must be 20 or more: a new connection takes its time."
        )
    with firewall.CHANGE.alone(owner, check):
        everybody = claims.agreed(firewall.CLAIMS, owner, mine, once)
        rules = compose(everybody, ssh_peer.peer())
        if not check and not firewall.NFT.exists():
            raise Refused(
                "There is no nft. Install nftables, or leave firewall_manage_packages at true."
            )
        confirmed = files.read(firewall.CONFIRMED) or ""
        service = firewall.service_is_due()
        due = list(firewall.due(rules))
        unconfirmed = bool(due)
        # What is claimed counts once the rules do.
        claimed = claims.claim(firewall.CLAIMS, owner, mine, check or unconfirmed)
        reasons = {
            f"{owner} claims {'nothing any more' if leaves else 'something else'}": claimed,
            f"{firewall.SERVICE} is not as it should be": service,
            "the program that takes rules back is another": programs.install(
                "firewall", PROGRAM, check
            ),
        }
        due += [reason for reason, holds in reasons.items() if holds]
        if unconfirmed and not check:
            firewall.apply(rules, params["revert_seconds"], owner, mine)
    # It takes the lock of the claims itself. Where rules wait, their confirmation comes first.
    if service and not unconfirmed and not check:
        firewall.enable()
    return takeback.report(firewall.CONFIRMED, confirmed, rules, due, unconfirmed and not check)


def confirmed(params: dict) -> bool:
    with claims.locked(firewall.CLAIMS):
        firewall.confirm(params["owner"])
    firewall.enable()
    return True


def main() -> None:
    takeback.answer(
        Module(ARGUMENTS),
        present,
        {"confirmed": confirmed},
        refused="{} Nothing was changed. Correct it in group_vars and run the playbook again.",
        failed="{}. The rules from before are in force. Correct what it names, and run the playbook"
        " again.",
    )


if __name__ == "__main__":
    main()
