"""The sandbox of all that runs an app's code, in this one place.

supervisord has it as a drop-in, and hands it down to slots and background workers. The units of
schedules have it, and each step of a release that runs the app's code: a unit that lasts as long as
the step, after which nothing of it is alive.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from .commands import ask

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
# What a container like LXC without nesting cannot have; fit-sandbox takes it from units with files.
NEED_MOUNTS = {
    *("PrivateDevices", "ProtectControlGroups", "ProtectKernelLogs", "ProtectKernelModules"),
    *("ProtectKernelTunables", "ProtectProc", "ProtectSystem", "PrivateTmp", "PrivateIPC"),
    *("InaccessiblePaths", "ReadOnlyPaths", "ReadWritePaths", "TemporaryFileSystem"),
    *("BindPaths", "BindReadOnlyPaths"),
}


@functools.cache
def mounts() -> bool:
    """Tell whether systemd may mount here; where not, a unit with a view of its own ends with 226.

    It is asked before, and not seen by that status: a program could end with it, and so be run
    again without.
    """
    script = "mount --bind /usr /usr && mount -o remount,bind,ro /usr"
    return ask("unshare", "--mount", "sh", "-c", script).returncode == 0


def properties(text: str) -> list[str]:
    """Return the lines that this server can have, without comments."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    if mounts():
        return lines
    return [line for line in lines if line.partition("=")[0] not in NEED_MOUNTS]


def for_app(own: Mapping[str, object] | None = None) -> list[str]:
    """Return what a unit has that runs as an app's user; ``own`` is ``app_sandbox``.

    It comes last. So it sets what has one value anew, and adds to what is a list.
    """
    more = [f"{name}={value}" for name, value in (own or {}).items()]
    return [*properties(SANDBOX + NO_CAPABILITIES), *more]
