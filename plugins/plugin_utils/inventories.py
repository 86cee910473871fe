"""What keeps an inventory from being read, in words that say what was probably meant."""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from ansible.errors import AnsibleError

from .sources import Sources

# Where Ansible looks by itself.
USUAL = "/etc/ansible/hosts"
ENDS = ("", ".yml", ".yaml", ".json", ".ini")
TYPED = "-"
VAULT = b"$ANSIBLE_VAULT"
REFERENCE = re.compile(r"\bvault_\w+")
JSON_TABS = re.compile(r'("(?:\\.|[^"\\])*")|\t')
CLOSE = 0.6  # difflib's own measure of what is alike
# What a server can be for.
PARTS = ("db", "app", "web")


def known(folder: Path) -> list[str]:
    """Return the inventories that a project has, as one would write them behind -i."""
    found = [
        f"inventory/{path.name}"
        for path in sorted((folder / "inventory").glob("*"))
        if path.is_dir() and any(hosts_files(path))
    ]
    return found + [x.name for x in hosts_files(folder)]


def hosts_files(folder: Path) -> Iterator[Path]:
    for name in ("hosts", "inventory"):
        for end in ENDS[1:]:
            path = folder / f"{name}{end}"
            if path.is_file():
                yield path


def meant(path: Path, current: Path) -> str:
    """Return what was probably meant by a path that is not there, '' where nothing is like it."""
    inventories = known(current)
    # inventory/ left out, or too much of it said.
    names = {Path(x).name: x for x in inventories}
    for part in reversed(path.parts):
        if part in names:
            return names[part]
    # The folder that is there, and what in it is called nearly so.
    there = path
    while not there.exists() and there != there.parent:
        missing, there = there.name, there.parent
    inside = sorted(x.name for x in there.iterdir()) if there.is_dir() else []
    like = difflib.get_close_matches(missing, [x for x in inside if x[0] != "."], 1, CLOSE)
    if like:
        return str(there / like[0])
    like = difflib.get_close_matches(path.name, names, 1, CLOSE)
    return names[like[0]] if like else ""


def missing(path: Path, current: Path) -> str:
    """Return what is said of an inventory that is not there."""
    guess = meant(path, current)
    if guess:
        return f"{path} is not there. Did you mean {guess}?"
    others = known(current)
    if others:
        return f"{path} is not there. There are {', '.join(others)}."
    return f"{path} is not there, and {current} has no inventory. Go to the folder of your project."


def unreadable(path: Path, shown: str = "", of: str = "groups to hosts") -> str:
    """Return why a file of hosts, or of variables, cannot be read, '' where it can, or is no YAML.

    Ansible takes the last of two keys of one name: a server, or a setting, would get lost.
    """
    if path.suffix not in (".yml", ".yaml", ".json"):
        return ""
    shown = shown or str(path)
    try:
        text = path.read_text(errors="replace")
        if path.suffix == ".json":
            # As JSON itself, which between its tokens takes the tabs that YAML does not.
            json.loads(text)
            text = JSON_TABS.sub(lambda found: found[1] or " ", text)
        nodes = [x for x in yaml.compose_all(text, Loader=yaml.SafeLoader) if x]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        if any(re.match(r" *\t", x) for x in text.splitlines()[line - 1 : line]):
            return f"{shown}, line {line}: it is indented by a tab, and YAML takes blanks only"
        return f"{shown}, line {line}: {error.problem or error.context}"
    except (OSError, ValueError, yaml.YAMLError) as error:
        return f"{shown}: {' '.join(str(error).split())}"
    for node in nodes:
        if not isinstance(node, yaml.MappingNode):
            return f"{shown}: it is no mapping of {of}"
        for key, first in twins(node):
            line, other = (x.start_mark.line + 1 for x in (key, first))
            return f"{shown}, line {line}: {key.value} is there twice; it is in line {other}, too"
    return ""


def twins(node: yaml.Node) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    """Yield the keys that a mapping has already, each with the one before it."""
    if isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from twins(value)
    elif isinstance(node, yaml.MappingNode):
        there: dict[str, yaml.Node] = {}
        for key, value in node.value:
            # What merges another mapping may be there more than once.
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in there:
                    yield key, there[key.value]
                there[key.value] = key
            yield from twins(value)


def only(groups: Mapping[str, Any]) -> list[str]:
    """Return the server of an inventory that has one, and no groups that say what it is for."""
    servers = list(groups.get("all") or [])
    return servers if len(servers) == 1 and not groups.keys() & {*PARTS} else []


def complaint(
    sources: Iterable[Any], groups: Mapping[str, Any], wanted: Iterable[str], current: Path
) -> str:
    """Return why there is no server to work on, '' where there is one."""
    wanted = list(wanted)
    paths = [Path(str(x)) for x in sources if "," not in str(x)]
    given = [x for x in paths if str(x) != USUAL]
    for path in given:
        shown = Path(os.path.relpath(path, current))
        shown = path if str(shown).startswith("..") else shown
        if not path.exists():
            return f"The inventory {missing(shown, current)}"
        inside = sorted(x for x in path.iterdir() if x.is_file()) if path.is_dir() else [path]
        for file in inside:
            if why := unreadable(file):
                return f"The inventory cannot be read: {why}."
    if any(groups.get(name) for name in wanted):
        return ""
    names = " or ".join(wanted)
    if groups.get("all"):
        places = ", ".join(os.path.relpath(x, current) for x in given) or "the inventory"
        return (
            f"No server is in the group {names} of {places}. Put it under hosts: of those groups."
        )
    if given:
        return f"The inventory {', '.join(map(str, given))} names no server."
    there = known(current)
    first = next((x for x in there if x.endswith("/prod")), next(iter(there), "FILE"))
    has = f" There are {', '.join(there)}." if there else ""
    return f"No inventory is named, so there is no server to work on.{has} Add -i {first}."


