"""Start a gunicorn slot, or roll all slots of an app to what they should run.

    gunicorn-slots start CONFIG NUMBER    become slot NUMBER; supervisord runs this
    gunicorn-slots roll CONFIG            restart stale slots, each healthy before the next
    gunicorn-slots roll --check CONFIG    only say which slots are stale

CONFIG is the file slots.json that the role gunicorn makes. The folder that it lies in is that of
the settings, followed once: relative paths of CONFIG begin there, and ``{settings}`` in the command
stands for it. So a slot that starts while the link to the settings moves on has all of one release.

A slot gets the app's listening socket from supervisord as standard input. It adds a private socket,
on which ``roll`` asks just this slot for its health, and hands both to gunicorn as socket
activation does, so that gunicorn never unlinks the socket that the other slots accept on.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .files import read_bytes
from .processes import age, environment, upgraded_in

FINGERPRINT = "GUNICORN_SLOT_FINGERPRINT"
SD_LISTEN_FDS_START = 3  # sd_listen_fds(3)
LOCKS = Path("/run")
LOG_TAIL = 8000  # bytes of a slot's log that a failure shows at most


class SlotError(Exception):
    """Why a roll stopped, in words for whoever deploys."""


def load(path: str | Path) -> dict[str, Any]:
    """Read a configuration, with its paths made absolute."""
    path = Path(path)
    settings = path.parent.resolve(strict=True)
    config = json.loads((settings / path.name).read_text())
    config["settings"] = str(settings)
    for name in ("directory", "venv"):
        config[name] = str(settings / config[name])
    config["files"] = [str(settings / name) for name in config["files"]]
    words = [word.replace("{settings}", str(settings)) for word in config["command"]]
    config["command"] = [str(settings / words[0]) if "/" in words[0] else words[0], *words[1:]]
    return config


def fingerprint(config: dict[str, Any]) -> str:
    """Return a hash of all that a slot takes in at its start: code, configuration, environment."""
    digest = hashlib.sha256()
    for link in (config["settings"], config["directory"], config["venv"]):
        digest.update(os.path.realpath(link).encode() + b"\0")
    for path in map(Path, config["files"]):
        try:
            # Those who start a slot and those who ask for it follow the same links.
            content = read_bytes(path, owners=(0,)) or b""
        except OSError as error:
            raise SlotError(f"{path} cannot be read: {error.strerror}") from None
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def private_socket(config: dict[str, Any], number: int) -> Path:
    return Path(config["private_directory"], f"slot-{number}.sock")


def listen_privately(path: Path) -> socket.socket | None:
    """Return the slot's private socket, or None: a slot can serve without."""
    try:
        path.unlink(missing_ok=True)
        private = socket.socket(socket.AF_UNIX)
        private.bind(str(path))
        path.chmod(0o600)
        private.listen()
    except OSError as error:
        print(f"gunicorn-slots: no private socket, so roll cannot see this slot: {error}")
        return None
    return private


def start(config: dict[str, Any], number: int) -> None:
    """Replace this process by gunicorn, with the shared and the private socket as 3 and 4."""
    private = listen_privately(private_socket(config, number))
    sockets = [0] if private is None else [0, private.fileno()]
    # Copies above 10 first, since 3 or 4 may be in use by the very sockets that move there.
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in sockets]
    for target, copy in enumerate(copies, SD_LISTEN_FDS_START):
        os.dup2(copy, target, inheritable=True)
        os.close(copy)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0, inheritable=True)
    variables = {
        "LISTEN_FDS": str(len(sockets)),
        "LISTEN_PID": str(os.getpid()),
        FINGERPRINT: fingerprint(config),
        # Otherwise setproctitle, where an app has it, writes over the environment that roll reads.
        "SPT_NOENV": "1",
    }
    # Followed once, so that what is imported later comes from the same release: gunicorn keeps PWD,
    # and Python the folder of its executable, as they are written.
    directory = os.path.realpath(config["directory"])
    os.chdir(directory)
    executable = Path(config["command"][0])
    executable = executable.parent.resolve() / executable.name
    os.environ.update(variables, PWD=directory)
    sys.stdout.flush()
    os.execv(executable, [str(executable), *config["command"][1:]])


