"""Write for Prometheus what is known of this server and its apps.

    metrics write    look, as the status does, and write it where node's exporter finds it; a timer
                     of systemd's runs it

What the module status shows is here in numbers, by the same code: how well each thing is, and what
a level alone does not say, such as when a backup was last well.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from . import alerts, files, status
from .exporters import TEXTFILES
from .levels import LEVELS, Row

FILE = Path(TEXTFILES) / "carafe.prom"
LEVEL = "carafe_status"
WHAT = {
    LEVEL: "How well a thing is: 0 green, 1 yellow, 2 red.",
    "carafe_look_timestamp_seconds": "When the server was last looked at.",
    "carafe_look_duration_seconds": "How long that took.",
    "carafe_archive_waiting_segments": "Segments of WAL that wait for the archive.",
    "carafe_archive_waiting_seconds": "How long the oldest of them has waited.",
    "carafe_archive_waiting_bytes": "Size of pg_wal.",
    "carafe_standby_lag_bytes": "What a standby has not got yet of what its primary has written.",
    "carafe_standby_lag_seconds": "For how long a standby has not got it.",
    "carafe_backup_last_success_timestamp_seconds": "When a backup, copy or drill was last well.",
    "carafe_backup_last_end_timestamp_seconds": "When it last ended, well or not.",
    "carafe_backup_last_duration_seconds": "How long the last one took.",
    "carafe_banned_addresses": "Addresses that fail2ban bans.",
    "carafe_cluster_leads": "Servers that lead the database, by this one's Patroni.",
    "carafe_cluster_members_following": "Servers that follow the one that leads.",
    "carafe_certificate_end_timestamp_seconds": "When a certificate that nginx serves ends.",
    "carafe_disk_full_days": "Days until a disk is full, as it grows.",
    "carafe_release_deployed_timestamp_seconds": "When the release that serves was deployed.",
    "carafe_restore_window_start_timestamp_seconds": "How far back the database can be restored.",
    "carafe_schedule_last_end_timestamp_seconds": "When a schedule last ended, well or not.",
    "carafe_security_updates_waiting": "Security updates that wait.",
}
Sample = tuple[str, tuple[tuple[str, str], ...], float]


def samples(rows: Iterable[Row]) -> Iterator[Sample]:
    """Yield what rows have in numbers, each under a name and labels that no other one has."""
    rows = list(rows)
    for row in alerts.by_key(rows).values():
        yield LEVEL, labels_of(row), LEVELS.index(row.level)
    numbers = {}
    for row in rows:
        for name, value in row.numbers.items():
            numbers[name, labels_of(row, row.labels)] = float(value)
    for (name, labels), value in numbers.items():
        yield name, labels, value


def labels_of(row: Row, more: Mapping[str, str] | None = None) -> tuple[tuple[str, str], ...]:
    return tuple(sorted({"app": row.app, "what": row.what, **(more or {})}.items()))


def text(found: Iterable[Sample]) -> str:
    """Return samples in Prometheus' text format, those of one name together."""
    by_name: dict[str, list[str]] = {}
    for name, labels, value in found:
        shown = ",".join(f'{key}="{escaped(x)}"' for key, x in labels)
        line = f"{name}{{{shown}}} {value:.17g}" if shown else f"{name} {value:.17g}"
        by_name.setdefault(name, []).append(line)
    return "".join(
        f"# HELP {name} {WHAT[name]}\n# TYPE {name} gauge\n" + "".join(f"{x}\n" for x in lines)
        for name, lines in sorted(by_name.items())
    )


def escaped(value: str) -> str:
    """Return a label's value as the format has it; what is no UTF-8 would spoil the whole file."""
    value = value.encode("utf-8", "replace").decode()
    return re.sub(r'["\\]', r"\\\g<0>", value).replace("\n", r"\n")


def write() -> None:
    began = time.time()
    rows = status.look(status.history(), began, [("", "alerts", lambda: alerts.rows(began))])
    own = [
        ("carafe_look_timestamp_seconds", (), began),
        ("carafe_look_duration_seconds", (), time.time() - began),
    ]
    files.write(FILE, text([*samples(rows), *own]), 0o644)


def main() -> str | None:
    if sys.argv[1:] == ["write"]:
        write()
        return None
    return __doc__
