"""What CI runs: all parts, or those that a change is about."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROLES, ROOT

pytestmark = pytest.mark.any_python

LOADER = importlib.machinery.SourceFileLoader("parts", str(ROOT / "scripts/parts"))
PARTS = importlib.util.module_from_spec(importlib.util.spec_from_loader("parts", LOADER))
LOADER.exec_module(PARTS)
ALWAYS = {"lint", "fast", "older", "sanity"}
SITES = {part for name, parts in PARTS.scenarios().items() for part in parts if name not in ROLES}


def test_without_a_change_all_parts_are_there() -> None:
    assert {"default@12", "default@13", "split"} <= SITES
    # Roles of several servers alone are tested there, in split, cluster and pair.
    alone = {role for role in ROLES if (ROOT / "molecule" / role).is_dir()}
    of_several = {"etcd", "internal_tls", "patroni"}
    assert set(ROLES) - alone == of_several | {"keepalived"}
    roles = {f"{role}@{release}" for role in alone for release in (12, 13)}
    assert set(PARTS.parts()) == ALWAYS | SITES | roles | {"sample-app"}


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("roles/nginx/tasks/main.yml", SITES | {"nginx@12", "nginx@13"}),
        ("roles/nginx/README.md", set()),
        ("molecule/nginx/tests/test_tls.py", {"nginx@12", "nginx@13"}),
        ("molecule/split/converge.yml", {"split"}),
        ("playbooks/deploy.yml", SITES),
        ("group_vars/lab/main.yml", SITES),
        ("sample_app/wsgi.py", SITES | {"sample-app"}),
        ("docs/explanation/security.md", set()),
        ("tests/test_parts.py", set()),
    ],
)
def test_a_change_concerns_its_own_parts(path: str, wanted: set[str]) -> None:
    assert set(PARTS.parts([path])) == ALWAYS | wanted


@pytest.mark.parametrize(
    "path",
    [
        "molecule/conftest.py",
        "molecule/shared/create.yml",
        ".config/molecule/config.yml",
        "plugins/modules/files.py",
        "requirements.txt",
        "scripts/server",
        "a-file-that-nobody-knows",
    ],
)
def test_what_is_everybodys_concerns_everybody(path: str) -> None:
    assert PARTS.parts([path]) == PARTS.parts()


def test_a_part_that_does_not_exist_is_a_failure(ansible_environment: dict[str, str]) -> None:
    run = subprocess.run(
        [ROOT / "scripts/test", "no-such-part"],
        env=ansible_environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert run.stdout.splitlines()[-1] == "0 passed, 1 failed"


# Notes when it began and ended, and at which priority; fails where it is asked to.
STUB = """#!/bin/sh
case "$*" in *version_info*) echo 11; exit ;; esac
name=${0##*/}
note() { echo "$1 $(ps -o ni= $$) $name $words" >>"$CARAFE_LOG"; }
words=$*
note began
case $name in molecule | pytest) sleep 0.5 ;; esac
note ended
case $words in *broken) exit 1 ;; esac
"""
LINTERS = ("ruff", "yamllint", "shellcheck", "actionlint", "bandit")


@pytest.fixture
def suite(tmp_path: Path) -> Callable[..., tuple[str, list[list[str]]]]:
    """Run scripts/test on stubs: what it says, and what they noted."""
    for folder in ("scripts", ".ci", "roles/x/files", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("one", "two", "three", "broken"):
        (tmp_path / "molecule" / name).mkdir(parents=True)
        (tmp_path / "molecule" / name / "molecule.yml").touch()
    shutil.copy(ROOT / "scripts/test", tmp_path / "scripts/test")
    stubs = [f"scripts/{x}" for x in ("setup", "engine", "image", "server", "sanity", "sample-app")]
    stubs += [f".venv/bin/{x}" for x in ("python", "pytest", "molecule", *LINTERS)]
    for stub in stubs:
        (tmp_path / stub).write_text(STUB)
        (tmp_path / stub).chmod(0o755)

    def run(*parts: str) -> tuple[str, list[list[str]]]:
        log = tmp_path / "log"
        log.touch()
        done = subprocess.run(
            [tmp_path / "scripts/test", *parts],
            env={**os.environ, "CARAFE_LOG": str(log)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == ("broken" in done.stdout), done.stdout + done.stderr
        return done.stdout, [line.split() for line in log.read_text().splitlines()]

    return run


def test_all_parts_are_run_once_each_and_no_more_than_three_at_a_time(
    suite: Callable[..., tuple[str, list[list[str]]]],
) -> None:
    said, noted = suite()
    assert said.splitlines()[-1] == f"{len(LINTERS) + 8} passed, 1 failed"
    assert "\nFAILED molecule broken\n" in said
    computed = max(n for n, (_, _, name, *_) in enumerate(noted) if name in ("pytest", *LINTERS))
    at_once = [0]
    for number, (what, _, name, *_) in enumerate(noted):
        if name == "molecule":
            at_once.append(at_once[-1] + (1 if what == "began" else -1))
            # What computes has the place of the third.
            assert at_once[-1] <= (2 if number < computed else 3)
    assert max(at_once) >= 2
    began = [words for what, _, *words in noted if what == "began"]
    scenarios = sorted(words[-1] for words in began if words[0] == "molecule")
    assert scenarios == ["broken", "one", "three", "two"]
    names = [words[0] for words in began]
    once = {*LINTERS, "pytest", "sanity", "sample-app"} - {"ruff"}
    assert {name: names.count(name) for name in once} == dict.fromkeys(once, 1)


def test_what_needs_no_server_gets_what_scenarios_leave_of_the_machine(
    suite: Callable[..., tuple[str, list[list[str]]]],
) -> None:
    own = os.nice(0)
    _, noted = suite("fast", "one")
    nice = {name: int(x) for _, x, name, *_ in noted}
    assert (nice["molecule"], nice["pytest"]) == (own, max(own, 10))
    names = [name for what, _, name, *_ in noted if what == "began"]
    assert names.index("molecule") < names.index("pytest")


def test_without_scenarios_it_has_the_machine(
    suite: Callable[..., tuple[str, list[list[str]]]],
) -> None:
    _, noted = suite("fast")
    assert {int(nice) for _, nice, name, *_ in noted if name == "pytest"} == {os.nice(0)}
