"""The configuration of a PostgreSQL server that several owners share: claims in, two files out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from . import claims

FOLDER = Path("/etc/carafe/postgres.d")
HEADER = "# Managed by Ansible, role postgres. What is changed here by hand is lost.\n"
# PostgreSQL keeps this many connections for the superuser (superuser_reserved_connections).
RESERVED_CONNECTIONS = 3
HBA_KEYWORDS = ("all", "sameuser", "samerole", "replication")
# What a server has once, so that two owners cannot state it differently.
ONCE = ("memory_mb", "cores")


def claim(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an owner claims: what it stated, nothing that only follows from the server."""
    names = ("connections", "max_connections", "listen_addresses", "client_addresses", "settings")
    stated = {name: parameters[name] for name in names}
    stated["databases"] = [
        {"name": x["name"], "roles": list(dict.fromkeys([x["owner"], *users(x)]))}
        for x in parameters["databases"]
        if x["owner"]  # without one it is refused where the databases are made
    ]
    stated["roles"] = [x["name"] for x in parameters.get("roles", [])]
    if parameters.get("standbys"):
        stated["standbys"] = [
            {k: x[k] for k in ("name", "address")} for x in parameters["standbys"]
        ]
        stated["replication_user"] = parameters["replication_user"]
    for name in ("hba", "default_hba"):
        stated[name] = [{k: v for k, v in rule.items() if v} for rule in parameters[name]]
    for name in ONCE:
        if parameters[name] != parameters["measured"][name]:
            stated[name] = parameters[name]
    return stated


