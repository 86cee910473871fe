#!/usr/bin/python
"""A PostgreSQL server that runs, with the configuration and the contents that it is to have."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_cluster
short_description: Run a PostgreSQL server by what is in its files, with roles and databases
description:
  - Enables and starts Debian's cluster C(main), waits until it answers, and asks it what it thinks
    of its files. Reloads or restarts it where they are newer than what runs, whoever wrote them and
    whenever, so that a run that was cut short is made up for.
  - Where it does not start with new settings, it gets the former ones again, and the module fails.
  - Then makes the roles and databases, as M(carafe.stack.postgresql_contents) does.
options:
  version:
    description: Major version of the cluster.
    type: str
    required: true
  allow_restart:
    description: Whether to restart the server for settings that need it, or only to warn.
    type: bool
    default: true
extends_documentation_fragment: [carafe.stack.postgresql_contents]
requirements: [psycopg2]
seealso:
  - module: carafe.stack.postgresql_config
author: [Carafe (@carafe)]
"""

EXAMPLES = r"""
- name: Run PostgreSQL with a database
  carafe.stack.postgresql_cluster:
    version: "17"
    roles:
      - name: www-data
    databases:
      - name: hello
        owner: www-data
  become: true
"""

RETURN = r"""
changes:
  description: What was changed, or would be, a sentence for each.
  type: list
  elements: str
  returned: success
  sample: [restart PostgreSQL for max_connections, create role www-data]
restart_due:
  description: Settings that wait for a restart, which O(allow_restart) forbids.
  type: list
  elements: str
  returned: success
"""

from ansible_collections.carafe.stack.plugins.module_utils.module import Module, options

from ..module_utils import claims, postgresql_config, services
from ..module_utils.commands import Failure, run
from ..module_utils.files import read, write
from ..module_utils.postgresql_contents import ARGUMENTS, ensure, on_a_bare_server
from ..module_utils.postgresql_server import Server, Session, need_psycopg2, report, session_now

MORE_ARGUMENTS = {"version": {"type": "str", "required": True}, **options(allow_restart=True)}
SENTENCES = {"enable": "enable PostgreSQL at boot", "start": "start PostgreSQL"}


def start(server: Server, check: bool) -> tuple[list[str], Session | None]:
    """Have the unit enabled and running; return what that changed, and a session."""
    verbs = services.due(services.state(server.unit))
    changes = [SENTENCES[verb] for verb in verbs if verb in SENTENCES]
    if check:
        return changes, session_now()
    services.act(server.unit, [verb for verb in verbs if verb != "start"])
    if "start" in verbs:
        # Debian's pg_ctlcluster looks every half a second; wait() sees it sooner.
        run("systemctl", "start", "--no-block", server.unit)
    try:
        return changes, server.wait()
    except Failure:
        postgresql_config.settle(postgresql_config.FOLDER, works=False)
        raise


def restart(server: Server, pending: dict[str, str]) -> Session:
    """Restart the server for settings that wait for it, or go back to the ones that it ran with."""
    try:
        run("systemctl", "restart", server.unit)
        return server.wait()
    except Failure:
        journal = server.journal()
        postgresql_config.settle(postgresql_config.FOLDER, works=False)
        values = postgresql_config.parse_settings(read(server.settings_file) or "") | pending
        # As who stated them wrote them: the next run is to find what it would write.
        stated = postgresql_config.stated_settings(claims.read(postgresql_config.FOLDER, "", None))
        values |= {name: str(stated[name]) for name in pending if name in stated}
        text = postgresql_config.settings_text(dict(sorted(values.items())))
        write(server.settings_file, text, 0o644, "root", "postgres")
        outcome = "runs with the former ones again"
        try:
            run("systemctl", "restart", server.unit)
            server.wait()
        except Failure:
            outcome = "does not start with the former ones either"
        raise Failure(
            f"PostgreSQL did not start with the new values of {', '.join(pending)}, and {outcome}."
            " Correct postgres_settings, postgres_memory_mb or"
            f" postgres_listen_addresses in group_vars and run the playbook again. {journal}"
        ) from None


def apply(
    server: Server, session: Session, is_new: bool, allow_restart: bool, check: bool
) -> tuple[list[str], list[str], Session]:
    """Bring the files into force; return what that changed, what still waits for a restart, and a
    session with the server that runs then."""
    errors, stale, pending = server.state(session)
    if errors:
        raise Failure(
            "PostgreSQL refuses its configuration, and still runs with the one before:"
            f" {'; '.join(errors)}. Correct the file by hand, or postgres_settings or postgres_hba"
            " in group_vars, and run the playbook again."
        )
    changes = []
    if pending and allow_restart:
        changes.append(f"restart PostgreSQL for {', '.join(pending)}")
        if not check:
            session, pending = restart(server, pending), {}
    elif stale and not is_new:
        changes.append("have PostgreSQL read its files anew")
        if not check:
            server.reload(session)
    if not check and not pending:
        postgresql_config.settle(postgresql_config.FOLDER, works=True)
    return changes, [] if allow_restart else sorted(pending), session


def bring_about(module: Module, changes: list[str]) -> dict:
    """Run the cluster with its contents, and note what that changes."""
    given, check = module.params, module.check_mode
    server = Server(given["version"])
    contents = (given["roles"], given["databases"])
    if check and not server.is_installed():
        changes += [*SENTENCES.values(), *on_a_bare_server(*contents)]
        return {"restart_due": []}
    need_psycopg2()
    with claims.locked(postgresql_config.FOLDER, check):
        started, session = start(server, check)
        changes += started
        if session is None:  # only in a dry run, of a server that is down
            return {"restart_due": []}
        is_new = SENTENCES["start"] in started
        applied, due, session = apply(server, session, is_new, given["allow_restart"], check)
        changes += applied
    session.check, session.changes = check, changes
    ensure(session, *contents)
    if due:
        module.warn(
            f"A restart of PostgreSQL is due for {', '.join(due)}. It was not done, because"
            " postgres_allow_restart is false. Do it when it suits: systemctl restart"
            f" {server.unit}"
        )
    return {"restart_due": due}


def main() -> None:
    module = Module(ARGUMENTS | MORE_ARGUMENTS)
    changes: list[str] = []
    try:
        result = bring_about(module, changes)
    except Failure as failure:
        # With what was done before.
        module.fail_json(msg=str(failure), **report(changes))
    module.exit_json(**result, **report(changes))


if __name__ == "__main__":
    main()
