"""Files land whole or not at all, with their owner, group and mode."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import files


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert files.read(path) is None
    files.write(path, "naïve\n", mode=0o640, owner=os.getuid(), group=os.getgid())
    assert files.read(path) == "naïve\n"
    assert mode_of(path) == 0o640
    files.write(path, b"\xff\x00")
    assert path.read_bytes() == b"\xff\x00"
    files.write(path, files.read(path))
    assert path.read_bytes() == b"\xff\x00"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_and_what_it_points_to_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "a").symlink_to("theirs")
    files.write(tmp_path / "a", "ours")
    assert not (tmp_path / "a").is_symlink()
    assert (tmp_path / "theirs").read_text() == "theirs"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_removed_and_a_living_one_is_let_be(tmp_path: Path) -> None:
    dead, alive, other = (tmp_path / x for x in (".a.999999999.carafe", ".a.1.carafe", ".a.b"))
    for path in (dead, alive, other):
        path.touch()
    files.write(tmp_path / "a", "new")
    assert sorted(tmp_path.iterdir()) == [alive, other, tmp_path / "a"]


def test_who_is_not_known_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        files.write(tmp_path / "a", "new", owner="nobody-of-that-name")
    assert not list(tmp_path.iterdir())


def test_a_folder_goes_as_a_whole_or_it_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    (folder / "below/file").touch()
    files.remove_folder(folder)
    assert not folder.exists()
    files.remove_folder(folder)
    # A link in its place leads to what is somebody else's.
    folder.symlink_to(tmp_path)
    with pytest.raises(OSError, match="link is in the place"):
        files.remove_folder(folder)
    assert folder.is_symlink()
