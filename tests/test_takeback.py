"""A change of what could lock everybody out is taken back unless whoever made it confirms it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import takeback

NotConfirmed = takeback.NotConfirmed


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What is run on the server."""
    found: list[tuple[str, ...]] = []
    monkeypatch.setattr(takeback, "run", lambda *words, **_: found.append(words) or "")
    return found


@pytest.fixture
def change(tmp_path: Path, commands: list) -> takeback.TakeBack:
    return takeback.TakeBack("tried", tmp_path / "run/change.json", "tried_seconds")


def test_the_timer_is_set_when_the_record_is_there(
    change: takeback.TakeBack, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        takeback, "run", lambda *words, **_: seen.append((words[0], change.waiting())) or ""
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


def test_only_who_made_a_change_confirms_or_reverts_it(change: takeback.TakeBack) -> None:
    with pytest.raises(NotConfirmed, match=r"too late.*tried_seconds"):
        change.unconfirmed("shop")
    change.arm("shop", 60, "old")
    with pytest.raises(NotConfirmed, match="too late"):
        change.unconfirmed("blog")
    assert not change.revert(lambda _: None, "blog")
    assert change.unconfirmed("shop")["former"] == "old"
    change.settle()
    assert change.waiting() is None


def test_a_change_waits_until_that_of_another_owner_is_confirmed(
    change: takeback.TakeBack, tmp_path: Path
) -> None:
    change.arm("shop", 60, "old")
    entered = threading.Event()

    def blog() -> None:
        with change.alone(tmp_path / "claims", "blog"):
            entered.set()

    waiting = threading.Thread(target=blog)
    waiting.start()
    # Its own, which a run that was cut short has left, holds nobody up.
    with change.alone(tmp_path / "claims", "shop"):
        assert not entered.wait(0.5)
        change.settle()
    assert entered.wait(10)
    waiting.join()


def test_a_change_that_nobody_takes_back_holds_nobody_up(
    change: takeback.TakeBack, tmp_path: Path
) -> None:
    change.arm("shop", 0, "old")
    time.sleep(0.01)
    with change.alone(tmp_path / "claims", "blog"):
        assert change.waiting()


def test_nothing_is_waited_for_in_a_dry_run(change: takeback.TakeBack, tmp_path: Path) -> None:
    change.arm("shop", 600, "old")
    with change.alone(tmp_path / "claims", "blog", check=True):
        assert not (tmp_path / "claims").exists()
