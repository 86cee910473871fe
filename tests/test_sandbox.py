"""The sandbox of what runs an app's code: one place, and what is left of it without mounts."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import release_settings, sandbox

ROOT = Path(__file__).parents[1]
SCHEDULE = {"name": "night", "command": "echo 1", "when": "daily", "timeout": 60}


def unit(**app: Any) -> str:
    named = {"name": "shop", "user": "shop", "root": "/srv/shop"}
    app = {**named, "run_command": "/srv/shop/bin/run", **app}
    return release_settings.schedule_files(app | {"schedules": [SCHEDULE]})[
        "schedules/shop.night.service"
    ]


def test_what_needs_mounts_is_left_out_where_there_can_be_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sandbox, "mounts", lambda: False)
    assert "PrivateDevices" not in unit()
    assert "ProtectSystem" not in unit()
    assert "NoNewPrivileges=yes" in unit()


def test_file_units_lose_the_same_where_there_can_be_no_mounts() -> None:
    names = {line.partition("=")[0] for line in sandbox.SANDBOX.splitlines()}
    script = (ROOT / "plugins/files/fit-sandbox").read_text()
    assert names & sandbox.NEED_MOUNTS <= set(re.findall(r"(\w+)=", script))


def test_schedules_have_the_sandbox_and_what_an_app_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "mounts", lambda: True)
    lines = unit(sandbox={"PrivateDevices": "no", "SystemCallFilter": "chroot"}).splitlines()
    assert {x for x in sandbox.SANDBOX.splitlines() if x and not x.startswith("#")} <= set(lines)
    assert lines.index("PrivateDevices=yes") < lines.index("PrivateDevices=no")
    assert lines.index("SystemCallFilter=@system-service") < lines.index("SystemCallFilter=chroot")


def test_the_sandbox_stands_in_one_place() -> None:
    places = ["plugins", "playbooks", "roles/app", "roles/supervisor"]
    found = subprocess.run(
        ["git", "grep", "-lE", "^ *(RestrictNamespaces|ProtectClock)=", *places],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert found == ["plugins/module_utils/sandbox.py"]
