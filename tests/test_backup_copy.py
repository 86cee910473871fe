"""The second copy of the repository, between two folders."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import (
    backup_copy,
    backup_files,
    backup_repository,
    backup_server,
    backup_state,
)
from ansible_collections.carafe.stack.plugins.module_utils.commands import Failure

DAY = 86400
NOW = 1_800_000_000.0


class Fake:
    """Two folders, and what rclone would do with them."""

    def __init__(self, source: Path, target: Path) -> None:
        self.folders = {"source": source, "target": target}
        self.breaks: Callable[[str], bool] = lambda _: False
        self.calls: list[str] = []
        self.sent: list[list[str]] = []

    def of(self, word: str) -> Path:
        side, _, path = word.partition(":")
        return self.folders[side] / path.lstrip("/") if side in self.folders else Path(word)

    def __call__(self, *words: str, paths: Any = None, base: str = "") -> Any:
        name, *rest = words
        kept = [x for x in rest if x.startswith("--backup-dir=")]
        places = [self.of(x) for x in rest if not x.startswith("-")]
        self.calls.append(name)
        found = getattr(self, name)(places, [*(paths or ())], kept)
        return type("Done", (), {"returncode": 0, "stdout": found, "stderr": ""})

    def lsjson(self, places: list[Path], *_: Any) -> str:
        (top,) = places
        files = [x for x in top.rglob("*") if x.is_file()]
        return json.dumps(
            [{"Path": str(x.relative_to(top)), "Size": x.stat().st_size} for x in files]
        )

    def copy(self, places: list[Path], paths: list[str], kept: list[str]) -> str:
        source, target = places
        self.sent.append(paths)
        for path in paths:
            if not (source / path).exists() or self.breaks(path):
                continue  # and ends with 0, as rclone does
            place = target / path
            if kept and place.exists():
                former = self.of(kept[0].partition("=")[2]) / path
                former.parent.mkdir(parents=True, exist_ok=True)
                place.rename(former)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / path, place)
        return ""

    def check(self, places: list[Path], paths: list[str], *_: Any) -> str:
        source, target = places
        lines = [
            f"{'=' if (source / x).read_bytes() == (target / x).read_bytes() else '*'} {x}"
            for x in paths
        ]
        return "\n".join(lines)

    def delete(self, places: list[Path], paths: list[str], *_: Any) -> str:
        for path in paths:
            (places[0] / path).unlink()
        return ""


class Store:
    """A repository of an app's files, as restic has it."""

    def __init__(self, top: Path) -> None:
        self.top, self.moments = top / "files/shop", {}

    def add(self, kind: str, text: str) -> Path:
        name = hashlib.sha256(text.encode()).hexdigest()
        path = self.top / kind / (name[:2] if kind == "data" else "") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def snapshot(self, text: str, at: float = NOW) -> Path:
        self.add("data", f"data of {text}")
        self.add("index", f"index of {text}")
        path = self.add("snapshots", text)
        self.moments[path.name] = at
        return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store(tmp_path / "first")
    found.snapshot("one")
    (found.top / "config").write_text("the first")
    (found.top / "locks").mkdir()
    (found.top / "locks" / ("a" * 64)).write_text("who is at work")
    return found


