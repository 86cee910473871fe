"""Put together what was seen of all servers. plugins/modules/status_report.py documents it."""

from __future__ import annotations

import os.path
import shlex
import time
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from ..module_utils import files
from ..plugin_utils import absences, drift, status_screen


class ActionModule(ActionBase):
    """It looks at what the servers have answered, and asks none of them."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _, options = self.validate_argument_spec(
            {
                "found": {"type": "str", "required": True},
                "format": {"type": "str", "choices": ["screen", "json"], "default": "screen"},
                "file": {"type": "str", "default": ""},
            }
        )
        variables = task_vars or {}
        hostvars = variables["hostvars"]
        now = time.time()
        known = drift.read(variables.get("ansible_inventory_sources") or [])
        servers = [
            status_screen.seen(host, hostvars.raw_get(host).get(options["found"]) or {})
            for host in variables["ansible_play_hosts_all"]
        ]
        for server in servers:
            server.rows.append(drift.row(known.get(server.host), now))
        servers += [status_screen.absent(x) for x in absences.away(variables["groups"], hostvars)]
        text = status_screen.to_json(servers)
        if options["file"]:
            try:
                files.write(Path(options["file"]).expanduser(), f"{text}\n", 0o600)
            except OSError as error:
                msg = f"status_file: {options['file']} cannot be written: {error.strerror}"
                return {"failed": True, "msg": f"{msg}. Name another one with -e status_file="}
        lines = status_screen.screen(servers, inventory(variables))
        return {
            "changed": False,
            "level": status_screen.level(servers),
            "screen": [(text, "")] if options["format"] == "json" else lines,
        }


def inventory(variables: dict[str, Any]) -> str:
    """Return the inventories of this run, as somebody types them."""
    words = []
    for source in variables.get("ansible_inventory_sources") or []:
        near = os.path.relpath(source) if Path(source).is_absolute() else source
        words += ["-i", source if near.startswith("..") else near]
    return shlex.join(words)
