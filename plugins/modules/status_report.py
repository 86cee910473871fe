"""Documentation of an action that runs on the control machine: plugins/action/status_report.py."""

DOCUMENTATION = r"""
module: status_report
short_description: Put together what was seen of all servers, on one screen
description:
  - >-
    Makes one screen, or one line of JSON, of what M(carafe.stack.status) has seen of each server of
    the play. A server that cannot be reached, or looked at, is on it in red; one that is away, as
    C(stack_state) says, in yellow.
  - >-
    In the playbook C(carafe.stack.status) a callback shows it at the end, below Ansible's own
    lines, and ends the run with 0 where all is green, 1 for yellow and 2 for red.
  - Looks at all servers of the play, so it is run once. It never reports a change.
options:
  found:
    description: Name of the variable in which the result of M(carafe.stack.status) was registered.
    type: str
    required: true
  format:
    description: Whether it is for people or for a machine.
    type: str
    choices: [screen, json]
    default: screen
  file:
    description: File on the control machine that the JSON is written to as well. Empty writes none.
    type: str
    default: ""
author: [Carafe (@carafe)]
"""

EXAMPLES = r"""
- name: Look at each server
  carafe.stack.status:
  register: found
  # Both: the next task has it in red, for all servers at once.
  ignore_unreachable: true
  ignore_errors: true # the next task has it in red

- name: Put it together
  carafe.stack.status_report:
    found: found
  run_once: true
"""

RETURN = r"""
level:
  description: The worst of all levels.
  type: str
  returned: success
  sample: yellow
screen:
  description: The lines, each with the level that it is coloured by, or none.
  type: list
  elements: list
  returned: success
"""
