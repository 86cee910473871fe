"""Which major version of PostgreSQL each release of Debian has."""

from __future__ import annotations

DOCUMENTATION = """
name: postgresql_versions
short_description: Major versions of PostgreSQL by release of Debian
description:
  - Returns which major version of PostgreSQL each release of Debian has, by the release's major
    version.
author: [Carafe (@carafe)]
"""

EXAMPLES = """
- name: Tell what Debian 13 has
  ansible.builtin.debug:
    msg: "{{ lookup('carafe.stack.postgresql_versions')['13'] }}"
"""

RETURN = """
_raw:
  description: One dictionary, V(15) for V(12) for instance.
  type: list
  elements: dict
"""

from typing import Any

from ansible.plugins.lookup import LookupBase
from ansible_collections.carafe.stack.plugins.module_utils.found import POSTGRESQL_OF_DEBIAN


class LookupModule(LookupBase):
    """Ansible makes it anew for each query."""

    def run(
        self, terms: list[Any], variables: dict[str, Any] | None = None, **_: Any
    ) -> list[dict[str, str]]:
        return [dict(POSTGRESQL_OF_DEBIAN)]
