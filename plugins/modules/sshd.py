#!/usr/bin/python
"""Let sshd take keys only and strong algorithms, and lock nobody out on the way."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sshd
short_description: Let sshd take keys only and strong algorithms, and lock nobody out on the way
description:
  - Writes C(/etc/ssh/sshd_config.d/00-carafe.conf) and lets sshd read it, with what ssh-audit's
    hardened policies of Debian 12
    and 13 ask for.
  - Asks sshd itself what all its files together would mean, for everybody and for the user, address
    and port of the ssh
    connection that the module came by, and refuses what sshd does not take, what another file
    overrules, and what would
    keep that user out.
  - New settings count at once, and are taken back after O(confirm_seconds), and by a reboot, unless
    they are confirmed by
    another call, which is to come by a new connection.
  - Several owners, each an app for instance, may state settings for one server, unless they state
    them differently. What each
    one states is kept in C(/etc/carafe/sshd.d/).
author: [Carafe (@carafe)]
options:
  state:
    description:
      - V(present) brings settings into force, V(confirmed) keeps those of the last call,
        V(reverted) takes them back, and
        V(planned) only checks them and says what is due.
      - V(absent) takes back what this owner states, as V(present) brings it. Where there is no
        other owner, sshd stays as it is.
    type: str
    choices: [planned, present, absent, confirmed, reverted]
    default: present
  owner:
    description: Who states these settings.
    type: str
    default: default
  same_connection:
    description: Whether a confirmation may come by the connection that made the change, as on the
      machine that one works on.
    type: bool
    default: false
  ports:
    description: Ports that sshd listens on.
    type: list
    elements: int
    default: [22]
  permit_root_login:
    description:
      - Who may log in as root, nobody with V(never), who has a key with V(keys). V(auto) is V(keys)
        while the connection
        is one of root's, and V(never) once it is that of another user who has become root.
    type: str
    choices: [auto, never, keys]
    default: auto
  allow_users:
    description: Users who may log in, as C(AllowUsers) of sshd has them. Empty means all.
    type: list
    elements: str
    default: []
  allow_groups:
    description: Groups whose members may log in. Empty means all.
    type: list
    elements: str
    default: []
  allow_tcp_forwarding:
    description: Whether users may reach other ports and unix sockets through the server.
    type: bool
    default: false
  allow_agent_forwarding:
    description: Whether users may bring their ssh agent.
    type: bool
    default: false
  allow_x11_forwarding:
    description: Whether users may see windows of the server at home.
    type: bool
    default: false
  max_auth_tries:
    description: Attempts at a login in one connection.
    type: int
    default: 3
  max_sessions:
    description: Shells, commands and transfers of files that one connection may have at a time.
    type: int
    default: 2
  login_grace_seconds:
    description: Seconds that a client has to log in.
    type: int
    default: 30
  max_startups:
    description: Connections that have not logged in yet, as C(MaxStartups) has it.
    type: str
    default: "10:30:60"
  client_alive_seconds:
    description: Seconds without a word after which sshd asks a client whether it is still there.
    type: int
    default: 120
  rsa_host_key_bits:
    description: Size of the server's RSA key in bits. Where Debian's own has less, another is made
      beside it.
    type: int
    default: 4096
  settings:
    description: Further keywords of sshd with their values, which win over the others. A list makes
      a line of each entry.
    type: dict
    default: {}
  confirm_seconds:
    description: Seconds after which unconfirmed settings are taken back.
    type: int
    default: 60
attributes:
  check_mode:
    description: Looks, changes nothing, and says what it would change.
    support: full
  diff_mode:
    description: Shows sshd's drop-in, and what a reload or restart would be due for.
    support: full
"""

EXAMPLES = r"""
- name: Let deploy in, and nobody else
  carafe.stack.sshd:
    allow_users: [deploy]
    settings:
      MaxSessions: 4
  register: settings

- name: Keep the settings, now that a new connection is possible under them
  carafe.stack.sshd:
    state: confirmed
  vars:
    ansible_control_path: none
  when: settings.unconfirmed
"""

RETURN = r"""
due:
  description: Why something was to be done, in a few words each. Empty when all is as it should be.
  type: list
  elements: str
  returned: when O(state) is V(planned), V(present) or V(absent)
unconfirmed:
  description: Whether settings are in force that wait for their confirmation.
  type: bool
  returned: when O(state) is V(planned), V(present) or V(absent)
"""

from ansible_collections.carafe.stack.plugins.module_utils.module import Module, choice, options

from ..module_utils import claims, commands, files, programs, ssh_peer, sshd, takeback
from ..module_utils.commands import Refused
from ..module_utils.sshd_settings import DEFAULTS, claim, composed, due, problems, render

ARGUMENTS = {
    **options(owner="default", same_connection=False, confirm_seconds=60, **DEFAULTS, settings={}),
    "state": choice("planned", "present", "absent", "confirmed", "reverted", default="present"),
    "permit_root_login": choice("auto", "never", "keys", default="auto"),
}
# Of this module's own text, so that they travel with it.
PROGRAM = programs.names(sshd, takeback, claims, commands, files, ssh_peer)


def present(params: dict, check: bool) -> dict:
    """Bring the settings into force; return what was due for that, and what changed."""
    owner, seconds = params["owner"], params["confirm_seconds"]
    leaves = params["state"] == "absent"
    if leaves and (gone := claims.left(sshd.CLAIMS, owner, check)) is not None:
        return {**gone, "due": gone["changes"], "unconfirmed": False}
    mine, peer = None if leaves else claim(params), ssh_peer.peer()
    there = sshd.SSHD.exists()
    if not there and not check:
        raise Refused(
            "There is no sshd. Install openssh-server, or leave sshd_manage_packages at true."
        )
    with sshd.CHANGE.alone(owner, check):
        wanted = composed(claims.agreed(sshd.CLAIMS, owner, mine).values())
        text, (service, socket) = render(wanted, peer), sshd.units()
        bits = wanted["rsa_host_key_bits"]
        if there and (found := list(problems(text, peer, service, socket))):
            raise Refused(" ".join(found))
        reasons = list(due(text, bits, service, socket)) if there else ["sshd is not installed"]
        unconfirmed = bool(reasons)
        if claims.claim(sshd.CLAIMS, owner, mine, check=check or unconfirmed):
            reasons.append(f"{owner} states {'nothing any more' if leaves else 'something else'}")
        before = files.read(sshd.DROP_IN) or ""
        if unconfirmed and not check:
            programs.install("sshd", PROGRAM)
            sshd.apply(text, bits, seconds, owner, mine)
    return takeback.report(sshd.DROP_IN, before, text, reasons, unconfirmed and not check)


def confirmed(params: dict) -> bool:
    with claims.locked(sshd.CLAIMS):
        sshd.confirm(params["owner"], params["same_connection"])
    return True


def reverted(params: dict) -> bool:
    with claims.locked(sshd.CLAIMS):
        return sshd.CHANGE.revert(sshd.restore, params["owner"])


def main() -> None:
    takeback.answer(
        Module(ARGUMENTS),
        present,
        {"confirmed": confirmed, "reverted": reverted},
        refused="{} Nothing was changed.",
        failed="sshd has its old settings: {}. The server's side of it: journalctl --unit ssh",
    )


if __name__ == "__main__":
    main()
