"""The sandbox of all that runs an app's code, in this one place.

supervisord has it as a drop-in, and hands it down to slots and background workers. The units of
schedules have it, and each step of a release that runs the app's code: a unit that lasts as long as
the step, after which nothing of it is alive.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from .commands import Refused, ask

# In the syntax of a unit's [Service]: each takes away what no program of a web app needs.
SANDBOX = """\
# Not strict, and no ProtectHome=: apps lie in /srv, /opt or /home, and write there what their
# users may.
ProtectSystem=full
# No PrivateTmp=: programs share files with commands and timers outside, and nginx may look for
# sockets in /tmp.
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
# No ProcSubset=: programs read the number of processors and the memory there.
ProtectProc=invisible
# So sudo does nothing for a program, nor does sendmail where that is setgid.
NoNewPrivileges=yes
LockPersonality=yes
RestrictNamespaces=yes
RestrictRealtime=yes
# No RestrictSUIDSGID=: shutil.copytree() of a folder that hands down its group, as those of a
# release do, would fail.
# By netlink, names are looked up in the kinds of address that the server has.
RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK AF_UNIX
# No MemoryDenyWriteExecute=: numba, PyPy, wasmtime and the like compile to machine code. No UMask=:
# nginx may read what an app writes.
SystemCallArchitectures=native
SystemCallFilter=@system-service
# It is among them, and a second way into most of the kernel. Debian 12's has no setting that closes
# it.
SystemCallFilter=~io_uring_setup io_uring_enter io_uring_register
# An error that a program can handle, rather than its death.
SystemCallErrorNumber=EPERM
"""
# What a unit that runs as the app's user needs none of. supervisord keeps a few, to become that
# user: they are in its role.
NO_CAPABILITIES = "CapabilityBoundingSet=\n"
# What a release is built in, beside all that: packages run code of theirs in it, before anybody has
# looked at what they are. The folders that it may write, and what it may not read, come to it.
BUILD = """\
ProtectSystem=strict
PrivateTmp=yes
PrivateIPC=yes
TemporaryFileSystem=/dev/shm:mode=1777
# The user is the one that acts as the database's owner: without a socket of PostgreSQL's, nor any
# other of the server's, it is nobody there. What looks up names stays.
TemporaryFileSystem=/run:ro
BindReadOnlyPaths=-/run/systemd/resolve
BindReadOnlyPaths=-/run/resolvconf
BindReadOnlyPaths=-/run/NetworkManager/resolv.conf
BindReadOnlyPaths=-/run/nscd
# Nor does it see into processes that the user has elsewhere, such as a migration's environment.
PrivateUsers=yes
# Where memory runs short, for the app or for the server, it goes before what serves.
OOMScoreAdjust=500
"""
# What a container like LXC without nesting cannot have; fit-sandbox takes it from units with files.
NEED_MOUNTS = {
    *("PrivateDevices", "ProtectControlGroups", "ProtectKernelLogs", "ProtectKernelModules"),
    *("ProtectKernelTunables", "ProtectProc", "ProtectSystem", "PrivateTmp", "PrivateIPC"),
    *("InaccessiblePaths", "ReadOnlyPaths", "ReadWritePaths", "TemporaryFileSystem"),
    *("BindPaths", "BindReadOnlyPaths"),
}
RUN = Path("/run")  # where a step's variables lie, as long as it begins
# What root's environment says of root, and is another thing for the user of a step.
OF_ROOT = re.compile(r"(HOME|USER|LOGNAME|SHELL|MAIL|PWD|OLDPWD|(SUDO|SSH|XDG)_.*)")
OWN = dict(os.environ)


@functools.cache
def mounts() -> bool:
    """Tell whether systemd may mount here; where not, a unit with a view of its own ends with 226.

    It is asked before, and not seen by that status: a program could end with it, and so be run
    again without.
    """
    script = "mount --bind /usr /usr && mount -o remount,bind,ro /usr"
    return ask("unshare", "--mount", "sh", "-c", script).returncode == 0


@functools.cache
def users() -> bool:
    """Tell whether systemd may make a namespace of users here."""
    return ask("unshare", "--user", "true").returncode == 0


def properties(text: str) -> list[str]:
    """Return the lines that this server can have, without comments."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    missing = set() if mounts() else NEED_MOUNTS
    if "PrivateUsers=yes" in lines and not users():
        missing = missing | {"PrivateUsers"}
    return [line for line in lines if line.partition("=")[0] not in missing]


