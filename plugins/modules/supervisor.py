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
  newer:
    description: Files and folders that supervisord must be younger than; it is restarted when it is
      not.
    type: list
    elements: path
    default: [/etc/supervisor/supervisord.conf, /etc/systemd/system/supervisor.service.d]
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

import difflib
import os
import shlex
import subprocess
import tempfile
import time
import xmlrpc.client  # nosec B411
from pathlib import Path
from typing import Any

from ansible_collections.carafe.stack.plugins.module_utils import files, supervisord
from ansible_collections.carafe.stack.plugins.module_utils.module import Module

FOLDER = Path("/etc/supervisor/conf.d")
PID_FILE = Path("/run/supervisord.pid")
UNIT = "supervisor.service"
STARTING = 10  # seconds beyond a program's startsecs: a few attempts


class Failure(Exception):
    """What went wrong, in words for whoever runs the playbook."""


def call(*words: str) -> str:
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.stdout.strip()


def write_programs(programs: list[dict[str, Any]], check: bool) -> list[tuple[Path, str, str]]:
    """Write the files of the programs; return path, old and new text of those that changed."""
    changed = []
    for program in programs:
        path = FOLDER / f"{program['name']}.conf"
        gone = program["state"] == "absent"
        before = files.read(path)
        text = None if gone else supervisord.HEADER + supervisord.program_text(program)
        if before == text:
            continue
        changed.append((path, before or "", text or ""))
        if gone and not check:
            path.unlink()
        elif not check:
            with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
                file.write(text)
                file.flush()
                if trouble := supervisord.check(file.name):
                    raise Failure(
                        f"supervisord cannot read the program {program['name']}: {trouble}."
                        " Correct supervisor_programs in group_vars and run the playbook again."
                    )
            files.write(path, text, owner="root", group="root")
    return changed


def unloaded(newer: list[str]) -> str:
    """Return 'started' or 'restarted', when supervisord must be, or ''."""
    # A unit that fails over and over is "activating", which systemctl takes for started.
    if call("systemctl", "is-active", UNIT) != "active" or not PID_FILE.exists():
        return "restarted"
    began = PID_FILE.stat().st_mtime
    paths = [path for name in newer for path in (Path(name), *Path(name).rglob("*"))]
    return "restarted" if any(x.exists() and x.stat().st_mtime > began for x in paths) else ""


def start() -> None:
    """Start supervisord anew, which starts every program."""
    # Whatever has made it due may be its unit's.
    call("systemctl", "daemon-reload")
    if subprocess.run(["systemctl", "restart", UNIT], capture_output=True).returncode:
        journal = ["journalctl", f"--unit={UNIT}", "--identifier=supervisord", "--lines=3"]
        raise Failure(
            f"supervisord does not start. {call(*journal, '--output=cat', '--no-pager')}"
            " Mend or remove what it names, and run the playbook again."
        )


def wait(rpc: Any, programs: list[dict[str, Any]]) -> None:
    """Return when all processes of the programs run; fail when one does not come up."""
    deadline = time.monotonic() + max(int(x["startsecs"]) for x in programs) + STARTING
    while True:
        infos = [x for program in programs for x in supervisord.processes(rpc, program["name"])]
        ill = [info for info in infos if info["statename"] != "RUNNING"]
        if not ill:
            return
        # One that is starting has no reason to give, and is past that within its startsecs.
        stopped = all(info["statename"] != "STARTING" for info in ill)
        if time.monotonic() > deadline and (stopped or time.monotonic() > deadline + STARTING):
            break
        time.sleep(0.2)
    why = "; ".join(
        f"{x['group']}:{x['name']} {x['statename']} {x['spawnerr'] or x['description']}"
        for x in ill
    )
    raise Failure(
        f"supervisord cannot keep these running, and goes on trying: {why}. Their output is in"
        " /var/log/supervisor. Correct supervisor_programs in group_vars and run this again."
    )


def run(params: dict[str, Any], check: bool) -> dict[str, Any]:
    """Bring the programs to what is wanted; return what changed."""
    if not Path("/usr/bin/supervisord").exists():
        # A dry run on a bare server.
        lines = [f"{x['name']}: would be started" for x in params["programs"]]
        return {"changed": bool(lines), "programs": lines}
    programs = [supervisord.DEFAULTS | program for program in params["programs"]]
    present = [x for x in programs if x["state"] != "absent"]
    written = write_programs(programs, check)
    texts = [
        (old.splitlines(True), new.splitlines(True), f"{path} (before)", str(path))
        for path, old, new in written
    ]
    diff = "".join(line for text in texts for line in difflib.unified_diff(*text))
    what, done = unloaded(params["newer"]), []
    if check:
        done = [f"supervisord would be {what}"] if what else []
        return {"changed": bool(written or what), "programs": done, "diff": {"prepared": diff}}
    if call("systemctl", "is-enabled", UNIT) != "enabled":
        call("systemctl", "enable", UNIT)
        done.append("supervisord: enabled")
    names = {program["name"] for program in programs}
    if what:
        # Only a restart brings a changed setting of its own into force. It restarts every program.
        start()
        done.append(f"supervisord: {what}")
        rpc = supervisord.connect()
    else:
        rpc = supervisord.connect()
        done += supervisord.update(rpc, names.__contains__)
    if (what or done) and present:
        wait(rpc, present)
    return {"changed": bool(written or done), "programs": done, "diff": {"prepared": diff}}


def main() -> None:
    module = Module(
        {
            "programs": {"type": "list", "elements": "dict", "default": []},
            "newer": {
                "type": "list",
                "elements": "path",
                "default": [
                    "/etc/supervisor/supervisord.conf",
                    "/etc/systemd/system/supervisor.service.d",
                ],
            },
        }
    )
    os.umask(0o022)
    try:
        module.exit_json(**run(module.params, module.check_mode))
    except Failure as failure:
        module.fail_json(msg=str(failure))
    except (OSError, xmlrpc.client.Fault) as error:
        command = shlex.join(["journalctl", "-u", UNIT])
        module.fail_json(msg=f"supervisord does not take in its programs: {error}. See: {command}")


if __name__ == "__main__":
    main()
