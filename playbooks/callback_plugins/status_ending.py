"""Show the screen of the playbook status below all else, and end the run with its level.

Ansible loads what is in callback_plugins beside a playbook by itself, for a clone and for the
installed collection alike. For any other playbook of this folder it does nothing.
"""

from __future__ import annotations

DOCUMENTATION = """
name: status_ending
type: aggregate
short_description: Show what was seen of all servers, and end the run with its level
description:
  - Shows what M(carafe.stack.status_report) has put together, after Ansible's recap.
  - Ends C(ansible-playbook) with 0 where all is green, 1 for yellow and 2 for red. Tasks have no
    way to that; one that fails ends it with 2.
author: [Carafe (@carafe)]
"""

from typing import Any

from ansible.plugins.callback import CallbackBase

ACTION = "carafe.stack.status_report"
ENDS = {"green": 0, "yellow": 1, "red": 2}
COLOURS = {"green": "green", "yellow": "yellow", "red": "bright red"}


class CallbackModule(CallbackBase):
    """It waits for the result of one action."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "status_ending"

    def __init__(self) -> None:
        super().__init__()
        self.report: dict[str, Any] = {}

    def v2_runner_on_ok(self, result: Any) -> None:
        if result.task.resolved_action == ACTION:
            self.report = result.result

    def v2_playbook_on_stats(self, stats: Any) -> None:
        if not self.report:
            return
        for text, level in self.report["screen"]:
            self._display.display(text, color=COLOURS.get(level))
        if status := ENDS[self.report["level"]]:
            # Above Exception, which Ansible takes for a mistake of the callback and goes on.
            raise SystemExit(status)
