"""Change what could lock everybody out such that it takes itself back unless it is confirmed.

While a change waits for its confirmation, a record says what to go back to, who made the change and
until when. A timer on the server runs the program of the same name with the word revert.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import claims
from .files import write

PYTHON = "/usr/bin/python3"
PROGRAMS = Path("/usr/local/lib/carafe")


class NotConfirmed(Exception):
    """Why a change is not kept."""


def run(*command: str, text: str | None = None, check: bool = True) -> str:
    """Run a program and return what it says; with ``check``, CalledProcessError when it fails."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=check)
    return done.stdout


def reason(error: subprocess.CalledProcessError) -> str:
    """Return what failed, and what it said."""
    return f"{' '.join(map(str, error.cmd[:3]))}: {error.stderr.strip()}"


def systemctl(*words: str) -> str:
    return run("systemctl", *words, check=False).strip()


class TakeBack:
    """The change of one program that may wait for its confirmation."""

    def __init__(self, program: str, record: Path, seconds: str) -> None:
        # ``seconds`` is the name of the variable that says how long it waits.
        self.program, self.record, self.seconds = program, record, seconds
        self.unit = f"carafe-{program}-revert"

    def waiting(self) -> dict[str, Any] | None:
        """Return the record of the change that waits for its confirmation, if one does."""
        return json.loads(self.record.read_text()) if self.record.exists() else None

    @contextlib.contextmanager
    def alone(self, folder: Path, owner: str, check: bool = False) -> Iterator[None]:
        """Hold the claims in a folder while no other owner's change waits for its confirmation.

        That takes a moment, until it is confirmed or taken back. What this owner has left
        unconfirmed is of a run that was cut short. With ``check`` nothing is held or waited for.
        """
        while True:
            with claims.locked(folder, check):
                record = None if check else self.waiting()
                if not record or record["owner"] == owner or record["until"] < time.monotonic():
                    yield
                    return
            time.sleep(0.2)

    def arm(self, owner: str, seconds: int, former: Any, **more: Any) -> None:
        """Have the change that follows taken back after some seconds.

        Where an earlier one was never confirmed, what was there before that is what to go back to.
        """
        former = (self.waiting() or {"former": former})["former"]
        self.record.parent.mkdir(mode=0o755, exist_ok=True)
        until = time.monotonic() + seconds
        record = {"owner": owner, "until": until, "former": former, **more}
        write(self.record, json.dumps(record), mode=0o600)
        self.disarm()
        run(
            *("systemd-run", "--quiet", "--collect", f"--unit={self.unit}"),
            *(f"--on-active={seconds}s", "--timer-property=AccuracySec=100ms"),
            *(PYTHON, str(PROGRAMS / self.program), "revert"),
        )

    def disarm(self) -> None:
        systemctl("stop", f"{self.unit}.timer", f"{self.unit}.service")

    def unconfirmed(self, owner: str) -> dict[str, Any]:
        """Return the record of this owner's change, for its confirmation."""
        record = self.waiting()
        if not record or record["owner"] != owner:
            raise NotConfirmed(
                "The confirmation came too late, and what was there before is back. Give it more"
                f" {self.seconds}, and run the playbook again."
            )
        return record

    def settle(self) -> None:
        """Let the change be."""
        self.record.unlink()
        self.disarm()

    def revert(self, restore: Callable[[Any], None], owner: str | None = None) -> bool:
        """Take back what waits for its confirmation, if anything does, and be it this owner's."""
        record = self.waiting()
        if not record or owner not in (None, record["owner"]):
            return False
        restore(record["former"])
        self.record.unlink()
        # Not the service, which this may be.
        systemctl("stop", f"{self.unit}.timer")
        return True
