"""The screen of all servers, the JSON, and how the run ends."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible_collections.carafe.stack.plugins.module_utils.levels import Row
from ansible_collections.carafe.stack.plugins.plugin_utils import status_screen
from ansible_collections.carafe.stack.plugins.plugin_utils.status_screen import Seen
from conftest import ROOT, load_module

WELL = Row("slot 0", "green", "healthy, up for 3 d", "", "shop")
DOWN = Row("slot 1", "red", "it is STOPPED", "gunicorn-slots roll x", "shop")
OLD = Row("updates", "yellow", "3 wait", "ansible-playbook carafe.stack.site --tags hardening")


def texts(servers: list[Seen], inventory: str = "") -> list[str]:
    return [text for text, _ in status_screen.screen(servers, inventory)]


def test_apps_come_before_the_server_and_columns_are_aligned() -> None:
    lines = texts([Seen("one", [OLD, WELL, DOWN])])
    assert lines[1:8] == [
        "one",
        "  shop",
        "    green   slot 0   healthy, up for 3 d",
        "    red     slot 1   it is STOPPED",
        "  the server",
        "    yellow  updates  3 wait",
        "",
    ]


def test_the_worst_comes_first_with_the_command_that_is_next() -> None:
    lines = texts([Seen("one", [OLD, WELL]), Seen("two", [DOWN])], "-i inventory/prod")
    begin = lines.index("red     shop on two: slot 1: it is STOPPED")
    assert lines[begin + 1 : begin + 4] == [
        "        on two: gunicorn-slots roll x",
        "yellow  one: updates: 3 wait",
        "        ansible-playbook carafe.stack.site -i inventory/prod --tags hardening",
    ]
    assert "1 red, 1 yellow, 1 green" in lines


def test_lines_are_coloured_by_level() -> None:
    colours = dict(status_screen.screen([Seen("one", [DOWN])]))
    assert colours["    red     slot 1  it is STOPPED"] == "red"
    assert colours["one"] == ""


@pytest.mark.parametrize(
    ("result", "what", "says"),
    [
        ({"unreachable": True, "msg": "ssh:\nrefused"}, "connection", "ssh: refused"),
        ({"failed": True, "msg": "no Python", "rows": []}, "status", "no Python"),
        ({"failed": True, "msg": "Task failed: Module failed: full"}, "status", "full"),
        ({}, "connection", "it did not answer"),
    ],
)
def test_a_server_that_does_not_answer_is_red(result: dict[str, Any], what: str, says: str) -> None:
    (row,) = status_screen.seen("one", result).rows
    assert (row.level, row.what, row.says) == ("red", what, says)


def test_what_an_app_wrote_does_nothing_to_the_terminal() -> None:
    row = {"what": "x", "level": "red", "says": "\x1b[2J", "next": "", "app": ""}
    assert status_screen.seen("one", {"rows": [row]}).rows[0].says == "\\x1b[2J"


def test_json_has_all_of_it_in_one_line() -> None:
    text = status_screen.to_json([Seen("one", [WELL, DOWN])], now=0)
    assert "\n" not in text
    data = json.loads(text)
    assert (data["at"], data["level"]) == ("1970-01-01T00:00:00Z", "red")
    assert data["hosts"]["one"][1] == {
        **{"what": "slot 1", "level": "red", "says": "it is STOPPED"},
        **{"next": "gunicorn-slots roll x", "app": "shop"},
    }


@pytest.mark.parametrize(("level", "status"), [("green", None), ("yellow", 1), ("red", 2)])
def test_the_run_ends_with_the_level(
    level: str, status: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ROOT / "playbooks/callback_plugins/status_ending.py"
    callback = load_module(path, "status_ending").CallbackModule()
    report = {"level": level, "screen": [("one", "")]}
    task = SimpleNamespace(resolved_action="carafe.stack.status_report")
    callback.v2_runner_on_ok(SimpleNamespace(task=task, result=report))
    if status is None:
        callback.v2_playbook_on_stats(None)
    else:
        with pytest.raises(SystemExit) as ended:
            callback.v2_playbook_on_stats(None)
        assert ended.value.code == status
    assert capsys.readouterr().out == "one\n"


def test_other_playbooks_end_as_ever(capsys: pytest.CaptureFixture[str]) -> None:
    path = ROOT / "playbooks/callback_plugins/status_ending.py"
    callback = load_module(path, "status_ending").CallbackModule()
    task = SimpleNamespace(resolved_action="ansible.builtin.debug")
    callback.v2_runner_on_ok(SimpleNamespace(task=task, result={"level": "red", "screen": []}))
    callback.v2_playbook_on_stats(None)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("playbook", ["playbooks/status.yml", "carafe.stack.status"])
def test_a_server_that_cannot_be_reached_is_on_the_screen(
    ansible_environment: dict[str, str], tmp_path: Path, playbook: str
) -> None:
    """The whole way: Ansible loads the callback by itself, from a clone and from a collection."""
    nowhere = {"ansible_host": "127.0.0.1", "ansible_port": 1}
    hosts = {"gone": nowhere, "away": {**nowhere, "stack_state": "absent"}}
    groups = {x: {"hosts": dict.fromkeys(hosts)} for x in ("db", "app", "web")}
    inventory = {"all": {"hosts": hosts}, **groups}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(inventory))
    words = ["-e", f"status_file={tmp_path}/status.json", "-e", "status_format=json"]
    done = subprocess.run(
        ["ansible-playbook", playbook, "-i", tmp_path / "hosts.yml", *words],
        cwd=ROOT,
        env=ansible_environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert last == (tmp_path / "status.json").read_text().strip()
    (away,) = json.loads(last)["hosts"]["away"]
    assert (away["level"], away["what"]) == ("yellow", "server")
    row, drift = json.loads(last)["hosts"]["gone"]
    assert (row["level"], row["what"]) == ("red", "connection")
    assert (drift["what"], drift["says"]) == ("drift", "nobody has looked from here")
