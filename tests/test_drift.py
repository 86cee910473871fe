"""What the status knows of drift: noted at the end of a whole run of site."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.carafe.stack.plugins.plugin_utils import drift
from conftest import ROOT, load_yaml

# What stands for the stack: one task that would change something, on each server.
TASKS = [
    {"ansible.builtin.command": {"cmd": "true"}, "check_mode": False, "changed_when": False},
    {"ansible.builtin.copy": {"content": "x", "dest": "{{ folder }}/{{ inventory_hostname }}"}},
    {"ansible.builtin.fail": {"msg": "no"}, "when": "inventory_hostname == fails | default('')"},
]


@pytest.fixture
def site(tmp_path: Path, ansible_environment: dict[str, str]) -> Any:
    """Run what stands for site, in a project of its own; return what is known of each server."""
    folder = tmp_path / "playbooks"
    folder.mkdir()
    (folder / "callback_plugins").symlink_to(ROOT / "playbooks/callback_plugins")
    play = {"name": "The stack", "hosts": "all", "gather_facts": False, "tasks": TASKS}
    (folder / "stack.yml").write_text(yaml.safe_dump([play]))
    (folder / "other.yml").write_text(yaml.safe_dump([play | {"name": "Deploy"}]))
    (tmp_path / "site.yml").write_text("- ansible.builtin.import_playbook: playbooks/stack.yml\n")
    hosts = {"one": {}, "two": {}}
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory = {"all": {"hosts": hosts, "vars": {**local, "folder": str(tmp_path)}}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(inventory))
    environment = ansible_environment | {"ANSIBLE_HOME": str(tmp_path / "home")}

    def run(*words: str, playbook: str = "site.yml") -> dict[str, Any]:
        command = ["ansible-playbook", playbook, "-i", "hosts.yml", *words]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        assert "PLAY RECAP" in done.stdout, done.stdout + done.stderr
        assert "drift" not in done.stderr, done.stderr
        files = [*(tmp_path / "home/carafe").glob("drift-*.json")]
        return json.loads(files[0].read_text()) if files else {}

    return run


def counts(found: dict[str, Any]) -> dict[str, tuple[bool, int]]:
    return {name: (entry["check"], entry["changed"]) for name, entry in found.items()}


def test_a_dry_run_is_noted_until_site_goes_through(site: Any) -> None:
    assert counts(site("--check")) == {"one": (True, 1), "two": (True, 1)}
    # Of the other one it is known as before.
    assert counts(site("--limit", "one")) == {"one": (False, 1), "two": (True, 1)}
    assert counts(site("--check")) == {"one": (True, 0), "two": (True, 1)}


def test_a_run_that_leaves_tasks_out_or_fails_says_nothing(site: Any) -> None:
    assert site("--check", "--tags", "none") == {}
    assert site("--check", "--skip-tags", "none") == {}
    assert site("--check", playbook="playbooks/other.yml") == {}
    assert counts(site("--check", "-e", "fails=two")) == {"one": (True, 1)}


def test_the_play_has_the_name_that_is_waited_for() -> None:
    text = (ROOT / "playbooks/callback_plugins/drift_noted.py").read_text()
    (play,) = load_yaml(ROOT / "playbooks/stack.yml")
    assert f'PLAY = "{play["name"]}"' in text


@pytest.mark.parametrize(
    ("entry", "level", "says"),
    [
        (None, "green", "nobody has looked from here"),
        ({"check": False, "changed": 9}, "green", "none when site went through, 2 d ago"),
        ({"check": True, "changed": 0}, "green", "none, looked for 2 d ago"),
        ({"check": True, "changed": 1}, "yellow", "1 task of site would change it, seen 2 d ago"),
        ({"check": True, "changed": 3}, "yellow", "3 tasks of site would change it, seen 2 d ago"),
    ],
)
def test_what_is_said_of_it(entry: dict[str, Any] | None, level: str, says: str) -> None:
    now = time.time()
    row = drift.row(entry and {**entry, "at": now - 2 * 86400}, now)
    assert (row.level, row.says) == (level, says)
    assert row.next.endswith("--check --diff") is (level == "yellow")


def test_a_file_that_is_none_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "path", lambda _: tmp_path / "drift")
    assert drift.read([]) == {}
    (tmp_path / "drift").write_text("[1]")
    assert drift.read([]) == {}
    drift.note([], {"one": 2}, check=True)
    assert drift.read([])["one"]["changed"] == 2
