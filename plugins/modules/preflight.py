"""Documentation of an action that runs on the control machine: plugins/action/preflight.py."""

DOCUMENTATION = r"""
module: preflight
short_description: Find what is wrong with an inventory before anything is changed on a server
description:
  - Renders all that the roles of each server take, as the roles will see it, and fails with all
    problems at once, each with the variable, the file and line that it is set in, and what to do.
  - Which roles a server gets is what C(stack_host_roles) says. What a role takes stands in its
    C(meta/argument_specs.yml), and what it refuses besides in C(meta/preflight.py).
  - Looks at all servers of the play, so it is run once. It never reports a change.
options:
  facts:
    description:
      - Name of the variable in which the result of M(carafe.stack.server_facts) was registered. A
        server that could not be reached is told from that, too.
    type: str
    required: true
author: [Carafe (@carafe)]
"""

EXAMPLES = r"""
- name: Learn what each server is
  carafe.stack.server_facts:
  register: preflight_facts
  # Both: the next task fails for it, for all servers at once.
  ignore_unreachable: true
  ignore_errors: true # the next task fails for it

- name: Check what the inventory says
  carafe.stack.preflight:
    facts: preflight_facts
  run_once: true
"""

RETURN = r"""
msg:
  description: All problems, with what to do about each, and the command to run again.
  returned: when there is a problem
  type: str
"""
