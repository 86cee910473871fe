"""The order in which several app servers take a release's steps, each by a plan of its own."""

from __future__ import annotations

import getpass
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from conftest import ROOT

POINTS = ("before_build", "after_build", "before_migrate", "before_switch")


def server(folder: Path, points: list[str]) -> dict[str, Any]:
    """Return the variables of a server with a plan that has nothing but hooks."""
    (folder / "state").mkdir(parents=True)
    lock = {"id": "run", "by": "me", "since": 0, "what": "deployment of x", "from": "", "steps": []}
    (folder / "state/lock.json").write_text(json.dumps(lock))
    begun = {"release": "x", "plan": [{"steps": [], "point": point} for point in points]}
    return {"app_root": str(folder), "__app_begun": begun}


def taken(folder: Path) -> list[str]:
    return [name for name, _ in json.loads((folder / "state/lock.json").read_text())["steps"]]


def test_each_server_takes_its_own_steps_in_their_order(
    tmp_path: Path, ansible_environment: dict[str, str]
) -> None:
    """The first has a migration, and what both have in common comes last."""
    plans = {
        "one": ["before_migrate", "before_switch"],
        "two": ["before_build", "after_build", "before_switch"],
    }
    (tmp_path / "note.yml").write_text("- ansible.builtin.meta: noop\n")
    play = {
        "hosts": "all",
        "gather_facts": False,
        "tasks": [{"ansible.builtin.import_role": {"name": "app", "tasks_from": "gate"}}],
        "vars": {
            "app_name": "shop",
            "app_secret_key": "x" * 32,
            "app_user": getpass.getuser(),
            "app_deploy_user": getpass.getuser(),
            "app_hooks_path": str(tmp_path),
            "app_hooks": {point: [{"tasks": "note.yml"}] for point in POINTS},
            "app_environment_name": "prod",
            "__app_run": {"id": "run", "by": "me", "machine": "", "pid": ""},
        },
    }
    hosts = {name: server(tmp_path / name, points) for name, points in plans.items()}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    local = ["-e", f"ansible_connection=local ansible_python_interpreter={sys.executable}"]
    run = subprocess.run(
        ["ansible-playbook", tmp_path / "play.yml", "-i", tmp_path / "hosts.yml", *local],
        env=ansible_environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert {name: taken(tmp_path / name) for name in plans} == plans
