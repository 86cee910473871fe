"""Read and change entries of a vault. plugins/modules/vault_entries.py documents it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleError
from ansible.parsing.yaml.dumper import AnsibleDumper
from ansible.plugins.action import ActionBase
from ansible_collections.carafe.stack.plugins.module_utils.files import write


class ActionModule(ActionBase):
    """The vault is the control machine's; its secrets are those that this run was started with."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _, options = self.validate_argument_spec(
            {
                "path": {"type": "path", "required": True},
                "entries": {"type": "dict", "default": {}, "no_log": False},
            }
        )
        # A link stays one.
        path, library = Path(options["path"]).resolve(), self._loader._vault
        try:
            text, name, secret = library.decrypt_and_get_vault_id(path.read_bytes())
            before = yaml.safe_load(text) or {}
        except (OSError, AnsibleError, yaml.YAMLError) as error:
            return {"failed": True, "msg": f"The vault {path} cannot be read: {error}"}
        after = before | options["entries"]
        if before != after and not self._task.check_mode:
            text = yaml.dump(
                after, Dumper=AnsibleDumper, allow_unicode=True, sort_keys=False, width=10_000
            )
            # With the secret that it had, whichever of several that is.
            write(path, library.encrypt(text, secret, name).decode(), 0o600)
        return {"changed": before != after, "entries": after}
