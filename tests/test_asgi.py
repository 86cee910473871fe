"""gunicorn with an app that speaks ASGI, and with one that does not speak what it should."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import migrations
from ansible_collections.carafe.stack.plugins.module_utils.unix_http import UnixConnection
from conftest import Role

APPS = """
import functools

def wsgi(environ, start_response):
    start_response("200 OK", [])
    return [b""]

async def asgi(scope, receive, send):
    pass

class Wsgi:
    def __call__(self, environ, start_response):
        return wsgi(environ, start_response)

class Asgi:
    async def __call__(self, scope, receive, send):
        pass

class Iterable:
    def __init__(self, environ, start_response):
        pass

def wrapped(scope, receive, send):
    return asgi(scope, receive, send)

@functools.wraps(asgi)
def decorated(*args):
    return asgi(*args)

async def any_async(*args):
    pass

def any_at_all(*args, **kwargs):
    pass

def create_app(config=None):
    return wsgi

def create_asgi():
    return asgi

wsgi_object, asgi_object = Wsgi(), Asgi()
partial = functools.partial(lambda first, scope, receive, send: asgi(scope, receive, send), 1)
bound = asgi_object.__call__
"""
SAYS = """
import asyncio, json, os

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            said = (await receive())["type"]
            print(said, flush=True)
            if os.environ.get("SICK"):
                await send({"type": said + ".failed", "message": "no such queue"})
                return
            await send({"type": said + ".complete"})
            if said == "lifespan.shutdown":
                return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": "heard " + message["text"]})
        print("ended with", message["code"], flush=True)
        return
    told = {name: scope[name] for name in ("client", "scheme", "server")}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(told).encode()})
