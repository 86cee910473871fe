"""Whether what systemd runs is what its files say.

It is asked of the server, not of the run that wrote the files: what a run that was cut short has
left undone is made up for by the next one.

Used by modules, and by programs that run without Ansible.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from .commands import Failure, ask, show

SHOWN = "ActiveState,UnitFileState,NeedDaemonReload"


def state(unit: str, *others: str) -> dict[str, str]:
    """Return what systemd knows of a unit, and whether its files or those of others are new."""
    found, *more = show(SHOWN, unit, *others)
    stale = any(x["NeedDaemonReload"] == "yes" for x in (found, *more))
    return {**found, "NeedDaemonReload": "yes" if stale else "no"}


def due(state: Mapping[str, str], load: str = "") -> list[str]:
    """Return what systemd is to do, so that a unit runs, at each boot too, by what its files say.

    ``load`` is what one that runs needs for that: reload, restart, or nothing.
    """
    verbs = ["enable"] if state["UnitFileState"] != "enabled" else []
    if state["ActiveState"] not in ("active", "reloading"):
        verbs.append("start")
    elif load:
        verbs.append(load)
    # Debian 12's systemd does not see that a unit has got its first drop-in, and says no.
    return ["daemon-reload"] * (bool(verbs) or state["NeedDaemonReload"] == "yes") + verbs


def act(unit: str, verbs: Iterable[str], *only: str) -> None:
    """Have systemd do what is due; ``only`` tells journalctl what of a failure is to be told."""
    for verb in verbs:
        done = ask("systemctl", verb, *([unit] if verb != "daemon-reload" else []))
        if done.returncode:
            words = [f"--unit={unit}", *only, "--lines=5", "--output=cat"]
            journal = ask("journalctl", *words).stdout
            said = [x.strip() for x in f"{done.stderr}{journal}".splitlines() if x.strip()]
            raise Failure(
                f"{unit} does not {verb}: {'; '.join(said[-5:])} See systemctl status {unit} on the"
                " server, and run the playbook again."
            )


def is_newer(paths: Iterable[Path], loaded: Path) -> bool:
    """Tell whether something has changed since a file was written, which may not be there yet."""
    return not loaded.exists() or newest(paths) > loaded.stat().st_mtime


def newest(paths: Iterable[Path]) -> float:
    """Return when one of these, or of what is in them, changed last; infinity if one is gone."""
    latest = 0.0
    try:
        for path in paths:
            latest = max(latest, path.lstat().st_mtime)
            if path.is_dir() and not path.is_symlink():
                latest = max(latest, newest(path.iterdir()))
            elif path.exists():
                latest = max(latest, path.stat().st_mtime)
    except FileNotFoundError:
        return float("inf")
    return latest


def slice_of(user: str) -> str:
    """Return the unit that all of an app's processes are in, whatever starts them."""
    return "carafe-{}.slice".format(user.replace("-", r"\x2d"))
