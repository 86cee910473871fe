"""The sandbox of all that runs an app's code, for a unit's drop-in."""

from __future__ import annotations

DOCUMENTATION = """
name: sandbox
short_description: Sandbox of all that runs an app's code
description:
  - Returns the lines for C([Service]) of a unit, with the reason of each in a comment.
author: [Carafe (@carafe)]
"""

EXAMPLES = """
- name: Put a unit into the sandbox that apps have
  carafe.stack.files:
    files:
      - content: "[Service]\\n{{ lookup('carafe.stack.sandbox') }}"
        dest: /etc/systemd/system/shop.service.d/sandbox.conf
"""

RETURN = """
_raw:
  description: The lines.
  type: list
  elements: str
"""

from typing import Any

from ansible.plugins.lookup import LookupBase
from ansible_collections.carafe.stack.plugins.module_utils.sandbox import SANDBOX


class LookupModule(LookupBase):
    """Ansible makes it anew for each query."""

    def run(self, terms: list[Any], variables: dict[str, Any] | None = None, **_: Any) -> list[str]:
        return [SANDBOX]
