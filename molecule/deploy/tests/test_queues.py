"""Celery, its beat and RQ, by the recipes of docs/how-to as they are written."""

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY
from testinfra.host import Host

PAGE = (REPOSITORY / "docs/how-to/workers-and-schedules.md").read_text()

# What takes until a test says so, for both queues; Celery's beat sends a tick each second.
TASKS = """
import os
import time
import celery
import redis

app = celery.Celery("shop")
app.conf.beat_schedule = {"tick": {"task": "shop.tasks.tick", "schedule": 1.0}}
cache = redis.from_url(os.environ["CACHE_URL"])

@app.task
def work(name):
    cache.rpush(name, "begun by " + os.environ["APP_RELEASE"])
    deadline = time.monotonic() + 60
    while not cache.exists("go") and time.monotonic() < deadline:
        time.sleep(0.05)
    cache.rpush(name, "ended by " + os.environ["APP_RELEASE"])

@app.task
def tick():
    cache.incr("ticks")
"""
SEND = """
import rq
from shop import tasks
tasks.work.delay("celery-{0}")
rq.Queue(connection=tasks.cache).enqueue(tasks.work, "rq-{0}")
"""
BEATEN = (
    "import shelve; print(shelve.open('beat/schedule', 'r')['entries']['tick'].total_run_count)"
)


def recipe(title: str) -> dict[str, Any]:
    """Return the variables of a recipe, which stand first below its title."""
    (text,) = re.findall(rf"^## {title}\n.*?```yaml\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL)
    return yaml.safe_load(text)


def both() -> dict[str, Any]:
    """Return what an app says that has both queues."""
    celery, rq = recipe("Celery, and its beat"), recipe("RQ")
    together = {**celery, **rq}
    together["app_environment"] = {**celery["app_environment"], **rq["app_environment"]}
    together["app_workers"] = celery["app_workers"] + rq["app_workers"]
    return together


@pytest.fixture
def python(host: Host) -> Callable[[str], str]:
    """Run a script as the app, in the release that serves."""
    return lambda script: host.check_output(f"cd / && ledger python -c {shlex.quote(script)}")


@pytest.fixture
def said(host: Host) -> Callable[[str], list[str]]:
    """Get what the tasks of a name have written."""
    client = "$(ls /usr/bin/valkey-cli /usr/bin/redis-cli 2>/dev/null)"
    ask = f"runuser -u ledger -- {client} -s /run/valkey-ledger/valkey.sock"
    return lambda command: host.check_output(f"{ask} {command}").splitlines()


@pytest.fixture
def queues(code: Callable[[str], Path]) -> Callable[[str], dict[str, Any]]:
    """Get what a release with both queues is: queues("one")."""

    def variables(word: str) -> dict[str, Any]:
        folder = code(word)
        (folder / "shop").mkdir()
        (folder / "shop/tasks.py").write_text(TASKS)
        with (folder / "requirements.txt").open("a") as file:
            file.write("celery[redis]==5.7.0\nrq==3.0.0\n")
        return {**both(), "ledger_path": str(folder)}

    return variables


@pytest.mark.newest_release
def test_a_task_in_flight_at_a_release_ends_and_the_next_is_by_the_new_one(
    playbook: Callable[..., subprocess.CompletedProcess[str]],
    command: Callable[..., list[str]],
    queues: Callable[[str], dict[str, Any]],
    serving: Callable[[], str],
    python: Callable[[str], str],
    said: Callable[[str], list[str]],
    host: Host,
    eventually: Callable[..., None],
) -> None:
    said("FLUSHALL")
    done = playbook("deploy", **queues("first"))
    assert done.returncode == 0, done.stdout
    old = serving()
    python(SEND.format(1))
    names = ("celery-1", "rq-1")
    eventually(lambda: all(said(f"LRANGE {x} 0 -1") == [f"begun by {old}"] for x in names), 20)
    eventually(lambda: int(said("GET ticks")[0] or 0) > 1, 20)

    with subprocess.Popen(
        command("deploy", **queues("second")), stdout=subprocess.PIPE, text=True
    ) as deploying:
        # Both have their TERM, and are at it all the same.
        status = "supervisorctl status | grep -c STOPPING || true"
        eventually(lambda: int(host.check_output(status)) >= 2, 60)
        assert serving() != old
        said("SET go 1")
        output, _ = deploying.communicate(timeout=60)
    assert deploying.returncode == 0, output
    for name in names:
        assert said(f"LRANGE {name} 0 -1") == [f"begun by {old}", f"ended by {old}"]

    # It writes its file when it ends, and every few minutes.
    assert int(python(BEATEN)) > 1, "the beat has begun anew"
    new, before = serving(), int(said("GET ticks")[0])
    python(SEND.format(2))
    for name in ("celery-2", "rq-2"):
        wanted = [f"begun by {new}", f"ended by {new}"]
        eventually(lambda name=name, wanted=wanted: said(f"LRANGE {name} 0 -1") == wanted, 20)
    eventually(lambda: int(said("GET ticks")[0]) > before, 20)
    beats = "ps -C celery -o args= | grep -c ' beat ' || true"
    assert host.check_output(beats) == "1"
