"""Change what could lock everybody out such that it takes itself back unless it is confirmed.

While a change waits for its confirmation, a record says what to go back to, who made the change and
until when. A timer on the server runs the program of the same name with the word revert.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import claims
from .commands import CommandFailed, Failure, Refused, ask, run
from .files import diff, write

PYTHON = "/usr/bin/python3"
PROGRAMS = Path("/usr/local/lib/carafe")


class NotConfirmed(Failure):
    """Why a change is not kept."""


class TakeBack:
    """The change of one program that may wait for its confirmation."""

    def __init__(self, program: str, record: Path, folder: Path, seconds: str) -> None:
        # ``folder`` has the claims, ``seconds`` is the variable that says how long it waits.
        self.program, self.record, self.claims, self.seconds = program, record, folder, seconds
        self.unit = f"carafe-{program}-revert"

    def waiting(self) -> dict[str, Any] | None:
        """Return the record of the change that waits for its confirmation, if one does."""
        return json.loads(self.record.read_text()) if self.record.exists() else None

    @contextlib.contextmanager
    def alone(self, owner: str, check: bool = False) -> Iterator[None]:
        """Hold the claims while no other owner's change waits for its confirmation.

        That takes a moment, until it is confirmed or taken back. What this owner has left
        unconfirmed is of a run that was cut short. With ``check`` nothing is held or waited for.
        """
        while True:
            with claims.locked(self.claims, check):
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

    @contextlib.contextmanager
    def armed(
        self, restore: Callable[[Any], None], owner: str, seconds: int, former: Any, **more: Any
    ) -> Iterator[None]:
        """Arm before a change, so that nothing is ever not taken back; take back what fails."""
        try:
            self.arm(owner, seconds, former, **more)
            yield
        except CommandFailed:
            self.revert(restore)
            raise

    def disarm(self) -> None:
        ask("systemctl", "stop", f"{self.unit}.timer", f"{self.unit}.service")

    def unconfirmed(self, owner: str) -> dict[str, Any]:
        """Return the record of this owner's change, for its confirmation."""
        record = self.waiting()
        if not record or record["owner"] != owner:
            raise NotConfirmed(
                "The confirmation came too late, and what was there before is back. Give it more"
                f" {self.seconds}, and run the playbook again."
            )
        return record

    def settle(self, record: dict[str, Any]) -> None:
        """Let the change be, with what its owner claims by it."""
        claims.claim(self.claims, record["owner"], record["claim"])
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
        ask("systemctl", "stop", f"{self.unit}.timer")
        return True

    def main(self, **words: Callable[[], Any]) -> str | None:
        """Be the program on the server, which does what one of these words means."""
        (word,) = sys.argv[1:] if len(sys.argv) == 2 else ("",)
        if word not in words:
            return f"usage: {self.program} {'|'.join(words)}"
        with claims.locked(self.claims):
            try:
                words[word]()
            except CommandFailed as error:
                return str(error)
        return None


def report(path: Path, before: str, after: str, due: list[str], unconfirmed: bool) -> dict:
    """Return the result of a module that brings a text into force, as far as that was due."""
    shown = [diff(path, before, after)] if before != after else []
    shown += [{"prepared": "".join(f"{reason}\n" for reason in due)}] if due else []
    result = {"changed": bool(due), "due": due, "unconfirmed": unconfirmed, "diff": shown}
    return result | {"changes": [f"write {path}"] if before != after else due}


def answer(
    module: Any,
    present: Callable[[dict, bool], dict],
    later: dict[str, Callable[[dict], bool]],
    refused: str,
    failed: str,
) -> None:
    """End a module by its state: ``present``, ``planned``, or one of ``later`` by another call.

    ``refused`` and ``failed`` are what is said of a change that cannot be, and of a program that
    fails on the way, with {} for the reason.
    """
    params, check = module.params, module.check_mode
    state = params["state"]
    try:
        if state in later:
            module.exit_json(changed=check or later[state](params))
        found = present(params, check or state == "planned")
        if state == "planned":
            found = {"changed": False, "due": found["due"], "unconfirmed": False}
        module.exit_json(**found)
    except Refused as problem:
        module.fail_json(msg=refused.format(problem))
    except CommandFailed as error:
        module.fail_json(msg=failed.format(error))
    except Failure as problem:
        module.fail_json(msg=str(problem))
