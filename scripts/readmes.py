#!/usr/bin/env python3
"""Write what documents say of variables, playbooks and modules, from what these say themselves.

.venv/bin/python scripts/readmes.py            write what is out of date
.venv/bin/python scripts/readmes.py --check    only say what is, and fail

Each role's README.md has a table of its variables, from its argument_specs.yml. The pages
variables, playbooks and modules of docs/reference are made as a whole.
"""

import argparse
import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
ROLES = ROOT / "roles"
PLAYBOOKS = ROOT / "playbooks"
REFERENCE = ROOT / "docs/reference"
START, END = "<!-- variables -->", "<!-- end of variables -->"
HEADER = "| {} | type | default | what it is |\n| --- | --- | --- | --- |"

# The same in C, which is ten times as fast, where there is one.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse(text: str) -> Any:
    return yaml.load(text, Loader=LOADER)


def prose(text: str | list[str]) -> str:
    """Turn Ansible's C(x), with \\) for a bracket inside, into Markdown for one table cell.

    V, O and M are for values, options and modules, as modules have them.
    """
    text = " ".join([text] if isinstance(text, str) else text)
    code = r"\b[CVOM]\(((?:\\.|[^)])*)\)"
    text = re.sub(code, lambda found: f"`{found[1].replace(chr(92), '')}`", text)
    return " ".join(text.split()).replace("|", "\\|")


def default(spec: dict[str, Any]) -> str:
    if spec.get("required"):
        return "**required**"
    if "default" not in spec:
        return "none"
    value = spec["default"]
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return f"`{' '.join(text.split())}`".replace("|", "\\|")


def kind(spec: dict[str, Any]) -> str:
    text = f"list of {spec['elements']}" if spec["type"] == "list" else spec["type"]
    if choices := spec.get("choices"):
        text += ": " + ", ".join(f"`{choice}`" for choice in choices)
    return text


def tables(title: str, options: dict[str, Any], path: str = "") -> Iterator[str]:
    """Yield a table of options, and one for each option whose entries have options of their own."""
    rows = [
        f"| `{name}` | {kind(spec)} | {default(spec)} | {prose(spec['description'])} |"
        for name, spec in options.items()
    ]
    heading = f"Each entry of `{path}`:\n\n" if path else ""
    yield heading + "\n".join([HEADER.format(title), *rows])
    for name, spec in options.items():
        if "options" in spec:
            yield from tables("key", spec["options"], f"{path}[].{name}" if path else name)


def options_of(specs: Path) -> dict[str, Any]:
    """Return the options of all entry points."""
    entries = parse(specs.read_text())["argument_specs"].values()
    return {name: spec for entry in entries for name, spec in entry.get("options", {}).items()}


def section(role: Path) -> str:
    """Return the generated part of a role's README, its markers included."""
    options = options_of(role / "meta/argument_specs.yml")
    return "\n\n".join([START, *tables("variable", options), END])


def updated(role: Path) -> str:
    """Return a role's README with the generated part as it should be."""
    text = (role / "README.md").read_text()
    if START not in text or END not in text:
        sys.exit(f"roles/{role.name}/README.md lacks the lines {START} and {END}")
    before, rest = text.split(START, 1)
    return before + section(role) + rest.split(END, 1)[1]


# The pages of the reference.

MADE = "<!-- Made by scripts/readmes.py. Edit what it is made from. -->"


def roles() -> list[Path]:
    return sorted(x for x in ROLES.iterdir() if (x / "meta/argument_specs.yml").exists())


def wiring() -> dict[str, Any]:
    """Return what the playbooks set."""
    found: dict[str, Any] = {}
    for path in sorted((PLAYBOOKS / "group_vars/all").glob("*.yml")):
        found |= parse(path.read_text()) or {}
    return found


def first_sentence(text: str | list[str]) -> str:
    return re.split(r"(?<=[a-z0-9`)])\. (?=[A-Z`])", prose(text))[0].rstrip(".") + "."


def variables() -> str:
    """Return the page of all variables."""
    stack, wired = options_of(PLAYBOOKS / "meta/argument_specs.yml"), wiring()
    parts = [
        f"{MADE}\n# Variables",
        "All that you may set, in `group_vars/<environment>/main.yml`. First come the variables of"
        " the playbooks, then those of each role, in a sentence; the README of the role has the"
        " whole text, the default, and what the entries of a list take.",
        "## The playbooks",
        *tables("variable", stack),
        "What else `playbooks/group_vars/all` sets, such as `stack_sites`, may be read in an"
        " expression of yours. To set it is to wire the roles anew.",
    ]
    for role in roles():
        rows = [
            f"| `{name}`{' *' if name in wired else ''} | {kind(spec)}"
            f" | {first_sentence(spec['description'])} |"
            for name, spec in options_of(role / "meta/argument_specs.yml").items()
        ]
        note = "`*`: the playbooks set it, and its default in the README is that of the role alone."
        parts += [
            f"## {role.name}",
            f"[The role's README](../../roles/{role.name}/README.md#variables)",
            "\n".join(["| variable | type | what it is |", "| --- | --- | --- |", *rows]),
            *([note] if any("` * |" in row for row in rows) else []),
        ]
    return "\n\n".join(parts) + "\n"


