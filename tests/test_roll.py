"""Slots under a real supervisord: a roll loses no request, and stops at a slot that is not well."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import slots, supervisord
from conftest import ROOT

# Stands in for gunicorn: serves on both of its sockets, with the status that it found at its start,
# and ends a request that it has begun before it goes.
SERVER = """
import ctypes, http.server, os, pathlib, signal, socket, sys, threading, time
ctypes.CDLL(str(pathlib.Path("library")))
status = int(pathlib.Path("status").read_text())
# One that is fickle is well until another one has begun.
fickle, latest = pathlib.Path("fickle").exists(), pathlib.Path("latest")
latest.write_text(str(os.getpid()))
print("serving", status, flush=True)
os.write(1, pathlib.Path("printed").read_bytes())

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        time.sleep(0.02)
        well = fickle and latest.read_text() == str(os.getpid())
        body = str(os.getpid()).encode()
        self.send_response(200 if well else status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self):
        return "unix"

class Server(http.server.ThreadingHTTPServer):
    daemon_threads = False

    def __init__(self, fd):
        super().__init__(("", 0), Handler, bind_and_activate=False)
        self.socket = socket.socket(fileno=fd)
        # Two slots may wake up for one client; the one that is late must not wait for the next.
        self.socket.setblocking(False)

    def get_request(self):
        client, address = super().get_request()
        client.setblocking(True)
        return client, address

    def handle_error(self, request, client):
        pass  # Nobody waits for an answer that comes too late.

servers = [Server(fd) for fd in range(3, 3 + int(os.environ["LISTEN_FDS"]))]
threads = [threading.Thread(target=x.serve_forever, args=(0.01,)) for x in servers]
[thread.start() for thread in threads]
signal.sigwait({signal.SIGTERM})
[server.shutdown() for server in servers]
[server.server_close() for server in servers]
"""


class App:
    """Two slots under a supervisord of their own."""

    def __init__(self, folder: Path, program: list[str]):
        self.folder, self.program = folder, program
        self.config = folder / "slots.json"
        self.library = folder / "libm.so.6"
        self.upgrade()
        for name in ("releases/1", "venv", "private"):
            (folder / name).mkdir(parents=True)
        (folder / "current").symlink_to("releases/1")
        (folder / "server.py").write_text(
            SERVER.replace('Path("status")', f'Path("{folder}/status")')
            .replace('Path("printed")', f'Path("{folder}/printed")')
            .replace('Path("fickle")', f'Path("{folder}/fickle")')
            .replace('Path("latest")', f'Path("{folder}/latest")')
            .replace('Path("library")', f'Path("{self.library}")')
            # Before any thread, so that none of them takes the signal.
            .replace("\nstatus =", "\nsignal.pthread_sigmask(signal.SIG_BLOCK, [15])\nstatus =", 1)
        )
        (folder / "status").write_text("200")
        (folder / "printed").touch()
        (folder / "environment").write_text("A=1\n")
        settings = {
            "program": "shop",
            "directory": f"{folder}/current",
            "venv": f"{folder}/venv",
            "command": [sys.executable, f"{folder}/server.py"],
            "private_directory": f"{folder}/private",
            "files": [f"{folder}/environment"],
        }
        self.settings = settings
        self.wait_for_health(60)
        (folder / "supervisord.conf").write_text(
            f"""
