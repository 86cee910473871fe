"""What roles and playbooks say that they take, and how a value is held against it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from ansible.errors import AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from .problems import Problem, Server

TOP = Path(__file__).parents[2]
COLLECTION = "ansible_collections.carafe.stack"
SECRET = re.compile(r"secret|password|token|key", re.IGNORECASE)
NUMBER = re.compile(r"\s*[-+]?[0-9]+\s*")
TRUE = ("true", "yes", "on", "y", "t", "1", "1.0")
FALSE = ("false", "no", "off", "n", "f", "0")
UNDEFINED = re.compile(r"'(\w+)' is undefined")
NAME = re.compile(r"[A-Za-z_]\w*")
KINDS = {
    "list": "a list",
    "dict": "a mapping of names to values",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
}


@dataclass
class Taker:
    """A role, or the playbooks: its options, their defaults, its own variables and its checks."""

    name: str
    options: dict[str, Any]
    defaults: dict[str, Any] = field(default_factory=dict)
    vars: dict[str, Any] = field(default_factory=dict)
    checks: ModuleType | None = None

    def __str__(self) -> str:
        return "the stack" if self.name == "stack" else f"the role {self.name}"

    @property
    def ranges(self) -> Mapping[str, tuple[int, int | None]]:
        return getattr(self.checks, "RANGES", {})


def load(loader: Any, path: Path) -> dict[str, Any]:
    """Read a file as Ansible would, or take what it has read already."""
    if not path.exists():
        return {}
    # With unsafe=False each file is copied with all tags in it, which took a third of the time.
    return loader.load_from_file(str(path), unsafe=True, trusted_as_template=True) or {}


def checks_of(place: str) -> ModuleType | None:
    """Import the checks that stand beside a spec; a role has none when the spec says it all."""
    name = f"{COLLECTION}.{place}.meta.preflight"
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return None


def read_options(loader: Any, path: Path) -> dict[str, Any]:
    entry_points = load(loader, path).get("argument_specs", {}).values()
    return {k: v for entry in entry_points for k, v in entry.get("options", {}).items()}


def read_role(loader: Any, name: str) -> Taker:
    """Read a role's files as Ansible would."""
    path = TOP / "roles" / name
    return Taker(
        name,
        read_options(loader, path / "meta/argument_specs.yml"),
        load(loader, path / "defaults/main.yml"),
        load(loader, path / "vars/main.yml"),
        checks_of(f"roles.{name}"),
    )


def role_names() -> list[str]:
    return sorted(x.name for x in (TOP / "roles").iterdir() if (x / "tasks").is_dir())


def read_roles(loader: Any) -> dict[str, Taker]:
    return {name: read_role(loader, name) for name in role_names()}


def read_stack(loader: Any) -> Taker:
    """Read what the playbooks take; what they make of it stands in group_vars beside them."""
    wiring: dict[str, Any] = {}
    for path in sorted((TOP / "playbooks/group_vars/all").glob("*.yml")):
        wiring |= load(loader, path)
    options = read_options(loader, TOP / "playbooks/meta/argument_specs.yml")
    return Taker("stack", options, wiring, checks=checks_of("playbooks"))


# One value.


YAML_KINDS = {str: "a text", (list, tuple): "a list", bool: "true or false"}


def shown(name: str, value: Any) -> str:
    return "a text" if SECRET.search(name) else f"the text {value!r}"


