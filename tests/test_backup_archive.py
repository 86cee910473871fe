"""Gaps in an archive of WAL, and histories that it lacks: what pgBackRest itself does not tell."""

from __future__ import annotations

from ansible_collections.carafe.stack.plugins.module_utils import backup_archive

SUM = "-" + "0a" * 20 + ".zst"


def segments(timeline: int, *numbers: int) -> list[str]:
    names = [backup_archive.name(timeline, x) for x in numbers]
    return [f"{name[:16]}/{name}{SUM}" for name in names]


def missing(names: list[str], oldest: str, **histories: str) -> list[str]:
    texts = {int(k.removeprefix("of_")): text for k, text in histories.items()}
    return backup_archive.missing(names, oldest, texts)


def test_the_newest_segment_is_that_of_the_newest_timeline() -> None:
    names = [*segments(1, 7, 9), *segments(2, 8), "a/00000003.history", "a/junk"]
    assert backup_archive.newest(names) == "000000020000000000000008"
    assert backup_archive.newest([]) == ""


def test_a_whole_archive_lacks_nothing() -> None:
    names = segments(1, *range(3, 260))
    assert missing(names, backup_archive.name(1, 3)) == []


def test_a_name_is_its_number_over_the_end_of_a_file() -> None:
    assert backup_archive.name(1, 0x1FF) == "0000000100000001000000FF"
    assert backup_archive.number("0000000200000001000000FF") == (2, 0x1FF)
    assert backup_archive.segment_of("1/FF000028") == 0x1FF


def test_a_segment_that_is_gone_is_named() -> None:
    names = [*segments(1, 3, 4), *segments(1, 6)]
    assert missing(names, backup_archive.name(1, 3)) == [backup_archive.name(1, 5)]


def test_what_was_before_the_backup_is_not_missed() -> None:
    names = [*segments(1, 1), *segments(1, 3, 4)]
    assert missing(names, backup_archive.name(1, 3)) == []


def test_a_backup_without_its_first_segment_is_seen() -> None:
    assert missing(segments(1, 4), backup_archive.name(1, 3)) == [backup_archive.name(1, 3)]


def test_a_timeline_goes_on_where_its_parent_was_left() -> None:
    # The parent's last segment is there as a part only; the child has it whole.
    names = [*segments(1, 3, 4), *segments(2, 5, 6)]
    history = "1\t0/5000100\tbefore 2026\n"
    assert missing(names, backup_archive.name(1, 3), of_2=history) == []


def test_a_history_that_is_gone_is_named() -> None:
    names = [*segments(1, 3, 4), *segments(2, 5)]
    assert missing(names, backup_archive.name(1, 3)) == ["00000002.history"]


def test_a_gap_on_the_parent_is_seen_behind_its_child() -> None:
    names = [*segments(1, 3), *segments(2, 5, 6)]
    history = "1\t0/5000100\tbefore 2026\n"
    lost = missing(names, backup_archive.name(1, 3), of_2=history)
    assert lost == [backup_archive.name(1, 4)]


def test_what_is_no_whole_segment_counts_for_none() -> None:
    part = f"0000000100000000/{backup_archive.name(1, 4)}.partial{SUM}"
    names = [*segments(1, 3), part, *segments(1, 5)]
    assert missing(names, backup_archive.name(1, 3)) == [backup_archive.name(1, 4)]
