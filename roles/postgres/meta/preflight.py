"""What the role refuses besides what its argument_specs.yml says."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ansible_collections.carafe.stack.plugins.plugin_utils.problems import (
    Problem,
    Server,
    check_twins,
    entries,
)

RANGES = {
    "postgres_connections": (0, None),
    "postgres_cores": (1, None),
    "postgres_max_connections": (4, None),
    "postgres_memory_mb": (1, None),
}
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


def check_names(server: Server) -> Iterator[Problem]:
    for variable, kind in (("postgres_databases", "databases"), ("postgres_roles", "roles")):
        yield from check_twins(server, variable, kind)


CHECKS = (check_database_names, check_names)
