"""Come in by URLs: reads a list of [driver, URL], as JSON, and prints where each has led.

That is the role and the database, or why there are none.
"""

import asyncio
import json
import sys

import asyncpg
import psycopg
import psycopg2
import sqlalchemy
from sqlalchemy.ext.asyncio import create_async_engine

WHERE = "SELECT session_user, current_database()"


def with_psycopg2(url):
    cursor = psycopg2.connect(url).cursor()
    cursor.execute(WHERE)
    return cursor.fetchone()


def with_psycopg(url):
    return psycopg.connect(url).execute(WHERE).fetchone()


def with_asyncpg(url):
    async def run():
        connection = await asyncpg.connect(url)
        return await connection.fetchrow(WHERE)

    return asyncio.run(run())


def with_sqlalchemy(url):
    with sqlalchemy.create_engine(url).connect() as connection:
        return connection.execute(sqlalchemy.text(WHERE)).one()


def with_sqlalchemy_asyncpg(url):
    async def run():
        async with create_async_engine(url).connect() as connection:
            return (await connection.execute(sqlalchemy.text(WHERE))).one()

    return asyncio.run(run())


def led(driver, url):
    try:
        return [*globals()[f"with_{driver}"](url)]
    except Exception as error:  # whatever a driver raises
        return f"{type(error).__name__}: {error}"


json.dump([led(*case) for case in json.load(sys.stdin)], sys.stdout)
