"""Find what is wrong with an inventory before anything is changed on a server."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.inventory.helpers import sort_groups
from ansible.plugins.action import ActionBase
from ansible.utils.vars import load_extra_vars
from ansible.vars.plugins import get_vars_from_inventory_sources

from ..module_utils.words import escaped
from ..plugin_utils import absences, inventories, options
from ..plugin_utils.problems import Problem, Server
from ..plugin_utils.sources import Sources, report

CONTACT = ("ansible_host", "ansible_port", "ansible_user")
# What the command has where it is to release something.
CODE = ("app_version", "app_path", "app_repository", "app_package", "app_source")
STACK = ("stack_db", "stack_app", "stack_web", "stack_etcd")
# How the servers relate to each other: each task of what follows asks for these, most of them
# several times. In the order in which one is made of others.
RELATIONS = (
    *("stack_has_database", *STACK, "stack_standby", "stack_servers", "stack_is_one_server"),
    *("stack_serves", "stack_leaving", "stack_host_roles"),
)


class ActionModule(ActionBase):
    """Check all servers of the play, and fail with all problems at once.

    ``facts`` is the variable in which the result of gathering facts was registered.
    """

    _requires_connection = False
    _VALID_ARGS = frozenset(("facts",))

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        variables = task_vars or {}
        self.stack = options.read_stack(self._loader)
        self.roles = options.read_roles(self._loader)
        self.play_vars = self._task.get_play().get_vars()
        self.extra_vars = load_extra_vars(self._loader)
        self.hostvars = variables["hostvars"]
        self.absent = absences.away(variables["groups"], self.hostvars)
        self.absent += [x for x in [variables.get(absences.LEAVING)] if x]
        self.tags = {x: variables.get(x) for x in ("ansible_run_tags", "ansible_skip_tags")}
        sources = Sources(
            Path.cwd(),
            variables.get("ansible_inventory_sources") or [],
            self.extra_vars,
            self.play_vars,
            self.groups_of_all(variables["ansible_play_hosts_all"]),
        )
        found: dict[Problem, list[Server]] = defaultdict(list)
        servers = []
        for host in variables["ansible_play_hosts_all"]:
            raw = self.raw(host)
            contact, facts = raw.get(self._task.args["facts"]) or {}, raw.get("ansible_facts") or {}
            server = Server(host, self.groups(host), raw=raw, contact=contact, facts=facts)
            servers.append(server)
            for problem in [*self.check(server), *self.without_effect(server, sources)]:
                found[problem].append(server)
        for check in self.stack.checks.TOGETHER:
            for problem in check(servers):
                found[problem] = [x for x in servers if problem.variable in x.values]
        # It has what servers answered, and what is wrong in a value.
        says = escaped(report(found, sources))
        if found:
            return {"failed": True, "msg": says}
        notes = [x for server in servers for note in self.notes(server) for x in note(server)]
        files = {
            path
            for server in servers
            for path in inventories.variable_files(sources.folders(), server.groups, [server.name])
        }
        for path in map(sources.short, sorted(inventories.laid_open(files))):
            encrypt = shlex.join([sources.tool("ansible-vault"), "encrypt", path])
            notes.append(f"{path} is not encrypted, so whoever has it has its secrets: {encrypt}")
        told = {"warnings": list(dict.fromkeys(map(escaped, notes)))} if notes else {}
        said = any(x in self.extra_vars for x in CODE)
        return {
            **{"changed": False, "again": escaped(sources.again()), "release_is_said": said},
            "relations": {x.name: {y: x.values[y] for y in RELATIONS} for x in servers},
            "absent": self.absent,
            **told,
        }

    def notes(self, server: Server) -> list[Callable[[Server], Iterator[str]]]:
        """Return what tells of a server what is no problem: the stack's own, and its roles'."""
        roles = [self.roles[x] for x in server.values["stack_host_roles"] if x in self.roles]
        of_roles = [x for role in roles for x in getattr(role.checks, "NOTES", ())]
        return [*self.stack.checks.NOTES, *of_roles]

    def raw(self, host: str) -> dict[str, Any]:
        known = self.hostvars.raw_get(host)
        theirs = {**known, **self.play_vars, **self.extra_vars}
        return {**theirs, **self.tags, "hostvars": self.hostvars}

    def groups(self, host: str) -> list[str]:
        """Return the groups of a server, those first whose variables win."""
        groups = self.hostvars._inventory.get_host(host).get_groups()
        return [x.name for x in reversed(sort_groups(groups))]

    def groups_of_all(self, hosts: list[str]) -> list[str]:
        groups = [self.groups(host) for host in hosts]
        return [x for x in groups[0] if all(x in others for others in groups)]

    def check(self, server: Server) -> list[Problem]:
        """Render all that the roles of a server take, and return what is wrong with it."""
        stack = self.stack
        takers = [stack, *self.roles.values()]
        variables: dict[str, Any] = {}
        for taker in self.roles.values():
            variables |= taker.defaults
        variables |= server.raw
        internal = {k: v for role in self.roles.values() for k, v in role.vars.items()}
        # A value that is known takes the place of its template, which others refer to many times.
        values = {**variables, **internal}
        templar = self._templar.copy_with_new_env(available_variables=values)
        known = {k: v for taker in takers for k, v in taker.options.items()}
        found: list[Problem] = []

        def render(name: str) -> None:
            try:
                if name in variables:
                    server.values[name] = values[name] = templar.template(variables[name])
            except AnsibleError as error:
                server.failures[options.cause(error)].append(name)

        def take(taker: options.Taker, names: Mapping[str, Any]) -> None:
            for name, spec in names.items():
                render(name)
                found.extend(options.check_option(server, str(taker), name, spec, taker.ranges))
            for name in names:
                options.merge(server, name, known)

        # For each server anew it would be asked of all of them.
        server.values["stack_absent"] = values["stack_absent"] = self.absent
        for name in (*CONTACT, *RELATIONS):
            render(name)
        hosts = list(dict.fromkeys(x for key in STACK for x in server.values.get(key) or []))
        several = len(server.values.get("stack_servers") or []) > 1
        standbys = server.values.get("stack_standby") or []
        if several or standbys:
            for host in dict.fromkeys([*hosts, *standbys]):
                address = self.hostvars.raw_get(host).get("private_address")
                server.peers[host] = templar.template(address)
        checks = stack.checks
        needless = set() if server.peers else {"private_address"}
        needless |= set() if several else set(checks.OF_SEVERAL)
        needless |= set() if standbys else set(checks.OF_STANDBYS)
        take(stack, {k: v for k, v in stack.options.items() if k not in needless})
        roles = [
            self.roles[x] for x in server.values.get("stack_host_roles") or [] if x in self.roles
        ]
        for role in roles:
            take(role, role.options)
        of_roles = [x for role in roles for x in getattr(role.checks, "CHECKS", ())]
        for check in (*checks.FIRST, *checks.CHECKS, *of_roles, *checks.LAST):
            found.extend(check(server))
        found.extend(options.check_unknown(server.raw, takers))
        theirs = {
            k for k, v in server.raw.items() if k not in stack.defaults or stack.defaults[k] != v
        }
        return options.without_echoes(found, theirs, variables, known)

    def without_effect(self, server: Server, sources: Sources) -> Iterator[Problem]:
        """Yield what is set for all servers of the inventory, where the stack's own value wins."""
        inventory = self.hostvars._inventory
        groups = inventory.get_host(server.name).get_groups()
        beaten: dict[str, Any] = {}
        for group in groups:
            beaten |= group.vars
        everyone = [x for x in groups if x.name == "all"]
        beaten |= get_vars_from_inventory_sources(
            self._loader, inventory._sources, everyone, "task"
        )
        for name, value in beaten.items():
            made = self.stack.defaults.get(name, value)
            if made != value and server.raw.get(name) == made:
                place = sources.find_without_effect(name)
                right = sources.suggest(name, server.groups)
                yield Problem(
                    name,
                    f"is set in {place}, where it has no effect: the stack's own value wins over"
                    " what is said of all servers, and over what stands in a file of hosts",
                    f"move it to {right}",
                )
