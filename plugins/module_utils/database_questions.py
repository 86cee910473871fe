"""Ask PostgreSQL what a migration that failed needs to know.

The program /usr/local/lib/carafe/database-questions is this file, for a database on another server.
It asks by the app's own driver, with the URL that a migration gets, and is run by the app's Python.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import re
import sys

SECONDS = 5
# Transactions that were begun before the migration last waited, the oldest first. Of a session of
# a role that it is no member of, whoever migrates sees no more than which locks it has.
OTHERS = r"""SELECT said FROM (
    SELECT xact_start AS began, format('process %s of %s%s, %s', pid,
        coalesce(usename, backend_type), coalesce(' (' || nullif(application_name, '') || ')', ''),
        CASE WHEN xact_start IS NULL THEN 'whose query only the superuser sees'
        ELSE format('%s, since %s, for %s s: %s', state, to_char(xact_start, 'HH24:MI:SS TZ'),
            extract(epoch FROM now() - xact_start)::int,
            left(regexp_replace(query, '\s+', ' ', 'g'), 200)) END) AS said
    FROM pg_catalog.pg_stat_activity a
    WHERE datname = pg_catalog.current_database() AND pid <> pg_catalog.pg_backend_pid()
    AND (xact_start < pg_catalog.now() - interval '3 seconds' OR xact_start IS NULL AND EXISTS (
        SELECT FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_class c ON c.oid = l.relation
        WHERE l.pid = a.pid AND l.granted AND c.oid >= 16384))
    UNION ALL
    SELECT prepared, format('transaction %L of %s, prepared for %s s and not ended', gid, owner,
        extract(epoch FROM now() - prepared)::int)
    FROM pg_catalog.pg_prepared_xacts WHERE database = pg_catalog.current_database()
    AND prepared < pg_catalog.now() - interval '3 seconds'
    ) x ORDER BY began LIMIT 3"""
INVALID = """SELECT format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_index i
    JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE NOT i.indisvalid ORDER BY 1 LIMIT 10"""
QUESTIONS = {"others": OTHERS, "invalid": INVALID}
# As whoever has logged in: a role that it acts as may see less of others. By the catalogs' own
# names alone, whatever the owner has the database look at first.
FIRST = ("SET ROLE NONE", "SET search_path TO pg_catalog", f"SET statement_timeout TO '{SECONDS}s'")

ON_THE_SERVER = "on the database's server: sudo -u postgres psql -xc"
LOOK = (
    "SELECT * FROM pg_stat_activity WHERE xact_start < now() - interval '3 s' ORDER BY xact_start"
)


def said(question: str, lines: list[str] | str) -> str:
    """Return what there is to say of an answer, or of why there is none."""
    if isinstance(lines, str):
        return (
            f'{lines} Who is in the way, PostgreSQL says {ON_THE_SERVER} "{LOOK}"'
            if question == "others"
            else ""
        )
    if question == "invalid":
        first = "A migration that ended half-way has left invalid indexes. Remove them:"
        return shown(first, [f"DROP INDEX CONCURRENTLY {x};" for x in lines]) if lines else ""
    if not lines:
        return "Nobody has a transaction there any more that is older than a moment."
    first = (
        "In the way may be the following. To end one,"
        f" {ON_THE_SERVER} 'SELECT pg_terminate_backend(<process>)'"
    )
    return shown(first, lines)


def shown(first: str, lines: list[str]) -> str:
    return "\n".join([first, *(f"  {line}" for line in lines)])


def libpq_url(url: str) -> str:
    """Return the URL of an app as drivers themselves take it, or '' where it is none of theirs."""
    found = re.fullmatch(r"postgres(?:ql)?(?:\+\w+)?(://.*)", url, re.S)
    # SQLAlchemy hands asyncpg a word of its own.
    return re.sub(r"(?<=[?&])ssl=", "sslmode=", f"postgresql{found[1]}") if found else ""


def by_libpq(driver, url: str, question: str) -> list[str]:
    with driver.connect(url, connect_timeout=SECONDS) as connection:
        cursor = connection.cursor()
        for statement in (*FIRST, question):
            cursor.execute(statement)
        return [row[0] for row in cursor.fetchall()]


def by_asyncpg(driver, url: str, question: str) -> list[str]:
    async def run() -> list[str]:
        # It takes a word that it does not know for a setting of the server's.
        plain = re.sub(r"(?<=[?&])channel_binding=\w+&?", "", url)
        connection = await driver.connect(plain, timeout=SECONDS)
        for statement in FIRST:
            await connection.execute(statement)
        return [row[0] for row in await connection.fetch(question)]

    return asyncio.run(run())


DRIVERS = {"psycopg": by_libpq, "psycopg2": by_libpq, "asyncpg": by_asyncpg}


def ask(url: str, question: str) -> list[str] | str:
    """Ask by the first driver that the app has, or return why nobody answers."""
    # A migration's own, whose patience ends sooner.
    os.environ.pop("PGOPTIONS", None)
    for name, way in DRIVERS.items():
        try:
            driver = importlib.import_module(name)
        except ImportError:
            continue
        try:
            return way(driver, url, QUESTIONS[question])
        except Exception as error:
            # Its words may have a part of the URL in them.
            return f"{name} got no answer of the database ({type(error).__name__})."
    return f"The app has none of {', '.join(DRIVERS)} to ask the database by."


def main() -> None:
    """Print what there is to say; nothing where the app's database is none of PostgreSQL's."""
    if url := libpq_url(os.environ.get("DATABASE_URL", "")):
        print(said(sys.argv[1], ask(url, sys.argv[1])))
