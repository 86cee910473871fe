"""What became of the runs of an app's schedules: noted as each ends, and shown later.

    schedules ended FOLDER UNIT NAME    systemd calls it, as ExecStopPost of the schedule's unit

FOLDER is ``<root>/logs/schedules``, which root alone reads, since it has what the app has printed.
``NAME.json`` in it has the last runs of a schedule, the newest last, each with

``began``, ``ended``    seconds since the epoch
``result``              in systemd's word: success, exit-code, signal, timeout, oom-kill, …
``status``              of the exit, or the name of the signal
``output``              the end of what it wrote; the journal has all of it, as long as it keeps it
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from . import files
from .words import escaped, one_line

KEEP, LENGTH = 30, 4000  # runs of a schedule, and bytes of the output of each
PATIENCE = 10  # seconds for systemd or its journal to answer: the run is not held up for a note


def history(root: str | Path) -> Path:
    """Return the folder in which the runs of an app's schedules are noted."""
    return Path(root, "logs/schedules")


def scheduled(app: str, root: str | Path) -> list[str]:
    """Return the names of the schedules that the release which serves has."""
    prefix = f"{app}."
    found = Path(root, "serving/schedules").glob(f"{prefix}*.timer")
    return sorted(path.stem.removeprefix(prefix) for path in found)


def ask(*command: str) -> str:
    """Ask systemd something; '' where it does not say."""
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return escaped(done.stdout[-LENGTH:])


def read(path: Path) -> list[dict[str, Any]]:
    """Return what is known of a schedule's runs; what is no such file is none."""
    try:
        found = json.loads(files.read(path) or "[]")
        return [x for x in found if all(isinstance(x[y], int | float) for y in ("began", "ended"))]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def ended(folder: Path, unit: str, name: str) -> None:
    """Note how the run that ends has gone."""
    now, path = time.time(), folder / f"{name}.json"
    began = ask(
        *("systemctl", "show", "--value", "--timestamp=unix"),
        *("--property=ExecMainStartTimestamp", unit),
    )
    # What the command wrote last is still on its way to the journal.
    ask("journalctl", "--sync")
    this = f"_SYSTEMD_INVOCATION_ID={os.environ.get('INVOCATION_ID', '')}"
    entry = {
        "began": float(began.strip().removeprefix("@") or now),
        "ended": now,
        "result": os.environ.get("SERVICE_RESULT", "unknown"),
        "status": os.environ.get("EXIT_STATUS", ""),
        "output": ask("journalctl", "--quiet", "--all", "--output=cat", "--lines=200", this),
    }
    folder.mkdir(mode=0o750, exist_ok=True)
    text = json.dumps([*read(path), entry][-KEEP:], indent=2) + "\n"
    files.write(path, text, 0o640, owner=os.geteuid(), group=os.getegid())


def clock(seconds: float) -> str:
    """Return a point in time as people write it, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def how(entry: dict[str, Any]) -> str:
    """Return how a run ended, in a few words."""
    result = one_line(str(entry.get("result")))
    if result in ("exit-code", "signal"):
        word = "exit status" if result == "exit-code" else "ended by"
        return f"failed, {word} {one_line(str(entry.get('status')))}"
    return "ok" if result == "success" else f"failed, {result}"


def failing(folder: Path, names: list[str]) -> list[str]:
    """Return a line for each schedule whose last run has failed."""
    found = []
    for name in names:
        runs = read(folder / f"{name}.json")
        if not runs or how(runs[-1]) == "ok":
            continue
        since = len([*itertools.takewhile(lambda run: how(run) != "ok", reversed(runs))])
        times = "its last run" if since == 1 else f"its last {since} runs"
        found.append(
            f"the schedule {name}: {times} {how(runs[-1])}, at {clock(runs[-1]['ended'])}."
            " See: ansible-playbook carafe.stack.schedules"
        )
    return found


def listing(folder: Path, names: list[str], whole: str = "") -> list[str]:
    """Return the runs in lines for people, the newest first.

    Of a schedule there is what its last run wrote; of the one that is named, what each wrote.
    """
    lines = []
    for name in names if not whole else [whole]:
        runs = read(folder / f"{name}.json")[::-1]
        lines.append(f"{name}: {'the last runs, the newest first' if runs else 'no run yet'}")
        for number, entry in enumerate(runs):
            took = entry["ended"] - entry["began"]
            lines.append(f"  {clock(entry['ended'])}  {took:.0f} s  {how(entry)}")
            if whole or not number:
                wrote = escaped(str(entry.get("output", ""))).splitlines()
                lines += [f"    | {line}" for line in wrote]
    return lines


def main() -> None:
    _, command, folder, unit, name = sys.argv
    if command == "ended":
        ended(Path(folder), unit, name)