def wrong(name: str, at: str, value: Any, kind: str, choices: Any) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a value of a simple type, and the value that was meant."""
    if kind == "list" and not isinstance(value, (list, tuple)):
        meant = json.dumps([value]) if isinstance(value, str) and not SECRET.search(name) else ""
        is_text = shown(name, value) if isinstance(value, str) else repr(value)
        yield f"{at} {is_text}, and a list is meant{f': {meant}' if meant else ''}", meant
    elif kind == "dict" and not isinstance(value, Mapping):
        # Never as it is: what is to be a mapping may be an environment, and hold secrets.
        is_kind = next(
            (word for kinds, word in YAML_KINDS.items() if isinstance(value, kinds)), "a number"
        )
        yield f"{at} {is_kind}, and a mapping of names to values is meant", ""
    elif kind == "bool" and not isinstance(value, bool):
        # Ansible takes a text that says false for true, wherever it is not asked to convert it.
        if not (isinstance(value, str) and value.lower() in TRUE):
            is_text = shown(name, value) if isinstance(value, str) else repr(value)
            counts = ", which counts as true" if isinstance(value, str) and value else ""
            meant = "false" if str(value).lower() in FALSE else ""
            yield f"{at} {is_text}{counts}; write true or false, with no quotes", meant
    elif (
        kind == "int"
        and not (isinstance(value, str) and NUMBER.fullmatch(value))
        and (isinstance(value, (bool, str)) or not isinstance(value, (int, float)) or value % 1)
    ):
        yield f"{at} {value!r}, and a whole number is meant", ""
    elif kind in ("str", "path") and isinstance(value, (list, tuple, Mapping)):
        yield (
            f"{at} {'a mapping' if isinstance(value, Mapping) else 'a list'}, and a text is meant",
            "",
        )
    elif choices and value not in choices and str(value) not in map(str, choices):
        known = ", ".join(str(x) or "''" for x in choices)
        yield f"{at} {value!r}, which is none of {known}", ""


def faults(
    name: str,
    value: Any,
    spec: Mapping[str, Any],
    ranges: Mapping[str, tuple[int, int | None]],
    path: str = "",
    where: str = "",
) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a value and all that is in it, and the value that was meant."""
    at = f"has in {where}" if where else "is"
    path = path or name
    if value is None:
        if spec.get("required") or spec.get("default") is not None:
            yield f"{at} nothing, and {KINDS.get(spec['type'], 'a text')} is meant", ""
        return
    found = list(wrong(path, at, value, spec["type"], spec.get("choices")))
    if found:
        yield found[0]
        return
    if spec["type"] in ("int", "float"):
        least, most = ranges.get(path, (0, None))
        if float(value) < least or (most and float(value) > most):
            wanted = f"from {least} to {most}" if most else f"at least {least}"
            yield f"{at} {value}, and a number {wanted} is meant", ""
    if spec["type"] == "list" and "elements" in spec:
        below = {**spec, "type": spec["elements"], "choices": spec.get("choices")}
        below.pop("default", None)
        for number, entry in enumerate(value, 1):
            label = entry.get("name") if isinstance(entry, Mapping) else None
            place = repr(label) if isinstance(label, str) else f"entry {number}"
            place = f"{where}, {place}" if where else place
            if entry is None or spec["elements"] != "raw":
                yield from faults(name, entry, {**below, "required": True}, ranges, path, place)
    if isinstance(value, Mapping) and spec["type"] in ("dict", "list") and "options" in spec:
        options = spec["options"]
        of = f"{where} " if where else ""
        if unknown := sorted(str(x) for x in value if x not in options):
            yield f"has {of}{', '.join(unknown)}, and knows only {', '.join(options)}", ""
        for key, option in options.items():
            if key in value:
                place = f"{key} of {where}" if where else key
                yield from faults(name, value[key], option, ranges, f"{path}.{key}", place)


def check_option(
    server: Server,
    taker: str,
    name: str,
    spec: Mapping[str, Any],
    ranges: Mapping[str, tuple[int, int | None]] | None = None,
) -> Iterator[Problem]:
    """An option must be there where it is required, and be of the type that the role says."""
    if name not in server.values:
        if spec.get("required") and not server.failed(name):
            server.missing.add(name)
            yield Problem(name, f"is not set, and {taker} needs it")
        return
    value = server.values[name]
    found = [
        Problem(name, what, meant=meant) for what, meant in faults(name, value, spec, ranges or {})
    ]
    if not found:
        result = ArgumentSpecValidator({name: dict(spec)}).validate({name: value})
        if result.error_messages:
            found = [Problem(name, f"has the wrong form: {'; '.join(result.error_messages)}")]
        else:
            server.given[name] = value
            server.values[name] = result.validated_parameters[name]
    if found:
        del server.values[name]
        yield found[0]


