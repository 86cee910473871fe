"""Writes each POST as a row, and says in each answer which release it is."""

import os
import time

import psycopg
from flask import Flask, request

app = Flask("ledger")
app.config.from_prefixed_env()
RELEASE = os.environ["APP_RELEASE"]


@app.after_request
def tell_release(response):
    response.headers["X-Release"] = RELEASE
    return response


@app.errorhandler(psycopg.OperationalError)
def no_database(error):
    return "come back soon\n", 503, {"Retry-After": "5"}


@app.get("/")
def home():
    return "a ledger\n"


@app.get("/slow")
def slow():
    time.sleep(1.5)
    return "at last\n"


@app.get("/query/<int:seconds>")
def query(seconds):
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        connection.execute("SELECT pg_sleep(%s)", (seconds,))
    return "at last\n"


@app.post("/rows")
def write():
    row = request.get_json()
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        connection.execute("INSERT INTO rows (id) VALUES (%s)", (row["id"],))
    return "", 201
