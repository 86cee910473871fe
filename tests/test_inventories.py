"""An inventory that cannot be read or that nobody named, and a vault that does not open."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.vault import VaultLib, VaultSecret
from ansible_collections.carafe.stack.plugins.plugin_utils import inventories
from ansible_collections.carafe.stack.plugins.plugin_utils.sources import Sources
from conftest import ROOT
from inventories import of_one_server

WANTED = ("db", "app", "web")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("prod", "staging"):
        (tmp_path / "inventory" / name).mkdir(parents=True)
        (tmp_path / "inventory" / name / "hosts.yml").write_text("web: {hosts: {a: }}\n")
        (tmp_path / "inventory" / name / "group_vars").symlink_to("../../group_vars")
        (tmp_path / "group_vars" / name).mkdir(parents=True)
    (tmp_path / "inventory/README.md").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        *((x, "inventory/prod") for x in ("inventory/pord", "inventory/prod/host.yml", "prod")),
        *((x, "inventory/prod") for x in ("inventories/prod", "../x/inventory/prod/hosts.yml")),
        *((x, "inventory/staging") for x in ("inventory/stagin", "staging/hosts.yml", "Staging")),
        ("inventory/prod.yml", "inventory/prod"),
        ("inventory/xyz", ""),
    ],
)
def test_the_path_that_was_probably_meant(project: Path, given: str, meant: str) -> None:
    said = inventories.missing(Path(given), project)
    assert said.startswith(f"{given} is not there")
    end = f"Did you mean {meant}?" if meant else "There are inventory/prod, inventory/staging."
    assert said.endswith(end)


def test_an_inventory_beside_the_app_is_meant_too(project: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    assert inventories.missing(Path("host.yml"), other).endswith(
        "Go to the folder of your project."
    )
    (other / "hosts.yml").write_text("")
    assert "Did you mean hosts.yml?" in inventories.missing(Path("host.yml"), other)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("web:\n  hosts:\n    a:\n", ""),
        ("", ""),
        ("web:\n\thosts:\n", "line 2: it is indented by a tab, and YAML takes blanks only"),
        ("web:\n  hosts:\n  \ta:\n", "line 3: it is indented by a tab"),
        ("web: [\n", "line 2"),
        ("web:\n a: 1\n  b: 2\n", "line 3"),
        ("- web\n", "it is no mapping of groups to hosts"),
        # Ansible would take the last one, and forget the servers of the other.
        ("web:\n  hosts: {a: }\n  hosts: {b: }\n", "line 3: hosts is there twice; it is in line 2"),
        ("web: {}\napp: {}\nweb: {}\n", "line 3: web is there twice"),
        ("web: {vars: &x {b: 1}}\napp: {vars: {<<: *x, c: 1}}\n", ""),
        ("web: {vars: {password: !vault x, other: !unsafe y}}\n", ""),
    ],
)
def test_a_file_that_cannot_be_read(project: Path, text: str, says: str) -> None:
    path = project / "inventory/prod/hosts.yml"
    path.write_text(text)
    found = inventories.complaint([str(path.parent)], {"web": ["a"]}, WANTED, project)
    assert found == "" if not says else "inventory/prod/hosts.yml" in found
    assert says in found


def test_json_may_be_indented_by_tabs(project: Path) -> None:
    path = project / "hosts.json"
    path.write_text('{\n\t"web": {}\n}')
    assert inventories.unreadable(path) == ""
    path.write_text("{")
    assert inventories.unreadable(path)


def test_of_json_too_no_key_may_be_there_twice(project: Path) -> None:
    path = project / "hosts.json"
    path.write_text('{\n\t"web": {"hosts": {"a": {}}},\n\t"app": {},\n\t"web": {}\n}')
    says = f"{path}, line 4: web is there twice; it is in line 2, too"
    assert inventories.unreadable(path) == says
    path.write_text('{"web": {"vars": {"a": "x\\"\\t: {", "b": "\\/"}}}')
    assert inventories.unreadable(path) == ""


@pytest.mark.parametrize(
    ("groups", "found"),
    [
        ({"all": ["a"], "prod": ["a"]}, ["a"]),
        # Somebody has begun to say what it is for.
        ({"all": ["a"], "db": []}, []),
        ({"all": ["a"], "web": ["a"]}, []),
        ({"all": ["a", "b"], "prod": ["a"]}, []),
        ({"all": []}, []),
    ],
)
def test_a_server_that_is_alone_needs_no_group(
    groups: dict[str, list[str]], found: list[str]
) -> None:
    assert inventories.only(groups) == found


def test_no_inventory_or_one_with_no_server(project: Path) -> None:
    none = inventories.complaint(["/etc/ansible/hosts"], {"all": []}, WANTED, project)
    assert none == (
        "No inventory is named, so there is no server to work on. There are inventory/prod,"
        " inventory/staging. Add -i inventory/prod."
    )
    given = ["inventory/prod"]
    assert "names no server" in inventories.complaint(given, {"all": []}, WANTED, project)
    others = inventories.complaint(given, {"all": ["a"], "db": []}, WANTED, project)
    assert others.startswith("No server is in the group db or app or web of inventory/prod.")
    # Hosts on the command line are no path.
    assert inventories.complaint(["a,b"], {"all": ["a"], "web": ["a"]}, WANTED, project) == ""


def loader(key: str) -> DataLoader:
    found = DataLoader()
    found.set_vault_secrets([("default", VaultSecret(key.encode()))])
    return found


@pytest.fixture
def vault(project: Path) -> Iterator[Path]:
    path = project / "group_vars/prod/vault.yml"
    secrets = [("default", VaultSecret(b"right"))]
    path.write_bytes(VaultLib(secrets).encrypt("vault_app_secret_key: x\n"))
    (project / "group_vars/prod/main.yml").write_text(
        "# vault_not_this\ndatabase_password: '{{ vault_database_password }}'\n"
    )
    return path


def test_a_vault_that_opens_says_nothing(project: Path, vault: Path) -> None:
    folders = [project / "inventory/prod"]
    files = inventories.variable_files(folders, ["all", "prod"], ["a"])
    assert [x for x in files if inventories.begins(x)] == [vault]
    assert inventories.variable_files(folders, ["all", "staging"], ["a"]) == []
    assert inventories.locked(vault, loader("right")) == ""


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("none", "its key is missing: there is no .vault-password"),
        ("wrong", "is encrypted with another key than the one in .vault-password"),
        ("typed", "is encrypted with another key than the one that was typed"),
        ("", "and no key was given"),
    ],
)
def test_a_vault_that_does_not_open(project: Path, vault: Path, key: str, says: str) -> None:
    assert inventories.locked(vault, loader("no-key-yet"))
    sources = Sources(project, ["inventory/prod"], [], [])
    if key == "wrong":
        (project / ".vault-password").write_text("wrong\n")
    file = {"": "", "typed": inventories.TYPED}.get(key, str(project / ".vault-password"))
    secrets = inventories.used([project / "inventory/prod"])
    said = inventories.vault_complaint(vault, sources, file, secrets)
    assert said.startswith("group_vars/prod/vault.yml is encrypted")
    assert says in said
    assert "(such as vault_database_password)" in said
    assert "ansible-vault view group_vars/prod/vault.yml" in said


def seal(text: str, key: str = "right") -> str:
    """Return what ansible-vault encrypt_string makes of a text, in one line."""
    sealed = VaultLib([("default", VaultSecret(key.encode()))]).encrypt(text).decode()
    return '!vault "{}"'.format(sealed.replace("\n", "\\n"))


def test_a_value_that_does_not_open_is_named_with_its_line(project: Path) -> None:
    path = project / "group_vars/prod/main.yml"
    path.write_text(
        f"app_name: x\na: {seal('1')}\nb:\n  c:\n    - d: {seal('2', 'wrong')}\n{{not: yaml"
    )
    assert [*inventories.sealed([path])] == [], "where it is no YAML, Ansible says so"
    path.write_text(path.read_text().partition("{not")[0])
    first, second = inventories.sealed([path])
    assert (first.name, first.line) == ("a", 2)
    assert (second.name, second.line) == ("b.c.d", 5)
    assert not inventories.closed(first, loader("right"))
    assert inventories.closed(second, loader("right"))
    sources = Sources(project, ["inventory/prod"], [], [])
    said = inventories.value_complaint(second, sources, str(project / ".vault-password"))
    assert said.startswith("group_vars/prod/main.yml, line 5: b.c.d is encrypted, and its key is")
    assert "ansible-vault encrypt_string --name d" in said


def test_a_file_of_secrets_that_lies_open_is_told(project: Path, vault: Path) -> None:
    files = [vault, project / "group_vars/prod/main.yml"]
    assert [*inventories.laid_open(files)] == []
    vault.write_text(f"vault_a: {seal('1')}\nother: x\n")
    assert [*inventories.laid_open(files)] == []
    vault.write_text(f"vault_a: {seal('1')}\nvault_b: {{c: x}}\n")
    assert [*inventories.laid_open(files)] == [vault]


VARIABLES = {
    "app_domains: [a.test]\napp_environment:\n\tA: b\n": "line 3: it is indented by a tab",
    "app_domains: [a.test]\napp_domains: [b.test]\n": "line 2: app_domains is there twice",
    f"app_secret_key: {seal('x', 'wrong')}\n": "line 1: app_secret_key is encrypted",
}


@pytest.mark.parametrize("text", VARIABLES, ids=VARIABLES.values())
def test_variables_that_cannot_be_read_end_the_run_at_once(
    tmp_path: Path, ansible_environment: dict[str, str], text: str
) -> None:
    (tmp_path / "hosts.yml").write_text("app: {hosts: {a: }}\n")
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "group_vars/app.yml").write_text(text)
    key = tmp_path / "key"
    key.write_text("right\n")
    words = ["-i", f"{tmp_path}/hosts.yml", "--vault-password-file", str(key)]
    status, said = run(ansible_environment, *words)
    assert status != 0
    assert f"group_vars/app.yml, {VARIABLES[text]}" in said
    assert "PLAY [" not in said


def run(environment: dict[str, str], *words: str) -> tuple[int, str]:
    command = ["ansible-playbook", "site.yml", *words]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "No inventory is named"),
        (["-i", "inventory/pord"], "Did you mean inventory/prod?"),
    ],
)
def test_the_command_fails(
    words: list[str], says: str, ansible_environment: dict[str, str]
) -> None:
    status, said = run(ansible_environment, *words)
    assert status != 0
    assert says in said
    assert "PLAY [" not in said


def test_nobody_has_to_name_one_to_look_at_a_playbook(ansible_environment: dict[str, str]) -> None:
    assert run(ansible_environment, "--syntax-check")[0] == 0


@pytest.mark.parametrize(
    "playbook", sorted((ROOT / "playbooks").glob("*.yml")), ids=lambda x: x.stem
)
def test_every_play_finds_the_server_that_is_alone(
    playbook: Path, tmp_path: Path, ansible_environment: dict[str, str]
) -> None:
    (tmp_path / "hosts.yml").write_text("prod: {hosts: {alone: }}\n")
    command = ["ansible-playbook", str(playbook), "-i", str(tmp_path / "hosts.yml"), "--list-hosts"]
    done = subprocess.run(
        command, cwd=ROOT, env=ansible_environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # Nobody leaves a stack of one.
    assert done.stdout.count("hosts (0)") == (playbook.stem == "remove_server")
    assert "hosts (1)" in done.stdout


def test_a_server_that_is_alone_has_what_one_in_all_groups_has(tmp_path: Path) -> None:
    alone = of_one_server(tmp_path / "alone", stack_database="postgresql")
    told = of_one_server(tmp_path / "told", inventories.PARTS, stack_database="postgresql")
    for what in (
        *("stack_db", "stack_app", "stack_web", "stack_is_one_server", "stack_host_roles"),
        *("firewall_default_allow", "fail2ban_nginx_ports", "stack_upstreams", "backup_release"),
    ):
        assert alone.value(what) == told.value(what)
    assert alone.value("stack_app") == ["server"]
