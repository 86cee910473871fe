"""Ask a server on a unix socket for its health, and wait until it is well.

Used by modules, and by programs that run without Ansible.
"""

from __future__ import annotations

import errno
import http.client
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .files import held

# One good answer may be the last: so many are asked for in a row, as far as they take no more than
# these seconds together. Once well and then not, it has little time to be well again.
IN_A_ROW, BRIEF, PATIENCE = 3, 0.1, 5


class Socket(socket.socket):
    """A unix socket whose timeout is for all that is read, not for each byte of it."""

    deadline: float | None = None

    def recv_into(self, *arguments: Any) -> int:
        if self.deadline is not None:
            self.settimeout(max(self.deadline - time.monotonic(), 0.001))
        return super().recv_into(*arguments)


class UnixConnection(http.client.HTTPConnection):
    """HTTP to a unix socket, not to what a link in its place leads to."""

    def __init__(self, path: str | Path, timeout: float | None = None) -> None:
        super().__init__("localhost", timeout=timeout)
        self.path = str(path)

    def connect(self) -> None:
        with held(self.path) as (way, there):
            if not stat.S_ISSOCK(there.st_mode):
                raise OSError(errno.ENOTSOCK, "It is no socket", self.path)
            self.sock = Socket(socket.AF_UNIX)
            if self.timeout is not None:
                self.sock.settimeout(self.timeout)
                self.sock.deadline = time.monotonic() + self.timeout
            self.sock.connect(way)


def judge(path: str, status: int) -> str:
    """Return '' for an answer of a healthy app, or what is wrong with it.

    A path that somebody named for this answers 2xx or 3xx. Where none is named, ``/`` is asked,
    which an app need not have: it answers below 500.
    """
    well = 200 <= status < 400 if path else status < 500
    return "" if well else f"{path or '/'} answered {status}"


def ask(where: str | Path, health: dict[str, Any], timeout: float = 10) -> tuple[str, int]:
    """Ask once, as a visitor would: return '' or what is wrong, and the status or 0.

    ``health`` has ``path`` (or '') and ``host``.
    """
    path = health["path"] or "/"
    connection = UnixConnection(where, timeout)
    headers = {"Host": health["host"], "X-Forwarded-Proto": "https", "X-Forwarded-For": "127.0.0.1"}
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        answer.read(65536)  # else the app would log a broken pipe
    except OSError as error:
        return f"no answer to {path}: {error}", 0
    except http.client.HTTPException as error:
        # Not its text, which has what the app sent: this is written down where more may read it.
        return f"no answer to {path} that is HTTP: {type(error).__name__}", 0
    finally:
        connection.close()
    return judge(health["path"], answer.status), answer.status


def wait(where: str | Path, health: dict[str, Any], ended: Callable[[], str]) -> tuple[str, int]:
    """Wait until it is well and stays so; return what ask() does, or why the server has ended.

    ``health`` has ``timeout`` (seconds) besides; ``ended`` returns '' as long as the server runs.
    """
    deadline = time.monotonic() + health["timeout"]
    trouble, status, pause = "it did not start", 0, 0.05
    good, first, flaps = 0, 0.0, False
    while (left := deadline - time.monotonic()) > 0 or good:
        if why := ended():
            return why, 0
        trouble, status = ask(where, health, health["timeout"] if good else left)
        now = time.monotonic()
        if not trouble:
            good, first = good + 1, first if good else now
            # A second one at least, whatever the first one took.
            if good == IN_A_ROW or (good > 1 and now - first > BRIEF):
                return "", status
            continue
        if good:
            good, flaps, deadline = 0, True, min(deadline, now + PATIENCE)
        time.sleep(pause)
        if status:  # each answer may fill the log with a traceback
            pause = min(pause * 1.5, 1)
    if flaps:
        return f"it was well, and then not: {trouble}", status
    return f"not healthy within {health['timeout']} s: {trouble}", status


def look(where: str | Path, health: dict[str, Any]) -> str:
    """Return '' when what was well is so still, or what is wrong with it."""
    if not ask(where, health)[0]:
        return ""
    return wait(where, {**health, "timeout": min(health["timeout"], PATIENCE)}, str)[0]
