"""Read another environment, and hand on what opens its backups.

plugins/modules/backup_copy.py documents it. No variable, and no result, ever has its secrets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from ..modules.backup_copy import ARGUMENTS
from ..plugin_utils import environments


class ActionModule(ActionBase):
    """The module on the server gets what the control machine alone can read."""

    _supports_check_mode = True

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        variables = task_vars or {}
        _, given = self.validate_argument_spec(ARGUMENTS)
        project, name = Path(given["project"]), given["environment"]
        path = environments.folder_of(project, name)
        own = variables.get("ansible_inventory_sources") or []
        if why := environments.refusal(name, path, given["allowed"], own):
            return {"failed": True, "msg": why}
        masks = environments.texts(project, given["masks"], given["unmasked"])
        values = environments.variables(self._loader, path)
        source = environments.source(self._templar, values, given["owner"], name, path)
        source |= {"server": given["server"], "files": given["files"]}
        return self._execute_module(
            module_name="carafe.stack.backup_copy",
            module_args={**given, "source": source, "texts": masks},
            task_vars=task_vars,
        )
