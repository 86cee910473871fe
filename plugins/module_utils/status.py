"""All that is to be seen of this server and of the apps on it, each with what to do about it.

Only looks: it takes no lock, makes no file, and asks nobody outside of the server.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import files, status_app, status_database, status_server
from .levels import YELLOW, Row
from .words import one_line

# What the checker of the role alerts has noted of earlier moments, the newest last.
HISTORY = Path("/var/lib/carafe/alerts/history.json")
UNSEEN = "it cannot be looked at"
Probe = tuple[str, str, Callable[[], Iterable[Row]]]


def probes(history: Sequence[Mapping[str, Any]], now: float) -> Iterator[Probe]:
    """Yield what looks: for which app or '', under which name, and how."""
    apps = status_app.apps()
    names = [app.name for app in apps]
    for app in apps:
        for name, look in status_app.rows(app):
            yield app.name, name, look
    clusters = status_database.clusters()
    keeps = status_database.keeps_data(clusters)
    yield "", "backups", lambda: status_server.backups(now, keeps)
    several = len(clusters) > 1
    for cluster in clusters:
        yield "", "postgresql", lambda cluster=cluster: status_database.rows(cluster, several)
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
    found: list[Row] = []
    now = time.time() if now is None else now
    for app, name, probe in (*probes(history, now), *more):
        try:
            found += list(probe())
        # Whatever it is, the rest is to be seen: people look here when things are broken.
        except Exception as error:
            says = one_line(f"{UNSEEN}: {type(error).__name__}: {error}")
            found.append(Row(name, YELLOW, says, "", app))
    return found
