#!/usr/bin/python
"""Read the logs of an app and of what serves it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: logs
short_description: Read the logs of an app and of what serves it, merged by time
description:
  - >-
    Returns what the slots, the background workers, nginx, PostgreSQL and supervisord of a server
    have written, by time. A line without a time belongs to the one before it.
  - Of a database that fails over it has what etcd and Patroni have written to the journal, without
    Patroni's word, every few seconds, that there is nothing to do.
  - It changes nothing. M(carafe.stack.logs_shown) shows what all servers have, and follows it.
options:
  app:
    description: App whose slots and workers are read, all of the server for none.
    type: str
    default: ""
  root:
    description: Folder of that app, which knows when O(release) has served.
    type: path
    default: /srv
  sources:
    description:
      - Which of V(app), V(worker), V(nginx), V(database) and V(supervisor), all for none.
      - Of a database that fails over also V(etcd) and V(patroni).
    type: list
    elements: str
    default: []
  since:
    description: From when on, as C(date) of GNU takes it, for instance C(1 hour ago).
    type: str
    default: ""
  until:
    description: Until when.
    type: str
    default: ""
  grep:
    description: Regular expression of Python's, which is in the entry.
    type: str
    default: ""
  request:
    description: Id of a request, which is in the entry.
    type: str
    default: ""
  release:
    description: Release; only what was written while it served.
    type: str
    default: ""
  lines:
    description: How many entries, the last ones.
    type: int
    default: 200
  cursor:
    description: What an earlier call has returned. Only what came after that.
    type: dict
    default: {}
  wait:
    description: Seconds to wait for something after O(cursor).
    type: int
    default: 0
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
- name: Read what went wrong in the last hour
  carafe.stack.logs:
    app: shop
    since: 1 hour ago
    grep: ERROR|Traceback
"""

RETURN = r"""
entries:
  description: What was written.
  type: list
  elements: dict
  returned: success
  contains:
    at:
      description: When, in seconds since the epoch.
      type: float
    source:
      description: Who has written it.
      type: str
    text:
      description: What.
      type: str
  sample:
    - {at: 1800000000.5, source: shop/0, text: "[2027-01-15 08:00:00 +0000] [7] [INFO] Booting"}
cursor:
  description: How far each log was read.
  type: dict
  returned: success
"""

from ansible_collections.carafe.stack.plugins.module_utils.module import Module, options

from ..module_utils import logs


def main() -> None:
    texts = dict.fromkeys(("app", "since", "until", "grep", "request", "release"), "")
    module = Module(
        {
            "root": {"type": "path", "default": "/srv"},
            **options(**texts, sources=[], lines=200, cursor={}, wait=0),
        }
    )
    module.answer(logs.run, module.params)


if __name__ == "__main__":
    main()