# --- the vault --------------------------------------------------------------------------------


def variable_files(
    folders: Iterable[Path], groups: Iterable[str], hosts: Iterable[str]
) -> list[Path]:
    """Return the files with variables of these groups and hosts."""
    found = []
    for folder in folders:
        places = [folder / "group_vars" / x for x in groups]
        places += [folder / "host_vars" / x for x in hosts]
        for place in places:
            files = [place.with_name(place.name + end) for end in ENDS[:4]]
            files += sorted(place.glob("**/*")) if place.is_dir() else []
            found += [x for x in files if x.is_file()]
    return list(dict.fromkeys(x.resolve() for x in found))


def begins(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(VAULT)) == VAULT
    except OSError:
        return False


class Sealed(NamedTuple):
    """A value that is encrypted by itself, in a file that is not."""

    path: Path
    line: int
    name: str
    text: str


def sealed(paths: Iterable[Path]) -> Iterator[Sealed]:
    """Yield the values in these files that are encrypted one by one."""
    for path in paths:
        text = path.read_text(errors="replace")
        if "!vault" not in text:
            continue
        try:
            nodes = [x for x in yaml.compose_all(text, Loader=yaml.SafeLoader) if x]
        except yaml.YAMLError:
            # Ansible says where it is wrong.
            continue
        for node in nodes:
            for name, value in scalars(node):
                if value.tag in ("!vault", "!vault-encrypted"):
                    yield Sealed(path, value.start_mark.line + 1, name, value.value)


def laid_open(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the files of secrets, by their names, in which some are not encrypted at all."""
    for path in paths:
        if path.stem == "vault" and path.suffix in (".yml", ".yaml") and not begins(path):
            nodes = yaml.compose_all(path.read_text(errors="replace"), Loader=yaml.SafeLoader)
            found = [x for node in nodes if node for x in scalars(node)]
            if any(x.startswith("vault_") and "!vault" not in value.tag for x, value in found):
                yield path


def scalars(node: yaml.Node, name: str = "") -> Iterator[tuple[str, yaml.ScalarNode]]:
    """Yield what is in a document, with the keys that lead there."""
    if isinstance(node, yaml.ScalarNode):
        yield name, node
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from scalars(value, name)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from scalars(value, f"{name}.{key.value}".lstrip("."))


def used(folders: Iterable[Path]) -> list[str]:
    """Return the names of secrets that the readable files of group_vars refer to."""
    found: set[str] = set()
    for folder in folders:
        for path in (folder / "group_vars").rglob("*.yml"):
            if path.is_file() and not begins(path):
                lines = path.read_text(errors="replace").splitlines()
                code = "\n".join(x for x in lines if not x.lstrip().startswith("#"))
                found |= set(REFERENCE.findall(code))
    return sorted(found)


def locked(path: Path, loader: Any) -> str:
    """Return why a vault cannot be opened, '' where it can."""
    try:
        # As the plugin does it that reads group_vars, which then need not open it once more.
        loader.load_from_file(str(path), cache="all", unsafe=True, trusted_as_template=True)
    except AnsibleError as error:
        said = " ".join(str(error).split())
        if "ecrypt" in said or "vault" in said.lower():
            return said
    return ""


def closed(value: Sealed, loader: Any) -> bool:
    """Tell whether a value cannot be decrypted."""
    try:
        loader._vault.decrypt(value.text.encode())
    except AnsibleError:
        return True
    return False


def key_complaint(sources: Sources, key_file: str) -> tuple[str, str]:
    """Return what is wrong with the key of something that does not open, and what to do."""
    key = Path(key_file) if key_file else None
    if key_file == TYPED:
        what, way = (
            "is encrypted with another key than the one that was typed",
            "Type the right one",
        )
    elif key is None:
        what = "is encrypted, and no key was given"
        way = "Run again with --vault-password-file FILE, or with --ask-vault-pass"
    elif not key.is_file():
        what = f"is encrypted, and its key is missing: there is no {sources.short(key)}"
        way = f"Get the key of whoever wrote it, and write it into {sources.short(key)} (mode 0600)"
    else:
        what = f"is encrypted with another key than the one in {sources.short(key)}"
        way = f"Write the right key into {sources.short(key)}"
    return what, way


def value_complaint(value: Sealed, sources: Sources, key_file: str) -> str:
    """Return what to do about a value whose key is missing or wrong."""
    what, way = key_complaint(sources, key_file)
    name = value.name.rpartition(".")[2]
    anew = shlex.join([sources.tool("ansible-vault"), "encrypt_string", "--name", name])
    return (
        f"{sources.short(value.path)}, line {value.line}: {value.name} {what}. {way}, then see that"
        f" the run goes on: {sources.again()}. Where the key is lost, write the value anew in that"
        f" line: {anew}."
    )


def vault_complaint(path: Path, sources: Sources, key_file: str, secrets: Iterable[str]) -> str:
    """Return what to do about a vault whose key is missing or wrong."""
    shown, (what, way) = sources.short(path), key_complaint(sources, key_file)
    names = ", ".join(secrets) or "vault_app_secret_key"
    check = shlex.join([sources.tool("ansible-vault"), "view", shown])
    return (
        f"{shown} {what}, so the secrets in it cannot be read (such as {names}). {way}, then see"
        f" that it opens: {check}. Where the key is lost, move {shown} away and write new secrets:"
        f" {sources.vault_command()}."
    )
