"""What the tools of the repository are made of is named by what it holds."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FILES = subprocess.run(
    ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
    cwd=ROOT,
    capture_output=True,
    check=True,
    text=True,
).stdout.split("\0")
NAMED = [ROOT / x for x in FILES if x.endswith(".in")]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
COMMANDS = [
    ROOT / x for x in FILES if x.startswith(("scripts/", ".github/workflows/", "molecule/"))
]


def pins(path: Path) -> dict[str, list[tuple[Requirement, str]]]:
    """Return what a requirements.txt pins, by the package's name, each with its hashes."""
    found: dict[str, list[tuple[Requirement, str]]] = {}
    for entry in re.split(r"(?<!\\)\n", path.read_text()):
        if re.match(r"\w", entry):
            text, _, hashes = entry.replace("\\\n", " ").partition("--hash=")
            requirement = Requirement(text.strip())
            found.setdefault(canonicalize_name(requirement.name), []).append((requirement, hashes))
    return found


@pytest.mark.parametrize("path", NAMED, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_named_is_pinned_with_hashes(path: Path) -> None:
    """scripts/pins makes the one of the other."""
    pinned = pins(path.with_suffix(".txt"))
    lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    named = [Requirement(line) for line in lines if line and not line.startswith("-")]
    assert named
    for requirement in named:
        versions = {str(x.specifier) for x, _ in pinned[canonicalize_name(requirement.name)]}
        assert str(requirement.specifier) in versions, f"{requirement}: run scripts/pins"
    for entries in pinned.values():
        for requirement, hashes in entries:
            assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), requirement
            assert re.match(r"sha256:[0-9a-f]{64}\b", hashes), requirement


def test_what_is_installed_together_agrees() -> None:
    """pip refuses two versions of one package, and so do the tools of the bench."""
    tools, bench = pins(ROOT / "requirements.txt"), pins(ROOT / "benchmarks/requirements.txt")
    for name in tools.keys() & bench.keys():
        assert {str(x.specifier) for x, _ in bench[name]} <= {
            str(x.specifier) for x, _ in tools[name]
        }


def test_tools_are_installed_by_hashes_only() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in COMMANDS
        if path.is_file() and path.suffix not in (".py", ".md", ".txt", ".in")
        # Apps of others, installed as their users do; npm holds its lock's hashes by itself.
        if ROOT / "molecule/apps" not in path.parents
        for line in path.read_text(errors="replace").splitlines()
        if re.search(r"\bpipx\b|\bpip\d?\"? (install|download)\b|\bnpm (ci|install)\b", line)
    ]
    assert len(found) >= 4
    assert [x for x in found if "--require-hashes" not in x] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit(path: Path) -> None:
    uses = re.findall(r"\buses: *(.*)", path.read_text())
    assert uses
    for line in uses:
        # A tag can be moved to other code. The comment is what dependabot reads.
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_dependabot_looks_at_each_place_with_pins() -> None:
    text = (ROOT / ".github/dependabot.yml").read_text()
    listed = re.search(r"directories: \[(.*)\]", text)
    assert listed
    places = {x.strip().strip("/") or "." for x in listed[1].split(",")}
    assert places == {str(path.parent.relative_to(ROOT)) for path in NAMED}
