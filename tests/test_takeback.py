"""A change of what could lock everybody out is taken back unless whoever made it confirms it."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import takeback
from ansible_collections.carafe.stack.plugins.module_utils.commands import CommandFailed

NotConfirmed = takeback.NotConfirmed


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What is run on the server."""
    found: list[tuple[str, ...]] = []
    for name in ("run", "ask"):
        monkeypatch.setattr(takeback, name, lambda *words: found.append(words) or "")
    return found


@pytest.fixture
def change(tmp_path: Path, commands: list) -> takeback.TakeBack:
    return takeback.TakeBack(
        "tried", tmp_path / "run/change.json", tmp_path / "claims", "tried_seconds"
    )


def test_the_timer_is_set_when_the_record_is_there(
    change: takeback.TakeBack, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for name in ("run", "ask"):
        monkeypatch.setattr(
            takeback, name, lambda *words: seen.append((words[0], change.waiting()))
        )
    change.arm("shop", 60, "old", claim=1)
    assert [name for name, _ in seen] == ["systemctl", "systemd-run"]
    assert all(x["former"] == "old" and x["owner"] == "shop" and x["claim"] == 1 for _, x in seen)


def test_what_was_never_confirmed_is_not_what_to_go_back_to(change: takeback.TakeBack) -> None:
    change.arm("shop", 60, "old")
    change.arm("shop", 60, "never confirmed")
    restored: list[str] = []
    assert change.revert(restored.append)
    assert restored == ["old"]
    assert change.waiting() is None
    assert not change.revert(restored.append)


def test_only_who_made_a_change_confirms_or_reverts_it(
    change: takeback.TakeBack, tmp_path: Path
) -> None:
    with pytest.raises(NotConfirmed, match=r"too late.*tried_seconds"):
        change.unconfirmed("shop")
    change.arm("shop", 60, "old", claim=1)
    with pytest.raises(NotConfirmed, match="too late"):
        change.unconfirmed("blog")
    assert not change.revert(lambda _: None, "blog")
    record = change.unconfirmed("shop")
    assert record["former"] == "old"
    (tmp_path / "claims").mkdir()
    change.settle(record)
    assert (tmp_path / "claims/shop.json").read_text() == "1\n"
    assert change.waiting() is None


def test_a_change_waits_until_that_of_another_owner_is_confirmed(
    change: takeback.TakeBack,
) -> None:
    change.arm("shop", 60, "old", claim=1)
    entered = threading.Event()

    def blog() -> None:
        with change.alone("blog"):
            entered.set()

    waiting = threading.Thread(target=blog)
    waiting.start()
    # Its own, which a run that was cut short has left, holds nobody up.
    with change.alone("shop"):
        assert not entered.wait(0.5)
        change.settle(change.waiting())
    assert entered.wait(10)
    waiting.join()


def test_a_change_that_nobody_takes_back_holds_nobody_up(change: takeback.TakeBack) -> None:
    change.arm("shop", 0, "old")
    time.sleep(0.01)
    with change.alone("blog"):
        assert change.waiting()


@pytest.mark.parametrize("fails", [False, True])
def test_a_program_that_fails_takes_the_change_back(change: takeback.TakeBack, fails: bool) -> None:
    restored: list[str] = []
    with (
        pytest.raises(CommandFailed) if fails else contextlib.nullcontext(),
        change.armed(restored.append, "shop", 60, "old"),
    ):
        assert change.waiting()
        if fails:
            raise CommandFailed
    assert restored == ["old"] * fails
    assert bool(change.waiting()) is not fails


def test_the_program_does_only_what_it_knows_a_word_for(
    change: takeback.TakeBack, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    for words, said, reverted in ([], "usage: tried revert", 0), (["revert"], None, 1):
        monkeypatch.setattr(takeback.sys, "argv", ["tried", *words])
        assert change.main(revert=lambda: done.append("revert")) == said
        assert len(done) == reverted


def test_nothing_is_waited_for_in_a_dry_run(change: takeback.TakeBack, tmp_path: Path) -> None:
    change.arm("shop", 600, "old")
    with change.alone("blog", check=True):
        assert not (tmp_path / "claims").exists()
