"""Servers that take each other's place: one place for their backups, and one that makes each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import (
    backup_archive,
    backup_copy,
    backup_drill,
    backup_jobs,
    backup_program,
    backup_repository,
    backup_restore,
    backup_server,
    backup_shared,
    backup_state,
    found,
)
from ansible_collections.carafe.stack.plugins.module_utils.commands import CommandFailed, Failure
from ansible_collections.carafe.stack.plugins.module_utils.etcd import Entry
from ansible_collections.carafe.stack.plugins.module_utils.peer_https import Unanswered
from ansible_collections.carafe.stack.plugins.modules import backup as module
from test_backup_server import GIVEN

TOLD = {
    **{"name": "one", "dcs": ["10.0.0.1"], "certificate": "c", "trusted": "t"},
    **{"scope": "main", "namespace": "/service/"},
}
SETUP = {"database": True, "patroni": TOLD, "version": "17", "cluster": "main", "port": 5432}
PREFIX = "/carafe/backup/main/"


class Etcd:
    """What etcd keeps, for all servers of a test."""

    def __init__(self) -> None:
        self.keys: dict[str, Entry] = {}
        self.is_away = False

    def below(self, prefix: str) -> dict[str, Entry]:
        if self.is_away:
            raise Unanswered("nobody is there")
        return {k.removeprefix(prefix): x for k, x in self.keys.items() if k.startswith(prefix)}

    def put(self, key: str, value: str, former: Entry | None) -> bool:
        has = self.keys.get(key)
        if (has.revision if has else 0) != (former.revision if former else 0):
            return False
        self.keys[key] = Entry(value, (has.revision if has else 0) + 1)
        return True


@pytest.fixture
def etcd(monkeypatch: pytest.MonkeyPatch) -> Etcd:
    there = Etcd()
    monkeypatch.setattr(backup_shared, "Peer", lambda *_: None)
    monkeypatch.setattr(backup_shared, "Etcd", lambda *_: there)
    return there


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Be one server after another, each with a disk of its own."""

    def be(name: str) -> Path:
        disk = tmp_path / name
        disk.mkdir(exist_ok=True)
        (disk / "machine").write_text(f"{name}\n")
        monkeypatch.setattr(backup_repository, "MACHINE", disk / "machine")
        monkeypatch.setattr(backup_repository, "STANZA", f"{disk}/stanza-{{machine}}")
        monkeypatch.setattr(backup_repository, "SETUP", disk / "setup.json")
        monkeypatch.setattr(backup_state, "STATE", disk)
        (disk / "setup.json").write_text(json.dumps(SETUP))
        return disk

    be("one")
    return be


