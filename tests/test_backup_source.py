"""The backups of another environment are read, and what opens them is let go of."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import (
    backup_files,
    backup_jobs,
    backup_repository,
    backup_restore,
    backup_scratch,
    backup_source,
    backup_state,
)
from ansible_collections.carafe.stack.plugins.module_utils.commands import Failure
from ansible_collections.carafe.stack.plugins.modules import backup_restore as module

OWN = {
    **{"repository": "s3://staging", "key": "of staging", "host": "stage1", "database": True},
    **{"version": "17", "cluster": "main", "port": 5432, "stanza": "stage1-0123abcd-17-main"},
    **{"retention_days": 14, "blocks": True, "is_mount": False},
    "s3": {"endpoint": "s3.example.com", "region": "", "key": "", "secret": "", "ca": ""},
}
GIVEN = {
    **{"environment": "prod", "repository": "s3://prod", "key": "of production", "server": ""},
    **{"s3_endpoint": "s3.example.com", "s3_region": "eu-1", "s3_key": "k", "s3_secret": "s"},
    **{"s3_ca": "", "files": True, "masks": [{"name": "people.sql", "sql": "UPDATE …"}]},
}
PROD = "web1-4567cdef-17-main"


@pytest.fixture
def stanzas() -> list[str]:
    return [PROD]


@pytest.fixture(autouse=True)
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stanzas: list[str]) -> dict[str, Any]:
    """A server of staging, with what its backups are told, to be changed."""
    own, me = {**OWN, "data": str(tmp_path / "17/main")}, SimpleNamespace(pw_uid=-1, pw_gid=-1)
    monkeypatch.setattr(backup_source, "FOLDER", tmp_path / "run")
    monkeypatch.setattr(backup_source.pwd, "getpwnam", lambda _: me)
    write = backup_source.files.write
    monkeypatch.setattr(backup_source.files, "write", lambda *words, **_: write(*words[:3]))
    monkeypatch.setattr(backup_state, "STATE", tmp_path)
    monkeypatch.setattr(backup_repository, "setup", lambda: own)
    monkeypatch.setattr(
        backup_jobs, "pgbackrest_repo", lambda *_: json.dumps({x: {} for x in (".", *stanzas)})
    )
    told = {"paths": ["/srv/shop/shared"], "databases": [{"name": "shop"}]}
    monkeypatch.setattr(backup_files, "app_of", lambda _: told)
    return own


def given(**more: Any) -> dict[str, Any]:
    return GIVEN | more


def test_it_is_read_under_its_own_name_and_with_its_own_key(tmp_path: Path) -> None:
    umask = os.umask(0o077)
    found = backup_source.lay("shop", given())
    os.umask(umask)
    # PostgreSQL's user finds what is for it.
    assert stat.S_IMODE((tmp_path / "run/shop").stat().st_mode) == 0o711
    setup = found["setup"]
    assert (setup["stanza"], setup["repository"]) == (PROD, "s3://prod")
    assert backup_source.setup("shop") == setup
    config = Path(setup["config"])
    assert f"[{PROD}]" in config.read_text()
    assert "repo1-cipher-pass=of production" in config.read_text()
    assert "stage1" not in config.read_text()
    # Its locks are none of those that this server's own backups wait for.
    assert f"lock-path={tmp_path}/run/shop/postgres" in config.read_text()
    assert backup_repository.configured(setup) == (f"--config={config}",)
    assert stat.S_IMODE((tmp_path / "run/shop/setup.json").stat().st_mode) == 0o600


def test_nothing_of_it_is_left_however_it_ends(tmp_path: Path) -> None:
    def fail() -> None:
        with backup_source.forgotten("shop"):
            backup_source.lay("shop", given())
            raise Failure

    with pytest.raises(Failure):
        fail()
    assert not list((tmp_path / "run").iterdir())
    with pytest.raises(Failure, match="copy_data again"):
        backup_source.setup("shop")


def test_restic_takes_no_lock_of_it_and_keeps_nothing_of_it_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[list[str]] = []

    def run(words: list[str], **_: Any) -> Any:
        ran.append(words)
        return SimpleNamespace(returncode=0, stdout="[]", stderr="")

    monkeypatch.setattr(backup_repository.subprocess, "run", run)
    setup = backup_source.lay("shop", given())["setup"]
    backup_repository.restic(setup, "shop", "restore", "abc")
    assert {"--no-lock", "--no-cache"} <= set(ran[0])
    backup_repository.restic(OWN, "shop", "backup")
    assert not {"--no-lock", "--no-cache"} & set(ran[1])


@pytest.mark.parametrize("own", [True, False])
def test_where_both_have_one_place_its_own_is_never_meant(
    server: dict[str, Any], stanzas: list[str], own: bool
) -> None:
    stanzas[:] = [server["stanza"], PROD] if own else [server["stanza"]]
    place = given(repository=server["repository"])
    if own:
        assert backup_source.lay("shop", place)["setup"]["stanza"] == PROD
        return
    with pytest.raises(Failure, match="no backup of the database of prod"):
        backup_source.lay("shop", place)


def test_a_number_in_the_name_of_a_host_is_no_version(stanzas: list[str]) -> None:
    stanzas[:] = ["backup-15-4567cdef-17-main"]
    assert backup_source.lay("shop", given())["setup"]["stanza"] == stanzas[0]


def test_another_version_is_refused_with_both(stanzas: list[str]) -> None:
    stanzas[:] = ["web1-4567cdef-15-main", "db17-17abcdef-15-main"]
    with pytest.raises(Failure, match=r"15-main.*This server has 17"):
        backup_source.lay("shop", given())


def test_which_server_is_meant_is_asked_and_told(stanzas: list[str]) -> None:
    stanzas.append("web2-89abcdef-17-main")
    with pytest.raises(Failure, match=rf"backup_source_server={PROD}"):
        backup_source.lay("shop", given())
    for name in ("web2", "web2-89abcdef-17-main"):
        found = backup_source.lay("shop", given(server=name))
        assert found["setup"]["stanza"] == "web2-89abcdef-17-main"


def test_files_are_of_the_same_server() -> None:
    snapshots = [{"hostname": x} for x in ("stage1", "web1", "web1", "web2")]
    source = given(server=PROD, mine="stage1")
    assert backup_source.of_one(source, snapshots) == snapshots[1:3]
    with pytest.raises(Failure, match="backups of the files of web1, web2"):
        backup_source.of_one(source | {"server": ""}, snapshots)


def test_a_folder_that_is_not_here_is_named() -> None:
    with pytest.raises(Failure, match=r"no such folder. Mount it here"):
        backup_source.lay("shop", given(repository="/mnt/of-production"))


# The masks.


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (
            'psql:/x/mask.sql:3: ERROR:  42P01: relation "nowhere" does not exist\nLOCATION:  x',
            'people.sql fails in line 3, SQLSTATE 42P01: relation "nowhere" does not exist. ',
        ),
        (
            'psql:/x/mask.sql:1: NOTICE:  00000: table "old" does not exist, skipping\n'
            "psql:/x/mask.sql:9: ERROR:  42703: column Y does not exist",
            "people.sql fails in line 9, SQLSTATE 42703: column Y does not exist. ",
        ),
        # It has a row of somebody's in it.
        (
            'psql:/x/mask.sql:7: ERROR:  22P02: invalid input syntax for type integer: "Ada"',
            "people.sql fails in line 7, SQLSTATE 22P02. ",
        ),
        ("psql:/x/mask.sql:7: \\frobnicate: Ada", "people.sql fails in line 7. "),
        ("server closed the connection while it said Ada", "people.sql fails. "),
        (
            'psql: error: role "x" is not permitted',
            'fails: psql: error: role "x" is not permitted.',
        ),
    ],
)
def test_a_mask_that_fails_says_where_and_nothing_of_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, shown: str
) -> None:
    done = SimpleNamespace(returncode=3, stderr=said)
    monkeypatch.setattr(backup_source, "as_postgres", lambda *_, **__: done)
    scratch = backup_scratch.Scratch("restore-shop", {**OWN, "data": str(tmp_path / "main")})
    scratch.folder.mkdir()
    with pytest.raises(Failure) as failed:
        backup_source.mask(scratch, "shop", "shop-owner", GIVEN["masks"])
    assert shown in str(failed.value)
    assert "run the same command again" in str(failed.value)
    assert "Ada" not in str(failed.value)


# What is copied.


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> backup_restore.Restore:
    """A copy that was begun, and has all of it beside what is live."""
    restore = backup_restore.Restore("shop")
    restore.save(
        **{"id": "20261122t101500", "to": "latest", "began": 1.0, "environment": "prod"},
        **{"done": ["dumped", "loaded", "files"], "masks": GIVEN["masks"]},
    )
    return restore


def begin(to: str = "latest", **more: Any) -> dict[str, Any]:
    return backup_restore.begin("shop", to, source=given(**more))


def test_the_same_command_goes_on(begun: backup_restore.Restore) -> None:
    assert begin()["done"] == ["dumped", "loaded", "files"]


def test_what_was_masked_otherwise_is_brought_anew(begun: backup_restore.Restore) -> None:
    masks = [{"name": "people.sql", "sql": "DELETE …"}]
    assert begin(masks=masks)["done"] == ["files"]
    assert backup_restore.Restore("shop").progress["masks"] == masks


def test_what_is_being_switched_to_stays_as_it_is(begun: backup_restore.Restore) -> None:
    begun.note("switching")
    assert "loaded" in begin(masks=[])["done"]


@pytest.mark.parametrize(
    "begin_other",
    [
        lambda: backup_restore.begin("shop", "latest"),
        lambda: begin(environment="demo"),
        lambda: begin(to="2026-11-22 10:00:00+00"),
    ],
)
def test_a_copy_is_not_gone_on_with_as_another_one(
    begun: backup_restore.Restore, begin_other: Any
) -> None:
    with pytest.raises(Failure, match=r"copy_data with -e copy_from=prod -e restore_to='latest'"):
        begin_other()


def test_a_copy_that_is_given_up_leaves_no_key(
    begun: backup_restore.Restore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup_jobs, "LOCK", tmp_path / "lock")
    backup_source.lay("shop", given())
    begun.save(databases=[], paths=[])
    backup_restore.cancel("shop")
    assert not (tmp_path / "run/shop").exists()


def test_without_its_files_only_the_database_is_due() -> None:
    source = {**given(files=False), "setup": OWN}
    assert backup_restore.wanted("shop", source=source)[1:] == ([{"name": "shop"}], [])
    source["files"] = True
    assert backup_restore.wanted("shop", source=source)[2] == ["/srv/shop/shared"]


def test_a_place_of_its_own_backups_is_none_of_another_one_s() -> None:
    source = {**given(), "setup": OWN}
    with pytest.raises(Failure, match=r"restore_place is of .* of prod are read .* without it"):
        backup_restore.begin("shop", "latest", place="copy", source=source)


class Scratch(backup_scratch.Scratch):
    """A cluster beside, as far as it is told what to do, in its order."""

    did: ClassVar[list[str]] = []

    def make(self) -> None:
        self.did.clear()
        self.folder.mkdir()

    def room(self, backup: Any, times: int = 1) -> None:
        pass

    def restore(self, target: list[str], *_: Any) -> None:
        self.did.append(target[0])

    @contextlib.contextmanager
    def serving(self, to_the_end: bool = False) -> Iterator[None]:
        self.did.append("reach the end" if to_the_end else "pause")
        yield

    def promote(self) -> None:
        self.did.append("promote")

    def check_end(self, newest: str) -> None:
        self.did.append(f"look for {newest}")

    def ask(self, query: str, *_: Any) -> str:
        if query.startswith("ALTER"):
            self.did.append(query)
        if "pg_last_xact" in query:
            return "1763800000.5"
        return json.dumps({"owner": "shop-owner"} if "pg_get_userbyid" in query else [])


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        ("latest", ["--type=default", "reach the end", "look for 000000030000000000000005"]),
        ("time", ["--type=time", "pause", "promote"]),
    ],
)
def test_what_is_dumped_has_been_masked_by_who_owns_it(
    begun: backup_restore.Restore, monkeypatch: pytest.MonkeyPatch, kind: str, first: list[str]
) -> None:
    def as_postgres(program: Any, *words: Any, **_: Any) -> Any:
        who = words[words.index("-U") + 1] if "-U" in words else "postgres"
        text = words[-1].read_text() if program == "psql" else ""
        Scratch.did.append(f"{Path(program).name} as {who} {text}".strip())
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(backup_restore, "Scratch", Scratch)
    monkeypatch.setattr(backup_restore, "as_postgres", as_postgres)
    monkeypatch.setattr(backup_source, "as_postgres", as_postgres)
    monkeypatch.setattr(backup_repository, "info", lambda _: {"backup": [{}]})
    own = backup_source.lay("shop", given())["setup"]
    Path(own["data"]).parent.mkdir()
    begun.save(done=[], databases=[{"name": "shop"}], newest_wal="000000030000000000000005")
    begun.save(target={"kind": kind, "at": 1.0, "name": ""})
    backup_restore.dump(backup_repository.setup(), begun)
    assert Scratch.did == [
        *first,
        'ALTER ROLE "shop-owner" LOGIN',
        "psql as shop-owner UPDATE …",
        "pg_dump as postgres",
    ]
    # What is said of the latest moment is when it was.
    assert begun.target.at == (1763800000.5 if kind == "latest" else 1.0)


def test_rights_of_who_is_not_here_are_loaded_and_go(
    begun: backup_restore.Restore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a restore that was cut short while they were here."""
    asked, there = [], ["shop", "shop-owner"]

    def psql(_: Any, query: str) -> str:
        asked.append(query)
        return "\n".join(there)

    monkeypatch.setattr(backup_restore, "psql", psql)
    named = ["analyst", "shop"]
    assert backup_restore.stand_ins(OWN, begun, named) == '"analyst"'
    assert asked[1:] == ['CREATE ROLE "analyst" NOLOGIN;']
    there.append("analyst")
    again = backup_restore.Restore("shop")
    assert backup_restore.stand_ins(OWN, again, []) == ""
    assert backup_restore.stand_ins(OWN, again, named) == '"analyst"'
    assert asked[3::2] == ["", ""]


