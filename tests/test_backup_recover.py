"""How a new server begins with the data of one that is gone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import (
    backup_files,
    backup_jobs,
    backup_recover,
    backup_repository,
    backup_state,
)
from ansible_collections.carafe.stack.plugins.module_utils.commands import Failure

SETUP = {
    **{"repository": "/mnt/backup", "host": "new", "version": "17", "cluster": "main"},
    **{"stanza": "new-11111111-17-main", "database": True},
}
OLD = {"id": "abcdef0123", "at": 1.0, "hostname": "old", "tagged": {"uid-1": "nobody"}}


@pytest.fixture
def stanzas(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the repository has, to be filled."""
    names: list[str] = [SETUP["stanza"]]

    def listing(*_: str) -> str:
        return json.dumps({name: {} for name in (".", *names)})

    monkeypatch.setattr(backup_jobs, "pgbackrest_repo", listing)
    return names


def test_a_former_server_is_found_by_its_name_or_by_its_place(stanzas: list[str]) -> None:
    stanzas += ["old-22222222-17-main", "old-22222222-15-main"]
    for name in ("old", "old-22222222-17-main"):
        assert backup_recover.former(SETUP, name)["stanza"] == "old-22222222-17-main"


@pytest.mark.parametrize("name", ["old-22222222-15-main", "old"])
def test_what_another_version_has_written_is_never_brought(stanzas: list[str], name: str) -> None:
    stanzas += ["old-22222222-15-main"]
    with pytest.raises(Failure, match=r"This server has 17/main .*postgres_cluster") as refused:
        backup_recover.former(SETUP, name)
    assert "-e restore_from=" not in str(refused.value)


def test_what_is_offered_is_what_is_accepted(stanzas: list[str]) -> None:
    stanzas += ["old-22222222-15-main", "older-33333333-17-main"]
    offered = "-e restore_from=older-33333333-17-main"
    with pytest.raises(Failure, match=offered) as refused:
        backup_recover.former(SETUP, "old-22222222-15-main")
    assert "17/main, so not old-22222222-15-main." in str(refused.value)


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two folders of an app, empty on the new server, of which the store has one file each."""
    found = [tmp_path / "srv/one", tmp_path / "srv/two"]
    for path in found:
        path.mkdir(parents=True)

    def restored(_: Any, __: str, snapshot: Any, target: Path, path: Path) -> None:
        place = target / str(path).lstrip("/")
        place.mkdir(parents=True)
        (place / "photo").write_text("stored")

    monkeypatch.setattr(backup_state, "STATE", tmp_path)
    monkeypatch.setattr(backup_repository, "setup", lambda: SETUP)
    told = {"paths": [str(x) for x in found]}
    monkeypatch.setattr(backup_files, "app_of", lambda _: told)
    monkeypatch.setattr(backup_files, "snapshots", lambda *_, **__: [OLD])
    monkeypatch.setattr(backup_files, "restored", restored)
    return found


def bring() -> list[str]:
    return backup_recover.bring_files("shop", "old", "latest", check=False)


def cut_short(monkeypatch: pytest.MonkeyPatch, at: Path) -> None:
    """Bring the files, and fail at one of the folders."""
    whole = backup_files.restored

    def restored(setup: Any, name: str, snapshot: Any, target: Path, path: Path) -> None:
        if path == at:
            raise Failure("The store is down.")
        whole(setup, name, snapshot, target, path)

    with monkeypatch.context() as for_now:
        for_now.setattr(backup_files, "restored", restored)
        with pytest.raises(Failure):
            bring()


def test_what_was_cut_short_is_gone_on_with(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_short(monkeypatch, paths[1])
    assert bring()
    assert [(x / "photo").read_text() for x in paths] == ["stored", "stored"]
    # What came the first time is not brought again, nor kept.
    assert sorted(paths[0].parent.iterdir()) == paths
    assert bring() == []


def test_what_was_begun_is_forgotten_once_the_app_serves(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later restore_from would replace what is live since."""
    cut_short(monkeypatch, paths[0])
    backup_recover.note(database="begun", **{"files-blog": "begun"})
    (paths[0] / "photo").write_text("live")
    backup_recover.forget_begun("shop")
    with pytest.raises(Failure, match="has files already"):
        bring()
    assert (paths[0] / "photo").read_text() == "live"
    # Not that of another app, which has not come so far.
    assert backup_recover.noted().get("files-blog") == "begun"
    assert "database" not in backup_recover.noted()


def test_what_is_done_is_not_forgotten(paths: list[Path]) -> None:
    bring()
    backup_recover.forget_begun("shop")
    assert bring() == []