@pytest.fixture
def following(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Say whether this server follows; an exception is what PostgreSQL answers instead."""

    def say(answer: Any) -> None:
        def asked(_: Any, query: str, *__: Any, **___: Any) -> str:
            if isinstance(answer, Exception):
                raise answer
            return answer if query == backup_shared.FOLLOWS else ""

        monkeypatch.setattr(backup_repository, "psql", asked)
        monkeypatch.setattr(backup_jobs, "psql", asked)

    return say


# --- the place


def agreed(former: dict[str, Any] | None = None, dry: bool = False, **more: Any) -> str:
    return backup_shared.agreed(GIVEN | {"patroni": TOLD} | more, former or {}, dry)


def test_all_servers_of_a_cluster_have_one_place(etcd: Etcd, server: Callable[..., Path]) -> None:
    first = agreed()
    server("two")
    assert agreed() == first
    assert first.startswith("shop-")
    assert first.endswith("-17-main")


def test_what_was_restored_elsewhere_has_no_way_to_that_place(
    etcd: Etcd, server: Callable[..., Path]
) -> None:
    first = agreed()
    etcd.keys.clear()
    disk = server("two")
    # All of the disk of one, on another machine.
    (disk / "stanza-one").write_text(f"{first}\n")
    assert agreed(SETUP) != first


def test_an_etcd_that_was_made_anew_is_told_the_place(
    etcd: Etcd, server: Callable[..., Path]
) -> None:
    first = agreed()
    (server("one") / "stanza-one").write_text(f"{first}\n")
    etcd.keys.clear()
    assert agreed(SETUP) == first
    # What it had while it was alone is no place for all of them.
    etcd.keys.clear()
    assert agreed({"database": True}) != first


def test_who_looks_only_names_nothing(etcd: Etcd, server: Callable[..., Path]) -> None:
    agreed(dry=True)
    assert etcd.keys == {}
    etcd.is_away = True
    assert agreed(dry=True).endswith("-17-main")
    with pytest.raises(Failure, match="for want of a majority of its members: nobody is there"):
        agreed()


def test_another_version_has_another_place(etcd: Etcd, server: Callable[..., Path]) -> None:
    first = agreed()
    second = agreed(version="18")
    assert (second.endswith("-18-main"), second != first) == (True, True)
    assert agreed(version="18") == second


# --- who does what


def done(what: str) -> list[str]:
    made: list[str] = []
    said = backup_jobs.job(what, lambda: (made.append(what) or "made", {}))
    return made + ([said] if said else [])


@pytest.mark.parametrize(
    ("answer", "what", "expected"),
    [
        ("f", "database-full", ["database-full"]),
        ("t", "database-full", []),
        ("t", "copy-database", []),
        ("t", "files-shop", ["files-shop"]),
        (CommandFailed("it is away"), "database-incr", ["it is away"]),
    ],
)
def test_who_leads_makes_what_is_made_once(
    etcd: Etcd, server: Callable[..., Path], following: Any, answer: Any, what: str, expected: list
) -> None:
    following(answer)
    assert done(what) == expected
    # Of what was not done, nothing is noted, and nobody else gets to know a thing that is not so.
    assert (backup_state.read(what) is not None) is (expected == [what])
    shared = expected == [what] and what in backup_state.SHARED
    assert (f"{PREFIX}notes/{what}" in etcd.keys) is shared


@pytest.mark.parametrize(
    ("members", "does"),
    [(["one", "two", "three"], "three"), (["one", "two"], "two"), (["one", "down"], "one")],
)
def test_the_drill_is_that_of_one_that_follows(
    etcd: Etcd, server: Callable[..., Path], members: list[str], does: str
) -> None:
    etcd.put("/service/main/leader", "one", None)
    for name in members:
        state = "stopped" if name == "down" else "running"
        etcd.put(f"/service/main/members/{name}", json.dumps({"state": state}), None)
    those = [
        name
        for name in ("one", "two", "three", "down")
        if not backup_shared.elsewhere(SETUP | {"patroni": TOLD | {"name": name}}, "drill-database")
    ]
    assert those == [does]


def test_what_one_has_made_is_known_to_the_next_that_leads(
    etcd: Etcd, server: Callable[..., Path], following: Any
) -> None:
    following("f")
    backup_jobs.job("database-full", lambda: ("made by one", {"oldest": 7}))
    backup_jobs.point("before-x")
    server("two")
    backup_shared.sync(SETUP)
    assert backup_state.read("database-full")["message"] == "made by one"
    backup_jobs.point("before-y")
    backup_jobs.job("database-full", lambda: ("made by two", {}))
    server("one")
    backup_shared.sync(SETUP)
    assert backup_state.read("database-full")["message"] == "made by two"
    assert [x["name"] for x in backup_state.points()] == ["before-x", "before-y"]


@pytest.mark.parametrize(("follows", "written"), [("t", []), ("f", [backup_jobs.MARK] * 3)])
def test_a_row_of_the_drill_is_written_where_it_leads(
    etcd: Etcd,
    server: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    follows: str,
    written: list[str],
) -> None:
    """And one that follows finds the rows of the other in what it has got."""
    asked: list[str] = []

    def ask(_: Any, query: str, *__: Any) -> str:
        asked.append(query)
        return {backup_shared.FOLLOWS: follows}.get(query, "[1, 2]")

    for place in (backup_repository, backup_jobs, backup_drill):
        monkeypatch.setattr(place, "psql", ask)
    backup_jobs.mark()
    assert backup_drill.moments(SETUP, 0) == (1, 2)
    assert [x for x in asked if x == backup_jobs.MARK] == written


@pytest.mark.parametrize(("setup", "resent"), [(SETUP, True), ({"database": True}, False)])
def test_what_a_former_leader_has_not_copied_whole_is_copied_anew(
    server: Callable[..., Path], setup: dict[str, Any], resent: bool
) -> None:
    target = {"begun": 3, "changed": 9}

    def send(_: str, paths: list[str]) -> str:
        target.update(dict.fromkeys(paths, 5))
        return ""

    seen = backup_copy.Seen({"begun": 5, "changed": 5}, [["begun", "changed"]], {}, {}, 0, True)
    part = backup_copy.Part("the database", "pgbackrest", ("",), "", lambda _: seen)
    places = SimpleNamespace(setup=setup, target="t", list=lambda *_: {**target}, send=send)
    _, _, damaged = backup_copy.bring(places, part, backup_copy.Ledger("t"))
    assert damaged == (["changed"] if resent else ["begun", "changed"])
    assert target["begun"] == (5 if resent else 3)


def test_an_etcd_that_is_away_keeps_nobody_from_a_backup(
    etcd: Etcd, server: Callable[..., Path], following: Any
) -> None:
    following("f")
    etcd.is_away = True
    assert done("database-full") == ["database-full"]
    etcd.is_away = False
    backup_jobs.mark()
    assert f"{PREFIX}notes/database-full" in etcd.keys


@pytest.mark.parametrize(
    ("setup", "expected", "names"),
    [
        ({"database": True}, ["drill"], ["drill"]),
        (SETUP, ["drill-database", "drill"], ["drill-database", "drill"]),
        (SETUP, ["drill-database"], ["drill-database"]),
        (SETUP | {"database": False}, ["drill"], ["drill"]),
    ],
)
def test_a_drill_of_the_cluster_is_noted_apart(
    server: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    setup: dict,
    expected: list[str],
    names: list[str],
) -> None:
    disk, done_ = server("one"), []
    (disk / "setup.json").write_text(json.dumps(setup))
    monkeypatch.setattr(backup_state, "expected", lambda: {key: {} for key in expected})
    monkeypatch.setattr(backup_jobs, "job", lambda what, work: done_.append((what, work())))
    backup_program.in_parts("drill", lambda *which: which)
    assert [name for name, _ in done_] == names
    assert done_[0][1] == ((True, False) if "drill-database" in names else (True, True))


@pytest.mark.parametrize(("answer", "point"), [("t", ""), ("f", "x"), (CommandFailed("away"), "")])
def test_a_point_is_made_by_the_one_that_leads(
    etcd: Etcd, server: Callable[..., Path], following: Any, answer: Any, point: str
) -> None:
    following(answer)
    asked = SimpleNamespace(params={"point": "x"}, check_mode=False)
    assert module.point(asked)["point"] == point
    assert [x["name"] for x in backup_state.points()] == [point] * bool(point)


@pytest.mark.parametrize(("answer", "names"), [("t", []), ("f", ["shop"])])
def test_a_restore_brings_the_database_back_where_it_leads(
    etcd: Etcd, server: Callable[..., Path], following: Any, answer: str, names: list[str]
) -> None:
    following(answer)
    told = {"databases": [{"name": "shop"}], "paths": ["/srv/shop/shared"]}
    assert [x["name"] for x in backup_restore.databases_of(SETUP, told)] == names


def test_a_restore_that_was_begun_by_a_former_leader_is_given_up_there(
    etcd: Etcd, server: Callable[..., Path], following: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = {"to": "latest", "done": ["loaded", "switching"], "paths": [], "id": "x"}
    restore = backup_restore.Restore("shop")
    restore.path.write_text(json.dumps(begun | {"databases": [{"name": "shop"}]}))
    following("t")
    with pytest.raises(
        Failure, match=r"another one leads by now\. Give it up.*restore_cancel=shop"
    ):
        backup_restore.begin("shop", "latest")
    disk = server("one")
    (disk / "setup.json").write_text(json.dumps(SETUP | {"data": str(disk / "17/main")}))
    monkeypatch.setattr(backup_jobs, "LOCK", disk / "lock")
    assert backup_restore.cancel("shop") == ["the restore of shop to latest"]
    assert not restore.path.exists()


def test_a_former_leader_switches_to_nothing(
    server: Callable[..., Path], following: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another server came to lead after the past was brought beside, and before the switch."""
    begun = {"to": "latest", "done": ["loaded"], "paths": [], "id": "x"}
    restore = backup_restore.Restore("shop")
    restore.path.write_text(json.dumps(begun | {"databases": [{"name": "shop"}]}))
    monkeypatch.setattr(backup_jobs, "LOCK", server("one") / "lock")
    following("t")
    with pytest.raises(Failure, match=r"another one leads by now.*restore_cancel=shop"):
        backup_restore.switch("shop")
    assert backup_restore.Restore("shop").progress["done"] == ["loaded"]


# --- the archive

HISTORY = (
    "1\t0/5A00028\tno recovery target specified\n\n2\t0/9000A00\tno recovery target specified\n"
)


def segment(timeline: int, number: int) -> str:
    return backup_archive.name(timeline, number)


def test_what_the_former_leader_has_not_archived_is_owed() -> None:
    here = [segment(1, x) for x in (2, 3, 4, 5)] + [segment(2, x) for x in (5, 6, 7, 8, 9)]
    here += [segment(3, 9), "00000002.history", f"{segment(2, 9)}.partial", "archive_status"]
    there = [f"17-1/0000000100000000/{segment(1, x)}-{'0' * 40}.zst" for x in (2, 4)]
    there += [f"17-1/0000000200000000/{segment(2, x)}-{'0' * 40}.zst" for x in (5, 6)]
    owed = ["00000002.history", segment(2, 7), segment(2, 8)]
    assert backup_archive.owed(HISTORY, here, there) == [segment(1, 3), *owed]
    there.append("17-1/00000002.history")
    assert backup_archive.owed(HISTORY, here, there) == [segment(1, 3), *owed[1:]]


def test_it_is_archived_before_the_new_timeline_in_its_order(
    server: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (server("one") / "stanza-one").write_text("shop-0123abcd-17-main\n")
    wal = tmp_path / "pg_wal"
    wal.mkdir()
    for name in (segment(1, 4), segment(1, 3), segment(2, 5), "00000002.history"):
        (wal / name).write_text("1\t0/5A00028\tno recovery target specified\n")
    ran: list[tuple[str, ...]] = []

    def run(*words: Any) -> Any:
        ran.append(tuple(map(str, words)))
        return SimpleNamespace(stdout="{}")

    monkeypatch.setattr(backup_repository, "as_postgres", run)
    backup_jobs.catch_up(str(wal / "00000002.history"))
    push = ("pgbackrest", "--stanza=shop-0123abcd-17-main", "archive-push")
    assert ran[0][-1] == "archive/shop-0123abcd-17-main"
    assert ran[1:] == [(*push, str(wal / segment(1, x))) for x in (3, 4)]


def test_one_that_follows_waits_for_the_archive_of_the_one_that_leads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listings = [[], [segment(1, 4)], [segment(2, 5)]]
    names = ([f"{x}-{'0' * 40}.zst" for x in listing] for listing in listings)
    monkeypatch.setattr(backup_jobs, "psql", lambda *_: "0/5A00028")
    monkeypatch.setattr(backup_repository, "info", lambda _: {})
    monkeypatch.setattr(backup_jobs, "archive", lambda *_: (next(names), {}, 0))
    monkeypatch.setattr(backup_jobs.time, "sleep", lambda _: None)
    backup_jobs.archived(SETUP)
    assert [*names] == []
    monkeypatch.setattr(backup_jobs, "archive", lambda *_: ([], {}, 0))
    with pytest.raises(Failure, match="up to 0/5A00028 is not in s3://b within 0 s"):
        backup_jobs.archived(SETUP | {"repository": "s3://b"}, 0)


# --- what is there for it


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ({}, {"files-shop", "drill", "copy"}),
        ({"patroni": TOLD}, {"files-shop", "drill", "copy", "drill-database", "copy-database"}),
        ({"patroni": TOLD, "paths": []}, {"drill-database", "copy-database"}),
        ({"patroni": TOLD, "database": False}, {"files-shop", "drill", "copy"}),
    ],
)
def test_what_is_to_happen_is_expected(
    server: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, more: dict, names: set[str]
) -> None:
    monkeypatch.setattr(backup_state, "EXPECTED", server("one") / "none")
    everybody = {"shop": backup_server.claim(GIVEN | {"copy_repository": "s3://second"} | more)}
    jobs = json.loads(backup_server.expected(backup_server.jobs(everybody), 5432))["jobs"]
    assert jobs.keys() - {*backup_state.DATABASE} == names
    assert jobs.keys() >= ({*backup_state.DATABASE} if "database" not in more else set())


