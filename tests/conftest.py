"""What the fast tests share: the roles' files and templates, read and rendered as Ansible does."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader, lookup_loader
from ansible.template import Templar

ROOT = Path(__file__).parents[1]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())
# A server of 2 GiB with two cores.
FACTS = {
    "memtotal_mb": 2048,
    "processor_vcpus": 2,
    "distribution": "Debian",
    "distribution_major_version": "13",
    "distribution_release": "trixie",
    "default_ipv4": {"interface": "eth0"},
}
init_plugin_loader([])


def load_yaml(path: Path) -> Any:
    """Read a file as Ansible does, so that what looks like a template is one."""
    return DataLoader().load_from_file(str(path), trusted_as_template=True)


@cache
def of_role(path: Path) -> dict[str, Any]:
    """Return what a file of a role holds, for nobody to change: it is read once."""
    return load_yaml(path)


def load_module(path: Path, name: str) -> ModuleType:
    """Import a Python file that is no part of a package."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Role:
    """A role's files."""

    name: str

    @property
    def path(self) -> Path:
        return ROOT / "roles" / self.name

    @property
    def entry_points(self) -> dict[str, Any]:
        return of_role(self.path / "meta/argument_specs.yml")["argument_specs"]

    @property
    def options(self) -> dict[str, Any]:
        return {k: v for x in self.entry_points.values() for k, v in x["options"].items()}

    @property
    def defaults(self) -> dict[str, Any]:
        return of_role(self.path / "defaults/main.yml")

    @property
    def vars(self) -> dict[str, Any]:
        path = self.path / "vars/main.yml"
        return of_role(path) if path.exists() else {}

    def templar(self, variables: Mapping[str, Any]) -> Templar:
        """Return what renders with the role's defaults and vars, and with some variables on top."""
        known = {
            "ansible_facts": FACTS,
            "inventory_dir": str(ROOT / "inventory/prod"),
            "inventory_hostname": "server",
            "role_path": str(self.path),
        }
        return Templar(DataLoader(), {**known, **self.defaults, **self.vars, **variables})

    def value(self, name: str, /, **variables: Any) -> Any:
        """Return a variable of the role, fully rendered."""
        templar = self.templar(variables)
        return templar.template(templar.available_variables[name])

    def render(self, template: str, /, **variables: Any) -> str:
        """Return the text that a template makes."""
        templar = self.templar(variables)
        lookup = lookup_loader.get("ansible.builtin.template", loader=DataLoader(), templar=templar)
        path = str(self.path / "templates" / template)
        return lookup.run([path], variables=templar.available_variables)[0]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--another-python", action="store_true", help="skip what none has a part in")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "any_python: of documents, of the tests, of what runs here")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--another-python"):
        for item in items:
            if item.get_closest_marker("any_python"):
                item.add_marker(
                    pytest.mark.skip(reason="no Python and no Ansible has a part in it")
                )


@pytest.fixture(params=ROLES)
def role(request: pytest.FixtureRequest) -> Role:
    return Role(request.param)


@pytest.fixture(scope="session")
def ansible_environment() -> dict[str, str]:
    """Return an environment in which Ansible's commands run with the repository's settings."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {
        **os.environ,
        "PATH": path,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        # The tests stand in for servers with this very interpreter.
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
    }


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the command of the program that runs the slots, as it lies on a server."""
    from ansible_collections.carafe.stack.plugins.module_utils import programs
    from ansible_collections.carafe.stack.plugins.modules import gunicorn_slots

    folder = tmp_path_factory.mktemp("programs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "FOLDER", folder)
        programs.install("gunicorn-slots", list(gunicorn_slots.PROGRAM))
    return [sys.executable, str(folder / "gunicorn-slots")]
