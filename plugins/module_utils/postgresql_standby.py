"""A PostgreSQL that follows another one: its copy of the data, and how it takes the other's place.

What may be replaced is decided by what the data themselves say: whose they are, and how far they
go. Nothing that the primary does not have is ever removed; it is kept aside.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import files, found
from .commands import Failure, ask, run
from .module import entries, options, without_default
from .postgresql_server import Server, Session, one_line, session_now, sql

PREFIX = "standby_"
# What both modules take, as roles/postgres/meta/argument_specs.yml has it.
ARGUMENTS = {
    **options(primary="", primary_port=5432, standby_name="", replication_user="replicator"),
    **options(replication_trusted=""),
    **without_default("replication_password", no_log=True),
    "standbys": entries({"name": {"type": "str", "required": True}, "address": {"type": "str"}}),
}
# A network that is cut is noticed within seconds, on both sides.
LIVELY = "connect_timeout=3 keepalives_idle=5 keepalives_interval=2 keepalives_count=3"
STREAMS = 60  # seconds for a standby to reach its primary
PROMOTES = 600  # seconds for what was received to be replayed
# What a standby has at least as much of as its primary, by pg_controldata's words, with what
# PostgreSQL has by itself.
LEAST = {
    "max_connections": ("max_connections setting", 100),
    "max_worker_processes": ("max_worker_processes setting", 8),
    "max_wal_senders": ("max_wal_senders setting", 10),
    "max_prepared_transactions": ("max_prepared_xacts setting", 0),
    "max_locks_per_transaction": ("max_locks_per_xact setting", 64),
}
SLOTS = """
SELECT slot_name, active_pid, coalesce(wal_status, 'lost') = 'lost' FROM pg_replication_slots
WHERE slot_type = 'physical' AND starts_with(slot_name, %s) ORDER BY 1
"""
RECEIVED = """
SELECT pg_is_in_recovery(),
  coalesce(greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::text, ''),
  coalesce(pg_last_wal_replay_lsn()::text, ''),
  coalesce(extract(epoch FROM pg_last_xact_replay_timestamp())::float8, 0),
  EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')
"""
# What pg_controldata says of one that has ended by itself, and where it has positions.
ENDED = ("shut down", "shut down in recovery")
KNOWN_POSITIONS = ("Latest checkpoint location", "Minimum recovery ending location")


def slot(name: str) -> str:
    """Return the name of a server's slot: it has small letters, digits and _ only."""
    return PREFIX + re.sub(r"[^a-z0-9_]", "_", name.lower())


def number(position: str) -> int:
    """Return a position in the log as a number of bytes."""
    high, _, low = position.partition("/")
    return (int(high, 16) << 32) + int(low, 16) if low else 0


# --- how one comes to the other --------------------------------------------------------------


def quoted(value: object) -> str:
    """Return a value as libpq has it in a list of words."""
    text = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return text if re.fullmatch(r"[\w./:-]+", text) else f"'{text}'"


def password_file(server: Server) -> Path:
    return server.config / "replication.pgpass"


def password_text(user: str, password: str) -> str:
    """Return the file from which libpq takes the password, whichever server it is for."""
    escaped = [re.sub(r"([\\:])", r"\\\1", x) for x in (user, password)]
    return ":".join(["*", "*", "*", *escaped]) + "\n"


def conninfo(server: Server, given: Mapping[str, Any], address: str = "") -> str:
    """Return how the primary is reached, or another server of those that follow each other."""
    words = {
        "host": address or given["primary"],
        "port": given["primary_port"],
        "user": given["replication_user"],
        "passfile": password_file(server),
        "application_name": slot(given["standby_name"]),
    }
    if given["replication_trusted"]:
        words |= {"sslmode": "verify-full", "sslrootcert": given["replication_trusted"]}
    else:
        # Without a CA the password is given to nobody who does not know it.
        words |= {"sslmode": "require", "channel_binding": "require"}
    return " ".join([*(f"{name}={quoted(value)}" for name, value in words.items()), LIVELY])


