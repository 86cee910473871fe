"""Says which inventory was probably meant, where none of the other plugins could read one."""

from __future__ import annotations

DOCUMENTATION = """
name: meant
short_description: Say which inventory was probably meant
description:
  - Reads no inventory. It is named last among C(enable_plugins), and says of a path that is not
    there, or that cannot be read, what is wrong with it.
author: [Carafe (@carafe)]
"""

EXAMPLES = """
# ansible.cfg
# [inventory]
# enable_plugins = host_list, script, auto, yaml, ini, toml, carafe.stack.meant
"""

import os
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin

from ..plugin_utils import inventories


class InventoryModule(BaseInventoryPlugin):
    """Fails, if it is asked at all."""

    NAME = "carafe.stack.meant"

    def verify_file(self, path: str) -> bool:
        return bool(self.complaint(path))

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        raise AnsibleParserError(self.complaint(path))

    def complaint(self, path: str) -> str:
        shown, current = Path(path), Path.cwd()
        if shown.is_relative_to(current):
            shown = Path(os.path.relpath(path, current))
        if not Path(path).exists():
            return inventories.missing(shown, current)
        return inventories.unreadable(shown) if Path(path).is_file() else ""
