"""Text of a file that several roles bring to servers, or one whose text another role writes."""

from __future__ import annotations

DOCUMENTATION = """
name: shared_file
short_description: Text of one of the collection's shared files
description:
  - Returns the text of files in C(plugins/files) of the collection, whichever role asks for it.
options:
  _terms:
    description: Names of the files.
    type: list
    elements: str
    required: true
author: [Carafe (@carafe)]
"""

EXAMPLES = """
- name: Write the hooks that gunicorn wants for ASGI
  ansible.builtin.copy:
    content: "{{ lookup('carafe.stack.shared_file', 'gunicorn_asgi.py') }}"
    dest: /etc/gunicorn/hooks.py
    mode: "0644"
"""

RETURN = """
_raw:
  description: The text of each.
  type: list
  elements: str
"""

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

FOLDER = Path(__file__).resolve().parents[1] / "files"


class LookupModule(LookupBase):
    """Ansible makes it anew for each query."""

    def run(self, terms: list[Any], variables: dict[str, Any] | None = None, **_: Any) -> list[str]:
        try:
            return [(FOLDER / term).read_text(encoding="utf-8") for term in terms]
        except OSError as error:
            raise AnsibleLookupError(f"{error.filename} cannot be read: {error.strerror}") from None
