"""Makes its table when it is loaded, and needs what its set-up has made."""

import os
import sqlite3
from pathlib import Path

import psycopg
from flask import Flask

app = Flask("diary")
with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
    connection.execute("CREATE TABLE IF NOT EXISTS pages (day date)")
with sqlite3.connect("data/diary.db") as file:
    SET_UP = file.execute("SELECT count(*) FROM set_up").fetchone()[0]


@app.get("/")
def home():
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        pages = connection.execute("SELECT count(*) FROM pages").fetchone()[0]
    key = {"key": Path(os.environ["KEY_FILE"]).read_text()} if "KEY_FILE" in os.environ else {}
    return {"pages": pages, "set up": SET_UP, **key}
