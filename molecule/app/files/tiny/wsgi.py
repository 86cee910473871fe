"""The smallest app that shows what the role does: it tells which release answers."""

import os

import flask

app = flask.Flask(__name__)
app.config.from_prefixed_env()


@app.get("/")
def index():
    return {"release": os.environ["APP_RELEASE"], "setting": app.config.get("GREETING")}