@pytest.mark.parametrize(
    ("follows", "files", "units"),
    [
        (False, False, ["full", "copy"]),
        (True, False, []),
        (True, True, ["files-shop", "copy"]),
    ],
)
def test_the_first_backup_is_begun_where_it_leads(
    monkeypatch: pytest.MonkeyPatch,
    server: Callable[..., Path],
    follows: bool,
    files: bool,
    units: list[str],
) -> None:
    disk = server("one")
    monkeypatch.setattr(backup_server, "UNITS", disk)
    monkeypatch.setattr(module, "ask", lambda *_: SimpleNamespace(stdout=""))
    if files:
        (disk / "carafe-backup-files-shop.service").touch()
    setup = SETUP | {"copy": {"repository": "/mnt/copy"}}
    found = module.first(setup, "shop", not follows, follows)
    assert [unit for _, unit in found] == [f"carafe-backup-{x}.service" for x in units]


def test_etcd_is_reached_by_a_drill_though_the_place_is_a_folder(
    monkeypatch: pytest.MonkeyPatch, server: Callable[..., Path]
) -> None:
    server("one")
    monkeypatch.setattr(backup_server, "ask", lambda *_: SimpleNamespace(returncode=0))
    wanted = backup_server.jobs({"shop": backup_server.claim(GIVEN | {"patroni": TOLD})})
    closed = []
    for setup in ({"repository": "/mnt/backup"}, {"repository": "/mnt/backup", "patroni": TOLD}):
        units = backup_server.unit_files(wanted, setup)
        closed.append("PrivateNetwork=yes" in units["carafe-backup-drill.service"])
    assert closed == [True, False]