def for_app(own: Mapping[str, object] | None = None) -> list[str]:
    """Return what a unit has that runs as an app's user; ``own`` is ``app_sandbox``.

    It comes last. So it sets what has one value anew, and adds to what is a list.
    """
    more = [f"{name}={value}" for name, value in (own or {}).items()]
    return [*properties(SANDBOX + NO_CAPABILITIES), *more]


def for_build(
    written: Iterable[Path],
    hidden: Iterable[Path],
    covered: Mapping[Path, Path],
    memory: str,
    tasks: int,
    own: Mapping[str, object] | None = None,
) -> list[str]:
    """Return what a unit has that builds a release.

    It writes these folders, finds the hidden ones empty, and reads another file, or folder, in the
    place of each that is covered.
    """
    places = [
        *(f"ReadWritePaths={path}" for path in written),
        *(f"TemporaryFileSystem={path}:ro" for path in hidden),
        *(f"BindReadOnlyPaths={there}:{path}" for path, there in covered.items()),
        f"MemoryMax={memory}",
        f"TasksMax={tasks or 'infinity'}",
    ]
    return [*for_app(own), *properties("\n".join([BUILD, *places]))]


def check() -> None:
    """Refuse a server on which nothing could be run in it."""
    if not Path("/run/systemd/system").is_dir():
        raise Refused(
            "systemd does not run this server, and each step of a release runs in a unit of its."
            " Look at process 1 there: ps -p 1"
        )


class Unit:
    """A unit that lasts as long as a command, after which nothing that it began is alive."""

    def __init__(self, app: str, user: str, where: str, lines: Iterable[str], seconds: int) -> None:
        self.name, self.user, self.lines = f"carafe-{app}-{os.urandom(4).hex()}", user, lines
        self.description, self.seconds = f"A step of a release of {app}", seconds
        self.where = where  # the slice, which says what the app may have

    @contextlib.contextmanager
    def command(
        self, words: Iterable[str], environment: Mapping[str, str], folder: Path | None = None
    ) -> Iterator[list[str]]:
        """Yield what runs a command in it, with a copy of this environment."""
        import tempfile  # slow, and most runs have nothing to do

        lines = [
            f"User={self.user}",
            f"Slice={self.where}",
            f"WorkingDirectory={folder or '/'}",
            "UMask=0022",
            # As in a shell: a program whose reader has gone ends.
            "IgnoreSIGPIPE=no",
            # All that is left when the command ends.
            "KillSignal=SIGKILL",
            # For want of whoever has begun it, who would end it sooner.
            f"RuntimeMaxSec={self.seconds + 30}",
            *self.lines,
        ]
        # Not as arguments, which everybody reads, nor in the unit, which D-Bus shows to all.
        with tempfile.NamedTemporaryFile("w", dir=RUN, prefix="carafe-") as file:
            file.write(variables(environment))
            file.flush()
            yield [
                *("systemd-run", "--quiet", "--wait", "--pipe", f"--unit={self.name}"),
                *(f"--description={self.description}", f"--property=EnvironmentFile={file.name}"),
                *(f"--property={line}" for line in lines),
                # systemd would put variables in.
                *("--", *(word.replace("$", "$$") for word in words)),
            ]

    def kill(self, signal: str) -> None:
        ask("systemctl", "kill", f"--signal={signal}", f"{self.name}.service")

    def failed(self) -> str:
        """Return what systemd has to say of a command that failed, in its word, and forget it."""
        unit = f"{self.name}.service"
        result = ask("systemctl", "show", "--value", "--property=Result", unit).stdout.strip()
        ask("systemctl", "reset-failed", unit)
        return result


def variables(environment: Mapping[str, str]) -> str:
    """Return variables as systemd reads them, without those of this process that are about root."""
    lines = []
    for name, value in sorted(environment.items()):
        about_root = OF_ROOT.fullmatch(name) and OWN.get(name) == value
        if about_root or not name.isidentifier():
            continue
        with contextlib.suppress(UnicodeEncodeError):
            value.encode()
            lines.append(f"{name}={shlex.quote(value)}\n")
    return "".join(lines)
