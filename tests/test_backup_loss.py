"""What a restore says that it would lose: counted in what pg_waldump and restic print."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import (
    backup_archive,
    backup_files,
    backup_loss,
    backup_state,
)
from ansible_collections.carafe.stack.plugins.module_utils.commands import Failure
from ansible_collections.carafe.stack.plugins.modules import backup_restore as module

SHOP, BLOG, TABLE = 16400, 16500, 16410
SINCE = 1795600800.0  # 2026-11-25 10:00:00+00
BEFORE, AFTER, LATER = "09:59:59.999999", "10:00:00.000001", "10:07:00.5"


def line(transaction: int, kind: str, said: str, lsn: str = "0/1000028") -> str:
    return (
        f"rmgr: {kind:<11} len (rec/tot):     59/    59, tx: {transaction:>10}, lsn: {lsn},"
        f" prev 0/01000000, desc: {said}"
    )


def heap(transaction: int, word: str, database: int = SHOP, table: int = TABLE) -> str:
    kind = "Heap2" if word.startswith("MULTI") else "Heap"
    return line(transaction, kind, f"{word}, blkref #0: rel 1663/{database}/{table} blk 0")


def commit(transaction: int, clock: str, more: str = "") -> str:
    return line(transaction, "Transaction", f"COMMIT 2026-11-25 {clock} UTC{more}")


def written(*lines: str) -> backup_loss.Written:
    found = backup_loss.Written({SHOP: SINCE})
    for text in lines:
        record = backup_loss.RECORD.match(text)
        assert record, text
        found.take(record[1], int(record[2]), record[4], record[5])
    return found


@pytest.mark.parametrize(
    ("said", "counts"),
    [
        ("INSERT off: 2, flags: 0x08", [1, 0, 0]),
        ("INSERT off 2 flags 0x08", [1, 0, 0]),
        ("INSERT+INIT off: 1, flags: 0x00", [1, 0, 0]),
        ("MULTI_INSERT+INIT ntuples: 7, flags: 0x02, offsets: [1, 2]", [7, 0, 0]),
        ("MULTI_INSERT 7 tuples flags 0x02", [7, 0, 0]),
        ("UPDATE old_xmax: 745, old_off: 1", [0, 1, 0]),
        ("HOT_UPDATE off 1 xmax 745 flags 0x20 ; new off 3 xmax 0", [0, 1, 0]),
        ("DELETE xmax: 740, off: 1", [0, 0, 1]),
    ],
)
def test_rows_are_counted_by_what_became_of_them(said: str, counts: list[int]) -> None:
    found = written(heap(740, said), commit(740, LATER))
    assert found.rows == {(SHOP, TABLE): counts}
    assert found.transactions == {SHOP: 1}


@pytest.mark.parametrize(
    "lines",
    [
        [heap(740, "INSERT off: 2"), commit(740, BEFORE)],
        [heap(740, "INSERT off: 2"), line(740, "Transaction", f"ABORT 2026-11-25 {AFTER} UTC")],
        [heap(740, "INSERT off: 2")],
        [heap(740, "INSERT off: 2", database=BLOG), commit(740, AFTER)],
        [heap(740, "INSERT off: 2", table=2619), commit(740, AFTER)],
        [heap(740, "LOCK xmax: 740, off: 1"), commit(740, AFTER)],
        [heap(0, "PRUNE snapshotConflictHorizon: 0"), commit(740, AFTER)],
    ],
    ids=["before", "aborted", "open", "another database", "statistics", "lock", "nothing"],
)
def test_what_is_not_lost_does_not_count(lines: list[str]) -> None:
    found = written(*lines)
    assert (found.rows, found.transactions) == ({}, {})


def test_what_a_transaction_has_done_within_others_counts_with_it() -> None:
    """Unless that was rolled back by itself."""
    found = written(
        heap(741, "INSERT off: 2"),
        heap(742, "INSERT off: 3"),
        heap(743, "INSERT off: 4"),
        line(743, "Transaction", f"ABORT 2026-11-25 {AFTER} UTC"),
        commit(740, AFTER, "; subxacts: 741 742; inval msgs: catcache 21"),
    )
    assert found.rows == {(SHOP, TABLE): [2, 0, 0]}
    assert found.transactions == {SHOP: 1}


def test_a_transaction_that_was_prepared_counts_when_it_is_committed() -> None:
    end = line(0, "Transaction", f"COMMIT_PREPARED 740: 2026-11-25 {LATER} UTC")
    assert written(heap(740, "INSERT off: 2"), end).transactions == {SHOP: 1}


def test_people_are_told_the_last_and_the_tables_with_most_of_it() -> None:
    found = written(
        *(heap(740, "MULTI_INSERT ntuples: 12") for _ in range(2)),
        heap(740, "DELETE off: 1", table=TABLE + 1),
        heap(740, "INSERT off: 1", table=TABLE + 2),
        commit(740, AFTER),
        heap(741, "UPDATE off: 1", table=TABLE + 1),
        commit(741, LATER),
    )
    tables = {str(TABLE): "public.entries", str(TABLE + 1): "public.users", str(TABLE + 2): ""}
    assert backup_loss.of_one("shop", found, SHOP, tables) == [
        "shop: 2 transactions with rows written, the last 2026-11-25 10:07:00+00:00",
        "  public.entries: 24 inserted",
        "  public.users: 1 updated, 1 deleted",
    ]
    told = backup_loss.of_one("shop", found, SHOP, {})
    assert told[1:] == ["  more in tables that were dropped, emptied or rewritten since"]
    assert backup_loss.of_one("shop", written(), SHOP, tables) == [
        "shop: no transaction has written rows"
    ]


def came(**times: float) -> dict[str, float]:
    end = f"-{'0a' * 20}.zst"
    paths = {backup_archive.name(1, int(k.removeprefix("of_"))): x for k, x in times.items()}
    return {f"{k[:16]}/{k}{end}": x for k, x in paths.items()} | {"00000002.history": SINCE}


@pytest.mark.parametrize(
    ("archive", "reads"),
    [
        (came(of_3=SINCE - 900, of_4=SINCE + 5, of_5=SINCE + 65), (4, 5)),
        # A store's clock may be ahead, or behind.
        (came(of_3=SINCE - 900, of_4=SINCE - 30, of_5=SINCE + 65), (4, 5)),
        (came(of_3=SINCE - 900, of_4=SINCE - 800), (5, 4)),
        ({}, (6, -1)),
    ],
    ids=["since", "clock", "nothing since", "no archive"],
)
def test_wal_is_read_from_the_moment_on(archive: dict[str, float], reads: tuple) -> None:
    assert backup_loss.span(archive, 1, 6, SINCE) == reads


@pytest.fixture
def wal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An archive of WAL; return the records of each segment, and what is asked for."""
    found: dict[str, Any] = {"segments": {}, "asked": []}
    current = backup_archive.name(1, 6)
    numbers = json.dumps({"shop": SHOP, "blog": BLOG})

    def psql(_: Any, query: str, database: str = "") -> str:
        if "pg_walfile_name" in query:
            return current
        return json.dumps({str(TABLE): "public.entries"}) if database else numbers

    def bring(_: Any, name: str, folder: Path, archived: bool) -> None:
        (folder / name).write_text("")
        found["asked"].append((backup_archive.number(name)[1], archived))

    def records(_: Any, folder: Path, names: list[str], end: int, strict: bool) -> Any:
        number = backup_archive.number(names[0])[1]
        assert {x.name for x in folder.iterdir()} == set(names)
        assert (end, strict) == (number + 1 if number < 6 else 0, number < 5)
        for text in found["segments"].get(number, ()):
            record = backup_loss.RECORD.match(text)
            yield record[1], int(record[2]), record[4], record[5]

    monkeypatch.setattr(backup_loss, "psql", psql)
    monkeypatch.setattr(backup_loss, "bring", bring)
    monkeypatch.setattr(backup_loss, "records", records)
    monkeypatch.setattr(backup_loss, "listing", lambda _: came(of_4=SINCE + 5, of_5=SINCE + 65))
    monkeypatch.setattr(backup_loss.os, "chown", lambda *_: None)
    monkeypatch.setattr(backup_loss.pwd, "getpwnam", lambda _: type("x", (), {"pw_uid": 0}))
    monkeypatch.setattr(backup_state, "STATE", tmp_path)
    return found


