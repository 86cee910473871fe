"""Render a role's files on the control machine, and let one call of the module write them all."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import lookup_loader

from ..modules.files import ARGUMENTS

PLACE = {"folders": "path", "files": "dest", "trees": "dest", "checks": "folder"}
SOURCES = ("src", "content", "copy")
# What several roles install.
SHARED = Path(__file__).parents[1] / "files"


def problems(arguments: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the arguments, before anything is read or rendered."""
    for name in arguments.keys() - ARGUMENTS.keys():
        yield f"{name} is no list of this module; it knows {', '.join(ARGUMENTS)}."
    for name in PLACE:
        entries = arguments.get(name, [])
        if not isinstance(entries, list) or not all(isinstance(x, dict) for x in entries):
            yield f"{name} must be a list of dictionaries."
            continue
        for entry in entries:
            yield from problems_of(name, entry)
    paths = arguments.get("absent", [])
    if not isinstance(paths, list):
        yield "absent must be a list of paths."
        return
    for path in paths:
        wrong = list(problems_of_path("absent", path))
        yield from wrong
        # A mistake in a variable had better not remove /etc.
        if not wrong and len(PurePosixPath(path).parts) < 3:
            yield f"absent has {path}, which is too much to remove."
    files = [x for x in arguments.get("files", []) if isinstance(x, dict)]
    wanted = [PurePosixPath(x["dest"]) for x in files if path_of(x, "dest")]
    for path in sorted({x for x in wanted if wanted.count(x) > 1}):
        yield f"files has {path} twice."
    for path in map(PurePosixPath, map(str, paths)):
        if any(path == x or path in x.parents for x in wanted):
            yield f"{path} is to be absent, and is among files or holds one of them."


def path_of(entry: dict[str, Any], key: str) -> str | None:
    path = entry.get(key)
    return path if isinstance(path, str) else None


def problems_of_path(where: str, path: Any) -> Iterator[str]:
    if not isinstance(path, str) or not path.startswith("/") or ".." in path.split("/"):
        yield f"{where} has {path!r}, but needs an absolute path."


def problems_of(name: str, entry: dict[str, Any]) -> Iterator[str]:
    place, known = PLACE[name], ARGUMENTS[name]["options"]
    where = f"{name}: {entry.get(place, 'an entry')}"
    yield from problems_of_path(f"{place} in {name}", entry.get(place))
    for key in sorted(entry.keys() - known):
        yield f"{where} has {key}, which is not known; known are {', '.join(sorted(known))}."
    mode = entry.get("mode")
    if mode is not None and not (isinstance(mode, str) and re.fullmatch(r"[0-7]{3,4}", mode)):
        yield f'{where} has mode {mode!r}; write octal digits in quotes, as "0644".'
    if name == "files":
        given = [key for key in SOURCES if entry.get(key) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "no text"
            yield f"{where} has {found}; give one of {', '.join(SOURCES)}."
        elif not isinstance(entry[given[0]], str):
            yield f"{where} has a {given[0]} that is no text; to_json makes one of data."
        if entry.get("vars") is not None and not isinstance(entry["vars"], dict):
            yield f"{where} has vars that are no dictionary."
    if name == "trees" and not path_of(entry, "src"):
        yield f"{where} has no src."
    for key in ("validate", "command"):
        if key in known and entry.get(key) is not None and "%s" not in str(entry[key]):
            yield f"{where} has a {key} without %s, which stands for what it checks."
    if name == "checks" and not entry.get("command"):
        yield f"{where} has no command."


class ActionModule(ActionBase):
    """Turns sources into texts."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        arguments = {name: value for name, value in self._task.args.items() if value is not None}
        for problem in problems(arguments):
            raise AnsibleActionFail(problem)
        folders = list(arguments.get("folders") or [])
        files = [self.file(entry, task_vars) for entry in arguments.get("files") or []]
        for tree in arguments.get("trees") or []:
            self.tree(tree, folders, files)
        result.update(
            self._execute_module(
                module_name="carafe.stack.files",
                module_args={
                    "folders": folders,
                    "files": files,
                    "absent": arguments.get("absent") or [],
                    "checks": arguments.get("checks") or [],
                    "backup": arguments.get("backup") or False,
                },
                task_vars=task_vars,
            )
        )
        # It holds every file's text.
        result.pop("invocation", None)
        return result

    def file(self, entry: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        sent = {key: entry[key] for key in entry if key not in ("src", "copy", "vars")}
        if entry.get("src") is not None:
            sent["content"] = self.render(entry, task_vars)
        elif entry.get("copy") is not None:
            name = entry["copy"]
            # Programs are named in differences, not printed.
            if name.startswith("collection:"):
                sent |= self.read(str(SHARED / name.partition(":")[2])) | {"sensitive": True}
            else:
                sent |= self.read(self.find("files", name))
        return sent

    def find(self, folder: str, name: str) -> str:
        try:
            return self._find_needle(folder, name)
        except AnsibleError:
            raise AnsibleActionFail(f"There is no {name} in the role's folder {folder}.") from None

    def read(self, path: str) -> dict[str, Any]:
        """Return the content of a file, of an encrypted one as well."""
        try:
            content = Path(self._loader.get_real_file(path)).read_bytes()
        except (AnsibleError, OSError):
            raise AnsibleActionFail(f"{path} cannot be read.") from None
        try:
            return {"content": content.decode()}
        except UnicodeDecodeError:
            return {"content": base64.b64encode(content).decode(), "encoding": "base64"}

    def render(self, entry: dict[str, Any], task_vars: dict[str, Any]) -> str:
        """Return what ansible.builtin.template would write."""
        self.find("templates", entry["src"])
        lookup = lookup_loader.get(
            "ansible.builtin.template", loader=self._loader, templar=self._templar
        )
        try:
            return lookup.run(
                [entry["src"]], variables=task_vars, template_vars=entry.get("vars") or {}
            )[0]
        except AnsibleError as error:
            raise AnsibleActionFail(
                f"The template {entry['src']} of {entry['dest']} cannot be rendered: {error}"
            ) from error

    def tree(
        self, tree: dict[str, Any], folders: list[dict[str, Any]], files: list[dict[str, Any]]
    ) -> None:
        """Add all of a folder to what is sent."""
        source = Path(self.find("files", tree["src"]))
        if not source.is_dir():
            raise AnsibleActionFail(f"{tree['src']} in trees is no folder.")
        there = {PurePosixPath(x["path"]) for x in folders}
        for folder, _, names in sorted(os.walk(source)):
            place = PurePosixPath(tree["dest"], Path(folder).relative_to(source))
            if place not in there:
                folders.append({"path": str(place), "only_new": True})
            files += [
                {"dest": str(place / name), **self.read(str(Path(folder, name)))}
                for name in sorted(names)
            ]
