"""Tell who is at the other end of the ssh connection that this process was started by."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    pid: str
    name: str
    started: str
    environ: dict[str, str]


@dataclass(frozen=True)
class Peer:
    """A connection as the server sees it. Addresses are without mapping to IPv6, and without scope.

    The user is who logged in, whoever that has become since, and unknown below no sshd.
    """

    user: str | None
    client: str
    server: str
    port: int


def ancestry() -> Iterator[Process]:
    """Yield this process and those that started it, the nearest first, as far as they are seen."""
    pid = "self"
    try:
        while pid != "0":
            stat = (PROC / pid / "stat").read_text()
            name, _, rest = stat.partition("(")[2].rpartition(")")
            fields = rest.split()
            words = (PROC / pid / "environ").read_bytes().decode(errors="replace").split("\0")
            environ = dict(word.split("=", 1) for word in words if "=" in word)
            # A number is used again in time; with the time of its start it is unique.
            yield Process(stat.split()[0], name, fields[19], environ)
            pid = fields[1]
    except OSError:
        pass  # a process of the host's, where a container is the server


def address(text: str) -> str | None:
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        # UNKNOWN: by a socket of the machine that hosts this one, which has no addresses and ports.
        return None
    return str(getattr(found, "ipv4_mapped", None) or found)


def peer() -> Peer | None:
    """Return who is connected by ssh, if anybody.

    sudo drops SSH_CONNECTION from the environment, but what started sudo still has it. Where
    somebody went on from one server to the next, the nearest is how this one was reached.
    """
    found: dict[str, str] = {}
    user = None
    for process in ancestry():
        if process.name.startswith("sshd"):
            break
        # The last one below sshd is as sshd started it.
        user = process.environ.get("LOGNAME")
        found = found or (process.environ if "SSH_CONNECTION" in process.environ else {})
    else:
        user = None
    words = found.get("SSH_CONNECTION", "").split()
    if len(words) != 4 or None in (client := address(words[0]), server := address(words[2])):
        return None
    return Peer(user, client, server, int(words[3]))


def session() -> str | None:
    """Return what only processes of this very connection have in common, if it is one of ssh."""
    return next((f"{x.pid} {x.started}" for x in ancestry() if x.name.startswith("sshd")), None)
