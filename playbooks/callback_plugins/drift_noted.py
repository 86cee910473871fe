"""Note what a whole run of site has come to, for the screen of the status.

Ansible loads what is in callback_plugins beside a playbook by itself, for a clone and for the
installed collection alike. For any other playbook of this folder it does nothing.
"""

from __future__ import annotations

DOCUMENTATION = """
name: drift_noted
type: aggregate
short_description: Note how many tasks of site have changed a server, or would have
description:
  - Counts at the end of C(carafe.stack.site), for each server, and keeps it on this machine, where
    M(carafe.stack.status_report) reads it. With C(--check) that is drift.
  - A run that leaves tasks out, by C(--tags) for instance, says nothing of the rest; neither does
    one that has failed on a server.
author: [Carafe (@carafe)]
"""

from typing import Any

from ansible import context
from ansible.plugins.callback import CallbackBase
from ansible_collections.carafe.stack.plugins.plugin_utils import drift

# The play that brings the servers to what the inventory says; playbooks/stack.yml has it.
PLAY = "The stack"
# What leaves tasks out, and what it is where it leaves none out.
WHOLE = {"tags": ("all",), "skip_tags": (), "start_at_task": None, "step": False}


class CallbackModule(CallbackBase):
    """It waits for the end of a run."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "drift_noted"

    def __init__(self) -> None:
        super().__init__()
        self.servers: set[str] = set()

    def v2_playbook_on_play_start(self, play: Any) -> None:
        asked = context.CLIARGS
        whole = all((asked.get(x) or none) == none for x, none in WHOLE.items())
        if play.get_name() == PLAY and whole:
            manager = play.get_variable_manager()
            self.servers = {x.name for x in manager._inventory.get_hosts(play.hosts)}

    def v2_playbook_on_stats(self, stats: Any) -> None:
        found = {x: stats.summarize(x) for x in self.servers & set(stats.processed)}
        well = {
            name: summary["changed"]
            for name, summary in found.items()
            if not (summary["failures"] or summary["unreachable"])
        }
        if not well:
            return
        try:
            drift.note(list(context.CLIARGS["inventory"]), well, bool(context.CLIARGS["check"]))
        except OSError as error:
            self._display.warning(f"What the status says of drift is not noted: {error}")
