#!/usr/bin/python
"""Install the program that runs gunicorn's slots, or roll them."""

from __future__ import annotations

DOCUMENTATION = """
module: gunicorn_slots
short_description: Roll the slots of a WSGI app, one at a time
description:
  - >-
    A slot is a gunicorn that supervisord runs. All slots of an app accept on one socket. This
    module compares each with
    the code, the settings and the environment that it should run, and restarts those that run
    something else or are not
    healthy, each healthy before the next.
  - >-
    With O(state=installed) it only writes what the slots need: the program that supervisord starts
    them with, the folder of
    their private sockets and, where O(files) has any, gunicorn's settings.
options:
  state:
    description: Whether to write what the slots need, or to let them run what they should.
    type: str
    choices: [installed, rolled]
    default: rolled
  config:
    description: The file C(slots.json) of the app. Where it is not there, nothing serves yet and
      nothing is done.
    type: path
    required: true
  files:
    description: Files that are written beside O(config), by name.
    type: dict
    default: {}
  private_directory:
    description: Folder for the private sockets. Needed with O(state=installed).
    type: path
  user:
    description: User that the slots run as, who owns that folder. Needed with O(state=installed).
    type: str
author: [Carafe (@carafe)]
attributes:
  check_mode:
    description: Says which slots would be restarted.
    support: full
  diff_mode:
    description: Programs are named, not printed.
    support: full
"""

EXAMPLES = """
- name: Let the slots run what the settings say
  carafe.stack.gunicorn_slots:
    config: /etc/gunicorn/shop/slots.json
"""

RETURN = """
slots:
  description: What was done to which slot, and why.
  type: list
  elements: str
  returned: always
  sample: ["slot 0 restarted in 1.2 s: it runs something else"]
"""

import ast
import difflib
import os
import pwd
from pathlib import Path

from ansible_collections.carafe.stack.plugins.module_utils import (
    files,
    processes,
    programs,
    slots,
    supervisord,
    unix_http,
)
from ansible_collections.carafe.stack.plugins.module_utils.module import Module

# Sent along with this module, since the program is made of them.
PROGRAM = [x.__name__.rpartition(".")[2] for x in (slots, processes, supervisord, unix_http)]


def install(module: Module) -> dict:
    """Write what the slots need; return what changed."""
    check, params = module.check_mode, module.params
    changed = programs.install("gunicorn-slots", PROGRAM, check=check)
    diff = [f"{path} is written\n" for path in changed]
    folder = Path(params["config"]).parent
    for name, text in params["files"].items():
        path = folder / name
        before = files.read(path)
        if name.endswith(".py"):
            ast.parse(text, name)
        if before == text:
            continue
        changed.append(str(path))
        sides = [(before or "").splitlines(True), text.splitlines(True)]
        diff += difflib.unified_diff(*sides, f"{path} (before)", str(path))
        if not check:
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            files.write(path, text, owner="root", group="root")
    private = Path(params["private_directory"])
    try:
        owner = pwd.getpwnam(params["user"]).pw_uid
    except KeyError:
        if not check:
            module.fail_json(
                msg=f"gunicorn_user is {params['user']!r}, and the server has no such user"
            )
        owner = None
    mode = private.stat() if private.is_dir() else None
    if not mode or mode.st_uid != owner or mode.st_mode & 0o7777 != 0o700:
        changed.append(str(private))
        diff.append(f"{private} is made, for {params['user']} alone\n")
        if not check:
            private.mkdir(parents=True, exist_ok=True)
            private.chmod(0o700)
            os.chown(private, owner, -1)
    return {"changed": bool(changed), "diff": {"prepared": "".join(diff)}, "slots": []}


def main() -> None:
    module = Module(
        {
            "state": {"type": "str", "choices": ["installed", "rolled"], "default": "rolled"},
            "config": {"type": "path", "required": True},
            "files": {"type": "dict", "default": {}},
            "private_directory": {"type": "path"},
            "user": {"type": "str"},
        },
        required_if=[("state", "installed", ["private_directory", "user"])],
    )
    if module.params["state"] == "installed":
        try:
            module.exit_json(**install(module))
        except SyntaxError as error:
            module.fail_json(msg=f"gunicorn_settings make {error.filename} no Python: {error}")
    lines: list[str] = []
    if files.read(module.params["config"]) is not None:
        try:
            for line in slots.roll(module.params["config"], module.check_mode):
                lines.append(line)
        except slots.SlotError as error:
            module.fail_json(msg=str(error), slots=lines)
    module.exit_json(changed=bool(lines), slots=lines)


if __name__ == "__main__":
    main()
