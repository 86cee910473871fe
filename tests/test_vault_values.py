"""What the vault has is secret, also where some of it is no template."""

from __future__ import annotations

from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import lookup_loader
from ansible.template import trust_as_template
from conftest import ROOT, Role, load_yaml


def test_values_of_the_vault_are_found_whatever_else_it_has() -> None:
    variables = {
        "vault_password": trust_as_template("p{{ other }}"),
        "vault_broken": trust_as_template("x {{ not a template }}"),
        "vault_missing": trust_as_template("{{ nobody.has }}"),
        "vault_map": {"a": "b"},
        "vault_empty": "",
        "other": "q",
    }
    templar = Role("app").templar(variables)
    lookup = lookup_loader.get("carafe.stack.vault_values", loader=DataLoader(), templar=templar)
    assert lookup.run([], variables=templar.available_variables) == ["pq"]


def test_what_the_playbooks_know_of_a_vault_is_no_secret() -> None:
    """An environment is often named as its app is, and then all that has the name was a secret."""
    assert not [name for name in load_yaml(ROOT / "playbooks/vars/vault.yml") if "vault_" in name]
