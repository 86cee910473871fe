"""What the role refuses besides what its argument_specs.yml says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ansible_collections.carafe.stack.plugins.module_utils.found import POSTGRESQL_OF_DEBIAN
from ansible_collections.carafe.stack.plugins.plugin_utils.problems import (
    Problem,
    Server,
    described,
    free,
)

# Patroni itself lifts what is less, without a word.
RANGES = {"patroni_ttl": (20, None), "patroni_loop_wait": (1, None)}
RANGES |= {"patroni_retry_timeout": (3, None), "patroni_port": (1, 65535)}
PORT, UNIT = 8008, "patroni.service"


def check_release(server: Server) -> Iterator[Problem]:
    """With Patroni 3.0, what was acknowledged was lost once, where who led was cut off."""
    if [server.facts.get(f"distribution{x}") for x in ("", "_major_version")] == ["Debian", "12"]:
        yield Problem(
            "patroni_members",
            f"needs Debian 13, and {server.name} has Debian 12: its Patroni 3.0 has"
            " lost rows that were acknowledged, where the server that led was cut off from the"
            " others",
            "bring the servers to Debian 13 first, docs/how-to/upgrading-debian.md; or have a"
            " standby, docs/how-to/standby.md",
        )


def check_times(server: Server) -> Iterator[Problem]:
    """Patroni makes them fit by itself, so that others than those that are stated count."""
    ttl, wait, retry = (
        int(server.values.get(f"patroni_{name}") or 0)
        for name in ("ttl", "loop_wait", "retry_timeout")
    )
    if wait + 2 * retry > ttl:
        yield Problem(
            "patroni_ttl",
            f"is {ttl} s, and must be at least patroni_loop_wait and twice patroni_retry_timeout,"
            f" which are {wait + 2 * retry} s together",
        )


def check_synchronous(server: Server) -> Iterator[Problem]:
    """With one database, nobody else could have what is acknowledged."""
    members = server.values.get("patroni_members") or []
    if server.values.get("patroni_synchronous_mode") is True and len(members) == 1:
        yield Problem(
            "patroni_synchronous_mode",
            "is true, and patroni_members has one server: nobody else could have what is"
            " acknowledged, and nobody could lead in its place",
            "have two database servers at least; or take the roles away that make one fail over",
        )


def check_conversion(server: Server) -> Iterator[Problem]:
    """It costs some seconds, for which it is asked; elsewhere databases would be in the way."""
    cluster = chosen(server)
    is_managed = bool(cluster.get("patroni"))
    has = bool(cluster.get("claims") or cluster.get("has_databases"))
    if is_managed or not has or "patroni_first" not in server.values:
        return
    if not server.values.get("patroni_first"):
        yield Problem(
            "patroni_first",
            f"is another server's, and {server.name} has databases of its own, which would be in"
            " the way of the cluster's",
            f"put {server.name} first in the group db of hosts.yml, if the cluster is to begin with"
            " its data",
        )
    elif not server.values.get("patroni_convert"):
        yield Problem(
            "patroni_convert",
            f"is false, and the databases of {server.name} are to become those of a cluster. That"
            " costs about 5 seconds in which nothing is written, and open connections end",
            "if it is meant, add to the command: -e stack_convert=true",
        )


def chosen(server: Server) -> Mapping[str, Any]:
    release = POSTGRESQL_OF_DEBIAN.get(server.facts.get("distribution_major_version") or "")
    name = server.values.get("patroni_cluster") or f"{release}/main"
    clusters = (server.found.get("postgresql") or {}).get("clusters") or []
    return next((x for x in clusters if f"{x['version']}/{x['name']}" == name), {})


def check_ports(server: Server) -> Iterator[Problem]:
    for holder in server.found.get("listeners") or []:
        if holder["port"] == PORT and holder["unit"] != UNIT:
            yield Problem(
                "patroni_address",
                f"needs the port {PORT}, which {described(holder)} holds on {server.name}",
                free(holder, "give it another port"),
            )


CHECKS = (check_release, check_times, check_synchronous, check_conversion, check_ports)
