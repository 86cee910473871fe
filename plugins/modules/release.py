#!/usr/bin/python
"""Take a release of an app through the gate."""

from __future__ import annotations

DOCUMENTATION = """
module: release
short_description: Take a release of an app through the gate, and back
description:
  - >-
    A release is one built version of an app with the settings that it runs with, each in a folder
    of its own. It serves
    once it has passed the gate; one link decides which does. This module takes the steps on that
    way that need the server.
    The role app calls it, and makes its arguments.
  - A step that fails marks the release as broken, gives the app's lock back, and says why. V(gate)
    does in one line, and V(report_failure) in full. What served before serves on.
options:
  step:
    description:
      - >-
        V(begin) looks, takes the lock when something is to be done, and writes the settings.
        V(choose) is its counterpart
        in a rollback. Both return the RV(plan).
      - V(prepare) begins to build the virtual environment, meant for C(async). V(gate) takes the
        O(steps) of the plan.
      - V(hook) notes a point of C(app_hooks) that has task files, and runs an entry that is a
        command.
      - V(workers) lets the background workers and, unless a release is on its way, the schedules
        run what serves.
      - V(finish) ends a release that serves well, after V(workers) unless that was taken before.
      - V(revert) and V(report_failure) undo what this run has done; the latter returns why, as
        RV(says).
      - V(list) only reads, and so do V(runs), of the schedules, V(serving), of what serves, and
        V(moment), of which moment of the data was the last before a release.
      - V(remove) keeps releases from beginning until C(/etc/carafe/<app>.removing) goes, unless one
        is at work.
    type: str
    required: true
    choices:
      - begin
      - choose
      - prepare
      - gate
      - hook
      - workers
      - finish
      - revert
      - report_failure
      - list
      - runs
      - moment
      - serving
      - remove
  app:
    description: What the role app knows of the app and of this run.
    type: dict
    required: true
  variables:
    description: >-
      The variables of the app, of its migrations and of the installation, and the values that are
      secret, as JSON in base64:
      so they are masked as a whole in what Ansible logs.
    type: str
  steps:
    description: Which steps of the gate V(gate) takes.
    type: list
    elements: str
    default: []
  schedule:
    description: The schedule of which V(runs) shows what each run wrote, and not just the last one.
    type: str
    default: ""
author: [Carafe (@carafe)]
attributes:
  check_mode:
    description: Only V(begin), V(choose), V(workers) and what only reads do anything, and they
      change nothing.
    support: full
  diff_mode:
    description: Shows the settings of a new release against those that serve; of variables only the
      names.
    support: full
"""

EXAMPLES = """
- name: See what is there, and begin
  carafe.stack.release:
    step: begin
    app: "{{ __app_facts }}"
    variables: "{{ __app_variables }}"
"""

RETURN = """
release:
  description: Id of the release that this run is about.
  type: str
  returned: V(begin) and V(choose)
live:
  description: Whether it serves already, as a whole.
  type: bool
  returned: V(begin) and V(choose)
plan:
  description: The steps that are to be taken, and the points whose task files come after them.
  type: list
  elements: dict
  returned: V(begin) and V(choose)
lock:
  description: The run that has the lock, when another one has it.
  type: dict
  returned: V(begin), V(choose) and V(remove)
says:
  description: >-
    Why the release does not serve, what does, and what to run next; which moment was before a
    release.
  type: str
  returned: V(report_failure) and V(moment)
serving:
  description: >-
    What serves well, as C(release), C(label) and C(code), which M(carafe.stack.pack) takes; nothing
    where none does.
  type: dict
  returned: V(serving)
moment:
  description: A restore point or a time, empty where the books do not have the release.
  type: str
  returned: V(moment)
took:
  description: How many seconds each step took.
  type: list
  elements: str
  returned: V(finish)
"""

import base64
import json
import os

