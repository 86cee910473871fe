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

from ansible_collections.carafe.stack.plugins.module_utils import claims, postgresql_config
from ansible_collections.carafe.stack.plugins.module_utils.files import read, write
from ansible_collections.carafe.stack.plugins.module_utils.postgresql_contents import (
    ARGUMENTS,
    QuietModule,
    ensure,
    on_a_bare_server,
    report,
)
from ansible_collections.carafe.stack.plugins.module_utils.postgresql_server import (
    Failure,
    Server,
    Session,
    missing,
    session_now,
)

MORE_ARGUMENTS = {
    "version": {"type": "str", "required": True},
    "allow_restart": {"type": "bool", "default": True},
}


def start(server: Server, check: bool) -> tuple[list[str], Session | None]:
    """Have the unit enabled and running; return what that changed, and a session."""
    has = server.properties()
    changes = []
    if has["NeedDaemonReload"] == "yes" and not check:
        server.systemctl("daemon-reload", unit=False)
    if has["UnitFileState"] != "enabled":
        changes.append("enable PostgreSQL at boot")
        if not check:
            server.systemctl("enable")
    if has["ActiveState"] not in ("active", "reloading"):
        changes.append("start PostgreSQL")
        if not check:
            # Debian's pg_ctlcluster looks every half a second; wait() sees it sooner.
            server.systemctl("start", "--no-block")
    if check:
        return changes, session_now()
    try:
        return changes, server.wait()
    except Failure:
        postgresql_config.settle(postgresql_config.FOLDER, works=False)
        raise


def restart(server: Server, pending: dict[str, str]) -> Session:
    """Restart the server for settings that wait for it, or go back to the ones that it ran with."""
    try:
        server.systemctl("restart")
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
            server.systemctl("restart")
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


def main() -> None:
    module = QuietModule(argument_spec=ARGUMENTS | MORE_ARGUMENTS, supports_check_mode=True)
    given, check = module.params, module.check_mode
    server = Server(given["version"])
    contents = (given["roles"], given["databases"])
    changes: list[str] = []
    if check and not server.is_installed():
        changes = ["enable PostgreSQL at boot", "start PostgreSQL", *on_a_bare_server(*contents)]
        module.exit_json(**report(changes), restart_due=[])
    if missing():
        module.fail_json(msg=missing())
    try:
        with claims.locked(postgresql_config.FOLDER, check):
            changes, session = start(server, check)
            if session is None:  # only in a dry run, of a server that is down
                module.exit_json(**report(changes), restart_due=[])
            applied, due, session = apply(
                server, session, "start PostgreSQL" in changes, given["allow_restart"], check
            )
            changes += applied
        session.check = check
        session.changes = changes
        ensure(session, *contents)
    except (Failure, claims.Unreadable) as failure:
        module.fail_json(msg=str(failure), **report(changes))
    if due:
        module.warn(
            f"A restart of PostgreSQL is due for {', '.join(due)}. It was not done, because"
            " postgres_allow_restart is false. Do it when it suits: systemctl restart"
            f" {server.unit}"
        )
    module.exit_json(**report(changes), restart_due=due)


if __name__ == "__main__":
    main()
