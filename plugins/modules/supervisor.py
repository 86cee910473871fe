#!/usr/bin/python
"""Keep programs running under supervisord."""

from __future__ import annotations

DOCUMENTATION = """
module: supervisor
short_description: Keep programs running under supervisord
description:
  - >-
    Writes each program into a file of its own, starts supervisord or restarts it where its own
    settings are newer than it,
    lets it take in what changed of these programs, and waits until they run. Programs that are not
    named are left alone.
  - >-
    Asks the server rather than the run what is due, so that a run that was cut short is made up
    for.
options:
  programs:
    description: The programs, with the options that C(supervisor_programs) of the role supervisor
      has.
    type: list
    elements: dict
    default: []
author: [Carafe (@carafe)]
attributes:
  check_mode:
    description: Says what would be written, started and restarted.
    support: full
  diff_mode:
    description: Shows the files of the programs.
    support: full
"""

EXAMPLES = """
- name: Run a worker
  carafe.stack.supervisor:
    programs: "{{ __supervisor_programs }}"
"""

RETURN = """
programs:
  description: What was started, changed or removed.
  type: list
  elements: str
  returned: always
  sample: ["worker: started"]
"""

import os
import shlex
import tempfile
import time
import xmlrpc.client  # nosec B411 # of supervisord, by its own socket
from pathlib import Path
from typing import Any

from ansible_collections.carafe.stack.plugins.module_utils.module import Module

from ..module_utils import services, supervisord
from ..module_utils.commands import Failure
from ..module_utils.file_set import Absent, File, FileSet

FOLDER = Path("/etc/supervisor/conf.d")
PID_FILE = Path("/run/supervisord.pid")
UNIT = "supervisor.service"
# Only a restart brings these into force. It restarts every program.
SETTINGS = [Path("/etc/supervisor/supervisord.conf"), Path("/etc/systemd/system", f"{UNIT}.d")]
STARTING = 10  # seconds beyond a program's startsecs: a few attempts


def files_of(programs: list[dict[str, Any]], check: bool) -> FileSet:
    """Return the files of the programs, each of which supervisord can read."""
    items: list[Absent | File] = []
    for program in programs:
        path = FOLDER / f"{program['name']}.conf"
        if program["state"] == "absent":
            items.append(Absent(path))
            continue
        text = supervisord.HEADER + supervisord.program_text(program)
        file = File(path, content=text.encode())
        items.append(file)
        # A dry run may come before the program's user.
        if check or not file.rewritten:
            continue
        with tempfile.NamedTemporaryFile("w", suffix=".conf") as copy:
            copy.write(text)
            copy.flush()
            if trouble := supervisord.check(copy.name):
                raise Failure(
                    f"supervisord cannot read the program {program['name']}: {trouble}."
                    " Correct supervisor_programs in group_vars and run the playbook again."
                )
    return FileSet(items, check)


def due() -> list[str]:
    """Return what systemd is to do, so that supervisord runs by its settings."""
    newer = services.is_newer([x for x in SETTINGS if x.exists()], PID_FILE)
    verbs = services.due(
        services.state(UNIT, "supervisor-sandbox.service"), "restart" if newer else ""
    )
    # One that fails over and over is "activating", which systemd takes for started.
    return ["restart" if verb == "start" else verb for verb in verbs]


def wait(rpc: Any, programs: list[dict[str, Any]]) -> None:
    """Return when all processes of the programs run; fail when one does not come up.

    One that need not start is waited for as long as it is starting, and never fails.
    """
    deadline = time.monotonic() + max(int(x["startsecs"]) for x in programs) + STARTING
    lenient = {x["name"] for x in programs if not x["must_start"]}
    while True:
        infos = [x for program in programs for x in supervisord.processes(rpc, program["name"])]
        ill = [
            info
            for info in infos
            if info["statename"] == "STARTING"
            or (info["statename"] != "RUNNING" and info["group"] not in lenient)
        ]
        if not ill:
            return
        # One that is starting has no reason to give, and is past that within its startsecs.
        stopped = all(info["statename"] != "STARTING" for info in ill)
        if time.monotonic() > deadline and (stopped or time.monotonic() > deadline + STARTING):
            break
        time.sleep(0.2)
    ill = [info for info in ill if info["group"] not in lenient]
    if not ill:
        return
    why = "; ".join(
        f"{x['group']}:{x['name']} {x['statename']} {x['spawnerr'] or x['description']}"
        for x in ill
    )
    raise Failure(
        f"supervisord cannot keep these running, and goes on trying: {why}. Their output is in"
        " /var/log/supervisor. Correct supervisor_programs in group_vars and run this again."
    )


def run(programs: list[dict[str, Any]], check: bool) -> dict[str, Any]:
    """Bring the programs to what is wanted; return what changed."""
    programs = [supervisord.DEFAULTS | program for program in programs]
    files = files_of(programs, check)
    files.write()
    verbs = due()
    done = [f"supervisord: {verb}" for verb in verbs]
    if not check:
        services.act(UNIT, verbs, "--identifier=supervisord")
    rpc, names = supervisord.connect(), {program["name"] for program in programs}
    if "restart" not in verbs:
        # What a run that was cut short has written and not brought into force is due, too.
        done += supervisord.update(rpc, names.__contains__, check)
    present = [x for x in programs if x["state"] != "absent"]
    # A former run may have failed on one that still does not run.
    if present and not check:
        wait(rpc, present)
    return {"changed": bool(files.paths or done), "programs": done, "diff": files.diff}


def main() -> None:
    module = Module({"programs": {"type": "list", "elements": "dict", "default": []}})
    os.umask(0o022)
    try:
        module.answer(run, module.params["programs"], module.check_mode)
    except (OSError, xmlrpc.client.Fault) as error:
        command = shlex.join(["journalctl", "-u", UNIT])
        module.fail_json(msg=f"supervisord does not take in its programs: {error}. See: {command}")


if __name__ == "__main__":
    main()
