"""Talk to supervisord, and write what it reads.

Used by modules, and by programs that run without Ansible.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
import time
import xmlrpc.client  # nosec B411 # of supervisord, by its own socket
from typing import Any

from .processes import command_line
from .unix_http import UnixConnection
from .words import escaped

SOCKET = "/run/supervisor.sock"
# supervisor.xmlrpc.Faults
NOT_RUNNING = 70
JUST_STARTED = 10  # seconds within which a child has become its program
RUNNING = ("STARTING", "RUNNING", "BACKOFF")  # what can be stopped

# What a program is where nobody says otherwise.
DEFAULTS = {
    **{"state": "present", "user": "root", "directory": "/", "environment": {}, "numprocs": 1},
    **{"socket_owner": "root:root", "socket_mode": "0660", "startsecs": 1, "startretries": 1000000},
    **{
        "stopsignal": "TERM",
        "stopwaitsecs": 10,
        "priority": 999,
        "log_max_mb": 10,
        "log_backups": 5,
        "must_start": True,
    },
}
HEADER = """; Managed by Ansible.
"""
PROGRAM = """[{kind}:{name}]
command={command}
process_name=%(program_name)s_%(process_num)d
numprocs={numprocs}
{socket}user={user}
umask=022
directory={directory}
autostart=true
autorestart=true
startsecs={startsecs}
startretries={startretries}
stopsignal={stopsignal}
stopwaitsecs={stopwaitsecs}
stopasgroup=false
killasgroup=true
priority={priority}
redirect_stderr=true
stdout_logfile=/var/log/supervisor/{name}_%(process_num)d.log
stdout_logfile_maxbytes={log_max_mb}MB
stdout_logfile_backups={log_backups}
"""


class Transport(xmlrpc.client.Transport):
    """XML-RPC to supervisord, without importing its slow package."""

    def make_connection(self, host: str) -> UnixConnection:
        return UnixConnection(SOCKET)


def connect() -> Any:
    """Return supervisord's methods: http://supervisord.org/api.html."""
    return xmlrpc.client.ServerProxy("http://localhost", transport=Transport()).supervisor


def program_text(program: dict[str, Any]) -> str:
    """Return a program as supervisord reads it, from the options of the role supervisor.

    Variables come through env: supervisord's own environment= has no way to write every value.
    """
    command = program["command"]
    if program["environment"]:
        variables = sorted(program["environment"].items())
        words = " ".join(_escape(f"{name}={value}") for name, value in variables)
        command = f"/usr/bin/env {words} {command}"
    socket = ""
    if program.get("socket"):
        socket = f"socket={program['socket']}\n"
        if program["socket"].startswith("unix:"):
            owner, mode = program["socket_owner"], program["socket_mode"]
            socket += f"socket_owner={owner}\nsocket_mode={mode}\n"
    kind = "fcgi-program" if socket else "program"
    return PROGRAM.format_map(program | {"kind": kind, "command": command, "socket": socket})


def _escape(word: str) -> str:
    """Quote a word for the shell's syntax in a file of configparser's that has formats."""
    text, previous = "", ""
    for letter in shlex.quote(word):
        # A comment begins at a semicolon, or at #, after a blank.
        text += "''" + letter if letter in ";#" and previous.isspace() else letter
        previous = letter
    text = text.replace("\n", "''\n ''")
    return text.replace("%(", "%''(").replace("%", "%%")


def check(path: str) -> str:
    """Return '' when supervisord can read a file of programs, users and paths included, or why not.

    With one file that it cannot read, it starts none of its programs.
    """
    from supervisor.options import ServerOptions, UnhosedConfigParser

    parser = UnhosedConfigParser()
    try:
        parser.read(path)
        ServerOptions().process_groups_from_parser(parser)
    except Exception as error:
        return str(error)
    return ""


def processes(rpc: Any, group: str) -> list[dict[str, Any]]:
    """Return what supervisord knows of a program's processes; nothing when it has no such one."""
    return [info for info in rpc.getAllProcessInfo() if info["group"] == group]


def stop(rpc: Any, *names: str) -> None:
    """Stop processes, all at once, and return once they have ended.

    Each gets one TERM. A second one is an order to drop what it is at, for RQ and others.
    """
    # But the first is lost when it meets a child of supervisord that is not the program yet.
    again = {x: time.monotonic() + 1 for x in names if not is_program(rpc, x)}
    for name in names:
        try:
            rpc.stopProcess(name, False)
        except xmlrpc.client.Fault as fault:
            # Somebody else may be stopping it.
            if fault.faultCode != NOT_RUNNING:
                raise
    for name in names:
        while (info := rpc.getProcessInfo(name))["statename"] == "STOPPING":
            if name in again and time.monotonic() > again[name]:
                if has_begun(rpc, info["pid"]):
                    del again[name]
                else:
                    again[name] += 1
                with contextlib.suppress(xmlrpc.client.Fault):
                    rpc.signalProcess(name, "TERM")
            time.sleep(0.05)


def start(rpc: Any, name: str) -> None:
    """Start a process, once it has ended where it is about to. Somebody else may have done so.

    supervisord takes a start for one that is stopping, and does nothing then.
    """
    with contextlib.suppress(xmlrpc.client.Fault):
        while rpc.getProcessInfo(name)["statename"] == "STOPPING":
            time.sleep(0.05)
        rpc.startProcess(name, False)


def is_program(rpc: Any, name: str) -> bool:
    """Tell whether a process was the program, whenever it may have got its first TERM."""
    info = rpc.getProcessInfo(name)
    if info["statename"] == "STOPPING" and info["now"] - info["start"] < JUST_STARTED:
        return False
    return has_begun(rpc, info["pid"])


def has_begun(rpc: Any, pid: int) -> bool:
    """Tell whether a child of supervisord has become its program, or is gone."""
    return command_line(pid) != command_line(rpc.getPID())


def update(rpc: Any, mine: Any, check: bool = False) -> list[str]:
    """Start what is new, restart what changed, stop what is gone; return a line for each.

    ``mine`` tells by a name whether a program is the caller's; others are left to their owners.
    With ``check`` it is only said.
    """
    found = rpc.reloadConfig()[0]
    added, changed, removed = ([name for name in names if mine(name)] for names in found)
    for name in [*removed, *changed] if not check else []:
        with contextlib.suppress(xmlrpc.client.Fault):
            rpc.stopProcessGroup(name)
        rpc.removeProcessGroup(name)
    for name in [*changed, *added] if not check else []:
        rpc.addProcessGroup(name)
    said = {"started": added, "changed": changed, "removed": removed}
    return [f"{name}: {what}" for what, names in said.items() for name in names]


def log(rpc: Any, process: str, length: int) -> tuple[str, int]:
    """Return the end of a process's log, and the log's size; there may be none yet.

    It is read from the file: what is no text of XML, such as a colour of the terminal, supervisord
    sends along as it is, and nobody can read its answer.
    """
    try:
        path = rpc.getProcessInfo(process)["stdout_logfile"]
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        with os.fdopen(os.open(path, flags), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                return "", 0
            file.seek(max(about.st_size - length, 0))
            return escaped(file.read(length)), about.st_size
    except (OSError, xmlrpc.client.Fault):
        return "", 0
