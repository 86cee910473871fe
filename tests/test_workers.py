"""Background workers under a real supervisord: they run what serves, with its settings."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import processes, supervisord
from ansible_collections.carafe.stack.plugins.module_utils import release_settings as settings
from ansible_collections.carafe.stack.plugins.module_utils.commands import Failure
from conftest import Role
from test_release import App
from test_release import app as app

WORKER = {"name": "jobs", "numprocs": 1, "startsecs": 1, "stopwaitsecs": 5}
# Fails at its start where its release has a file "bad".
COMMAND = """sh -c 'test ! -e bad || { echo cannot import bad; exit 1; }; exec sleep 300'"""


@pytest.fixture(autouse=True)
def daemon(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Run supervisord, and return its methods."""
    (tmp_path / "programs").mkdir()
    (tmp_path / "supervisord.conf").write_text(
        f"""
[unix_http_server]
file={tmp_path}/s.sock
[supervisord]
nodaemon=true
logfile={tmp_path}/supervisord.log
pidfile={tmp_path}/supervisord.pid
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[include]
files={tmp_path}/programs/*.conf
"""
    )
    monkeypatch.setattr(supervisord, "SOCKET", str(tmp_path / "s.sock"))
    text = supervisord.PROGRAM.replace("/var/log/supervisor", str(tmp_path))
    monkeypatch.setattr(supervisord, "PROGRAM", text)
    # As the real one, and each release is what its environment says.
    run = (tmp_path / "bin/run").read_text().replace("exec", "export APP_RELEASE=$release; exec")
    (tmp_path / "bin/run").write_text(run)
    command = [sys.executable, "-m", "supervisor.supervisord", "-c", tmp_path / "supervisord.conf"]
    with (tmp_path / "out").open("w") as out, subprocess.Popen(command, stdout=out) as process:
        deadline = time.monotonic() + 60
        while process.poll() is None and not (tmp_path / "s.sock").exists():
            assert time.monotonic() < deadline, (tmp_path / "out").read_text()
            time.sleep(0.05)
        yield supervisord.connect()
        process.terminate()


def worker(**changes: Any) -> list[dict[str, Any]]:
    return [WORKER | {"command": COMMAND} | changes]


def running(daemon: Any, name: str = "jobs") -> tuple[int, str]:
    """Return the process id of a worker, and the release that it runs."""
    (info,) = supervisord.processes(daemon, f"carafe-test-app.{name}")
    return info["pid"], processes.environment(info["pid"]).get("APP_RELEASE", "")


def test_worker_moves_to_what_serves_and_then_stays(app: App, daemon: Any) -> None:
    app.part(6, "a", workers=worker())
    said = app.step("workers", "a", workers=worker())["workers"]
    assert said == ["carafe-test-app.jobs: started"]
    app.step("finish", "a", workers=worker())
    before, release = running(daemon)
    assert release == "a"
    assert app.step("workers", "a", workers=worker())["workers"] == []
    assert running(daemon) == (before, "a")
    app.part(6, "b", workers=worker())
    said = app.step("workers", "b", workers=worker())["workers"]
    assert said == ["carafe-test-app.jobs: restarted, since it runs another release"]
    assert running(daemon)[1] == "b"


def test_worker_that_is_not_in_the_release_any_more_is_gone_and_a_new_one_is_there(
    app: App, daemon: Any
) -> None:
    app.part(6, "a", workers=worker())
    app.step("workers", "a", workers=worker())
    app.step("finish", "a", workers=worker())
    app.part(6, "b", workers=worker(name="other"))
    app.step("workers", "b", workers=worker(name="other"))
    assert supervisord.processes(daemon, "carafe-test-app.jobs") == []
    assert running(daemon, "other")[1] == "b"
    # A failure goes back to the workers of the release before, too.
    app.step("revert", "b", failure="slot 1 is not healthy")
    app.step("workers", "b", workers=worker(name="other"))
    assert running(daemon)[1] == "a"
    assert supervisord.processes(daemon, "carafe-test-app.other") == []


def test_app_without_workers_any_more_leaves_nothing_with_supervisord(
    app: App, daemon: Any
) -> None:
    app.part(6, "a", workers=worker())
    app.step("workers", "a", workers=worker())
    app.step("finish", "a", workers=worker())
    assert list(settings.PROGRAMS.iterdir())
    app.part(6, "b")
    app.step("workers", "b")
    assert supervisord.processes(daemon, "carafe-test-app.jobs") == []
    assert not list(settings.PROGRAMS.iterdir())


def test_worker_gets_a_changed_environment(app: App, daemon: Any) -> None:
    app.part(6, "a", workers=worker())
    app.step("workers", "a", workers=worker())
    before, _ = running(daemon)
    time.sleep(0.05)
    (app.root / "serving/secrets").touch()
    said = app.step("workers", "a", workers=worker())["workers"]
    assert said == ["carafe-test-app.jobs: restarted, since its environment has changed"]
    assert running(daemon)[0] != before


def test_worker_that_does_not_come_up_says_why_and_leaves_the_lock(app: App, daemon: Any) -> None:
    app.part(6, "a", workers=worker())
    app.step("workers", "a", workers=worker())
    app.step("finish", "a", workers=worker())
    app.part(6, "b", workers=worker())
    (app.root / "current/bad").touch()
    with pytest.raises(Failure) as failure:
        app.step("workers", "b", workers=worker())
    assert str(failure.value).startswith("the worker carafe-test-app.jobs: it is BACKOFF")
    assert "cannot import bad" in str(failure.value)
    assert app.locked
    trouble = {"failure": str(failure.value)}
    app.step("revert", "b", **trouble)
    app.step("workers", "b", workers=worker())
    assert running(daemon)[1] == "a"
    with pytest.raises(Failure, match="b failed at the step workers: the worker"):
        app.step("report_failure", "b", **trouble)
    assert app.serving == "a"
    assert not app.locked


def test_workers_that_supervisord_could_not_read_stop_before_the_switch(app: App) -> None:
    app.deploy("a")
    said = app.fail("b", workers=worker(command="sleep %(nonsense)s", stopwaitsecs="soon"))
    assert "b failed at the step switch: app_workers: supervisord cannot read them" in said
    assert app.serving == "a"
    assert not (settings.PROGRAMS / "carafe-test-app.workers.conf").exists()


@pytest.mark.parametrize(("here", "names"), [(True, ["mail", "beat"]), (False, ["mail"])])
def test_what_is_to_be_there_once_is_on_the_server_with_the_schedules(
    here: bool, names: list[str]
) -> None:
    workers = [{"name": "mail"}, {"name": "beat", "once": True}]
    found = Role("app").value("__app_workers", app_workers=workers, app_schedules_enabled=here)
    assert [x["name"] for x in found] == names


# As RQ does, and others.
STUBBORN = """
import signal, sys, time
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
while not told:
    time.sleep(0.05)
end = time.monotonic() + 3
while time.monotonic() < end and len(told) == 1:
    time.sleep(0.05)
print(f"told {len(told)} times")
"""


def test_who_ends_what_it_is_at_is_told_once(app: App, daemon: Any, tmp_path: Path) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    jobs = worker(command=f"{sys.executable} -u {tmp_path}/stubborn.py", stopwaitsecs=20)
    app.part(6, "a", workers=jobs)
    app.step("workers", "a", workers=jobs)
    app.step("finish", "a", workers=jobs)
    app.part(6, "b", workers=jobs)
    app.step("workers", "b", workers=jobs)
    assert "told 1 times" in (tmp_path / "carafe-test-app.jobs_0.log").read_text()
