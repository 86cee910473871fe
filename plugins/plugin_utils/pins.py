"""Put pins of the inventory's in the place of what an app's requirements, or its lock, say."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath

try:
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name
except ImportError:  # ansible-test imports plugins without what ansible-core brings along
    InvalidRequirement = Requirement = canonicalize_name = None

from ..module_utils.commands import Failure
from .urls import without_credentials

INCLUDE = re.compile(r"^\s*(?:-r|-c|--requirement|--constraint)[\s=]*(\S+)")
COMMENT = re.compile(r"(^|\s)#.*")
EDITABLE = re.compile(r"(?:-e\b|--editable\b)[\s=]*")
NAMED = re.compile(
    r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?:\[([^]]*)\])?\s*(?=[@<>=!~;(,\s]|$)"
)
# A file or a URL, whose name says the package's.
FILE = re.compile(r"(?:\S*/)?([A-Za-z0-9._]+?)-\d[^/\s]*[.](?:whl|tar[.]\w+|tgz|zip)(?![^\s;#])")
EGG = re.compile(r"#(?:\S*&)?egg=([A-Za-z0-9._-]+)")
HASH = re.compile(r"\s+--hash[=\s]+")

Files = dict[str, tuple[int, bytes | str]]


def parsed(entries: list[str]) -> list[tuple[Requirement, list[str]]]:
    """Return each pin with its hashes. Raises ValueError, which says what is wrong with one."""
    found, plain = [], set()
    for entry in entries:
        text, *hashes = HASH.split(entry.strip())
        try:
            pin = Requirement(text)
        except InvalidRequirement:
            raise ValueError(
                f"has {without_credentials(entry)!r}, which is no requirement with a name, such as"
                " psycopg[binary]==3.2.3 or NAME @ URL"
            ) from None
        name = canonicalize_name(pin.name)
        if not pin.marker and name in plain:
            raise ValueError(f"has {name} twice, and only with markers can both be meant")
        plain |= set() if pin.marker else {name}
        found.append((pin, hashes))
    return found


def logical_lines(text: str) -> Iterator[str]:
    """Yield what pip takes for a line: one that ends in a backslash goes on in the next."""
    line = ""
    for part in text.splitlines(keepends=True):
        line += part
        if not part.rstrip("\r\n").endswith("\\") or re.match(r"\s*#", part):
            yield line
            line = ""
    if line:
        yield line


def asked_for(line: str) -> tuple[str, set[str]]:
    """Return which package a line of a requirements file is about, or '', and its extras."""
    line = COMMENT.sub("", re.sub(r"\\\r?\n", " ", line)).strip()
    line = EDITABLE.sub("", line)
    if found := EGG.search(line) or FILE.match(line):
        return canonicalize_name(found[1]), set()
    if found := NAMED.match(line):
        return canonicalize_name(found[1]), {x.strip() for x in (found[2] or "").split(",")} - {""}
    return "", set()


def local(line: str) -> str:
    """Return the path in the app's folder that a line asks for, or ''."""
    asked = EDITABLE.sub("", COMMENT.sub("", re.sub(r"\\\r?\n", " ", line)).strip())
    if not asked or asked.startswith("-"):
        return ""
    named = None if FILE.match(asked) else NAMED.match(asked)
    if named and not asked[named.end() :].startswith("@"):
        return ""
    place = re.split(r"\s", asked[named.end() :].lstrip("@ ") if named else asked, maxsplit=1)[0]
    place = re.sub(r"^file:(?!//)|\[[^]]*\]$|#.*$", "", place)
    outside = re.match(r"\w[\w+.-]*:|/", place)
    return "" if outside else os.path.normpath(place)


def make_plain(found: Files, path: str) -> set[str]:
    """Return what requirements ask for of the app's own folder, and ask for it as it is now.

    By a link to its source, another release would have the code of this one, while that is there.
    """
    places: set[str] = set()

    def plain(line: str) -> str:
        place = local(line)
        places.update({place} - {""})
        return EDITABLE.sub("", line, count=1) if place else line

    change(found, path, plain, set())
    return places


def change(found: Files, path: str, new: Callable[[str], str], seen: set[str]) -> None:
    """Change each line of a requirements file, and of those that it includes."""
    if path in seen or path not in found or isinstance(found[path][1], str):
        return
    seen.add(path)
    mode, content = found[path]
    lines = [*logical_lines(content.decode())]
    for line in lines:
        if match := INCLUDE.match(line):
            change(found, os.path.normpath(PurePosixPath(path).parent / match[1]), new, seen)
    found[path] = (mode, "".join(map(new, lines)).encode())


def drop(found: Files, path: str, names: set[str]) -> dict[str, set[str]]:
    """Take packages out of a requirements file, and out of those that it includes.

    Returns the extras that were asked for of each.
    """
    extras: dict[str, set[str]] = {}

    def kept(line: str) -> str:
        name, more = asked_for(line)
        if name not in names:
            return line
        extras.setdefault(name, set()).update(more)
        return ""

    change(found, path, kept, set())
    return extras


def drop_of_pylock(text: str, names: set[str]) -> str:
    """Take packages out of a lock of Python's own form, which uv takes as a whole or not at all."""
    begins = (
        r"(?m)^(?=[ \t]*\[\[[ \t]*packages[ \t]*\]\])|^(?=[ \t]*\[+[ \t]*(?!packages\b)[\w\"'])"
    )
    blocks = re.split(begins, text)
    name = re.compile(r"(?m)^\s*name\s*=\s*[\"']([^\"']+)[\"']")

    def goes(block: str) -> bool:
        own = name.search(block) if re.match(r"\s*\[\[\s*packages\s*\]\]", block) else None
        return bool(own) and canonicalize_name(own[1]) in names

    return "".join(block for block in blocks if not goes(block))


def lines(pins: list[tuple[Requirement, list[str]]], extras: Mapping[str, set[str]]) -> str:
    """Return the requirements file of the pins; one without extras has those asked for before."""
    text = ""
    for pin, hashes in pins:
        pin.extras = pin.extras or extras.get(canonicalize_name(pin.name), set())
        text += f"{pin}{''.join(f' --hash={x}' for x in hashes)}\n"
    return text


def apply(entries: list[str], found: Files, path: str, lock: str) -> str:
    """Take what the pins replace out of the files of an app; return the pins' own file.

    Out of a lock of uv's or of poetry's nothing is taken: uv itself has the pins win.
    """
    try:
        pins = parsed(entries)
    except ValueError as error:
        raise Failure(f"app_requirements_override {error}. Correct it.") from None
    names, extras = {canonicalize_name(pin.name) for pin, _ in pins}, {}
    if lock == "pylock.toml":
        mode, content = found[path]
        found[path] = (mode, drop_of_pylock(content.decode(), names).encode())
    elif not lock:
        extras = drop(found, path, names)
    return lines(pins, extras)
