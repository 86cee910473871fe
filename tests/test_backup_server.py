"""What a server gets for its backups, from what its apps claim of them."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import (
    backup_files,
    backup_repository,
    backup_server,
    backup_state,
    claims,
)
from ansible_collections.carafe.stack.plugins.module_utils.commands import Failure, Refused

GIVEN = {
    **{"owner": "shop", "repository": "/mnt/backup", "key": "k" * 30, "retention_days": 14},
    **{"files": "*:0/15", "database": True, "paths": ["/srv/shop/shared"], "more_paths": []},
    **backup_server.SCHEDULES,
}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("/mnt/backup/", ("folder", "/mnt/backup", "", "", 22)),
        ("s3://bucket", ("s3", "/", "", "bucket", 22)),
        ("s3://my.bucket/pre/fix/", ("s3", "/pre/fix", "", "my.bucket", 22)),
        ("sftp://me@host/srv/backup", ("sftp", "/srv/backup", "me", "host", 22)),
        ("sftp://me@[2001:db8::7]:2222/b", ("sftp", "/b", "me", "2001:db8::7", 2222)),
    ],
)
def test_a_place_is_read(text: str, parts: tuple) -> None:
    found = backup_repository.parse(text)
    assert (found.kind, found.path, found.user, found.host, found.port) == parts


@pytest.mark.parametrize(
    "text", ["", "/", "backup", "/a/../b", "s3:/b", "s3://B", "sftp://host/b", "ftp://me@host/b"]
)
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        backup_repository.parse(text)


@pytest.mark.parametrize(
    ("other", "names"),
    [
        ({"repository": "/mnt/other"}, "backup_repository"),
        ({"key": "x" * 30}, "backup_key"),
        ({"retention_days": 30}, ""),
        ({"drill": "*-*-* 05:00"}, ""),
    ],
)
def test_two_places_or_keys_are_refused_and_no_key_is_told(
    tmp_path: Path, other: dict, names: str
) -> None:
    claims.claim(tmp_path, "shop", backup_server.claim(GIVEN))
    mine = backup_server.claim(GIVEN | {"owner": "blog"} | other)
    assert GIVEN["key"] not in (tmp_path / "shop.json").read_text()
    if not names:
        claims.agreed(tmp_path, "blog", mine, backup_server.once)
        return
    with pytest.raises(Refused) as refused:
        claims.agreed(tmp_path, "blog", mine, backup_server.once)
    for word in (names, "shop", "blog"):
        assert word in str(refused.value)


def test_no_other_server_and_no_copy_of_this_one_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    for number in ("1", "2"):
        (tmp_path / number).write_text(f"{number * 32}\n")
        monkeypatch.setattr(backup_repository, "MACHINE", tmp_path / number)
        names += [backup_server.stanza("17", "main"), backup_server.stanza("15", "main")]
    assert len(set(names)) == 4
    assert "1" * 32 not in " ".join(names)


def test_what_is_late_follows_from_when_it_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup_state, "EXPECTED", tmp_path / "none")
    everybody = {"shop": backup_server.claim(GIVEN)}
    jobs = json.loads(backup_server.expected(backup_server.jobs(everybody, 900), 5432))["jobs"]
    assert jobs["files-shop"]["seconds"] == 900 + 60 + 900
    assert jobs["database-full"]["seconds"] == 7 * 86400 + 900 + 6 * 3600
    assert jobs["drill"]["timer"] == "carafe-backup-drill.timer"
    assert set(jobs) == {*backup_state.DATABASE, "files-shop", "drill"}


def test_a_time_that_is_none_is_refused() -> None:
    with pytest.raises(Refused, match="backup_full is 'soon'"):
        backup_server.interval("backup_full", "soon")


@pytest.fixture
def open_database(tmp_path: Path) -> Any:
    """A database that somebody has open, with what it wrote last in a file beside."""
    path = tmp_path / "the $data [1].store"
    there = sqlite3.connect(path)
    there.execute("PRAGMA journal_mode = WAL")
    there.execute("PRAGMA wal_autocheckpoint = 0")
    there.execute("CREATE TABLE notes (text)")
    there.execute("INSERT INTO notes VALUES ('last')")
    there.commit()
    yield path
    there.close()


def test_sqlite_is_told_by_content_and_copied_with_what_is_in_its_log(
    tmp_path: Path, open_database: Path
) -> None:
    (tmp_path / "fake.sqlite").write_text("no database\n")
    (tmp_path / "link").symlink_to(open_database)
    assert [*backup_files.sqlite_files([str(tmp_path)])] == [open_database]
    folder = tmp_path / "copies"
    folder.mkdir()
    copy = backup_files.copy(open_database, folder)
    assert copy == folder / str(open_database).lstrip("/")
    with sqlite3.connect(copy) as here:
        assert here.execute("SELECT text FROM notes").fetchall() == [("last",)]
    assert copy.stat().st_uid == os.geteuid()
    assert [x.name for x in copy.parent.iterdir()] == [copy.name]


def test_a_broken_sqlite_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken").write_bytes(backup_files.SQLITE + b"\0" * 4096)
    (tmp_path / "copies").mkdir()
    with pytest.raises(Failure, match=r"SQLite does not copy .*broken"):
        backup_files.copy(tmp_path / "broken", tmp_path / "copies")


def test_what_looks_like_a_pattern_is_one_path() -> None:
    assert backup_files.quoted("/a [1]*?\\x $b") == r"/a \[1\]\*\?\\x $b"
