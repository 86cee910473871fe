"""What several owners, each an app for instance, claim of one server.

A claim is a file of its owner's, /etc/carafe/<role>.d/<owner>.json.

Whoever applies the claims holds their lock from reading them until they are in force:

    with claims.locked(folder, check):
        everybody = claims.agreed(folder, owner, mine)
        …
        claims.claim(folder, owner, mine, check)
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from . import files
from .commands import Failure, Refused


@contextlib.contextmanager
def locked(folder: Path, check: bool = False) -> Iterator[None]:
    """Make the folder, and hold its claims. With ``check`` nothing is made."""
    if check:
        yield
        return
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    with files.locked(folder):
        yield


def read(folder: Path, owner: str, data: Any) -> dict[str, Any]:
    """Return all claims by their owner, with ``data`` as that of ``owner``; None is no claim."""
    claims = {} if data is None else {owner: data}
    for path in folder.glob("*.json"):
        if path.stem != owner:
            try:
                claims[path.stem] = json.loads(path.read_text())
            except ValueError:
                raise Failure(
                    f"{path} holds what {path.stem} claims of this server, and cannot be read. Run"
                    f" the playbook of {path.stem}, which writes it again, or remove the file where"
                    f" {path.stem} is gone from the server."
                ) from None
    return dict(sorted(claims.items()))


def stored(folder: Path, owner: str) -> Any | None:
    """Return the claim that an owner has there, None where there is none that can be read."""
    try:
        return json.loads((folder / f"{owner}.json").read_text())
    except (FileNotFoundError, ValueError):
        return None


def claim(folder: Path, owner: str, data: Any, check: bool = False, mode: int = 0o644) -> bool:
    """Write an owner's claim, or remove it where it is None; return whether that is a change."""
    path = folder / f"{owner}.json"
    if text(data) == (files.read(path) or ""):
        return False
    if not check and data is None:
        path.unlink()
    elif not check:
        files.write(path, text(data), mode)
    return True


def left(folder: Path, owner: str, check: bool = False) -> dict[str, Any] | None:
    """Return a module's result for an owner that leaves, where nothing is to be composed anew.

    That is where it claims nothing, and where it is the last one: then its claim goes, and the
    server stays as it is, with its ways in. None is where there are others.
    """
    with locked(folder, check or not folder.is_dir()):
        path = folder / f"{owner}.json"
        if not path.exists():
            return {"changed": False, "changes": []}
        if any(x != path for x in folder.glob("*.json")):
            return None
        claim(folder, owner, None, check)
        return {"changed": True, "changes": [f"remove {path}"]}


def text(data: Any) -> str:
    """Return a claim as its file has it, nothing for None."""
    return "" if data is None else json.dumps(data, indent=2) + "\n"


def conflicts(stated: Mapping[str, Mapping[str, Any]], folder: Path) -> Iterator[str]:
    """Yield a sentence for each name that two owners state differently."""
    for name in dict.fromkeys(name for data in stated.values() for name in data):
        values = {owner: data[name] for owner, data in stated.items() if name in data}
        first = next(iter(values))
        other = next((owner for owner in values if values[owner] != values[first]), None)
        if other is not None:
            yield (
                f"{name} is {values[first]!r} for {first} and {values[other]!r} for {other}, and"
                " this server has it once. State it in the inventory of one of them only, and run"
                " the playbook of the other first; where one is gone from the server, remove its"
                f" file from {folder}."
            )


def agreed(
    folder: Path, owner: str, mine: Any, once: Callable[[Any], Mapping[str, Any]] = dict
) -> dict[str, Any]:
    """Return all claims by their owner, as read() does, once no two contradict each other.

    ``once`` returns what a claim states of what the server has only once.
    """
    everybody = read(folder, owner, mine)
    if found := list(conflicts({k: once(x) for k, x in everybody.items()}, folder)):
        raise Refused(" ".join(found))
    return everybody


def stated(
    values: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = ""
) -> dict[str, Any]:
    """Return what an owner states: nothing of what is as by default, so that another one may.

    The order of a list says nothing.
    """

    def ordered(value: Any) -> Any:
        return sorted(set(value)) if isinstance(value, list) else value

    return {
        f"{prefix}{name}": ordered(values[name])
        for name, default in defaults.items()
        if ordered(values[name]) != ordered(default)
    }


def merged(everybody: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what all claims state together."""
    return {name: value for claimed in everybody for name, value in claimed.items()}
