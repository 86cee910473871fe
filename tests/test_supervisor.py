"""Programs of supervisord as files, and what systemd is asked for so that it runs by them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import services, supervisord
from ansible_collections.carafe.stack.plugins.module_utils.commands import Failure
from ansible_collections.carafe.stack.plugins.modules import supervisor


@pytest.fixture(autouse=True)
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server with nothing on it."""
    monkeypatch.setattr(supervisor, "FOLDER", tmp_path / "conf.d")
    monkeypatch.setattr(supervisor, "PID_FILE", tmp_path / "pid")
    monkeypatch.setattr(supervisor, "SETTINGS", [tmp_path / "supervisord.conf"])
    return tmp_path


def found(monkeypatch: pytest.MonkeyPatch, active: str, file: str = "enabled") -> None:
    state = {"ActiveState": active, "UnitFileState": file, "NeedDaemonReload": "no"}
    monkeypatch.setattr(services, "state", lambda *_: state)


def test_a_dry_run_on_a_bare_server_shows_the_programs(
    server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, "inactive", "")
    done = supervisor.run([{"name": "jobs", "command": "sleep 1"}], True)
    assert done["changed"]
    assert done["programs"] == [f"supervisord: {x}" for x in ("daemon-reload", "enable", "restart")]
    assert "command=sleep 1\n" in done["diff"][0]["after"]
    assert not list(server.iterdir())


def test_one_that_fails_over_and_over_is_not_taken_for_started(
    server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (server / "pid").touch()
    found(monkeypatch, "activating")
    assert supervisor.due() == ["daemon-reload", "restart"]
    found(monkeypatch, "active")
    assert supervisor.due() == []


def test_settings_that_are_newer_than_it_are_brought_into_force(
    server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, "active")
    assert supervisor.due() == ["daemon-reload", "restart"]


def test_a_dry_run_tells_what_a_run_that_was_cut_short_has_left(
    server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (server / "pid").touch()
    found(monkeypatch, "active")
    # A program of somebody else's is not told; nothing else is asked of supervisord.
    rpc = SimpleNamespace(reloadConfig=lambda: [[["jobs", "theirs"], [], []]])
    monkeypatch.setattr(supervisord, "connect", lambda: rpc)
    assert supervisor.run([{"name": "jobs", "command": "x"}], True)["programs"] == ["jobs: started"]


def states(monkeypatch: pytest.MonkeyPatch, *names: str) -> SimpleNamespace:
    """Have supervisord answer with one state after the other, the last one for ever."""
    left = [*names]

    def answer() -> list[dict[str, str]]:
        name = left.pop(0) if len(left) > 1 else left[0]
        return [
            {
                "group": "shop",
                "name": "shop_0",
                "statename": name,
                "spawnerr": "",
                "description": "x",
            }
        ]

    monkeypatch.setattr(supervisor, "STARTING", -1)
    monkeypatch.setattr(supervisor.time, "sleep", lambda _: None)
    return SimpleNamespace(getAllProcessInfo=answer)


@pytest.mark.parametrize("state", ["BACKOFF", "FATAL", "EXITED", "STARTING"])
def test_a_program_that_does_not_come_up_is_told(
    monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    program = {"name": "shop", "startsecs": 1}
    with pytest.raises(Failure, match=f"shop:shop_0 {state}"):
        supervisor.wait(states(monkeypatch, state), [{**program, "must_start": True}])
    # Of the slots, the role gunicorn says more.
    supervisor.wait(states(monkeypatch, state), [{**program, "must_start": False}])


def test_what_need_not_start_is_given_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rpc = states(monkeypatch, "STARTING", "STARTING", "RUNNING")
    monkeypatch.setattr(supervisor, "STARTING", 10)
    supervisor.wait(rpc, [{"name": "shop", "startsecs": 1, "must_start": False}])
    assert rpc.getAllProcessInfo()[0]["statename"] == "RUNNING"


def test_what_a_failed_run_has_left_down_fails_the_next_one_too(
    server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, "active")
    (server / "conf.d").mkdir()
    monkeypatch.setattr(supervisor, "due", list)
    monkeypatch.setattr(supervisord, "check", lambda _: "")
    rpc = states(monkeypatch, "BACKOFF")
    rpc.reloadConfig = lambda: [[[], [], []]]
    monkeypatch.setattr(supervisord, "connect", lambda: rpc)
    program = {"name": "shop", "command": "x"}
    for _ in range(2):
        with pytest.raises(Failure, match="shop:shop_0 BACKOFF"):
            supervisor.run([program], False)
