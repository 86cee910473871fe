#!/usr/bin/python
"""Install the program that runs gunicorn's slots, or roll them."""

from __future__ import annotations

DOCUMENTATION = """
module: gunicorn_slots
short_description: Roll the slots of an app, one at a time
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
    description: The file C(slots.json) of the app. Where it is not there, nothing serves, and no
      slot is started.
    type: path
    required: true
  program:
    description: Name of the supervised program. Where O(config) is not there, its slots are
      stopped, as those of a first release that has failed.
    type: str
    default: ""
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
    description: Shows the settings. Programs are named, not printed.
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
import pwd
import xmlrpc.client  # nosec B411 # of supervisord, by its own socket
from pathlib import Path

from ansible_collections.carafe.stack.plugins.module_utils import (
    file_set,
    files,
    processes,
    programs,
    slots,
    supervisord,
    unix_http,
    words,
)
from ansible_collections.carafe.stack.plugins.module_utils.commands import Failure
from ansible_collections.carafe.stack.plugins.module_utils.file_set import File, Folder
from ansible_collections.carafe.stack.plugins.module_utils.module import Module, choice

# Sent along with this module, since the program is made of them.
PROGRAM = programs.names(slots, processes, supervisord, unix_http, files, words)


def install(params: dict, check: bool) -> dict:
    """Write what the slots need; return what changed."""
    user, folder = params["user"], Path(params["config"]).parent
    for name, text in params["files"].items():
        try:
            if name.endswith(".py"):
                ast.parse(text)
        except SyntaxError as error:
            raise Failure(f"gunicorn_settings make {name} no Python: {error}") from None
    try:
        pwd.getpwnam(user)
    except KeyError:
        if not check:
            raise Failure(f"gunicorn_user is {user!r}, and the server has no such user") from None
    private = Folder(Path(params["private_directory"]), user, None, 0o700)
    texts = [File(folder / name, content=text.encode()) for name, text in params["files"].items()]
    written = file_set.write(file_set.with_parents([private, *texts]), check)
    changed = programs.install("gunicorn-slots", PROGRAM, check=check)
    prepared = "".join(f"{path} is written\n" for path in changed)
    return {
        "changed": bool(changed or written.paths),
        "diff": [*written.diff, {"prepared": prepared}],
        "slots": [],
    }


def main() -> None:
    module = Module(
        {
            "state": choice("installed", "rolled", default="rolled"),
            "config": {"type": "path", "required": True},
            "program": {"type": "str", "default": ""},
            "files": {"type": "dict", "default": {}},
            "private_directory": {"type": "path"},
            "user": {"type": "str"},
        },
        required_if=[("state", "installed", ["private_directory", "user"])],
    )
    if module.params["state"] == "installed":
        module.answer(install, module.params, module.check_mode)
    lines: list[str] = []
    if files.read(module.params["config"]) is not None:
        try:
            for line in slots.roll(module.params["config"], module.check_mode):
                lines.append(line)
        except slots.SlotError as error:
            module.fail_json(msg=str(error), slots=lines)
    elif program := module.params["program"]:
        try:
            lines += slots.end(program, module.check_mode)
        except (OSError, xmlrpc.client.Error) as error:
            module.fail_json(
                msg=f"The slots of {program}, of which nothing serves, could not be stopped:"
                f" {words.one_line(str(error))} See how supervisord is, and stop them: sudo"
                f" systemctl status supervisor; sudo supervisorctl stop '{program}:*'"
            )
    module.exit_json(changed=bool(lines), slots=lines)


if __name__ == "__main__":
    main()
