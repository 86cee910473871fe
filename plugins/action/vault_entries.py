"""Read and change entries of a vault. plugins/modules/vault_entries.py documents it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleError
from ansible.parsing.yaml.dumper import AnsibleDumper
from ansible.plugins.action import ActionBase
from ansible_collections.carafe.stack.plugins.module_utils.files import write


def dump(entries: dict[str, Any]) -> str:
    return yaml.dump(
        entries, Dumper=AnsibleDumper, allow_unicode=True, sort_keys=False, width=10_000
    )


def changed_text(text: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return the text of the vault: with its comments, where it only gets further entries."""
    if before.items() <= after.items():
        more = dump({name: value for name, value in after.items() if name not in before})
        longer = f"{text.rstrip()}\n{more}"
        try:
            if yaml.safe_load(longer) == after:
                return longer
        except yaml.YAMLError:
            pass
    return dump(after)


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
                "only_missing": {"type": "bool", "default": False},
            }
        )
        # A link stays one.
        path, library = Path(options["path"]).resolve(), self._loader._vault
        try:
            text, name, secret = library.decrypt_and_get_vault_id(path.read_bytes())
            before = yaml.safe_load(text) or {}
        except (OSError, AnsibleError, yaml.YAMLError) as error:
            return {"failed": True, "msg": f"The vault {path} cannot be read: {error}"}
        given = options["entries"]
        after = given | before if options["only_missing"] else before | given
        if before != after and not self._task.check_mode:
            text = changed_text(text.decode(), before, after)
            # With the secret that it had, whichever of several that is.
            write(path, library.encrypt(text, secret, name).decode(), 0o600)
        return {"changed": before != after, "entries": after}
