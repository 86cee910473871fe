"""All that is to be seen of this server and of the apps on it, each with what to do about it.

Only looks: it takes no lock, makes no file, and asks nobody outside of the server.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import files, status_app, status_cluster, status_database, status_server
from .levels import YELLOW, Row
from .words import one_line

# What the checker of the role alerts has noted of earlier moments, the newest last.
HISTORY = Path("/var/lib/carafe/alerts/history.json")
UNSEEN = "it cannot be looked at"
# Seconds for a row, for all of them, and for a row where others have used these up. The unit of the
# checker, which looks twice, has five minutes.
PATIENCE, ALTOGETHER, LEAST = 20, 90, 1
Probe = tuple[str, str, Callable[[], Iterable[Row]]]


def probes(
    apps: Sequence[status_app.App],
    clusters: Sequence[dict[str, Any]],
    history: Sequence[Mapping[str, Any]],
    now: float,
) -> Iterator[Probe]:
    """Yield what looks: for which app or '', under which name, and how."""
    names = [app.name for app in apps]
    for app in apps:
        for name, look in status_app.rows(app):
            yield app.name, name, look
    keeps = status_database.keeps_data(clusters)
    yield "", "backups", lambda: status_server.backups(now, keeps)
    several = len(clusters) > 1
    for cluster in clusters:
        yield "", "postgresql", lambda cluster=cluster: status_database.rows(cluster, several)
    yield "", "cluster", status_cluster.rows
    yield "", "units", lambda: status_server.units(names)
    yield "", "certificates", status_server.certificates
    yield "", "disks", lambda: status_server.disks(history, now)
    yield "", "memory", status_server.memory
    yield "", "restarts", status_server.upgraded
    yield "", "updates", lambda: status_server.updates(now)
    yield "", "clock", status_server.clock_sync
    yield "", "bans", status_server.bans


def history() -> list[dict[str, Any]]:
    """Return what is known of earlier moments; what is no such file is nothing."""
    try:
        found = json.loads(files.read(HISTORY) or "[]")
        return [x for x in found if isinstance(x["at"], int | float)]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def look(
    history: Sequence[Mapping[str, Any]] = (), now: float | None = None, more: Iterable[Probe] = ()
) -> list[Row]:
    """Return all rows. What cannot be looked at is a row too, and hides none of the others."""
    now = time.time() if now is None else now
    with clock() as arm:
        apps, no_apps = attempt("", "apps", status_app.apps, arm)
        clusters, no_clusters = attempt("", "postgresql", status_database.clusters, arm)
        found: list[Row] = [*no_apps, *no_clusters]
        for probe in (*probes(apps, clusters, history, now), *more):
            came, missing = attempt(*probe, arm)
            found += [*came, *missing]
    return found


def attempt(
    app: str, name: str, work: Callable[[], Iterable[Any]], arm: Callable[[bool], None]
) -> tuple[list[Any], list[Row]]:
    """Return what comes, and a row in place of what does not, or not in time."""
    came: list[Any] = []
    try:
        try:
            arm(True)
            for found in work():
                came.append(found)
                arm(True)
        finally:
            arm(False)
    # Whatever it is, the rest is to be seen: people look here when things are broken.
    except Exception as error:
        says = one_line(f"{UNSEEN}: {type(error).__name__}: {error}")
        return came, [Row(name, YELLOW, says, "", app)]
    return came, []


@contextlib.contextmanager
def clock() -> Iterator[Callable[[bool], None]]:
    """Give a clock that ends what hangs, such as a daemon that takes a question and says nothing.

    It is wound up anew for each row: of ten slots that hang, each is to be told of.
    """
    # Elsewhere no signal arrives.
    if threading.current_thread() is not threading.main_thread():
        yield lambda _: None
        return
    until = time.monotonic() + ALTOGETHER

    def ring(*_: object) -> None:
        raise TimeoutError("it does not answer in time")

    def arm(on: bool) -> None:
        left = max(min(PATIENCE, until - time.monotonic()), LEAST)
        signal.setitimer(signal.ITIMER_REAL, left if on else 0)

    before = signal.signal(signal.SIGALRM, ring)
    try:
        yield arm
    finally:
        signal.signal(signal.SIGALRM, before)