def test_a_transaction_counts_over_the_end_of_a_segment(wal: dict[str, Any]) -> None:
    """And only what is not archived is read where PostgreSQL writes it."""
    wal["segments"] = {4: [heap(740, "INSERT off: 2")], 6: [commit(740, LATER)]}
    assert backup_loss.database({}, "shop", ["shop"], SINCE) == [
        "shop: 1 transaction with rows written, the last 2026-11-25 10:07:00+00:00",
        "  public.entries: 1 inserted",
    ]
    assert set(wal["asked"]) == {(4, True), (5, True), (6, False)}


def test_what_takes_too_long_is_counted_in_part_and_said(
    wal: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup_loss, "SECONDS", -1)
    one = [heap(740, "INSERT off: 2"), commit(740, AFTER)]
    wal["segments"] = {4: [], 5: one, 6: one}
    *_, said = backup_loss.database({}, "shop", ["shop"], SINCE)
    assert "a part only: more WAL than can be read" in said
    assert 6 not in dict(wal["asked"])


def test_a_database_that_is_gone_is_said(wal: dict[str, Any]) -> None:
    assert backup_loss.database({}, "shop", ["former"], SINCE) == ["former: it is not there now"]


def test_what_the_last_restore_has_loaded_does_not_count(
    wal: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        backup_loss.backup_state, "read", lambda _: {"result": "ok", "ended": SINCE + 60}
    )
    wal["segments"] = {4: [heap(740, "INSERT off: 2"), commit(740, AFTER)]}
    assert backup_loss.database({}, "shop", ["shop"], SINCE) == [
        "since the last restore, which was done 2026-11-25 10:01:00+00:00:",
        "shop: no transaction has written rows",
    ]


