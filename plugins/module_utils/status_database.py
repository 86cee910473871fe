"""What is to be seen of PostgreSQL: whether it runs, its connections, transactions and archive."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from . import found
from .levels import GREEN, HOUR, MINUTE, RED, YELLOW, Row, above, span
from .levels import worst as worst_of
from .postgresql_server import Server, Session, psycopg2, session_now
from .words import one_line

if psycopg2 is not None:
    import psycopg2.extensions
    import psycopg2.extras

# Those of the superuser's come on top of what apps can have.
CONNECTIONS = """
SELECT current_setting('max_connections')::int
         - current_setting('superuser_reserved_connections')::int,
       count(*) FILTER (WHERE usename IS DISTINCT FROM 'postgres')
FROM pg_stat_activity WHERE backend_type = 'client backend'
"""
LONGEST = """
SELECT pid, datname, usename, state, extract(epoch FROM clock_timestamp() - xact_start)::float8
FROM pg_stat_activity
WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid() AND backend_type = 'client backend'
ORDER BY xact_start LIMIT 1
"""
ARCHIVE = """
SELECT current_setting('archive_mode'),
  (SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'),
  (SELECT extract(epoch FROM clock_timestamp() - min(modification))::float8
    FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'),
  (SELECT sum(size)::float8 FROM pg_ls_waldir()),
  last_failed_wal, coalesce(last_failed_time > last_archived_time, last_failed_time IS NOT NULL)
FROM pg_stat_archiver
"""
PSQL = "runuser -u postgres -- psql -X"
CHECKSUMS = """
SELECT current_setting('data_checksums'), coalesce(sum(checksum_failures), 0)::int,
  string_agg(datname, ', ') FILTER (WHERE checksum_failures > 0)
FROM pg_stat_database
"""
ASKED = ("connections", "longest transaction", "archive", "checksums", "settings", "restart")
# Percent of the connections that apps can have.
MANY, ALMOST_ALL = 80, 95
# How long a transaction keeps rows that nobody needs, and locks that others wait for.
LONG, FAR_TOO_LONG = HOUR, 12 * HOUR
# How long what was written waits for the archive. A segment is closed each minute.
LATE, TOO_LATE = 3 * MINUTE, 10 * MINUTE


def clusters() -> list[dict[str, Any]]:
    """Return the clusters that Carafe has configured, with the databases of each app."""
    there = list(found.clusters())
    names = [(x["version"], x["name"]) for x in there]
    return [x | {"claims": claims} for x in there if (claims := found.owners(x, names))]


def is_asked(what: str) -> bool:
    """Tell whether a row is of what only PostgreSQL itself can say."""
    return what.partition(" of ")[0] in ASKED


def keeps_data(clusters: list[dict[str, Any]]) -> bool:
    return any(claim["databases"] for x in clusters for claim in x["claims"].values())


def rows(cluster: dict[str, Any], several: bool = False) -> Iterator[Row]:
    """Yield what there is to say of one cluster, with its name where there are ``several``."""
    name = f" of {cluster['version']}/{cluster['name']}"
    with patient():
        for row in rows_of(cluster):
            yield replace(row, what=row.what + name) if several and is_asked(row.what) else row


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """Wait for PostgreSQL in Python, where a signal ends it; libpq waits for ever."""
    if psycopg2 is None:
        yield
        return
    psycopg2.extensions.set_wait_callback(psycopg2.extras.wait_select)
    try:
        yield
    finally:
        psycopg2.extensions.set_wait_callback(None)


def rows_of(cluster: dict[str, Any]) -> Iterator[Row]:
    server = Server(cluster["version"], cluster["name"])
    what = f"postgresql {server.version}/{server.name}"
    if cluster.get("patroni"):
        server.unit = "patroni.service"
    status = f"systemctl status {server.unit}"
    if psycopg2 is None:
        yield Row(
            what, YELLOW, "the server's Python has no psycopg2", "apt install python3-psycopg2"
        )
        return
    session = session_now(server)
    if session is None:
        yield Row(what, RED, "it lets nobody in", status)
        return
    try:
        yield Row(what, GREEN, "it answers")
        yield from connections(session)
        yield from longest(session, cluster["claims"])
        yield from archive(session)
        yield from checksums(session)
        yield from waiting(server, session)
    finally:
        session.connection.close()


def connections(session: Session) -> Iterator[Row]:
    ((most, there),) = session.rows(CONNECTIONS)
    level = above(100 * there / most, MANY, ALMOST_ALL)
    then = f"{PSQL} -c 'TABLE pg_stat_activity'"
    yield Row("connections", level, f"{there} of {most}", "" if level == GREEN else then)


def longest(session: Session, claims: dict[str, Any]) -> Iterator[Row]:
    """Yield the transaction that is open for the longest time, where that is long."""
    for pid, database, user, state, seconds in session.rows(LONGEST):
        level = above(seconds, LONG, FAR_TOO_LONG)
        says = one_line(f"open for {span(seconds)}, by {user} in {database}, {state}")
        owner = next((x for x, y in claims.items() if database in y["databases"]), "")
        end = f"{PSQL} -c 'SELECT pg_terminate_backend({pid})'"
        if level != GREEN:
            yield Row("longest transaction", level, says, end, owner)


def archive(session: Session) -> Iterator[Row]:
    """Yield how long what was written waits for the archive, where there is one."""
    ((mode, count, seconds, size, wal, failing),) = session.rows(ARCHIVE)
    if mode == "off":
        return
    level = above(seconds or 0, LATE, TOO_LATE)
    says = f"{count} segments wait{(seconds and f' for {span(seconds)}') or ''}"
    says += f"; pg_wal has {(size or 0) / 2**20:.0f} MiB"
    if failing:
        level = worst_of((level, YELLOW))
        says += one_line(f"; the last try failed, of {wal}")
    numbers = {"segments": count, "seconds": seconds or 0, "bytes": size or 0}
    yield Row(
        "archive",
        level,
        says,
        "" if level == GREEN else "journalctl -n 20 -u 'postgresql@*'",
        numbers={f"carafe_archive_waiting_{name}": value for name, value in numbers.items()},
    )


def checksums(session: Session) -> Iterator[Row]:
    """Yield whether what a disk changes by itself is seen, and whether it was."""
    ((mode, count, where),) = session.rows(CHECKSUMS)
    if mode != "on":
        yield Row("checksums", GREEN, "off; docs/how-to/backups.md has how they are turned on")
    elif count:
        where = where or "what all databases share"  # pg_authid for instance
        says = one_line(f"{count} pages were found that the disk has changed, in {where}")
        yield Row("checksums", RED, says, "ansible-playbook carafe.stack.restore")
    else:
        yield Row("checksums", GREEN, "on; no page was found that the disk has changed")


def waiting(server: Server, session: Session) -> Iterator[Row]:
    """Yield the settings that wait for a restart, and what is wrong in the files."""
    wrong, _, pending = server.state(session)
    if wrong:
        yield Row("settings", YELLOW, one_line("; ".join(wrong)), f"systemctl status {server.unit}")
    if pending:
        says = f"{one_line(', '.join(sorted(pending)))} waits for a restart"
        restart = "ansible-playbook carafe.stack.site --tags postgres"
        yield Row("restart", YELLOW, says, restart)
