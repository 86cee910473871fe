"""The servers that a play is for, or why there are none."""

from __future__ import annotations

DOCUMENTATION = """
name: servers
short_description: Pattern of the servers that a play is for, once the inventory can be read
description:
  - >-
    Returns a pattern for the C(hosts) of a play, made of the names of groups, without the servers
    that are away, as C(stack_state) says.
  - >-
    The server of an inventory with a single one and none of the groups V(db), V(app) and V(web) is
    in all of them.
  - >-
    Fails where no server is in any of the groups, where by itself Ansible would do nothing and
    succeed, and says which inventory was probably meant. Fails as well where a file of hosts or
    of variables cannot be read, or names one thing twice, and where a file of secrets, or
    a single one, cannot be decrypted, and names the file, the variable and the key. So it does
    where all servers are away.
  - It asks no server, and costs no task.
options:
  last:
    description: >-
      Name of a variable; the servers of which it is true come after the others. Ansible knows it of
      none before the first play.
    type: str
    default: ""
  _terms:
    description: Names of groups.
    type: list
    elements: str
    required: true
author: [Carafe (@carafe)]
"""

EXAMPLES = """
- name: Look at all servers
  hosts: "{{ lookup('carafe.stack.servers', 'db', 'app', 'web') }}"
"""

RETURN = """
_raw:
  description: The pattern, a single one.
  type: list
  elements: str
"""

from pathlib import Path
from typing import Any

from ansible import constants, context
from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

from ..plugin_utils import absences, inventories
from ..plugin_utils.sources import Sources


class LookupModule(LookupBase):
    """Ansible asks it once for each play."""

    def run(
        self, terms: list[str], variables: dict[str, Any] | None = None, last: str = "", **_: Any
    ) -> list[str]:
        variables = variables or {}
        groups = variables.get("groups") or {}
        if inventories.only(groups):
            terms = ["all"]
        # Nothing is run by these, and nobody has to name an inventory for them.
        if any(context.CLIARGS.get(x) for x in ("syntax", "listtasks", "listtags")):
            return [":".join(terms)]
        given = variables.get("ansible_inventory_sources") or []
        current = Path.cwd()
        if why := inventories.complaint(given, groups, terms, current):
            raise AnsibleError(why)
        hosts = list(dict.fromkeys(x for name in terms for x in groups.get(name) or []))
        theirs = [name for name, members in groups.items() if {*hosts} & {*members}]
        sources = Sources(current, given, [], [])
        files = inventories.variable_files(sources.folders(), ["all", *theirs], sorted(hosts))
        open_files = [x for x in files if not inventories.begins(x)]
        for path in files:
            if path not in open_files and inventories.locked(path, self._loader):
                secrets = inventories.used(sources.folders())
                raise AnsibleError(inventories.vault_complaint(path, sources, key_file(), secrets))
        for path in open_files:
            if why := inventories.unreadable(path, sources.short(path), "variables"):
                raise AnsibleError(f"The variables cannot be read: {why}.")
        for value in inventories.sealed([*sources.inventory_files(), *open_files]):
            if inventories.closed(value, self._loader):
                raise AnsibleError(inventories.value_complaint(value, sources, key_file()))
        # Ansible warns of a group that an inventory does without.
        there = [x for x in terms if x in groups]
        pattern, away = absences.pattern(there, hosts, variables, self._loader)
        if {*away} >= {*hosts} or context.CLIARGS.get("subset") in away:
            raise AnsibleError(absences.complaint(away, sources))
        # Nothing is known of a server where Ansible only lists what it would do.
        known = variables.get("hostvars") if last else None
        if late := [x for x in hosts if known and x not in away and known[x].get(last)]:
            # One pattern for a server after the other: groups have an order of their own.
            return [",".join([*(x for x in hosts if x not in [*away, *late]), *late])]
        return [pattern]


def key_file() -> str:
    """Return the file that holds the key, '' where it comes another way."""
    if context.CLIARGS.get("ask_vault_pass"):
        return inventories.TYPED
    named = constants.DEFAULT_VAULT_PASSWORD_FILE
    given = context.CLIARGS.get("vault_password_files") or context.CLIARGS.get("vault_ids")
    path = str((next(iter(given)) if given else named) or "")
    # The clone's program reads the file beside its folder.
    if Path(path).name == "vault-password" and Path(path).parent.name == "scripts":
        return str(Path(path).parents[1] / ".vault-password")
    return path
