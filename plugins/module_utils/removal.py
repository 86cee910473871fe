"""Take from a server what was one app's: programs, units, files and users.

All of it is asked of the server, so that a removal that was cut short is gone on with, and a second
one finds nothing.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import grp
import os
import pwd
import re
import time
import xmlrpc.client  # nosec B411 # of supervisord, by its own socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from . import files, supervisord
from .commands import Failure, Refused, ask, run
from .release_settings import NOLOGIN, STAMPS
from .services import slice_of

UNITS = Path("/etc/systemd/system")
PROGRAMS = Path("/etc/supervisor/conf.d")
LOGS = Path("/var/log/supervisor")
# What the system keeps of a user, or of a timer, elsewhere.
OF_A_USER = ("/var/spool/cron/crontabs/{}", "/var/mail/{}", "/var/lib/systemd/linger/{}")
PATIENCE = 10  # seconds for which a user's processes are waited for


class Removal:
    """What is to go, and what went, in a sentence for each."""

    def __init__(self, check: bool) -> None:
        self.check = check
        self.changes: list[str] = []

    def note(self, sentence: str) -> bool:
        """Note a change; return whether it is to be made."""
        self.changes.append(sentence)
        return not self.check

    def programs(self, patterns: Iterable[str]) -> None:
        """Stop programs of supervisord's, and remove their files and logs.

        Other programs go on: supervisord is not restarted, and takes in nothing of theirs.
        """
        wanted = list(patterns)

        def mine(name: str) -> bool:
            return any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)

        rpc, running = supervisord.connect(), set()
        if wanted and Path(supervisord.SOCKET).exists():
            # One that does not answer runs nothing.
            with contextlib.suppress(OSError):
                running = {x["group"] for x in rpc.getAllProcessInfo() if mine(x["group"])}
        written = [
            path
            for path in PROGRAMS.glob("*.conf")
            # A file with several programs, such as an app's workers, is named after none of them.
            if mine(path.stem)
        ]
        for path in written:
            if self.note(f"remove {path}"):
                files.remove(path)
        for name in sorted(running):
            self.note(f"stop the program {name}")
        if running and not self.check:
            supervisord.update(rpc, mine)
        self.paths(map(str, self.logs(mine)))

    def logs(self, mine: Any) -> list[Path]:
        """Return the programs' logs. shop_two_0.log is not one of shop's."""
        found = {path: re.fullmatch(r"(.+)_\d+\.log(\.\d+)?", path.name) for path in LOGS.glob("*")}
        return sorted(path for path, x in found.items() if x and mine(x[1]))

    def units(self, patterns: Iterable[str]) -> None:
        """Stop and disable units, and remove their files."""
        found = sorted(
            path.name
            for pattern in patterns
            for path in UNITS.glob(pattern)
            if path.is_file() or path.is_symlink()
        )
        for name in found:
            self.note(f"stop and remove {name}")
        if not found or self.check:
            return
        # A service that its timer started is stopped as well.
        timers = [x for x in found if x.endswith(".timer")]
        for names in (timers, [x for x in found if x not in timers]):
            if names:
                ask("systemctl", "disable", "--quiet", "--now", *names)
                ask("systemctl", "stop", *names)
        for name in found:
            files.remove(UNITS / name)
            files.remove(STAMPS / f"stamp-{name}")
        run("systemctl", "daemon-reload")
        ask("systemctl", "reset-failed", *found)

    def paths(self, patterns: Iterable[str]) -> None:
        """Remove files and folders, with all that is in them."""
        for pattern in patterns:
            if len(Path(pattern).parts) < 3:
                raise Refused(f"{pattern} is not one app's alone, and stays. Nothing of it went.")
            exact = os.path.lexists(pattern)
            found = [Path(pattern)] if exact else sorted(Path("/").glob(pattern.lstrip("/")))
            for path in found:
                if self.note(f"remove {path}"):
                    files.remove(path)

    def link(self, path: Path, aim: str) -> None:
        """Remove a link, where it leads to what goes as well."""
        if path.is_symlink() and str(path.readlink()) == aim and self.note(f"remove {path}"):
            path.unlink()

    def users(self, names: Iterable[str], home: str) -> Iterator[str]:
        """Remove users that were made for an app; yield why another one stays.

        An app may run as a user that the server has for something else, such as www-data, or that
        is a person's. One that was made for the app has its folder for a home.
        """
        for name in dict.fromkeys(names):
            try:
                user = pwd.getpwnam(name)
            except KeyError:
                # One that had members before the app came is theirs.
                with contextlib.suppress(KeyError):
                    if not grp.getgrnam(name).gr_mem:
                        self.group(name)
                continue
            if user.pw_uid == 0 or (user.pw_dir, user.pw_shell) != (home, NOLOGIN):
                yield (
                    f"The user {name} stays: its home is {user.pw_dir} and its shell"
                    f" {user.pw_shell}, so it is not the app's."
                )
                continue
            self.units([glob.escape(slice_of(name))])
            if self.note(f"remove the user {name}"):
                self.end_processes(user)
                for place in OF_A_USER:
                    files.remove(place.format(name))
                run("userdel", name)
            self.group(name)

    def group(self, name: str) -> None:
        """Remove the group of a user that is gone; userdel leaves it while others are in it."""
        with contextlib.suppress(KeyError):
            group = grp.getgrnam(name)
            others = [x.pw_name for x in pwd.getpwall() if x.pw_gid == group.gr_gid]
            if group.gr_gid >= 100 and not others and self.note(f"remove the group {name}"):
                run("groupdel", name)

    def end_processes(self, user: pwd.struct_passwd) -> None:
        """End what still runs as a user, such as a shell that somebody has opened."""
        until = time.monotonic() + PATIENCE
        for signal in ("TERM", "KILL"):
            while ask("pgrep", "--uid", str(user.pw_uid)).returncode == 0:
                ask("pkill", f"-{signal}", "--uid", str(user.pw_uid))
                if time.monotonic() > until - (PATIENCE / 2 if signal == "TERM" else 0):
                    break
                time.sleep(0.1)
        if ask("pgrep", "--uid", str(user.pw_uid)).returncode == 0:
            raise Failure(
                f"Processes of the user {user.pw_name} do not end. See which: ps -u {user.pw_name}."
                " Run this again when they have."
            )


def remove(wanted: dict[str, Any], check: bool) -> dict[str, Any]:
    """Do all that a module is asked for, in the order in which nothing comes back."""
    removal = Removal(check)
    try:
        removal.programs(wanted["programs"])
        removal.units(wanted["units"])
    except xmlrpc.client.Fault as fault:
        raise Failure(
            f"supervisord does not let a program go: {fault.faultString}. See supervisorctl status,"
            " and run this again."
        ) from None
    for path, aim in wanted["links"].items():
        removal.link(Path(path), aim)
    warnings = list(removal.users(wanted["users"], wanted["home"]))
    removal.paths(wanted["paths"])
    said = "".join(f"{change}\n" for change in removal.changes)
    return {
        "changed": bool(removal.changes),
        "changes": removal.changes,
        "warnings": warnings,
        "diff": [{"prepared": said}] if said else [],
    }
