"""A slot starts with the sockets that it is given, and is asked for its health on its own."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT, load_module

SLOTS = ROOT / "roles/gunicorn/files/slots.py"
# Stands in for gunicorn: tells what it got, and answers once on each socket.
STUB = """
import json, os, socket, sys
sockets = [socket.socket(fileno=fd) for fd in range(3, 3 + int(os.environ["LISTEN_FDS"]))]
print(json.dumps({
    "pid_is_mine": os.environ["LISTEN_PID"] == str(os.getpid()),
    "names": [s.getsockname() for s in sockets],
    "stdin": os.readlink("/proc/self/fd/0"),
    "inheritable": [os.get_inheritable(s.fileno()) for s in sockets],
    "fingerprint": os.environ["GUNICORN_SLOT_FINGERPRINT"],
    "arguments": sys.argv[1:],
}), flush=True)
for s in sockets:
    client, _ = s.accept()
    client.sendall(b"slot")
    client.close()
"""


@pytest.fixture(scope="module")
def slots() -> ModuleType:
    return load_module(SLOTS, "slots")


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    release = tmp_path / "releases/1"
    release.mkdir(parents=True)
    (tmp_path / "current").symlink_to("releases/1")
    (tmp_path / "venv").mkdir()
    (tmp_path / "private").mkdir()
    (tmp_path / "conf.py").write_text("workers = 1\n")
    (tmp_path / "environment").write_text("A=1\n")
    return {
        "program": "shop",
        "slots": 2,
        "directory": str(tmp_path / "current"),
        "venv": str(tmp_path / "venv"),
        "command": [sys.executable, "-c", STUB, "--config", "x y"],
        "private_directory": str(tmp_path / "private"),
        "files": [str(tmp_path / "conf.py"), str(tmp_path / "environment")],
        "health_path": "/healthz",
        "health_host": "shop.example.com",
        "health_timeout": 5,
    }


def test_what_a_slot_runs_has_one_fingerprint(slots: ModuleType, config: dict[str, Any]) -> None:
    assert slots.fingerprint(config) == slots.fingerprint(dict(config))


@pytest.mark.parametrize("change", ["release", "settings", "environment", "venv"])
def test_whatever_a_slot_takes_in_changes_its_fingerprint(
    slots: ModuleType, config: dict[str, Any], tmp_path: Path, change: str
) -> None:
    before = slots.fingerprint(config)
    match change:
        case "release":
            (tmp_path / "releases/2").mkdir()
            (tmp_path / "current").unlink()
            (tmp_path / "current").symlink_to("releases/2")
        case "settings":
            (tmp_path / "conf.py").write_text("workers = 2\n")
        case "environment":
            (tmp_path / "environment").write_text("A=2\n")
        case "venv":
            (tmp_path / "venv").rename(tmp_path / "other")
            (tmp_path / "venv").symlink_to("other")
    assert slots.fingerprint(config) != before


def test_a_slot_gets_the_shared_and_its_private_socket(
    slots: ModuleType, config: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    shared = socket.socket(socket.AF_UNIX)
    shared.bind(str(tmp_path / "shared.sock"))
    shared.listen()
    command = [sys.executable, SLOTS, "start", tmp_path / "config.json", "1"]
    private = tmp_path / "private/slot-1.sock"
    answers = []
    with subprocess.Popen(command, stdin=shared, stdout=subprocess.PIPE) as slot:
        try:
            got = json.loads(slot.stdout.readline())
            for path in (tmp_path / "shared.sock", private):
                with socket.socket(socket.AF_UNIX) as client:
                    client.settimeout(5)
                    client.connect(str(path))
                    answers.append(client.recv(10))
        finally:
            slot.kill()
    shared.close()
    assert answers == [b"slot", b"slot"]
    assert got["names"] == [str(tmp_path / "shared.sock"), str(private)]
    assert got["inheritable"] == [True, True]
    assert got["pid_is_mine"]
    assert got["stdin"] == os.devnull
    assert got["arguments"] == ["--config", "x y"]
    assert got["fingerprint"] == slots.fingerprint(config)
    # Only the user that runs the app may ask.
    assert private.stat().st_mode & 0o777 == 0o600


class Answer(http.server.BaseHTTPRequestHandler):
    """Answers with the status that the test set, and keeps what it was asked."""

    status = 200
    asked: tuple[str, str | None, str | None]

    def do_GET(self) -> None:
        headers = self.headers
        type(self).asked = (self.path, headers.get("Host"), headers.get("X-Forwarded-Proto"))
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass

    def address_string(self) -> str:
        return "unix"


@pytest.fixture
def slot(config: dict[str, Any]) -> Iterator[type[Answer]]:
    class Server(http.server.HTTPServer):
        address_family = socket.AF_UNIX

        def server_bind(self) -> None:
            self.socket.bind(self.server_address)
            self.server_name, self.server_port = "unix", 0

    with Server(f"{config['private_directory']}/slot-0.sock", Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Answer
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "well"), [(200, True), (404, True), (500, False), (503, False)])
def test_a_slot_is_well_while_it_answers_with_no_error_of_its_own(
    slots: ModuleType, config: dict[str, Any], slot: type[Answer], status: int, well: bool
) -> None:
    slot.status = status
    trouble = slots.health(config, 0)
    assert (trouble == "") is well
    assert well or str(status) in trouble


def test_health_is_asked_as_a_visitor_would(
    slots: ModuleType, config: dict[str, Any], slot: type[Answer]
) -> None:
    slots.health(config, 0)
    assert slot.asked == ("/healthz", "shop.example.com", "https")


def test_a_slot_that_is_not_there_is_not_well(slots: ModuleType, config: dict[str, Any]) -> None:
    assert "no answer" in slots.health(config, 1)


def test_the_fingerprint_of_a_running_slot_is_read_from_its_process(slots: ModuleType) -> None:
    environment = {**os.environ, slots.FINGERPRINT: "abc"}
    command, pipe = ["sh", "-c", "echo; read end"], subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe) as process:
        process.stdout.readline()
        found = slots.running_fingerprint(process.pid)
        process.stdin.close()
    assert found == "abc"
    assert slots.running_fingerprint(process.pid) == ""
