"""Where a variable comes from, where it belongs, and what to say about it."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml
from ansible import context

from .problems import Problem, Server
from .urls import credential

TOP = Path(__file__).resolve().parents[2]
VAULT = re.compile(r"\bvault_\w+")
# Which one playbooks/rotate.yml is to change, by its name.
ROTATED = re.compile(r"secret=(app_secret_key(_old)?|database_(migrate_)?password)")
SECRET = re.compile(r"secret|password|token|key|vault_", re.IGNORECASE)


class Sources:
    """The files that a variable may be set in, named as the user would in the current folder.

    ``top`` is the folder of the clone or of the installed collection.
    ``host_groups`` are the groups that all servers are in, from which an environment's is taken.
    """

    def __init__(
        self,
        current: Path,
        inventories: Iterable[str],
        extra: Iterable[str],
        play: Iterable[str],
        host_groups: Iterable[str] = (),
        top: Path = TOP,
    ):
        self.current, self.top = current, top
        self.inventories = [Path(x) for x in inventories if Path(x).exists()]
        self.extra, self.play = set(extra), set(play)
        self.host_groups = [x for x in host_groups if x not in ("all", "ungrouped")]

    def short(self, path: Path) -> str:
        path = path if path.is_absolute() else self.current / path
        return (
            str(path.relative_to(self.current)) if path.is_relative_to(self.current) else str(path)
        )

    def folders(self) -> list[Path]:
        """Return the folders that may hold group_vars."""
        found = [x if x.is_dir() else x.parent for x in self.inventories]
        return list(dict.fromkeys(found)) or [self.current]

    def inventory_files(self) -> list[Path]:
        """Return the files that name the hosts; those of a folder that hold no variables."""
        found = []
        for path in self.inventories:
            inside = sorted(x for x in path.iterdir() if x.is_file()) if path.is_dir() else [path]
            found += [x for x in inside if not x.name.startswith(".")]
        return found

    def variable_files(self, name: str) -> list[Path]:
        """Return the files of one group or host, such as ``group_vars/prod``."""
        found: list[Path] = []
        for folder in self.folders():
            place = folder / name
            for end in ("", ".yml", ".yaml", ".json"):
                path = place.with_name(place.name + end)
                found += [path] if path.is_file() else []
            found += sorted(x for x in place.glob("**/*") if x.is_file()) if place.is_dir() else []
        return [x.resolve() for x in found]

    def files(self, host: str, groups: Iterable[str]) -> list[Path]:
        """Return the files with variables of a host, those that win first."""
        found = self.variable_files(f"host_vars/{host}")
        for group in groups:
            found += self.variable_files(f"group_vars/{group}") if group != "all" else []
        found += [x.resolve() for x in self.inventory_files()]
        return list(dict.fromkeys([*found, *self.variable_files("group_vars/all")]))

    def look(self, variable: str, paths: Iterable[Path]) -> tuple[str, str]:
        key = re.compile(rf"(?:^\s*-?\s*|[{{,]\s*|\s)[\"']?{re.escape(variable)}[\"']?\s*[:=]")
        for path in paths:
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
                if not line.lstrip().startswith("#") and key.search(line):
                    return f"{self.short(path)}, line {number}", line
        return "", ""

    def find(self, variable: str, host: str, groups: Iterable[str]) -> tuple[str, str]:
        """Return where a variable is set, and the line; both are '' when it cannot be found."""
        if variable in self.extra:
            return "what -e on the command line says", ""
        if variable in self.play:
            return "the vars of the play", ""
        return self.look(variable, self.files(host, groups))

    def find_without_effect(self, variable: str) -> str:
        """Return where a variable is set for all servers, which loses to the stack's own value."""
        places = [*self.variable_files("group_vars/all"), *self.inventory_files()]
        return self.look(variable, [x.resolve() for x in places])[0] or self.hosts_file()

    def hosts_file(self) -> str:
        return self.short(self.inventory_files()[0]) if self.inventory_files() else "the inventory"

    def group(self, groups: Iterable[str]) -> str:
        """Return the group that stands for the environment: all servers are in it."""
        groups = [x for x in groups if x not in ("all", "ungrouped")]
        names = [folder.name for folder in self.folders() if folder.name in groups]
        return next(iter([*names, *self.host_groups, *groups]), "all")

    def group_file(self, group: str, name: str = "main.yml") -> Path:
        """Return the file for a group's variables, where the inventory's group_vars really are."""
        folder = next((x for x in self.folders() if (x / "group_vars").is_dir()), self.folders()[0])
        single = folder / f"group_vars/{group}.yml"
        if name == "main.yml" and single.is_file():
            return single.resolve()
        return (folder / "group_vars").resolve() / group / name

    def suggest(self, variable: str, groups: Iterable[str]) -> str:
        """Return the file where a variable that is not set should be."""
        if variable in ("private_address", "stack_state") or variable.startswith("ansible_"):
            return self.hosts_file()
        if variable.startswith("vault_"):
            # As playbooks/vault.yml has it.
            names = [x.name for x in self.folders() if x.name in groups]
            return self.short(self.group_file(next(iter(names), "all"), "vault.yml"))
        return self.short(self.group_file(self.group(groups)))

    def tool(self, name: str) -> str:
        """Return a command of Ansible's as it was typed, such as ``.venv/bin/ansible-playbook``."""
        typed = Path(sys.argv[0])
        # One that the shell has found by its name has the whole path.
        by_name = typed.is_absolute() or typed.name != "ansible-playbook"
        return name if by_name else str(typed.with_name(name))

    def vault_command(self) -> str:
        """Return the command that writes a vault for the environment."""
        folder, clone = self.folders()[0], (self.top / "Makefile").is_file()
        if clone and folder.resolve().parent == self.top.resolve() / "inventory":
            return f"make vault ENV={folder.name}"
        playbook = self.short(self.top / "playbooks/vault.yml") if clone else "carafe.stack.vault"
        inventories = [word for x in self.inventories[:1] for word in ("-i", self.short(x))]
        return shlex.join([self.tool("ansible-playbook"), playbook, *inventories])

    def written_secrets(self) -> set[str]:
        """Return the secrets that the command writes, some of which nobody could type."""
        (play,) = yaml.safe_load((TOP / "playbooks/vault.yml").read_text())
        return set(play["vars"]["vault_secrets"])

    def advice(self, problem: Problem, host: str, groups: list[str]) -> str:
        """Return what to do about a problem: a file to edit, a command to run."""
        place, line = self.find(problem.variable, host, groups)
        if problem.what.startswith("is not set"):
            place = ""
        secret = VAULT.search(line if place else problem.variable)
        if secret:
            vault = self.suggest(secret[0], groups)
            if not (self.current / vault).exists():
                return f"Write {vault}: {self.vault_command()}"
            if not place and secret[0] in self.written_secrets():
                return f"Add it to {vault}: {self.vault_command()}"
            return f"Set {secret[0]} in the vault: {self.tool('ansible-vault')} edit {vault}"
        if problem.meant and problem.variable in self.extra:
            meant = shlex.quote(f'{{"{problem.variable}": {problem.meant}}}')
            return f"Write -e {meant} on the command line."
        place = place or self.suggest(problem.variable, groups)
        return f"Edit {place}{f'; {problem.command}' if problem.command else ''}."

    def again(self) -> str:
        """Return the command that was typed, with no secret in it."""
        typed, *words = sys.argv
        if Path(typed).name != "ansible-playbook":
            words = list(context.CLIARGS.get("args") or ["site.yml"])
            words += [word for x in self.inventories for word in ("-i", self.short(x))]
        return shlex.join([self.tool("ansible-playbook"), *(hide(word) for word in words)])


