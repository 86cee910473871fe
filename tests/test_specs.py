"""What a role says of itself holds: its spec, defaults and README, and the variables in use."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleError
from ansible_collections.carafe.stack.plugins.module_utils import supervisord
from conftest import ROLES, ROOT, Role, load_module, load_yaml

READMES = load_module(ROOT / "scripts/readmes.py", "readmes")
KNOWN = {name for role in ROLES for name in Role(role).options}
VARIABLE = re.compile(rf"(?<![\w/.-])(?:{'|'.join(ROLES)})_[a-z0-9_]+\b(?![/.]\w*\.|\()")
# Where variables of roles are set, or read, outside of the roles.
PLACES = ("group_vars", "inventory", "playbooks", "molecule", "benchmarks")


def keys(node: Any) -> Iterator[str]:
    """Yield every key of every mapping in parsed YAML."""
    if isinstance(node, dict):
        yield from node
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from keys(child)


def yaml_files(*places: str) -> list[Path]:
    # Resolved, since each inventory links to the one group_vars.
    found = {x.resolve() for place in places for x in (ROOT / place).rglob("*.yml")}
    return sorted(x for x in found if x.name != "vault.yml")


def sources(role: Role) -> dict[Path, str]:
    """Return the text of all files that use variables, without comments."""
    places = ("tasks", "templates", "handlers", "defaults", "vars")
    files = (x for place in places for x in (role.path / place).rglob("*") if x.is_file())
    return {x: re.sub(r"(?m)^\s*#.*$", "", x.read_text()) for x in files}


def test_every_default_in_the_spec_is_the_one_in_force(role: Role) -> None:
    promised = {name: spec["default"] for name, spec in role.options.items() if "default" in spec}
    assert role.defaults == promised


# These run where the rest of an app is not known, and use none of it.
LESS = {"app": {"moment", "releases", "schedules", "serving", "variables"}}


def test_entry_points_take_the_same_options(role: Role) -> None:
    for name, entry in role.entry_points.items():
        if name in LESS.get(role.name, ()):
            assert all(spec == role.options[x] for x, spec in entry["options"].items())
        else:
            assert entry["options"] == role.options


def test_a_required_option_is_not_promised_a_default(role: Role) -> None:
    assert not [k for k, x in role.options.items() if x.get("required") and "default" in x]


@pytest.mark.parametrize(
    ("role_name", "variable", "path"),
    [
        ("nginx", "__nginx_site_defaults", "nginx_sites"),
        ("nginx", "__nginx_location_defaults", "nginx_sites.locations"),
        ("nginx", "__nginx_stream_defaults", "nginx_streams"),
    ],
)
def test_what_an_entry_leaves_out_has_the_default_of_the_spec(
    role_name: str, variable: str, path: str
) -> None:
    role = Role(role_name)
    options = role.options
    for step in path.split("."):
        options = options[step]["options"]
    promised = {name: spec["default"] for name, spec in options.items() if "default" in spec}
    assert role.vars[variable] == promised


def test_what_a_program_leaves_out_has_the_default_of_the_spec() -> None:
    options = Role("supervisor").options["supervisor_programs"]["options"]
    promised = {name: spec["default"] for name, spec in options.items() if "default" in spec}
    assert promised == supervisord.DEFAULTS


def options_below(options: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, spec in options.items():
        yield name, spec
        yield from options_below(spec.get("options", {}))


def test_options_are_typed_and_described_in_sentences(role: Role) -> None:
    for name, spec in options_below(role.options):
        assert name in role.options or not name.startswith(f"{role.name}_")
        assert "type" in spec, name
        assert spec["type"] != "list" or "elements" in spec, name
        assert spec["description"].strip().endswith("."), name


def test_options_begin_with_the_name_of_the_role(role: Role) -> None:
    assert not [name for name in role.options if not name.startswith(f"{role.name}_")]


def test_a_secret_has_no_choices_that_an_error_would_print(role: Role) -> None:
    secrets = [x for name, x in options_below(role.options) if re.search("secret|password", name)]
    # Nor is a mapping ever printed.
    kinds = ("str", "dict")
    assert all(x.get("elements", x["type"]) in kinds and "choices" not in x for x in secrets)
    assert not [x for x in secrets if x["type"] == "dict" and "options" in x]


def test_the_readme_has_the_table_of_the_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    """It prints what is out of date, and exits."""
    monkeypatch.setattr(sys, "argv", ["readmes.py", "--check"])
    READMES.main()


def test_the_readme_explains_each_tag(role: Role) -> None:
    text = (role.path / "README.md").read_text()
    files = (role.path / "tasks").glob("*.yml")
    tags = {tag for x in files for task in load_yaml(x) for tag in task.get("tags", [])}
    assert not [tag for tag in tags if f"| `{tag}` |" not in text]


def test_each_tag_of_a_readme_selects_something_of_the_site() -> None:
    documented = {tag for role in READMES.roles() for tag in READMES.tags_in_readme(role)}
    assert documented == set(READMES.tags_of(ROOT / "playbooks/site.yml", set())) - {"always"}


def example(role: Role) -> str:
    found = re.search(r"```yaml\n(.*?)```", (role.path / "README.md").read_text(), re.DOTALL)
    assert found
    return found[1]


def test_the_example_of_the_readme_takes_variables_that_exist(role: Role) -> None:
    used = {key for key in keys(yaml.safe_load(example(role))) if VARIABLE.fullmatch(key)}
    assert used
    assert not used - KNOWN


def test_the_examples_of_the_readmes_are_playbooks(
    tmp_path: Path, ansible_environment: dict[str, str]
) -> None:
    for name in ROLES:
        (tmp_path / f"{name}.yml").write_text(example(Role(name)))
    command = ["ansible-playbook", "--syntax-check", "-i", "localhost,", *tmp_path.glob("*.yml")]
    # Who has the collection finds no role by its bare name.
    elsewhere = ansible_environment | {"ANSIBLE_ROLES_PATH": str(tmp_path)}
    result = subprocess.run(command, env=elsewhere, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", yaml_files(*PLACES), ids=lambda x: str(x.relative_to(ROOT)))
def test_only_variables_that_a_role_knows_are_set_or_read(path: Path) -> None:
    set_here = {x for x in keys(load_yaml(path)) if isinstance(x, str) and VARIABLE.fullmatch(x)}
    expressions = " ".join(re.findall(r"\{\{.*?\}\}", path.read_text(), re.DOTALL))
    read_here = set(VARIABLE.findall(re.sub(r"'[^']*'", "", expressions)))
    assert not (set_here | read_here) - KNOWN


def test_every_variable_that_a_role_uses_is_defined(role: Role) -> None:
    text = "\n".join(sources(role).values())
    known = set(role.options) | set(role.defaults) | set(role.vars)
    known |= set(
        re.findall(
            r"(?:register: |loop_var: |value_name='|vars: \{|(?:vars|set_fact):\n +)(\w+)", text
        )
    )
    used = set(re.findall(rf"(?<![\w/.'-])((?:__)?{role.name}_[a-z0-9_]+)\b(?!\()", text))
    assert not used - known


def test_a_role_reads_no_variable_of_another(role: Role) -> None:
    others = "|".join(x for x in ROLES if x != role.name)
    pattern = re.compile(rf"(?<![\w/.@'-])(?:__)?(?:{others})_[a-z0-9_]+\b")
    found = {str(path): pattern.findall(text) for path, text in sources(role).items()}
    assert not {path: names for path, names in found.items() if names}


def test_a_role_names_no_group_of_hosts(role: Role) -> None:
    text = "\n".join(sources(role).values())
    assert not re.findall(r"\bgroups\b\s*[\[.]|\bgroup_names\b|\bhostvars\b", text)


def test_a_role_needs_no_collection(role: Role) -> None:
    """A collection of roles with no dependency installs with no network."""
    text = "\n".join(sources(role).values())
    assert not re.findall(r"\b(?:community|ansible)\.(?!builtin\b)[a-z]+\.\w+", text)


def test_facts_are_read_as_facts(role: Role) -> None:
    """inject_facts_as_vars is off."""
    text = "\n".join(sources(role).values())
    facts = r"ansible_(?:distribution|memtotal|processor|os_family|hostname|default_ipv4)\w*"
    assert not re.findall(rf"\b{facts}", text)


def derived(role: Role, variables: dict[str, Any]) -> dict[str, str]:
    """Return what a role makes of its variables, a text and the number that it holds being one."""
    folder = role.path / "templates"
    files = [str(x.relative_to(folder)) for x in folder.rglob("*") if x.is_file()]
    found = {}
    for name in (*role.defaults, *role.vars, *files):
        take = role.render if name in files else role.value
        try:
            found[name] = re.sub(r"['\"](-?\d+)['\"]", r"\1", str(take(name, **variables)))
        except AnsibleError as error:
            # What needs an answer of a server is undefined either way.
            found[name] = type(error).__name__
    return found


def test_a_number_may_come_as_a_text(role: Role) -> None:
    """As it does with -e on the command line."""
    needed = {k: "x" for k, spec in role.options.items() if spec.get("required")}
    of_numbers = [k for k, x in role.options.items() if "int" in (x["type"], x.get("elements"))]
    numbers = {k: role.value(k, **needed) for k in of_numbers if k in role.defaults}
    texts = {k: list(map(str, v)) if isinstance(v, list) else str(v) for k, v in numbers.items()}
    never = {name for name in role.vars if "lookup(" in str(role.vars[name])}
    made = derived(role, {**needed, **texts})
    expected = derived(role, {**needed, **numbers})
    assert {k: v for k, v in made.items() if k not in never and v != expected[k]} == {}
