#!/usr/bin/python
"""Copy an app's data from another environment's backups."""

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_copy
short_description: Copy an app's data from another environment's backups
description:
  - V(plan) says what would be copied, and what it would replace. V(prepare) brings it beside what
    is live, masked; the stage V(switch) of M(carafe.stack.backup_restore) lets it take that place.
  - The other environment's inventory is read on the control machine. What opens its backups is on
    this server for the time of the copy alone, below C(/run), and its backups are only read.
author: [Carafe (@carafe)]
options:
  stage:
    description: What to do.
    type: str
    choices: [plan, prepare]
    required: true
  owner:
    description: Whose data it is.
    type: str
    required: true
  environment:
    description: Name of the other environment, the folder of its inventory.
    type: str
    required: true
  allowed:
    description: Environments whose data may come here.
    type: list
    elements: str
    default: []
  project:
    description: Folder of the project on the control machine.
    type: path
    required: true
  to:
    description: A time with its zone, or V(latest).
    type: str
    default: latest
  server:
    description: Which server's backups, where the place has those of several.
    type: str
    default: ""
  files:
    description: Whether the files come, too.
    type: bool
    default: true
  masks:
    description: Files of SQL in the project, in their order.
    type: list
    elements: str
    default: []
  unmasked:
    description: Whether the data may come as they are.
    type: bool
    default: false
  source:
    description: Where the other environment's backups are. The control machine fills it in.
    type: dict
    options:
      environment: {description: Its name., type: str}
      repository: {description: Place of the backups., type: str}
      key: {description: What they are encrypted with., type: str}
      s3_endpoint: {description: Host of the store., type: str}
      s3_region: {description: Region of the bucket., type: str}
      s3_key: {description: Name of the key for the bucket., type: str}
      s3_secret: {description: The key for the bucket., type: str}
      s3_ca: {description: File with the store's authority., type: str}
      ssh_key: {description: Private key for a place by sftp., type: str}
      ssh_known_hosts: {description: Lines for it., type: list, elements: str}
      server: {description: Which server., type: str}
      files: {description: Whether the files come., type: bool}
  texts:
    description: What is in the masks. The control machine fills it in.
    type: list
    elements: dict
    default: []
    options:
      name: {description: Its file., type: str}
      sql: {description: Its text., type: str}
attributes:
  check_mode:
    description: Looks, changes nothing, and says what it would change.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
"""

EXAMPLES = r"""
- name: See what would be copied
  carafe.stack.backup_copy:
    stage: plan
    owner: shop
    environment: prod
    allowed: [prod]
    project: "{{ stack_project }}"
    masks: [masks/people.sql]
  become: true
"""

RETURN = r"""
lines:
  description: What would be copied, a line each.
  type: list
  elements: str
  returned: for the stage plan
changes:
  description: What was changed, a sentence for each.
  type: list
  elements: str
  returned: success
"""

from ansible_collections.carafe.stack.plugins.module_utils.module import (
    Module,
    choice,
    entries,
    options,
    without_default,
)

from ..module_utils import backup_copy
from ..module_utils.postgresql_server import report

SECRETS = without_default("key", "s3_secret", "ssh_key", no_log=True)
SOURCE = {
    **without_default("environment", "repository", "s3_endpoint", "s3_region", "s3_ca", "server"),
    **without_default("s3_key", no_log=False),
    **SECRETS,
    "ssh_known_hosts": {"type": "list", "elements": "str"},
    "files": {"type": "bool"},
}
ARGUMENTS = {
    "stage": choice("plan", "prepare", required=True),
    **without_default("owner", "environment", required=True),
    "project": {"type": "path", "required": True},
    **options(allowed=[], to="latest", server="", files=True, masks=[], unmasked=False),
    "source": {"type": "dict", "options": SOURCE},
    "texts": entries({"name": {"type": "str"}, "sql": {"type": "str", "no_log": True}}, default=[]),
}


def work(given: dict, check: bool) -> dict:
    owner, source, to = given["owner"], given["source"], given["to"]
    if given["stage"] == "plan" or check:
        found = backup_copy.plan(owner, source, to)
        said = backup_copy.lines(found, source, given["masks"])
        done = [] if given["stage"] == "plan" else [f"bring the data of {given['environment']}"]
        return {"lines": said, **report(done)}
    return report(backup_copy.bring(owner, source, given["texts"], to))


def main() -> None:
    module = Module(ARGUMENTS)
    module.answer(work, module.params, module.check_mode)


if __name__ == "__main__":
    main()
