"""What CI runs: all parts, or those that a change is about."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import subprocess

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
    # A role of several servers alone is tested there, in split.
    alone = {role for role in ROLES if (ROOT / "molecule" / role).is_dir()}
    assert set(ROLES) - alone == {"internal_tls"}
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