@pytest.mark.parametrize(("reached", "whole"), [("0/5FFFFF8", True), ("0/4000100", False)])
def test_a_copy_of_the_latest_moment_has_seen_the_newest_wal(
    monkeypatch: pytest.MonkeyPatch, reached: str, whole: bool
) -> None:
    scratch = backup_scratch.Scratch("restore-shop", {**OWN, "data": "/x/main"})
    monkeypatch.setattr(scratch, "ask", lambda _: reached)
    newest = "000000030000000000000005"
    if whole:
        scratch.check_end(newest)
        return
    with pytest.raises(Failure, match=f"before {newest}"):
        scratch.check_end(newest)


def test_a_copy_never_archives_nor_subscribes(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "".join(f"{x}: 1\n" for x in backup_scratch.LEAST.values())
    monkeypatch.setattr(backup_scratch, "as_postgres", lambda *_: SimpleNamespace(stdout=said))
    monkeypatch.setattr(backup_scratch, "psql", lambda *_: "")
    settings = backup_scratch.Scratch("restore-shop", {**OWN, "data": "/x/main"}).settings()
    assert settings["archive_mode"] == "off"
    assert settings["max_logical_replication_workers"] == "0"
    assert settings["listen_addresses"] == ""


def test_no_copy_is_begun_while_one_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads what is laid for it, which would be laid anew."""
    monkeypatch.setattr(module, "ask", lambda *_: SimpleNamespace(stdout="activating\n"))
    with pytest.raises(Failure, match=r"@shop\.service is at work"):
        module.prepare({"owner": "shop", "to": "latest", "moment": "", "source": given()}, False)