def test_wal_that_the_archive_lacks_is_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = type("x", (), {"returncode": 1, "stdout": "", "stderr": "unable to find"})
    monkeypatch.setattr(backup_loss, "as_postgres", lambda *_, **__: failed)
    with pytest.raises(Failure, match=r"the archive does not give 000.*unable to find"):
        backup_loss.bring({"stanza": "x"}, backup_archive.name(1, 4), tmp_path, archived=True)


# The files.


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of an app's that was stored as it is now; with a database of SQLite's."""
    folder = tmp_path / "shared"
    folder.mkdir()
    nodes = []
    for name in ("same", "edited", "touched", "gone", "lite"):
        path = folder / name
        path.write_text(name)
        os.utime(path, (SINCE - 60, SINCE - 60))
        node = {"type": "file", "path": str(path), "size": len(name)}
        nodes.append(node | {"mtime": "2026-11-25T09:59:00.000000000Z"})
    nodes[-1]["path"] = f"{backup_files.COPIES}/shop{folder / 'lite'}"
    nodes[-1]["mtime"] = "2026-11-25T10:00:00.000000000Z"
    nodes.append({"type": "dir", "path": str(folder), "mtime": "2026-11-25T09:59:00Z"})
    text = "\n".join(json.dumps(x) for x in [{"struct_type": "snapshot"}, *nodes])
    done = type("x", (), {"stdout": text})
    monkeypatch.setattr(backup_files, "restic", lambda *_: done)
    return folder


def lost(shared: Path) -> list[str]:
    return backup_loss.of_files({}, "shop", [str(shared)], {"id": "abcdef", "at": SINCE})


def test_files_that_are_as_they_were_are_not_lost(shared: Path) -> None:
    (shared / "lite-wal").write_text("older than the snapshot")
    os.utime(shared / "lite-wal", (SINCE - 60, SINCE - 60))
    assert lost(shared) == ["files since 2026-11-25 10:00:00+00:00: none has changed"]


def test_files_that_differ_from_the_snapshot_are_named(shared: Path) -> None:
    (shared / "edited").write_text("as long")
    (shared / "touched").touch()
    (shared / "gone").unlink()
    (shared / "new").write_text("")
    assert lost(shared) == [
        "files since 2026-11-25 10:00:00+00:00: 1 new, 2 changed, 1 deleted",
        *(f"  {shared}/{name}" for name in ("new", "edited", "touched")),
    ]


def test_what_sqlite_has_in_its_log_only_is_a_change(shared: Path) -> None:
    (shared / "lite-wal").write_text("newer")
    os.utime(shared / "lite-wal", (SINCE + 60, SINCE + 60))
    assert lost(shared)[1:] == [f"  {shared}/lite"]


def test_a_count_that_fails_keeps_nobody_from_a_restore(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise Failure("pg_waldump is not there")

    told = {"paths": [], "databases": [{"name": "shop"}]}
    found = {"target": {"kind": "time", "at": SINCE}, "window": {}, "snapshot": {}}
    monkeypatch.setattr(module.backup_repository, "setup", dict)
    monkeypatch.setattr(module.backup_restore, "app_of", lambda _: told)
    monkeypatch.setattr(module.backup_loss, "database", fails)
    monkeypatch.setattr(module.backup_loss, "of_files", lambda *_: ["files: 1 new"])
    assert module.lost("shop", found) == [
        "what that is cannot be counted: pg_waldump is not there",
        "files: 1 new",
    ]
