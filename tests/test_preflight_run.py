"""The real playbook, on inventories with mistakes: it says what to do, and changes nothing.

Only playbooks/preflight.yml runs here, since the servers of these inventories are this machine.
What does not depend on a server, or on how the command is run, is asked in this process.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from inventories import SECRETS, Looked

# What fits into this machine, whatever it is.
SMALL = {
    "postgres_memory_mb": 128,
    "gunicorn_memory_mb": 64,
    "gunicorn_worker_memory_mb": 20,
    "gunicorn_workers": 1,
}
HERE = {"ansible_connection": "local", "ansible_become": False}


class Environment:
    """An inventory like inventory/prod."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder, self.environment = folder, environment
        (folder / "group_vars/test").mkdir(parents=True)
        (folder / "group_vars/guestbook").symlink_to(ROOT / "group_vars/guestbook")

    def write(
        self,
        hosts: dict[str, dict[str, Any]],
        groups: tuple[str, ...] = ("db", "app", "web"),
        everyone: dict[str, Any] | None = None,
        in_hosts: dict[str, Any] | None = None,
        **variables: Any,
    ) -> None:
        names: dict[str, dict[str, Any]] = {name: {} for name in hosts}
        inventory = {"test": {"hosts": hosts, "vars": {"ansible_group_priority": 10}}}
        inventory |= {group: {"hosts": names} for group in groups}
        # One database, which the others share.
        inventory |= {"db": {"hosts": dict([*names.items()][:1])}} if "db" in groups else {}
        inventory["all"] = {"vars": in_hosts or {}}
        inventory["guestbook"] = {"children": {"test": {}}}
        (self.folder / "hosts.yml").write_text(yaml.safe_dump(inventory))
        settings = {"app_domains": ["example.com"], **variables}
        (self.folder / "group_vars/test/main.yml").write_text(yaml.safe_dump(settings))
        (self.folder / "group_vars/all.yml").write_text(yaml.safe_dump(everyone or {}))

    def run(
        self,
        hosts: dict[str, dict[str, Any]],
        *options: str,
        playbook: str = "playbooks/preflight.yml",
        **variables: Any,
    ) -> tuple[int, str]:
        """Run a playbook; return its exit status, and what it wrote, in one line."""
        self.write(hosts, **variables)
        command = ["ansible-playbook", playbook, "-i", str(self.folder), *options]
        result = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=60
        )
        assert "changed=1" not in result.stdout
        assert "Traceback" not in result.stdout + result.stderr
        return result.returncode, " ".join(result.stdout.split())

    def said(
        self,
        hosts: dict[str, dict[str, Any]],
        *extra: str,
        limit: str | None = None,
        playbook: Path = ROOT / "playbooks/preflight.yml",
        **variables: Any,
    ) -> str:
        """Return what the preflight says of servers of 2 GiB with Debian 13, in one line."""
        self.write(hosts, **variables)
        return Looked(self.folder, *extra, playbook=playbook, limit=limit).said


@pytest.fixture
def inventory(tmp_path: Path, ansible_environment: dict[str, str]) -> Environment:
    folder = tmp_path / "inventory/test"
    folder.mkdir(parents=True)
    return Environment(folder, ansible_environment)


def on_debian() -> bool:
    text = Path("/etc/os-release").read_text()
    return "\nID=debian\n" in text and any(f'VERSION_ID="{x}"' in text for x in (12, 13))


@pytest.mark.skipif(not on_debian(), reason="the server of this test is this machine")
def test_a_good_inventory_is_let_through(inventory: Environment) -> None:
    status, said = inventory.run({"one": HERE}, "--check", **SMALL, **SECRETS)
    assert status == 0, said


