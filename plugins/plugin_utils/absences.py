"""Which servers are away, as the inventory says: no play is for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible.inventory.manager import InventoryManager
from ansible.template import Templar
from ansible.vars.manager import VariableManager

from .sources import Sources

STATE, ABSENT = "stack_state", "absent"
SAID = (STATE, "stack_name")
# The extra variable by which playbooks/remove_server.yml takes a server out of its stack.
LEAVING = "remove_server"


def pattern(
    terms: Iterable[str], hosts: Iterable[str], variables: Mapping[str, Any], loader: Any
) -> tuple[str, list[str]]:
    """Return the pattern of a play for groups with these servers, and those that are left out."""
    hosts, leaving = list(hosts), variables.get(LEAVING)
    # One that is alone cannot be left out.
    said = told(hosts, variables, loader) if len(hosts) > 1 else {}
    out = [x for x in hosts if said.get(x, {}).get(STATE) == ABSENT or x == leaving]
    # An inventory may have several stacks, and the others do not lose anything.
    stack = said.get(leaving, {}).get("stack_name")
    others = [f"&{stack}"] if stack in (variables.get("groups") or {}) else []
    # In this syntax a name may have colons.
    return ",".join([*terms, *others, *(f"!{x}" for x in out)]), out


def away(groups: Mapping[str, list[str]], hostvars: Any) -> list[str]:
    """Return the servers of all stacks of the inventory that are away."""
    hosts = dict.fromkeys(
        x for name in ("db", "app", "web", "standby", "etcd") for x in groups.get(name) or []
    )
    return [x for x in hosts if hostvars[x].get(STATE) == ABSENT]


def told(hosts: list[str], variables: Mapping[str, Any], loader: Any) -> dict[str, Any]:
    """Return what is said of each server."""
    if hostvars := variables.get("hostvars"):
        return {host: {x: hostvars[host].get(x) for x in SAID} for host in hosts}
    # Before its first play, Ansible tells nobody.
    inventory = InventoryManager(loader, variables.get("ansible_inventory_sources") or [])
    manager = VariableManager(loader, inventory)
    found = {}
    for host in hosts:
        known = manager.get_vars(host=inventory.get_host(host), include_hostvars=False)
        templar = Templar(loader, known)
        found[host] = {x: templar.template(known.get(x)) for x in SAID}
    return found


def complaint(away: Iterable[str], sources: Sources) -> str:
    """Return what to do where nobody is left whom a play could be for."""
    names = ", ".join(away)
    return (
        f"No server is left to work on: {names} {'is' if ',' not in names else 'are'} said to be"
        f" away. Take {STATE}: {ABSENT} out of {sources.hosts_file()} once it is back, and run"
        f" again: {sources.again()}."
    )
