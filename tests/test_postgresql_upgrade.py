"""What an upgrade of PostgreSQL goes by, and what it says when less comes out than went in."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import (
    backup_state,
    found,
    postgresql_upgrade,
)
from ansible_collections.carafe.stack.plugins.module_utils.commands import Failure

HAD = {"shop": {"r": [3, 4096], "S": [1, 0]}, 'it\'s "strange"': {"v": [2, 0]}}


def make_clusters(root: Path, *names: str, debian: str = "13") -> None:
    (root / "etc").mkdir()
    (root / "etc/os-release").write_text(f'NAME="Debian GNU/Linux"\nVERSION_ID="{debian}"\n')
    for name in names:
        folder = root / "etc/postgresql" / name
        folder.mkdir(parents=True)
        (folder / "postgresql.conf").write_text("port = 5432\ninclude_dir = 'conf.d'\n")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server's files, as the functions see them."""
    monkeypatch.setattr(found, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("has", "said"),
    [
        (HAD, []),
        # What a worker wrote until the stop is more.
        ({**HAD, "shop": {"r": [4, 8192], "S": [1, 0]}, "new": {}}, []),
        (
            {**HAD, "shop": {"r": [2, 4096], "S": [1, 0]}},
            ["shop has 2 of 3 tables, of 4096 bytes 4096"],
        ),
        (
            {**HAD, "shop": {"r": [3, 0], "S": [1, 0]}},
            ["shop has 3 of 3 tables, of 4096 bytes 0"],
        ),
        ({**HAD, "shop": {"r": [3, 4096]}}, ["shop has 0 of 1 sequences, of 0 bytes 0"]),
        (
            {"shop": HAD["shop"]},
            ['it\'s "strange" has 0 of 2 views, of 0 bytes 0'],
        ),
    ],
)
def test_less_than_before_is_found(has: dict, said: list[str]) -> None:
    # As it comes back from the file in which it is noted.
    assert postgresql_upgrade.less(json.loads(json.dumps(HAD)), has) == said


@pytest.mark.parametrize(
    ("clusters", "version", "name", "former"),
    [
        (["15/main"], "17", "main", "15"),
        (["9.6/main", "13/main", "15/main", "17/main"], "17", "main", "15"),
        (["15/second"], "17", "main", ""),
        (["17/main", "18/main"], "17", "main", ""),
        ([], "17", "main", ""),
        (["13/shop", "15/main"], "17", "shop", "13"),
    ],
)
def test_which_cluster_is_the_former_one(
    root: Path, clusters: list[str], version: str, name: str, former: str
) -> None:
    make_clusters(root, *clusters)
    assert postgresql_upgrade.older(version, name) == former


@pytest.mark.parametrize(
    ("clusters", "debian", "claimed"),
    [
        # The upgrade of Debian leaves it as it was.
        (["15/main"], "13", {"15/main": ["shop"]}),
        (["13/main", "15/main"], "13", {"13/main": [], "15/main": ["shop"]}),
        # From then on the new one is ours, and the former one nobody's.
        (["15/main", "17/main"], "13", {"15/main": [], "17/main": ["shop"]}),
        (["15/main"], "12", {"15/main": ["shop"]}),
        # Somebody's, of a version that no Debian of ours had, or by another name.
        (["14/main"], "13", {"14/main": []}),
        (["15/second"], "13", {"15/second": []}),
        (["16/main", "15/main"], "12", {"15/main": ["shop"], "16/main": []}),
    ],
)
def test_whose_a_cluster_is_after_an_upgrade_of_debian(
    root: Path, clusters: list[str], debian: str, claimed: dict[str, list[str]]
) -> None:
    make_clusters(root, *clusters, debian=debian)
    folder = root / "etc/carafe/postgres.d"
    folder.mkdir(parents=True)
    (folder / "shop.json").write_text('{"databases": [], "roles": []}')
    said = {f"{x['version']}/{x['name']}": x for x in found.postgresql()["clusters"]}
    assert {name: sorted(x["claims"]) for name, x in said.items()} == claimed
    former = {"15/main"} & {name for name in claimed if claimed[name]} if debian == "13" else set()
    assert {name for name, x in said.items() if x["is_former"]} == former - {"17/main"}