def test_mistakes_of_one_server_are_told_all_at_once(inventory: Environment) -> None:
    status, said = inventory.run(
        {"one": {**HERE, "supervisor_log_levle": "info"}},
        "-e",
        "app_sorce=git",
        app_name="Guest Book",
        app_domains=["https://example.com"],
        app_environment={"A B": 1},
        gunicorn_workers=40,
        postgres_settings={"max_connections": 100},
        nginx_worker_proceses=2,
        nginx_sites="none",
        postgres_memory_mb=10_000_000,
        postgres_databases=[{"name": "", "owner": "x"}],
        postgres_roles=[{"name": "x"}, {"name": "x"}],
        app_hooks={"befor_switch": ["true"]},
    )
    assert status == 2
    folder = inventory.folder
    for words in (
        "app_name is 'Guest Book', which is not a name of a Linux user",
        "app_domains has 'https://example.com', which is not a host name",
        "app_environment has the name 'A B'",
        "nginx_sites is the text 'none', and a list is meant",
        "postgres_databases has a database named ''",
        "app_hooks has befor_switch, and knows only before_build,",
        "postgres_roles has two roles named 'x'",
        "postgres_memory_mb promises more memory than one has",
        "postgres_settings has max_connections 100, of which 3 are kept for the superuser",
        "did you mean nginx_worker_processes?",
        f"Edit {folder}/group_vars/test/main.yml, line",
        "did you mean supervisor_log_level?",
        f"Edit {folder}/hosts.yml, line",
        "did you mean app_source? (one) Edit what -e on the command line says.",
        "vault_app_secret_key is not set, and app_secret_key needs it",
        f"Write {folder}/group_vars/test/vault.yml:"
        f" ansible-playbook playbooks/vault.yml -i {folder}",
        f"Then run again: ansible-playbook playbooks/preflight.yml -i {folder}",
    ):
        assert words in said