def standbys(everybody: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return the servers that may follow this one, each once."""
    named = {x["name"]: x for data in everybody.values() for x in data.get("standbys", [])}
    return [named[name] for name in sorted(named)]


def users(database: Mapping[str, Any]) -> list[str]:
    return [*(database.get("writers") or []), *(database.get("readers") or [])]


def unproven(mine: dict[str, Any], stored: dict[str, Any] | None) -> dict[str, Any]:
    """Return a claim as it is kept until the server has run with it: with the one before."""
    if stored is None:
        return {**mine, "former": None}
    bare = {name: value for name, value in stored.items() if name != "former"}
    return stored if bare == mine else {**mine, "former": stored.get("former", bare)}


def settle(folder: Path, works: bool) -> None:
    """Keep the claims that are not proven where the server works with them; else the former ones.

    Otherwise the next owner's run would try once more what this server does not start with.
    """
    for owner, data in claims.read(folder, "", None).items():
        if "former" in data:
            former = data.pop("former")
            claims.claim(folder, owner, data if works else former)


def once(claim: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a claim states of what the server has once, as a user calls it."""
    stated = {f"postgres_{name}": claim[name] for name in ONCE if name in claim}
    settings = {f"{k.lower()} in postgres_settings": str(v) for k, v in claim["settings"].items()}
    return stated | settings


def stated_settings(everybody: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {k.lower(): v for data in everybody.values() for k, v in data["settings"].items()}


def settings(
    everybody: Mapping[str, Mapping[str, Any]], measured: Mapping[str, int], has_connections: int
) -> dict[str, str]:
    """Return the settings of the server, from all claims and from the connections that it has.

    Those are never made fewer: that takes a restart, and another owner's next run one more.
    """
    stated = stated_settings(everybody)
    memory_mb, cores = (
        next((data[name] for data in everybody.values() if name in data), measured[name])
        for name in ONCE
    )
    connections = stated.get("max_connections") or max(
        has_connections,
        *(data["max_connections"] for data in everybody.values()),
        sum(data["connections"] for data in everybody.values()) + RESERVED_CONNECTIONS,
    )
    addresses = sorted({x for data in everybody.values() for x in data["listen_addresses"]})
    found = {
        "listen_addresses": ",".join(addresses),
        "password_encryption": "scram-sha-256",  # nosec B105 # how they are kept
        "max_connections": connections,
        **tuned(memory_mb, cores, int(connections) if str(connections).isdecimal() else 100),
        **stated,
    }
    return {name: str(value) for name, value in sorted(found.items())}


def tuned(memory_mb: int, cores: int, connections: int) -> dict[str, Any]:
    """Return what pgtune (https://github.com/le0pard/pgtune) says, profile "web", storage "ssd"."""
    memory = memory_mb * 1024
    shared = memory // 4
    gather = min(math.ceil(cores / 2), 4) if cores >= 4 else 1
    parallel = {
        "max_worker_processes": cores,
        "max_parallel_workers": cores,
        "max_parallel_workers_per_gather": gather,
        "max_parallel_maintenance_workers": gather,
    }
    return {
        "shared_buffers": f"{shared}kB",
        "effective_cache_size": f"{memory * 3 // 4}kB",
        "maintenance_work_mem": f"{min(memory // 16, 2097152)}kB",
        "work_mem": f"{max((memory - shared) // (max(connections, 1) * 3) // gather, 64)}kB",
        # In whole pages, as the server has it.
        "wal_buffers": f"{min(shared * 3 // 100, 16384) // 8 * 8}kB",
        "min_wal_size": "1GB",
        "max_wal_size": "4GB",
        "checkpoint_completion_target": 0.9,
        "default_statistics_target": 100,
        "random_page_cost": 1.1,
        "effective_io_concurrency": 200,
        **(parallel if cores >= 4 else {}),
    }


def settings_text(values: Mapping[str, str]) -> str:
    lines = [HEADER, "# They win over postgresql.conf. Change them through postgres_settings.\n"]
    for name, value in values.items():
        quoted = value.replace("'", "''")
        lines.append(f"{name} = '{quoted}'\n")
    return "".join(lines)


def parse_settings(text: str) -> dict[str, str]:
    """Return the settings that settings_text() has written."""
    pairs = (line.split(" = ", 1) for line in text.splitlines() if " = " in line and line[0] != "#")
    return {name: value[1:-1].replace("''", "'") for name, value in pairs}


def hba(everybody: Mapping[str, Mapping[str, Any]], version: str) -> list[str]:
    """Return the lines of pg_hba.conf: those of all owners, each once.

    What somebody stated comes first, then each database for the roles that it was made for, and
    last what is there by default.
    """
    claimed = everybody.values()
    lines = [
        *FIRST_LINES,
        *(line(rule) for data in claimed for rule in data["hba"]),
        *(x for data in claimed for x in database_lines(data, version)),
        *(x for data in claimed for x in standby_lines(data)),
        *(line(rule) for data in claimed for rule in data["default_hba"]),
    ]
    return list(dict.fromkeys(lines))


def hba_behind(
    everybody: Mapping[str, Mapping[str, Any]], version: str, kept: Iterable[str]
) -> list[str]:
    """Return the lines that somebody had before, which let nobody in to what is claimed."""
    kept = list(kept)
    names = [x["name"] for data in everybody.values() for x in data.get("databases", [])]
    closed = [database_name(name, version) for name in names]
    shut = [f"{kind} reject" for x in closed for kind in (f"local {x} all", f"host {x} all all")]
    return [*dict.fromkeys(shut), *kept] if kept else []


# The superuser comes in over the unix socket, as the unix user of that name, and in no other way.
# "all" databases are all but the name by which a standby server comes.
FIRST_LINES = (
    "host all,replication postgres all reject",
    "local all,replication postgres peer",
)


def database_lines(data: Mapping[str, Any], version: str) -> Iterator[str]:
    """Yield a line for each of an owner's databases, and for each way in to it.

    +role is the role and its members. So the login that works while a password is rotated comes in,
    and a role named "all" is a role: after a + no name has another meaning.
    """
    # A claim that an older Carafe has written has neither.
    for database in data.get("databases", []):
        where = database_name(database["name"], version)
        who = ",".join(f"+{quoted(role)}" for role in database["roles"])
        yield f"local {where} {who} peer"
        for address in data.get("client_addresses", []):
            yield f"hostssl {where} {who} {ip_range(address)} scram-sha-256"


def standby_lines(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each server that may follow this one; it comes to no database."""
    for standby in data.get("standbys", []):
        who, where = quoted(data["replication_user"]), ip_range(standby["address"])
        yield f"hostssl replication {who} {where} scram-sha-256"


def named_databases(everybody: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Return the databases that have a line of their own."""
    claimed = everybody.values()
    return {
        *(x["name"] for data in claimed for x in data.get("databases", [])),
        *(rule["database"] for data in claimed for rule in data["hba"] + data["default_hba"]),
    }


def ip_range(address: str) -> str:
    """Return an address as the range of this one address, and a range as it is."""
    if "/" in address:
        return address
    return f"{address}/{128 if ':' in address else 32}"


def quoted(name: str) -> str:
    return f'"{name.replace(chr(34), chr(34) * 2)}"'


def database_name(name: str, version: str) -> str:
    """Return a database's name as pg_hba.conf has it, whatever is in it.

    From PostgreSQL 16 on, one that begins with a slash is a regular expression, quoted or not.
    """
    if not name.startswith("/") or int(version) < REGULAR_EXPRESSIONS_SINCE:
        return quoted(name)
    literal = re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", name)
    return quoted(f"/^{literal}$")


REGULAR_EXPRESSIONS_SINCE = 16


def line(rule: Mapping[str, Any]) -> str:
    """Return the line of a rule that somebody stated."""
    names = [hba_name(rule["database"]), hba_name(rule["user"])]
    words = [rule["type"], *names, rule.get("address"), rule["method"], rule.get("options")]
    return " ".join(word for word in words if word)


def hba_name(text: str) -> str:
    """Quote a name; a word that PostgreSQL knows stays bare, +name is a role and its members."""
    if text in HBA_KEYWORDS:
        return text
    plus = "+" if text.startswith("+") else ""
    return plus + quoted(text.removeprefix(plus))


def hba_text(lines: Iterable[str]) -> str:
    return "".join(
        [
            HEADER,
            "# Who may connect, from where, and how they prove it. The first match decides.\n",
            *(f"{line}\n" for line in lines),
        ]
    )
