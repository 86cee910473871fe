"""Recipes of docs/how-to/an-app-of-your-own.md, as they are written there, with a real gunicorn."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.carafe.stack.plugins.module_utils.unix_http import UnixConnection
from conftest import ROOT

TEXT = (ROOT / "docs/how-to/an-app-of-your-own.md").read_text()
# It tells where it is, and keeps sessions in its memory, as Socket.IO's long polling does.
APP = """
import secrets, time
sessions = set()
def app(environ, start):
    time.sleep(0.02)
    path, known = environ["PATH_INFO"], environ["QUERY_STRING"].removeprefix("sid=")
    if path == "/socket.io/" and not known:
        sessions.add(text := secrets.token_hex(8))
    elif path == "/socket.io/":
        text = "known" if known in sessions else "unknown"
    else:
        text = f"{environ['SCRIPT_NAME']}|{path}"
    start("200 OK", [("Content-Length", str(len(text)))])
    return [text.encode()]
"""


def recipe(name: str) -> dict[str, Any]:
    return yaml.safe_load(
        re.search(rf"<!-- variables: {name} -->\n```yaml\n(.*?)```", TEXT, re.S)[1]
    )


def ask(socket: Path, path: str) -> tuple[int, str]:
    connection = UnixConnection(socket, 10)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


@contextmanager
def serving(folder: Path, *options: str, **environment: str) -> Iterator[Path]:
    """Run gunicorn, until it answers; yield its socket."""
    (folder / "wsgi.py").write_text(APP)
    socket = folder / "app.sock"
    words = [sys.executable, "-m", "gunicorn", "--bind", f"unix:{socket}", "--no-control-socket"]
    with subprocess.Popen(
        [*words, *options, "wsgi:app"], cwd=folder, env={**os.environ, **environment}
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while not socket.exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            yield socket
        finally:
            process.terminate()


@pytest.mark.parametrize(
    ("path", "answer"),
    [("/shop/", (200, "/shop|/")), ("/shop/a/b", (200, "/shop|/a/b")), ("/shop", (200, "/shop|"))],
)
def test_an_app_below_a_path_is_told_so(tmp_path: Path, path: str, answer: tuple[int, str]) -> None:
    written = recipe("below a path")
    with serving(tmp_path, **written["app_environment"]) as socket:
        assert ask(socket, path) == answer
        assert ask(socket, written["app_health_path"]) == (200, "/shop|/health")


def polls(socket: Path) -> list[str]:
    """Begin sessions, and go on with each by another connection."""
    with ThreadPoolExecutor(8) as visitors:
        begun = list(visitors.map(lambda _: ask(socket, "/socket.io/")[1], range(40)))
        paths = [f"/socket.io/?sid={sid}" for sid in begun]
        return [text for _, text in visitors.map(lambda path: ask(socket, path), paths)]


def test_socket_io_meets_its_session_with_one_process_and_not_with_several(tmp_path: Path) -> None:
    written = recipe("socket.io")
    assert written["gunicorn_slots"] == 1
    count, threads = written["gunicorn_workers"], written["gunicorn_threads"]
    options = ["--threads", str(threads), "--workers"]
    with serving(tmp_path, *options, str(count)) as socket:
        assert polls(socket) == ["known"] * 40
    with serving(tmp_path, "--workers", "4") as socket:
        assert "unknown" in polls(socket)
