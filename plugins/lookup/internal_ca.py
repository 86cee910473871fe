"""A new private CA, for a vault."""

from __future__ import annotations

DOCUMENTATION = """
name: internal_ca
short_description: Make a private CA for the servers of a stack
description:
  - Returns the certificate of a new private CA and its key, in PEM, as the role C(internal_tls)
    takes them. Each use makes another one, so keep it, in a vault.
author: [Carafe (@carafe)]
"""

EXAMPLES = """
- name: Write a CA, for a vault
  ansible.builtin.copy:
    content: "{{ {'vault_internal_ca_key': lookup('carafe.stack.internal_ca')} | to_nice_yaml }}"
    dest: vault.yml
    mode: "0600"
"""

RETURN = """
_raw:
  description: One text, with the certificate and the key.
  type: list
  elements: str
"""

from typing import Any

from ansible.plugins.lookup import LookupBase

from ..plugin_utils.authority import Authority


class LookupModule(LookupBase):
    """It takes no terms."""

    def run(self, terms: list[Any], variables: dict[str, Any] | None = None, **_: Any) -> list[str]:
        return [Authority.make().text()]
