"""What another environment of the same project says of its backups, read from its inventory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.inventory.manager import InventoryManager
from ansible.module_utils.common.validation import check_type_list
from ansible.vars.manager import VariableManager

from . import inventories, options

TAKEN = (
    *("repository", "key", "s3_endpoint", "s3_region", "s3_key", "s3_secret", "s3_ca"),
    *("ssh_key", "ssh_known_hosts"),
)


def folder_of(project: Path, name: str) -> Path:
    """Return an environment's inventory; refuse what is none."""
    path = project / "inventory" / name
    if not name or Path(name).name != name or not path.exists():
        there = ", ".join(Path(x).name for x in inventories.known(project)) or "none"
        raise AnsibleError(
            f"copy_from is {name!r}, and {project / 'inventory'} has {there}. Name one of them."
        )
    return path


def check(path: Path, allowed: list[str] | str, own: Iterable[str]) -> None:
    """Refuse to copy an environment to itself, or to one that does not say that it takes it.

    A list may be one word, as Ansible takes it.
    """
    mine = [Path(x).resolve() for x in own]
    if any(path.resolve() in (x, *x.parents) for x in mine):
        raise AnsibleError(
            f"copy_from is {path.name}, and that is where the copy would go. Nothing was touched."
            " Name another one, or the inventory that it is to go to: -i inventory/staging"
        )
    if path.name not in check_type_list(allowed):
        raise AnsibleError(
            f"This environment does not take the data of {path.name}. Nothing was touched. If it is"
            f" to, add it to its group_vars: backup_copies_from: [{path.name}]. Never do so where"
            " real data are."
        )


def masks(project: Path, names: list[str] | str) -> list[dict[str, str]]:
    """Return what is in the masks; refuse to go without any."""
    if not names:
        raise AnsibleError(
            "backup_masks is empty, so real people's data would come as they are. Nothing was"
            " touched. Name files of SQL in group_vars, see docs/how-to/backups.md; where nothing"
            " is to be masked, one that has no more than a comment which says so."
        )
    found = []
    for name in check_type_list(names):
        try:
            found.append({"name": name, "sql": (project / name).read_text(encoding="utf-8")})
        except (OSError, ValueError) as error:
            raise AnsibleError(
                f"backup_masks has {name}, and {project / name} cannot be read: {error}. Nothing"
                " was touched. Mend that in group_vars, and run the same command again."
            ) from None
    return found


def source(loader: Any, templar: Any, path: Path, app: str) -> dict[str, Any]:
    """Return where the backups of the other environment are, and what opens them."""
    inventory = InventoryManager(loader, [str(path)])
    groups = inventory.get_groups_dict()
    hosts = [*groups.get("db", []), *groups.get("app", [])] or inventories.only(groups)
    if not hosts:
        raise AnsibleError(f"{path} has no server in the groups db and app.")
    role, stack = options.read_role(loader, "backup"), options.read_stack(loader)
    try:
        # Its vault is opened here, and each value of it further down.
        said = VariableManager(loader, inventory).get_vars(
            host=inventory.get_host(hosts[0]), include_hostvars=False
        )
        values = {**role.defaults, **stack.defaults, **said}
        render = templar.copy_with_new_env(available_variables=values).template
        other = render(values.get("app_name"))
        found = {x: render(values[f"backup_{x}"]) for x in TAKEN}
    except AnsibleError as error:
        raise AnsibleError(
            f"What {path} says of its backups cannot be read: {' '.join(str(error).split())} See"
            f" its vault: ansible-vault view group_vars/{path.name}/vault.yml"
        ) from None
    if other != app:
        raise AnsibleError(f"{path} is of the app {other}, and this is {app}. Name another one.")
    if not found["repository"]:
        raise AnsibleError(
            f"{path.name} has no backups, and from nothing else a copy is made. Set"
            f" backup_repository in group_vars/{path.name}, and run site there:"
            " docs/how-to/backups.md"
        )
    return found
