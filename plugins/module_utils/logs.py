"""The logs of an app and of what serves it, merged by time: slots, workers, nginx, PostgreSQL.

They are files, and what etcd and Patroni write to the journal. An entry is a line with a time in
it, and the lines after it that have none, such as those of a traceback. Where somebody prints
without a time, the last one that was seen stands.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import restarts
from .commands import Failure, ask
from .release_state import State

ROOT = Path("/")
# By what each is there, and what it writes.
UNITS = {
    "etcd.service": ("etc/default/etcd", ("etcd",)),
    "patroni.service": ("etc/patroni/config.yml", ("patroni", "database")),
}
JOURNAL = "journal"  # as a cursor has it, with the last microsecond that was read
LINES = 20_000  # of the journal that are read at most
# Of Patroni, every few seconds.
IDLE = re.compile(r" INFO: no action[.]")
LIMIT = 4_000_000  # bytes of a file that are read at most
LONGEST = 4_000  # characters of an entry
PAUSE = 0.3  # seconds between two looks at what is followed
MONTHS = "JanFebMarAprMayJunJulAugSepOctNovDec"
# Of Python's logging, gunicorn, PostgreSQL, nginx's error log, and whoever writes ISO 8601.
STAMP = re.compile(
    r"(\d{4})[-/](\d\d)[-/](\d\d)[T ](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,6}))?\d*"
    r"\s?(Z\b|UTC\b|GMT\b|[+-]\d\d:?\d\d\b)?"
)
# Of nginx's access log.
ACCESS = re.compile(r"\[(\d\d)/(\w{3})/(\d{4}):(\d\d):(\d\d):(\d\d) ([+-]\d{4})\]")
HEAD = 300  # characters within which a line has its time

Entry = dict[str, Any]  # at, source, text
Cursor = dict[str, list[int]]  # by path, the inode and how far it was read


@dataclass(frozen=True)
class File:
    """A log, and what is told of where its entries are from."""

    path: Path
    kind: str
    source: str


def listed(app: str, sources: Sequence[str]) -> list[File]:
    """Return the logs of an app, of all apps for '', and of what they share."""
    folder, found = ROOT / "var/log", []
    slots = restarts.slot_files(ROOT / "etc/supervisor/conf.d")
    for path in sorted(folder.glob("supervisor/*.log")):
        program, _, number = path.stem.rpartition("_")
        owner = program if program in slots else program.partition(".")[0]
        if path.name == "supervisord.log":
            found.append(File(path, "supervisor", "supervisord"))
        elif app in ("", owner):
            kind = "app" if program in slots else "worker"
            found.append(File(path, kind, f"{program}/{number}"))
    found += [File(x, "nginx", f"nginx {x.stem}") for x in sorted(folder.glob("nginx/*.log"))]
    found += [File(x, "database", "postgresql") for x in sorted(folder.glob("postgresql/*.log"))]
    return [x for x in found if x.kind in sources or not sources]


def moment(line: str) -> float | None:
    """Return the time that a line has, in seconds since the epoch."""
    head = line[:HEAD]
    try:
        if found := ACCESS.search(head):
            day, month, year, *clock, zone = found.groups()
            return seconds(
                int(year), MONTHS.index(month) // 3 + 1, int(day), *map(int, clock), zone=zone
            )
        if found := STAMP.search(head):
            *numbers, fraction, zone = found.groups()
            at = seconds(*map(int, numbers), zone=zone or "")
            return at + float(f"0.{fraction or 0}")
    except (ValueError, OverflowError):
        pass
    return None


def seconds(*numbers: int, zone: str) -> float:
    """Return a point in time; without a zone it is the server's own."""
    at = datetime.datetime(*numbers)
    if not zone:
        return at.timestamp()
    if zone in ("Z", "UTC", "GMT"):
        return at.replace(tzinfo=datetime.UTC).timestamp()
    hours, minutes = int(zone[1:3]), int(zone[-2:])
    offset = datetime.timedelta(hours=hours, minutes=minutes) * (-1 if zone[0] == "-" else 1)
    return at.replace(tzinfo=datetime.timezone(offset)).timestamp()