def default_of(variable: str, options: Mapping[str, Any]) -> str:
    """Return the option of what the wiring gives, to which a list of the user's is added, or ''."""
    role, _, rest = variable.partition("_")
    name = f"{role}_default_{rest}"
    return name if name in options else ""


def merge(server: Server, variable: str, options: Mapping[str, Any]) -> None:
    """Let a list stand with what the wiring gives: an entry of the same name is merged over it."""
    default = default_of(variable, options)
    if not default or variable not in server.values or default not in server.values:
        return
    given, own = server.given[default], server.given[variable]
    if isinstance(given, Mapping):
        server.values[variable] = {**given, **own}
        return
    named: dict[Any, Any] = {}
    for number, entry in enumerate([*given, *own]):
        key = entry.get("name", number) if isinstance(entry, Mapping) else number
        before = named.get(key, {})
        if isinstance(entry, Mapping):
            entry = {**before, **entry}
            for k, v in before.items():
                if isinstance(v, list) and isinstance(entry[k], list) and entry[k] is not v:
                    entry[k] = [*(x for x in v if x not in entry[k]), *entry[k]]
        named[key] = entry
    spec = {**options[default], "required": False}
    result = ArgumentSpecValidator({variable: spec}).validate({variable: list(named.values())})
    server.values[variable] = (result.validated_parameters or {}).get(
        variable, list(named.values())
    )


def check_unknown(names: Iterable[str], takers: Iterable[Taker]) -> Iterator[Problem]:
    """A variable with a role's prefix that the role does not know has no effect, silently."""
    takers = {taker.name: taker for taker in takers}
    known = {option for taker in takers.values() for option in taker.options}
    # What the wiring makes for itself is known, and no guess.
    made = {name for taker in takers.values() if taker.name == "stack" for name in taker.defaults}
    for name in sorted(names):
        taker = takers.get(name.split("_")[0])
        if taker and "_" in name and name not in known | made:
            close = difflib.get_close_matches(name, known, n=1)
            if close:
                guess = f"; did you mean {close[0]}?"
            elif taker.name == "stack":
                guess = f", which has {', '.join(taker.options)}"
            else:
                guess = f"; `ansible-doc -t role carafe.stack.{taker.name}` lists what it knows"
            yield Problem(name, f"is a variable that {taker} does not know{guess}")


# Which variable a mistake is in.


def cause(error: AnsibleError) -> str:
    """Return the innermost reason of a template that could not be rendered, in one line."""
    undefined = UNDEFINED.findall(str(error))
    return undefined[-1] if undefined else " ".join(str(error).split())


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):  # hostvars is none, and renders what is asked of it
        for x in value.values():
            yield from texts(x)
    elif isinstance(value, (list, tuple)):
        for x in value:
            yield from texts(x)


def needs(name: str, variables: Mapping[str, Any], options: Mapping[str, Any]) -> set[str]:
    """Return the variables that a variable is made of, and what those are made of."""
    found: set[str] = set()
    wanted = [name]
    while wanted:
        name = wanted.pop()
        inside = {
            x for text in texts(variables.get(name)) if "{" in text for x in NAME.findall(text)
        }
        inside |= {default_of(name, options)} - {""}
        new = {x for x in inside if x in variables} - found
        found |= new
        wanted += new
    return found


def without_echoes(
    problems: Iterable[Problem],
    theirs: set[str],
    variables: Mapping[str, Any],
    options: Mapping[str, Any],
) -> list[Problem]:
    """Leave out what is only wrong because a variable is that the user wrote, and that is named."""
    problems = list(problems)
    named = {x.variable for x in problems}
    return [
        x
        for x in problems
        if x.variable in theirs
        or x.variable not in variables
        or not needs(x.variable, variables, options) - {x.variable} & named
    ]
