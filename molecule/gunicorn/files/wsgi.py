"""Tells what answers, and breaks on demand."""

import json
import os
import pathlib
import time

RELEASE = pathlib.Path(__file__).resolve().parent.name

# A test's wish for a start that takes long.
if (delay := pathlib.Path(f"/srv/front/delay-{RELEASE}")).exists():
    time.sleep(float(delay.read_text()))


def app(environ, start_response):
    """Answer with JSON; /lazy imports a module only then, /health fails while a file exists."""
    path = environ["PATH_INFO"]
    answer = {
        "release": RELEASE,
        "slot": os.getppid(),
        "greeting": os.environ.get("GREETING"),
        "scheme": environ["wsgi.url_scheme"],
    }
    if path == "/lazy":
        import lazy

        answer["lazy"] = lazy.RELEASE
    sick = path == "/health" and pathlib.Path(f"/srv/front/sick-{RELEASE}").exists()
    environ["wsgi.input"].read()
    start_response("500 Sick" if sick else "200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]
