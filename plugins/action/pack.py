"""Pack an app's code on the control machine. plugins/modules/pack.py documents it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from ..module_utils.commands import Failure
from ..plugin_utils.pack import pack, pack_anew


class ActionModule(ActionBase):
    """Nothing goes to the server, in a dry run neither: it fills a cache of the control machine."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _, app = self.validate_argument_spec(
            {
                "source": {"type": "str", "choices": ["local", "git", "package"], "required": True},
                "path": {"type": "str"},
                "repository": {"type": "str"},
                "package": {"type": "str"},
                "version": {"type": "str"},
                "subdirectory": {"type": "str", "default": "."},
                "exclude": {"type": "list", "elements": "str", "default": []},
                "include": {"type": "list", "elements": "str", "default": []},
                "files": {"type": "list", "elements": "dict", "default": []},
                "requirements": {"type": "str", "default": ""},
                "override": {"type": "list", "elements": "str", "default": []},
                "installer": {"type": "str", "choices": ["uv", "pip"], "default": "uv"},
                "serving": {"type": "dict", "default": {}},
                "again": {"type": "str", "default": ""},
            }
        )
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "carafe")
        try:
            found = pack_anew(app, cache) if app["serving"] else pack(app, cache)
            return {"changed": False, **found}
        except Failure as error:
            command = f"run again: {app['again']}" if app["again"] else "run this again."
            nothing = f"Nothing was changed on a server. Mend that, and {command}"
            return {"failed": True, "msg": f"{error}\n{nothing}"}
