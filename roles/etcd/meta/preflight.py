"""What the role refuses besides what its argument_specs.yml says."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ansible_collections.carafe.stack.plugins.plugin_utils.problems import (
    Problem,
    Server,
    check_twins,
    described,
    entries,
    free,
)

LEAST = 3
PORTS = (2379, 2380)
UNIT = "etcd.service"
FOLDER = "/var/lib/etcd/"
SETTING, VALUE = re.compile(r"[a-z][a-z0-9-]*"), re.compile(r"[^\n\r\0]*")
# What the role has a variable for, or a cluster stands and falls with.
OWN = {
    *("name", "data-dir", "initial-cluster", "initial-cluster-state", "initial-cluster-token"),
    *("listen-client-urls", "advertise-client-urls", "listen-peer-urls"),
    *("initial-advertise-peer-urls", "cert-file", "key-file", "trusted-ca-file"),
    *("client-cert-auth", "peer-cert-file", "peer-key-file", "peer-trusted-ca-file"),
    *("peer-client-cert-auth", "force-new-cluster"),
}


def check_members(server: Server) -> Iterator[Problem]:
    """Of two, each dies with the other; of four, two are as many as three can do without one."""
    if "etcd_members" not in server.values:  # which is told already
        return
    yield from check_twins(server, "etcd_members", "members")
    members = entries(server, "etcd_members")
    if len(members) < LEAST or len(members) % 2 == 0:
        yield Problem(
            "etcd_members",
            f"has {len(members)}, and a majority that outlives a server needs 3 voters, or 5 for"
            " two servers",
            "have 3 or 5 servers in the group etcd of hosts.yml; one of them may have no database",
        )
    own = (server.values.get("etcd_name"), server.values.get("etcd_address"))
    if members and own not in [(x.get("name"), x.get("address")) for x in members]:
        yield Problem("etcd_members", f"does not have this server, {own[0]} with {own[1]}")


def check_data_dir(server: Server) -> Iterator[Problem]:
    """Its sandbox would not let it write elsewhere."""
    path = server.values.get("etcd_data_dir")
    if path is not None and not (re.fullmatch(f"{FOLDER}[^/].*", path) and ".." not in path):
        yield Problem("etcd_data_dir", f"is {path!r}, and must be a folder below {FOLDER}")


def check_settings(server: Server) -> Iterator[Problem]:
    for name, value in (server.values.get("etcd_settings") or {}).items():
        if str(name) in OWN:
            yield Problem("etcd_settings", f"has {name}, which is the role's own", "take it out")
        elif not SETTING.fullmatch(str(name)) or not VALUE.fullmatch(str(value)):
            yield Problem(
                "etcd_settings",
                f"has {name}: {value!r}, and must have names of etcd's options with one line of"
                " text each, such as heartbeat-interval: 250",
            )


def check_ports(server: Server) -> Iterator[Problem]:
    for holder in server.found.get("listeners") or []:
        if holder["port"] in PORTS and holder["unit"] != UNIT:
            yield Problem(
                "etcd_address",
                f"needs the ports 2379 and 2380, and {described(holder)} holds"
                f" {holder['port']} on {server.name}",
                free(holder, "give it another port"),
            )


CHECKS = (check_members, check_data_dir, check_settings, check_ports)
