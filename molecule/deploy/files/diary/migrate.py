"""Migrates the file in app_shared, and then the database, by what is on the command line."""

import os
import sqlite3
import sys

import psycopg

with sqlite3.connect("data/diary.db") as file:
    file.execute("CREATE TABLE IF NOT EXISTS set_up (day text)")
with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
    for statement in sys.argv[1:]:
        connection.execute(statement)
