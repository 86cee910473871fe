"""What several owners, each an app for instance, claim of one server.

A claim is a file of its owner's, /etc/carafe/<role>.d/<owner>.json.

Whoever applies the claims holds their lock from reading them until they are in force:

    with claims.locked(folder, check):
        everybody = claims.read(folder, owner, mine)
        problems = claims.conflicts(everybody, folder, ["fail2ban_seconds"])
        …
        claims.claim(folder, owner, mine, check)
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .files import read as read_file
from .files import write


class Unreadable(Exception):
    """The claim of another owner that cannot be read; says what to do."""


@contextlib.contextmanager
def locked(folder: Path, check: bool = False) -> Iterator[None]:
    """Make the folder, and hold its claims. With ``check`` nothing is made."""
    if check:
        yield
        return
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read(folder: Path, owner: str, data: Any) -> dict[str, Any]:
    """Return all claims by their owner, with ``data`` as that of ``owner``; None is no claim."""
    claims = {} if data is None else {owner: data}
    for path in folder.glob("*.json"):
        if path.stem != owner:
            try:
                claims[path.stem] = json.loads(path.read_text())
            except ValueError:
                raise Unreadable(
                    f"{path} holds what {path.stem} claims of this server, and cannot be read. Run"
                    f" the playbook of {path.stem}, which writes it again, or remove the file where"
                    f" {path.stem} is gone from the server."
                ) from None
    return dict(sorted(claims.items()))


def claim(folder: Path, owner: str, data: Any, check: bool = False) -> bool:
    """Write an owner's claim, or remove it where it is None; return whether that is a change."""
    path = folder / f"{owner}.json"
    if text(data) == (read_file(path) or ""):
        return False
    if not check and data is None:
        path.unlink()
    elif not check:
        write(path, text(data))
    return True


def text(data: Any) -> str:
    """Return a claim as its file has it, nothing for None."""
    return "" if data is None else json.dumps(data, indent=2) + "\n"


def conflicts(
    claims: dict[str, dict], folder: Path, names: Iterable[str] | None = None
) -> list[str]:
    """Return a sentence for each of these names, or of all, that two claims state differently."""
    found = []
    for name in dict.fromkeys(name for data in claims.values() for name in (names or data)):
        stated = {owner: data[name] for owner, data in claims.items() if name in data}
        first = next(iter(stated), None)
        other = next((owner for owner in stated if stated[owner] != stated[first]), None)
        if other is not None:
            found.append(
                f"{name} is {stated[first]!r} for {first} and {stated[other]!r} for {other}, and"
                " this server has it once. State it in the inventory of one of them only, and run"
                " the playbook of the other first; where one is gone from the server, remove its"
                f" file from {folder}."
            )
    return found