def test_what_somebody_has_written_meanwhile_is_kept(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_short(monkeypatch, paths[0])
    (paths[0] / "photo").write_text("live")
    bring()
    assert (paths[0] / "photo").read_text() == "stored"
    (kept,) = paths[0].parent.glob("one.before-*")
    assert (kept / "photo").read_text() == "live"


# Whose the files are.


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[Path, tuple[int, int]]:
    """What chown was told, without the right to do it."""
    seen: dict[Path, tuple[int, int]] = {}

    def chown(path: Path, uid: int, gid: int, *, follow_symlinks: bool) -> None:
        assert not follow_symlinks
        assert path not in seen
        seen[path] = (uid, gid)

    monkeypatch.setattr(os, "chown", chown)
    return seen


@pytest.fixture
def numbers(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The users and groups of the new server."""
    found = {"shop": 4321, "www-data": 33}

    def asked(name: str) -> SimpleNamespace:
        return SimpleNamespace(pw_uid=found[name], gr_gid=found[name])

    monkeypatch.setattr(backup_files.pwd, "getpwnam", asked)
    monkeypatch.setattr(backup_files.grp, "getgrnam", asked)
    return found


def test_files_belong_to_who_has_the_name_on_the_new_server(
    tmp_path: Path, given: dict[Path, tuple[int, int]], numbers: dict[str, int]
) -> None:
    top, mine = tmp_path / "shared", (os.geteuid(), os.getegid())
    top.mkdir()
    (top / "photo").write_text("x")
    (top / "again").hardlink_to(top / "photo")
    (top / "link").symlink_to("/etc/passwd")
    owners = {f"uid-{mine[0]}": "shop", f"gid-{mine[1]}": "www-data"}
    backup_files.own(top, owners)
    assert set(given.values()) == {(4321, 33)}
    # A file with two names is given once.
    assert len(given) == 3
    assert {top, top / "link"} < given.keys()


def test_who_is_not_there_leaves_files_to_root_and_not_to_who_has_the_number(
    tmp_path: Path,
    given: dict[Path, tuple[int, int]],
    numbers: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = SimpleNamespace(st_uid=999, st_gid=999, st_nlink=1, st_mode=0o100644, st_ino=1)
    path = tmp_path / "photo"
    monkeypatch.setattr(backup_files, "each", lambda _: iter([(path, there)]))
    backup_files.own(tmp_path, {"uid-999": "gone"})
    # A number that had no name stays as it is.
    assert given == {path: (0, 999)}


def test_a_snapshot_says_whose_its_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photo").write_text("x")
    name = SimpleNamespace(pw_name="shop", gr_name="shop-files")
    monkeypatch.setattr(backup_files.pwd, "getpwuid", lambda _: name)
    monkeypatch.setattr(backup_files.grp, "getgrgid", lambda _: name)
    tags = backup_files.owner_tags([str(tmp_path)])
    there = tmp_path.stat()
    assert f"uid-{there.st_uid}=shop" in tags
    tagged = dict(x.split("=", 1) for x in [*tags, "release=uid-1"])
    assert backup_files.owners_of(tagged) == {
        f"uid-{there.st_uid}": "shop",
        f"gid-{there.st_gid}": "shop-files",
    }


def test_what_is_restored_is_given_to_its_owners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owned = []

    def ran(*_: Any) -> None:
        (tmp_path / "target/srv/shop").mkdir(parents=True)

    monkeypatch.setattr(backup_files, "restic", ran)
    monkeypatch.setattr(backup_files, "own", lambda *words: owned.append(words))
    snapshot = {"id": "abc", "owners": {"uid-999": "shop"}}
    backup_files.restored(SETUP, "shop", snapshot, tmp_path / "target", Path("/srv/shop"))
    assert owned == [(tmp_path / "target/srv/shop", {"uid-999": "shop"})]


def test_a_new_server_reads_where_it_is_told(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(
        backup_repository, "reading", lambda setup, place: setup | {"repository": place}
    )

    def snapshots(setup: dict[str, Any], *_: Any, **__: Any) -> list[dict[str, Any]]:
        read.append(setup["repository"])
        return [OLD]

    def listing(setup: dict[str, Any], *_: Any) -> str:
        read.append(setup["repository"])
        return json.dumps({SETUP["stanza"]: {}})

    monkeypatch.setattr(backup_files, "snapshots", snapshots)
    monkeypatch.setattr(backup_jobs, "pgbackrest_repo", listing)
    monkeypatch.setattr(backup_recover.found, "has_databases", lambda _: False)
    assert backup_recover.bring_files("shop", "old", "latest", check=True, place="copy")
    setup = SETUP | {"data": "/var/lib/postgresql/17/main"}
    monkeypatch.setattr(backup_repository, "setup", lambda: setup)
    with pytest.raises(Failure, match="has nothing"):
        backup_recover.database("old", "latest", check=True, place="copy")
    assert read == ["copy", "copy"]


def test_three_servers_do_not_each_bring_what_one_is_to_bring(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setup = SETUP | {"patroni": {"name": "one"}}
    monkeypatch.setattr(backup_recover.backup_repository, "setup", lambda: setup)
    monkeypatch.setattr(backup_recover, "noted", dict)
    with pytest.raises(Failure, match=r"on one server.*none in etcd"):
        backup_recover.database("shop", "latest", check=False)
