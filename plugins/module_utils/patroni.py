"""What Patroni's cluster is, as etcd has it, and what a server has to do to be part of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .commands import Refused
from .etcd import Entry, Etcd

# What Patroni gives to PostgreSQL as arguments, which win over every file. Where it listens is said
# of each server, in its own file; the rest is one for all, in etcd.
OWN = (
    *("max_connections", "max_locks_per_transaction", "max_prepared_transactions"),
    *("max_replication_slots", "max_wal_senders", "max_worker_processes"),
    *("track_commit_timestamp", "wal_keep_size", "wal_level"),
)
# As Patroni has it: what is not more than this is left to it.
PATRONIS = {
    **{"max_connections": "100", "max_locks_per_transaction": "64"},
    **{"max_prepared_transactions": "0", "max_replication_slots": "10", "max_wal_senders": "10"},
    **{"max_worker_processes": "8", "track_commit_timestamp": "off", "wal_keep_size": "128MB"},
    "wal_level": "replica",
}
# Less than these it does not take, and has its own in their place.
LEAST = {
    **{"max_connections": 25, "max_locks_per_transaction": 32, "max_replication_slots": 4},
    **{"max_wal_senders": 3, "max_worker_processes": 2},
}
LEADERS = ("primary", "master", "leader", "standby_leader")  # by Patroni 4, 3, and what etcd has
RUNNING = ("running", "streaming")  # a replica, by Patroni 3 and 4


@dataclass(frozen=True)
class Cluster:
    """What is kept in etcd below the scope: who leads, who is there, and what is agreed on."""

    keys: Mapping[str, Entry]

    @classmethod
    def read(cls, etcd: Etcd, prefix: str) -> Cluster:
        return cls(etcd.below(prefix))

    def value(self, name: str) -> str | None:
        return self.keys[name].value if name in self.keys else None

    @property
    def identifier(self) -> str | None:
        """PostgreSQL's own number for the data; '' while it is being made, None before."""
        return self.value("initialize")

    @property
    def leader(self) -> str:
        return self.value("leader") or ""

    @property
    def members(self) -> dict[str, dict[str, Any]]:
        """Return what each Patroni that lives says of itself, by name."""
        found = {k.removeprefix("members/"): k for k in self.keys if k.startswith("members/")}
        return {name: parsed(self.keys[key].value) for name, key in sorted(found.items())}

    @property
    def synchronous(self) -> list[str]:
        """Return the standbys without whose word nothing is acknowledged."""
        said = parsed(self.value("sync") or "").get("sync_standby") or ""
        return sorted(x for x in said.split(",") if x)

    @property
    def config(self) -> dict[str, Any]:
        return parsed(self.value("config") or "")


def parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def wanted(given: Mapping[str, Any], settings: Mapping[str, str]) -> dict[str, Any]:
    """Return what all servers are to agree on.

    ``settings`` are PostgreSQL's, from the file that the role postgres writes, of which Patroni
    gives its own to PostgreSQL.
    """
    parameters = {name: taken(name, settings[name]) for name in OWN if name in settings}
    stated = dict(given["settings"])
    stated_postgresql = dict(stated.pop("postgresql", {}) or {})
    parameters |= stated_postgresql.pop("parameters", {}) or {}
    return {
        "ttl": given["ttl"],
        "loop_wait": given["loop_wait"],
        "retry_timeout": given["retry_timeout"],
        "synchronous_mode": given["synchronous_mode"],
        # Without a majority of etcd, who leads goes on as long as all others answer it.
        "failsafe_mode": True,
        **stated,
        "postgresql": {
            "use_pg_rewind": True,
            "use_slots": True,
            **stated_postgresql,
            "parameters": parameters,
        },
    }


def taken(name: str, value: str) -> str:
    """Return a setting's value as Patroni takes it."""
    least = LEAST.get(name, 0)
    return str(least) if value.isdecimal() and int(value) < least else value


def merged(has: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is agreed on with what is asked; what else somebody has said of it stays."""
    result = dict(has)
    for name, value in asked.items():
        there = result.get(name)
        both = isinstance(value, Mapping) and isinstance(there, Mapping)
        # Of 100 and "100" one is as good as the other: no change of the file for a quote.
        if both:
            result[name] = merged(there, value)
        elif name not in result or plain(there) != plain(value):
            result[name] = value
    return result


def plain(value: Any) -> str:
    text = str(value).lower()
    return {"true": "on", "false": "off"}.get(text, text)


def differences(has: Mapping[str, Any], asked: Mapping[str, Any], path: str = "") -> list[str]:
    """Return the names of what is different, in Patroni's words."""
    found = []
    for name, value in sorted(asked.items()):
        there = has.get(name)
        if isinstance(value, Mapping):
            inner = there if isinstance(there, Mapping) else {}
            found += differences(inner, value, f"{path}{name}.")
        elif name not in has or plain(there) != plain(value):
            found.append(f"{path}{name}")
    return found


@dataclass(frozen=True)
class Local:
    """What this server has: PostgreSQL's number of its data, and whether it is somebody's."""

    identifier: str
    has_databases: bool


KEY = "etcdctl del {}, with the options that docs/how-to/database-cluster.md has"


def next_step(
    cluster: Cluster, local: Local, is_first: bool, may_convert: bool, names: Mapping[str, str]
) -> str:
    """Return what this server does: run, begin the cluster, or follow who leads it.

    Refused where that would cost somebody data, or time that was not asked for. ``names`` has the
    server, the scope, and the key in etcd that says which data the cluster has.
    """
    there, key = cluster.identifier, names["key"]
    if there and there == local.identifier:
        return "run"
    alive = cluster.leader or " and ".join(cluster.members)
    if not there:
        if not is_first:
            if alive or there is None:
                return "await"
            raise Refused(interrupted(names))
        if there == "" and alive:
            raise Refused(
                f"{alive} is making the cluster {names['scope']} at this moment, and this server is"
                " to begin it. Nothing was touched. Wait until it is made; where patroni_first is"
                " true of another server, it belongs to that one alone."
            )
        if local.has_databases and not may_convert:
            raise Refused(
                f"{names['server']} has databases, which are to become the cluster's. That costs"
                " about 5 seconds in which nothing is written; the connections that are open end."
                " Nothing was touched. If it is meant, set patroni_convert to true for this run:"
                " -e stack_convert=true with site.yml of Carafe."
            )
        return "begin"
    if local.has_databases:
        raise Refused(
            f"{names['server']} has databases of its own, and the cluster {names['scope']} has"
            f" other data (its number is {there}, this server's {local.identifier or 'unknown'})."
            " Nothing was touched. If they are the ones to go on with, and nothing of the cluster"
            f" is needed, stop patroni.service on all its servers and remove {key}:"
            f" {KEY.format(key)}. If they are not, keep a dump of them, remove the databases, and"
            " run the playbook again."
        )
    if not alive:
        raise Refused(
            f"etcd knows a cluster {names['scope']} with other data than {names['server']} has (its"
            f" number is {there}), and none of its servers runs. Nothing was touched. Start"
            " patroni.service on one that has that data. If it is gone for good, remove"
            f" {key}: {KEY.format(key)}; then run the playbook again."
        )
    return "follow"


def interrupted(names: Mapping[str, str]) -> str:
    return (
        f"Somebody has begun to make the cluster {names['scope']} and did not end it, and"
        f" {names['server']} is not the one that begins. The server of which patroni_first is true"
        " has to be in the same run: leave out --limit."
    )
