"""Show the logs of all servers. plugins/modules/logs_shown.py documents it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ..module_utils.words import escaped

MODULE = "carafe.stack.logs"
WAIT = 10  # seconds that a server waits for something new, so that a trip brings some


def merged(found: Mapping[str, Iterable[Mapping[str, Any]]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the entries of all servers by time, each with its server."""
    entries = [(host, entry) for host, some in found.items() for entry in some]
    return sorted(entries, key=lambda x: x[1]["at"])


def lines(host: str, entry: Mapping[str, Any]) -> Iterator[str]:
    """Yield an entry for people; its further lines are below its first."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(entry["at"]))
    begin = f"{at} {host} {entry['source']} | "
    for number, line in enumerate(escaped(str(entry["text"])).split("\n")):
        yield f"{begin if not number else ' ' * (len(begin) - 2) + '| '}{line}"


class ActionModule(ActionBase):
    """The first server's shows what all have; with follow, each goes on with its own."""

    _supports_check_mode = True

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _, options = self.validate_argument_spec(
            {
                "found": {"type": "str", "required": True},
                "follow": {"type": "bool", "default": False},
                "minutes": {"type": "int", "default": 60},
                "options": {"type": "dict", "default": {}},
            }
        )
        variables = task_vars or {}
        hosts, here = variables["ansible_play_hosts"], variables["inventory_hostname"]
        hostvars = variables["hostvars"]
        found = {x: hostvars.raw_get(x).get(options["found"]) or {} for x in hosts}
        shown = 0
        if here == hosts[0]:
            everything = {x: y.get("entries") or [] for x, y in found.items()}
            # Of each server there are as many; of all together no more.
            for host, entry in merged(everything)[-int(options["options"].get("lines", 200)) :]:
                shown += self.show(host, entry)
        if options["follow"]:
            shown += self.follow(here, found[here], options, variables)
        return {"changed": False, "shown": shown}

    def follow(
        self, host: str, found: dict[str, Any], options: dict[str, Any], variables: dict[str, Any]
    ) -> int:
        cursor, shown = found.get("cursor") or {}, 0
        deadline = time.monotonic() + options["minutes"] * 60
        while cursor and (left := deadline - time.monotonic()) > 0:
            wait = min(WAIT, int(left) + 1)
            # What was asked for of the past says nothing of what comes.
            arguments = {**options["options"], "since": "", "cursor": cursor, "wait": wait}
            result = self._execute_module(
                module_name=MODULE, module_args=arguments, task_vars=variables
            )
            if result.get("failed") or result.get("unreachable"):
                Display().display(f"{host}: {result.get('msg')}", color="red")
                break
            cursor = result["cursor"]
            for entry in result["entries"]:
                shown += self.show(host, entry)
        return shown

    def show(self, host: str, entry: Mapping[str, Any]) -> int:
        for line in lines(host, entry):
            Display().display(line)
        return 1
