"""A slot starts with the sockets that it is given, and is asked for its health on its own."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.carafe.stack.plugins.module_utils import (
    commands,
    processes,
    programs,
    slots,
    supervisord,
    unix_http,
)
from ansible_collections.carafe.stack.plugins.modules import gunicorn_slots

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
    "directory": os.getcwd(),
}), flush=True)
for s in sockets:
    client, _ = s.accept()
    client.sendall(b"slot")
    client.close()
"""


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    for folder in ("releases/1", "settings/1", "venv", "private"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "serving").symlink_to("settings/1")
    (tmp_path / "settings/1/code").symlink_to("../../releases/1")
    (tmp_path / "settings/1/conf.py").write_text("workers = 1\n")
    (tmp_path / "settings/1/environment").write_text("A=1\n")
    (tmp_path / "run").touch()
    return {
        "program": "shop",
        "directory": "code",
        "venv": str(tmp_path / "venv"),
        "command": [sys.executable, "-c", STUB, "--config", "{settings}/x y"],
        "private_directory": str(tmp_path / "private"),
        "files": ["conf.py", "environment", str(tmp_path / "run")],
        "health": {"path": "/healthz", "host": "shop.example.com", "timeout": 5},
    }


@pytest.fixture
def path(tmp_path: Path, settings: dict[str, Any]) -> Path:
    (tmp_path / "settings/1/slots.json").write_text(json.dumps(settings))
    return tmp_path / "serving/slots.json"


def test_what_a_slot_runs_has_one_fingerprint(path: Path) -> None:
    assert slots.fingerprint(slots.load(path)) == slots.fingerprint(slots.load(path))


@pytest.mark.parametrize("change", ["release", "settings", "environment", "venv", "run"])
def test_whatever_a_slot_takes_in_changes_its_fingerprint(
    path: Path, tmp_path: Path, change: str
) -> None:
    before = slots.fingerprint(slots.load(path))
    match change:
        case "release":
            shutil.copytree(tmp_path / "settings/1", tmp_path / "settings/2", symlinks=True)
            (tmp_path / "serving").unlink()
            (tmp_path / "serving").symlink_to("settings/2")
        case "settings":
            (tmp_path / "settings/1/conf.py").write_text("workers = 2\n")
        case "environment":
            (tmp_path / "settings/1/environment").write_text("A=2\n")
        case "venv":
            (tmp_path / "venv").rename(tmp_path / "other")
            (tmp_path / "venv").symlink_to("other")
        case "run":
            (tmp_path / "run").write_text("exec")
    assert slots.fingerprint(slots.load(path)) != before


def test_a_slot_gets_the_shared_and_its_private_socket(
    path: Path, tmp_path: Path, program: list[str]
) -> None:
    shared = socket.socket(socket.AF_UNIX)
    shared.bind(str(tmp_path / "shared.sock"))
    shared.listen()
    private = tmp_path / "private/slot-1.sock"
    answers = []
    command = [*program, "start", path, "1"]
    with subprocess.Popen(command, stdin=shared, stdout=subprocess.PIPE) as slot:
        try:
            got = json.loads(slot.stdout.readline())
            for address in (tmp_path / "shared.sock", private):
                with socket.socket(socket.AF_UNIX) as client:
                    client.settimeout(5)
                    client.connect(str(address))
                    answers.append(client.recv(10))
        finally:
            slot.kill()
    shared.close()
    assert answers == [b"slot", b"slot"]
    assert got["names"] == [str(tmp_path / "shared.sock"), str(private)]
    assert got["inheritable"] == [True, True]
    assert got["pid_is_mine"]
    assert got["stdin"] == os.devnull
    # The link is followed once: all that a slot has is of one release.
    assert got["arguments"] == ["--config", f"{tmp_path}/settings/1/x y"]
    assert got["directory"] == f"{tmp_path}/releases/1"
    assert got["fingerprint"] == slots.fingerprint(slots.load(path))
    # Only the user that runs the app may ask.
    assert private.stat().st_mode & 0o777 == 0o600


