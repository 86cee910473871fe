"""Read another environment, and hand on what opens its backups.

plugins/modules/backup_restore.py documents it. No variable, and no result, ever has its secrets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from ..plugin_utils import environments


class ActionModule(ActionBase):
    """The module on the server gets what the control machine alone can read."""

    _supports_check_mode = True

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        variables, sent = task_vars or {}, dict(self._task.args)
        source = sent.pop("source", None) or {}
        if source.get("environment"):
            own = variables.get("ansible_inventory_sources") or []
            project = Path(source["project"])
            path = environments.folder_of(project, source["environment"])
            environments.check(path, source["allowed"], own)
            masks = environments.masks(project, source["masks"])
            found = environments.source(self._loader, self._templar, path, sent["owner"])
            sent["source"] = {**source, **found, "masks": masks}
        return self._execute_module(
            module_name="carafe.stack.backup_restore", module_args=sent, task_vars=task_vars
        )