def opened(path: Path) -> int | None:
    """Open a log, but no link or pipe that somebody has put in its place."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None


def read(path: Path, begin: int | None = None) -> tuple[str, list[int]]:
    """Return the whole lines from some byte on, or the end of a log, and how far that is."""
    descriptor = opened(path)
    if descriptor is None:
        return "", [0, 0]
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(file.fileno())
        start = max(about.st_size - LIMIT, begin or 0)
        file.seek(start)
        data = file.read(LIMIT)
    # The last line may not be whole yet.
    whole = data[: data.rfind(b"\n") + 1]
    # Nor is the first, where it begins somewhere in the middle.
    if start and begin is None:
        whole = whole[whole.find(b"\n") + 1 :]
    return whole.decode("utf-8", "surrogateescape"), [about.st_ino, start + data.rfind(b"\n") + 1]


def entries(text: str, source: str, last: float) -> Iterator[Entry]:
    """Yield the entries of a text; ``last`` is the time of what has none yet."""
    entry: Entry = {}
    for line in text.split("\n")[:-1]:
        at = moment(line)
        if at is None and entry:
            entry["text"] = f"{entry['text']}\n{line}"[:LONGEST]
            continue
        if entry:
            yield entry
        last = last if at is None else at
        entry = {"at": last, "source": source, "text": line[:LONGEST]}
    if entry:
        yield entry


def units(sources: Sequence[str]) -> list[str]:
    """Return the units whose journal has what is asked for."""
    return [
        unit
        for unit, (path, kinds) in UNITS.items()
        if (ROOT / path).exists() and (not sources or {*kinds} & {*sources})
    ]


def journal(sources: Sequence[str], since: float, last: int = 0) -> tuple[list[Entry], int]:
    """Return what etcd, Patroni and its PostgreSQL have written, and the microsecond of the end."""
    asked = units(sources)
    if not asked:
        return [], last
    begin = f"{last // 10**6}.{last % 10**6:06}" if last else f"{since:.6f}"
    done = ask(
        *("journalctl", "--output=json", "--output-fields=MESSAGE,_COMM,_SYSTEMD_UNIT"),
        *("--no-pager", "--quiet", f"--lines={LINES}", f"--since=@{begin}"),
        *(f"--unit={x}" for x in asked),
    )
    found: list[Entry] = []
    at = last
    for line in done.stdout.splitlines():
        record = json.loads(line)
        text, stamp = record.get("MESSAGE"), int(record["__REALTIME_TIMESTAMP"])
        kind, source = writer(record)
        # Of what is no text, it has the bytes.
        if stamp <= last or not isinstance(text, str) or (sources and kind not in sources):
            continue
        at = max(at, stamp)
        if kind == "patroni" and IDLE.search(text):
            continue
        if found and found[-1]["source"] == source and moment(text) is None and text[:1] != "{":
            found[-1]["text"] = f"{found[-1]['text']}\n{text}"[:LONGEST]
        else:
            found.append({"at": stamp / 10**6, "source": source, "text": text[:LONGEST]})
    return found, at


def writer(record: Mapping[str, Any]) -> tuple[str, str]:
    """Return of which kind an entry of the journal is, and what is told of where it is from."""
    if record.get("_SYSTEMD_UNIT") == "etcd.service":
        return "etcd", "etcd"
    # Patroni's PostgreSQL has no log of its own.
    return ("database", "postgresql") if record.get("_COMM") == "postgres" else ("patroni",) * 2


def before(file: File, since: float) -> str:
    """Return the log that was rotated last, where what is asked for goes back to it."""
    path = file.path.with_name(f"{file.path.name}.1")
    try:
        return read(path)[0] if path.stat().st_mtime >= since else ""
    except OSError:
        return ""


def look(
    files: Sequence[File],
    sources: Sequence[str],
    since: float,
    keep: Callable[[Entry], bool],
) -> tuple[list[Entry], Cursor]:
    """Return what the logs have since then, by time, and how far they were read."""
    found: list[Entry] = []
    cursor: Cursor = {}
    for file in files:
        text, cursor[str(file.path)] = read(file.path)
        with contextlib.suppress(OSError):
            written = file.path.stat().st_mtime
            found += [x for x in entries(before(file, since) + text, file.source, written)]
    more, end = journal(sources, since)
    cursor[JOURNAL] = [end or int(time.time() * 10**6)]
    chosen = [x for x in found + more if x["at"] >= since and keep(x)]
    return sorted(chosen, key=lambda x: x["at"]), cursor


def follow(
    files: Sequence[File],
    sources: Sequence[str],
    cursor: Mapping[str, list[int]],
    keep: Callable[[Entry], bool],
) -> tuple[list[Entry], Cursor]:
    """Return what has come since a cursor."""
    found: list[Entry] = []
    further: Cursor = {}
    for file in files:
        inode, offset = cursor.get(str(file.path), [0, 0])
        with contextlib.suppress(OSError):
            about = file.path.stat()
            # Rotated, or emptied: what is there now is all new.
            same = about.st_ino == inode and about.st_size >= offset
            text, further[str(file.path)] = read(file.path, offset if same else 0)
            found += [x for x in entries(text, file.source, time.time()) if keep(x)]
    more, end = journal(sources, 0, *cursor.get(JOURNAL, [0]))
    further[JOURNAL] = [end]
    found += [x for x in more if keep(x)]
    return sorted(found, key=lambda x: x["at"]), further


def served(app: str, root: str, release: str) -> tuple[float, float]:
    """Return from when to when a release has served."""
    known = State({"name": app, "root": root}).releases
    times = {k: x["deployed"] for k, x in known.items() if x.get("deployed")}
    if release not in times:
        there = ", ".join(sorted(times, key=lambda x: -times[x])) or "none"
        raise Failure(f"release: {release} has not served here. There is: {there}")
    later = [x for x in times.values() if x > times[release]]
    return times[release], min(later, default=float("inf"))


def point(name: str, text: str) -> float:
    """Return the point in time that people write, such as 1 hour ago."""
    done = ask("date", f"--date={text}", "+%s.%N")
    if done.returncode:
        raise Failure(f"{name}: {text} is no time. Try one: -e {name}='1 hour ago'")
    return float(done.stdout)


def chooser(grep: str, request: str, until: float) -> Callable[[Entry], bool]:
    """Return what tells whether an entry is asked for."""
    try:
        pattern = re.compile(grep)
    except re.error as error:
        raise Failure(f"grep: {grep} is no regular expression: {error}") from None

    def keep(entry: Entry) -> bool:
        text = entry["text"]
        return entry["at"] <= until and request in text and bool(pattern.search(text))

    return keep


def run(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries that are asked for; with a cursor those after it, once there are some."""
    since, until = 0.0, float("inf")
    if wanted["release"]:
        since, until = served(wanted["app"], wanted["root"], wanted["release"])
    if wanted["since"]:
        since = max(since, point("since", wanted["since"]))
    if wanted["until"]:
        until = min(until, point("until", wanted["until"]))
    keep = chooser(wanted["grep"], wanted["request"], until)
    files = listed(wanted["app"], wanted["sources"])
    cursor = wanted["cursor"]
    if not cursor:
        found, cursor = look(files, wanted["sources"], since, keep)
        return {"changed": False, "entries": found[-wanted["lines"] :], "cursor": cursor}
    deadline = time.monotonic() + wanted["wait"]
    while True:
        files = listed(wanted["app"], wanted["sources"])
        found, cursor = follow(files, wanted["sources"], cursor, keep)
        if found or time.monotonic() >= deadline:
            return {"changed": False, "entries": found, "cursor": cursor}
        time.sleep(PAUSE)
