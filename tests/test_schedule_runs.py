"""The runs of a schedule: noted at their end, shown, and told of when they fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import (
    files,
    programs,
    schedule_runs,
    words,
)

SHOW = "#!/bin/sh\n[ $1 = show ] && echo @1000\n"
# What the journal has of another run, of another unit, is not asked for.
JOURNAL = """#!/bin/sh
[ "$1" != --sync ] || exit 0
[ "$5" = _SYSTEMD_INVOCATION_ID=run-1 ] && printf 'no such cart\\n\\033[2Jlast\\n'
"""


@pytest.fixture
def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """End runs as systemd does, by the program on the server; return what is noted of them."""
    monkeypatch.setattr(programs, "FOLDER", tmp_path / "lib")
    parts = [x.__name__.rpartition(".")[2] for x in (schedule_runs, files, words)]
    programs.install("schedules", parts)
    (tmp_path / "bin").mkdir()
    for name, text in (("systemctl", SHOW), ("journalctl", JOURNAL)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    folder = tmp_path / "schedules"

    def end(result: str = "success", status: str = "0") -> list[dict[str, Any]]:
        environment = {
            **{"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "INVOCATION_ID": "run-1"},
            **{"SERVICE_RESULT": result, "EXIT_STATUS": status},
        }
        program = tmp_path / "lib/schedules"
        words = [sys.executable, "-I", program, "ended", folder, "shop.cleanup", "cleanup"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        # In the journal it would be the schedule's own.
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        return json.loads((folder / "cleanup.json").read_text())

    return end


def test_a_run_is_noted_with_how_it_went_and_what_it_wrote(noted: Any, tmp_path: Path) -> None:
    [run] = noted("exit-code", "3")
    assert run.pop("ended") > run["began"]
    assert run == {
        **{"began": 1000.0, "result": "exit-code", "status": "3"},
        "output": "no such cart\n\\x1b[2Jlast\n",
    }
    # It has what the app has printed.
    assert (tmp_path / "schedules/cleanup.json").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "schedules").stat().st_mode & 0o007 == 0


@pytest.mark.parametrize("damage", ["", "{", '{"a": 1}', "[1]", "null", '[{"ended": "x"}]'])
def test_a_damaged_history_is_begun_anew(noted: Any, tmp_path: Path, damage: str) -> None:
    noted()
    (tmp_path / "schedules/cleanup.json").write_text(damage)
    assert schedule_runs.failing(tmp_path / "schedules", ["cleanup"]) == []
    assert "no run yet" in schedule_runs.listing(tmp_path / "schedules", ["cleanup"])[0]
    assert len(noted()) == 1


def write(folder: Path, *results: str) -> None:
    runs = [
        {"began": 1000 + n, "ended": 1002 + n, "result": x, "status": "3", "output": f"run {n}\n"}
        for n, x in enumerate(results)
    ]
    (folder / "cleanup.json").write_text(json.dumps(runs))


def test_so_many_runs_are_kept(noted: Any, tmp_path: Path) -> None:
    noted()
    write(tmp_path / "schedules", *["success"] * schedule_runs.KEEP)
    runs = noted()
    assert len(runs) == schedule_runs.KEEP
    assert [runs[0]["began"], runs[-1]["began"]] == [1001, 1000]


@pytest.mark.parametrize(
    ("results", "told"),
    [
        (["success", "exit-code"], "its last run failed, exit status 3, at 1970-01-01 00:16:43"),
        (["success", "signal"], "its last run failed, ended by 3"),
        (["timeout"], "its last run failed, timeout"),
        (["success", "timeout", "exit-code"], "its last 2 runs failed, exit status 3"),
        (["exit-code", "success"], ""),
        ([], ""),
    ],
)
def test_a_schedule_whose_last_run_failed_is_told_of(
    tmp_path: Path, results: list[str], told: str
) -> None:
    write(tmp_path, *results)
    found = schedule_runs.failing(tmp_path, ["cleanup", "never-run"])
    assert len(found) == bool(told)
    assert all(f"the schedule cleanup: {told}" in line for line in found)


def test_the_runs_are_shown_with_what_the_last_one_or_each_wrote(tmp_path: Path) -> None:
    write(tmp_path, "success", "exit-code")
    last, first = (f"  1970-01-01 00:16:4{n} UTC  2 s  " for n in (3, 2))
    head = "cleanup: the last runs, the newest first"
    assert schedule_runs.listing(tmp_path, ["cleanup", "other"]) == [
        *(head, f"{last}failed, exit status 3", "    | run 1", f"{first}ok", "other: no run yet")
    ]
    assert schedule_runs.listing(tmp_path, ["cleanup", "other"], "cleanup") == [
        *(head, f"{last}failed, exit status 3", "    | run 1", f"{first}ok", "    | run 0")
    ]
