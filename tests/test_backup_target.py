"""Which moment is meant, and whether one can come back to it."""

from __future__ import annotations

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import backup_target
from ansible_collections.carafe.stack.plugins.module_utils.commands import Failure

NOW = 1_800_000_000.0
POINTS = [
    {"name": "before-46b2c12fc937-a1b2c3-20270115T080000Z", "at": NOW - 500},
    {"name": "before-46b2c12fc937-a1b2c3-20270115T080500Z", "at": NOW - 200},
    {"name": "harmless", "at": NOW - 100},
]


@pytest.mark.parametrize(
    "text",
    [
        "2027-01-15 08:00:00+00",
        "2027-01-15 08:00:00+00:00",
        "2027-01-15T08:00:00Z",
        "2027-01-15 08:00:00 UTC",
        "2027-01-15 09:00:00+01",
        "2027-01-15 03:00:00-05:00",
    ],
)
def test_a_time_is_the_same_in_every_zone(text: str) -> None:
    found = backup_target.parse(text, POINTS, NOW)
    assert found.at == NOW
    assert found.words == ["--type=time", "--target=2027-01-15 08:00:00+00"]


def test_a_part_of_a_second_is_kept() -> None:
    found = backup_target.parse("2027-01-15 08:00:00.25+00", POINTS, NOW)
    assert found.words[1] == "--target=2027-01-15 08:00:00.25+00"


def test_a_release_is_the_newest_point_before_it() -> None:
    found = backup_target.parse("before 46b2c12fc937", POINTS, NOW)
    assert (found.kind, found.name, found.at) == ("name", POINTS[1]["name"], NOW - 200)


def test_a_point_goes_by_its_name() -> None:
    assert backup_target.parse("harmless", POINTS, NOW).at == NOW - 100


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("2027-01-15 08:00:00", "no zone"),
        ("yesterday", "harmless"),
        ("before 0000", "have no release"),
        ("before ", "have no release"),
    ],
)
def test_what_is_not_known_is_refused_with_what_is(text: str, says: str) -> None:
    with pytest.raises(Failure, match=says):
        backup_target.parse(text, POINTS, NOW)


@pytest.mark.parametrize(("age", "says"), [(5000, "before the first"), (-60, "after the newest")])
def test_a_moment_out_of_reach_is_refused_with_the_window(age: float, says: str) -> None:
    target = backup_target.Target("time", NOW - age)
    with pytest.raises(Failure, match=says) as refused:
        backup_target.check(target, {"oldest": NOW - 1000, "newest": NOW}, NOW)
    assert "from 2027-01-15 07:43:20+00:00 to 2027-01-15 08:00:00+00:00" in str(refused.value)


def test_the_latest_moment_is_not_what_lies_before_a_gap() -> None:
    """A restore to it would end there, and say nothing."""
    window = {"oldest": NOW - 100, "newest": NOW, "lost": ["000000010000000000000005"]}
    with pytest.raises(Failure, match=r"lacks 000000010000000000000005.*-e restore_to="):
        backup_target.check(backup_target.Target("latest", NOW), window, NOW)
    backup_target.check(backup_target.Target("time", NOW - 50), window, NOW)
    backup_target.check(backup_target.Target("latest", NOW), window | {"lost": []}, NOW)


def test_a_point_begins_with_a_backup_that_was_done_by_then() -> None:
    backups = [{"label": str(x), "timestamp": {"stop": x}} for x in (100, 200, 300)]
    assert backup_target.backup_before(backups, 250) == "200"
    assert backup_target.backup_before(backups, 50) == ""