def test_a_folder_of_another_host_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found, "ROOT", tmp_path)
    (tmp_path / "proc/self").mkdir(parents=True)
    lines = ["/dev/vda1 / ext4", "/dev/sdb /mnt/disk ext4", "tmpfs /run tmpfs"]
    lines += ["10.0.0.9:/srv /mnt/nfs nfs4", "//10.0.0.9/srv /mnt/cifs cifs", "me@host:/b /mnt/ssh"]
    (tmp_path / "proc/self/mounts").write_text("".join(f"{x} rw 0 0\n" for x in lines))
    assert found.mounts() == ["/mnt/cifs", "/mnt/disk", "/mnt/nfs", "/mnt/ssh"]
    assert found.remote_mounts() == ["/mnt/cifs", "/mnt/nfs", "/mnt/ssh"]


@pytest.mark.parametrize(
    ("follows", "known", "said", "made"),
    [
        ("f", False, ["make shop-x in s3://b"], True),
        ("t", False, [], False),
        ("t", True, [], True),
    ],
)
def test_the_place_is_made_by_the_one_that_leads(
    etcd: Etcd,
    server: Callable[..., Path],
    following: Any,
    monkeypatch: pytest.MonkeyPatch,
    follows: str,
    known: bool,
    said: list[str],
    made: bool,
) -> None:
    """One that comes to lead before that was done makes it, and one that does later does not."""
    disk, ran = server("one"), []
    setup = SETUP | {"repository": "s3://b", "stanza": "shop-x"}
    (disk / "setup.json").write_text(json.dumps(setup))
    following(follows)
    for name, value in (
        *(("due_timers", list), ("first", lambda *_: []), ("MADE", disk / "made")),
        ("make_stanza", lambda _: ran.append("made")),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(backup_server, "CLAIMS", disk)
    if known:
        etcd.put(f"{PREFIX}notes/database-full", json.dumps({"ended": 1}), None)
    asked = SimpleNamespace(params={"owner": "shop"}, check_mode=False)
    assert module.activate(asked)["changes"] == said
    assert (ran, (disk / "made").exists()) == (["made"] * bool(said), made)
