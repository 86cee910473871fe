"""What runs as it was before an upgrade, and what is done about it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import (
    database_restart,
    processes,
    restarts,
    slots,
    supervisord,
)
from ansible_collections.carafe.stack.plugins.module_utils.commands import Failure


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a program of the system's, as far as Carafe knows."""
    monkeypatch.setattr(processes, "SYSTEM", (str(tmp_path),))
    return Path(shutil.copy(shutil.which("sleep") or "", tmp_path / "sleep"))


def maps(pid: str) -> str:
    try:
        return Path("/proc", pid, "maps").read_text()
    except OSError:
        return ""


@pytest.fixture
def child(program: Path) -> Iterator[int]:
    """Return the number of a shell that runs the program."""
    words = ["sh", "-c", f"{program} 60 & wait"]
    with subprocess.Popen(words, start_new_session=True, stdout=subprocess.PIPE) as process:
        # Until it is that program, it is one more shell.
        while not any(str(program) in maps(x) for x in processes.family(process.pid)):
            assert process.poll() is None
        yield process.pid
        for number in reversed(list(processes.family(process.pid))):
            subprocess.run(["kill", number], check=False)


def replace(program: Path) -> None:
    fresh = Path(shutil.copy(program, program.with_suffix(".dpkg-new")))
    fresh.rename(program)


def test_what_was_replaced_is_named(child: int, program: Path) -> None:
    assert processes.upgraded_in(child) == ""
    replace(program)
    assert processes.upgraded_in(child) == str(program)
    assert processes.upgraded(child) == "", "the shell itself runs what is there"


def test_what_others_have_removed_counts_not(
    child: int, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace(program)
    monkeypatch.setattr(processes, "SYSTEM", ("/usr/", "/lib"))
    assert processes.upgraded_in(child) == ""


def test_it_is_told_by_the_unit_that_runs_it(child: int, program: Path) -> None:
    assert str(program) not in processes.units_upgraded().values()
    replace(program)
    assert str(program) in processes.units_upgraded().values()


def test_who_is_gone_runs_nothing() -> None:
    assert processes.upgraded_in(2**22 + 1) == ""


def test_slots_are_known_by_what_supervisord_starts(tmp_path: Path) -> None:
    program = {**supervisord.DEFAULTS, "user": "shop", "name": "shop", "numprocs": 2}
    start = (
        "/usr/bin/python3 /usr/local/lib/carafe/gunicorn-slots start /srv/shop/serving/slots.json"
    )
    slots = {**program, "socket": "unix:///run/shop.sock", "command": f"{start} %(process_num)d"}
    worker = {**program, "name": "mail", "command": "/srv/shop/bin/run flask mail"}
    (tmp_path / "shop.conf").write_text(
        supervisord.program_text(worker) + supervisord.program_text(slots)
    )
    assert restarts.slot_files(tmp_path) == {"shop": "/srv/shop/serving/slots.json"}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, []),
        ({"session-1.scope": "/usr/bin/bash", "init.scope": "/usr/lib/systemd/systemd"}, []),
        (
            {"ssh.service": "/usr/lib/libcrypto.so.3"},
            ["ssh.service runs /usr/lib/libcrypto.so.3 as it was before an upgrade."],
        ),
    ],
)
def test_what_is_left_is_named_with_what_restarts_it(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, str], said: list[str]
) -> None:
    monkeypatch.setattr(restarts, "units_upgraded", lambda: found)
    lines = list(restarts.restart(only_list=False))
    assert [line.partition(" When")[0] for line in lines] == said
    assert all(line.endswith("systemctl restart ssh") for line in lines)


@pytest.mark.parametrize("unit", ["supervisor.service", "carafe-supervised-7-8.scope"])
def test_a_supervisord_that_does_not_answer_is_said(
    monkeypatch: pytest.MonkeyPatch, unit: str
) -> None:
    monkeypatch.setattr(restarts, "units_upgraded", lambda: {unit: "/usr/bin/x"})
    monkeypatch.setattr(supervisord, "SOCKET", "/nowhere.sock")
    (line,) = restarts.restart(only_list=False)
    assert line.startswith("supervisord does not answer: ")


UNIT = {"postgresql@17-main.service": "/usr/lib/libssl.so.3"}


