"""playbooks/vault.yml writes secrets into the project that has the inventory, and nowhere else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml
from ansible_collections.carafe.stack.plugins.plugin_utils.authority import Authority
from conftest import ROOT


class Project:
    """A folder of somebody's own, with an inventory in it."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder = folder
        # ansible.cfg of the repository is not the project's.
        self.environment = {k: v for k, v in environment.items() if k != "ANSIBLE_CONFIG"}
        self.environment["ANSIBLE_HOME"] = str(folder / "home")
        self.environment["ANSIBLE_COLLECTIONS_PATH"] = str(ROOT / "collections")

    def hosts(self, path: str) -> Path:
        file = self.folder / path
        file.parent.mkdir(parents=True)
        file.write_text("prod: {hosts: {server: {}}}\n")
        return file

    def run(self, *options: str) -> tuple[int, str]:
        command = ["ansible-playbook", str(ROOT / "playbooks/vault.yml"), *options]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    def view(self, path: str) -> str:
        command = ["ansible-vault", "view", path]
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout


@pytest.fixture
def project(tmp_path: Path, ansible_environment: dict[str, str]) -> Project:
    return Project(tmp_path, ansible_environment)


def test_a_project_gets_a_vault_that_ansible_can_read(project: Project) -> None:
    project.hosts("inventory/prod/hosts.yml")
    status, said = project.run("-i", "inventory/prod")
    assert status == 0, said
    assert "Next: ansible-playbook carafe.stack.site -i inventory/prod" in said
    vault = "inventory/prod/group_vars/prod/vault.yml"
    assert (project.folder / vault).read_text().startswith("$ANSIBLE_VAULT")
    assert len(project.view(vault).split("vault_app_secret_key: ")[1].split()[0]) == 64
    assert (project.folder / ".gitignore").read_text() == ".vault-password\n"
    before = (project.folder / vault).read_bytes()
    status, said = project.run("-i", "inventory/prod")
    assert status == 0
    assert "changed=0" in said
    assert (project.folder / vault).read_bytes() == before


def test_a_vault_gets_what_it_lacks_and_keeps_the_rest(project: Project) -> None:
    project.hosts("inventory/prod/hosts.yml")
    assert project.run("-i", "inventory/prod")[0] == 0
    path = "inventory/prod/group_vars/prod/vault.yml"
    mine = "# mine\nvault_app_secret_key: of-an-older-release\nvault_token: x # a comment\n"
    (project.folder / path).write_text(mine)
    command = ["ansible-vault", "encrypt", path]
    subprocess.run(command, cwd=project.folder, env=project.environment, check=True)
    status, said = project.run("-i", "inventory/prod")
    assert status == 0, said
    assert "Added what it lacked" in said
    after = project.view(path)
    assert after.startswith(mine)
    added = yaml.safe_load(after)
    assert len(added["vault_database_password"]) == 40
    assert Authority.load(added["vault_internal_ca_key"])
    assert "Left as it was" in project.run("-i", "inventory/prod")[1]


def test_a_vault_that_is_not_encrypted_is_left_as_it_is(project: Project) -> None:
    project.hosts("inventory/prod/hosts.yml")
    assert project.run("-i", "inventory/prod")[0] == 0
    vault = project.folder / "inventory/prod/group_vars/prod/vault.yml"
    vault.write_text("vault_app_secret_key: plain\n")
    assert "Left as it was" in project.run("-i", "inventory/prod")[1]
    assert vault.read_text() == "vault_app_secret_key: plain\n"


def test_files_of_the_project_stay_as_they_are(project: Project) -> None:
    project.hosts("servers/hosts.yml")
    (project.folder / "servers/ansible.cfg").write_text("[defaults]\nforks = 3\n")
    (project.folder / "servers/.gitignore").write_text("*.pyc\n")
    status, said = project.run("-i", "servers/hosts.yml")
    assert status == 0, said
    assert "vault_password_file = .vault-password" in said
    assert (project.folder / "servers/ansible.cfg").read_text() == "[defaults]\nforks = 3\n"
    assert (project.folder / "servers/.gitignore").read_text() == "*.pyc\n.vault-password\n"
    # The folder is not named after a group of its hosts.
    assert (project.folder / "servers/group_vars/all/vault.yml").exists()


def test_in_a_clone_the_commands_are_those_of_its_tools(project: Project) -> None:
    project.hosts("inventory/prod/hosts.yml")
    (project.folder / "ansible.cfg").write_text("")
    script = project.folder / "scripts/vault-password"
    script.parent.mkdir()
    script.write_text("")
    status, said = project.run("-i", "inventory/prod")
    assert status == 0, said
    assert "Next: .venv/bin/ansible-playbook site.yml -i inventory/prod" in said
    assert "Read it: .venv/bin/ansible-vault view inventory/prod/group_vars" in said
    assert "It is to name the key" not in said


def test_a_vault_without_its_key_is_left_alone(project: Project) -> None:
    project.hosts("inventory/prod/hosts.yml")
    vault = project.folder / "inventory/prod/group_vars/prod/vault.yml"
    vault.parent.mkdir(parents=True)
    vault.write_text("$ANSIBLE_VAULT;1.1;AES256\n00\n")
    status, said = project.run("-i", "inventory/prod")
    assert status == 2
    assert "Bring the key from your password manager" in said
    assert not (project.folder / ".vault-password").exists()


def test_without_an_inventory_nothing_is_written(project: Project) -> None:
    status, said = project.run()
    assert status == 2
    assert "Add -i inventory/prod" in said
    assert not list(project.folder.glob("**/vault.yml"))