def test_mistakes_of_several_servers(inventory: Environment) -> None:
    nobody = {"ansible_become": True, "ansible_become_user": "nobody"}
    status, said = inventory.run(
        {
            "one": {**HERE, "private_address": "10.0.0.1"},
            "two": HERE,
            "nopython": {**HERE, "ansible_python_interpreter": "/nonexistent/python3"},
            "nosudo": {**HERE, **nobody, "ansible_become_exe": "/nonexistent/sudo"},
            "away": {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_user": "me"},
        },
        app_secret_key="short",
        database_migrate_password="",
    )
    assert status == 2
    for words in (
        "private_address is not set for two",
        f"Edit {inventory.folder}/hosts.yml",
        "vault_database_password is not set",
        "database_migrate_password is empty",
        "app_secret_key has 5 characters",
        "away cannot be reached at 127.0.0.1",
        "ssh -p 1 me@127.0.0.1",
        "has no Python 3 on nopython",
        "cannot become root on nosudo",
    ):
        assert words in said
    # One missing address has one message, not one for each variable that needs it.
    assert said.count("private_address is not set for two") == 2
    assert "cannot be made out" not in said


def test_a_limit_and_a_missing_group_do_not_matter(inventory: Environment) -> None:
    hosts = {name: {"private_address": f"10.0.0.{i}"} for i, name in enumerate("ab", 1)}
    variables = {"stack_database": "", **SECRETS}
    assert inventory.said(hosts, limit="b", groups=("app",), **variables) == ""


@pytest.mark.skipif(not on_debian(), reason="the server of this test is this machine")
def test_a_database_s_server_that_is_left_out_is_asked_all_the_same(inventory: Environment) -> None:
    hosts = {
        name: {**HERE, "private_address": f"10.0.0.{x}"} for x, name in ((1, "one"), (2, "two"))
    }
    variables = {"certificates_source": "ca", **SMALL, **SECRETS}
    status, said = inventory.run(hosts, "--check", "--limit=two", **variables)
    assert status == 0, said
    assert "ok: [two -> one]" in said
    status, said = inventory.run(hosts, "--check", **variables)
    assert "[two -> one]" not in said
    hosts["one"] |= {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    status, said = inventory.run(hosts, "--check", "--limit=two", **variables)
    assert status == 0, said
    assert "[two -> one]: UNREACHABLE!" in said
    assert "Keep how the servers relate" in said


@pytest.mark.parametrize(
    ("path", "says"),
    [("/admin", ""), ("/", "say it in the site's own entry"), ("/static/", "is a static folder")],
)
def test_a_path_is_looked_at_beside_what_the_site_has_by_itself(
    inventory: Environment, path: str, says: str
) -> None:
    site = {"name": "guestbook", "locations": [{"path": path, "maintenance": False}]}
    said = inventory.said({"one": {}}, nginx_sites=[site], **SMALL, **SECRETS)
    assert says in said if says else said == ""


def test_a_missing_database_server_is_told_in_words(inventory: Environment) -> None:
    hosts = {name: {"private_address": f"10.0.0.{i}"} for i, name in enumerate("ab", 1)}
    said = inventory.said(hosts, groups=("app",), **SECRETS)
    assert "no server is in the group db" in said
    assert "cannot be made out" not in said


def test_the_stack_is_not_touched_when_the_preflight_fails(inventory: Environment) -> None:
    away = {"ansible_host": "127.0.0.1", "ansible_port": 1}
    status, said = inventory.run({"one": away}, playbook="site.yml", **SECRETS)
    assert status == 2
    assert "cannot be reached" in said
    assert "PLAY [The stack]" not in said


def test_vars_of_the_playbook_count_and_the_command_line_wins(
    inventory: Environment, tmp_path: Path
) -> None:
    playbook = tmp_path / "play.yml"
    imported = {"ansible.builtin.import_playbook": str(ROOT / "playbooks/preflight.yml")}
    imported["vars"] = {"app_domains": ["a b"], "app_name": "A B"}
    playbook.write_text(yaml.safe_dump([imported]))
    said = inventory.said({"one": {}}, '{"app_name": "C D"}', playbook=playbook, **SECRETS)
    assert "app_domains has 'a b'" in said
    assert "Edit the vars of the play." in said
    assert "app_name is 'C D'" in said


def test_secrets_are_not_shown(inventory: Environment) -> None:
    secrets = {**SECRETS, "vault_app_secret_key": "too-short-a-secret"}
    status, said = inventory.run({"one": HERE}, "-vvv", **secrets)
    assert status == 2
    assert "app_secret_key has 18 characters" in said
    assert "too-short-a-secret" not in said
    assert "hush-hush" not in said


def problems_in(said: str) -> list[str]:
    """Return which variables have a problem, in order."""
    return re.findall(r" \d+\. (\w+) ", said.split("Then run again")[0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"app_name": "Shop!"},
        {"app_domains": "shop.example.com"},
        {"gunicorn_workers": "four"},
        {"stack_https": "no"},
        {"certificates_source": "letsencrypt"},
        {"stack_name": "shops"},
    ],
    ids=str,
)
def test_one_mistake_is_one_problem(inventory: Environment, wrong: dict[str, Any]) -> None:
    """Half of the variables are made of these, and all of those are wrong, too."""
    said = inventory.said({"one": {}}, **{**SECRETS, **wrong})
    assert problems_in(said) == list(wrong), said


def test_a_missing_name_is_told_first_and_what_needs_it_is_not(inventory: Environment) -> None:
    (inventory.folder / "group_vars/guestbook").unlink()
    said = inventory.said({"one": {}})
    assert "1. app_name is not set, and the role app needs it." in said
    assert f"Edit {inventory.folder}/group_vars/test/main.yml." in said
    assert problems_in(said) == ["app_name", "vault_app_secret_key"]


def test_numbers_of_the_command_line_are_texts_and_right(inventory: Environment) -> None:
    extra = [f"{k}={v}" for k, v in {**SMALL, "gunicorn_threads": 2}.items()]
    assert inventory.said({"one": {}}, *extra, "stack_https_port=8443", **SECRETS) == ""


def test_what_the_wiring_beats_is_told(inventory: Environment) -> None:
    everyone = {"stack_https": False, "certificates_source": "ca", "nginx_gzip": False}
    in_hosts = {"stack_https_port": 8443, "app_keep_releases": 3}
    variables = {**SECRETS, "certificates_source": "ca"}
    said = inventory.said({"one": {}}, everyone=everyone, in_hosts=in_hosts, **variables)
    folder = inventory.folder
    assert sorted(problems_in(said)) == ["stack_https", "stack_https_port"], said
    for words in (
        f"stack_https is set in {folder}/group_vars/all.yml, line 3, where it has no effect",
        f"stack_https_port is set in {folder}/hosts.yml, line ",
        f"move it to {folder}/group_vars/test/main.yml",
    ):
        assert words in said