def test_where_no_release_serves_a_slot_says_so(tmp_path: Path, program: list[str]) -> None:
    command = [*program, "start", tmp_path / "serving/slots.json", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("gunicorn-slots: no release serves")
    assert len(done.stderr.splitlines()) == 1


class Answer(http.server.BaseHTTPRequestHandler):
    """Answers with the status that the test set, and keeps what it was asked."""

    status = 200
    first: tuple[int, ...] = ()  # statuses of the first answers, instead
    pause = 0.0
    asked: tuple[str, str | None, str | None]
    times = 0

    def do_GET(self) -> None:
        self.count()
        time.sleep(self.pause)
        headers = self.headers
        type(self).asked = (self.path, headers.get("Host"), headers.get("X-Forwarded-Proto"))
        self.send_response([*self.first, *[self.status] * self.times][self.times - 1])
        self.end_headers()

    @classmethod
    def count(cls) -> None:
        cls.times += 1

    def log_message(self, *_: Any) -> None:
        pass

    def address_string(self) -> str:
        return "unix"


@pytest.fixture
def slot(tmp_path: Path) -> Iterator[type[Answer]]:
    class Server(http.server.HTTPServer):
        address_family = socket.AF_UNIX

        def server_bind(self) -> None:
            self.socket.bind(self.server_address)
            self.server_name, self.server_port = "unix", 0

    # Each test has numbers of its own.
    handler = type("Answer", (Answer,), {})
    with Server(f"{tmp_path}/slot.sock", handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield handler
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("named", "status", "well"),
    [
        *(("/healthz", status, True) for status in (200, 204, 302)),
        *(("/healthz", status, False) for status in (401, 404, 500, 503)),
        *(("", status, True) for status in (200, 302, 404)),
        *(("", status, False) for status in (500, 503)),
    ],
)
def test_a_named_path_answers_with_success_and_a_guessed_one_with_no_error_of_the_server(
    slot: type[Answer], tmp_path: Path, named: str, status: int, well: bool
) -> None:
    slot.status = status
    health = {"path": named, "host": "shop.example.com", "timeout": 5}
    trouble, got = unix_http.ask(tmp_path / "slot.sock", health)
    assert (trouble == "", got) == (well, status)
    assert well or trouble == f"{named or '/'} answered {status}"


def test_health_is_asked_as_a_visitor_would(slot: type[Answer], tmp_path: Path) -> None:
    unix_http.ask(tmp_path / "slot.sock", {"path": "/healthz", "host": "shop.example.com"})
    assert slot.asked == ("/healthz", "shop.example.com", "https")


HEALTH = {"path": "/healthz", "host": "localhost", "timeout": 5}


@pytest.mark.parametrize(
    ("first", "pause", "times"),
    [
        ((), 0, 3),
        # Slow answers are not waited for as often, and a start may take its time.
        ((), 0.15, 2),
        ((503, 503), 0, 5),
        # What is well for good, after all.
        ((200, 503), 0, 5),
    ],
)
def test_a_slot_is_well_when_it_has_answered_well_several_times_in_a_row(
    slot: type[Answer], tmp_path: Path, first: tuple[int, ...], pause: float, times: int
) -> None:
    slot.first, slot.pause = first, pause
    assert unix_http.wait(tmp_path / "slot.sock", HEALTH, ended=str) == ("", 200)
    assert slot.times == times


@pytest.mark.parametrize("first", [(200,), (200, 200), (503, 200), (200, 500, 200, 500, 200, 200)])
def test_a_slot_that_is_well_and_then_not_is_found_soon(
    slot: type[Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: tuple[int, ...]
) -> None:
    monkeypatch.setattr(unix_http, "PATIENCE", 1)
    slot.first, slot.status, began = first, 500, time.monotonic()
    said = unix_http.wait(tmp_path / "slot.sock", HEALTH | {"timeout": 60}, ended=str)
    assert said == ("it was well, and then not: /healthz answered 500", 500)
    assert time.monotonic() - began < 10


def test_a_slot_that_is_not_there_is_not_well(tmp_path: Path) -> None:
    health = {"path": "", "host": "localhost", "timeout": 0.1}
    assert "no answer to /" in unix_http.ask(tmp_path / "slot.sock", health)[0]
    trouble, _ = unix_http.wait(tmp_path / "slot.sock", health, ended=str)
    assert trouble.startswith("not healthy within 0.1 s: no answer")


def test_a_slot_that_answers_byte_by_byte_is_not_waited_for(tmp_path: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "slot.sock"))
    server.listen()

    def drip() -> None:
        client, _ = server.accept()
        with contextlib.suppress(OSError):
            while True:
                client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                time.sleep(0.01)

    threading.Thread(target=drip, daemon=True).start()
    began = time.monotonic()
    health = {"path": "", "host": "localhost"}
    assert "timed out" in unix_http.ask(tmp_path / "slot.sock", health, timeout=0.3)[0]
    assert time.monotonic() - began < 5
    server.close()


@pytest.mark.parametrize("plant", ["link", "pipe"])
def test_what_is_in_the_place_of_a_private_socket_is_not_asked(
    slot: type[Answer], tmp_path: Path, plant: str
) -> None:
    slot.asked = None
    if plant == "link":
        (tmp_path / "planted").symlink_to("slot.sock")
    else:
        os.mkfifo(tmp_path / "planted")
    trouble = unix_http.ask(tmp_path / "planted", {"path": "", "host": "localhost"})[0]
    assert "It is no socket" in trouble
    assert slot.asked is None


def test_a_pipe_in_the_place_of_a_file_that_a_slot_takes_in_is_refused(
    path: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").unlink()
    os.mkfifo(tmp_path / "run")
    with pytest.raises(slots.SlotError, match=r"run cannot be read: It is no file"):
        slots.fingerprint(slots.load(path))


@pytest.mark.parametrize("check", [True, False])
def test_where_nothing_serves_what_a_failed_first_release_has_started_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: bool
) -> None:
    there = {"shop_0": "RUNNING", "shop_1": "BACKOFF", "shop_2": "STOPPED", "shop-x_0": "RUNNING"}
    stopped: list[str] = []
    monkeypatch.setattr(supervisord, "SOCKET", str(tmp_path / "socket"))
    assert slots.end("shop") == []
    (tmp_path / "socket").touch()
    monkeypatch.setattr(supervisord, "connect", lambda: None)
    infos = [
        {"group": name.rpartition("_")[0], "name": name, "statename": state}
        for name, state in there.items()
    ]
    monkeypatch.setattr(
        supervisord, "processes", lambda _, group: [x for x in infos if x["group"] == group]
    )
    monkeypatch.setattr(supervisord, "stop", lambda _, *names: stopped.extend(names))
    said = slots.end("shop", check)
    assert said == [f"slot {x} stopped: nothing serves" for x in (0, 1)]
    assert stopped == ([] if check else ["shop:shop_0", "shop:shop_1"])


@pytest.mark.parametrize(
    "error",
    [ConnectionRefusedError("refused"), xmlrpc.client.Fault(6, "SHUTDOWN_STATE")],
)
def test_slots_that_do_not_end_are_told_with_what_to_do(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(slots, "end", fail)
    given = {"config": str(tmp_path / "slots.json"), "program": "shop"}
    with patch_module_args(given), pytest.raises(SystemExit):
        gunicorn_slots.main()
    said = json.loads(capsys.readouterr().out)
    assert said["failed"]
    assert "slots of shop, of which nothing serves, could not be stopped" in said["msg"]
    assert "sudo supervisorctl stop 'shop:*'" in said["msg"]


def test_what_a_process_was_started_with_is_read_from_it(tmp_path: Path) -> None:
    command, pipe = ["sh", "-c", "echo; read end"], subprocess.PIPE
    (tmp_path / "older").touch()
    time.sleep(0.05)
    with subprocess.Popen(command, env={"A": "a=b"}, stdin=pipe, stdout=pipe) as process:
        process.stdout.readline()
        assert processes.environment(process.pid)["A"] == "a=b"
        assert processes.age(process.pid) < 60
        time.sleep(0.05)
        (tmp_path / "newer").touch()
        assert processes.is_older(process.pid, [tmp_path / "newer"])
        assert not processes.is_older(process.pid, [tmp_path / "older", tmp_path / "none"])
        process.stdin.close()
    assert processes.environment(process.pid) == {}
    assert processes.age(process.pid) is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"user": "no-such-user"}, "gunicorn_user is 'no-such-user', and the server has no such"),
        (
            {"files": {"gunicorn.conf.py": "workers ="}},
            r"gunicorn_settings make gunicorn\.conf\.py",
        ),
    ],
)
def test_what_slots_cannot_run_with_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], why: str
) -> None:
    monkeypatch.setattr(programs, "FOLDER", tmp_path / "carafe")
    wanted = {"config": f"{tmp_path}/etc/slots.json", "files": {"slots.json": "{}"}}
    wanted |= {"private_directory": f"{tmp_path}/private", "user": "root", **changes}
    with pytest.raises(commands.Failure, match=why):
        gunicorn_slots.install(wanted, False)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_shows_what_the_slots_would_get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "FOLDER", tmp_path / "carafe")
    wanted = {"config": f"{tmp_path}/etc/slots.json", "files": {"slots.json": "{}"}}
    wanted |= {"private_directory": f"{tmp_path}/private", "user": "no-such-user"}
    would = gunicorn_slots.install(wanted, True)
    assert would["changed"]
    assert "{}" in [x.get("after") for x in would["diff"]]
    assert "gunicorn-slots/__main__.py is written" in would["diff"][-1]["prepared"]
    assert not list(tmp_path.iterdir())
