"""Which moment of the past is meant, and whether it can be reached.

A moment is a time with its zone, the name of a restore point, ``before RELEASE``, or ``latest``.

Used by modules, and by programs that run without Ansible.
"""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Iterable, Mapping
from typing import Any

from .commands import Failure


@dataclasses.dataclass
class Target:
    """What is to be reached."""

    kind: str  # time, name or latest
    at: float  # seconds since the epoch; of a name, when it was made
    name: str = ""

    @property
    def words(self) -> list[str]:
        """Return pgBackRest's words for it."""
        if self.kind == "latest":
            return ["--type=default"]
        return [f"--type={self.kind}", f"--target={self.name or stamp(self.at)}"]


def stamp(at: float) -> str:
    """Return a moment as PostgreSQL takes it, and people read it."""
    moment = datetime.datetime.fromtimestamp(at, datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f").rstrip("0").rstrip(".") + "+00"


def shown(at: float | None) -> str:
    return "never" if at is None else stamp(int(at)) + ":00"


def parse(text: str, points: Iterable[Mapping[str, Any]], now: float) -> Target:
    """Return what a text means; refuse what has no zone, or is not known."""
    known = {x["name"]: x["at"] for x in points}
    if text == "latest":
        return Target("latest", now)
    if text.startswith("before "):
        wanted = text.removeprefix("before ").strip()
        named = [name for name in known if name.startswith(f"before-{wanted}")]
        if not wanted or not named:
            raise Failure(
                f"The books of the app have no release {wanted!r}, and no restore point is named"
                f" after it. {listed(known)} Or name a time: restore_to='{shown(now - 3600)}'"
            )
        return Target("name", known[named[-1]], named[-1])
    if text in known:
        return Target("name", known[text], text)
    try:
        moment = datetime.datetime.fromisoformat(zoned(text))
    except ValueError:
        raise Failure(
            f"restore_to is {text!r}, which is neither a time such as '{shown(now - 3600)}', nor"
            f" latest, nor a restore point. {listed(known)}"
        ) from None
    if moment.tzinfo is None:
        raise Failure(
            f"restore_to is {text!r}, and says no zone. Add one, such as '{text}+00:00' for UTC."
        )
    return Target("time", moment.timestamp())


def zoned(text: str) -> str:
    """Return a time with the zone as Python reads it: +00 is +00:00, Z and UTC are that, too."""
    text = text.strip()
    for end in (" UTC", "UTC", "Z"):
        if text.endswith(end):
            return f"{text.removesuffix(end)}+00:00"
    if len(text) > 19 and text[-3] in "+-" and text[-2:].isdecimal():
        return f"{text}:00"
    return text


def listed(known: Mapping[str, float]) -> str:
    if not known:
        return "There are no named points."
    names = sorted(known, key=lambda name: known[name])[-5:]
    return f"Named points are {', '.join(f'{x} ({shown(known[x])})' for x in names)}."


def check(target: Target, window: Mapping[str, Any], now: float | None = None) -> None:
    """Refuse what no backup reaches, with what can be reached."""
    now = time.time() if now is None else now
    oldest, newest = window["oldest"], window.get("newest") or now
    reach = f"Moments from {shown(oldest)} to {shown(newest)} can be reached."
    if oldest is None:
        raise Failure("There is no backup yet. Make one: the playbook backup.")
    if target.at < oldest:
        raise Failure(f"restore_to is before the first backup that is kept. {reach}")
    if target.kind == "latest" and window.get("lost"):
        raise Failure(
            f"The archive lacks {window['lost'][0]}, so the latest moment cannot be reached. Name"
            f" an earlier one, from {shown(oldest)} on: -e restore_to="
        )
    if target.kind == "time" and target.at > newest:
        raise Failure(f"restore_to is after the newest moment that is kept. {reach}")


def backup_before(backups: Iterable[Mapping[str, Any]], at: float) -> str:
    """Return the newest backup that was done at a moment, as a named point needs it."""
    done = [x for x in backups if x["timestamp"]["stop"] <= at]
    return max(done, key=lambda x: x["timestamp"]["stop"])["label"] if done else ""