@pytest.mark.parametrize(
    ("files", "ended"),
    [
        ({}, 0),
        (
            {
                "database-full": '{"ended": 6, "last_ok": 5.5}',
                "database-incr": '{"ended": 7, "last_ok": 7}',
            },
            7,
        ),
        (
            {
                "database-full": '{"ended": 9, "last_ok": null}',
                "files-shop": '{"ended": 9, "last_ok": 9}',
            },
            0,
        ),
        ({"database-full": "no json"}, 0),
    ],
)
def test_when_there_was_a_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], ended: float
) -> None:
    monkeypatch.setattr(backup_state, "STATE", tmp_path)
    for name, text in files.items():
        (tmp_path / f"{name}.json").write_text(text)
    assert postgresql_upgrade.backed_up() == ended


def test_the_way_back_has_the_backups_of_the_former_version_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, setup = tmp_path / "pgbackrest", tmp_path / "setup.json"
    folder.mkdir()
    monkeypatch.setattr(postgresql_upgrade, "BACKED_UP_BY", (folder, setup, tmp_path / "none"))
    monkeypatch.setattr(postgresql_upgrade, "KEPT", tmp_path / "kept")
    (folder / "stanza-1").write_text("web-15\n")
    setup.write_text("15")
    setup.chmod(0o600)
    postgresql_upgrade.keep_what_backups_go_by()
    (folder / "stanza-1").write_text("web-17\n")
    setup.write_text("17")
    postgresql_upgrade.bring_back_what_backups_go_by()
    assert ((folder / "stanza-1").read_text(), setup.read_text()) == ("web-15\n", "15")
    assert setup.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "kept").exists()
    # An upgrade of a server that had no backups brings none back.
    postgresql_upgrade.bring_back_what_backups_go_by()


class Recorded:
    """The programs that an upgrade would run, in their order."""

    def __init__(self) -> None:
        self.commands: list[str] = []

    def __call__(self, *words: object) -> str:
        self.commands.append(" ".join(map(str, words)))
        return ""


