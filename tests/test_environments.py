"""Whose data may be copied where, and what another environment says of its backups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.vault import VaultLib, VaultSecret
from ansible.template import Templar
from ansible_collections.carafe.stack.plugins.plugin_utils import environments
from conftest import ROOT, load_yaml

SECRET = VaultSecret(b"of the project")
PROD = {
    **{
        "app_name": "shop",
        "backup_repository": "s3://prod/shop",
        "backup_s3_region": "{{ place }}",
    },
    **{"place": "eu-1", "backup_key": "{{ vault_backup_key }}"},
}


@pytest.fixture
def loader() -> DataLoader:
    found = DataLoader()
    found.set_vault_secrets([("default", SECRET)])
    return found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose production has its key in a vault, and its variables beside its hosts."""
    for name in ("prod", "staging"):
        path = tmp_path / "inventory" / name
        path.mkdir(parents=True)
        (path / "hosts.yml").write_text("db: {hosts: {web1: }}\napp: {hosts: {web1: }}\n")
    write(tmp_path, PROD)
    vault = tmp_path / "inventory/prod/group_vars/all/vault.yml"
    text = yaml.safe_dump({"vault_backup_key": "the key of production"})
    vault.write_bytes(VaultLib([("default", SECRET)]).encrypt(text, SECRET))
    return tmp_path


def write(project: Path, values: dict[str, Any]) -> None:
    path = project / "inventory/prod/group_vars/all/main.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values))


def source(project: Path, loader: DataLoader, app: str = "shop") -> dict[str, Any]:
    templar = Templar(loader, {"backup_key": "of staging"})
    return environments.source(loader, templar, project / "inventory/prod", app)


def test_it_says_where_its_backups_are_and_what_opens_them(
    project: Path, loader: DataLoader
) -> None:
    found = source(project, loader)
    assert found["repository"] == "s3://prod/shop"
    assert found["key"] == "the key of production"
    assert found["s3_region"] == "eu-1"
    # What it does not say is as the role has it.
    assert found["ssh_known_hosts"] == []


def test_an_environment_of_another_app_is_refused(project: Path, loader: DataLoader) -> None:
    with pytest.raises(AnsibleError, match="is of the app shop, and this is blog"):
        source(project, loader, "blog")


def test_one_without_backups_is_refused(project: Path, loader: DataLoader) -> None:
    write(project, PROD | {"backup_repository": ""})
    with pytest.raises(AnsibleError, match=r"backup_repository in group_vars/prod, and run site"):
        source(project, loader)


def test_a_vault_that_is_closed_is_named(project: Path) -> None:
    with pytest.raises(
        AnsibleError, match=r"prod says .*view group_vars/prod/vault\.yml"
    ) as failed:
        source(project, DataLoader())
    assert "the key of production" not in str(failed.value)


def test_a_key_that_nobody_has_set_is_named(project: Path, loader: DataLoader) -> None:
    (project / "inventory/prod/group_vars/all/vault.yml").unlink()
    with pytest.raises(AnsibleError, match=r"vault_backup_key.*group_vars/prod/vault.yml"):
        source(project, loader)


@pytest.mark.parametrize("name", ["production", "../prod", ""])
def test_what_is_no_environment_is_answered_with_those_that_are(project: Path, name: str) -> None:
    with pytest.raises(AnsibleError, match="prod, staging"):
        environments.folder_of(project, name)


@pytest.mark.parametrize(
    ("name", "allowed", "own", "says"),
    [
        # Production takes nobody's, whatever staging says.
        ("staging", [], "inventory/prod", "does not take the data of staging"),
        ("prod", ["staging"], "inventory/staging", r"backup_copies_from: \[prod\]"),
        ("prod", ["prod"], "inventory/prod", "that is where the copy would go"),
        ("prod", ["prod"], "inventory/prod/hosts.yml", "that is where the copy would go"),
        ("prod", ["prod"], "inventory/live", "that is where the copy would go"),
        ("live", ["live"], "inventory/prod", "that is where the copy would go"),
    ],
)
def test_the_wrong_direction_is_refused(
    project: Path, name: str, allowed: list[str], own: str, says: str
) -> None:
    (project / "inventory/live").symlink_to("prod")
    path = environments.folder_of(project, name)
    with pytest.raises(AnsibleError, match=says) as failed:
        environments.check(path, allowed, [str(project / own)])
    assert "Nothing was touched" in str(failed.value)


@pytest.mark.parametrize("allowed", [["prod"], "prod", "demo,prod"])
def test_the_right_direction_is_taken(project: Path, allowed: list[str] | str) -> None:
    path, own = environments.folder_of(project, "prod"), [str(project / "inventory/staging")]
    environments.check(path, allowed, own)
    # Not by a part of its name.
    with pytest.raises(AnsibleError, match="does not take the data of pro"):
        environments.check(path.with_name("pro"), allowed, own)


def test_masks_come_in_their_order(project: Path) -> None:
    for name in ("b.sql", "a.sql"):
        (project / name).write_text(f"-- {name}")
    found = environments.masks(project, ["b.sql", "a.sql"])
    assert found == [{"name": "b.sql", "sql": "-- b.sql"}, {"name": "a.sql", "sql": "-- a.sql"}]
    assert environments.masks(project, "a.sql") == found[1:]


@pytest.mark.parametrize(
    ("names", "says"), [([], "backup_masks is empty"), (["no.sql"], "no.sql cannot be read")]
)
def test_nothing_comes_without_its_masks(project: Path, names: list[str], says: str) -> None:
    with pytest.raises(AnsibleError, match=says):
        environments.masks(project, names)


@pytest.mark.parametrize(("more", "to"), [({}, "latest"), ({"restore_to": "then"}, "then")])
def test_the_playbook_asks_whose_data_are_meant(more: dict[str, str], to: str) -> None:
    (book,) = load_yaml(ROOT / "playbooks/copy_data.yml")
    found = Templar(DataLoader(), {"copy_from": "prod", **more}).template(book["vars"])
    assert found == {"backup_source": "prod", "backup_restore_to": to, "restore_release": ""}
    with pytest.raises(AnsibleError, match="Say whose data are meant: -e copy_from=prod"):
        Templar(DataLoader(), more).template(book["vars"]["backup_source"])
