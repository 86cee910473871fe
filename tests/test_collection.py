"""The repository builds as a collection, and a role of it runs by its full name elsewhere."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import pytest
from conftest import ROLES, ROOT

PLAYBOOK = """
- name: A role by its full name
  hosts: localhost
  connection: local
  gather_facts: true
  gather_subset: ["!all", "!min", hardware]
  roles:
    - role: carafe.stack.gunicorn
      gunicorn_manage_packages: false
      gunicorn_directory: /srv/nowhere
      gunicorn_user: nobody
"""


def run(*command: str | Path, environment: dict[str, str], folder: Path) -> str:
    result = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=60
    )
    return f"{result.returncode} {result.stdout} {result.stderr}"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, ansible_environment: dict[str, str]) -> Path:
    folder = tmp_path_factory.mktemp("built")
    build = ["ansible-galaxy", "collection", "build", "--output-path", folder, ROOT]
    done = run(*build, environment=ansible_environment, folder=folder)
    assert done.startswith("0 "), done
    (archive,) = folder.glob("carafe-stack-*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def elsewhere(
    archive: Path, tmp_path_factory: pytest.TempPathFactory, ansible_environment: dict[str, str]
) -> dict[str, str]:
    """Return an environment that has the installed collection, and nothing of the repository."""
    folder = tmp_path_factory.mktemp("elsewhere")
    environment = {**ansible_environment, "ANSIBLE_COLLECTIONS_PATH": str(folder / "installed")}
    (folder / "ansible.cfg").touch()
    environment |= {"ANSIBLE_CONFIG": str(folder / "ansible.cfg")}
    environment |= {"ANSIBLE_HOME": str(folder / "home")}
    install = ["ansible-galaxy", "collection", "install", "--offline", archive]
    done = run(*install, "-p", folder / "installed", environment=environment, folder=folder)
    assert done.startswith("0 "), done
    return environment


def test_only_what_users_need_travels(archive: Path) -> None:
    with tarfile.open(archive) as tar:
        names = tar.getnames()
    top = {name.split("/")[0] for name in names}
    files = {"MANIFEST.json", "FILES.json", "README.md", "LICENSE", "CHANGELOG.md", "SECURITY.md"}
    assert top - files == {"roles", "playbooks", "plugins", "meta"} | (top & {"docs"})
    assert {f"roles/{role}/README.md" for role in ROLES} <= set(names)
    assert not [x for x in names if x.endswith(".pyc") or "vault.yml" in x.split("/", 1)[0]]


def test_a_role_runs_from_the_collection(elsewhere: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text(PLAYBOOK)
    done = run("ansible-playbook", "--check", "play.yml", environment=elsewhere, folder=tmp_path)
    assert done.startswith("0 "), done
    assert "gunicorn : configure | Write what the slots need" in done
    assert "changed=0" not in done


def test_its_arguments_are_checked(elsewhere: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text(PLAYBOOK)
    command = ["ansible-playbook", "--check", "play.yml", "-e", "gunicorn_log_level=loud"]
    done = run(*command, environment=elsewhere, folder=tmp_path)
    assert done.startswith("2 "), done
    assert "value of gunicorn_log_level must be one of" in done


def test_the_preflight_comes_with_it(elsewhere: dict[str, str], tmp_path: Path) -> None:
    inventory = "app: {hosts: {away: {ansible_host: 127.0.0.1, ansible_port: 1}}}\n"
    (tmp_path / "hosts.yml").write_text(inventory)
    command = ["ansible-playbook", "carafe.stack.preflight", "-i", "hosts.yml"]
    done = run(*command, environment=elsewhere, folder=tmp_path)
    assert "away cannot be reached" in done
    assert "app_name is not set, and the role app needs it" in done


@pytest.fixture
def project(elsewhere: dict[str, str], tmp_path: Path) -> Path:
    """Return a project of the user's own: an inventory, and nothing else."""
    folder = tmp_path / "inventory/prod"
    (folder / "group_vars/prod").mkdir(parents=True)
    hosts = "{hosts: {away: {ansible_host: 127.0.0.1, ansible_port: 1}}}"
    groups = ("prod", "db", "app", "web")
    (folder / "hosts.yml").write_text("".join(f"{group}: {hosts}\n" for group in groups))
    settings = "app_name: Shop!\nstack_htps: false\n"
    (folder / "group_vars/prod/main.yml").write_text(settings)
    return tmp_path


def test_what_it_says_is_about_the_project_of_the_user(
    project: Path, elsewhere: dict[str, str]
) -> None:
    command = ["ansible-playbook", "carafe.stack.site", "-i", "inventory/prod"]
    done = run(*command, environment=elsewhere, folder=project)
    said = " ".join(done.split())
    for words in (
        "app_name is 'Shop!', which is not a name of a Linux user",
        "Edit inventory/prod/group_vars/prod/main.yml, line 1.",
        "stack_htps is a variable that the stack does not know; did you mean stack_https?",
        "Write inventory/prod/group_vars/prod/vault.yml:"
        " ansible-playbook carafe.stack.vault -i inventory/prod",
        "Then run again: ansible-playbook carafe.stack.site -i inventory/prod",
    ):
        assert words in said
    told = said.split("problems found before")[1].split("Then run again")[0]
    assert "installed" not in told
    assert "make " not in told
