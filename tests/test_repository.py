"""The repository's own promises: commands that work as typed, settings that hold."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROLES, ROOT, load_yaml

PLAYBOOKS = sorted([ROOT / "site.yml", *(ROOT / "playbooks").glob("*.yml")])
PLAY = re.compile(r"^[- ] (hosts|ansible\.builtin\.import_playbook):", re.MULTILINE)
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = re.findall(r"^([a-z-]+):.*\n((?:\t.*\n?)*)", MAKEFILE, re.MULTILINE)


def test_every_playbook_can_be_parsed(ansible_environment: dict[str, str]) -> None:
    """And with them all roles; scripts/ansible-lint leaves that to this test."""
    of_tests = [x for x in (ROOT / "molecule").glob("*/*.yml") if PLAY.search(x.read_text())]
    files = sorted([*PLAYBOOKS, *of_tests])
    assert len(of_tests) > len(ROLES)
    command = ["ansible-playbook", "--syntax-check", "-i", "localhost,", *files]
    result = subprocess.run(
        command, cwd=ROOT, env=ansible_environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_the_preflight_comes_before_all_else() -> None:
    first, *_ = load_yaml(ROOT / "playbooks/site.yml")
    assert first["ansible.builtin.import_playbook"] == "preflight.yml"
    (play,) = load_yaml(ROOT / "playbooks/preflight.yml")
    assert play["any_errors_fatal"] is True
    assert play["tags"] == ["always"]


def test_site_yml_holds_nothing_but_named_playbooks() -> None:
    for play in load_yaml(ROOT / "playbooks/site.yml"):
        assert set(play) <= {"name", "ansible.builtin.import_playbook", "tags", "vars"}
        assert play.get("vars", {}).keys() <= {"preflight_for"}


@pytest.mark.parametrize(("target", "recipe"), TARGETS, ids=[name for name, _ in TARGETS])
def test_a_target_is_one_command_line(target: str, recipe: str) -> None:
    assert len(recipe.splitlines()) == 1
    assert re.search(rf"^{target}:.* ## \w", MAKEFILE, re.MULTILINE), "make help does not list it"
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert phony
    assert target in phony[1].split()


@pytest.mark.parametrize("word", sorted(set(re.findall(r"\bscripts/[a-z-]+", MAKEFILE))))
def test_a_target_runs_what_is_there(word: str) -> None:
    assert os.access(ROOT / word, os.X_OK)


def test_facts_are_gathered_only_where_a_playbook_says_so() -> None:
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "ansible.cfg")
    assert config["defaults"]["gathering"] == "explicit"
    assert config["defaults"]["inject_facts_as_vars"] == "false"
    assert config["connection"]["pipelining"] == "true"
    assert "strategy" not in config["defaults"]


def test_a_project_of_ones_own_is_told_what_the_clone_is() -> None:
    (play,) = load_yaml(ROOT / "playbooks/vault.yml")
    (text,) = (
        x["ansible.builtin.copy"]["content"]
        for x in play["tasks"]
        if "any_unparsed_is_failed" in str(x.get("ansible.builtin.copy"))
    )
    clone, own = (configparser.ConfigParser(interpolation=None) for _ in range(2))
    clone.read(ROOT / "ansible.cfg")
    own.read_string(text)
    for section in ("inventory", "connection"):
        assert {**own[section]} == {**clone[section]}
    arguments = own["ssh_connection"]["ssh_args"]
    assert arguments == clone["ssh_connection"]["ssh_args"]
    # ssh waits once more than it has asked.
    every, times = map(int, re.findall(r"ServerAlive\w+=(\d+)", arguments))
    assert every * (times + 1) <= 60


@pytest.mark.parametrize("text", [None, "all:\n\thosts:\n", "all: [\n"])
def test_an_inventory_that_is_none_is_an_error(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "hosts.yml").write_text(text)
    inventory = tmp_path / "hosts.yml" if text is not None else tmp_path / "prodd"
    command = ["ansible-playbook", "playbooks/sbom.yml", "-i", str(inventory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert str(inventory) in done.stderr


def test_ansible_knows_every_setting_of_its_configuration(
    ansible_environment: dict[str, str],
) -> None:
    """A misspelt setting is ignored without a word."""
    command = ["ansible-config", "validate", "-t", "all"]
    result = subprocess.run(
        command, cwd=ROOT, env=ansible_environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "inventory").iterdir()), ids=lambda x: x.name)
def test_an_environment_finds_its_variables(path: Path) -> None:
    assert (path / "group_vars").readlink() == Path("../../group_vars")
    hosts = load_yaml(path / "hosts.yml")
    assert hosts[path.name]["vars"]["ansible_group_priority"] == 10
    assert (ROOT / "group_vars" / path.name / "main.yml").exists()


def test_no_secret_lies_open() -> None:
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    vaults = [ROOT / x for x in files if Path(x).name == "vault.yml" and "group_vars" in x]
    assert all(x.read_text().startswith("$ANSIBLE_VAULT") for x in vaults)
    assert not [x for x in files if Path(x).name in (".vault-password", "id_ed25519")]


def test_the_roles_have_one_and_the_same_way_out_of_a_sandbox() -> None:
    """It lies in plugins/files, from where carafe.stack.files and modules take it."""
    assert [x for x in tracked() if x.endswith("/fit-sandbox")] == ["plugins/files/fit-sandbox"]


def tracked() -> list[str]:
    command = ["git", "ls-files"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [x for x in result.stdout.splitlines() if (ROOT / x).is_file()]


def test_a_new_role_needs_no_edit_in_a_list_of_roles() -> None:
    """Which server gets a role stands in one place, and when it does its work in another."""
    agreed = {"playbooks/group_vars/all/stack.yml", "playbooks/stack.yml"}
    names = "|".join(ROLES)
    of_one_role = rf"(roles|molecule)/({names})/|playbooks/group_vars/all/({names})\.yml"
    # What was measured is for the documents.
    of_documents = r"docs/|README\.md|CHANGELOG\.md|benchmarks/results\.json"
    role = re.compile(rf"(?<![\w.-])(?:{names})(?!\w)")
    found = {}
    for file in tracked():
        if not re.match(f"{of_one_role}|{of_documents}", file):
            text = (ROOT / file).read_text(errors="replace")
            in_a_line = max((len(set(role.findall(x))) for x in text.splitlines()), default=0)
            if len(set(role.findall(text))) > len(ROLES) * 2 / 3 or in_a_line >= 4:
                found[file] = sorted(set(role.findall(text)))
    assert set(found) == agreed, found
