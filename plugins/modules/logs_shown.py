"""Documentation of an action that runs on the control machine: plugins/action/logs_shown.py."""

DOCUMENTATION = r"""
module: logs_shown
short_description: Show the logs of all servers, merged by time, and follow them
description:
  - >-
    Shows what M(carafe.stack.logs) has read on each server of the play, by time, each entry with
    its server and who has written it.
  - >-
    With O(follow), each server is asked again and again, and what it has is shown as it comes. As
    many servers at a time as Ansible has forks.
options:
  found:
    description: Name of the variable in which the result of M(carafe.stack.logs) was registered.
    type: str
    required: true
  follow:
    description: Whether to go on.
    type: bool
    default: false
  minutes:
    description: How long to follow. Ctrl-C ends it before.
    type: int
    default: 60
  options:
    description: What M(carafe.stack.logs) was asked for.
    type: dict
    default: {}
author: [Carafe (@carafe)]
"""

EXAMPLES = r"""
- name: Read the logs
  carafe.stack.logs:
    app: shop
  register: found

- name: Show them
  carafe.stack.logs_shown:
    found: found
"""

RETURN = r"""
shown:
  description: How many entries were shown.
  type: int
  returned: success
"""