[unix_http_server]
file={folder}/s.sock
[supervisord]
nodaemon=true
logfile={folder}/supervisord.log
pidfile={folder}/supervisord.pid
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://{folder}/s.sock
[fcgi-program:shop]
command={" ".join(program)} start {self.config} %(process_num)d
process_name=%(program_name)s_%(process_num)d
numprocs=2
socket=unix://{folder}/app.sock
startsecs=0
redirect_stderr=true
stdout_logfile={folder}/slot_%(process_num)d.log
"""
        )

    def wait_for_health(self, seconds: int) -> None:
        """Set how long a slot may take to be well: one that is not is waited for to the end."""
        health = {"path": "", "host": "localhost", "timeout": seconds}
        self.config.write_text(json.dumps(self.settings | {"health": health}))

    def change(self) -> None:
        """Put something else into service, so that both slots are stale."""
        (self.folder / "environment").write_text(f"A={time.time_ns()}\n")

    def upgrade(self) -> None:
        """Put a new library into the place of the one that the slots have, as a package does."""
        fresh = self.library.with_suffix(".dpkg-new")
        shutil.copy(next(Path("/usr/lib").glob("**/libm.so.6")), fresh)
        fresh.rename(self.library)

    def request(self) -> tuple[int, str]:
        """Send one request to the shared socket; return the status and the id of who answered."""
        connection = http.client.HTTPConnection("localhost", timeout=5)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(5)
        connection.sock.connect(str(self.folder / "app.sock"))
        connection.request("GET", "/")
        answer = connection.getresponse()
        result = answer.status, answer.read().decode()
        connection.close()
        return result

    def control(self, *words: str) -> str:
        command = [sys.executable, "-m", "supervisor.supervisorctl", "-c"]
        command += [str(self.folder / "supervisord.conf"), *words]
        return subprocess.run(command, capture_output=True, text=True).stdout

    def pids(self) -> list[str]:
        return self.control("pid", "shop:shop_0", "shop:shop_1").split()

    def roll(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Roll in a process of its own, since two of them wait for each other."""
        start = (
            "import pathlib;"
            "from ansible_collections.carafe.stack.plugins.module_utils import"
            " processes, slots, supervisord;"
            f"processes.SYSTEM = ({str(self.folder)!r},);"
            f"supervisord.SOCKET = {str(self.folder / 's.sock')!r};"
            f"slots.LOCKS = pathlib.Path({str(self.folder)!r}); slots.main()"
        )
        command = [sys.executable, "-c", start, "roll", *options, str(self.config)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "collections")}
        return subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)


@pytest.fixture(scope="module")
def supervised(tmp_path_factory: pytest.TempPathFactory, program: list[str]) -> Iterator[App]:
    app = App(tmp_path_factory.mktemp("roll"), program)
    command = [sys.executable, "-m", "supervisor.supervisord", "-c"]
    with (
        (app.folder / "out").open("w") as out,
        subprocess.Popen([*command, app.folder / "supervisord.conf"], stdout=out) as process,
    ):
        deadline = time.monotonic() + 60
        while process.poll() is None and not (app.folder / "s.sock").exists():
            assert time.monotonic() < deadline, (app.folder / "out").read_text()
            time.sleep(0.05)
        yield app
        process.terminate()


@pytest.fixture
def app(supervised: App) -> App:
    """Return an app whose slots are current and well, whatever the test before has left."""
    (supervised.folder / "status").write_text("200")
    (supervised.folder / "printed").write_text("")
    (supervised.folder / "fickle").unlink(missing_ok=True)
    supervised.wait_for_health(60)
    done = supervised.roll()
    assert done.returncode == 0, done.stderr
    return supervised


def test_what_is_current_is_left_alone(app: App) -> None:
    before = app.pids()
    done = app.roll()
    assert (done.returncode, done.stdout) == (0, "")
    assert app.pids() == before


def test_a_roll_loses_no_request(app: App) -> None:
    before = app.pids()
    app.change()
    statuses: list[Any] = []
    stop = threading.Event()

    def visit() -> None:
        while not stop.is_set():
            try:
                statuses.append(app.request()[0])
            except OSError as error:
                statuses.append(error)

    visitors = [threading.Thread(target=visit) for _ in range(2)]
    for visitor in visitors:
        visitor.start()
    done = app.roll()
    stop.set()
    for visitor in visitors:
        visitor.join()
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("restarted in") == 2
    assert not set(app.pids()) & set(before)
    assert len(statuses) > 10
    assert set(statuses) == {200}


