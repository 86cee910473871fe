"""What /proc says of a process that runs: since when, with which environment and libraries."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

SYSTEM = ("/usr/", "/lib")  # where packages have programs and libraries


def environment(pid: int | str) -> dict[str, str]:
    """Return the environment that a process was started with; empty when it is gone."""
    try:
        entries = Path("/proc", str(pid), "environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    pairs = (entry.decode(errors="replace").partition("=") for entry in entries if entry)
    return {name: value for name, _, value in pairs}


def command_line(pid: int | str) -> bytes:
    """Return the words that a process was started with; empty when it is gone."""
    try:
        return Path("/proc", str(pid), "cmdline").read_bytes()
    except OSError:
        return b""


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


def children(pid: int | str) -> Iterator[str]:
    """Yield the number of each process that this one has started."""
    for path in Path("/proc", str(pid), "task").glob("*/children"):
        # They come and go.
        with contextlib.suppress(OSError):
            yield from path.read_text().split()


def family(pid: int | str) -> Iterator[str]:
    """Yield the number of a process, and of all that descend from it."""
    yield str(pid)
    for child in children(pid):
        yield from family(child)


def status(pid: int | str) -> dict[str, str]:
    """Return what proc_pid_status(5) says of a process by name; nothing when it is gone."""
    try:
        lines = Path("/proc", str(pid), "status").read_text(errors="replace").splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def lives(pid: int | str) -> bool:
    """Tell whether a process is there, and not only a zombie that nobody has asked after."""
    return status(pid).get("State", "Z")[0] not in "ZX"


def upgraded(pid: int | str) -> str:
    """Return a program or library of the system that a process still runs, and its files no more.

    An upgrade puts new files into the place of those that are in use, which the kernel keeps, and
    calls deleted in proc_pid_maps(5), for as long as somebody has them.
    """
    try:
        lines = Path("/proc", str(pid), "maps").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        _, rights, _, _, _, *path = line.split(maxsplit=5)
        if "x" in rights and path and path[0].startswith(SYSTEM):
            name, deleted, _ = path[0].partition(" (deleted)")
            if deleted:
                return name
    return ""


def upgraded_in(pid: int | str) -> str:
    """Return the same of a process or of one of those that descend from it."""
    return next((path for path in map(upgraded, family(pid)) if path), "")


def units_upgraded() -> dict[str, str]:
    """Return for each unit of systemd that runs what was replaced since, what that is."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if path := upgraded(folder.name):
            with contextlib.suppress(OSError):
                group = (folder / "cgroup").read_text().strip().rpartition("/")[2]
                found.setdefault(group, path)
    return dict(sorted(found.items()))
