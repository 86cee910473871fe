"""What the benchmark tells of a run is what happened in it."""

from __future__ import annotations

from types import ModuleType

import pytest
from conftest import ROOT, load_module


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


def test_tasks_of_the_control_machine_are_not_counted(releases: ModuleType) -> None:
    results = [
        {"action": "ansible.builtin.command"},
        {"action": "ansible.builtin.command", "skipped": True},
        {"action": "ansible.builtin.command", "_ansible_delegated_vars": {}},
        {"action": "ansible.builtin.set_fact"},
        {"action": "preflight"},
    ]
    tasks = [{"hosts": {"server": result}} for result in results]
    assert releases.tasks_on_server({"plays": [{"tasks": tasks}]}) == 1
