#!/usr/bin/python
"""Say who is told of problems on this server, and have it looked at."""

from __future__ import annotations

DOCUMENTATION = r"""
module: alerts
short_description: Say who is told of problems on this server, and have it looked at
description:
  - >-
    Writes the receivers of an owner, an app for instance, and the program that looks at the server
    every few minutes, as M(carafe.stack.status) does, and tells them what has changed. A timer of
    systemd's runs it. Its files are those of the role alerts, see there.
  - With O(state=tested) it sends a message by each way of the owner's, and fails where one fails.
author: [Carafe (@carafe)]
options:
  state:
    description: Whether these receivers are to be told, nobody of this owner, or all at once.
    type: str
    choices: [present, absent, tested]
    default: present
  owner:
    description: Whose receivers these are.
    type: str
    default: default
  receivers:
    description: How to tell, by the names of the role's variables without their prefix.
    type: dict
    default: {}
  secrets:
    description: >-
      What of it may be secret, as JSON in base64: so it is masked as a whole in what Ansible logs.
    type: str
  interval_minutes:
    description: How many minutes are between two looks. The server has it once.
    type: int
    default: 5
attributes:
  check_mode:
    description: Says what it would change. With V(tested) nothing is sent.
    support: full
  diff_mode:
    description: Names what is written, and shows none of it, since there are secrets in it.
    support: full
"""

EXAMPLES = r"""
- name: Send a message by each way
  carafe.stack.alerts:
    owner: shop
    state: tested
"""

RETURN = r"""
changes:
  description: What was done, or is due in check mode.
  type: list
  elements: str
  returned: success
"""

import base64
import json

from ansible_collections.carafe.stack.plugins.module_utils.module import Module, choice, options

from ..module_utils import alerts, claims, files, programs, services, status_program
from ..module_utils.commands import Failure

# Of this module's own text, so that they travel with it.
PROGRAM = programs.names(alerts, *status_program.PARTS)


def claim(wanted: dict) -> dict | None:
    """Return what an owner claims; None where it has no way to be told."""
    secrets = json.loads(base64.b64decode(wanted["secrets"])) if wanted["secrets"] else {}
    receivers = wanted["receivers"] | secrets
    if not alerts.ways(receivers) and not receivers.get("heartbeat_url"):
        return None
    own = {"interval_minutes": wanted["interval_minutes"]}
    return {**receivers, **claims.stated(own, alerts.DEFAULTS, "alerts_")}


def bring_about(wanted: dict, dry: bool) -> dict:
    """Write the receivers and the program, and have the timer run it."""
    owner = wanted["owner"]
    mine = claim(wanted) if wanted["state"] == "present" else None
    if mine is None and not (alerts.CLAIMS / f"{owner}.json").exists():
        return result([])
    with claims.locked(alerts.CLAIMS, dry):
        everybody = claims.agreed(alerts.CLAIMS, owner, mine, alerts.once)
        done = [f"{x}: written" for x in programs.install("alerts", PROGRAM, dry)]
        done = ["the program alerts: written"] if done else []
        timer = alerts.TIMER_TEXT.format(minutes=alerts.interval_of(everybody))
        path = alerts.UNITS / alerts.TIMER
        if files.read(path) != timer:
            done.append(f"{path}: written")
            if not dry:
                files.write(path, timer)
        # Only root reads it: passwords are in it.
        if claims.claim(alerts.CLAIMS, owner, mine, dry, mode=0o600):
            done.append(f"{alerts.CLAIMS / owner}.json: {'written' if mine else 'removed'}")
        done += keep_looking(bool(everybody), f"{path}: written" in done, dry)
    return result(done)


def keep_looking(wanted: bool, changed: bool, dry: bool) -> list[str]:
    """Start the timer, now and at boot, or stop it where nobody is to be told any more."""
    state = services.state(alerts.TIMER, alerts.SERVICE)
    verbs = services.due(state, "restart" if changed else "")
    if not wanted:
        verbs = ["disable", "stop"] if state["UnitFileState"] == "enabled" else []
    if not dry:
        services.act(alerts.TIMER, verbs)
    return [f"{alerts.TIMER}: {verb}" for verb in verbs if verb != "daemon-reload"]


def result(done: list[str]) -> dict:
    diff = [{"prepared": "".join(f"{line}\n" for line in done)}] if done else []
    return {"changed": bool(done), "changes": done, "diff": diff}


def send(owner: str, dry: bool) -> dict:
    """Send a message by each way."""
    if owner not in alerts.receivers():
        raise Failure(
            f"Nobody of {owner} is to be told on this server. Set alerts_mail_to, or another way,"
            " in group_vars and run site first."
        )
    failed = [] if dry else [why for _, _, why in alerts.try_all(owner) if why]
    if failed:
        raise Failure(f"A test message did not arrive. {'; '.join(failed)}")
    return result(["test messages: sent"])


def main() -> None:
    module = Module(
        {
            "state": choice("present", "absent", "tested", default="present"),
            "receivers": {"type": "dict", "default": {}},
            "secrets": {"type": "str", "no_log": True},
            **options(owner="default", interval_minutes=5),
        }
    )
    if module.params["state"] == "tested":
        module.answer(send, module.params["owner"], module.check_mode)
    module.answer(bring_about, module.params, module.check_mode)


if __name__ == "__main__":
    main()
