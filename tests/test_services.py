"""Whether what runs is what its files say, and what systemd is asked for."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import commands, services


def state(active: str = "active", file: str = "enabled", stale: str = "no") -> dict[str, str]:
    return {"ActiveState": active, "UnitFileState": file, "NeedDaemonReload": stale}


@pytest.mark.parametrize(
    ("has", "load", "verbs"),
    [
        (state(), "", []),
        (state(), "reload", ["daemon-reload", "reload"]),
        (state(stale="yes"), "", ["daemon-reload"]),
        (state(file="disabled"), "restart", ["daemon-reload", "enable", "restart"]),
        (state("failed"), "reload", ["daemon-reload", "start"]),
        (state("inactive", ""), "", ["daemon-reload", "enable", "start"]),
    ],
)
def test_systemd_is_asked_for_what_is_due(has: dict[str, str], load: str, verbs: list[str]) -> None:
    assert services.due(has, load) == verbs


def test_the_files_of_units_beside_it_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "show", lambda *_: [state(), state("inactive", "", "yes")])
    assert services.state("a.service", "b.service") == state(stale="yes")


def test_what_changed_after_the_load_is_seen(tmp_path: Path) -> None:
    folder, loaded = tmp_path / "etc", tmp_path / "loaded"
    folder.mkdir()
    (folder / "file").touch()
    assert services.is_newer([folder], loaded)
    loaded.touch()
    for path in (folder / "file", folder):
        os.utime(path, (1, 1))
    assert not services.is_newer([folder], loaded)
    (folder / "file").touch()
    os.utime(loaded, (2, 2))
    assert services.is_newer([folder], loaded)
    (folder / "file").unlink()  # the folder tells
    assert services.is_newer([folder], loaded)
    # What is gone is due, so that whoever needs it says so.
    assert services.is_newer([tmp_path / "gone"], loaded)


def test_what_systemd_does_not_do_is_told_with_the_end_of_its_journal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ask(*command: str) -> subprocess.CompletedProcess[str]:
        if command[0] == "journalctl":
            return subprocess.CompletedProcess(command, 0, "one\n two\n", "")
        return subprocess.CompletedProcess(command, int(command[1] == "reload"), "", "no\n")

    monkeypatch.setattr(services, "ask", ask)
    with pytest.raises(commands.Failure, match=r"x\.service does not reload: no; one; two See "):
        services.act("x.service", ["daemon-reload", "reload"])


def test_a_program_that_fails_is_named_in_one_line() -> None:
    with pytest.raises(commands.CommandFailed) as failure:
        commands.run("sh", "-c", "echo one >&2; echo two >&2; exit 3")
    assert str(failure.value) == "sh -c echo one >&2; echo two >&2; exit 3: one two"
    assert commands.run("cat", text="in") == "in"
    assert commands.ask("sh", "-c", "echo $A; exit 3", A="b").stdout == "b\n"
