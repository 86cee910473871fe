"""Files land whole or not at all, with their owner, group and mode."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
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


def test_what_is_there_goes_and_what_a_link_leads_to_stays(tmp_path: Path) -> None:
    folder, theirs = tmp_path / "folder", tmp_path / "theirs"
    (folder / "below").mkdir(parents=True)
    theirs.mkdir()
    (theirs / "file").touch()
    (folder / "below/link").symlink_to(theirs)
    os.mkfifo(folder / "below/pipe")
    files.remove(folder)
    assert not folder.exists()
    files.remove(folder)
    for plant in (lambda: folder.symlink_to(theirs), lambda: os.mkfifo(folder), folder.touch):
        plant()
        files.remove(folder)
        assert list(tmp_path.iterdir()) == [theirs]
    assert list(theirs.iterdir()) == [theirs / "file"]


def test_folders_that_lie_deep_in_each_other_go(tmp_path: Path) -> None:
    handle = os.open(tmp_path, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=handle)
        below = os.open("d", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = below
    os.close(handle)
    assert files.count_files(tmp_path / "d") == 0
    files.remove(tmp_path / "d")
    assert not list(tmp_path.iterdir())


def test_files_are_counted_without_what_python_compiles_and_without_links_to_folders(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "folder"
    (folder / "lib/__pycache__").mkdir(parents=True)
    for name in ("a", "lib/b", "lib/__pycache__/b.pyc", ".c"):
        (folder / name).touch()
    (folder / "lib64").symlink_to("lib")
    (folder / "python").symlink_to("/usr/bin/python3")
    assert files.count_files(folder) == 4
    assert files.count_files(tmp_path / "gone") == -1


def test_of_what_is_long_only_the_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"end")
    assert files.tail(path, 9) == b"end"
    with path.open("r+b") as file:
        file.truncate(1 << 40)
        file.seek(0, os.SEEK_END)
        file.write(b"end")
    assert files.tail(path, 3) == b"end"


# What somebody else puts into a folder of theirs.

STRANGER = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root's files can be somebody else's")


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder of somebody else's, beside one of root's with a file in it."""
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours/file").write_text("ours")
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", STRANGER, STRANGER)
    return tmp_path / "theirs"


WORK = {
    "read": files.read,
    "status": lambda path: files.status(path, follow=True),
    "write": lambda path: files.write(path, "new"),
    "set_attributes": lambda path: files.set_attributes(path, 0o777, STRANGER, STRANGER),
    "make_folder": files.make_folder,
    "remove": files.remove,
}


@as_root
@pytest.mark.parametrize("work", WORK)
def test_somebody_elses_link_on_the_way_is_refused(theirs: Path, work: str) -> None:
    (theirs / "link").symlink_to("../ours")
    with pytest.raises(OSError, match="'link' is a link that others can have put"):
        WORK[work](theirs / "link/file")
    assert (theirs.parent / "ours/file").read_text() == "ours"


@as_root
def test_roots_own_link_is_followed(theirs: Path) -> None:
    (theirs.parent / "link").symlink_to("ours")
    (theirs.parent / "ours/link").symlink_to("file")
    assert files.read(theirs.parent / "link/link") == "ours"


@as_root
def test_somebody_elses_link_is_replaced_and_never_read(theirs: Path) -> None:
    (theirs / "link").symlink_to("../ours/file")
    with pytest.raises(OSError, match="'link' is a link"):
        files.read(theirs / "link")
    files.write(theirs / "link", "new")
    assert files.read(theirs / "link") == "new"
    assert (theirs.parent / "ours/file").read_text() == "ours"


@as_root
def test_a_file_with_a_second_name_keeps_its_owner(theirs: Path) -> None:
    (theirs / "link").hardlink_to(theirs.parent / "ours/file")
    with pytest.raises(OSError, match="no file with one name"):
        files.set_attributes(theirs / "link", 0o666, STRANGER, None)
    assert (theirs.parent / "ours/file").stat().st_uid == 0


@pytest.mark.parametrize(
    ("plant", "says"),
    [(os.mkfifo, "It is no file"), (os.mkdir, "It is a folder")],
    ids=["pipe", "folder"],
)
def test_what_is_no_file_is_not_opened(
    tmp_path: Path, plant: Callable[[Path], None], says: str
) -> None:
    plant(tmp_path / "a")
    with pytest.raises(OSError, match=says):
        files.read(tmp_path / "a")


def test_a_file_that_never_ends_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LIMIT", 9)
    (tmp_path / "a").write_text("x" * 10)
    with pytest.raises(OSError, match="too large"):
        files.read(tmp_path / "a")
