"""Run programs on the server, and say in one line what failed.

Used by modules, and by programs that run without Ansible.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any


class Failure(Exception):
    """What could not be done, in one or two sentences that say what to do."""


class Refused(Failure):
    """What is wanted and cannot be. Nothing was changed."""


class CommandFailed(Failure):
    """A program that failed, and what it said."""


def ask(
    *command: str | Path, text: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program that may fail, with a text as its standard input."""
    return subprocess.run(
        command,
        input=text,
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C.UTF-8", **environment},
        check=False,
    )


def run(*command: str | Path, text: str = "") -> str:
    """Run a program that is to succeed, and return what it says."""
    done = ask(*command, text=text)
    if done.returncode:
        said = " ".join((done.stderr.strip() or done.stdout).split())
        raise CommandFailed(f"{' '.join(map(str, command[:3]))}: {said}")
    return done.stdout


def show(names: str, *units: str, options: Any = ()) -> list[dict[str, str]]:
    """Return what systemd knows of each unit, by the names of the properties."""
    text = run("systemctl", "show", *options, f"--property={names}", *units)
    return [
        dict(line.split("=", 1) for line in unit.splitlines())
        for unit in text.strip().split("\n\n")
    ]
