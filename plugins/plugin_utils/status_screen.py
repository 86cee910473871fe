"""What was seen of all servers, on one screen, or as JSON for a machine."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..module_utils.levels import GREEN, LEVELS, RED, YELLOW, Row, worst
from ..module_utils.words import escaped, one_line

Line = tuple[str, str]  # a text, and the level that colours it or ''
LOCAL = "ansible-playbook "
# What ansible-core 2.19 puts before a message.
FAILED = re.compile(r"^Task failed: (Module failed: )?")
DRIFT = "ansible-playbook carafe.stack.site --check"


@dataclass(frozen=True)
class Seen:
    """What was seen of one server."""

    host: str
    rows: list[Row]


def seen(host: str, result: Mapping[str, Any]) -> Seen:
    """Return what a server has answered; what has none, or failed, is a row in red."""
    if isinstance(rows := result.get("rows"), list) and not result.get("failed"):
        return Seen(host, [Row(**{k: escaped(str(v)) for k, v in x.items()}) for x in rows])
    why = one_line(FAILED.sub("", str(result.get("msg") or "it did not answer")))
    what = "connection" if result.get("unreachable") or not result else "status"
    return Seen(host, [Row(what, RED, why, f"{LOCAL}carafe.stack.preflight" if result else "")])


def absent(host: str) -> Seen:
    """Return what is to be seen of a server that is left out, since it is said to be away."""
    says = "it is absent, and left out: the inventory has stack_state for it"
    return Seen(host, [Row("server", YELLOW, says, f"{LOCAL}carafe.stack.site")])


def level(servers: list[Seen]) -> str:
    return worst(row.level for server in servers for row in server.rows)


def screen(servers: list[Seen], inventory: str = "") -> list[Line]:
    """Return the screen: each server with its apps, then what is to be done, the worst last."""
    rows = [row for server in servers for row in server.rows]
    width = max((len(row.what) for row in rows), default=0)
    lines: list[Line] = []
    for server in servers:
        lines += [("", ""), (server.host, "")]
        for app in sorted({row.app for row in server.rows}, key=lambda x: (x == "", x)):
            lines.append((f"  {app or 'the server'}", ""))
            for row in server.rows:
                if row.app == app:
                    text = f"    {row.level:<6}  {row.what:<{width}}  {row.says}"
                    lines.append((text.rstrip(), row.level))
    counts = ", ".join(f"{sum(x.level == y for x in rows)} {y}" for y in reversed(LEVELS))
    todo = list(to_do(servers, inventory))
    lines += [("", ""), *todo, *([("", "")] if todo else []), (counts, level(servers))]
    return [*lines, (f"Drift is looked for by: {with_inventory(DRIFT, inventory)}", "")]


def to_do(servers: list[Seen], inventory: str) -> Iterator[Line]:
    """Yield what is not green, with the command that comes next, the worst first."""
    found = [(row, x.host) for x in servers for row in x.rows if row.level != GREEN]
    for row, host in sorted(found, key=lambda x: -LEVELS.index(x[0].level)):
        of = f"{row.app} on {host}" if row.app else host
        yield f"{row.level:<6}  {of}: {row.what}: {row.says}", row.level
        if row.next.startswith(LOCAL):
            yield f"        {with_inventory(row.next, inventory)}", ""
        elif row.next:
            yield f"        on {host}: {row.next}", ""


def with_inventory(command: str, inventory: str) -> str:
    playbook, *more = command.removeprefix(LOCAL).split(" ", 1)
    return " ".join(x for x in (f"{LOCAL}{playbook}", inventory, *more) if x)


def to_json(servers: list[Seen], now: float | None = None) -> str:
    """Return all of it in one line."""
    data = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        "level": level(servers),
        "hosts": {x.host: [row.to_dict() for row in x.rows] for x in servers},
    }
    return json.dumps(data, ensure_ascii=False)
