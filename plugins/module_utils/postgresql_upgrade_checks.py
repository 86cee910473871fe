"""What an upgrade of a PostgreSQL cluster would fail at half-way, or lose without a word."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import found
from .commands import Failure, run
from .postgresql_server import Session

# Room for the copy, and for the log that its start and its statistics write.
SPARE = 1.1
LOG_ROOM = 256 * 1024 * 1024  # bytes
# From this version on, pg_upgrade takes logical slots and the state of subscriptions along.
TAKES_REPLICATION_ALONG = 17
PREPARED = "SELECT gid, database FROM pg_prepared_xacts ORDER BY 1"
SLOTS = "SELECT slot_name, slot_type FROM pg_replication_slots WHERE NOT temporary ORDER BY 1"
SUBSCRIPTIONS = """
SELECT s.subname, d.datname FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid
ORDER BY 1
"""


def place_of_copy(data: Path, former: str, version: str, name: str) -> Path:
    """Return where the new data goes: beside the former, where its path has a version."""
    beside = Path(*(version if x == former else x for x in data.parts))
    return beside if beside != data else Path("/var/lib/postgresql", version, name)


def tablespaces(data: Path) -> list[Path]:
    return [x.resolve() for x in sorted((data / "pg_tblspc").glob("*"))]


def room(data: Path, target: Path, former: str) -> list[dict[str, Any]]:
    """Return what the copy takes on each disk, and what is free there.

    The copy of a tablespace lies in the same folder as what it is made of.
    """
    wanted = [(target.parent, LOG_ROOM, [data])]
    wanted += [(x, 0, sorted(x.glob(f"PG_{former}_*"))) for x in tablespaces(data)]
    disks: dict[int, dict[str, Any]] = {}
    for folder, log, copied in wanted:
        there = next(x for x in (folder, *folder.parents) if x.exists())
        size = sum(
            int(run("du", "--summarize", "--block-size=1", x).split()[0])
            for x in (y.resolve() for y in copied)
        )
        usage = {"folder": str(folder), "bytes": 0, "needs": 0}
        disk = disks.setdefault(there.stat().st_dev, usage)
        disk["bytes"] += size
        disk["needs"] += int(size * SPARE) + log
        disk["free"] = shutil.disk_usage(there).free
    return list(disks.values())


def listed_room(disks: Iterable[Mapping[str, Any]]) -> str:
    return "; ".join(
        f"{megabytes(x['bytes'])} below {x['folder']}, where {megabytes(x['free'])} are free"
        for x in disks
    )


def refuse_full_disks(disks: Iterable[Mapping[str, Any]]) -> None:
    for disk in disks:
        if disk["free"] < disk["needs"]:
            raise Failure(
                f"The copy needs {megabytes(disk['needs'])} below {disk['folder']}, and"
                f" {megabytes(disk['free'])} are free. Nothing was touched. Make room and run this"
                " again. Links in the place of a copy would need none, and leave no way back."
            )


def owners_of(data: Path) -> list[str]:
    """Return the clusters whose data a folder has, as pg_dropcluster takes them."""
    return [f"{x['version']} {x['name']}" for x in found.clusters() if Path(x["data"]) == data]


def refuse_place(target: Path) -> None:
    if target.exists() and any(target.iterdir()):
        ways = [f"sudo pg_dropcluster {x}" for x in owners_of(target)]
        raise Failure(
            f"The copy would go to {target}, which is not empty. Nothing was touched. Where nobody"
            f" needs what is there: {' && '.join(ways) or f'sudo rm -r {target}'}"
        )


def refuse_tablespaces(data: Path, former: str, version: str) -> None:
    for space in tablespaces(data):
        if space.is_relative_to(data.resolve()):
            raise Failure(
                f"The tablespace {space} lies in the data folder of {former}, and would go with it"
                " when that is removed. Nothing was touched. Move what is in it: ALTER TABLE …"
                " SET TABLESPACE, or ALTER DATABASE … SET TABLESPACE; then DROP TABLESPACE."
            )
        if taken := sorted(space.glob(f"PG_{version}_*")):
            owners = [
                f"{x['version']} {x['name']}"
                for x in found.clusters()
                if x["version"] == version and space in tablespaces(Path(x["data"]))
            ]
            way = " && ".join(f"sudo pg_dropcluster {x}" for x in owners)
            raise Failure(
                f"The tablespace {space} has data of PostgreSQL {version} already, from an upgrade"
                " that was undone for instance. Nothing was touched. Remove it where nobody needs"
                f" it: {way or f'sudo rm -r {taken[0]}'}"
            )


def refuse_what_would_be_lost(session: Session, former: str, name: str) -> None:
    """Refuse what pg_upgrade drops without a word, or refuses in words that do not help."""
    said = []
    if names := [f"{x} in {database}" for x, database in session.rows(PREPARED)]:
        said.append(
            f"prepared transactions, {listed(names)} (end each by COMMIT PREPARED or ROLLBACK"
            " PREPARED)"
        )
    takes_along = int(former) >= TAKES_REPLICATION_ALONG
    slots = [x for x, kind in session.rows(SLOTS) if kind == "physical" or not takes_along]
    if slots:
        said.append(
            f"replication slots, {listed(slots)} (let who reads from them catch up, then SELECT"
            " pg_drop_replication_slot('…'), and have them anew afterwards)"
        )
    if not takes_along and (
        names := [f"{x} in {database}" for x, database in session.rows(SUBSCRIPTIONS)]
    ):
        said.append(
            f"subscriptions, {listed(names)} (ALTER SUBSCRIPTION … DISABLE, then … SET (slot_name"
            " = NONE), then DROP SUBSCRIPTION, and CREATE SUBSCRIPTION afterwards with the same"
            " slot, create_slot = false and copy_data = false)"
        )
    if said:
        raise Failure(
            "Nothing was touched, since an upgrade would not take along what"
            f" {former}/{name} has: {'; '.join(said)}."
        )


def listed(names: Iterable[str]) -> str:
    return ", ".join(map(str, names))


def megabytes(count: float) -> str:
    return f"{count / 1024**2:,.0f} MB"
