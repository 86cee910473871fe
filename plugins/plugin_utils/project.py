"""Let an app's own code be found as if it were installed, from what its project says of it.

Nothing is built for it: a release is one folder, and the virtual environment is shared by releases.
"""

from __future__ import annotations

import configparser
import posixpath
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

Files = dict[str, tuple[int, bytes | str]]

FOLDER = ".carafe"  # of what is made here, in a release
VERSION = re.compile(r"(?m)^__version__\s*(?::[^=\n]+)?=\s*[\"']([^\"'\s]+)[\"']")
REFERENCE = re.compile(r"([\w.]+):([\w.]+)")
SCRIPT = """\
#!/usr/bin/env python
import sys

from {module} import {first}

sys.exit({name}())
"""


def add(found: Files) -> list[str]:
    """Add an app's metadata and commands to its files; return what is to be on Python's path."""
    project, old = table(found), setup_cfg(found)
    known = "pyproject.toml" in found or "setup.cfg" in found or "setup.py" in found
    if not known:
        return []
    tops = [x for x in dict.fromkeys(roots(project, old)) if is_root(found, x)]
    own, poetry = at(project, "project"), at(project, "tool", "poetry")
    name = own.get("name") or poetry.get("name") or old.get("metadata", "name", fallback="")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?", name):
        return tops
    version = version_of(found, project, old, tops, name)
    groups = entry_points(own, poetry, old)
    info = f"{FOLDER}/{re.sub('[-_.]+', '_', name)}-{version}.dist-info"
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    found[f"{info}/METADATA"] = (0o644, text.encode())
    lines = []
    for group, entries in sorted(groups.items()):
        lines += [f"[{group}]", *(f"{x} = {y}" for x, y in sorted(entries.items())), ""]
    if groups:
        found[f"{info}/entry_points.txt"] = (0o644, "\n".join(lines).encode())
    for command, reference in groups.get("console_scripts", {}).items():
        parts = REFERENCE.match(reference)
        if parts and re.fullmatch(r"[\w.-]+", command):
            first = parts[2].partition(".")[0]
            text = SCRIPT.format(module=parts[1], first=first, name=parts[2])
            found[f"{FOLDER}/bin/{command}"] = (0o755, text.encode())
    # What is in the top folder is found by flask and gunicorn, which are begun there; a command of
    # the app's own is not.
    if groups and not tops and is_root(found, "."):
        tops = ["."]
    return [*tops, FOLDER]


def table(found: Files) -> dict[str, Any]:
    content = found.get("pyproject.toml", (0, b""))[1]
    try:
        return tomllib.loads(content.decode()) if isinstance(content, bytes) else {}
    except ValueError:
        # Where it says what is installed, that has been refused by now.
        return {}


def setup_cfg(found: Files) -> configparser.RawConfigParser:
    parser, content = configparser.RawConfigParser(), found.get("setup.cfg", (0, b""))[1]
    try:
        parser.read_string(content.decode() if isinstance(content, bytes) else "")
    except (configparser.Error, UnicodeDecodeError):
        return configparser.RawConfigParser()
    return parser


def at(value: Any, *keys: str) -> dict[str, Any]:
    """Return the table below these keys, an empty one where there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return dict(value) if isinstance(value, Mapping) else {}


def texts(value: Any) -> list[str]:
    return [x for x in (value if isinstance(value, list) else [value]) if isinstance(x, str)]


def roots(project: Mapping[str, Any], old: configparser.RawConfigParser) -> Iterator[str]:
    """Yield the folders that hold the app's packages, as the tools that build it are told."""
    tool = at(project, "tool")
    setuptools, wheel = at(tool, "setuptools"), at(tool, "hatch", "build", "targets", "wheel")
    yield from texts(at(setuptools, "package-dir").get(""))
    yield from texts(at(setuptools, "packages", "find").get("where"))
    for entry in at(tool, "poetry").get("packages") or []:
        yield from texts(entry.get("from") if isinstance(entry, Mapping) else None)
    for place in (at(tool, "hatch", "build"), wheel):
        yield from texts(place.get("sources"))
        yield from (posixpath.dirname(x) for x in texts(place.get("packages")))
    yield from texts(at(tool, "pdm", "build").get("package-dir"))
    yield from texts(at(tool, "uv", "build-backend").get("module-root"))
    yield from texts(at(tool, "maturin").get("python-source"))
    for line in old.get("options", "package_dir", fallback="").splitlines():
        package, _, folder = line.partition("=")
        yield from [folder.strip()] * (not package.strip())
    yield from old.get("options.packages.find", "where", fallback="").split()
    yield "src"


def is_root(found: Files, root: str) -> bool:
    """Tell whether a folder holds packages, is none, and hides none of Python's own modules."""
    inside = posixpath.normpath(root)
    if not root or inside.startswith(("..", "/")) or (inside == "." and root != "."):
        return False
    prefix = "" if inside == "." else f"{inside}/"
    below = [x.removeprefix(prefix) for x in found if x.startswith(prefix) and x.endswith(".py")]
    tops = {x.partition("/")[0].removesuffix(".py") for x in below}
    return bool(below) and "__init__" not in tops and not tops & sys.stdlib_module_names


def version_of(
    found: Files,
    project: Mapping[str, Any],
    old: configparser.RawConfigParser,
    tops: list[str],
    name: str,
) -> str:
    """Return the app's version, 0 where a tool would work it out."""
    own = at(project, "project").get("version") or at(project, "tool", "poetry").get("version")
    said = own or old.get("metadata", "version", fallback="")
    if isinstance(said, str) and re.fullmatch(r"[\w.+!]+", said):
        return said
    module = re.sub("[-.]+", "_", name).lower()
    hatch = at(project, "tool", "hatch", "version").get("path")
    names = ("__init__.py", "__about__.py", "_version.py", "version.py")
    places = [f"{posixpath.normpath(f'{top}/{module}')}/{x}" for top in (*tops, ".") for x in names]
    for path in (*texts(hatch), *places):
        content = found.get(posixpath.normpath(path), (0, ""))[1]
        if isinstance(content, bytes) and (
            seen := VERSION.search(content.decode(errors="replace"))
        ):
            return seen[1]
    return "0"


def entry_points(
    own: Mapping[str, Any], poetry: Mapping[str, Any], old: configparser.RawConfigParser
) -> dict[str, dict[str, str]]:
    """Return the app's entry points by group, console_scripts among them."""
    groups: dict[str, dict[str, str]] = {}
    for group, entries in [
        ("console_scripts", poetry.get("scripts")),
        *at(poetry, "plugins").items(),
        ("console_scripts", own.get("scripts")),
        *at(own, "entry-points").items(),
    ]:
        for name, value in (entries if isinstance(entries, Mapping) else {}).items():
            target = value.get("reference") if isinstance(value, Mapping) else value
            if (isinstance(target, str) and REFERENCE.match(target)) or group != "console_scripts":
                groups.setdefault(group, {})[name] = " ".join(str(target).split())
    if old.has_section("options.entry_points"):
        for group, lines in old.items("options.entry_points"):
            for line in filter(None, lines.splitlines()):
                name, _, target = (x.strip() for x in line.partition("="))
                groups.setdefault(group, {}).setdefault(name, target)
    return groups
