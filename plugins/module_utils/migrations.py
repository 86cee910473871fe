"""What there is to say of a migration, or of an app that is loaded, that failed."""

from __future__ import annotations

import re

from .commands import CommandFailed, run

# The pause between two tries of a migration that waits for a lock, in seconds. Meanwhile the site
# goes on: a lock that is waited for is waited for by whoever comes after, too.
PAUSE = 10
LOCK_TIMEOUT = "3s"
# The last is SQLite's.
WAITED = re.compile(
    r"due to lock timeout|\bLockNotAvailable|\b55P03\b|database (?:table )?is locked"
)
# Transactions that were begun before the migration last waited, the oldest first.
OTHERS = r"""SELECT said FROM (
    SELECT xact_start AS began, format('process %s of %s%s, %s, for %s s: %s', pid,
        coalesce(usename, backend_type), coalesce(' (' || nullif(application_name, '') || ')', ''),
        state, extract(epoch FROM now() - xact_start)::int,
        left(regexp_replace(query, '\s+', ' ', 'g'), 200)) AS said
    FROM pg_catalog.pg_stat_activity
    WHERE datname = pg_catalog.current_database() AND pid <> pg_catalog.pg_backend_pid()
    UNION ALL
    SELECT prepared, format('transaction %L of %s, prepared for %s s and not ended', gid, owner,
        extract(epoch FROM now() - prepared)::int)
    FROM pg_catalog.pg_prepared_xacts WHERE database = pg_catalog.current_database()
    ) x WHERE began < pg_catalog.now() - interval '3 seconds' ORDER BY began LIMIT 3"""
INVALID = """SELECT format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_index i
    JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE NOT i.indisvalid ORDER BY 1 LIMIT 10"""

# What the end of a log means, and what to do about it. The first that is found is told.
HINTS = (
    # Of what the role gunicorn loads an app with, in one line.
    *(
        (
            {"load"},
            rf"(?m)^gunicorn_interface is \w+, and \S+ is an app of {name.upper()}$",
            f"The app speaks {name.upper()}: write app_interface: {name} beside app_wsgi in the"
            " app's variables, and run this again.",
        )
        for name in ("wsgi", "asgi")
    ),
    (
        {"load"},
        r"(?m)^gunicorn_wsgi is \S+, which makes an app and is none: \S+\(\) calls it$",
        "app_wsgi names what makes the app: write () after it, and run this again.",
    ),
    (
        {"load", "probe", "switch", "slots"},
        r"permission denied for (?:schema|database)|must be owner of|InsufficientPrivilege",
        "Whoever runs the app may not change its tables. If the app makes or migrates them itself"
        " when it is loaded, set app_user_migrates: true. docs/how-to/an-app-of-your-own.md says"
        " what that gives away.",
    ),
    (
        {"migrate", "setup"},
        r"attempt to write a readonly database|unable to open database file",
        "What is in app_shared belongs to the user that runs the app. For a database in there, set"
        " app_user_migrates: true.",
    ),
    (
        {"build"},
        r"[Rr]equires-[Pp]ython|requires a different Python|requires Python [<>=!~]"
        r"|current Python version|does not satisfy Python",
        "The app is for another Python than this server's own. Name it: app_python: '3.12'",
    ),
    (
        {"build"},
        r"[Uu]nknown compiler"
        r"|\b(?:gcc|g\+\+|cc|c\+\+|clang|rustc|cargo|gfortran)'?:? (?:failed|not found)"
        r"|No such file or directory: '[^']*(?:gcc|g\+\+|cc|clang|cargo)'"
        r"|can't find Rust compiler|[Cc]ompiler .{0,60}(?:not found|cannot be found)",
        "{package} has no wheel for this server's Python, and no compiler is here to build it. Pin"
        " a version of it that has one, by app_requirements_override, or run the app with a Python"
        " that it has one for, by app_python; or install what builds it: app_extra_packages, for"
        " instance [gcc, libc6-dev, python3-dev].",
    ),
    (
        {"build"},
        r"\w+[-_]config\b.{0,40}(?:not found|No such file)|fatal error: \S+: No such file"
        r"|cannot find -l\w+|[Pp]ackage '?[\w.+-]+'?,? .{0,60}not found\b.{0,40}pkg-config"
        r"|pkg-config .{0,60}(?:not found|could not be found)",
        "{package} has no wheel for this server's Python, and what it is built from is not here."
        " Pin a version of it that has one, or have another package in its place, by"
        " app_requirements_override; or install what builds it: app_extra_packages, for instance"
        " [gcc, libc6-dev, python3-dev, libpq-dev].",
    ),
)
PACKAGE = re.compile(
    r"(?:Failed (?:to build|building wheel for|to build wheel for)|Could not build wheels for)"
    r" (?!installable )[`'\"]?"
    r"([A-Za-z0-9._-]+(?:==[^\s`'\"]+)?)"
)


def hint(step: str, output: bytes) -> str:
    """Return what to do about a step that ended with this output, or ''."""
    log = output.decode(errors="replace")
    for steps, pattern, text in HINTS:
        if step in steps and re.search(pattern, log):
            found = PACKAGE.findall(log)
            return text.format(package=found[-1] if found else "One of the packages")
    return ""


def waited(output: bytes) -> bool:
    """Tell whether a migration has ended since it waited too long for a lock."""
    return bool(WAITED.search(output.decode(errors="replace")))


def ask(database: str, text: str) -> list[str]:
    """Ask PostgreSQL on this server as its superuser, by the catalogs' own names alone."""
    # Whatever the owner has the database look at first.
    only = ["env", "PGOPTIONS=-c search_path=pg_catalog"]
    words = ["psql", "-XAtqd", database, "-v", "ON_ERROR_STOP=1", "-c", text]
    try:
        return run("runuser", "-u", "postgres", "--", *only, *words).splitlines()
    except CommandFailed:
        # It is what helps, and no reason of its own.
        return []


def in_the_way(database: str) -> str:
    """Return who holds locks for long in a database of this server, a line for each."""
    if not database:
        return ""
    lines = ask(database, OTHERS)
    if not lines:
        return "Nobody has a transaction there any more that is older than a moment."
    first = "In the way may be the following. To end one: SELECT pg_terminate_backend(<process>);"
    return "\n".join([first, *(f"  {line}" for line in lines)])


def left_behind(database: str) -> str:
    """Return what a migration that is no transaction has left, and how it is removed."""
    names = ask(database, INVALID) if database else []
    if not names:
        return ""
    lines = [f"  DROP INDEX CONCURRENTLY {name};" for name in names]
    first = "A migration that ended half-way has left indexes, which are not valid. Remove them:"
    return "\n".join([first, *lines])
