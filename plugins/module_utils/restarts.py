"""Restart what runs with libraries that have been upgraded since it began, with no request lost.

    restart-upgraded            restart it, and say what is left to be restarted by hand
    restart-upgraded --list     only say what is to be restarted

Slots of gunicorn are rolled, other programs of supervisord end what they are at, nginx gives its
sockets to its successor, and PostgreSQL is restarted in a moment at which requests wait. Whatever
else runs goes on, and is named.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import time
import xmlrpc.client  # nosec B411 # of supervisord, by its own socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from . import database_restart, slots, supervisord
from .commands import Failure
from .processes import units_upgraded, upgraded, upgraded_in

PROGRAMS = Path("/etc/supervisor/conf.d")
SUPERVISOR, NGINX = "supervisor.service", "nginx.service"
CLUSTER = "postgresql@"
SCOPES = "carafe-supervised-"  # of the programs of an app that has a slice


def slot_files(folder: Path) -> dict[str, str]:
    """Return the slots.json of each program of supervisord's that is a gunicorn in slots."""
    found = {}
    for path in folder.glob("*.conf"):
        for part in re.split(r"^\[", path.read_text(errors="replace"), flags=re.MULTILINE):
            name = re.match(r"fcgi-program:(.+)\]", part)
            start = re.search(r"^command=.*/gunicorn-slots start (\S+) ", part, re.MULTILINE)
            if name and start:
                found[name[1]] = start[1]
    return found


def restart_programs(rpc: Any, known: dict[str, str], only_list: bool) -> Iterator[str]:
    """Restart the programs of supervisord that need it, one at a time."""
    for name, config in sorted(known.items()):
        try:
            for line in slots.roll(config, only_list):
                yield f"{name}: {line}"
        except FileNotFoundError:
            continue  # nothing of it serves yet
        except slots.SlotError as error:
            yield f"{name}: {error}"
    for info in rpc.getAllProcessInfo():
        path = upgraded_in(info["pid"]) if info["pid"] and info["group"] not in known else ""
        if not path:
            continue
        process, why = f"{info['group']}:{info['name']}", f"{path} has been upgraded since it began"
        if only_list:
            yield f"{process} would be restarted: {why}"
            continue
        with database_restart.at_the_end(partial(start, process)):
            supervisord.stop(rpc, process)
        yield f"{process} restarted: {why}"


def start(process: str) -> None:
    # What this program has is its own, and not its child's.
    supervisord.start(supervisord.connect(), process)


def upgrade_nginx(path: str, only_list: bool) -> str:
    """Let nginx start a successor that takes its sockets over, as its package does."""
    if only_list:
        return f"nginx would start a successor: {path} has been upgraded since it began"
    done = subprocess.run(
        ["/etc/init.d/nginx", "upgrade"], capture_output=True, text=True, check=False
    )
    deadline = time.monotonic() + 60
    # The old one ends once its last connection is idle.
    while NGINX in units_upgraded() and time.monotonic() < deadline:
        time.sleep(0.2)
    if done.returncode or NGINX in units_upgraded():
        said = " ".join((done.stderr or done.stdout).split())
        return f"nginx did not give way to a successor: {said or 'it still runs'}"
    return f"nginx gave way to a successor: {path} has been upgraded since it began"


def restart_database(unit: str, path: str, only_list: bool) -> str:
    """Restart PostgreSQL where that loses nothing, and say so, or why it waits."""
    why = f"{path} has been upgraded since it began"
    try:
        if only_list:
            database_restart.check()
            return f"{unit} would be restarted while requests wait: {why}"
        seconds = database_restart.restart(slot_files(PROGRAMS))
        return f"{unit} restarted, while requests waited for {seconds:.1f} s: {why}"
    except database_restart.Busy as busy:
        return waits(unit, path, str(busy))
    except (OSError, Failure, xmlrpc.client.Fault) as error:
        return waits(unit, path, f"this failed: {error}")


def restart(only_list: bool) -> Iterator[str]:
    """Restart what can be restarted unnoticed; yield a line for each, and for each that is left."""
    before = units_upgraded()
    left = set(before) - {SUPERVISOR, NGINX}
    if any(unit == SUPERVISOR or unit.startswith(SCOPES) for unit in before):
        try:
            rpc = supervisord.connect()
            yield from restart_programs(rpc, slot_files(PROGRAMS), only_list)
            left |= {SUPERVISOR} if upgraded(rpc.getPID()) else set()
        except (OSError, xmlrpc.client.Fault) as error:
            yield f"supervisord does not answer: {error}"
    if NGINX in before:
        yield upgrade_nginx(before[NGINX], only_list)
    for unit in sorted(x for x in left if x.startswith(CLUSTER)):
        left.remove(unit)
        yield restart_database(unit, before[unit], only_list)
    yield from (waits(unit, before[unit]) for unit in sorted(left) if unit.endswith(".service"))


def waits(unit: str, path: str, why: str = "") -> str:
    """Say that a unit is left to the operator, to the next reboot, or to another night."""
    return (
        f"{unit} runs {path} as it was before an upgrade{why and f'; {why}'}. When it suits:"
        f" systemctl restart {unit.removesuffix('.service')}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="restart-upgraded", description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="change nothing")
    options = parser.parse_args()
    for line in restart(options.list):
        print(line, flush=True)
