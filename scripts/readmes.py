#!/usr/bin/env python3
"""Write the table of variables into each role's README.md, from its argument_specs.yml.

.venv/bin/python scripts/readmes.py            write what is out of date
.venv/bin/python scripts/readmes.py --check    only say what is, and fail
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).parents[1] / "roles"
START, END = "<!-- variables -->", "<!-- end of variables -->"
HEADER = "| {} | type | default | what it is |\n| --- | --- | --- | --- |"


def prose(text: str | list[str]) -> str:
    """Turn Ansible's C(x), with \\) for a bracket inside, into Markdown for one table cell."""
    text = " ".join([text] if isinstance(text, str) else text)
    text = re.sub(r"C\(((?:\\.|[^)])*)\)", lambda found: f"`{found[1].replace(chr(92), '')}`", text)
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


def section(role: Path) -> str:
    """Return the generated part of a role's README, its markers included."""
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]
    options = {name: spec for entry in specs.values() for name, spec in entry["options"].items()}
    return "\n\n".join([START, *tables("variable", options), END])


def updated(role: Path) -> str:
    """Return a role's README with the generated part as it should be."""
    text = (role / "README.md").read_text()
    if START not in text or END not in text:
        sys.exit(f"roles/{role.name}/README.md lacks the lines {START} and {END}")
    before, rest = text.split(START, 1)
    return before + section(role) + rest.split(END, 1)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if something is")
    check = parser.parse_args().check
    stale = []
    for role in sorted(x for x in ROLES.iterdir() if (x / "meta/argument_specs.yml").exists()):
        readme = role / "README.md"
        if (text := updated(role)) != readme.read_text():
            stale.append(f"roles/{role.name}/README.md")
            if not check:
                readme.write_text(text)
    if stale:
        print(("out of date: " if check else "written: ") + ", ".join(stale))
    if stale and check:
        sys.exit("run: .venv/bin/python scripts/readmes.py")


if __name__ == "__main__":
    main()
