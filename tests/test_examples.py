"""The YAML that README.md and docs/ show: each block is read from there, and does what it is for.

What a block is can be seen from what it holds. One that sets app_domains is all the variables that
an app needs; other variables are added to one that has them.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from inventories import SECRETS, Looked

pytestmark = pytest.mark.any_python

FILES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```ya?ml\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
APP = {"app_domains": ["example.com"], "app_name": "shop", "app_path": str(ROOT / "sample_app")}

GUESTBOOK = yaml.safe_load((ROOT / "group_vars/guestbook/main.yml").read_text())
GUESTBOOK |= {"app_path": str(ROOT / "sample_app")}


@dataclass
class Example:
    """A block of YAML in a document."""

    where: str
    data: Any

    @property
    def kind(self) -> str:
        data = self.data
        if isinstance(data, list):
            return "playbook" if any("hosts" in entry for entry in data) else "tasks"
        for kind, key in (("platforms", "platforms"), ("requirements", "collections")):
            if key in data:
                return kind
        if any(isinstance(x, dict) and {"hosts", "children"} & set(x) for x in data.values()):
            return "inventory"
        if all(key.startswith("ansible_") or key == "private_address" for key in data):
            return "host"
        return "app" if "app_domains" in data else "variables"


def examples() -> list[Example]:
    found = []
    for file in FILES:
        text = file.read_text()
        for block in FENCE.finditer(text):
            line = text.count("\n", 0, block.start()) + 1
            body = re.sub(rf"^{block[1]}", "", block[2], flags=re.MULTILINE)
            found.append(Example(f"{file.relative_to(ROOT)}:{line}", yaml.safe_load(body)))
    return found


EXAMPLES = examples()


def of_kind(*kinds: str) -> pytest.MarkDecorator:
    chosen = [example for example in EXAMPLES if example.kind in kinds]
    return pytest.mark.parametrize("example", chosen, ids=lambda example: example.where)


class Project:
    """An inventory as a user has it, with what an example says."""

    def __init__(self, folder: Path):
        self.folder = folder / "inventory/prod"
        self.folder.mkdir(parents=True)

    def write(self, variables: dict[str, Any], inventory: dict[str, Any] | None = None) -> None:
        hosts = {"hosts": {"server": None}}
        inventory = inventory or {"prod": hosts, "db": hosts, "app": hosts, "web": hosts}
        (self.folder / "hosts.yml").write_text(yaml.safe_dump(inventory))
        # The environment comes first in each of them.
        values = self.folder / f"group_vars/{next(iter(inventory))}/main.yml"
        values.parent.mkdir(parents=True)
        # What names no app is for the sample app.
        app = {} if "app_name" in variables else GUESTBOOK
        values.write_text(yaml.safe_dump(SECRETS | app | variables))

    def look(self) -> Looked:
        """Let the preflight look at it, which is content."""
        looked = Looked(self.folder)
        assert not looked.said
        return looked


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_there_are_examples_of_each_kind() -> None:
    kinds = {example.kind for example in EXAMPLES}
    assert {"app", "variables", "inventory", "playbook", "platforms", "host"} <= kinds
    assert [x for x in EXAMPLES if x.kind == "app" and x.where.startswith("README.md")]


# What the wiring makes, and what the user adds to it.
SITES = "(nginx_default_sites | default([]), nginx_sites | default([]))"
ALLOWED = "(firewall_default_allow | default([])) + firewall_allow"


@of_kind("app")
def test_an_app_can_be_deployed_and_is_served_over_tls(example: Example, project: Project) -> None:
    project.write(example.data)
    names = (
        f"{{'sites': {SITES}, 'allowed': {ALLOWED}, 'static': app_static,"
        " 'name': app_name, 'domains': app_domains, 'certificates':"
        " (certificates_default_wanted | default([])) + certificates_wanted}"
    )
    made = project.look().value(names)
    sites: dict[str, dict[str, Any]] = {}
    for site in (entry for entries in made["sites"] for entry in entries):
        sites.setdefault(site["name"], {}).update(site)
    site = sites[made["name"]]
    assert site["server_names"] == made["domains"]
    assert site["certificate"] == f"/var/lib/certificates/{made['name']}.pem"
    assert [x["names"] for x in made["certificates"]] == [made["domains"]]
    assert {"80", "443"} <= {str(port) for rule in made["allowed"] for port in rule["ports"]}
    assert {entry["url"] for entry in site.get("static", [])} >= set(made["static"])
    current = f"/srv/{made['name']}/current/"
    assert all(entry["path"].startswith(current) for entry in site.get("static", []))


@of_kind("variables")
def test_further_variables_pass_the_preflight(example: Example, project: Project) -> None:
    # What is said of a database adds to the one that the app has.
    app = APP | ({"stack_database": "postgresql"} if "postgres_databases" in example.data else {})
    project.write(app | example.data)
    for name in re.findall(r"'tasks': '([^']+)'", str(example.data)):
        file = project.folder.parents[1] / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("[]")
    project.look()


@of_kind("inventory")
def test_an_inventory_passes_the_preflight(example: Example, project: Project) -> None:
    project.write(APP, example.data)
    project.look()


def test_playbooks_can_be_parsed(
    project: Project, tmp_path: Path, ansible_environment: dict[str, str]
) -> None:
    project.write(APP)
    # Named after the line of the document, for Ansible names the file of what it cannot read.
    for example in EXAMPLES:
        if example.kind in ("playbook", "tasks"):
            play = {"hosts": "all", "gather_facts": False, "tasks": example.data}
            file = project.folder / example.where.replace("/", "_")
            plays = example.data if example.kind == "playbook" else [play]
            file.with_suffix(f"{file.suffix}.yml").write_text(yaml.safe_dump(plays))
    files = [x for x in project.folder.glob("*.yml") if x.name != "hosts.yml"]
    run = subprocess.run(
        ["ansible-playbook", "--syntax-check", "-i", project.folder / "hosts.yml", *files],
        cwd=ROOT,
        env=ansible_environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@of_kind("platforms")
def test_the_servers_of_a_scenario_are_what_is_tested(example: Example) -> None:
    assert {server["release"] for server in example.data["platforms"]} <= {12, 13}
    assert all(
        server["name"].endswith(f"-{server['release']}") for server in example.data["platforms"]
    )
