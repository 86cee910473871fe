#!/usr/bin/python
"""Let sshd take keys only and strong algorithms, and lock nobody out on the way."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sshd
short_description: Let sshd take keys only and strong algorithms, and lock nobody out on the way
description:
  - Writes C(/etc/ssh/sshd_config.d/00-carafe.conf) and lets sshd read it, with what ssh-audit's hardened policies of Debian 12
    and 13 ask for.
  - Asks sshd itself what all its files together would mean, for everybody and for the user, address and port of the ssh
    connection that the module came by, and refuses what sshd does not take, what another file overrules, and what would
    keep that user out.
  - New settings count at once, and are taken back after O(confirm_seconds), and by a reboot, unless they are confirmed by
    another call, which is to come by a new connection.
  - Several owners, each an app for instance, may state settings for one server, unless they state them differently. What each
    one states is kept in C(/etc/carafe/sshd.d/).
author: [Carafe (@carafe)]
options:
  state:
    description:
      - V(present) brings settings into force, V(confirmed) keeps those of the last call, V(reverted) takes them back, and
        V(planned) only checks them and says what is due.
    type: str
    choices: [planned, present, confirmed, reverted]
    default: present
  owner:
    description: Who states these settings.
    type: str
    default: default
  same_connection:
    description: Whether a confirmation may come by the connection that made the change, as on the machine that one works on.
    type: bool
    default: false
  ports:
    description: Ports that sshd listens on.
    type: list
    elements: int
    default: [22]
  permit_root_login:
    description:
      - Who may log in as root, nobody with V(never), who has a key with V(keys). V(auto) is V(keys) while the connection
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
    description: Size of the server's RSA key in bits. Where Debian's own has less, another is made beside it.
    type: int
    default: 4096
  settings:
    description: Further keywords of sshd with their values, which win over the others. A list makes a line of each entry.
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
"""  # noqa: E501

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
  returned: when O(state=planned) or O(state=present)
unconfirmed:
  description: Whether settings are in force that wait for their confirmation.
  type: bool
  returned: when O(state=planned) or O(state=present)
"""

import subprocess

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.carafe.stack.plugins.module_utils import (
    claims,
    files,
    programs,
    ssh_peer,
    sshd,
    takeback,
)
from ansible_collections.carafe.stack.plugins.module_utils.sshd_settings import (
    claim,
    due,
    merged,
    problems,
    render,
)

ARGUMENTS = {
    "state": {
        "type": "str",
        "choices": ["planned", "present", "confirmed", "reverted"],
        "default": "present",
    },
    "owner": {"type": "str", "default": "default"},
    "same_connection": {"type": "bool", "default": False},
    "ports": {"type": "list", "elements": "int", "default": [22]},
    "permit_root_login": {"type": "str", "choices": ["auto", "never", "keys"], "default": "auto"},
    "allow_users": {"type": "list", "elements": "str", "default": []},
    "allow_groups": {"type": "list", "elements": "str", "default": []},
    "allow_tcp_forwarding": {"type": "bool", "default": False},
    "allow_agent_forwarding": {"type": "bool", "default": False},
    "allow_x11_forwarding": {"type": "bool", "default": False},
    "max_auth_tries": {"type": "int", "default": 3},
    "login_grace_seconds": {"type": "int", "default": 30},
    "max_startups": {"type": "str", "default": "10:30:60"},
    "client_alive_seconds": {"type": "int", "default": 120},
    "rsa_host_key_bits": {"type": "int", "default": 4096},
    "settings": {"type": "dict", "default": {}},
    "confirm_seconds": {"type": "int", "default": 60},
}
# Of this module's own text, so that they travel with it.
PROGRAM = [x.__name__.rpartition(".")[2] for x in (sshd, takeback, claims, files, ssh_peer)]


class Refused(Exception):
    """Why these settings cannot be."""


def present(params: dict, check: bool) -> dict:
    """Bring the settings into force; return what was due for that, and what changed."""
    owner, seconds = params["owner"], params["confirm_seconds"]
    mine, peer = claim(params), ssh_peer.peer()
    there = sshd.SSHD.exists()
    if not there and not check:
        raise Refused(
            "There is no sshd. Install openssh-server, or leave sshd_manage_packages at true."
        )
    with sshd.CHANGE.alone(sshd.CLAIMS, owner, check):
        everybody = claims.read(sshd.CLAIMS, owner, mine)
        if conflicts := claims.conflicts(everybody, sshd.CLAIMS):
            raise Refused(" ".join(conflicts))
        wanted = merged(everybody.values())
        text, (service, socket) = render(wanted, peer), sshd.units()
        bits = wanted["rsa_host_key_bits"]
        if there and (found := list(problems(text, peer, service, socket))):
            raise Refused(" ".join(found))
        reasons = list(due(text, bits, service, socket)) if there else ["sshd is not installed"]
        unconfirmed = bool(reasons)
        if claims.claim(sshd.CLAIMS, owner, mine, check=check or unconfirmed):
            reasons.append(f"{owner} states something else")
        before = files.read(sshd.DROP_IN) or ""
        if unconfirmed and not check:
            programs.install("sshd", PROGRAM)
            sshd.apply(text, bits, seconds, owner, mine)
    header = {"before_header": str(sshd.DROP_IN), "after_header": str(sshd.DROP_IN)}
    diff = [{"before": before, "after": text, **header}] if before != text else []
    diff += [{"prepared": "".join(f"{reason}\n" for reason in reasons)}] if reasons else []
    return {
        "changed": bool(reasons),
        "due": reasons,
        "unconfirmed": unconfirmed and not check,
        "diff": diff,
    }


def confirmed(params: dict) -> dict:
    with claims.locked(sshd.CLAIMS):
        sshd.confirm(params["owner"], params["same_connection"])
    return {"changed": True}


def reverted(params: dict) -> dict:
    with claims.locked(sshd.CLAIMS):
        return {"changed": sshd.CHANGE.revert(sshd.restore, params["owner"])}


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    params, check = module.params, module.check_mode
    try:
        match params["state"]:
            case "planned":
                found = present(params, check=True)
                module.exit_json(changed=False, due=found["due"], unconfirmed=False)
            case "present":
                module.exit_json(**present(params, check))
            case "confirmed":
                module.exit_json(**({"changed": True} if check else confirmed(params)))
            case "reverted":
                module.exit_json(**({"changed": True} if check else reverted(params)))
    except Refused as problem:
        module.fail_json(msg=f"{problem} Nothing was changed.")
    except (claims.Unreadable, takeback.NotConfirmed) as problem:
        module.fail_json(msg=str(problem))
    except subprocess.CalledProcessError as error:
        module.fail_json(
            msg=f"sshd has its old settings: {takeback.reason(error)}."
            " The server's side of it: journalctl --unit ssh"
        )


if __name__ == "__main__":
    main()