from ansible_collections.carafe.stack.plugins.module_utils import (
    release_steps,
    schedule_runs,
)
from ansible_collections.carafe.stack.plugins.module_utils.commands import Failure
from ansible_collections.carafe.stack.plugins.module_utils.module import Module, choice
from ansible_collections.carafe.stack.plugins.module_utils.release_state import Locked
from ansible_collections.carafe.stack.plugins.module_utils.words import escaped

STEPS = (
    *("begin", "choose", "prepare", "gate", "hook", "workers", "finish"),
    *("revert", "report_failure", "list", "runs", "moment", "serving", "remove"),
)
# What a dry run may call. The others have nothing to look at without what they would have made.
READ = ("begin", "choose", "workers", "list", "runs", "moment", "serving", "remove")


def run(app: release_steps.Release, params: dict) -> None:
    """Take one step; what it says is in ``app.output``."""
    step = params["step"]
    if step == "list":
        app.output["table"] = app.listing() if app.root.exists() else []
    elif step == "remove":
        app.begin_removal()
    elif step == "runs":
        folder = schedule_runs.history(app.root)
        names = schedule_runs.scheduled(app.app["name"], app.root)
        if params["schedule"] and params["schedule"] not in names:
            there = ", ".join(names) or "none"
            raise Failure(
                f"app_schedule: there is no schedule {params['schedule']}. There is: {there}"
            )
        app.output["table"] = schedule_runs.listing(folder, names, params["schedule"])
    elif step == "gate":
        release_steps.take(app, params["steps"])
    elif step == "hook":
        # The lock is given back by the last point.
        if app.app["point"] != "after_finish":
            app.step(app.app["point"])
        release_steps.hook(app)
    elif step == "workers":
        release_steps.workers(app)
        if not app.mine:
            release_steps.schedules(app)
    else:
        getattr(release_steps, step)(app)


def changed(app: release_steps.Release, step: str) -> bool:
    output = app.output
    if step in ("begin", "choose"):
        return not output["live"] or bool(output["place"])
    if step == "workers":
        return bool(output["workers"] or output.get("schedules"))
    return step not in ("list", "runs", "moment", "serving")


def main() -> None:
    module = Module(
        {
            "step": choice(*STEPS, required=True),
            "app": {"type": "dict", "required": True},
            "variables": {"type": "str", "no_log": True},
            "steps": {"type": "list", "elements": "str", "default": []},
            "schedule": {"type": "str", "default": ""},
        }
    )
    params, step = module.params, module.params["step"]
    app = release_steps.Release(params["app"], module.check_mode)
    if params["variables"]:
        app.app["variables"] = json.loads(base64.b64decode(params["variables"]))
    if module.check_mode and step not in READ:
        module.exit_json(changed=False)
    os.umask(0o022)
    prefix = f"{params['app']['point']}: " if step == "hook" else ""
    try:
        run(app, params)
    except Locked as locked:
        if locked.lock:
            module.exit_json(changed=False, lock=locked.lock | {"says": str(locked)})
        module.fail_json(msg=str(locked))
    except Failure as failure:
        first, _, rest = str(failure).partition("\n")
        if step == "report_failure":
            # Its tasks fail with it, on the server where it failed first.
            module.exit_json(changed=True, says=escaped(str(failure)))
        if step == "gate" and rest:
            module.fail_json(msg=f"{first}\nWhy stands at the end, when all is taken back.")
        hint = f"; see {app.log_path}" if prefix else ""
        module.fail_json(msg=f"{prefix}{failure}{hint}")
    except OSError as error:
        module.fail_json(msg=f"{prefix or step + ': '}{release_steps.describe(error)}")
    diff = {"prepared": app.output.pop("diff", "")}
    # Nobody may look at a schedule for months, and everybody reads this.
    for line in app.output.pop("failing", []):
        module.warn(f"{params['app']['name']}, {line}")
    module.exit_json(changed=changed(app, step), diff=diff, **app.output)


if __name__ == "__main__":
    main()
