"""What a server gets for its backups, from what its apps claim of them."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import (
    backup_files,
    backup_recover,
    backup_repository,
    backup_server,
    backup_state,
    claims,
)
from ansible_collections.carafe.stack.plugins.module_utils.commands import Failure, Refused
from ansible_collections.carafe.stack.plugins.modules import backup as backup_module

GIVEN = {
    **{"owner": "shop", "repository": "/mnt/backup", "key": "k" * 30, "release": ""},
    **{"files": "*:0/15", "database": True, "paths": ["/srv/shop/shared"], "more_paths": []},
    **{"copy_s3_key": "", "copy_s3_secret": ""},
    **{"s3_key": "", "s3_secret": "", "version": "17", "cluster": "main", "port": 5432},
    **{"data": "/var/lib/postgresql/17/main", "blocks": True, "databases": ["shop"]},
    **backup_server.ONCE,
}
BLOG = GIVEN | {"owner": "blog", "database": False, "paths": ["/srv/blog/shared"], "databases": []}


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
        ({"s3_endpoint": "s3.example.net"}, "backup_s3_endpoint"),
        ({"database": True, "cluster": "shop"}, "backup_cluster"),
        ({"database": True, "version": "15"}, ""),
        ({"retention_days": 30}, ""),
        ({"drill": "*-*-* 05:00"}, ""),
    ],
)
def test_two_places_or_keys_are_refused_and_no_key_is_told(
    tmp_path: Path, other: dict, names: str
) -> None:
    given = GIVEN | {"s3_endpoint": "s3.example.com"}
    claims.claim(tmp_path, "shop", backup_server.claim(given))
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
    jobs = json.loads(backup_server.expected(backup_server.jobs(everybody), 5432))["jobs"]
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


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that the module writes, in the place of a server's root."""
    for module, name, path in (
        (backup_server, "CLAIMS", "etc/backup.d"),
        (backup_server, "UNITS", "units"),
        (backup_repository, "FOLDER", "etc/backup"),
        (backup_repository, "SETUP", "etc/backup/setup.json"),
        (backup_repository, "PGBACKREST", "etc/pgbackrest.conf"),
        (backup_state, "STATE", "state"),
        (backup_state, "EXPECTED", "etc/backup/expected.json"),
    ):
        monkeypatch.setattr(module, name, tmp_path / path)
    for folder in ("units", "etc/backup/apps", "etc/backup.d", "state"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("retention_days", 90, lambda setup, _: setup["retention_days"]),
        ("s3_endpoint", "s3.example.com", lambda setup, _: setup["s3"]["endpoint"]),
        ("s3_region", "eu-1", lambda setup, _: setup["s3"]["region"]),
        ("s3_ca", "/etc/ssl/ours.pem", lambda setup, _: setup["s3"]["ca"]),
        ("copy_repository", "/mnt/copy", lambda setup, _: setup["copy"]["repository"]),
        ("delay", 60, lambda _, jobs: jobs["full"]["delay"]),
        ("full", "Sat *-*-* 02:00", lambda _, jobs: jobs["full"]["when"]),
    ],
)
@pytest.mark.parametrize("last", ["shop", "blog"])
def test_what_one_owner_states_holds_whoever_runs_last(
    server: Path, name: str, value: Any, found: Any, last: str
) -> None:
    given = {"shop": GIVEN | {name: value}, "blog": BLOG}
    everybody = {owner: backup_server.claim(x) for owner, x in given.items()}
    setup = backup_server.setup_of(given[last], everybody)
    assert found(setup, backup_server.jobs(everybody)) == value


COPY = {
    **{"copy_repository": "s3://second", "copy_s3_key": "AK", "copy_s3_secret": "SK"},
    **{"copy_s3_endpoint": "s3.example.com", "copy_ssh_key": "", "copy_ssh_known_hosts": []},
}


@pytest.fixture
def copied(server: Path) -> dict[str, Any]:
    """Have shop, which has a second place, and blog, which states none; return the claims."""
    everybody = {x["owner"]: backup_server.claim(x) for x in (GIVEN | COPY, BLOG)}
    setup = backup_server.setup_of(GIVEN | COPY, everybody)
    backup_repository.SETUP.write_text(json.dumps(setup))
    return everybody


def test_who_states_no_second_place_leaves_that_of_another_one(copied: dict[str, Any]) -> None:
    copy = backup_server.setup_of(BLOG, copied)["copy"]
    assert (copy["repository"], copy["s3"]["secret"]) == ("s3://second", "SK")
    assert "SK" not in json.dumps(copied)
    assert backup_server.jobs(copied)["copy"]["when"] == "*-*-* *:40:00"


def test_a_second_place_goes_with_who_states_it(copied: dict[str, Any]) -> None:
    del copied["shop"]
    setup = backup_server.setup_of(BLOG, copied)
    assert setup["copy"] == {}
    assert "copy" not in backup_server.jobs(copied)
    assert [x.path.name for x in backup_server.unused(setup)] == ["id"]


