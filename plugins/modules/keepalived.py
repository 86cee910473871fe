#!/usr/bin/python
"""Run keepalived by its files."""

from __future__ import annotations

DOCUMENTATION = r"""
module: keepalived
short_description: Run keepalived by its files
description:
  - Checks what its files say, and starts keepalived, at each boot too, or has it read them anew
    where it has read older ones. It asks the server, so that what an interrupted run has left
    undone is made up for.
  - The files of the role keepalived come first, see there.
author: [Carafe (@carafe)]
options:
  owner:
    description: Whose addresses go, with I(state=absent).
    type: str
    default: default
  addresses:
    description: >-
      What one of the servers has by then, each with the length of its network. Where keepalived
      was started, somebody is waited for who has them.
    type: list
    elements: str
    default: []
  state:
    description: >-
      C(absent) removes the owner's addresses. With the last of them keepalived stops, and the
      role's files go.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode:
    description: Looks, changes nothing, and says what it would change.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
"""

EXAMPLES = r"""
- name: Run what the role has written
  carafe.stack.keepalived:
    addresses: [198.51.100.100/24]
"""

RETURN = r"""
done:
  description: What systemd was asked to do, for instance C(reload), or is to do in check mode.
  type: list
  elements: str
  returned: success
changes:
  description: A sentence for each change of I(state=absent).
  type: list
  elements: str
  returned: success
"""

import socket
import time
from collections.abc import Iterable
from pathlib import Path

from ansible_collections.carafe.stack.plugins.module_utils.module import Module, choice, options

from ..module_utils import files, services
from ..module_utils.commands import Failure, ask, run

UNIT = "keepalived.service"
PROGRAM = Path("/usr/sbin/keepalived")
SETTINGS = Path("/etc/keepalived/keepalived.conf")
OWNERS = Path("/etc/keepalived/conf.d")
DROP_INS = Path("/etc/systemd/system/keepalived.service.d")
SANDBOX = Path("/etc/systemd/system/keepalived-sandbox.service")
# Who may change a script is not looked at by the test.
UNSAFE = "SECURITY VIOLATION - scripts are being executed but script_security not enabled."
LOADED = Path("/run/keepalived.loaded")
# Who hears of no other for 3 seconds takes them.
PATIENCE = 20


def check_settings() -> None:
    """Refuse what keepalived would leave out, and say so in its journal alone."""
    if not PROGRAM.exists():
        raise Failure(
            f"{PROGRAM} is not there. Set keepalived_manage_packages to true in the inventory's"
            " group_vars, or install what keepalived_packages has, and run the playbook again."
        )
    tried = ask(PROGRAM, "--config-test", f"--use-file={SETTINGS}", "--config-id=test")
    lines = f"{tried.stdout}\n{tried.stderr}".splitlines()
    said = [x.strip() for x in lines if x.strip() and not x.startswith(UNSAFE)]
    if tried.returncode and said:
        raise Failure(
            f"keepalived does not take its files: {'; '.join(said[-5:])} What runs goes on as it"
            " was. Correct the variable that says so, and run the playbook again."
        )


def is_held(address: str) -> bool:
    """Tell whether a server has an address, this one or another."""
    try:
        socket.create_connection((address, 80), timeout=1).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True


def wait(addresses: Iterable[str]) -> None:
    """Wait until each address is held, which comes after keepalived has said that it is up."""
    deadline = time.monotonic() + PATIENCE
    for address in (x.partition("/")[0] for x in addresses):
        while not is_held(address):
            if time.monotonic() > deadline:
                raise Failure(
                    f"Nobody has {address}, {PATIENCE} s after keepalived was started. What says"
                    " that a server serves is keepalived_check_url; see journalctl -u keepalived on"
                    " each of them, and run the playbook again."
                )
            time.sleep(0.2)


def serve(addresses: list[str], dry: bool) -> dict:
    # How it is run is read at a start alone.
    is_older = services.is_newer([DROP_INS, SANDBOX], LOADED)
    stale = services.is_newer([SETTINGS, OWNERS], LOADED)
    state = services.state(UNIT, SANDBOX.name)
    verbs = services.due(state, "restart" if is_older else "reload" if stale else "")
    if verbs and not dry:
        check_settings()
        services.act(UNIT, verbs)
        wait(addresses)
    return {"changed": bool(verbs), "done": verbs}


def remove(owner: str, dry: bool) -> dict:
    changes, path = [], OWNERS / f"{owner}.conf"
    others = [x for x in OWNERS.glob("*.conf") if x != path]
    gone = [path]
    if not others:
        gone += [SETTINGS, SANDBOX, *(DROP_INS / x for x in ("carafe.conf", "fit-sandbox"))]
        if services.state(UNIT)["ActiveState"] == "active":
            changes.append(f"stop {UNIT}")
    gone = [x for x in gone if x.exists()]
    changes += [f"remove {x}" for x in gone]
    if changes and not dry:
        if not others:
            run("systemctl", "disable", "--now", "--quiet", UNIT)
        for one in gone:
            files.remove(one)
        if others:
            services.act(UNIT, ["reload"])
        else:
            run("systemctl", "daemon-reload")
    return {"changed": bool(changes), "changes": changes, "done": []}


def main() -> None:
    states = choice("present", "absent", default="present")
    module = Module({**options(owner="default", addresses=[]), "state": states})
    if module.params["state"] == "absent":
        module.answer(remove, module.params["owner"], module.check_mode)
    module.answer(serve, module.params["addresses"], module.check_mode)


if __name__ == "__main__":
    main()
