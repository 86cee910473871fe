"""Restart PostgreSQL while nobody asks it anything, so that no request is lost.

Requests wait in the queue of the socket that supervisord holds, as long as nobody takes them. So
gunicorn's masters are halted, and their workers told to end once they have answered what they are
at: no master starts others in their place. Then nobody is connected, and PostgreSQL is restarted.
Whatever else of an app runs by then, or does not end in time, is a reason to leave it for another
day; and whatever becomes of this program, a child of it lets the masters go on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from . import slots, supervisord
from .commands import run
from .processes import children, family, lives, status

SERVICE = "postgresql.service"  # with it goes the cluster; schedules of apps start after it
CLUSTERS = "postgresql@*.service"
SESSIONS = """SELECT count(*) FROM pg_catalog.pg_stat_activity
    WHERE backend_type IN ('client backend', 'walsender') AND pid <> pg_catalog.pg_backend_pid()"""
PATIENCE = 10  # seconds for the requests that a slot is at: the queue holds 4,096 others
ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Busy(Exception):
    """Why now is no time to restart it, in words for the operator."""


def query(text: str) -> list[str]:
    """Ask PostgreSQL as its superuser, in the database where no app may leave anything."""
    said = run(*("runuser", "-u", "postgres", "--", "psql", "-XAtqd", "postgres", "-c", text))
    return said.splitlines()


def users() -> set[int]:
    """Return the unix users that PostgreSQL lets in, by number, apart from its own."""
    found = set()
    for name in query("SELECT rolname FROM pg_catalog.pg_roles WHERE rolcanlogin"):
        with contextlib.suppress(KeyError):
            found.add(pwd.getpwnam(name).pw_uid)
    return found - {pwd.getpwnam("postgres").pw_uid}


def group(folder: Path) -> str:
    """Return the control group of a process, by which systemd knows its unit."""
    try:
        return (folder / "cgroup").read_text()
    except OSError:  # it has ended
        return ""


def of(uids: set[int]) -> dict[int, str]:
    """Return the processes of these users by number, with their names."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        said = status(folder.name)
        if said and uids & set(map(int, said["Uid"].split())) and lives(folder.name):
            # An app's Valkey is its user's, and asks no database.
            if "/valkey@" in group(folder):
                continue
            found[int(folder.name)] = said["Name"]
    return found


@contextlib.contextmanager
def at_the_end(act: Callable[[], None]) -> Iterator[None]:
    """Act at the end of a block, even when this process is killed: a child waits for that."""
    ends, held = os.pipe()
    # What ends this one does not end the child.
    former = signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    child = os.fork()
    if not child:
        try:
            os.setsid()
            os.close(held)
            os.read(ends, 1)
            act()
        finally:
            os._exit(0)
    signal.pthread_sigmask(signal.SIG_SETMASK, former)
    os.close(ends)
    try:
        yield
    finally:
        os.close(held)
        os.waitpid(child, 0)


def halt(master: int) -> None:
    """Halt a master, and return once its workers have ended; what comes now waits."""
    os.kill(master, signal.SIGSTOP)
    while status(master).get("State", "T")[0] not in "TZ":
        time.sleep(0.01)
    workers, began, told = list(children(master)), time.monotonic(), 0
    while any(map(lives, workers)):
        passed = time.monotonic() - began
        if passed > PATIENCE:
            raise Busy(f"a request takes longer than {PATIENCE} s")
        if passed >= told:
            told += 1
            for worker in workers:
                # One that has only just begun does not heed the first.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(worker), signal.SIGTERM)
        time.sleep(0.02)


@contextlib.contextmanager
def locked(names: list[str]) -> Iterator[None]:
    """Keep others from rolling the slots of these programs."""
    with contextlib.ExitStack() as stack:
        for name in names:
            lock = stack.enter_context((slots.LOCKS / f"gunicorn-{name}.lock").open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy(f"slots of {name} are being rolled") from None
        yield


def check() -> None:
    """Say as Busy why it is never restarted here."""
    if query("SHOW listen_addresses") != [""]:
        raise Busy("it listens on the network, and who asks it from there cannot be told to wait")
    if len(run("systemctl", "list-units", "--plain", "--no-legend", CLUSTERS).splitlines()) > 1:
        raise Busy("another cluster would be restarted with it")


def see_only(pids: Iterable[int], uids: set[int]) -> None:
    """Say as Busy who else of these users is at work."""
    spared = set(pids)
    others = {pid: name for pid, name in of(uids).items() if pid not in spared}
    if others:
        names = ", ".join(f"{name} ({pid})" for pid, name in sorted(others.items()))
        raise Busy(f"{names} may be using it")


def restart(known: dict[str, str]) -> float:
    """Restart it, and return for how many seconds requests waited; or say why not, as Busy.

    ``known`` has the programs of supervisord that are gunicorns in slots, by name.
    """
    check()
    rpc, uids = supervisord.connect(), users()
    with locked(sorted(known)):
        before = of(uids)
        mine = [x for x in rpc.getAllProcessInfo() if x["pid"] in before]
        serving = [x for x in mine if x["group"] in known]
        # The first slots of all apps, then the second ones: until the last, somebody answers.
        serving.sort(key=lambda x: int(x["name"].rpartition("_")[2]))
        masters = [x["pid"] for x in serving]
        others = [f"{x['group']}:{x['name']}" for x in mine if x["group"] not in known]
        # Before anybody is disturbed for it.
        see_only((int(pid) for x in mine for pid in family(x["pid"])), uids)
        # So that it has little to write while requests wait.
        query("CHECKPOINT")
        with at_the_end(lambda: go_on(masters, others)):
            supervisord.stop(rpc, *others)
            began = time.monotonic()
            for master in masters:
                began = time.monotonic()
                halt(master)
            see_only(masters, uids)
            if (sessions := query(SESSIONS)) != ["0"]:
                raise Busy(f"sessions of others: {sessions[0]}")
            run("systemctl", "restart", SERVICE)
        return time.monotonic() - began


def go_on(masters: list[int], others: list[str]) -> None:
    """Let the masters start workers again, and supervisord the programs."""
    for master in masters:
        with contextlib.suppress(ProcessLookupError):
            os.kill(master, signal.SIGCONT)
    rpc = supervisord.connect()
    for process in others:
        supervisord.start(rpc, process)
