#!/usr/bin/python
"""The files of a PostgreSQL server that several owners share."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_config
short_description: Write the configuration of a PostgreSQL server that several owners share
description:
  - Notes what one owner, an app for instance, claims of Debian's cluster C(main), in
    C(/etc/carafe/postgres.d/<owner>.json), and writes C(conf.d/carafe.conf) and C(pg_hba.conf) from
    the claims of all.
  - The number of connections is the largest of O(max_connections), the sum of all claims, and what
    the server has already. The addresses and the lines of C(pg_hba.conf) are those of all owners.
    Settings that two owners state differently are refused, before anything is changed.
  - PostgreSQL's own program checks the settings, and the running server checks C(pg_hba.conf). What
    they refuse is not left on the disk. M(carafe.stack.postgresql_cluster) applies the rest.
options:
  version:
    description: Major version of the cluster.
    type: str
    required: true
  owner:
    description: Who claims.
    type: str
    default: default
  connections:
    description: Connections that this owner may open.
    type: int
    default: 0
  max_connections:
    description: Least number of connections of the server.
    type: int
    default: 100
  memory_mb:
    description: Memory in MiB that the server is tuned for.
    type: int
    required: true
  cores:
    description: Number of cores that the server is tuned for.
    type: int
    required: true
  measured:
    description:
      - C(memory_mb) and C(cores) as they follow from the machine. A value that is the same here was
        not stated by the owner, and another owner's counts.
    type: dict
    required: true
  settings:
    description: Settings by name. Each wins over what follows from the memory and the connections.
    type: dict
    default: {}
  listen_addresses:
    description: IP addresses on which the server accepts TCP connections.
    type: list
    elements: str
    default: []
  hba:
    description: Lines of C(pg_hba.conf), which come before those of O(default_hba).
    type: list
    elements: dict
    default: []
    suboptions: &hba
      type:
        description: Kind of connection.
        type: str
        required: true
        choices: [local, host, hostssl, hostnossl, hostgssenc, hostnogssenc]
      database:
        description: Name of a database, or one of V(all), V(sameuser), V(samerole), V(replication).
        type: str
        required: true
      user:
        description: Name of a role, V(+name) for it and its members, or V(all).
        type: str
        required: true
      address:
        description: IP range of the client.
        type: str
      method:
        description: How the client proves who it is.
        type: str
        required: true
        choices: [peer, scram-sha-256, cert, reject, ident, ldap, gss, radius, pam]
      options:
        description: Options of the method, as C(name=value).
        type: str
        default: ""
  default_hba:
    description: Lines of C(pg_hba.conf), which come after those of O(hba).
    type: list
    elements: dict
    default: []
    suboptions: *hba
  unit_files:
    description: Files that systemd reads for the cluster's unit, as text by path.
    type: dict
    default: {}
author: [Carafe (@carafe)]
"""

EXAMPLES = r"""
- name: Write the configuration of PostgreSQL
  carafe.stack.postgresql_config:
    version: "17"
    owner: shop
    connections: 40
    memory_mb: 1024
    cores: 2
    measured: {memory_mb: 1024, cores: 2}
    settings: {log_min_duration_statement: 500ms}
    default_hba:
      - {type: local, database: all, user: all, method: peer}
  become: true
"""

RETURN = r"""
changes:
  description: What was changed, or would be, a sentence for each.
  type: list
  elements: str
  returned: success
  sample: [write /etc/postgresql/17/main/pg_hba.conf, PostgreSQL reads its files anew]
"""

import re
import tempfile
from pathlib import Path

from ansible_collections.carafe.stack.plugins.module_utils.module import (
    Module,
    choice,
    entries,
    options,
    without_default,
)

from ..module_utils import claims, postgresql_config
from ..module_utils.commands import Failure
from ..module_utils.file_set import File, FileSet, Folder
from ..module_utils.files import read, write
from ..module_utils.postgresql_server import Server, Session, report, session_now

KINDS = ("local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc")
METHODS = ("peer", "scram-sha-256", "cert", "reject", "ident", "ldap", "gss", "radius", "pam")
RULE = {
    "type": choice(*KINDS, required=True),
    **without_default("database", "user", required=True),
    **without_default("address"),
    "method": choice(*METHODS, required=True),
    **options(options=""),
}
ARGUMENTS = {
    **without_default("version", required=True),
    **without_default("memory_mb", "cores", type="int", required=True),
    **without_default("measured", type="dict", required=True),
    **options(owner="default", connections=0, max_connections=100),
    **options(settings={}, listen_addresses=[], unit_files={}),
    **{"hba": entries(RULE), "default_hba": entries(RULE)},
}


