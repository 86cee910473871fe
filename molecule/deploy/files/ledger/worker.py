"""Works in the background: writes down that a job began, and a second later that it ended."""

import os
import signal
import time

import psycopg

RELEASE = os.environ["APP_RELEASE"]
told_to_end = False


def end(*_):
    global told_to_end
    told_to_end = True


signal.signal(signal.SIGTERM, end)
while not told_to_end:
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        begin = "INSERT INTO jobs (release) VALUES (%s) RETURNING id"
        job = connection.execute(begin, (RELEASE,)).fetchone()
        time.sleep(1)
        connection.execute("UPDATE jobs SET ended = true WHERE id = %s", job)
