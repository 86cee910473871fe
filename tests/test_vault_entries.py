"""Entries of a vault change, and nothing else of it: neither the others nor who can read it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from jinja2 import Template

BEFORE = {"password": "old", "token": "stays: \N{SNOWMAN} {{ not a template }}"}


@pytest.fixture
def environment(ansible_environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """That of a project of somebody's own: ansible.cfg of the repository names a key."""
    return {k: v for k, v in ansible_environment.items() if k != "ANSIBLE_CONFIG"} | {
        "ANSIBLE_HOME": str(tmp_path / "home"),
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
    }


@pytest.fixture
def vault(tmp_path: Path, environment: dict[str, str]) -> Path:
    """A vault with one of two secrets, that of prod."""
    for name in ("staging", "prod"):
        (tmp_path / f"{name}.key").write_text(f"of {name}\n")
    path = tmp_path / "vault.yml"
    path.write_text(yaml.safe_dump(BEFORE, allow_unicode=True))
    subprocess.run(
        ["ansible-vault", "encrypt", "--vault-id", f"prod@{tmp_path}/prod.key", path],
        env=environment,
        cwd=tmp_path,
        check=True,
    )
    return path


def change(
    vault: Path, environment: dict[str, str], keys: tuple[str, ...], *options: str, **entries: str
) -> tuple[int, str]:
    task: dict[str, Any] = {
        "carafe.stack.vault_entries": {"path": str(vault), "entries": entries},
        "register": "read",
    }
    show = {"ansible.builtin.debug": {"msg": "{{ read.entries | to_json }}"}}
    play = [{"hosts": "localhost", "gather_facts": False, "tasks": [task, show]}]
    playbook = vault.with_name("play.yml")
    playbook.write_text(json.dumps(play))
    ids = [f"--vault-id={key}@{vault.parent}/{key}.key" for key in keys]
    done = subprocess.run(
        ["ansible-playbook", playbook, *ids, *options],
        env=environment,
        cwd=vault.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def view(vault: Path, environment: dict[str, str]) -> dict[str, str]:
    key = f"prod@{vault.parent}/prod.key"
    words = ["ansible-vault", "view", "--vault-id", key, vault]
    return yaml.safe_load(subprocess.check_output(words, env=environment, cwd=vault.parent))


def test_an_entry_changes_and_who_reads_it_does_not(
    vault: Path, environment: dict[str, str]
) -> None:
    new = {"password": "new: # plain", "another": "x"}
    status, said = change(vault, environment, ("staging", "prod"), **new)
    assert (status, "changed=1 " in said) == (0, True), said
    # With the secret of prod, though that of staging was named first.
    assert vault.read_text().splitlines()[0] == "$ANSIBLE_VAULT;1.2;AES256;prod"
    assert view(vault, environment) == BEFORE | new
    assert vault.stat().st_mode & 0o777 == 0o600
    before = vault.read_bytes()
    status, said = change(vault, environment, ("prod",), **new)
    assert (status, "changed=0 " in said) == (0, True), said
    assert vault.read_bytes() == before


def test_a_dry_run_writes_nothing(vault: Path, environment: dict[str, str]) -> None:
    before = vault.read_bytes()
    status, said = change(vault, environment, ("prod",), "--check", password="new")
    assert (status, "changed=1 " in said) == (0, True), said
    assert vault.read_bytes() == before


def test_a_vault_of_somebody_else_stays_as_it_is(vault: Path, environment: dict[str, str]) -> None:
    before = vault.read_bytes()
    status, said = change(vault, environment, ("staging",), password="new")
    assert status != 0
    assert f"The vault {vault} cannot be read: " in " ".join(said.split())
    assert "Traceback" not in said
    assert vault.read_bytes() == before


def test_the_other_login_comes_by_the_same_kind_of_url() -> None:
    """An app with one driver has no other, not even while its password changes."""
    tasks = yaml.safe_load((ROOT / "playbooks/tasks/rotate_database_password.yml").read_text())
    name = "stack_database_tls"
    [url] = [task["vars"][name] for task in tasks if name in task.get("vars", {})]
    values = {
        "stack_database": "postgresql+psycopg",
        "rotate_login": "shop-rotating",
        "vault_database_password_next": "next",
        "stack_database_place": "10.0.0.10/shop",
    }
    assert Template(url).render(values) == "postgresql+psycopg://shop-rotating:next@10.0.0.10/shop"