class Slot:
    """One slot, as supervisord sees it."""

    def __init__(self, rpc: Any, config: dict[str, Any], name: str) -> None:
        self.rpc, self.config, self.number = rpc, config, int(name.rpartition("_")[2])
        self.process = f"{config['program']}:{name}"
        self.socket = private_socket(config, self.number)

    def info(self) -> dict[str, Any]:
        return self.rpc.getProcessInfo(self.process)

    def ask(self) -> str:
        from .unix_http import ask

        return ask(self.socket, self.config["health"])[0]

    def look(self) -> str:
        from .unix_http import look

        return look(self.socket, self.config["health"])

    def trouble(self, wanted: str) -> str:
        """Return '' when the slot runs what is wanted and is well, or why it must be restarted."""
        from .supervisord import RUNNING

        info = self.info()
        if info["statename"] not in RUNNING or not info["pid"]:
            return f"it is {info['statename']}"
        if environment(info["pid"]).get(FINGERPRINT, "") != wanted:
            return "it runs something else"
        if path := upgraded_in(info["pid"]):
            return f"{path} has been upgraded since it began"
        # One that supervisord has just started may still be importing.
        if (age(info["pid"]) or 0) < self.config["health"]["timeout"]:
            return self.wait()
        return self.ask()

    def wait(self) -> str:
        """Return '' once the slot is well, or what is wrong at its or the time's end."""
        from .unix_http import wait

        process = self.info()["pid"]

        def ended() -> str:
            nonlocal process
            info = self.info()
            process = process or info["pid"]
            if info["statename"] not in ("STARTING", "RUNNING") or process != info["pid"]:
                return f"ended: {info['spawnerr'] or info['description'] or info['statename']}"
            return ""

        return wait(self.socket, self.config["health"], ended)[0]

    def restart(self) -> str:
        """Restart the slot; return '' once it is well, or what is wrong."""
        import xmlrpc.client  # nosec B411 # of supervisord, by its own socket

        from .supervisord import stop

        stop(self.rpc, self.process)
        try:
            self.rpc.startProcess(self.process, False)
        except xmlrpc.client.Fault as fault:
            return fault.faultString
        return self.wait()


def roll(path: str | Path, check: bool = False) -> Iterator[str]:
    """Restart each stale or ailing slot, and yield a line for it; with ``check`` only say it.

    Raises SlotError at the first slot that does not become healthy.
    """
    import xmlrpc.client  # nosec B411 # of supervisord, by its own socket

    from .supervisord import connect, log, processes

    config = load(path)
    # Two at a time would stop two slots at once.
    with (LOCKS / f"gunicorn-{config['program']}.lock").open("w") as lock:
        if not check:
            fcntl.flock(lock, fcntl.LOCK_EX)
            config = load(path)
        wanted, rpc = fingerprint(config), connect()
        try:
            slots = [Slot(rpc, config, x["name"]) for x in processes(rpc, config["program"])]
            if not slots:
                raise OSError("it has no such program")
            # Those that serve nothing first: supervisord closes the socket with its last slot.
            slots.sort(key=lambda slot: slot.ask() == "")
            restarted = False
            for slot in slots:
                if not (why := slot.trouble(wanted)):
                    continue
                if check:
                    yield f"slot {slot.number} would be restarted: {why}"
                    continue
                began, (_, size) = time.monotonic(), log(rpc, slot.process, 0)
                restarted = True
                if trouble := slot.restart():
                    written = log(rpc, slot.process, 0)[1] - size
                    # Less than nothing when the log was rotated.
                    length = min(written, LOG_TAIL) if written > 0 else LOG_TAIL
                    raise SlotError(
                        f"slot {slot.number} is not healthy ({trouble});"
                        f" the slots after it were left alone.\n{log(rpc, slot.process, length)[0]}"
                    )
                took = time.monotonic() - began
                yield f"slot {slot.number} restarted in {took:.1f} s: {why}"
            # What was well at its start need not be so by now.
            for slot in slots if restarted else []:
                if trouble := slot.look():
                    raise SlotError(
                        f"slot {slot.number} did not stay healthy ({trouble})."
                        f"\n{log(rpc, slot.process, LOG_TAIL)[0]}"
                    )
        except (OSError, xmlrpc.client.Fault) as error:
            message = f"supervisord does not run {config['program']} as {path} says: {error}"
            if not check:
                raise SlotError(message) from None
            yield f"all slots would be restarted: {message}"


def end(program: str, check: bool = False) -> list[str]:
    """Stop the slots of an app of which nothing serves; return a line for each."""
    from .supervisord import RUNNING, SOCKET, connect, processes, stop

    if not Path(SOCKET).exists():
        return []
    rpc = connect()
    names = [x["name"] for x in processes(rpc, program) if x["statename"] in RUNNING]
    if not check:
        stop(rpc, *(f"{program}:{name}" for name in names))
    return [f"slot {name.rpartition('_')[2]} stopped: nothing serves" for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(prog="gunicorn-slots", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    start_parser = commands.add_parser("start", help="become one slot")
    start_parser.add_argument("config", type=Path)
    start_parser.add_argument("number", type=int)
    roll_parser = commands.add_parser("roll", help="restart stale slots one at a time")
    roll_parser.add_argument("--check", action="store_true", help="change nothing")
    roll_parser.add_argument("config", type=Path)
    options = parser.parse_args()
    try:
        if options.command == "start":
            start(load(options.config), options.number)
        for line in roll(options.config, options.check):
            print(line, flush=True)
    except FileNotFoundError as error:
        sys.exit(f"gunicorn-slots: no release serves: {error.filename} is not there")
    except SlotError as error:
        sys.exit(str(error))
