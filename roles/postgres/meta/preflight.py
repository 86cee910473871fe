"""What the role refuses besides what its argument_specs.yml says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ansible_collections.carafe.stack.plugins.module_utils.found import POSTGRESQL_OF_DEBIAN
from ansible_collections.carafe.stack.plugins.plugin_utils.problems import (
    Problem,
    Server,
    check_twins,
    described,
    entries,
    free,
)

RANGES = {
    "postgres_connections": (0, None),
    "postgres_cores": (1, None),
    "postgres_max_connections": (4, None),
    "postgres_memory_mb": (1, None),
    "postgres_primary_port": (1, 65535),
    "postgres_standby_wal_mb": (64, None),
}
CLUSTER = r"[0-9]+/[A-Za-z0-9_][A-Za-z0-9_.-]*"
PORT = 5432
SOCKETS = ("/var/run/postgresql", "/run/postgresql")
CLOSED = ("/boot/", "/etc/", "/home/", "/root/", "/usr/")
# PostgreSQL's own roles that read what it counts, and no table.
WATCHING = ("pg_monitor", "pg_read_all_settings", "pg_read_all_stats", "pg_stat_scan_tables")
DATABASE_NAME_BYTES = 63  # PostgreSQL's NAMEDATALEN - 1


def check_database_names(server: Server) -> Iterator[Problem]:
    """PostgreSQL cuts a longer name off without a word, so that two names become one."""
    named = [
        ("postgres_databases", "database", key, x)
        for x in entries(server, "postgres_databases")
        for key in ("name", "owner")
        # What is merged over the playbook's database of that name has its owner there.
        if key in x or key == "name"
    ]
    named += [("postgres_roles", "role", "name", x) for x in entries(server, "postgres_roles")]
    for variable, kind, key, entry in named:
        name = entry.get(key) or ""
        kind = "role" if key == "owner" else kind
        # A line of pg_hba.conf cannot have a line's end in a name.
        if not 1 <= len(name.encode()) <= DATABASE_NAME_BYTES or re.search(r"[\0\n\r]", name):
            yield Problem(
                variable,
                f"has a {kind} named {name!r}, but a name has 1 to {DATABASE_NAME_BYTES} bytes,"
                " no NUL and no line's end",
            )
        elif kind == "database" and name in ("postgres", "template0", "template1"):
            yield Problem(variable, f"has a database named {name!r}, which is PostgreSQL's own")
        elif (
            kind == "role"
            and variable == "postgres_roles"
            and (name in ("postgres", "public", "none") or name.startswith("pg_"))
        ):
            yield Problem(variable, f"has a role named {name!r}, which is PostgreSQL's own")


def check_passwords(server: Server) -> Iterator[Problem]:
    """PostgreSQL takes any password but one that ends before it ends."""
    for entry in entries(server, "postgres_roles"):
        if "\0" in str(entry.get("password") or ""):
            yield Problem(
                told(server, entry.get("name"), "postgres_roles"),
                f"has a password of {entry.get('name')!r} with a NUL in it, which PostgreSQL does"
                " not take",
                'make another one: python3 -c "import secrets; print(secrets.token_hex(32))"',
            )


def check_names(server: Server) -> Iterator[Problem]:
    for variable, kind in (("postgres_databases", "databases"), ("postgres_roles", "roles")):
        yield from check_twins(server, variable, kind)


def check_cluster(server: Server) -> Iterator[Problem]:
    """With two of them, one would get the settings and the other the databases."""
    clusters = {f"{x['version']}/{x['name']}": x for x in found_clusters(server)}
    release = POSTGRESQL_OF_DEBIAN.get(server.facts.get("distribution_major_version") or "")
    stated, usual = str(server.values.get("postgres_cluster") or ""), f"{release}/main"
    there = " and ".join(
        f"{name} (port {x['port']}, {'running' if x['runs'] else 'stopped'})"
        for name, x in clusters.items()
    )
    if stated and not re.fullmatch(CLUSTER, stated):
        yield Problem(
            "postgres_cluster",
            f"is {stated!r}, and not a version and a name as pg_lsclusters has them: 17/main",
        )
    elif former := next((x for x in clusters.values() if x.get("is_former") and x["claims"]), None):
        # The playbook that upgrades it says so itself.
        if not server.raw.get("upgrade_postgres"):
            yield from_the_release_before(server, former, usual)
    elif not clusters and stated not in ("", usual):
        yield Problem(
            "postgres_cluster",
            f"is {stated!r}, and {server.name} has no PostgreSQL yet",
            f"leave it out, for Debian's {usual}; or make that one first, by its packages",
        )
    elif not clusters:
        yield from check_port(server)
    elif stated and stated not in clusters:
        version, name = stated.split("/")
        yield Problem(
            "postgres_cluster",
            f"is {stated!r}, and {server.name} has {there}",
            f"name one of those, or make it: sudo pg_createcluster {version} {name} --start",
        )
    elif (
        not stated
        and [*clusters] != [usual]
        and not (
            # Carafe's own, beside which somebody has put another one since.
            usual in clusters and clusters[usual]["claims"]
        )
    ):
        yield Problem(
            "postgres_cluster",
            f"is not set, and {server.name} has {there}, where Debian's own is {usual}: which one"
            " is the app's? The others stay as they are",
            f'add postgres_cluster: "{next(iter(clusters))}"'
            + (
                f"; for {usual} make it first: sudo apt-get install postgresql-{release}"
                if usual not in clusters
                else ""
            ),
        )
    elif problem := unusable(server, clusters[stated or usual], stated or usual):
        yield problem


def from_the_release_before(server: Server, former: Mapping[str, Any], usual: str) -> Problem:
    """Debian was upgraded, which leaves PostgreSQL as it was: it gets no more updates."""
    has = f"{former['version']}/{former['name']}"
    return Problem(
        "postgres_cluster",
        f"is {usual} on {server.name} since its Debian was upgraded, and the data of"
        f" {' and '.join(sorted(former['claims']))} is in {has} yet, for which Debian has no more"
        " updates",
        "take it along, see docs/how-to/upgrading-debian.md: ansible-playbook"
        " carafe.stack.upgrade_postgres",
    )


def check_port(server: Server) -> Iterator[Problem]:
    """Debian's package would quietly take the next port, where no app looks for it."""
    for holder in server.found.get("listeners") or []:
        if holder["port"] == PORT:
            yield Problem(
                "postgres_cluster",
                f"is to be made, and needs port {PORT}, which {described(holder)} holds on"
                f" {server.name}",
                free(holder, f"publish it on another port than {PORT}"),
            )
            return


