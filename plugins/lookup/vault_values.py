"""The values of all variables that a vault has, by their names."""

from __future__ import annotations

DOCUMENTATION = """
name: vault_values
short_description: Values of the variables that are named as those of a vault
description:
  - Returns the texts among the variables whose names begin with C(vault_).
  - >-
    A text that is no template, or that names something which is not there, is left out: whatever
    uses it says so, and what does not use it does not mind.
author: [Carafe (@carafe)]
"""

EXAMPLES = """
- name: What must not lie open
  ansible.builtin.set_fact:
    app_secrets: "{{ query('carafe.stack.vault_values') }}"
"""

RETURN = """
_raw:
  description: The texts, none of them empty.
  type: list
  elements: str
"""

from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase


class LookupModule(LookupBase):
    """Ansible makes it anew for each query."""

    def run(self, terms: list[Any], variables: dict[str, Any] | None = None, **_: Any) -> list[str]:
        found = []
        for name in sorted(x for x in variables or {} if x.startswith("vault_")):
            try:
                value = self._templar.template(variables[name])
                if isinstance(value, str) and value:
                    found.append(value)
            except AnsibleError:
                continue
        return found
