#!/usr/bin/python
"""Look at a server and at all apps on it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: status
short_description: Look at a server and at all apps on it
description:
  - >-
    Returns all that is to be seen of a server and of the apps on it, each thing with a level, what
    it is in words, and the command that comes next where it is not green.
  - >-
    Of an app, that is what serves, how its last run ended, its slots, background workers and
    schedules, and whether it is in maintenance; of the server, backups, PostgreSQL, units,
    certificates, disks, memory, upgrades, restarts that are due, the clock, bans and alerts.
  - >-
    It changes nothing and asks nobody outside of the server. What cannot be looked at is yellow,
    and hides nothing else.
author: [Carafe (@carafe)]
attributes:
  check_mode:
    description: It changes nothing.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
"""

EXAMPLES = r"""
- name: Look at each server
  carafe.stack.status:
  register: found
"""

RETURN = r"""
rows:
  description: What was looked at.
  type: list
  elements: dict
  returned: success
  contains:
    what:
      description: What it is.
      type: str
    app:
      description: App that it is of, empty for what is the server's.
      type: str
    level:
      description: How well it is, V(green), V(yellow) or V(red).
      type: str
    says:
      description: What is to be seen, in words.
      type: str
    next:
      description: >-
        What to run next, empty where it is green. A command that begins with C(ansible-playbook) is
        for the control machine, any other one for root on the server.
      type: str
  sample:
    - {what: slot 0, app: shop, level: green, says: "healthy, up for 3 d", next: ""}
"""

import time

from ansible_collections.carafe.stack.plugins.module_utils.module import Module

from ..module_utils import alerts, status


def look() -> dict:
    now = time.time()
    more = [("", "alerts", lambda: alerts.rows(now))]
    rows = status.look(status.history(), now, more)
    return {"changed": False, "rows": [x.to_dict() for x in rows]}


def main() -> None:
    module = Module({})
    module.answer(look)


if __name__ == "__main__":
    main()