def unusable(server: Server, cluster: Mapping[str, Any], name: str) -> Problem | None:
    """Return what keeps the role from configuring a cluster."""
    folder = f"/etc/postgresql/{name}"
    if not cluster["reads_conf_d"]:
        return Problem(
            "postgres_cluster",
            f"is {name}, and on {server.name} its postgresql.conf does not read conf.d, where the"
            " role's settings are",
            f"add the line include_dir = 'conf.d' to {folder}/postgresql.conf",
        )
    if cluster["hba_file"] != f"{folder}/pg_hba.conf":
        return Problem(
            "postgres_cluster",
            f"is {name}, whose hba_file on {server.name} is {cluster['hba_file']}, where the role"
            f" writes {folder}/pg_hba.conf",
            f"move its lines there, and set hba_file in {folder}/postgresql.conf",
        )
    if cluster["runs"] and cluster["socket"] not in SOCKETS:
        return Problem(
            "postgres_cluster",
            f"is {name}, whose unix socket on {server.name} is in {cluster['socket']}, and apps"
            f" look for it in {SOCKETS[1]}",
            f"put {SOCKETS[0]} first in unix_socket_directories in {folder}/postgresql.conf",
        )
    if cluster["data"].startswith(CLOSED):
        return Problem(
            "postgres_cluster",
            f"is {name}, whose data on {server.name} is in {cluster['data']}, which the role's"
            " sandbox keeps it out of",
            "move it to /var/lib/postgresql, or to a folder of /srv",
        )
    if "refused" in cluster:
        return Problem(
            "postgres_cluster",
            f"is {name}, which does not let the unix user postgres in on {server.name}"
            f" ({cluster['refused']})",
            f"let {folder}/pg_hba.conf begin with the line 'local all postgres peer', then: sudo"
            f" systemctl reload postgresql@{name.replace('/', '-')}",
        )
    return None


def found_clusters(server: Server) -> list[Mapping[str, Any]]:
    return (server.found.get("postgresql") or {}).get("clusters") or []


def chosen(server: Server) -> Mapping[str, Any]:
    """Return what is known of the cluster that the role configures."""
    release = POSTGRESQL_OF_DEBIAN.get(server.facts.get("distribution_major_version") or "")
    name = server.values.get("postgres_cluster") or f"{release}/main"
    return next((x for x in found_clusters(server) if f"{x['version']}/{x['name']}" == name), {})