@pytest.fixture
def copy(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what copies shop's files at a moment, and a fake of rclone's."""
    monkeypatch.setattr(backup_state, "STATE", tmp_path)
    setup = {
        **{"repository": str(tmp_path / "first"), "is_mount": False, "retention_days": 14},
        **{"s3": {"ca": ""}, "database": False},
        "copy": {"repository": str(tmp_path / "second"), "is_mount": False, "s3": {"ca": ""}},
    }
    work = tmp_path / "work"
    for folder in (work, tmp_path / "second/files/shop"):
        folder.mkdir(parents=True)
    places = backup_copy.Places(setup, work)
    fake = Fake(tmp_path / "first", tmp_path / "second")
    monkeypatch.setattr(places, "rclone", fake)

    def snapshots(told: Any, app: str, anybody: bool = False) -> list[dict[str, Any]]:
        folder = Path(told["repository"], "files", app, "snapshots")
        return [{"id": x.name, "at": store.moments[x.name]} for x in folder.iterdir()]

    monkeypatch.setattr(backup_files, "snapshots", snapshots)
    part = backup_copy.Part(
        *("shop's files", "files/shop", ("",), "shop/"),
        lambda places: backup_copy.app_files(places, "shop"),
    )

    def run(now: float = NOW) -> dict[str, Any]:
        ledger = backup_copy.Ledger(setup["copy"]["repository"])
        try:
            return backup_copy.one(places, part, ledger, now)
        finally:
            ledger.save()

    run.fake = fake
    return run


def names(top: Path) -> set[str]:
    return {str(x.relative_to(top)) for x in top.rglob("*") if x.is_file()}


@pytest.fixture
def second(tmp_path: Path) -> Path:
    return tmp_path / "second/files/shop"


def test_all_but_locks_is_copied_and_nothing_twice(copy: Any, store: Store, second: Path) -> None:
    assert copy()["bytes"] > 0
    assert names(second) == {x for x in names(store.top) if not x.startswith("locks/")}
    copy.fake.calls.clear()
    assert copy()["bytes"] == 0
    assert "copy" in copy.fake.calls  # restic's config, to be compared
    store.snapshot("two")
    assert copy()["files"] == 7


def test_what_is_gone_stays_for_as_long_as_backups_are_kept(
    copy: Any, store: Store, second: Path
) -> None:
    old = store.snapshot("old", NOW - 20 * DAY)
    copy()
    old.unlink()
    copy(NOW + DAY)
    for now, is_there in ((NOW + 14 * DAY, True), (NOW + 16 * DAY, False)):
        copy(now)
        assert (second / "snapshots" / old.name).exists() is is_there


def test_what_is_gone_and_comes_back_is_not_let_go(copy: Any, store: Store, second: Path) -> None:
    old = store.snapshot("old", NOW - 20 * DAY)
    copy()
    old.unlink()
    copy(NOW + DAY)
    old.write_text("old")
    copy(NOW + 2 * DAY)
    old.unlink()
    copy(NOW + 16 * DAY)
    assert (second / "snapshots" / old.name).exists()


def test_what_was_to_be_kept_and_is_gone_is_told_until_it_is_old(copy: Any, store: Store) -> None:
    young = store.snapshot("young")
    copy()
    young.unlink()
    for days in (0, 13):
        with pytest.raises(Failure, match=f"has lost shop/{young.name}.*restore_place=copy"):
            copy(NOW + days * DAY)
    copy(NOW + 15 * DAY)


@pytest.mark.parametrize("gone", ["config", "snapshots", "."])
def test_a_repository_that_was_emptied_changes_nothing(
    copy: Any, store: Store, second: Path, gone: str
) -> None:
    copy()
    before = names(second)
    path = store.top / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(Failure, match="the copy is left as it is"):
        copy(NOW + 100 * DAY)
    assert names(second) == before


def test_nothing_is_copied_of_what_is_no_repository(copy: Any, store: Store, second: Path) -> None:
    (store.top / "config").unlink()
    with pytest.raises(Failure, match="the copy is left as it is"):
        copy()
    assert names(second) == set()


def test_a_repository_that_was_made_anew_is_not_mixed_with_the_old_one(
    copy: Any, store: Store, second: Path
) -> None:
    copy()
    (store.top / "config").write_text("the other")
    store.snapshot("two")
    before = names(second)
    with pytest.raises(Failure, match="was made anew"):
        copy()
    assert names(second) == before


@pytest.mark.parametrize("text", ["another length", "DATA OF one"])
def test_a_file_that_a_disk_has_changed_is_told_and_kept_as_it_was(
    copy: Any, store: Store, second: Path, text: str
) -> None:
    copy()
    path = store.add("data", "data of one")
    path.write_text(text)
    two = store.snapshot("two")
    with pytest.raises(Failure, match="is not what it was when it was copied"):
        copy()
    there = second / path.relative_to(store.top)
    assert there.read_text() == "data of one"
    # All else goes on.
    assert (second / "snapshots" / two.name).exists()


def test_what_was_cut_short_is_sent_again(copy: Any, store: Store, second: Path) -> None:
    path = store.add("data", "data of one")
    copy.fake.breaks = lambda name: "snapshots" in name
    with pytest.raises(Failure, match=r"snapshots/.* do not arrive"):
        copy()
    assert not names(second / "snapshots")
    (second / path.relative_to(store.top)).write_text("dat")
    copy.fake.breaks = lambda _: False
    copy()
    assert (second / path.relative_to(store.top)).read_text() == "data of one"


def test_nothing_leads_to_what_has_not_arrived(copy: Any, store: Store, second: Path) -> None:
    """Though rclone ends with 0."""
    copy.fake.breaks = lambda name: name.startswith("data/")
    with pytest.raises(Failure, match="do not arrive: it does not say why"):
        copy()
    assert names(second) == set()


def test_what_goes_while_it_is_copied_is_looked_at_again(
    copy: Any, store: Store, second: Path
) -> None:
    two = store.snapshot("two")
    gone = [store.add("data", "data of two"), store.add("index", "index of two"), two]

    def vanishes(name: str) -> bool:
        for path in gone:
            path.unlink(missing_ok=True)
        return not (store.top / name).exists()

    copy.fake.breaks = vanishes
    copy()
    assert names(second) == {x for x in names(store.top) if not x.startswith("locks/")}


def test_the_ledger_is_of_one_place(copy: Any) -> None:
    copy()
    known = backup_copy.Ledger("/elsewhere")
    assert (known.gone, known.units, known.sending) == ({}, {}, [])


# What rclone says of it.


@pytest.fixture
def rclone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two places, and what rclone says of them, to be set: exit status, words, and complaints."""
    side = {"repository": "/mnt/backup", "is_mount": False, "s3": {"ca": ""}}
    places = backup_copy.Places(side | {"copy": side | {"repository": "/mnt/copy"}}, tmp_path)
    places.says = []

    def run(*_: Any, **__: Any) -> Any:
        status, said, complaint = places.says.pop(0)
        return SimpleNamespace(returncode=status, stdout=said, stderr=complaint)

    monkeypatch.setattr(places, "rclone", run)
    return places


GONE = "ERROR : 20261122-020000F: error listing: directory not found"
ONE = '[\n{"Path":"a","Size":1},'
BOTH = '[\n{"Path":"a","Size":1},\n{"Path":"b","Size":2}\n]\n'


def test_a_folder_that_goes_while_a_place_is_listed_leaves_it_no_empty_one(rclone: Any) -> None:
    rclone.says = [(3, ONE, GONE), (0, BOTH, "")]
    assert rclone.list(rclone.source, "pgbackrest") == {"a": 1, "b": 2}
    rclone.says = [(3, ONE, GONE)] * backup_copy.TRIES
    with pytest.raises(Failure, match=r"/mnt/backup cannot be listed: .*directory not found"):
        rclone.list(rclone.source, "pgbackrest")


def test_a_folder_that_is_not_there_is_an_empty_one(rclone: Any) -> None:
    rclone.says = [(3, "[\n", "ERROR : : error listing: directory not found")]
    assert rclone.list(rclone.target, "pgbackrest") == {}


def test_a_place_out_of_reach_is_not_one_that_lacks_a_file(rclone: Any) -> None:
    rclone.says = [(1, "", "Failed to create file system: connection refused")]
    with pytest.raises(Failure, match=r"/mnt/backup cannot be read: .*can be reached from here"):
        backup_copy.lists(rclone, "s")
    rclone.says = [(3, "", GONE)]
    with pytest.raises(Failure, match=r"/mnt/backup has no archive/s/archive\.info"):
        backup_copy.lists(rclone, "s")


def test_what_a_disk_does_not_give_any_more_is_not_the_same(rclone: Any) -> None:
    complaint = "ERROR : a: failed to download: read /mnt/copy/a: input/output error"
    rclone.says = [(1, "! a\n= b\n", complaint), (0, BOTH, "")]
    with pytest.raises(Failure, match=r"a cannot be compared with its copy: .*input/output"):
        rclone.compare("files/shop", ["a", "b"])
    # What has gone from the repository since is none of it.
    rclone.says = [(1, "! c\n* b\n", complaint), (0, BOTH, "")]
    assert rclone.compare("files/shop", ["c", "b"]) == ["b"]


@pytest.fixture
def fetched(copy: Any, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is copied, and a folder that it is fetched to, which is not there yet."""
    copy()
    place, there = second.parents[1], tmp_path / "fetched"
    setup = {"copy": {"repository": str(place), "is_mount": False, "s3": {"ca": ""}}}
    monkeypatch.setattr(backup_repository, "setup", lambda: setup)
    fake = Fake(place, there)
    monkeypatch.setattr(backup_copy.Places, "rclone", lambda _, *x, **more: fake(*x, **more))
    return there


@pytest.mark.parametrize("brought", [False, True])
def test_a_fetch_needs_room_for_what_it_has_not_brought_yet(
    fetched: Path, second: Path, monkeypatch: pytest.MonkeyPatch, brought: bool
) -> None:
    monkeypatch.setattr(backup_copy.shutil, "disk_usage", lambda _: SimpleNamespace(free=20))
    if not brought:
        with pytest.raises(Failure, match=r"needs \d+ B, and .*fetched has 20 B free"):
            backup_copy.fetch(str(fetched))
        return
    shutil.copytree(second, fetched / "files/shop")
    next(x for x in fetched.rglob("*") if x.is_file()).write_text("cut short")
    assert backup_copy.fetch(str(fetched)).endswith(f"are in {fetched}")
    assert names(fetched / "files/shop") == names(second)


def test_postgresql_reads_what_was_fetched_whatever_the_umask_is(fetched: Path) -> None:
    umask = os.umask(0o077)
    try:
        backup_copy.fetch(str(fetched))
    finally:
        os.umask(umask)
    assert fetched.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("folder", ["here", "/", "s3://bucket", "/mnt/../copy"])
def test_a_fetch_goes_to_a_folder(folder: str) -> None:
    with pytest.raises(Failure, match="is no folder"):
        backup_copy.fetch(folder)


# What leads to a database's backups.


def test_what_is_written_anew_is_kept_as_it_was(copy: Any, tmp_path: Path) -> None:
    places = copy.fake
    lists = {"backup/s/backup.info": b"1", "backup/s/backup.info.copy": b"1"}
    target = tmp_path / "second/pgbackrest/backup/s"
    mine = backup_copy.Places.__new__(backup_copy.Places)
    mine.work, mine.rclone = tmp_path / "work", places
    mine.target = type(
        "Side", (), {"at": lambda _, *x: "/".join(("target:", *x)), "setup": {"repository": "x"}}
    )()
    mine.write("pgbackrest", lists, "then")
    assert (target / "backup.info").read_bytes() == b"1"
    places.sent.clear()
    mine.write("pgbackrest", dict.fromkeys(lists, b"2"), "now")
    # One of the two is whole at any moment.
    assert places.sent[1:3] == [["backup/s/backup.info.copy"], ["backup/s/backup.info"]]
    assert {x.read_bytes() for x in target.iterdir()} == {b"2"}
    former = tmp_path / "second/former/now/pgbackrest/backup/s"
    assert {x.read_bytes() for x in former.iterdir()} == {b"1"}
    places.breaks = lambda name: not name.endswith(".copy")
    with pytest.raises(Failure, match=r"does not keep backup/s/backup\.info as it was written"):
        mine.write("pgbackrest", dict.fromkeys(lists, b"3"), "later")


def test_a_list_that_lacks_a_backup_before_its_time_does_not_replace_the_one_that_has_it(
    copy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = {"repository": "/mnt/backup", "retention_days": 14}
    target = type("Side", (), {"setup": {"repository": "/mnt/copy"}})()
    written: list[bytes] = []

    class Fakes:
        def __init__(self) -> None:
            self.setup, self.target = setup, target

        def list(self, *_: Any) -> dict[str, int]:
            return {}

        def compare(self, *_: Any) -> list[str]:
            return []

        def write(self, _: str, heads: dict[str, bytes], __: str) -> None:
            written.extend(heads.values())

    seen = backup_copy.Seen({}, [], {"backup/s/backup.info": b"both"}, {}, NOW, False)
    part = backup_copy.Part("the database", "pgbackrest", ("x/",), "s/", lambda _: seen)
    monkeypatch.setattr(backup_copy, "readable", lambda *_: None)
    ledger = backup_copy.Ledger("/mnt/copy")
    seen.units = {"s/old": NOW - DAY, "s/new": NOW}
    backup_copy.one(Fakes(), part, ledger, NOW)
    seen.units, seen.heads = {"s/new": NOW}, {"backup/s/backup.info": b"one"}
    with pytest.raises(Failure, match=r"has lost s/old.*have the copy follow: rm .*copying\.json"):
        backup_copy.one(Fakes(), part, ledger, NOW)
    assert written == [b"both"]
    backup_copy.one(Fakes(), part, ledger, NOW + 15 * DAY)
    assert written == [b"both", b"one"]


@pytest.mark.parametrize(
    ("said", "then"),
    [
        ("2026/11/27 10:00:00 ERROR : a: write: no space left on device", "df -h"),
        ("ERROR : InvalidAccessKeyId: no", "backup_copy_s3_secret"),
        ("Failed: ssh: handshake failed: knownhosts: key is unknown", "known_hosts"),
        ("ssh: unable to authenticate, attempted methods [none publickey]", "backup_copy_ssh_key"),
    ],
)
def test_what_rclone_says_comes_with_what_to_do(said: str, then: str) -> None:
    assert then in backup_copy.explained(said)


@pytest.mark.parametrize("level", ["", "ERROR : ", "NOTICE: "])
def test_what_rclone_says_comes_without_when(level: str) -> None:
    said = backup_copy.explained(f"2026/11/27 19:15:54 {level}Failed to create file system")
    assert said == "Failed to create file system"


# Where it is, and how a restore finds it.

SETUP = {
    **{"repository": "/mnt/backup", "database": True, "stanza": "s", "key": "k", "blocks": True},
    **{"data": "/var/lib/postgresql/17/main", "port": 5432, "retention_days": 14, "s3": {}},
}


def test_a_restore_reads_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = {}
    monkeypatch.setattr(
        backup_repository.files, "write", lambda path, text, *_: written.update({path: text})
    )
    assert backup_repository.reading(SETUP, "") == SETUP
    setup = SETUP | {"copy": {"repository": "/mnt/copy", "is_mount": True, "s3": {}}}
    found = backup_repository.reading(setup, "copy")
    assert (found["repository"], found["is_mount"]) == ("/mnt/copy", True)
    assert "repo1-path=/mnt/copy/pgbackrest\n" in written[Path(found["config"])]
    (tmp_path / "files").mkdir()
    assert backup_repository.reading(SETUP, str(tmp_path))["repository"] == str(tmp_path)


@pytest.mark.parametrize(
    ("setup", "place", "says"),
    [
        (SETUP, "copy", "backup_copy_repository"),
        (SETUP, "kopy", "neither copy nor a folder"),
        (SETUP, "/nowhere", "neither copy nor a folder"),
        (
            SETUP | {"copy": {"repository": "sftp://me@host/b", "is_mount": False, "s3": {}}},
            "copy",
            "backup fetch /mnt/copy",
        ),
    ],
)
def test_a_place_that_cannot_be_read_is_refused(setup: dict, place: str, says: str) -> None:
    with pytest.raises(Failure, match=says):
        backup_repository.reading(setup, place)


S3 = {"endpoint": "s3.example.com:9000", "region": "eu-1", "key": "AK", "secret": "SK", "ca": ""}


@pytest.mark.parametrize(
    ("place", "at", "has"),
    [
        ("/mnt/copy", "/mnt/copy/files/shop", {}),
        ("s3://bucket", "target:bucket/files/shop", {"SECRET_ACCESS_KEY": "SK"}),
        ("s3://bucket/a", "target:bucket/a/files/shop", {"FORCE_PATH_STYLE": "true"}),
        (
            "sftp://me@host:23/b",
            "target:/b/files/shop",
            {"KEY_FILE": "/etc/carafe/backup/copy/id", "PORT": "23"},
        ),
    ],
)
def test_rclone_is_told_of_a_place_and_gets_no_secret_as_an_argument(
    place: str, at: str, has: dict[str, str]
) -> None:
    side = backup_copy.Side("target", {"repository": place, "s3": S3, "ssh": "copy"})
    assert side.at("files", "shop") == at
    found = side.environment()
    for name, value in has.items():
        assert found[f"RCLONE_CONFIG_TARGET_{name}"] == value


def test_the_copy_comes_after_what_is_being_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = {
        name: {"what": name, "words": name, "when": "daily", "delay": 0, "description": name}
        for name in ("full", "files-shop", "drill", "copy")
    }
    setup = {"repository": "/mnt/backup", "copy": {"repository": "/mnt/copy"}}
    units = backup_server.unit_files(jobs, setup)
    text = units["carafe-backup-copy.service"]
    assert (
        "postgresql.service carafe-backup-full.service carafe-backup-files-shop.service\n" in text
    )
    assert "RequiresMountsFor=/mnt/backup /mnt/copy\n" in text
    # A copy that is not mounted keeps nothing from being stored.
    assert "/mnt/copy" not in units["carafe-backup-full.service"]
