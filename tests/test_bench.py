"""What the benchmark tells of a run is what happened in it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
from ansible.plugins.connection import ssh
from conftest import ROOT, load_module

pytestmark = pytest.mark.any_python


@pytest.fixture
def releases(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return load_module(ROOT / "benchmarks/releases.py", "releases")


@pytest.fixture
def told(releases: ModuleType) -> dict:
    """Summarise four seconds of load: in the third there is a deployment, and one good answer."""
    load = releases.Load("http://localhost")
    for number in range(400):
        due = number / 100
        failure = "status 502" if 200 < number < 300 else ""
        seconds = 0.2 if number == 200 else 0.01
        load.answers.append(releases.Answer(due, "GET", "/", seconds, failure=failure))
    load.answers.append(releases.Answer(2.5, "GET", "/slow", 1.5))
    return releases.summary(load, [{"seconds": [2, 3]}])


def test_every_lost_request_is_counted(told: dict) -> None:
    assert (told["requests"], told["lost"]) == (401, 99)
    assert told["half_seconds_with_lost"] == [2, 2.5]


def test_added_latency_is_that_of_quick_requests_during_a_deployment(told: dict) -> None:
    assert told["added_ms"] == 190


def test_lost_requests_have_no_latency(told: dict) -> None:
    assert told["max_ms"] == (10, 10, 200)
    assert told["median_ms"] == (10, 10, 200)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a part of the benchmark, as its command does."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


NOTES = [
    {"task": "1", "name": "Look", "role": "", "at": 0},
    {"trip": "exec_command", "task": "1", "seconds": 0.3},
    {"task": "2", "name": "Say", "role": "", "at": 1},
    {"task": "3", "name": "Write", "role": "carafe.stack.nginx", "at": 2},
    {"trip": "put_file", "task": "3", "seconds": 0.1},
    {"trip": "exec_command", "task": "3", "seconds": 0.2},
    # What several servers begin one after the other.
    {"task": "3", "name": "Write", "role": "carafe.stack.nginx", "at": 3},
    {"trip": "exec_command", "task": "3", "seconds": 0.2},
    {"end": True, "at": 4},
]


def test_trips_are_counted_by_role_and_tasks_without_one_are_not_on_the_server(
    bench: Callable[[str], ModuleType],
) -> None:
    servers = bench("servers")
    run = servers.Run(4, 2, {"stats": {"a": {"changed": 1}}}, servers.tasks_of(NOTES))
    assert (run.trips, run.tasks_on_server, run.changed) == (4, 2, 1)
    assert run.trips_by_role == {"play": 1, "nginx": 3}


def test_the_callback_notes_each_trip_with_its_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_TRIPS", str(tmp_path / "notes"))
    monkeypatch.setattr(ssh.Connection, "put_file", lambda *_: None)
    monkeypatch.setattr(ssh.Connection, "fetch_file", lambda *_: None)

    def fails(*_: object) -> None:
        raise OSError("cut off")

    monkeypatch.setattr(ssh.Connection, "exec_command", fails)
    trips = load_module(ROOT / "benchmarks/callbacks/trips.py", "trips")
    callback = trips.CallbackModule()
    task = mock.Mock(_uuid="1", _role=None)
    task.get_name.return_value = "Look"
    callback.v2_playbook_on_task_start(task, False)
    ssh.Connection.put_file(mock.Mock(), "a", "b")
    with pytest.raises(OSError, match="cut off"):
        ssh.Connection.exec_command(mock.Mock(), "true")
    notes = [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]
    assert [(x["task"], x.get("trip")) for x in notes] == [
        ("1", None),
        ("1", "put_file"),
        ("1", "exec_command"),
    ]


@pytest.mark.parametrize("rate", [40, 90, 333, 612, 875, 1750, 4000])
def test_a_rate_is_shared_out_as_a_whole(bench: Callable[[str], ModuleType], rate: float) -> None:
    periods = bench("serving").periods(rate)
    assert sum(1000 // x for x in periods) == pytest.approx(rate, rel=0.06)
    assert all(x == 1 or 5 < x < 30 for x in periods)


LOG = """\
1000000\t200\t5000
3500000\t503\t1000
1500000\t-1\t2000000
"""


def test_the_log_of_the_load_is_read_in_the_order_of_asking(
    bench: Callable[[str], ModuleType],
) -> None:
    asked = bench("serving").parse(LOG)
    assert [(x.at, x.status, x.seconds) for x in asked] == [
        (0, 200, 0.005),
        (0.5, -1, 2),
        (2.5, 503, 0.001),
    ]


def test_what_becomes_of_too_many_requests_is_told_apart(
    bench: Callable[[str], ModuleType],
) -> None:
    serving = bench("serving")
    many = [(200, 0.1)] * 90 + [(503, 0.002)] * 60 + [(429, 0.002)] * 20 + [(502, 0.002)] * 5
    asked = [serving.Asked(x / 10, *y) for x, y in enumerate([*many, (200, 1.5)])]
    found = serving.flooded(asked, capacity=5.2)
    assert (found["asked"], found["refused"], found["other"], found["slow"]) == (176, 80, 5, 1)
    assert found["served_of_capacity"] == pytest.approx(91 / 17.5 / 5.2)


def test_the_latency_is_that_of_the_time_after_the_connections_were_made(
    bench: Callable[[str], ModuleType],
) -> None:
    serving = bench("serving")
    asked = [serving.Asked(x / 100, 200, 0.5 if x < 200 else 0.002) for x in range(400)]
    asked[-1].seconds = 0.010
    assert serving.steady(asked) == {"p50_ms": 2, "p99_ms": pytest.approx(2), "failed": 0}


@pytest.mark.parametrize(("slow_until", "seconds"), [(0, 0), (2.5, 3), (10, 10)])
def test_recovery_is_the_time_until_the_median_stays_as_it_was(
    bench: Callable[[str], ModuleType], slow_until: float, seconds: int
) -> None:
    serving = bench("serving")
    usual = [serving.Asked(x / 10, 200, 0.010) for x in range(100)]
    after = [serving.Asked(x / 10, 200, 0.3 if x / 10 < slow_until else 0.012) for x in range(100)]
    assert serving.recovery(usual, after) == {"recovered_seconds": seconds}


def test_a_last_moment_with_few_requests_tells_nothing(bench: Callable[[str], ModuleType]) -> None:
    serving = bench("serving")
    usual = [serving.Asked(x / 10, 200, 0.010) for x in range(100)]
    after = [*usual, serving.Asked(10.02, 200, 0.3)]
    assert serving.recovery(usual, after) == {"recovered_seconds": 0}


def test_a_second_without_an_answer_is_not_well(bench: Callable[[str], ModuleType]) -> None:
    serving = bench("serving")
    usual = [serving.Asked(x / 10, 200, 0.010) for x in range(100)]
    after = [serving.Asked(x, 200, 0.010) for x in (0.5, 1.5, 4.5)]
    assert serving.recovery(usual, after) == {"recovered_seconds": 4}


def test_each_host_of_an_inventory_has_a_connection_and_a_stack_of_its_own(
    bench: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    server = object.__new__(bench("servers").Server)
    server.folder, server.name, server.port = tmp_path, "carafe", "2222"
    found = json.loads((server.inventory(2) / "hosts.json").read_text())
    hosts = found["bench"]["hosts"]
    assert list(hosts) == list(found["web"]["hosts"]) == ["carafe0", "carafe1"]
    assert len({x["ansible_control_path"] for x in hosts.values()}) == 2
    assert hosts["carafe1"]["stack_name"] == "stack_carafe1"
    assert found["stack_carafe1"] == {"hosts": {"carafe1": {}}}


def test_one_host_is_the_stack_that_every_inventory_has(
    bench: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    server = object.__new__(bench("servers").Server)
    server.folder, server.name, server.port = tmp_path, "carafe", "2222"
    found = json.loads((server.inventory() / "hosts.json").read_text())
    assert "stack_name" not in found["bench"]["hosts"]["carafe0"]


def test_a_second_app_has_nothing_of_the_guestbook(
    bench: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    server = object.__new__(bench("servers").Server)
    server.folder, server.name, server.port = tmp_path, "carafe", "2222"
    found = json.loads((server.inventory(app="ledger") / "hosts.json").read_text())
    assert "guestbook" not in found
    assert found["ledger"] == {"hosts": {"carafe0": {}}}