def test_slots_with_an_upgraded_library_are_rolled(app: App) -> None:
    before = app.pids()
    app.upgrade()
    done = app.roll()
    assert done.stdout.count(f"{app.library} has been upgraded since it began") == 2
    assert not set(app.pids()) & set(before)
    assert app.roll().stdout == ""


def test_a_dry_run_restarts_nothing(app: App) -> None:
    before = app.pids()
    app.change()
    done = app.roll("--check")
    assert done.stdout.count("would be restarted") == 2
    assert app.pids() == before


def test_a_slot_that_is_not_well_leaves_the_next_one_serving(app: App) -> None:
    before = app.pids()
    app.change()
    (app.folder / "status").write_text("503")
    app.wait_for_health(5)
    done = app.roll()
    assert done.returncode == 1
    assert "slot 0 is not healthy" in done.stderr
    assert "serving 503" in done.stderr, "the end of the slot's log is missing"
    assert app.pids()[1] == before[1]
    app.control("stop", "shop:shop_0")
    assert app.request() == (200, before[1])


def test_a_slot_that_does_not_stay_well_is_found_after_the_roll(app: App) -> None:
    app.change()
    (app.folder / "status").write_text("503")
    (app.folder / "fickle").touch()
    done = app.roll()
    assert done.returncode == 1
    assert "slot 0 did not stay healthy (not healthy within 5 s: / answered 503)" in done.stderr
    assert "serving 503" in done.stderr, "the end of the slot's log is missing"


def test_what_a_slot_that_is_not_well_prints_is_shown_as_text(app: App) -> None:
    """No byte of it stops the message, nor does anything to the terminal that it is read at."""
    odd = bytes(range(1, 32)) + b" caf\xe9 \x1b[2J\x1b]0;owned\x07 end"
    (app.folder / "status").write_text("503")
    (app.folder / "printed").write_bytes(odd)
    app.change()
    # Its start is in it, on a machine that has other things to do.
    app.wait_for_health(10)
    done = app.roll()
    assert "slot 0 is not healthy" in done.stderr
    assert r"caf\xe9 \x1b[2J\x1b]0;owned\x07 end" in done.stderr
    assert done.stderr.replace("\n", "").replace("\t", "").isprintable()
    assert "Traceback" not in done.stderr
    # A young one is waited for.
    app.control("stop", "shop:shop_0")


def test_a_slot_that_was_stopped_is_started(app: App) -> None:
    before = app.pids()
    app.control("stop", "shop:shop_1")
    done = app.roll()
    assert done.stdout.count("restarted in") == 1
    after = app.pids()
    assert after[0] == before[0]
    assert after[1] not in before


# supervisord loses a signal for a child that it has forked and that is not the program yet: half of
# the time on an idle machine.
def test_a_slot_that_has_just_been_spawned_is_stopped_and_not_killed(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisord, "SOCKET", str(app.folder / "s.sock"))
    slot = slots.Slot(supervisord.connect(), slots.load(app.config), "shop_1")
    for _ in range(8):
        supervisord.stop(slot.rpc, slot.process)
        slot.rpc.startProcess(slot.process, False)
        supervisord.stop(slot.rpc, slot.process)
    assert slot.info()["statename"] == "STOPPED"
    assert "SIGKILL" not in (app.folder / "supervisord.log").read_text()


def test_a_process_that_is_stopping_is_started_once_it_has_ended(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by who goes on after a program that was killed when it had begun to stop it."""
    monkeypatch.setattr(supervisord, "SOCKET", str(app.folder / "s.sock"))
    rpc, before = supervisord.connect(), int(app.pids()[1])
    # Until it goes on, it does not end.
    os.kill(before, signal.SIGSTOP)
    rpc.stopProcess("shop:shop_1", False)
    assert rpc.getProcessInfo("shop:shop_1")["statename"] == "STOPPING"
    threading.Timer(1, os.kill, (before, signal.SIGCONT)).start()
    supervisord.start(rpc, "shop:shop_1")
    assert rpc.getProcessInfo("shop:shop_1")["pid"] not in (0, before)
