"""The pages of documentation: links lead somewhere, and every page is found from the index."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.any_python

LINK = re.compile(r"\]\(([^)\s]+)\)")


def pages() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / x for x in found.stdout.splitlines() if (ROOT / x).exists()]


def prose(page: Path) -> str:
    """Return a page's text without its blocks of code."""
    return re.sub(r"^( *)```.*?^\1```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return what a link may name in a page, as GitHub makes it of the headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {word.replace(" ", "-") for word in words}


@pytest.mark.parametrize("page", pages(), ids=lambda x: str(x.relative_to(ROOT)))
def test_a_link_leads_somewhere(page: Path) -> None:
    dead = []
    for link in LINK.findall(re.sub(r"`[^`\n]+`(?!\])", "", prose(page))):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        there = target.exists() and target.is_relative_to(ROOT)
        if not there or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert not dead


def test_the_index_names_every_page() -> None:
    index = ROOT / "docs/README.md"
    linked = {(index.parent / x.partition("#")[0]).resolve() for x in LINK.findall(prose(index))}
    assert {page for page in pages() if page.is_relative_to(ROOT / "docs")} - linked == {index}


# A command as the superuser: the program, and what comes after it on the line.
AS_SUPERUSER = re.compile(r"-u postgres(?: --)? +(?P<program>[a-z_]+)(?P<rest>[^`\n|<>&;]*)")


def enters(text: str) -> list[str]:
    """Return the commands of a text by which the superuser enters a database that is not his.

    Whoever owns it can put code there that runs as who enters.
    """
    found = []
    for command in AS_SUPERUSER.finditer(text):
        words = re.sub(r"'[^']*'|\"[^\"]*\"|%s| -\S+", "", command["rest"]).split()
        from_outside = command["program"] in ("createdb", "createuser", "dropdb", "dropuser")
        if not from_outside and (command["program"] != "psql" or words not in ([], ["postgres"])):
            found.append(command[0])
    return found


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("sudo -u postgres psql guestbook", 1),
        ("sudo -u postgres pg_dump --format=custom shop >shop.dump", 1),
        ("`sudo -u postgres psql -XAtc 'SELECT 1' shop`", 1),
        ("runuser -u postgres -- vacuumdb --all", 1),
        ("sudo -u postgres psql -c 'SELECT name FROM pg_settings'`.", 0),
        ("runuser -u postgres -- psql -XAt postgres", 0),
        ("sudo -u postgres dropdb shop; sudo -u shop psql shop", 0),
    ],
)
def test_commands_by_which_the_superuser_enters_are_found(text: str, count: int) -> None:
    assert len(enters(text)) == count


def test_nothing_that_users_read_sends_the_superuser_into_a_database_of_an_app() -> None:
    folders = ["README.md", "docs", "roles", "playbooks", "plugins", "group_vars", "inventory"]
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in names.splitlines() if (ROOT / name).is_file()]
    assert len(files) > 100
    assert {x for file in files for x in enters(file.read_text(errors="replace"))} == set()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 1150
