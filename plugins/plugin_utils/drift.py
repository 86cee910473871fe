"""What the last whole run of site has come to on each server, kept on the control machine.

A dry run says what differs from the inventory. After a run that went through, nothing does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible import constants

from ..module_utils import files
from ..module_utils.levels import GREEN, YELLOW, Row, span
from ..module_utils.words import one_line

WHAT = "drift"
NEXT = "ansible-playbook carafe.stack.site --check --diff"


def path(sources: Iterable[str]) -> Path:
    """Return where it is kept: a file for each inventory."""
    resolved = [x if "," in x else str(Path(x).resolve()) for x in sources]
    name = hashlib.sha256("\n".join(resolved).encode()).hexdigest()[:12]
    home = constants.config.get_config_value("ANSIBLE_HOME")
    return Path(home, "carafe", f"drift-{name}.json")


def read(sources: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return what is known of each server; what is no such file is nothing."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(files.read(path(sources)) or "{}")
        if isinstance(found, dict):
            return found
    return {}


def note(sources: list[str], changed: Mapping[str, int], check: bool) -> None:
    """Keep how many tasks of a whole run have, or would have, changed each server."""
    now, there = time.time(), path(sources)
    entries = {x: {"at": now, "check": check, "changed": count} for x, count in changed.items()}
    there.parent.mkdir(parents=True, exist_ok=True)
    files.write(there, json.dumps(read(sources) | entries, indent=2) + "\n", 0o600)


def row(entry: Mapping[str, Any] | None, now: float) -> Row:
    """Return what there is to say of a server."""
    if not entry:
        return Row(WHAT, GREEN, "nobody has looked from here", "")
    ago = f"{span(now - entry['at'])} ago"
    if not entry["check"]:
        return Row(WHAT, GREEN, f"none when site went through, {ago}", "")
    count = entry["changed"]
    if not count:
        return Row(WHAT, GREEN, f"none, looked for {ago}", "")
    tasks = "1 task" if count == 1 else f"{count} tasks"
    return Row(WHAT, YELLOW, one_line(f"{tasks} of site would change it, seen {ago}"), NEXT)
