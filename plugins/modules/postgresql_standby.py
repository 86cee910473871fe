#!/usr/bin/python
"""A PostgreSQL that follows another one, and takes its place."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_standby
short_description: Have a PostgreSQL follow another one, or take its place
description:
  - V(copied) brings the data of a primary to a server that is to be its standby. Data that are the
    primary's past go on from where they are; others are copied anew. What the primary does not have
    is kept aside beside the new data. A server with databases of its own, or one that runs as a
    primary, is refused unless O(replace) says so. A copy that was cut short is begun anew.
  - V(fenced) stops a server that was the primary and keeps systemd from starting it, at a boot too.
    It ends cleanly, by which a standby that streams gets all that it has written.
  - V(promoted) lets a standby be the primary, and says what is missing of what the former one has
    written. One that still answers is not taken the place of, unless O(anyway) says so.
author: [Carafe (@carafe)]
options:
  state:
    description: What is to be.
    type: str
    required: true
    choices: [copied, fenced, promoted]
  version:
    description: Major version of the cluster.
    type: str
    required: true
  cluster:
    description: Name of the cluster.
    type: str
    default: main
  primary:
    description: Address of the primary.
    type: str
    default: ""
  primary_port:
    description: Port of the primary.
    type: int
    default: 5432
  standby_name:
    description: Name of this server, after which its slot is named.
    type: str
    default: ""
  standbys:
    description: Servers that follow this one once it is the primary.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the server.
        type: str
        required: true
      address:
        description: Address of the server.
        type: str
  replication_user:
    description: Database role as which a standby comes.
    type: str
    default: replicator
  replication_password:
    description: Its password.
    type: str
  replication_trusted:
    description:
      - File with the authority by whose certificate the primary proves who it is. Without one, the
        connection is encrypted, and the password is given to nobody who does not know it.
    type: str
    default: ""
  replace:
    description:
      - Whether databases that are no copy of the primary's are kept aside, in a folder beside the
        new data. Without it they are refused.
    type: bool
    default: false
  former:
    description:
      - Position at which the former primary has ended, as V(fenced) returns it, or has been seen.
    type: str
    default: ""
  anyway:
    description: Whether to promote although the former primary may still run.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: Says what would be done.
"""

EXAMPLES = r"""
- name: Stop the former primary for good
  carafe.stack.postgresql_standby:
    state: fenced
    version: "17"
  become: true
  register: former
  delegate_to: one

- name: Have its standby be the primary
  carafe.stack.postgresql_standby:
    state: promoted
    version: "17"
    former: "{{ former.position }}"
  become: true
"""

RETURN = r"""
changes:
  description: What was changed, or would be, a sentence for each.
  type: list
  elements: str
  returned: success
  sample: [copy the data of 10.0.0.10]
position:
  description: Position in the log at which the server has ended, empty where that is not known.
  type: str
  returned: with V(fenced)
missing:
  description: What is missing of what the former primary has written, in words.
  type: str
  returned: with V(promoted)
"""

from ansible_collections.carafe.stack.plugins.module_utils.module import (
    Module,
    choice,
    options,
)

from ..module_utils import postgresql_standby as standby
from ..module_utils.postgresql_server import Server, need_psycopg2, report

ARGUMENTS = {
    "state": choice("copied", "fenced", "promoted", required=True),
    "version": {"type": "str", "required": True},
    **options(cluster="main", replace=False, former="", anyway=False),
    **standby.ARGUMENTS,
}


def answer(module: Module) -> dict:
    given, check = module.params, module.check_mode
    server = Server(given["version"], given["cluster"])
    if given["state"] == "fenced":
        changes, position = standby.fence(server, check)
        return {**report(changes), "position": position}
    if check and not server.is_installed():
        missing = {"missing": ""} if given["state"] == "promoted" else {}
        return {**report([f"copy the data of {given['primary']}"]), **missing}
    need_psycopg2()
    if given["state"] == "copied":
        return report(standby.copied(server, given, check))
    changes, missing = standby.promoted(server, given, check)
    return {**report(changes), "missing": missing}


def main() -> None:
    module = Module(ARGUMENTS)
    module.answer(answer, module)


if __name__ == "__main__":
    main()
