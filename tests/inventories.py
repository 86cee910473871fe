"""What playbooks/preflight.yml makes of an inventory, asked in this process.

The servers are as FACTS says. ansible-playbook, whose modules ask this machine what it is, takes
many times as long, and test_preflight_run.py has that, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible import context
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.playbook import Playbook
from ansible.plugins.loader import action_loader
from ansible.template import Templar, trust_as_template
from ansible.utils.context_objects import CLIArgs
from ansible.utils.vars import load_extra_vars, load_options_vars
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager
from ansible_collections.carafe.stack.plugins.plugin_utils import absences
from ansible_collections.carafe.stack.plugins.plugin_utils.authority import Authority
from conftest import FACTS, ROLES, ROOT, Role

PREFLIGHT = ROOT / "playbooks/preflight.yml"
SECRETS = {
    "vault_internal_ca_key": Authority.make().text(),
    "vault_app_secret_key": "0123456789abcdef0123456789abcdef",
    "vault_database_password": "hush-hush",
    "vault_index_password": "hush-hush",
    "vault_git_token": "hush-hush",
    "vault_account": "hush-hush",
    "vault_password_of_ann": "hush-hush",
    "vault_password_of_bob": "hush-hush",
    "vault_database_migrate_password": "hush-hush",
    "vault_database_replication_password": "hush-hush",
    "vault_backup_key": "0123456789abcdef0123456789abcdef",
    "vault_backup_s3_secret": "hush-hush",
    "vault_backup_ssh_key": "hush-hush",
}
# Keeps what it has read of the roles.
LOADER = DataLoader()


class Looked:
    """What the preflight says, and what Ansible knows of the first server by then."""

    def __init__(
        self,
        inventory: Path,
        *extra: str,
        playbook: Path = PREFLIGHT,
        limit: str | None = None,
        facts: Mapping[str, Any] = FACTS,
        tags: Sequence[str] = ("all",),
    ) -> None:
        arguments = {"args": [str(playbook)], "inventory": [str(inventory)], "subset": limit}
        arguments |= {"extra_vars": extra, "tags": [*tags], "skip_tags": [], "check": False}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(context, "CLIARGS", CLIArgs(arguments))
            # These are parsed once in a process.
            patch.setattr(load_extra_vars, "extra_vars", None, raising=False)
            patch.setattr(load_options_vars, "options_vars", None, raising=False)
            patch.chdir(ROOT)
            self.run(inventory, playbook, limit, facts)

    def run(
        self, inventory: Path, playbook: Path, limit: str | None, facts: Mapping[str, Any]
    ) -> None:
        hosts = InventoryManager(LOADER, [str(inventory)])
        hosts.subset(limit)
        variables = VariableManager(LOADER, hosts)
        HostVars(hosts, variables, LOADER)
        book = Playbook.load(str(playbook), variables, LOADER)
        play = book.get_plays()[0]
        LOADER.set_basedir(play._included_path or book._basedir)
        tasks = (task for block in play.tasks for task in block.block)
        (task,) = (task for task in tasks if task.action == "carafe.stack.preflight")
        # As lookup('carafe.stack.servers') makes it of those that are away.
        named = [x for x in ("db", "app", "web", "standby") if x in hosts.groups]
        targets = hosts.get_hosts(":".join(named) or "all")
        away = absences.away(hosts.get_groups_dict(), HostVars(hosts, variables, LOADER))
        targets = [x for x in targets if x.name not in away]
        for host in targets:
            variables.set_host_facts(host.name, dict(facts))
            variables.set_nonpersistent_facts(host.name, {task.args["facts"]: {}})
        self.variables = variables.get_vars(play, targets[0], task)
        self.variables["ansible_play_hosts_all"] = [x.name for x in targets]
        self.of_host = lambda name: variables.get_vars(play, hosts.get_host(name), task)
        action = action_loader.get(
            task.action,
            task=task,
            connection=SimpleNamespace(_shell=SimpleNamespace(tmpdir="")),
            play_context=None,
            loader=LOADER,
            templar=Templar(LOADER, self.variables),
            shared_loader_obj=None,
        )
        self.said = " ".join(action.run(task_vars=self.variables).get("msg", "").split())

    def value(self, expression: str, host: str = "") -> Any:
        """Return an expression's value as the wiring and the roles have it, on the first server."""
        known = {k: v for x in map(Role, ROLES) for k, v in {**x.defaults, **x.vars}.items()}
        variables = self.of_host(host) if host else self.variables
        templar = Templar(LOADER, {**known, **variables})
        return templar.template(trust_as_template(f"{{{{ {expression} }}}}"))


def of_one_server(folder: Path, of: Iterable[str] = (), **variables: Any) -> Looked:
    """Return what the playbooks make of an inventory of one server, with nothing to complain of."""
    inventory = folder / "inventory/prod"
    (inventory / "group_vars/prod").mkdir(parents=True)
    groups = {name: {"hosts": {"server": None}} for name in ("prod", *of)}
    (inventory / "hosts.yml").write_text(json.dumps(groups))
    app = {"app_name": "shop", "app_domains": ["shop.test"], "certificates_acme_email": "a@b.c"}
    everything = SECRETS | app | {"app_path": str(ROOT / "sample_app")} | variables
    (inventory / "group_vars/prod/main.yml").write_text(json.dumps(everything))
    looked = Looked(inventory)
    assert not looked.said
    return looked


def of_servers(folder: Path, groups: Mapping[str, list[str]], **variables: Any) -> Looked:
    """Return what the playbooks make of servers in these groups, which may have problems."""
    inventory = folder / "inventory/prod"
    (inventory / "group_vars/prod").mkdir(parents=True)
    names = list(dict.fromkeys(x for members in groups.values() for x in members))
    hosts = {x: {"private_address": f"10.0.0.{number}"} for number, x in enumerate(names, 10)}
    told = {name: {"hosts": dict.fromkeys(members)} for name, members in groups.items()}
    (inventory / "hosts.yml").write_text(json.dumps({"prod": {"hosts": hosts}, **told}))
    app = {"app_name": "shop", "app_domains": ["shop.test"], "certificates_acme_email": "a@b.c"}
    everything = SECRETS | app | {"app_path": str(ROOT / "sample_app")} | variables
    (inventory / "group_vars/prod/main.yml").write_text(json.dumps(everything))
    return Looked(inventory)
