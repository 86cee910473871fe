"""What is said of backups that fail, are late, or never begin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import backup_state

NOW = 1_800_000_000.0
DAY = 86400
GOOD = {
    **{"mode": "on", "archived": NOW - 30, "failed": None, "failed_wal": None},
    **{"since": NOW - DAY, "ready": 1, "ready_bytes": 16 << 20},
}
JOBS = {
    "database-full": {"timer": "full.timer", "seconds": 8 * DAY, "since": NOW - 20 * DAY},
    "database-diff": {"timer": "diff.timer", "seconds": 2 * DAY, "since": NOW - 20 * DAY},
    "files-shop": {"timer": "files.timer", "seconds": 3600, "since": NOW - 20 * DAY},
    "drill": {"timer": "drill.timer", "seconds": 2 * DAY, "since": NOW - 20 * DAY},
}


@pytest.fixture(autouse=True)
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have a server on which all goes well; return what writes another last run of a job."""
    monkeypatch.setattr(backup_state, "STATE", tmp_path)
    monkeypatch.setattr(backup_state, "EXPECTED", tmp_path / "expected.json")
    (tmp_path / "expected.json").write_text(json.dumps({"jobs": JOBS, "port": 5432}))

    def last(what: str, age: float, result: str = "ok", **more: Any) -> None:
        ended = NOW - age
        entry = {"began": ended, "ended": ended, "result": result, "message": "disk is full"}
        (tmp_path / f"{what}.json").write_text(json.dumps(entry | {"last_ok": ended} | more))

    for what in JOBS:
        last(what, 60)
    return last


def problems(archiving: Any = GOOD, **stopped: str) -> list[tuple[str, str]]:
    def timers(names: list[str]) -> dict[str, str]:
        return dict.fromkeys(names, "active") | {f"{k}.timer": x for k, x in stopped.items()}

    found = backup_state.problems(NOW, lambda: archiving, timers)
    assert all(x["next"] for x in found)
    return [(x["level"], x["what"]) for x in found]


def test_nothing_is_wrong_where_all_goes_well() -> None:
    assert problems() == []


def test_nothing_is_wrong_where_nothing_is_expected() -> None:
    backup_state.EXPECTED.unlink()
    assert problems(None, full="inactive") == []


def test_a_failed_one_is_told_with_its_words(server: Any) -> None:
    server("drill", 60, "failed", last_ok=NOW - DAY)
    assert problems() == [("red", "drill: disk is full")]


@pytest.mark.parametrize(("what", "count"), [("database-full", 0), ("files-shop", 1)])
def test_a_failure_is_mended_by_a_backup_that_looks_at_all(
    server: Any, what: str, count: int
) -> None:
    jobs = JOBS | {"database-incr": {"timer": "i.timer", "seconds": DAY, "since": NOW - DAY}}
    backup_state.EXPECTED.write_text(json.dumps({"jobs": jobs}))
    server("database-diff", 300)
    server("database-full", 300)
    server("database-incr", 200, "failed", last_ok=NOW - 300)
    assert problems() == [("red", "database-incr: disk is full")]
    server(what, 100)
    assert len(problems()) == count


def test_a_hole_between_backups_is_told_though_the_newest_one_is_whole(server: Any) -> None:
    server("database-full", 60, details={"holes": ["0A", "0B"]})
    ((level, what),) = problems()
    assert level == "yellow"
    assert "0A and 1 more" in what


@pytest.mark.parametrize("what", ["files-shop", "drill", "database-full"])
def test_one_that_is_late_is_told_though_it_ended_well(server: Any, what: str) -> None:
    server(what, 9 * DAY)
    assert problems() == [("red", f"{what}: the last good one is 9 days old")]


def test_a_full_backup_is_a_differential_one_too(server: Any) -> None:
    server("database-diff", 3 * DAY)
    assert problems() == []


def test_a_timer_that_nobody_started_is_told() -> None:
    ((level, what),) = problems(files="inactive")
    assert level == "red"
    assert "files.timer" in what


def test_a_backup_that_was_never_made_is_told(server: Any) -> None:
    backup_state.path_of("files-shop").unlink()
    assert problems() == [("red", "files-shop: there is none yet")]


@pytest.mark.parametrize(("age", "level"), [(60, "yellow"), (400, "red")])
def test_archiving_that_fails_is_told_and_how_much_waits(age: float, level: str) -> None:
    seen = GOOD | {"archived": NOW - age, "failed": NOW - 1, "failed_wal": "0A", "ready": 3}
    ((found, what),) = problems(seen | {"ready_bytes": 48 << 20})
    assert found == level
    assert "0A; 3 segments (48 MiB)" in what


def test_archiving_that_failed_once_and_goes_on_is_fine() -> None:
    assert problems(GOOD | {"failed": NOW - 40}) == []


@pytest.mark.parametrize("seen", [None, GOOD | {"mode": "off"}])
def test_archiving_that_is_off_or_silent_is_told(seen: Any) -> None:
    ((level, _),) = problems(seen)
    assert level == "red"


def test_a_failure_keeps_when_one_last_ended_well(server: Any) -> None:
    server("drill", DAY)
    noted = backup_state.note("drill", NOW, "failed", "two\nlines", gap="0A")
    assert noted["last_ok"] == NOW - DAY
    assert noted["message"] == "two lines"
    assert backup_state.read("drill") == noted


def test_who_follows_answers_for_none_of_what_the_cluster_has(server: Any) -> None:
    cluster = {"drill-database": JOBS["drill"], **JOBS}
    server("database-full", 20 * DAY)
    server("files-shop", 20 * DAY)
    failing = GOOD | {"failed": NOW, "archived": None}
    late = "the last good one is 20 days old"
    for jobs, seen, said in (
        (cluster, failing | {"follows": True}, {"files-shop"}),
        (cluster, GOOD | {"follows": False}, {"files-shop", "database-full", "drill-database"}),
        # A server that is alone is to write.
        (JOBS, GOOD | {"follows": True}, {"files-shop", "database-full"}),
        (cluster, None, {"files-shop", "database-full", "drill-database", "PostgreSQL does"}),
    ):
        backup_state.EXPECTED.write_text(json.dumps({"jobs": jobs, "port": 5432}))
        found = {x.partition(":")[0].partition(" not")[0] for _, x in problems(seen)}
        assert found == said, late