def connections_of(server: Server, former: str | None) -> int:
    """Return the number of connections that the server has by its files, 0 where there is none."""
    if former is not None:
        said = postgresql_config.parse_settings(former).get("max_connections", "")
    elif server.is_installed():
        main_file = server.config / "postgresql.conf"
        said = server.ask_program("max_connections", main_file).stdout.strip()
    else:
        said = ""
    return int(said) if said.isdecimal() else 0


def refuse_settings(server: Server, text: str) -> None:
    """Have PostgreSQL's program read them: a server that is killed must be able to start."""
    with tempfile.NamedTemporaryFile("w", prefix="carafe-", suffix=".conf") as file:
        file.write(text)
        file.flush()
        Path(file.name).chmod(0o644)
        said = server.ask_program("work_mem", Path(file.name))
    if said.returncode:
        lines = said.stderr.replace(file.name, "carafe.conf").splitlines()
        reasons = [re.sub(r"^.*?(?:LOG|ERROR|FATAL): +", "", line) for line in lines]
        # The last line only says that there were some.
        reasons = [reason for reason in reasons if "contains errors" not in reason]
        raise Failure(
            f"PostgreSQL refuses its settings, so none was changed: {'; '.join(reasons)}. Correct"
            " postgres_settings in group_vars and run the playbook again."
        )


def wanted_files(
    server: Server, unit_files: dict[str, str], settings: str, rules: str
) -> list[File | Folder]:
    paths = [Path(path) for path in unit_files]
    return [
        *(Folder(path, only_new=True) for path in dict.fromkeys(x.parent for x in paths)),
        # Of a program, --diff says only that it is written.
        *(
            File(path, content=text.encode(), sensitive=text.startswith("#!"))
            for path, text in zip(paths, unit_files.values(), strict=True)
        ),
        File(server.settings_file, group="postgres", content=settings.encode()),
        File(server.hba_file, group="postgres", mode=0o640, content=rules.encode()),
    ]


def prove(server: Server, files: FileSet) -> None:
    """Where the running server cannot read the files that were written, put the former back."""
    read_by_server = [x for x in files.due if x.path.is_relative_to(server.config)]
    session = session_now() if read_by_server else None
    errors = server.state(session)[0] if session else []
    if errors:
        for file in read_by_server:
            if file.old is not None:
                write(file.path, file.old, file.mode, file.owner, file.group)
        raise Failure(
            "PostgreSQL refuses its configuration, and still runs with the one before:"
            f" {'; '.join(errors)}. Correct postgres_settings or postgres_hba in group_vars and run"
            " the playbook again."
        )


def consequence(session: Session | None, former: str | None, values: dict[str, str]) -> list[str]:
    """Tell in a dry run what the new settings will ask of the server that runs."""
    if session is None:
        return []
    has = postgresql_config.parse_settings(former or "")
    names = sorted(k for k in has.keys() | values.keys() if has.get(k) != values.get(k))
    due = session.rows(
        "SELECT name FROM pg_settings WHERE context = 'postmaster' AND name = ANY(%s) ORDER BY 1",
        names,
    )
    if due:
        return [f"PostgreSQL restarts for {', '.join(name for (name,) in due)}"]
    return ["PostgreSQL reads its files anew"]


def configure(given: dict, check: bool) -> dict:
    folder, owner = postgresql_config.FOLDER, given["owner"]
    server = Server(given["version"])
    mine = postgresql_config.claim(given)
    with claims.locked(folder, check):
        everybody = claims.agreed(folder, owner, mine, postgresql_config.once)
        if not (check or server.is_installed()):
            raise Failure(
                f"PostgreSQL {given['version']} is not installed: {server.config} is not there."
                " Run the role's entry point install before configure."
            )
        former = read(server.settings_file)
        has_connections = connections_of(server, former)
        values = postgresql_config.settings(everybody, given["measured"], has_connections)
        text = postgresql_config.settings_text(values)
        rules = postgresql_config.hba_text(postgresql_config.hba(everybody))
        files = FileSet(wanted_files(server, given["unit_files"], text, rules), check)
        changes = [f"write {x.path}" for x in files.due if isinstance(x, File)]
        if server.is_installed() and text != former:
            refuse_settings(server, text)
            if check:
                changes += consequence(session_now(), former, values)
        files.write()
        if not check:
            prove(server, files)
        noted = postgresql_config.unproven(mine, claims.stored(folder, owner))
        if claims.claim(folder, owner, noted, check):
            changes.append(f"note what {owner} claims in {folder}")
    return report(changes, files.diff)


def main() -> None:
    module = Module(ARGUMENTS)
    module.answer(configure, module.params, module.check_mode)


if __name__ == "__main__":
    main()
