"""What another environment of the same project says, read from its inventory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.inventory.manager import InventoryManager
from ansible.vars.manager import VariableManager

from . import inventories, options

TAKEN = (
    *("repository", "key", "s3_endpoint", "s3_region", "s3_key", "s3_secret", "s3_ca"),
    *("ssh_key", "ssh_known_hosts"),
)


def folder_of(project: Path, name: str) -> Path:
    """Return an environment's inventory; refuse what is none."""
    path = project / "inventory" / name
    if Path(name).name != name or not path.exists():
        there = ", ".join(Path(x).name for x in inventories.known(project)) or "none"
        raise AnsibleError(
            f"copy_from is {name!r}, and {project / 'inventory'} has {there}. Name one of them."
        )
    return path


def refusal(name: str, path: Path, allowed: Iterable[str], own: Iterable[str]) -> str:
    """Return why nothing of an environment may be copied to this one, '' where it may."""
    mine = [Path(x).resolve() for x in own]
    if any(path.resolve() in (x, *x.parents) for x in mine):
        return f"copy_from is {name}, and that is where the copy would go. Name another one."
    if name not in allowed:
        return (
            f"This environment does not take the data of {name}. If it is to, add it to its"
            f" group_vars: backup_copies_from: [{name}]. Never do so in production."
        )
    return ""


def variables(loader: Any, path: Path) -> dict[str, Any]:
    """Return what the other environment says of the server that has its data."""
    inventory = InventoryManager(loader, [str(path)])
    groups = inventory.get_groups_dict()
    hosts = [*groups.get("db", []), *groups.get("app", [])]
    if not hosts:
        raise AnsibleError(f"{path} has no server in the groups db and app.")
    host = inventory.get_host(hosts[0])
    found = VariableManager(loader, inventory).get_vars(host=host, include_hostvars=False)
    taker = options.read_role(loader, "backup")
    return {**taker.defaults, **options.read_stack(loader).defaults, **found}


def source(
    templar: Any, values: Mapping[str, Any], app: str, name: str, path: Path
) -> dict[str, Any]:
    """Return where the backups of the other environment are, and what opens them."""
    render = templar.copy_with_new_env(available_variables=values).template
    try:
        other = render(values.get("app_name"))
        found = {x: render(values[f"backup_{x}"]) for x in TAKEN if f"backup_{x}" in values}
    except AnsibleError as error:
        raise AnsibleError(
            f"What {path} says of its backups cannot be read: {' '.join(str(error).split())} See"
            f" its vault: ansible-vault view group_vars/{name}/vault.yml"
        ) from None
    if other != app:
        raise AnsibleError(f"{path} is of the app {other}, and this is {app}. Name another one.")
    if not found.get("repository"):
        raise AnsibleError(
            f"{name} has no backups, and from nothing else a copy is made. Set backup_repository in"
            f" group_vars/{name}/main.yml, and run site there: docs/how-to/backups.md"
        )
    return found | {"environment": name}


def texts(project: Path, masks: Iterable[str], unmasked: bool) -> list[dict[str, str]]:
    """Return what is in the masks; refuse to go without any, unless that is meant."""
    masks = list(masks)
    if not masks and not unmasked:
        raise AnsibleError(
            "backup_masks is empty, so real people's data would come as they are. Name files of SQL"
            " in group_vars, see docs/how-to/backups.md, or say that it is meant: -e"
            " copy_unmasked=true"
        )
    found = []
    for name in masks:
        try:
            found.append({"name": name, "sql": (project / name).read_text()})
        except (OSError, ValueError) as error:
            raise AnsibleError(
                f"backup_masks has {name}, and {project / name} cannot be read: {error}"
            ) from None
    return found