@pytest.fixture
def ran(root: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """An upgrade of 15/main to 17/main on a server where no program is run."""
    recorded = Recorded()
    monkeypatch.setattr(postgresql_upgrade, "run", recorded)
    monkeypatch.setattr(postgresql_upgrade, "STATE", root / "state.json")
    monkeypatch.setattr(postgresql_upgrade.Server, "wait", lambda self: None)
    monkeypatch.setattr(
        postgresql_upgrade.Upgrade,
        "make_serve",
        lambda self, server: recorded("serve", f"{server.version}/{server.name}"),
    )
    return recorded


def upgrade(root: Path, *clusters: str, **state: object) -> postgresql_upgrade.Upgrade:
    make_clusters(root, *clusters)
    if state:
        about = {"former": "15", "version": "17", "name": "main", "port": 5432, **state}
        (root / "state.json").write_text(json.dumps(about))
    return postgresql_upgrade.Upgrade("15", "17", "main")


def test_a_copy_that_was_cut_short_goes_and_the_former_one_serves_again(
    root: Path, ran: Recorded
) -> None:
    this = upgrade(root, "15/main", "17/main", began=1)
    assert this.step() == ""
    this.recover()
    assert ran.commands == ["pg_dropcluster --stop 17 main", "serve 15/main"]
    assert not (root / "state.json").exists()


def test_what_an_upgrade_that_was_undone_has_kept_is_not_taken_for_a_copy_that_was_cut_short(
    root: Path, ran: Recorded
) -> None:
    this = upgrade(root, "15/main", "17/undone-1", began=1)
    for cluster in ("15/main", "17/undone-1"):
        conf = root / "etc/postgresql" / cluster / "postgresql.conf"
        conf.write_text(f"data_directory = '/data/{cluster[:2]}/disk'\n")
        (root / "data" / cluster[:2] / "disk").mkdir(parents=True)
    this = postgresql_upgrade.Upgrade("15", "17", "main")
    assert this.new.data == root / "data/17/disk"
    this.recover()
    assert this.new.data.is_dir()
    assert ran.commands == ["serve 15/main"]


@pytest.mark.parametrize("state", [{}, {"step": "copied"}, {"step": "serving"}])
def test_what_has_the_data_is_never_dropped_for_a_copy(
    root: Path, ran: Recorded, state: dict[str, str]
) -> None:
    upgrade(root, "15/main", "17/main", **state).recover()
    assert ran.commands == []


@pytest.mark.parametrize("state", [{}, {"began": 1}, {"step": "copied"}])
def test_the_former_data_is_not_dropped_before_the_new_one_serves(
    root: Path, ran: Recorded, state: dict[str, object]
) -> None:
    clusters = ["15/main", "17/main"] if state else ["15/main"]
    with pytest.raises(Failure, match="15/main has the data"):
        upgrade(root, *clusters, **state).drop()
    assert ran.commands == []


def test_without_an_upgrade_there_is_nothing_to_go_back_from(root: Path, ran: Recorded) -> None:
    with pytest.raises(Failure, match="nothing to go back from"):
        upgrade(root, "15/main", "17/main").undo()
    assert ran.commands == []


def test_a_refusal_is_not_buried_by_warnings_of_sorting(tmp_path: Path) -> None:
    warning = (
        'WARNING:  database "shop" has a collation version mismatch\n'
        "DETAIL:  The database was created using version 2.36.\nHINT:  Rebuild all objects.\n"
    )
    said = f"{warning}Checking cluster versions      ok\nChecking libraries      fatal\n{warning}"
    assert postgresql_upgrade.one_line(postgresql_upgrade.reason(said)) == (
        "Checking libraries fatal"
    )
    log = tmp_path / "pg_upgrade_output.d/now/log/pg_upgrade_server.log"
    log.parent.mkdir(parents=True)
    log.write_text('LOG:  starting\nFATAL:  could not access file "pg_cron": No such file\n')
    (log.parents[1] / "loadable_libraries.txt").write_text("vector")
    assert list(postgresql_upgrade.reports(tmp_path)) == [
        "vector",
        'FATAL:  could not access file "pg_cron": No such file',
    ]


def test_postgresql_gets_to_where_it_is_asked_whatever_the_umask_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of which is there before, nor after."""
    locales = ("UTF8", "C", "C", "c", None)
    session = SimpleNamespace(
        version=150000, rows=lambda query: [locales if "pg_database" in query else ("",)]
    )
    upgrade = postgresql_upgrade.Upgrade.__new__(postgresql_upgrade.Upgrade)
    upgrade.former, upgrade.version, upgrade.name = "15", "17", "main"
    upgrade.new = SimpleNamespace(data=tmp_path / "postgresql/17/main")
    upgrade.old = SimpleNamespace(
        wait=lambda: session, config=tmp_path, place=lambda: {"port": 5432}
    )
    seen = []

    def as_postgres(*command: object, folder: Path = Path("/")) -> str:
        if "initdb" in str(command[0]):
            scratch = Path(str(command[2]))
            (scratch / "postgresql.conf").touch()
            seen.extend(x.stat().st_mode & 0o777 for x in (scratch, *scratch.parents[:2]))
        return ""

    monkeypatch.setattr(upgrade, "as_postgres", as_postgres)
    monkeypatch.setattr(upgrade, "has_checksums", lambda _: False)
    monkeypatch.setattr(postgresql_upgrade.shutil, "chown", lambda *_: None)
    umask = os.umask(0o077)
    try:
        upgrade.ask_pg_upgrade()
    finally:
        os.umask(umask)
    assert seen == [0o700, 0o755, 0o755]
    assert list(tmp_path.iterdir()) == []
