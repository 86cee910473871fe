#!/usr/bin/python
"""Roles and databases of a PostgreSQL server."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_contents
short_description: Make the roles and databases of a PostgreSQL server what a list says
description:
  - Makes roles, passwords, memberships, databases, extensions and privileges in one call, over the
    unix socket and as the superuser C(postgres).
  - A password is compared with what PostgreSQL keeps of it, so that only another one is a change.
  - A dry run and C(--diff) list what is changed, a sentence for each statement.
extends_documentation_fragment: [carafe.stack.postgresql_contents]
requirements: [psycopg2]
author: [Carafe (@carafe)]
"""

EXAMPLES = r"""
- name: Make the database
  carafe.stack.postgresql_contents:
    roles:
      - name: hello-owner
        login: false
      - name: www-data
    databases:
      - name: hello
        owner: hello-owner
        writers: [www-data]
        extensions: [pg_trgm]
  become: true
"""

RETURN = r"""
changes:
  description: What was changed, a sentence for each statement.
  type: list
  elements: str
  returned: success
  sample: [create role www-data, create database hello]
"""

from ansible_collections.carafe.stack.plugins.module_utils.module import Module

from ..module_utils.commands import Failure
from ..module_utils.postgresql_contents import ARGUMENTS, ensure
from ..module_utils.postgresql_server import need_psycopg2, report, session_now


def make(module: Module) -> dict:
    need_psycopg2()
    session = session_now(module.check_mode)
    if session is None:
        raise Failure("PostgreSQL lets nobody in. See why: systemctl status 'postgresql@*'")
    try:
        ensure(session, module.params["roles"], module.params["databases"])
    except Failure as failure:
        module.fail_json(msg=str(failure), **report(session.changes))
    return report(session.changes)


def main() -> None:
    module = Module(ARGUMENTS)
    module.answer(make, module)


if __name__ == "__main__":
    main()
