"""What /proc says of a process that runs: since when, and with which environment."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path


def environment(pid: int | str) -> dict[str, str]:
    """Return the environment that a process was started with; empty when it is gone."""
    try:
        entries = Path("/proc", str(pid), "environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    pairs = (entry.decode(errors="replace").partition("=") for entry in entries if entry)
    return {name: value for name, _, value in pairs}


def age(pid: int | str) -> float | None:
    """Return for how many seconds a process has been running, or None when it is gone."""
    try:
        stat = Path("/proc", str(pid), "stat").read_text()
    except OSError:
        return None
    # The 22nd field of proc_pid_stat(5); the second may hold blanks.
    ticks = int(stat.rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def is_older(pid: int | str, paths: Iterable[str | Path]) -> bool:
    """Tell whether a process began before one of these files was last written."""
    seconds = age(pid)
    if seconds is None:
        return False
    began = time.time() - seconds
    return any(path.exists() and path.stat().st_mtime > began for path in map(Path, paths))