@pytest.mark.parametrize("only_list", [False, True])
def test_a_database_for_other_servers_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, only_list: bool
) -> None:
    monkeypatch.setattr(restarts, "units_upgraded", lambda: UNIT)
    monkeypatch.setattr(database_restart, "query", lambda text: ["127.0.0.1,10.0.0.3"])
    (line,) = restarts.restart(only_list)
    assert line == (
        "postgresql@17-main.service runs /usr/lib/libssl.so.3 as it was before an upgrade; it"
        " listens on the network, and who asks it from there cannot be told to wait. When it"
        " suits: systemctl restart postgresql@17-main"
    )


def test_a_database_that_does_not_answer_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(text: str) -> list[str]:
        raise Failure("psql: error: no such file")

    monkeypatch.setattr(restarts, "units_upgraded", lambda: UNIT)
    monkeypatch.setattr(database_restart, "query", fails)
    (line,) = restarts.restart(only_list=False)
    assert "; this failed: psql: error: no such file. When it suits" in line


WORKER = """import signal, time
signal.signal(signal.SIGTERM, signal.{heeds})
print(flush=True)
time.sleep(60)"""
MASTER = """import subprocess, sys, time
while True:
    subprocess.run([sys.executable, "-c", sys.argv[1]])"""


@pytest.fixture
def master(request: pytest.FixtureRequest) -> Iterator[int]:
    """Return the number of a process that starts a worker whenever it has none."""
    words = [sys.executable, "-c", MASTER, WORKER.format(heeds=request.param)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield process.pid
        left = list(processes.children(process.pid))
        process.kill()
        subprocess.run(["kill", "-KILL", *left], check=False)


@pytest.mark.parametrize("master", ["SIG_DFL"], indirect=True)
def test_a_halted_master_has_no_workers_until_it_goes_on(master: int) -> None:
    (worker,) = processes.children(master)
    database_restart.halt(master)
    assert not processes.lives(worker)
    assert list(processes.children(master)) == [worker], "a zombie that waits for its master"
    os.kill(master, signal.SIGCONT)
    deadline = time.monotonic() + 10
    while list(processes.children(master)) in ([worker], []):
        assert time.monotonic() < deadline


@pytest.mark.parametrize("master", ["SIG_IGN"], indirect=True)
def test_a_worker_that_does_not_end_is_said(master: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_restart, "PATIENCE", 0.2)
    with pytest.raises(database_restart.Busy, match=r"a request takes longer than 0\.2 s"):
        database_restart.halt(master)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_the_end_comes_for_a_program_that_is_killed_too(tmp_path: Path, number: int) -> None:
    done = tmp_path / "done"
    child = os.fork()
    if not child:
        try:
            # Whoever runs the suite may have them ignored.
            for other in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(other, signal.SIG_DFL)
            os.setsid()
            with database_restart.at_the_end(done.touch):
                # All but the last come from a terminal or systemd: for what it started, too.
                (os.kill if number == signal.SIGKILL else os.killpg)(os.getpid(), number)
                time.sleep(60)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -number
    deadline = time.monotonic() + 10
    while not done.exists():
        assert time.monotonic() < deadline


def test_a_lock_that_somebody_has_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(slots, "LOCKS", tmp_path)
    with (
        database_restart.locked(["shop"]),
        pytest.raises(database_restart.Busy, match="slots of shop are being rolled"),
        database_restart.locked(["forum", "shop"]),
    ):
        pass


def test_one_of_two_clusters_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_restart, "query", lambda text: [""])
    monkeypatch.setattr(database_restart, "run", lambda *words: "one\n")
    database_restart.check()
    monkeypatch.setattr(database_restart, "run", lambda *words: "one\nanother\n")
    with pytest.raises(database_restart.Busy, match="another cluster"):
        database_restart.check()


def test_who_else_of_a_user_is_at_work_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_restart, "of", lambda uids: {7: "gunicorn", 9: "psql", 8: "sh"})
    database_restart.see_only([7, 8, 9], {1000})
    with pytest.raises(database_restart.Busy, match=r"^sh \(8\), psql \(9\) may be using it$"):
        database_restart.see_only([7], {1000})


def test_processes_are_found_by_their_user() -> None:
    assert os.getpid() in database_restart.of({os.getuid()})
    assert database_restart.of({2**31}) == {}