@pytest.mark.parametrize("kind", ["s3://second", "sftp://me@host/b", "/mnt/copy"])
def test_the_secrets_of_a_second_place_are_roots_alone(server: Path, kind: str) -> None:
    given = GIVEN | COPY | {"copy_repository": kind, "copy_ssh_key": "a secret", "ssh_key": ""}
    everybody = {"shop": backup_server.claim(given)}
    setup = backup_server.setup_of(given, everybody)
    found = {
        item.path.name: (item.mode, item.group, item.sensitive)
        for item in backup_server.items(given, setup, backup_server.jobs(everybody))
        for text in [(getattr(item, "content", None) or b"").decode()]
        if "SK" in text or "a secret" in text
    }
    names = {"setup.json", "id"} if kind.startswith("sftp") else {"setup.json"}
    assert found == dict.fromkeys(names, (0o600, "root", True))


def test_no_database_is_stored_by_sftp(server: Path) -> None:
    """Nor by the run of another app, which has none."""
    place = {"repository": "sftp://me@host/srv/backup"}
    everybody = {x["owner"]: backup_server.claim(x | place) for x in (GIVEN, BLOG)}
    with pytest.raises(Refused, match="backup_repository is sftp://me@host/srv/backup"):
        backup_server.setup_of(BLOG | place, everybody)
    del everybody["shop"]
    assert not backup_server.setup_of(BLOG | place, everybody)["database"]


class Leaving:
    """What a module is given for an owner that leaves."""

    def __init__(self, owner: str) -> None:
        self.params, self.check_mode = {"owner": owner}, False


@pytest.fixture
def both(server: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have two owners there, of whom shop has the database; return the module."""
    everybody = {x["owner"]: backup_server.claim(x) for x in (GIVEN | {"retention_days": 90}, BLOG)}
    for owner, claimed in everybody.items():
        claims.claim(backup_server.CLAIMS, owner, claimed)
    setup = backup_server.setup_of(GIVEN, everybody)
    backup_repository.SETUP.write_text(json.dumps(setup))
    for name in ("files-shop", "restore-shop", "restoring-shop", "files-blog"):
        backup_state.path_of(name).write_text("{}")
    backup_recover.note(**{"files-shop": "done", "files-blog": "done", "database": "done"})
    there = backup_module.FileSet
    written: list[str] = []

    def plain(items: list, check: bool) -> Any:
        """Write as whoever runs the tests."""
        files_ = there([], check)
        for item in items:
            if getattr(item, "content", None) is not None:
                item.path.write_bytes(item.content)
                written.append(item.path.name)
        return files_

    monkeypatch.setattr(backup_module, "FileSet", plain)
    monkeypatch.setattr(backup_module, "stop", lambda *_: None)
    monkeypatch.setattr(backup_module.removal.Removal, "units", lambda *_: None)
    return backup_module


def test_who_leaves_with_the_database_takes_it_out_of_what_the_others_do(both: Any) -> None:
    both.remove(Leaving("shop"))
    setup = backup_repository.setup()
    assert (setup["database"], setup["retention_days"]) == (False, 14)
    assert set(backup_state.expected()) == {"files-blog", "drill"}


def test_who_leaves_takes_what_is_noted_of_it(both: Any) -> None:
    both.remove(Leaving("shop"))
    left = {x.name for x in backup_state.STATE.iterdir()}
    assert left == {"files-blog.json", "recovered.json"}
    assert backup_recover.noted() == {"files-blog": "done", "database": "done"}


@pytest.mark.parametrize(("version", "pinned"), [("15", False), ("17", True)])
def test_no_setting_of_a_database_ends_what_is_asked(
    monkeypatch: pytest.MonkeyPatch, version: str, pinned: bool
) -> None:
    seen = {}

    def ran(*_: Any, **more: Any) -> Any:
        seen.update(more)
        return SimpleNamespace(stdout="")

    monkeypatch.setattr(backup_repository, "as_postgres", ran)
    backup_repository.psql({"version": version, "port": 5432}, "SELECT 1")
    words = seen["PGOPTIONS"].split("-c ")
    assert ("transaction_timeout=0" in [x.strip() for x in words]) is pinned
    assert "default_transaction_read_only=off " in words


@pytest.mark.parametrize(("check", "left"), [(False, {}), (True, {"files-blog": "begun"})])
def test_what_a_recovery_has_begun_is_forgotten_once_the_app_serves(
    both: Any, monkeypatch: pytest.MonkeyPatch, check: bool, left: dict[str, str]
) -> None:
    monkeypatch.setattr(both, "MADE", backup_state.STATE / "stanza")
    setup = backup_repository.setup()
    both.MADE.write_text(json.dumps([setup["repository"], setup["stanza"]]))
    monkeypatch.setattr(both, "due_timers", list)
    monkeypatch.setattr(both, "first", lambda *_: [])
    backup_recover.save({"files-blog": "begun"})
    both.activate(SimpleNamespace(params={"owner": "blog"}, check_mode=check))
    assert backup_recover.noted() == left


@pytest.mark.parametrize("state", ["running", "waiting"])
def test_a_first_copy_that_waits_for_a_first_backup_is_not_begun_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: str
) -> None:
    monkeypatch.setattr(backup_server, "UNITS", tmp_path)
    monkeypatch.setattr(backup_state, "read", lambda _: None)
    setup = {"database": True, "copy": {"repository": "/mnt/copy"}}
    queue: list[str] = []
    said = SimpleNamespace(stdout="")
    monkeypatch.setattr(backup_module, "ask", lambda *_: said)
    for what, unit in backup_module.first(setup, "shop", True):
        queue.append(f"{len(queue) + 7} {unit} start {state if what == 'copy' else 'running'}\n")
    assert len(queue) == 2
    said.stdout = "".join(queue)
    assert backup_module.first(setup, "shop", False) == []