"""


def write(folder: Path, app: str, interface: str, **variables: object) -> Path:
    """Write gunicorn's settings as the role does; return the folder of them."""
    known = {"gunicorn_directory": "/srv", "gunicorn_user": "x", "gunicorn_wsgi": app}
    files = Role("gunicorn").value(
        "gunicorn_files", **known, gunicorn_interface=interface, gunicorn_workers=1, **variables
    )
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def check(tmp_path: Path) -> Callable[[str, str], subprocess.CompletedProcess[str]]:
    """Load an app as the step of a release does: check("app:create()", "asgi")."""
    (tmp_path / "app.py").write_text(APPS)
    (tmp_path / "settings").mkdir()

    def run(app: str, interface: str) -> subprocess.CompletedProcess[str]:
        settings = write(tmp_path / "settings", app, interface)
        command = Role("gunicorn").value(
            "gunicorn_check_command",
            gunicorn_config=f"{settings}/gunicorn.conf.py",
            gunicorn_interface=interface,
        )
        return subprocess.run(
            ["sh", "-euc", command],
            cwd=tmp_path,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.parametrize(
    ("app", "interface"),
    [
        *((name, "wsgi") for name in ("wsgi", "wsgi_object", "Iterable", "create_app()")),
        *((name, "asgi") for name in ("asgi", "asgi_object", "wrapped", "decorated", "bound")),
        *((name, "asgi") for name in ("any_async", "create_asgi()", "partial")),
    ],
)
def test_an_app_is_refused_where_the_server_speaks_the_other_interface(
    check: Callable[[str, str], subprocess.CompletedProcess[str]], app: str, interface: str
) -> None:
    # Each loads gunicorn once, which is what takes the time.
    other = {"wsgi": "asgi", "asgi": "wsgi"}[interface]
    done = check(f"app:{app}", other)
    assert done.returncode == 1
    *_, last = done.stderr.splitlines()
    assert last == f"gunicorn_interface is {other}, and app:{app} is an app of {interface.upper()}"
    # What the release says at its end, in the words of whoever deploys.
    assert f"write app_interface: {interface} " in migrations.hint("load", done.stderr.encode())


@pytest.mark.parametrize(
    ("app", "interface"),
    [
        *(("wsgi", "wsgi"), ("create_app()", "wsgi"), ("asgi_object", "asgi")),
        # What takes everything may be anything.
        *(("any_at_all", "wsgi"), ("any_at_all", "asgi")),
    ],
)
def test_an_app_that_speaks_what_the_server_does_is_loaded(
    check: Callable[[str, str], subprocess.CompletedProcess[str]], app: str, interface: str
) -> None:
    done = check(f"app:{app}", interface)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_factory_that_is_taken_for_the_app_is_told(
    check: Callable[[str, str], subprocess.CompletedProcess[str]],
) -> None:
    done = check("app:create_app", "wsgi")
    assert done.returncode == 1
    assert "app:create_app() calls it" in done.stderr
    assert "app_wsgi" in migrations.hint("load", done.stderr.encode())


def test_an_app_that_cannot_be_imported_is_told_as_ever(
    check: Callable[[str, str], subprocess.CompletedProcess[str]],
) -> None:
    done = check("no_such_module:app", "asgi")
    assert done.returncode == 1
    assert "No module named 'no_such_module'" in done.stderr


class Server:
    """A gunicorn with the app that SAYS what it is told."""

    def __init__(self, folder: Path, **environment: str) -> None:
        (folder / "app.py").write_text(SAYS)
        write(folder, "app:app", "asgi", gunicorn_graceful_timeout=20)
        self.socket, self.log = folder / "app.sock", folder / "log"
        words = [sys.executable, "-m", "gunicorn", "--config", "gunicorn.conf.py"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*words, "--bind", f"unix:{self.socket}"],
                cwd=folder,
                env=os.environ | environment,
                stdout=log,
                stderr=log,
            )

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 20
        while text not in self.log.read_text():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def end(self) -> float:
        """End it, and return how many seconds that took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        return time.monotonic() - began


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    started = Server(tmp_path)
    started.wait_for("listening on unix")
    yield started
    if started.process.poll() is None:
        started.process.kill()
        started.process.wait()


@pytest.mark.parametrize("forwarded", ["203.0.113.7", "198.51.100.1, 203.0.113.7"])
def test_the_app_is_told_who_its_visitor_is(server: Server, forwarded: str) -> None:
    with contextlib.closing(UnixConnection(server.socket, 10)) as connection:
        headers = {"X-Forwarded-For": forwarded, "X-Forwarded-Proto": "https"}
        connection.request("GET", "/", headers=headers)
        told = json.loads(connection.getresponse().read())
    assert told == {"client": ["203.0.113.7", 0], "scheme": "https", "server": None}


def test_what_the_app_begins_with_its_server_ends_with_it(server: Server) -> None:
    server.wait_for("lifespan.startup")
    server.end()
    assert "lifespan.shutdown" in server.log.read_text()


def test_an_app_that_cannot_begin_ends_its_server_at_once(tmp_path: Path) -> None:
    server = Server(tmp_path, SICK="yes")
    assert server.process.wait(20)
    assert "no such queue" in server.log.read_text()


def frame(text: str) -> bytes:
    """Return a message of a client, which is masked, with a mask that changes nothing."""
    return bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text.encode()


def test_a_websocket_is_told_at_once_that_its_server_ends(server: Server) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(server.socket))
        key = base64.b64encode(b"0123456789abcdef").decode()
        client.sendall(
            "GET /live HTTP/1.1\r\nHost: shop\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        assert client.recv(4096).startswith(b"HTTP/1.1 101 ")
        client.sendall(frame("hello"))
        assert client.recv(4096)[2:] == b"heard hello"
        server.process.send_signal(signal.SIGTERM)
        closing = client.recv(4096)
        # The frame's code, service restart: a client that gets it comes again.
        assert (closing[0], int.from_bytes(closing[2:4], "big")) == (0x88, 1012)
        client.sendall(bytes([0x88, 0x82, 0, 0, 0, 0]) + closing[2:4])
        assert client.recv(4096) == b""
    assert server.end() < 10
    assert "ended with 1012" in server.log.read_text()
