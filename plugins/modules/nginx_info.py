#!/usr/bin/python
"""Tell what a configuration of nginx on this server must go by."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nginx_info
short_description: Tell what a configuration of nginx on this server must go by
description:
  - >-
    Says what nginx and the kernel can do, what other owners, such as other apps, have stated of
    nginx on this server, and which sites of this owner's are to go.
  - >-
    Fails where two owners state a setting of the server differently, or have the same site, and
    where another service has a port that nginx is to listen on. It changes nothing.
author: [Carafe (@carafe)]
options:
  owner:
    description: Who configures nginx. What it has is recorded in C(/etc/carafe/nginx.d).
    type: str
    default: default
  state:
    description:
      - With V(absent) the owner leaves. All that it has is to be absent, and its settings count no
        more. Where it has nothing, RV(absent) is empty, and nothing else is said.
    type: str
    choices: [present, absent]
    default: present
  sites:
    description: The owner's sites, with all their options.
    type: list
    elements: dict
    default: []
  streams:
    description: The owner's streams, with all their options.
    type: list
    elements: dict
    default: []
  settings:
    description: What the owner says of settings that the server has only once.
    type: dict
    required: true
  defaults:
    description: The same settings where nobody says anything.
    type: dict
    required: true
attributes:
  check_mode:
    support: full
    description: It changes nothing.
"""

EXAMPLES = r"""
- name: Look at the server
  carafe.stack.nginx_info:
    owner: shop
    settings: {nginx_worker_connections: 4096}
    defaults: {nginx_worker_connections: 4096}
  register: server
"""

RETURN = r"""
settings:
  description: The settings of the server that are in force, from all owners and the defaults.
  type: dict
  returned: success
claim:
  description: What this owner has of the server, to be recorded.
  type: dict
  returned: success
absent:
  description: Paths of what is to be absent.
  type: list
  elements: str
  returned: success
nameless:
  description: The certificate that is shown on each port to who names no host in a handshake.
  type: dict
  returned: success
addresses:
  description: What answers at the bare addresses of this owner's sites.
  type: list
  elements: str
  returned: success
default_ports:
  description: Ports for which somebody has a default server of his own.
  type: list
  elements: int
  returned: success
over_tls:
  description: Whether any site, of any owner, is served over TLS.
  type: bool
  returned: success
ipv6:
  description: Whether the kernel has IPv6.
  type: bool
  returned: success
http2_on:
  description: Whether HTTP/2 is a directive of its own, as from nginx 1.25.1 on.
  type: bool
  returned: success
post_quantum:
  description: Whether OpenSSL knows X25519MLKEM768, as from 3.5 on.
  type: bool
  returned: success
"""

import os

from ansible_collections.carafe.stack.plugins.module_utils.module import Module, choice, options

from ..module_utils import claims, nginx
from ..module_utils import found as found_by_hand
from ..module_utils.commands import Refused

ARGUMENTS = {
    **options(owner="default"),
    "state": choice("present", "absent", default="present"),
    **{name: {"type": "list", "elements": "dict", "default": []} for name in ("sites", "streams")},
    **{name: {"type": "dict", "required": True} for name in ("settings", "defaults")},
}


def leave(owner, defaults, check_mode):
    """Return the same for an owner that is to have nothing any more."""
    gone = nginx.absent_paths(owner, [], [])
    claim = nginx.CLAIMS / f"{owner}.json"
    gone += [str(claim)] * claim.exists()
    there = [path for path in gone if os.path.lexists(path)]
    if not there:
        return {"changed": False, "absent": []}
    everybody = claims.read(nginx.CLAIMS, owner, None)
    stated = claims.merged(theirs["settings"] for theirs in everybody.values())
    tls = nginx.over_tls({nginx.Path(path).stem for path in gone})
    found = nginx.abilities(check_mode) | {"settings": {**defaults, **stated}, "over_tls": tls}
    found["nameless"], _ = nginx.share_nameless(everybody, owner)
    found["default_ports"] = found_by_hand.default_ports()
    return {"changed": False, "absent": there, **found}


def look(owner, sites, streams, settings, defaults, check_mode, state="present"):
    if state == "absent":
        return leave(owner, defaults, check_mode)
    if not nginx.OWNER.fullmatch(owner):
        raise Refused(f"nginx_owner is {owner!r}, and needs letters, digits, '-', '_' and '.'.")
    found = nginx.abilities(check_mode)
    mine = nginx.claim(sites, streams, settings, defaults)
    everybody = claims.read(nginx.CLAIMS, owner, mine)
    absent = [x["name"] for x in sites if x["state"] == "absent"]
    for problem in nginx.conflicts(everybody, owner, absent):
        raise Refused(problem)
    # Last, as it takes a claim back that another owner has already.
    nameless, told = nginx.share_nameless(everybody, owner)
    stated = claims.merged(theirs["settings"] for theirs in everybody.values())
    gone = nginx.absent_paths(owner, sites, streams)
    known = {x["name"] for x in sites} | {nginx.Path(path).stem for path in gone}
    tls = any(x["certificate"] for x in nginx.present(sites)) or nginx.over_tls(known)
    in_force = {**defaults, **stated}
    if in_force.get("nginx_real_ip_from") and in_force.get("nginx_proxy_protocol_from"):
        raise Refused(
            "nginx_real_ip_from and nginx_proxy_protocol_from are both set for this server, perhaps"
            f" by two apps: see {nginx.CLAIMS}. nginx takes a visitor's address from one of them."
        )
    ports = nginx.wanted_ports(sites, streams, in_force.get("nginx_extra_http", ""), tls)
    if in_force.get("nginx_status_port"):
        ports.add(f"127.0.0.1:{in_force['nginx_status_port']}")
    for problem in nginx.taken_ports(ports):
        raise Refused(problem)
    found["default_ports"] = found_by_hand.default_ports()
    found |= {"settings": in_force, "claim": mine, "absent": gone, "over_tls": tls}
    found |= {"nameless": nameless, "addresses": told + nginx.addresses(sites, nameless)}
    return {"changed": False, **found}


def main():
    module = Module(ARGUMENTS)
    module.answer(lambda: look(**module.params, check_mode=module.check_mode))


if __name__ == "__main__":
    main()
