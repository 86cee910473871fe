"""Whether the archive of WAL is whole.

pgBackRest's own commands see neither a missing segment nor a missing history, and a restore to the
latest moment ends there without a word.

Used by modules, and by programs that run without Ansible.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

SEGMENT = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})(?:-[0-9a-f]{40}(?:\.\w+)?)")
HISTORY = re.compile(r"([0-9A-F]{8})\.history")
OF_A_FILE = 0x100  # segments of 16 MiB in what PostgreSQL calls a log file


def number(name: str) -> tuple[int, int]:
    """Return the timeline of a segment, and its number."""
    return int(name[:8], 16), int(name[8:16], 16) * OF_A_FILE + int(name[16:24], 16)


def name(timeline: int, segment: int) -> str:
    return f"{timeline:08X}{segment // OF_A_FILE:08X}{segment % OF_A_FILE:08X}"


def segment_of(lsn: str) -> int:
    """Return the number of the segment that a place in the WAL is in."""
    high, low = (int(part, 16) for part in lsn.split("/"))
    return (high << 32 | low) >> 24


def parents(text: str) -> list[tuple[int, str]]:
    """Return the timelines that a history names, each with the place where it was left."""
    lines = (line.split() for line in text.splitlines())
    return [(int(x[0]), x[1]) for x in lines if len(x) > 1 and x[0].isdecimal()]


def segments(names: Iterable[str]) -> dict[int, set[int]]:
    """Return the numbers of the segments that are there, by their timelines."""
    found: dict[int, set[int]] = {}
    for path in names:
        if SEGMENT.fullmatch(path.rpartition("/")[2]):
            timeline, segment = number(path.rpartition("/")[2])
            found.setdefault(timeline, set()).add(segment)
    return found


def missing(names: Iterable[str], oldest: str, histories: Mapping[int, str]) -> list[str]:
    """Return what is missing since the first segment of the oldest backup, by name.

    ``histories`` has the text of each .history by its timeline. A timeline that came out of a
    restore begins in the segment where its parent was left, which the parent need not have whole.
    """
    there = segments(names)
    first_timeline, first = number(oldest)
    lost = []
    # What the newest timeline came from; others are dead ends.
    newest = max(there, default=first_timeline)
    line, seen = [(newest, max(there.get(newest, {first})))], {newest}
    while line[0][0] > first_timeline:
        timeline = line[0][0]
        if timeline not in histories:
            lost.append(f"{timeline:08X}.history")
            break
        above = parents(histories[timeline])
        if not above or above[-1][0] in seen:
            break
        parent, lsn = above[-1]
        seen.add(parent)
        line.insert(0, (parent, segment_of(lsn)))
    begin = first if line[0][0] <= first_timeline else min(there.get(line[0][0], {0}))
    for index, (timeline, end) in enumerate(line):
        has = there.get(timeline, set())
        # The child has it from where it begins on.
        last = end if index == len(line) - 1 else end - 1
        gaps = [x for x in range(begin, last + 1) if x not in has]
        lost += [name(timeline, x) for x in gaps]
        begin = end
    return lost


def owed(history: str, here: Iterable[str], there: Iterable[str]) -> list[str]:
    """Return what leads to a timeline and is here, of those before it, and is not in the archive.

    Up to where each was left; the segment of that moment is the next one's.
    """
    here, there = sorted(here), [*there]
    has, found = segments(there), []
    histories = {path.rpartition("/")[2] for path in there}
    for timeline, lsn in parents(history):
        text = f"{timeline:08X}.history"
        found += [text] * (text in here and text not in histories)
        found += [
            x
            for x in here
            if re.fullmatch(r"[0-9A-F]{24}", x)
            and number(x)[0] == timeline
            and number(x)[1] < segment_of(lsn)
            and number(x)[1] not in has.get(timeline, set())
        ]
    return found


def newest(names: Iterable[str]) -> str:
    """Return the last segment of the newest timeline, '' where there is none."""
    files = (path.rpartition("/")[2] for path in names)
    return max((x[:24] for x in files if SEGMENT.fullmatch(x)), default="")


def look(listing: Mapping[str, Any]) -> list[str]:
    """Return the names of the files of a listing that repo-ls has made."""
    return [path for path, entry in listing.items() if entry.get("type") == "file"]


def described(lost: list[str]) -> str:
    shown = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
    return (
        f"the archive lacks {shown}: no moment after that can be reached. Make a full backup now,"
        " from which on all can: systemctl start carafe-backup-full"
    )
