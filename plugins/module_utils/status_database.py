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
# How far each standby is, what its slot keeps for it, and a copy that is under way.
STANDBYS = """
SELECT substr(s.slot_name, 9), coalesce(r.state, ''), s.wal_status IS NOT DISTINCT FROM 'lost',
  coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), coalesce(r.flush_lsn, s.restart_lsn)), 0)::float8,
  coalesce(extract(epoch FROM r.flush_lag), 0)::float8,
  (SELECT format('%s of %s MiB', backup_streamed / 1048576, backup_total / 1048576)
    FROM pg_stat_progress_basebackup LIMIT 1)
FROM pg_replication_slots s LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid
WHERE s.slot_type = 'physical' AND starts_with(s.slot_name, 'standby_') ORDER BY 1
"""
# Of a primary that writes nothing, a standby that has all is not late.
FOLLOWING = """
SELECT coalesce((SELECT status FROM pg_stat_wal_receiver), ''),
  coalesce(pg_wal_lsn_diff(
    greatest((SELECT latest_end_lsn FROM pg_stat_wal_receiver), pg_last_wal_receive_lsn()),
    pg_last_wal_replay_lsn()), 0)::float8,
  coalesce(extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()), 0)::float8,
  coalesce(substring(current_setting('primary_conninfo') FROM 'host=([^ ]+)'), '')
"""
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
# How far a standby is behind, which is what is lost when it takes the place of a dead primary.
BEHIND, FAR_BEHIND = 30, 5 * MINUTE
BEHIND_BYTES, FAR_BEHIND_BYTES = 64 * 2**20, 1024 * 2**20
# How long what was written waits for the archive. A segment is closed each minute.
LATE, TOO_LATE = 3 * MINUTE, 10 * MINUTE


def clusters() -> list[dict[str, Any]]:
    """Return the clusters that Carafe has configured, with the databases of each app."""
    there = list(found.clusters())
    names = [(x["version"], x["name"]) for x in there]
    return [x | {"claims": claims} for x in there if (claims := found.owners(x, names))]


def is_asked(what: str) -> bool:
    """Tell whether a row is of what only PostgreSQL itself can say."""
    return what.partition(" of ")[0] in ASKED or what.startswith("standby ")


def keeps_data(clusters: list[dict[str, Any]]) -> bool:
    """Tell whether there is something to back up; what a standby has is its primary's."""
    mine = [x for x in clusters if not x.get("is_standby")]
    return any(claim["databases"] for x in mine for claim in x["claims"].values())


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
    if cluster.get("is_fenced"):
        says = "it was the primary, and is kept from starting since another one has taken its place"
        yield Row(what, YELLOW, says, "ansible-playbook carafe.stack.site")
        return
    session = session_now(server)
    if session is None:
        yield Row(what, RED, "it lets nobody in", status)
        return
    try:
        ((follows,),) = session.rows("SELECT pg_is_in_recovery()")
        yield from following(session, what) if follows else answering(session, what)
        yield from connections(session)
        yield from longest(session, cluster["claims"])
        if not follows:
            yield from archive(session)
        yield from checksums(session)
        yield from waiting(server, session)
    finally:
        session.connection.close()


def answering(session: Session, what: str) -> Iterator[Row]:
    """Yield that a primary answers, and how far each of its standbys is."""
    found = session.rows(STANDBYS)
    yield Row(what, GREEN, "it answers, as the primary" if found else "it answers")
    for name, state, is_lost, size, seconds, copied in found:
        yield standby(name, state, is_lost, size, seconds, copied)


def standby(
    name: str, state: str, is_lost: bool, size: float, seconds: float, copied: str | None
) -> Row:
    what, behind = f"standby {name}", f"{size / 2**20:.1f} MiB and {seconds:.1f} s behind"
    numbers = {"carafe_standby_lag_bytes": size, "carafe_standby_lag_seconds": seconds}
    again = "ansible-playbook carafe.stack.site"
    if is_lost:
        return Row(
            what, RED, "it is behind by more than is kept for it: it needs a new copy", again
        )
    if copied and state != "streaming":
        return Row(what, YELLOW, one_line(f"it is being copied, {copied}"))
    if state != "streaming":
        says = f"it does not stream; {size / 2**20:.0f} MiB are kept for it"
        return Row(what, RED, says, again, numbers=numbers, labels={"standby": name})
    level = worst_of(
        (above(seconds, BEHIND, FAR_BEHIND), above(size, BEHIND_BYTES, FAR_BEHIND_BYTES))
    )
    then = "" if level == GREEN else f"{PSQL} -c 'TABLE pg_stat_replication'"
    return Row(what, level, f"it streams, {behind}", then, "", numbers, {"standby": name})


def following(session: Session, what: str) -> Iterator[Row]:
    """Yield how far a standby is behind its primary."""
    ((state, size, seconds, primary),) = session.rows(FOLLOWING)
    if state != "streaming":
        says = f"it follows {primary}, and gets nothing from it"
        yield Row(what, RED, one_line(says), "ansible-playbook carafe.stack.status")
        return
    seconds = seconds if size else 0
    level = worst_of(
        (above(seconds, BEHIND, FAR_BEHIND), above(size, BEHIND_BYTES, FAR_BEHIND_BYTES))
    )
    says = f"it follows {primary}, {size / 2**20:.1f} MiB and {seconds:.1f} s behind"
    then = "" if level == GREEN else f"{PSQL} -c 'TABLE pg_stat_wal_receiver'"
    yield Row(what, level, one_line(says), then)


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