def settings(server: Server, given: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings by which a standby follows; none of a server that is the primary."""
    if not given["primary"]:
        return {}
    return {
        "primary_conninfo": conninfo(server, given),
        "primary_slot_name": slot(given["standby_name"]),
    }


@dataclass(frozen=True)
class Place:
    """Whose data these are, and how far they go: to the last record, and to where it ends."""

    system: str
    timeline: int
    last: int
    end: int


@dataclass(frozen=True)
class Primary:
    """What a primary says of itself, and where its timelines begin."""

    system: str
    timeline: int
    position: int
    ends: Mapping[int, int]  # where each timeline before this one was left
    kept: int | None  # from where on it keeps the log for us, None where it does not

    def has(self, place: Place) -> bool:
        """Tell whether all that a place has is the primary's past, or its present."""
        if place.timeline == self.timeline:
            return place.last <= self.position
        end = self.ends.get(place.timeline)
        return end is not None and place.last < end

    def keeps(self, place: Place, segment: int) -> bool:
        """Tell whether the primary has kept what comes next; it keeps whole segments."""
        return self.kept is not None and self.kept // segment <= place.end // segment


class Stranger(Failure):
    """A server that answers, and does not know us."""


def ask_server(server: Server, connection: str, *commands: str) -> list[list[list[str]]]:
    """Say something to a server as its standby; return the rows of each answer."""
    words = ["-XAtq", "-F", "\t", f"--dbname={connection} replication=true"]
    for command in commands:
        words += ["-c", command, "-c", r"\echo ---"]
    environment = {"LC_ALL": "C.UTF-8", "PATH": os.defpath, "LC_MESSAGES": "C"}
    program = server.program.parent / "psql"
    try:
        done = subprocess.run(
            [program, *words],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Failure("it does not answer within 60 s") from None
    if done.returncode:
        said = one_line(done.stderr)
        # It has answered, and says who it does not let in.
        if re.search(r"FATAL: .*(pg_hba\.conf|password authentication|does not exist)", said):
            raise Stranger(said)
        raise Failure(said)
    blocks = done.stdout.split("---\n")[:-1]
    return [[line.split("\t") for line in block.splitlines()] for block in blocks]


def ask_primary(server: Server, given: Mapping[str, Any]) -> Primary:
    """Return what the primary says of itself, and what it keeps for us."""
    connection, history = conninfo(server, given), ""
    question = f"READ_REPLICATION_SLOT {slot(given['standby_name'])}"
    try:
        (identity,), kept = ask_server(server, connection, "IDENTIFY_SYSTEM", question)
        timeline = int(identity[1])
        if timeline > 1:
            (lines,) = ask_server(server, connection, f"TIMELINE_HISTORY {timeline}")
            history = "\n".join("\t".join(line) for line in lines)
    except Failure as failure:
        raise Failure(
            f"The primary {given['primary']} does not let this server follow it: {failure} Is it"
            " in the same run, and does it have this server in postgres_standbys?"
        ) from None
    from_where = number(next((row[1] for row in kept if len(row) > 1), "")) or None
    ends = timeline_ends(history)
    return Primary(identity[0], timeline, number(identity[2]), ends, from_where)


def timeline_ends(history: str) -> dict[int, int]:
    """Return where timelines were left, from the text of the file that says so."""
    found = re.findall(r"(?m)(?:^|\t)(\d+)\t([0-9A-F]+/[0-9A-F]+)\t", history)
    return {int(timeline): number(position) for timeline, position in found}


def guarded(server: Server, given: Mapping[str, Any], standbys: Iterable[Mapping]) -> str:
    """Return the file in which a primary finds, before it starts, whom to ask for another one."""
    known = {
        "data": str(server.data),
        "standbys": [
            {"name": x["name"], "connection": conninfo(server, given, x["address"])}
            for x in standbys
        ],
    }
    return json.dumps(known, indent=2) + "\n"


# --- what lies on the disk -------------------------------------------------------------------


def control(server: Server) -> dict[str, str]:
    """Return what pg_controldata says of the data, nothing where there are none."""
    if not (server.data / "global/pg_control").exists():
        return {}
    said = ask(server.program.parent / "pg_controldata", server.data).stdout
    pairs = (line.split(":", 1) for line in said.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def place(server: Server, known: Mapping[str, str]) -> Place:
    """Return how far the data of a server go that does not run."""
    timeline = int(known["Latest checkpoint's TimeLineID"])
    start = known["Latest checkpoint's REDO location"]
    # Of a standby, what came after its last checkpoint may be of the next timeline already.
    recovered = int(known["Min recovery ending loc's timeline"])
    if recovered > timeline:
        timeline, start = recovered, known["Minimum recovery ending location"]
    words = [f"--path={server.data}/pg_wal", f"--start={start}", f"--timeline={timeline}"]
    said = ask(server.program.parent / "pg_waldump", "--quiet", *words).stderr
    last, end = last_record(said, int(known["Bytes per WAL segment"]))
    if not end and (recovered or known["Database cluster state"] in ENDED):
        last = end = max(number(known[x]) for x in KNOWN_POSITIONS)
    # Of a primary that was killed nobody else can say how far it went.
    last = last or (1 << 64)
    return Place(known["Database system identifier"], timeline, last, end)


def last_record(said: str, segment: int) -> tuple[int, int]:
    """Return where the last record of a log begins and ends, by what pg_waldump ends with."""
    if found := re.findall(r"error in WAL record at ([0-9A-F]+/[0-9A-F]+): (.*)", said):
        last, why = found[-1]
        after = re.findall(r"\b([0-9A-F]+/[0-9A-F]+)\b", why)
        return number(last), number(after[-1]) if after else number(last)
    # It ends with a segment.
    if gone := re.findall(r'"[0-9A-F]{8}([0-9A-F]{8})([0-9A-F]{8})"', said):
        high, low = (int(x, 16) for x in gone[-1])
        end = (high << 32) + low * segment
        return end - 1, end
    return 0, 0


def least(server: Server) -> dict[str, int]:
    """Return the settings of which a standby needs more than PostgreSQL has by itself."""
    known = control(server)
    wanted = {name: int(known.get(words) or 0) for name, (words, _) in LEAST.items()}
    return {name: value for name, value in wanted.items() if value > LEAST[name][1]}


def raised(values: Mapping[str, str], least: Mapping[str, int]) -> dict[str, str]:
    """Return settings with which a standby starts: with no fewer of some than its primary."""
    found = dict(values)
    for name, value in least.items():
        stated = found.get(name, "0")
        if stated.isdecimal() and int(stated) < value:
            found[name] = str(value)
    return found


def is_standby(server: Server) -> bool:
    return (server.data / "standby.signal").exists()


def copying(server: Server) -> Path:
    """Return what lies beside data that are not whole yet."""
    return server.data.with_name(f"{server.data.name}.copying")


def kept_aside(server: Server) -> list[Path]:
    """Return what was kept aside of data that another server's have taken the place of."""
    return sorted(server.data.parent.glob(f"{server.data.name}.before-*"))


def is_fenced(server: Server) -> bool:
    """Tell whether nothing starts this server, no reboot either."""
    return bool(server.look().get("is_fenced"))


def runs(server: Server) -> bool:
    return bool(server.look().get("runs"))


def stop(server: Server) -> None:
    """Stop a server cleanly, by which its standbys get all that it has written."""
    done = ask("systemctl", "stop", server.unit)
    if done.returncode or runs(server):
        raise Failure(f"{server.unit} does not stop: {one_line(done.stderr)} {server.journal()}")


# --- a copy of the primary -------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What becomes of the data that are there."""

    act: str  # nothing, follow, replace, aside
    why: str = ""


def plan(
    there: Place | None, standby: bool, databases: bool, primary: Primary, segment: int
) -> Plan:
    """Decide what becomes of the data on a server that is to be a standby.

    ``there`` is None where there are none. ``databases`` tells whether somebody has made one.
    """
    if there is None:
        return Plan("replace")
    if there.system != primary.system:
        return (
            Plan("stranger", "these are no copy of the primary's") if databases else Plan("replace")
        )
    if not primary.has(there):
        return Plan("aside", "they have what the primary does not have")
    if not primary.keeps(there, segment):
        return Plan("replace", "the primary has no longer kept what is missing here")
    return Plan("nothing" if standby else "follow")


def copied(server: Server, given: Mapping[str, Any], check: bool) -> list[str]:
    """Have the data of the primary on a standby; return what that changed."""
    whole = not copying(server).exists()
    if is_standby(server) and whole and streams(server):
        return release(server, check)
    sentence = f"copy the data of {given['primary']}"
    if check and not password_file(server).exists():
        # A dry run of a server that is to be made: no primary knows it yet.
        return [sentence]
    databases = whole and found.has_databases(server.data)
    if databases and runs(server) and not is_standby(server) and not given["replace"]:
        raise Failure(refused(server, "runs as a primary of its own"))
    primary = ask_primary(server, given)
    if runs(server) and not check:
        stop(server)
    known = control(server) if whole else {}
    there = place(server, known) if known else None
    segment = int(known.get("Bytes per WAL segment") or 1)
    what = plan(there, is_standby(server), databases, primary, segment)
    if what.act == "stranger":
        if not given["replace"]:
            raise Failure(refused(server, "has databases of its own"))
        what = Plan("aside", what.why)
    changes = release(server, check)
    if what.act == "aside":
        changes.append(aside(server, what.why, check))
    if what.act in ("aside", "replace"):
        changes.append(
            f"{sentence}: {what.why}" if what.act == "replace" and what.why else sentence
        )
        if not check:
            copy(server, given)
    elif what.act == "follow":
        changes.append(f"follow {given['primary']}")
        if not check:
            signal(server)
    return changes


def aside(server: Server, why: str, check: bool) -> str:
    """Keep data that somebody may want, under another name."""
    moment = time.strftime("%Y%m%dt%H%M%S", time.gmtime())
    kept = server.data.with_name(f"{server.data.name}.before-{moment}")
    if not check:
        server.data.rename(kept)
    return f"keep {server.data} aside as {kept}: {why}"


def refused(server: Server, what: str) -> str:
    return (
        f"{server.version}/{server.name} on this server {what}, and is to be a standby, which would"
        " take their place. Nothing was touched. If it is the former primary of this app:"
        " ansible-playbook carafe.stack.promote. If its data may be kept aside, in a folder beside"
        " it: add -e stack_convert=true"
    )


def release(server: Server, check: bool) -> list[str]:
    """Let systemd start again what was fenced, now that it follows."""
    if not is_fenced(server):
        return []
    if not check:
        run("systemctl", "unmask", server.unit)
    return [f"let {server.unit} start again"]


def signal(server: Server) -> None:
    files.write(server.data / "standby.signal", "", 0o600, "postgres", "postgres")


def copy(server: Server, given: Mapping[str, Any]) -> None:
    """Copy the data of the primary. What is cut short is begun anew by the next run."""
    mark = copying(server)
    files.write(mark, "", 0o600, "root", "root")
    files.remove(server.data)
    words = [f"--pgdata={server.data}", f"--slot={slot(given['standby_name'])}"]
    words += ["--checkpoint=fast", "--wal-method=stream", "--no-password"]
    done = subprocess.run(
        [server.program.parent / "pg_basebackup", *words, f"--dbname={conninfo(server, given)}"],
        user="postgres",
        group="postgres",
        extra_groups=[],
        capture_output=True,
        text=True,
        cwd="/",
        env={"LC_ALL": "C.UTF-8", "PATH": os.defpath},
        check=False,
    )
    if done.returncode:
        raise Failure(
            f"The data of {given['primary']} cannot be copied: {one_line(done.stderr)} The next run"
            " of the playbook begins anew."
        )
    signal(server)
    mark.unlink()


def streams(server: Server) -> bool:
    session = session_now(server)
    return bool(session) and session.rows(RECEIVED)[0][4]


def streaming(server: Server, primary: str) -> None:
    """Wait until a standby streams, or say why it does not."""
    until = time.monotonic() + STREAMS
    while not streams(server):
        if time.monotonic() > until:
            log = Path(f"/var/log/postgresql/postgresql-{server.version}-{server.name}.log")
            said = ask("tail", "--lines=6", log).stdout
            raise Failure(
                f"This server does not follow {primary} within {STREAMS} s:"
                f" {one_line(said)} See {log}"
            )
        time.sleep(0.2)


def forget(server: Server) -> None:
    """Remove a copy that nobody wants any more."""
    # Of one that Patroni has run.
    run("systemctl", "unmask", "--quiet", server.unit)
    run("systemctl", "disable", server.unit)
    stop(server)
    files.remove(server.data)


# --- slots, on a primary ---------------------------------------------------------------------


def ensure_slots(session: Session, names: Iterable[str]) -> None:
    """Keep the log for each standby, and for no other server of this kind."""
    wanted, kept = {slot(name) for name in names}, set()
    for name, pid, is_lost in session.rows(SLOTS, PREFIX):
        if name in wanted and not is_lost:
            kept.add(name)
            continue
        if pid and not session.check:
            session.rows("SELECT pg_terminate_backend(%s, 10000)", pid)
        why = ", of which too much is gone" if name in wanted else ""
        session.change(
            f"drop the slot {name}{why}",
            "SELECT pg_drop_replication_slot({s})",
            s=sql.Literal(name),
        )
    for name in sorted(wanted - kept):
        session.change(
            f"make the slot {name}",
            "SELECT pg_create_physical_replication_slot({s}, true)",
            s=sql.Literal(name),
        )


# --- in the other's place --------------------------------------------------------------------


def fence(server: Server, check: bool) -> tuple[list[str], str]:
    """Stop a server that was the primary, for good; return its last position, '' if unknown."""
    changes = []
    if not server.is_installed():
        return [], ""
    if not is_fenced(server):
        changes.append(f"keep {server.unit} from starting, at a boot too")
    if runs(server):
        changes.append(f"stop {server.unit}")
    if check:
        return changes, ""
    # Before it is masked: a unit that is has no way to stop but a signal to all its processes, and
    # those that send the log to standbys would end before they have sent all of it.
    if runs(server):
        stop(server)
    if not is_fenced(server):
        run("systemctl", "mask", server.unit)
    known = control(server)
    is_whole = known.get("Database cluster state") in ENDED
    return changes, known["Latest checkpoint location"] if is_whole else ""


@dataclass(frozen=True)
class Standing:
    """How far a standby is."""

    in_recovery: bool
    received: str
    replayed: str
    replayed_at: float
    streams: bool


def standing(session: Session) -> Standing:
    return Standing(*session.rows(RECEIVED)[0])


def missing(former: str, now: Standing) -> str:
    """Say in words what a standby does not have of what its primary has written."""
    if former:
        count = number(former) - number(now.received)
        if count < 0:
            return "nothing is missing of what the former primary has written"
        # The record at this position is one that says that it was shut down, or is yet to come.
        return f"{count} bytes are missing of what the former primary has written"
    at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now.replayed_at))
    last = f"the last transaction that came is of {at}" if now.replayed_at else "none came yet"
    return f"how much is missing cannot be known, since the former primary says nothing; {last}"


def alive(server: Server, given: Mapping[str, Any]) -> str:
    """Return what the server that this one follows says, '' where it does not answer."""
    try:
        ((identity,),) = ask_server(server, conninfo(server, given), "IDENTIFY_SYSTEM")
    except Stranger as stranger:
        return str(stranger)
    except Failure:
        return ""
    return f"it is at {identity[2]} of timeline {identity[1]}"


def followed(session: Session) -> dict[str, str]:
    """Return the words by which a standby reaches its primary."""
    ((said,),) = session.rows("SELECT current_setting('primary_conninfo')")
    return dict(re.findall(r"(\w+)=(\S+)", said))


def promoted(server: Server, given: Mapping[str, Any], check: bool) -> tuple[list[str], str]:
    """Let a standby be the primary; return what that changed, and what is missing in words."""
    session = session_now(server)
    if session is None:
        raise Failure(
            f"{server.version}/{server.name} lets nobody in, so it cannot be promoted."
            f" {server.journal()}"
        )
    now = standing(session)
    if not now.in_recovery:
        return [], ""
    words = followed(session)
    given = {**given, "primary": words.get("host", ""), "primary_port": words.get("port", 5432)}
    said = alive(server, given) if not given["anyway"] else ""
    if said:
        raise Failure(
            f"The primary {given['primary']} still answers ({said}), and is none of the servers of"
            " this run, so it cannot be stopped. Nothing was touched. With two primaries, what is"
            " written to one of them is lost. Have it in the group standby of the inventory, so"
            " that it is stopped; or, once you have stopped it yourself for good: -e"
            " promote_unfenced=true"
        )
    words_missing = missing(given["former"], now)
    changes = [f"promote {server.version}/{server.name}: {words_missing}"]
    if check:
        return changes, words_missing
    session.check, session.changes = False, changes
    # Before it writes anything: who comes back finds all from where it was left.
    ensure_slots(session, [x["name"] for x in given["standbys"]])
    # It replays first what it has received.
    ((done,),) = session.rows("SELECT pg_promote(true, %s)", PROMOTES)
    if not done:
        raise Failure(f"It was not promoted within {PROMOTES} s. {server.journal()}")
    return changes, words_missing
