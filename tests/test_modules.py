"""What a module says of its options, for ansible-doc, is what it takes."""

from __future__ import annotations

import importlib
import re
from typing import Any

import pytest
import yaml
from ansible.module_utils import basic
from ansible.module_utils.testing import patch_module_args
from ansible_collections.carafe.stack.plugins.module_utils.module import Module, options
from conftest import ROOT

# Without those that an action does all of, whose files are their documentation alone.
MODULES = sorted(
    path.stem for path in (ROOT / "plugins/modules").glob("*.py") if "def main(" in path.read_text()
)
SAID = ("type", "elements", "required", "default", "choices")


class Captured(Exception):
    """The arguments that a module would make an AnsibleModule of."""


def spec_of(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, Any]]:
    module = importlib.import_module(f"ansible_collections.carafe.stack.plugins.modules.{name}")

    def capture(self: Any, argument_spec: dict[str, Any], **arguments: Any) -> None:
        raise Captured({"argument_spec": argument_spec, **arguments})

    monkeypatch.setattr(basic.AnsibleModule, "__init__", capture)
    with pytest.raises(Captured) as captured:
        module.main()
    return module, captured.value.args[0]


def shape(options: dict[str, Any], below: str) -> dict[str, Any]:
    """Return what of a specification both forms of it say."""
    return {
        name: {key: option[key] for key in SAID if option.get(key) not in (None, False)}
        | {"below": shape(option.get(below) or {}, below)}
        for name, option in options.items()
    }


@pytest.mark.parametrize("name", MODULES)
def test_a_module_takes_what_it_documents(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, arguments = spec_of(name, monkeypatch)
    documented = yaml.safe_load(module.DOCUMENTATION)
    assert documented["module"] == name
    assert arguments.get("supports_check_mode") is True
    taken = shape(arguments["argument_spec"], "options")
    assert shape(documented.get("options", {}), "suboptions") == taken


@pytest.mark.parametrize("name", MODULES)
def test_mitogen_takes_a_module_for_one(name: str) -> None:
    """It looks for such an import, where Ansible itself finds relative ones too."""
    text = (ROOT / f"plugins/modules/{name}.py").read_text()
    assert re.search(r"^from ansible(_collections|\.module_utils)\.", text, re.M)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_shows_examples_and_what_it_returns(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _ = spec_of(name, monkeypatch)
    (task, *_) = yaml.safe_load(module.EXAMPLES)
    assert f"carafe.stack.{name}" in task
    for returned in yaml.safe_load(module.RETURN).values():
        assert {"description", "type", "returned"} <= returned.keys()


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_made_by_what_keeps_its_arguments_to_itself(name: str) -> None:
    assert "AnsibleModule(" not in (ROOT / f"plugins/modules/{name}.py").read_text()


def test_no_argument_gets_into_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(basic.AnsibleModule, "log", lambda _, message, **__: said.append(message))
    # As Ansible calls it for a task that says nothing of no_log.
    with patch_module_args({"files": ["secret"], "_ansible_no_log": False}):
        Module(options(files=[]))
    assert said == ["Invoked"]


def test_what_the_system_refuses_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, msg: str) -> None:
        raise Captured(msg)

    def work() -> dict[str, Any]:
        raise OSError(40, "'a' is a link that others can have put", "/srv/a/b")

    monkeypatch.setattr(basic.AnsibleModule, "fail_json", fail)
    with patch_module_args({}), pytest.raises(Captured) as said:
        Module({}).answer(work)
    assert said.value.args == ("'a' is a link that others can have put: /srv/a/b",)