def tags_of(path: Path, seen: set[Path]) -> Iterator[str]:
    """Yield the tags of a playbook or task file, and of what it imports."""
    if path in seen or not path.exists():
        return
    seen.add(path)

    def walk(node: Any) -> Iterator[str]:
        if isinstance(node, list):
            for entry in node:
                yield from walk(entry)
        elif isinstance(node, dict):
            yield from node.get("tags", [])
            for key in ("tasks", "block", "rescue", "always"):
                yield from walk(node.get(key))
            for key in ("import_playbook", "import_tasks"):
                if name := node.get(f"ansible.builtin.{key}"):
                    yield from tags_of(path.parent / name, seen)
            if role := node.get("ansible.builtin.import_role"):
                tasks = f"{role['name']}/tasks/{role.get('tasks_from', 'main')}.yml"
                yield from tags_of(ROLES / tasks, seen)

    yield from walk(parse(path.read_text()))


def playbooks() -> str:
    """Return the page of all playbooks, from the comments that they begin with."""
    parts = [
        f"{MADE}\n# Playbooks",
        "Each is run with `-i inventory/<environment>`: in a clone by its path, in a project of"
        " your own by its name in the collection. `--check --diff` shows what would change and"
        " changes nothing; `--limit` leaves servers out.",
    ]
    # What site imports is not run alone.
    for path in sorted(x for x in PLAYBOOKS.glob("*.yml") if x.stem != "stack"):
        lines = re.match(r"---\n((?:#.*\n)*)", path.read_text())
        head = [line[2:] for line in (lines[1] if lines else "").splitlines()]
        extra = [re.fullmatch(r"  -e (.+?)  +(.*)", line) for line in head]
        text = " ".join(line for line, found in zip(head, extra, strict=True) if not found)
        # Nothing is ever copied to production.
        to = "staging" if path.stem == "copy_data" else "prod"
        clone = "site.yml" if path.name == "site.yml" else f"playbooks/{path.name}"
        parts += [
            f"## {path.stem}",
            text,
            f"    ansible-playbook {clone} -i inventory/{to}\n"
            f"    ansible-playbook carafe.stack.{path.stem} -i inventory/{to}",
        ]
        if rows := [f"| `-e {found[1]}` | {found[2]} |" for found in extra if found]:
            parts.append("\n".join(["| to be added | what it does |", "| --- | --- |", *rows]))
    rows = []
    for role in roles():
        link = f"[{role.name}](../../roles/{role.name}/README.md)"
        rows += [f"| `{tag}` | {link} | {text} |" for tag, text in tags_in_readme(role).items()]
    parts += [
        "## Tags",
        "With `--tags`, `site` does a part of its work. Each works alone, on a bare server in a dry"
        " run and on a live one. The preflight always runs.",
        "\n".join(["| tag | role | what runs |", "| --- | --- | --- |", *rows]),
    ]
    return "\n\n".join(parts) + "\n"


def tags_in_readme(role: Path) -> dict[str, str]:
    """Return the tags that a role's README lists, and what each runs."""
    text = (role / "README.md").read_text().partition("\n## Tags\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `([\w-]+)` \| (.*) \|$", text, re.MULTILINE))


def documentation(path: Path) -> dict[str, Any]:
    """Return what a module says of itself: DOCUMENTATION and RETURN, as data."""
    found = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            found[node.targets[0].id] = node.value.value
    return {name: parse(found.get(name) or "{}") for name in ("DOCUMENTATION", "RETURN")}


def modules() -> str:
    """Return the page of all modules."""
    parts = [
        f"{MADE}\n# Modules",
        "What the roles' tasks call. `ansible-doc carafe.stack.<module>` shows the same with"
        " examples. You need none of them to deploy an app.",
    ]
    for path in sorted((ROOT / "plugins/modules").glob("*.py")):
        says = documentation(path)
        module, values = says["DOCUMENTATION"], says["RETURN"]
        lines = module["description"]
        lines = [lines] if isinstance(lines, str) else lines
        parts += [f"## {path.stem}", f"{prose(module['short_description'])}."]
        parts.append("\n".join(f"- {prose(line)}" for line in lines))
        options = {k: {"type": "str", **v} for k, v in module.get("options", {}).items()}
        parts += tables("option", options)
        if values:
            rows = [f"| `{name}` | {prose(spec['description'])} |" for name, spec in values.items()]
            parts.append("\n".join(["| returns | what it is |", "| --- | --- |", *rows]))
    return "\n\n".join(parts) + "\n"


def wanted() -> Iterator[tuple[Path, str]]:
    """Yield each file, and the text that it is to have."""
    for role in roles():
        yield role / "README.md", updated(role)
    for page in (variables, playbooks, modules):
        yield REFERENCE / f"{page.__name__}.md", page()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if something is")
    check = parser.parse_args().check
    stale = []
    for path, text in wanted():
        if not path.exists() or path.read_text() != text:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(text)
    if stale:
        print(("out of date: " if check else "written: ") + ", ".join(stale))
    if stale and check:
        sys.exit("run: .venv/bin/python scripts/readmes.py")


if __name__ == "__main__":
    main()