def hide(word: str) -> str:
    """Return a word of the command line, as it is unless it sets a secret."""
    if credential(word):
        name = re.match(r"\w+=", word)
        return f"{name[0] if name else ''}…"
    if word.startswith("--") or not SECRET.search(word) or ROTATED.fullmatch(word):
        return word
    if word.lstrip().startswith("{"):
        return "{…}"
    return re.sub(rf"(\w*(?:{SECRET.pattern})\w*)=.*", r"\1=…", word, flags=re.I | re.S)


def report(found: Mapping[Problem, list[Server]], sources: Sources) -> str:
    """Return the text for all problems: what is wrong, on which servers, and what to do next."""
    count = f"{len(found)} problem{'s' if len(found) > 1 else ''}"
    lines = [f"{count} found before anything was changed:", ""]
    # Without a name nothing else makes sense, so that comes first.
    ordered = sorted(found.items(), key=lambda item: item[0].variable != "app_name")
    for number, (problem, servers) in enumerate(ordered, 1):
        named = any(re.search(rf"\b{re.escape(x.name)}\b", problem.what) for x in servers)
        where = "" if named else f" ({', '.join(x.name for x in servers)})"
        lines.append(f"{number}. {problem.variable} {problem.what}.{where}".replace("?.", "?"))
        lines.append(f"   {sources.advice(problem, servers[0].name, servers[0].groups)}")
    return "\n".join([*lines, "", f"Then run again: {sources.again()}"])
