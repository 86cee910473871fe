"""How well a thing is that somebody looks after: green, yellow or red, in words, with what to do.

Used by modules, and by programs that run without Ansible.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

GREEN, YELLOW, RED = LEVELS = ("green", "yellow", "red")
MINUTE, HOUR, DAY = 60, 3600, 86400


@dataclass(frozen=True)
class Row:
    """One thing that was looked at.

    ``next`` is a command: one that begins with ansible-playbook is for the control machine, any
    other one is for root on the server. ``app`` is '' for what is the server's. ``numbers`` are
    what is known of it in numbers, by the names of the metrics, and ``labels`` of which of them.
    """

    what: str
    level: str
    says: str
    next: str = ""
    app: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict, compare=False)
    labels: Mapping[str, str] = field(default_factory=dict, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return what people are shown."""
        return {name: getattr(self, name) for name in ("what", "level", "says", "next", "app")}


def worst(levels: Iterable[str]) -> str:
    """Return the worst of some levels, green of none."""
    return max(levels, key=LEVELS.index, default=GREEN)


def above(value: float, yellow: float, red: float) -> str:
    """Return the level of what is the worse the more it is."""
    return RED if value >= red else YELLOW if value >= yellow else GREEN


def below(value: float, yellow: float, red: float) -> str:
    """Return the level of what is the worse the less it is."""
    return RED if value <= red else YELLOW if value <= yellow else GREEN


def span(seconds: float) -> str:
    """Return a length of time as people say it."""
    for size, unit in ((DAY, "d"), (HOUR, "h"), (MINUTE, "min")):
        if abs(seconds) >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def clock(seconds: float) -> str:
    """Return a point in time as people write it, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
