"""Write to a database without a pause, and note what it has acknowledged.

    writer.py PASSWORD LOG ADDRESS…

Four clients each insert a row after another, where the one of all addresses is that takes it. LOG
gets a line for each row that was acknowledged, and for each error. Others ask each server whether
it takes writes, and note where two do at one time.
"""

import sys
import threading
import time
from pathlib import Path

import psycopg2

PASSWORD, LOG, *ADDRESSES = sys.argv[1:]
WORDS = (
    # A single server has a certificate of nobody's.
    "dbname=shop user=shop sslmode=require connect_timeout=3 keepalives_idle=5"
    " keepalives_interval=2 keepalives_count=3 tcp_user_timeout=8000"
)
PAUSE = 0.025  # seconds, for 40 rows a second and client
LOOK = 0.2
lock = threading.Lock()
log = Path(LOG).open("a", buffering=1)  # noqa: SIM115 # as long as it runs


def note(kind: str, text: str) -> None:
    with lock:
        log.write(f"{time.time():.3f} {kind} {text}\n")


def connect(addresses: list[str], more: str = ""):
    session = psycopg2.connect(f"{WORDS} {more}", host=",".join(addresses), password=PASSWORD)
    session.autocommit = True
    return session


def write(client: int) -> None:
    session, number, run = None, 0, int(time.time())
    while True:
        number += 1
        name = f"{run}-{client}-{number}"
        try:
            session = session or connect(ADDRESSES, "target_session_attrs=read-write")
            with session.cursor() as cursor:
                cursor.execute("INSERT INTO rows VALUES (%s)", (name,))
            note("acknowledged", name)
        except psycopg2.Error as error:
            # It may have been written, and nobody was told so.
            note("error", " ".join(str(error).split()))
            if session:
                session.close()
            session = None
        time.sleep(PAUSE)


def leads(sessions: dict, address: str) -> bool:
    """Tell whether a server takes writes at this moment."""
    try:
        if address not in sessions:
            sessions[address] = connect([address])
        with sessions[address].cursor() as cursor:
            cursor.execute("SELECT pg_is_in_recovery()")
            return cursor.fetchone() == (False,)
    except psycopg2.Error:
        session = sessions.pop(address, None)
        if session:
            session.close()
        return False


def watch(address: str) -> None:
    """Compare a server with each other one: what it says before and after that holds in between."""
    sessions: dict = {}
    while True:
        if leads(sessions, address):
            for other in ADDRESSES:
                if other != address and leads(sessions, other) and leads(sessions, address):
                    note("two", f"{address} {other}")
        time.sleep(LOOK)


TABLE = "CREATE SCHEMA IF NOT EXISTS shop; CREATE TABLE IF NOT EXISTS rows (name text PRIMARY KEY)"


def make() -> None:
    """Make the table, as soon as there is somebody who takes it."""
    while True:
        try:
            with connect(ADDRESSES, "target_session_attrs=read-write") as session:
                session.cursor().execute(TABLE)
            return
        except psycopg2.Error:
            time.sleep(LOOK)


make()
for client in range(4):
    threading.Thread(target=write, args=(client,)).start()
for address in ADDRESSES:
    threading.Thread(target=watch, args=(address,)).start()
