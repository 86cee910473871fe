"""Count the trips to the servers, task by task.

A trip is what has to go there and come back: a command, or a file that is sent or fetched. Each
worker of Ansible is a fork of the process that loads this, so that what is changed here before is
changed there too. Mitogen has ways of its own, which are not counted.
"""

from __future__ import annotations

import functools
import json
import os
import time
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase
from ansible.plugins.connection import ssh

DOCUMENTATION = """
name: trips
type: aggregate
short_description: count the trips to the servers
description:
  - Writes a line of JSON for each trip, and for each task, into the file that C(BENCH_TRIPS) names.
"""
WAYS = ("exec_command", "put_file", "fetch_file")
# The task that has begun last: a worker is forked for one, and keeps what this was then.
current = ""


def note(entry: dict[str, Any]) -> None:
    """Write a line, as a whole: several processes do."""
    with Path(os.environ["BENCH_TRIPS"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def counted(way: str) -> None:
    """Let each call of a way to the server be noted."""
    go = getattr(ssh.Connection, way)

    @functools.wraps(go)
    def trip(self: ssh.Connection, *words: Any, **options: Any) -> Any:
        began = time.monotonic()
        try:
            return go(self, *words, **options)
        finally:
            note({"trip": way, "task": current, "seconds": time.monotonic() - began})

    setattr(ssh.Connection, way, trip)


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "trips"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        for way in WAYS:
            counted(way)

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        global current
        current = task._uuid
        role = task._role.get_name() if task._role else ""
        note({"task": current, "name": task.get_name(), "role": role, "at": time.monotonic()})

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        self.v2_playbook_on_task_start(task, False)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        note({"end": True, "at": time.monotonic()})
