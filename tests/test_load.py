"""The load client sees each way in which a server can lose a request."""

from __future__ import annotations

import http.server
import itertools
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from conftest import ROOT, load_module

pytestmark = pytest.mark.any_python

LOAD = load_module(ROOT / "molecule/load.py", "load")
Load, Answer = LOAD.Load, LOAD.Answer


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers well, but does to each tenth request what the server says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        # One step, since several threads count.
        if next(self.server.numbers) % 10 == 0:
            self.server.harm(self)
        else:
            self.answer(200)

    do_POST = do_GET

    def answer(self, status: int, promised: int = 2) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(promised))
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        pass


def server_error(handler: Handler) -> None:
    handler.answer(502)


def redirect(handler: Handler) -> None:
    handler.answer(302)


def short_answer(handler: Handler) -> None:
    handler.answer(200, promised=10)
    handler.close_connection = True


def closed_connection(handler: Handler) -> None:
    handler.close_connection = True


def reset_connection(handler: Handler) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def no_harm(handler: Handler) -> None:
    handler.answer(200)


@pytest.fixture
def serve() -> Iterator[Callable]:
    servers = []

    def start(harm: Callable[[Handler], None]) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.numbers, server.harm = itertools.count(1), harm
        server.handle_error = lambda *_: None
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "harm", [server_error, redirect, short_answer, closed_connection, reset_connection]
)
def test_each_harm_is_counted(serve: Callable, harm: Callable) -> None:
    with Load(serve(harm), rate=200) as load:
        load.go_on(100)
    assert len(load.answers) / 10 - 1 <= len(load.failures) <= len(load.answers) / 10 + 1
    posts = [answer for answer in load.answers if answer.method == "POST" and not answer.failure]
    assert len(load.acknowledged) == len(posts) > 10


def test_server_that_harms_none_has_no_failure(serve: Callable) -> None:
    with Load(serve(no_harm), rate=200) as load:
        load.go_on(100)
    assert load.failures == []
    assert len(load.answers) >= 100


def test_a_stall_is_the_longest_time_in_which_nothing_ends() -> None:
    load = Load("http://localhost")
    load.answers = [Answer(due, "GET", path, 1) for due, path in ((0, "/"), (3, "/slow"), (5, "/"))]
    assert load.stall() == 5


def test_server_that_is_not_there_fails_every_request() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with Load(f"http://127.0.0.1:{unused.getsockname()[1]}", rate=200) as load:
            load.go_on(20)
    assert load.answers
    assert len(load.failures) == len(load.answers)