def check_contents(server: Server) -> Iterator[Problem]:
    """A database or a role of somebody else's would become the app's."""
    cluster, owner = chosen(server), server.values.get("postgres_owner")
    claims = cluster.get("claims") or {}
    if server.values.get("stack_adopt") is True:
        return
    has = cluster.get("databases") or {}
    claimed = {x for claim in claims.values() for x in claim["databases"]}
    for name in [x.get("name") for x in entries(server, "postgres_databases")]:
        if name in has and name not in claimed:
            yield Problem(
                told(server, name, "postgres_databases"),
                f"has the database {name!r}, which {server.name} has already, and not from Carafe:"
                f" it is {has[name]}'s",
                "choose another name; or write stack_adopt: true, and the app's role becomes the"
                " owner of that database",
            )
    # A claim of an older Carafe names no roles: those of its owner are not asked for.
    if owner in claims and claims[owner]["roles"] is None:
        return
    claimed = {x for claim in claims.values() for x in claim["roles"] or []}
    wanted = {
        str(x.get("name")) for x in entries(server, "postgres_roles") if not only_watches(x)
    } - claimed
    for name in sorted(wanted & {*(cluster.get("roles") or [])}):
        yield Problem(
            told(server, name, "postgres_roles"),
            f"has the database role {name!r}, which {server.name} has already, and not from Carafe",
            "choose another name; or write stack_adopt: true, and the role gets the settings,"
            " memberships and password that are listed here",
        )


def only_watches(role: Mapping[str, Any]) -> bool:
    """Tell whether a role, whoever made it, gets nothing but PostgreSQL's own ones to read by."""
    given = [str(x) for x in role.get("member_of") or []]
    return bool(given) and all(x in WATCHING for x in given) and not role.get("password")


def check_place(server: Server) -> Iterator[Problem]:
    """Whether a server is a primary is asked of itself: of two, one loses what is written to it."""
    cluster = chosen(server)
    if not cluster or server.values.get("postgres_managed_by") == "patroni":
        return
    primary, name = server.values.get("postgres_primary"), server.name
    convert = server.values.get("postgres_convert") is True
    promote = "have the inventory say what is to be, and run: ansible-playbook carafe.stack.promote"
    if not primary and (cluster.get("is_standby") or cluster.get("is_fenced")):
        is_what = "a standby" if cluster.get("is_standby") else "stopped for good"
        yield Problem(
            "postgres_primary",
            f"is not set for {name}, which is to be the primary, and its PostgreSQL is {is_what}",
            promote,
        )
    elif primary and cluster["runs"] and not cluster.get("is_standby") and cluster["claims"]:
        if not convert:
            yield Problem(
                "postgres_primary",
                f"is {primary}, which {name} is to follow, and {name} is a primary itself",
                f"if it was this app's: {promote}; if what it has may be kept aside, add -e"
                " stack_convert=true",
            )
    elif not primary and (wanted := missing_address(server, cluster)) and not convert:
        yield Problem(
            "postgres_standbys",
            f"has {' and '.join(x['name'] for x in entries(server, 'postgres_standbys'))}, and the"
            f" PostgreSQL of {name} has to restart once, to listen on {wanted}: some 2 seconds in"
            " which it answers nobody. Then it is copied while it serves",
            "add -e stack_convert=true to the command, when it suits",
        )


def missing_address(server: Server, cluster: Mapping[str, Any]) -> str:
    """Return an address on which a primary that runs does not listen, and its standby needs it."""
    if not (entries(server, "postgres_standbys") and cluster["runs"] and cluster["claims"]):
        return ""
    has = str(cluster.get("addresses") or "").split(",")
    wanted = server.values.get("postgres_listen_addresses") or []
    return next((x for x in wanted if x not in has and "*" not in has), "")


def check_standbys(server: Server) -> Iterator[Problem]:
    standbys = entries(server, "postgres_standbys")
    if standbys and not server.values.get("postgres_replication_password"):
        yield Problem(
            "postgres_replication_password",
            f"is empty, and {standbys[0].get('name')} needs it to follow",
        )
    slots: dict[str, str] = {}
    for entry in standbys:
        name = str(entry.get("name"))
        other = slots.setdefault(re.sub(r"[^a-z0-9_]", "_", name.lower()), name)
        if other != name:
            yield Problem(
                "postgres_standbys", f"has {other!r} and {name!r}, which are one name for a slot"
            )


def told(server: Server, name: Any, variable: str) -> str:
    """Return the variable from which a name comes: what is named after the app is the app's."""
    app = server.values.get("app_name")
    return "app_name" if app and name in (app, f"{app}-owner", f"{app}-deploy") else variable


CHECKS = (
    *(check_database_names, check_passwords, check_names, check_cluster, check_contents),
    *(check_place, check_standbys),
)
