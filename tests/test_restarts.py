"""What runs as it was before an upgrade, and what is done about it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import processes, restarts, supervisord


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a program of the system's, as far as Carafe knows."""
    monkeypatch.setattr(processes, "SYSTEM", (str(tmp_path),))
    return Path(shutil.copy(shutil.which("sleep") or "", tmp_path / "sleep"))


def maps(pid: str) -> str:
    try:
        return Path("/proc", pid, "maps").read_text()
    except OSError:
        return ""


@pytest.fixture
def child(program: Path) -> Iterator[int]:
    """Return the number of a shell that runs the program."""
    words = ["sh", "-c", f"{program} 60 & wait"]
    with subprocess.Popen(words, start_new_session=True, stdout=subprocess.PIPE) as process:
        # Until it is that program, it is one more shell.
        while not any(str(program) in maps(x) for x in processes.family(process.pid)):
            assert process.poll() is None
        yield process.pid
        for number in reversed(list(processes.family(process.pid))):
            subprocess.run(["kill", number], check=False)


def replace(program: Path) -> None:
    fresh = Path(shutil.copy(program, program.with_suffix(".dpkg-new")))
    fresh.rename(program)


def test_what_was_replaced_is_named(child: int, program: Path) -> None:
    assert processes.upgraded_in(child) == ""
    replace(program)
    assert processes.upgraded_in(child) == str(program)
    assert processes.upgraded(child) == "", "the shell itself runs what is there"


def test_what_others_have_removed_counts_not(
    child: int, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace(program)
    monkeypatch.setattr(processes, "SYSTEM", ("/usr/", "/lib"))
    assert processes.upgraded_in(child) == ""


def test_it_is_told_by_the_unit_that_runs_it(child: int, program: Path) -> None:
    assert str(program) not in processes.units_upgraded().values()
    replace(program)
    assert str(program) in processes.units_upgraded().values()


def test_who_is_gone_runs_nothing() -> None:
    assert processes.upgraded_in(2**22 + 1) == ""


def test_slots_are_known_by_what_supervisord_starts(tmp_path: Path) -> None:
    program = {**supervisord.DEFAULTS, "user": "shop", "name": "shop", "numprocs": 2}
    start = (
        "/usr/bin/python3 /usr/local/lib/carafe/gunicorn-slots start /srv/shop/serving/slots.json"
    )
    slots = {**program, "socket": "unix:///run/shop.sock", "command": f"{start} %(process_num)d"}
    worker = {**program, "name": "mail", "command": "/srv/shop/bin/run flask mail"}
    (tmp_path / "shop.conf").write_text(
        supervisord.program_text(worker) + supervisord.program_text(slots)
    )
    assert restarts.slot_files(tmp_path) == {"shop": "/srv/shop/serving/slots.json"}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, []),
        ({"session-1.scope": "/usr/bin/bash", "init.scope": "/usr/lib/systemd/systemd"}, []),
        (
            {"postgresql@17-main.service": "/usr/lib/libssl.so.3"},
            ["postgresql@17-main.service runs /usr/lib/libssl.so.3 as it was before an upgrade."],
        ),
    ],
)
def test_what_is_left_is_named_with_what_restarts_it(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, str], said: list[str]
) -> None:
    monkeypatch.setattr(restarts, "units_upgraded", lambda: found)
    lines = list(restarts.restart(only_list=False))
    assert [line.partition(" When")[0] for line in lines] == said
    assert all(line.endswith("systemctl restart postgresql@17-main") for line in lines)


@pytest.mark.parametrize("unit", ["supervisor.service", "carafe-supervised-7-8.scope"])
def test_a_supervisord_that_does_not_answer_is_said(
    monkeypatch: pytest.MonkeyPatch, unit: str
) -> None:
    monkeypatch.setattr(restarts, "units_upgraded", lambda: {unit: "/usr/bin/x"})
    monkeypatch.setattr(supervisord, "SOCKET", "/nowhere.sock")
    (line,) = restarts.restart(only_list=False)
    assert line.startswith("supervisord does not answer: ")
