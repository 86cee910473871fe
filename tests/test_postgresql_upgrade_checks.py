"""What an upgrade of PostgreSQL refuses before anything is touched, and where its copy lies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import (
    found,
    postgresql_upgrade,
)
from ansible_collections.carafe.stack.plugins.module_utils import (
    postgresql_upgrade_checks as checks,
)
from ansible_collections.carafe.stack.plugins.module_utils.commands import Failure

MB = 1024 * 1024


@pytest.fixture
def cluster(tmp_path: Path) -> Callable[..., Path]:
    """Make the data folder of 15/main, with links to tablespaces; returns it."""

    def make(*spaces: Path) -> Path:
        data = tmp_path / "lib/15/main"
        (data / "pg_tblspc").mkdir(parents=True)
        for number, space in enumerate(spaces):
            (space / "PG_15_202209061").mkdir(parents=True)
            (data / "pg_tblspc" / str(16400 + number)).symlink_to(space)
        return data

    return make


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ("/var/lib/postgresql/15/main", "/var/lib/postgresql/17/main"),
        ("/mnt/disk/15/main", "/mnt/disk/17/main"),
        # A disk of its own, with nothing beside it.
        ("/mnt/disk", "/var/lib/postgresql/17/main"),
    ],
)
def test_the_copy_lies_where_the_data_does(data: str, place: str) -> None:
    assert checks.place_of_copy(Path(data), "15", "17", "main") == Path(place)


def test_each_disk_is_asked_for_what_lies_there(
    tmp_path: Path, cluster: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = cluster(tmp_path / "other/space")
    (data / "base").write_bytes(bytes(3 * MB))
    (tmp_path / "other/space/PG_15_202209061/table").write_bytes(bytes(2 * MB))
    # Of an upgrade that was undone, which is not copied.
    (tmp_path / "other/space/PG_17_202406281").mkdir()
    (tmp_path / "other/space/PG_17_202406281/table").write_bytes(bytes(5 * MB))
    target = tmp_path / "lib/17/main"
    (one,) = checks.room(data, target, "15")
    assert 5 * MB <= one["bytes"] < 5 * MB + MB // 10
    assert one["needs"] >= one["bytes"] * 1.09 + checks.LOG_ROOM

    stat = Path.stat

    def on_two_disks(self: Path, **options: Any) -> Any:
        there = stat(self, **options)
        if "other" not in self.parts:
            return there
        return SimpleNamespace(st_dev=there.st_dev + 1, st_mode=there.st_mode)

    monkeypatch.setattr(Path, "stat", on_two_disks)
    monkeypatch.setattr(
        checks.shutil,
        "disk_usage",
        lambda path: SimpleNamespace(free=MB if "other" in path.parts else 1000 * MB),
    )
    disks = checks.room(data, target, "15")
    assert [(x["folder"], x["bytes"] // MB) for x in disks] == [
        (str(tmp_path / "lib/17"), 3),
        (str(tmp_path / "other/space"), 2),
    ]
    assert checks.listed_room(disks).endswith("space, where 1 MB are free")
    with pytest.raises(Failure, match=r"needs 2 MB below \S+/space, and 1 MB are free\. Nothing"):
        checks.refuse_full_disks(disks)
    checks.refuse_full_disks(disks[:1])


def test_a_tablespace_in_the_data_folder_would_go_with_it(
    tmp_path: Path, cluster: Callable[..., Path]
) -> None:
    data = cluster(tmp_path / "lib/15/main/inside")
    with pytest.raises(Failure, match="would go with it when that is removed"):
        checks.refuse_tablespaces(data, "15", "17")


def test_a_tablespace_that_has_the_new_version_already_names_its_cluster(
    tmp_path: Path, cluster: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    space = tmp_path / "space"
    data = cluster(space)
    clusters: list[dict[str, str]] = [{"version": "15", "name": "main", "data": str(data)}]
    monkeypatch.setattr(found, "clusters", lambda: clusters)
    checks.refuse_tablespaces(data, "15", "17")
    (space / "PG_17_202406281").mkdir()
    with pytest.raises(Failure, match=r"sudo rm -r \S+/PG_17_202406281"):
        checks.refuse_tablespaces(data, "15", "17")
    undone = tmp_path / "undone/pg_tblspc"
    undone.mkdir(parents=True)
    (undone / "16400").symlink_to(space)
    clusters.append({"version": "17", "name": "undone-1", "data": str(undone.parent)})
    with pytest.raises(Failure, match=r"sudo pg_dropcluster 17 undone-1$"):
        checks.refuse_tablespaces(data, "15", "17")


def test_a_place_that_has_something_is_nobodys_to_overwrite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "17/data"
    clusters: list[dict[str, str]] = []
    monkeypatch.setattr(found, "clusters", lambda: clusters)
    checks.refuse_place(target)
    target.mkdir(parents=True)
    checks.refuse_place(target)
    (target / "PG_VERSION").touch()
    with pytest.raises(
        Failure, match=r"not empty\. Nothing was touched\. .*sudo rm -r \S+/17/data"
    ):
        checks.refuse_place(target)
    clusters.append({"version": "17", "name": "undone-1", "data": str(target)})
    with pytest.raises(Failure, match=r"sudo pg_dropcluster 17 undone-1$"):
        checks.refuse_place(target)


class Session:
    """Answers each question by what it was made with."""

    def __init__(self, **answers: list[tuple[str, str]]) -> None:
        self.answers = {getattr(checks, name): rows for name, rows in answers.items()}

    def rows(self, query: str) -> list[tuple[str, str]]:
        return self.answers.get(query, [])


@pytest.mark.parametrize(
    ("former", "answers", "said"),
    [
        ("15", {"PREPARED": [("x", "shop")]}, r"prepared transactions, x in shop \(.* ROLLBACK"),
        ("15", {"SLOTS": [("sub", "logical")]}, r"replication slots, sub \(.*pg_drop_replication"),
        ("17", {"SLOTS": [("standby", "physical")]}, "replication slots, standby"),
        ("15", {"SUBSCRIPTIONS": [("s", "shop")]}, r"subscriptions, s in shop \(.*NONE"),
        ("15", {"SLOTS": [("a", "logical")], "PREPARED": [("b", "c")]}, r"b in c .*; repl.* a "),
    ],
)
def test_what_an_upgrade_does_not_take_along_is_said_first(
    former: str, answers: dict[str, Any], said: str
) -> None:
    with pytest.raises(Failure, match=rf"^Nothing was touched, .* 1\d/main has: .*{said}"):
        checks.refuse_what_would_be_lost(Session(**answers), former, "main")


@pytest.mark.parametrize(
    ("former", "answers"),
    [("15", {}), ("17", {"SLOTS": [("a", "logical")], "SUBSCRIPTIONS": [("s", "shop")]})],
)
def test_what_it_takes_along_is_in_nobodys_way(former: str, answers: dict[str, Any]) -> None:
    checks.refuse_what_would_be_lost(Session(**answers), former, "main")


@pytest.mark.parametrize(
    ("value", "settings"),
    [("", ""), ("pg_cron, $libdir/o'dd", "shared_preload_libraries = 'pg_cron, $libdir/o''dd'\n")],
)
def test_libraries_of_the_former_server_are_there_while_the_copy_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, settings: str
) -> None:
    for name in ("CREATE", "HOOK"):
        monkeypatch.setattr(postgresql_upgrade, name, tmp_path / name / "file")
    session = SimpleNamespace(rows=lambda query: [(value,)])
    assert postgresql_upgrade.preloaded(session) == settings
    with postgresql_upgrade.like_the_former(settings):
        hook = tmp_path / "HOOK/file"
        assert hook.exists() == bool(settings)
        assert not settings or settings in hook.read_text()
    assert not [x for x in tmp_path.rglob("file")]
