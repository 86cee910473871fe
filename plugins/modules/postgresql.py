#!/usr/bin/python
"""A PostgreSQL server that several owners share: its files, its service, its contents."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql
short_description: Configure and run a PostgreSQL server that several owners share
description:
  - V(configure) notes what one owner, an app for instance, claims of a cluster of Debian's kind, in
    C(/etc/carafe/postgres.d/<owner>.json), and writes C(conf.d/carafe.conf) and C(pg_hba.conf) from
    the claims of all.
  - Each database is for its owner, its writers and readers and their members, by a line of
    C(pg_hba.conf). The superuser C(postgres) comes in over the unix socket only.
  - The number of connections is the largest of O(max_connections), the sum of all claims, and what
    the server has already. The addresses and the lines of C(pg_hba.conf) are those of all owners.
    Settings that two owners state differently are refused, before anything is changed.
  - PostgreSQL's own program checks the settings, and the running server checks C(pg_hba.conf). What
    they refuse is not left on the disk.
  - V(activate) enables and starts the cluster, waits until it answers, and asks it what it thinks
    of its files. It reloads or restarts it where they are newer than what runs, whoever wrote them
    and whenever, so that a run that was cut short is made up for.
  - A setting of which ALTER SYSTEM, or a file that is read later, has the last word is named in a
    warning.
  - The lines of a C(pg_hba.conf) that somebody has written by hand go on behind those of the
    owners, from C(/etc/carafe/postgres.d/adopted-<version>-<cluster>.conf), and a copy of the file
    goes to C(/var/backups/carafe). Only to what owners claim they let nobody in.
  - Where it does not start with new settings, it gets the former ones again, and the module fails.
  - C(PUBLIC) loses its privileges on the databases C(postgres) and C(template1), and the sessions
    of the superuser get C(pg_catalog, pg_temp) as their C(search_path). Where a role is a member of
    C(pg_monitor), that may connect to C(postgres).
  - Then roles, passwords, memberships, databases, extensions and privileges are made, over the unix
    socket and as the superuser C(postgres). V(contents) does only that.
  - A standby is done once it gets what its primary writes.
  - V(dump) and V(remove) are for an owner that leaves. What it claims with another stays. On a
    standby the copy of the data goes with the last of them.
  - A password is compared with what PostgreSQL keeps of it, so that only another one is a change.
  - A dry run and C(--diff) list what is changed, a sentence for each.
options:
  stage:
    description: What to do.
    type: str
    choices: [configure, activate, contents, dump, remove]
    required: true
  version:
    description: Major version of the cluster, which all stages but V(contents) need.
    type: str
  cluster:
    description: Name of the cluster, as C(pg_lsclusters) has it.
    type: str
    default: main
  claims:
    description:
      - Folder below C(/etc/carafe/postgres.d) where what owners claim of this cluster is noted, for
        one that is not Debian's own.
    type: str
    default: ""
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
  cores:
    description: Number of cores that the server is tuned for.
    type: int
  measured:
    description:
      - C(memory_mb) and C(cores) as they follow from the machine. A value that is the same here was
        not stated by the owner, and another owner's counts.
    type: dict
  settings:
    description: Settings by name. Each wins over what follows from the memory and the connections.
    type: dict
    default: {}
  listen_addresses:
    description: IP addresses on which the server accepts TCP connections.
    type: list
    elements: str
    default: []
  client_addresses:
    description:
      - IP addresses or ranges from which the roles of O(databases) may connect to these, over TLS
        and with a password. They connect over the unix socket in any case.
    type: list
    elements: str
    default: []
  hba:
    description: Lines of C(pg_hba.conf), which come before those of O(databases).
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
        description:
          - Name of a database, or one of V(all), V(sameuser), V(samerole), V(replication). From
            PostgreSQL 16 on, one that begins with a slash is a regular expression.
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
    description: Lines of C(pg_hba.conf), which come after those of O(databases).
    type: list
    elements: dict
    default: []
    suboptions: *hba
  primary:
    description:
      - Address of the primary that this server is a standby of. Then its roles and databases are
        the primary's, and none is made here.
    type: str
    default: ""
  primary_port:
    description: Port of the primary.
    type: int
    default: 5432
  standby_name:
    description: Name of this server among those that follow each other.
    type: str
    default: ""
  standbys:
    description:
      - Servers that may follow this one, as O(replication_user). Before it starts it asks them
        whether one of them has become the primary meanwhile.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the server. A primary keeps a slot of this name for it.
        type: str
        required: true
      address:
        description: IP address or range from which it comes.
        type: str
  replication_user:
    description: Database role as which a standby comes.
    type: str
    default: replicator
  replication_password:
    description: Its password.
    type: str
  replication_trusted:
    description: File with the authority by whose certificate a primary proves who it is.
    type: str
    default: ""
  unit_files:
    description: Files that systemd reads for the cluster's unit, as text by path.
    type: dict
    default: {}
  dump_user:
    description: User who may read the dumps of V(dump), as who Ansible comes to the server.
    type: str
  managed_by:
    description:
      - Who starts and stops the cluster. With V(patroni) nothing is started or restarted here, and
        roles and databases are made where it leads only; the others get them from there.
    type: str
    choices: [systemd, patroni]
    default: systemd
  allow_restart:
    description: Whether to restart the server for settings that need it, or only to warn.
    type: bool
    default: true
  roles:
    description: Database roles. One that is not in the list is left alone.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the role.
        type: str
        required: true
      password:
        description: Password of the role. Without one it can come in by V(peer) or V(cert) only.
        type: str
      login:
        description: Whether the role may connect.
        type: bool
        default: true
      replication:
        description: Whether a standby may come as this role. It is taken from none that has it.
        type: bool
        default: false
      connection_limit:
        description: Connections that it may have at one time, or V(-1) for as many as there are.
        type: int
        default: -1
      member_of:
        description: Roles that it is a member of. It is taken out of every other.
        type: list
        elements: str
        default: []
      settings:
        description: Settings that its sessions start with, and no others. Several names are a list.
        type: dict
        default: {}
  databases:
    description:
      - Databases. Nobody but the owner, the writers, the readers and the members of these can
        connect to one. A database that is not in the list is left alone. V(configure) needs their
        names and roles, for C(pg_hba.conf).
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the database.
        type: str
        required: true
      owner:
        description: Role that owns the database, and makes the tables in it. Each database has one.
        type: str
      writers:
        description: Roles that read and write the rows of every table that the owner makes.
        type: list
        elements: str
        default: []
      readers:
        description: Roles that read them.
        type: list
        elements: str
        default: []
      extensions:
        description: Extensions of the database.
        type: list
        elements: str
        default: []
      locale:
        description: Collation and character type. It is fixed when the database is made.
        type: str
        default: C.UTF-8
      icu_locale:
        description: Language by which PostgreSQL itself sorts, with ICU, for instance V(de-DE).
        type: str
requirements: [psycopg2]
author: [Carafe (@carafe)]
"""

EXAMPLES = r"""
- name: Write the configuration of PostgreSQL
  carafe.stack.postgresql:
    stage: configure
    version: "17"
    owner: shop
    connections: 40
    memory_mb: 1024
    cores: 2
    measured: {memory_mb: 1024, cores: 2}
    settings: {log_min_duration_statement: 500ms}
    databases:
      - {name: shop, owner: shop-owner, writers: [www-data]}
  become: true

- name: Run it with a database
  carafe.stack.postgresql:
    stage: activate
    version: "17"
    roles:
      - name: shop-owner
        login: false
      - name: www-data
    databases:
      - name: shop
        owner: shop-owner
        writers: [www-data]
        extensions: [pg_trgm]
  become: true
"""

RETURN = r"""
dumps:
  description: Dumps on the server, one for each database.
  type: list
  elements: dict
  returned: with V(dump)
  contains:
    database: {description: Name of the database., type: str, returned: always}
    path: {description: Where its dump is., type: str, returned: always}
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
  returned: when O(stage) is not V(configure)
"""

import re
import tempfile
from functools import partial
from pathlib import Path

from ansible_collections.carafe.stack.plugins.module_utils.module import (
    Module,
    choice,
    entries,
    options,
    without_default,
)

from ..module_utils import (
    adopted,
    claims,
    found,
    postgresql_config,
    postgresql_contents,
    postgresql_guard,
    postgresql_removal,
    postgresql_standby,
    programs,
    services,
)
from ..module_utils.commands import Failure, run
from ..module_utils.file_set import Absent, File, FileSet, Folder
from ..module_utils.files import read, write
from ..module_utils.postgresql_server import (
    Server,
    Session,
    need_psycopg2,
    psycopg2,
    report,
    session_now,
)

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
    "stage": choice("configure", "activate", "contents", "dump", "remove", required=True),
    **without_default("version", "dump_user"),
    **without_default("memory_mb", "cores", type="int"),
    **without_default("measured", type="dict"),
    **options(
        owner="default",
        cluster="main",
        claims="",
        connections=0,
        max_connections=100,
        allow_restart=True,
    ),
    "managed_by": choice("systemd", "patroni", default="systemd"),
    **options(settings={}, listen_addresses=[], client_addresses=[], unit_files={}),
    **{"hba": entries(RULE), "default_hba": entries(RULE)},
    **postgresql_contents.ARGUMENTS,
    **postgresql_standby.ARGUMENTS,
}
REQUIRED = [
    ("stage", "configure", ("version", "memory_mb", "cores", "measured")),
    ("stage", "activate", ("version",)),
    ("stage", "dump", ("version", "dump_user")),
    ("stage", "remove", ("version", "measured")),
]
PROGRAM = programs.names(postgresql_guard)
GUARD = Path("/etc/systemd/system/postgresql@.service.d/carafe-standbys.conf")
# By any other end than the one that says so, a cluster starts.
GUARD_TEXT = f"""# Managed by Ansible, role postgres.
[Service]
# A primary that was down must not come back beside the one that has taken its place.
ExecCondition=/bin/sh -c '/usr/bin/python3 {programs.FOLDER}/postgres-standbys %i; \
  test $$? -ne {postgresql_guard.REPLACED}'
"""
SENTENCES = {"enable": "enable PostgreSQL at boot", "start": "start PostgreSQL"}


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


def wanted_settings(
    server: Server, given: dict, everybody: dict, former: str | None
) -> dict[str, str]:
    has_connections = connections_of(server, former)
    values = postgresql_config.settings(everybody, given["measured"], has_connections)
    if given["primary"]:
        values |= postgresql_standby.settings(server, given)
        values = postgresql_standby.raised(values, postgresql_standby.least(server))
    return dict(sorted(values.items()))


def standby_files(server: Server, given: dict, everybody: dict) -> list[File | Absent]:
    """Return what servers that follow each other go by; where there are none, nothing."""
    asked, password = server.config / "standbys.json", postgresql_standby.password_file(server)
    standbys = postgresql_config.standbys(everybody)
    if not standbys:
        return [Absent(x) for x in (asked, password)]
    text = postgresql_standby.guarded(server, given, standbys)
    secret = postgresql_standby.password_text(
        given["replication_user"], given["replication_password"] or ""
    )
    mine = {"owner": "postgres", "group": "postgres", "mode": 0o600}
    return [
        File(GUARD, content=GUARD_TEXT.encode()),
        File(asked, group="postgres", mode=0o640, content=text.encode()),
        File(password, **mine, content=secret.encode(), sensitive=True),
    ]


def kept_path(server: Server) -> Path:
    return postgresql_config.FOLDER / f"adopted-{server.version}-{server.name}.conf"


def kept_rules(server: Server) -> list[str]:
    """Return the lines of pg_hba.conf that somebody else's roles and databases go by."""
    noted, there = read(kept_path(server)), read(server.hba_file) or ""
    if noted is not None:
        return adopted.hba_lines(noted)
    is_new = adopted.is_debians(there) and not found.has_databases(server.data)
    return [] if adopted.is_carafes(there) or is_new else adopted.hba(there)


def rules_for(server: Server, everybody: dict, kept: list[str]) -> str:
    """Return pg_hba.conf: the lines of all owners, and behind them those that somebody had."""
    lines = postgresql_config.hba(everybody, server.version)
    lines += postgresql_config.hba_behind(everybody, server.version, kept)
    return postgresql_config.hba_text(lines)


def kept_file(server: Server, lines: list[str]) -> File:
    """Return the file in which they are kept: who knows a server's users changes it there."""
    text = adopted.HEADER.format(path=server.hba_file).replace(
        "no run of Carafe changes this file again", "each run puts it behind the role's own lines"
    )
    noted = read(kept_path(server))
    content = noted if noted is not None else "\n".join([text, *lines, ""])
    return File(kept_path(server), mode=0o600, content=content.encode())


def prove(server: Server, files: FileSet) -> None:
    """Where the running server cannot read the files that were written, put the former back."""
    read_by_server = [x for x in files.due if x.path.is_relative_to(server.config)]
    session = session_now(server) if read_by_server else None
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


def warn_of_older(module: Module, everybody: dict) -> None:
    """Name the owners whose lines still let every role try every database."""
    older = [owner for owner, data in everybody.items() if "databases" not in data]
    if older:
        module.warn(
            f"An older Carafe has written what {', '.join(older)} claims of this server, so every"
            " role may try every database. Run the site.yml of each with this one."
        )


def warn_of_closed(module: Module, server: Server, rules: str, everybody: dict) -> None:
    """Name the databases that everybody may connect to so far, and nobody by the new lines."""
    is_open = re.compile(r"^local\s+all\s+all\s", re.MULTILINE)
    if is_open.search(rules) or not is_open.search(read(server.hba_file) or ""):
        return
    session = session_now(server)
    named = postgresql_config.named_databases(everybody)
    closed = [name for name in session.databases() if name not in named] if session else []
    if closed:
        module.warn(
            f"No role but postgres can connect any more to {', '.join(closed)}: no inventory has"
            " named it. Name it in postgres_databases, with an owner and writers, or in a line of"
            " postgres_hba in group_vars, and run the playbook again."
        )


def configure(module: Module) -> dict:
    given, check = module.params, module.check_mode
    folder, owner = postgresql_config.FOLDER, given["owner"]
    server = Server(given["version"], given["cluster"])
    postgresql_contents.refuse_locales(given["databases"])
    mine = postgresql_config.claim(given)
    with claims.locked(folder, check):
        everybody = claims.agreed(folder, owner, mine, postgresql_config.once)
        if not (check or server.is_installed()):
            raise Failure(
                f"PostgreSQL {given['version']} is not installed: {server.config} is not there."
                " Run the role's entry point install before configure."
            )
        warn_of_older(module, everybody)
        former = read(server.settings_file)
        values = wanted_settings(server, given, everybody, former)
        text = postgresql_config.settings_text(values)
        kept = kept_rules(server)
        rules = rules_for(server, everybody, kept)
        wanted = wanted_files(server, given["unit_files"], text, rules)
        wanted += standby_files(server, given, everybody)
        wanted += [kept_file(server, kept)] * bool(kept)
        # Of what somebody has configured by hand a copy stays.
        files = FileSet(wanted, check, backup=lambda path: bool(kept) and path == server.hba_file)
        changes = [f"write {x.path}" for x in files.due if isinstance(x, File)]
        changes += [f"remove {x.path}" for x in files.due if isinstance(x, Absent)]
        if postgresql_config.standbys(everybody):
            # Before the unit that asks it.
            program = programs.install("postgres-standbys", PROGRAM, check)
            changes += [f"write {path}" for path in program]
        if server.is_installed() and text != former:
            refuse_settings(server, text)
            if check:
                changes += consequence(session_now(server), former, values)
        warn_of_closed(module, server, rules, everybody)
        files.write()
        if not check:
            prove(server, files)
        noted = postgresql_config.unproven(mine, claims.stored(folder, owner))
        if claims.claim(folder, owner, noted, check):
            changes.append(f"note what {owner} claims in {folder}")
    return report(changes, files.diff)


def start(server: Server, check: bool) -> tuple[list[str], Session | None]:
    """Have the unit enabled and running; return what that changed, and a session."""
    state = services.state(server.unit)
    if state["UnitFileState"] == "masked" and not check:
        raise Failure(
            f"{server.unit} is kept from starting, since another server has taken its place as the"
            " primary. Put this one into the group standby of the inventory, or have it be the"
            " primary again: ansible-playbook carafe.stack.promote"
        )
    verbs = services.due(state)
    changes = [SENTENCES[verb] for verb in verbs if verb in SENTENCES]
    if check:
        return changes, session_now(server)
    services.act(server.unit, [verb for verb in verbs if verb != "start"])
    if "start" in verbs:
        # Debian's pg_ctlcluster looks every half a second; wait() sees it sooner.
        run("systemctl", "start", "--no-block", server.unit)
    try:
        return changes, server.wait()
    except Failure:
        postgresql_config.settle(postgresql_config.FOLDER, works=False)
        raise


def managed(server: Server, check: bool) -> tuple[list[str], Session | None]:
    """Return a session with a server that Patroni has started; it is nothing that changes here."""
    session = session_now(server)
    if session is None and not check:
        raise Failure(
            "PostgreSQL does not run, which is for Patroni to see to. See systemctl status patroni,"
            " and run the playbook again."
        )
    return [], session


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


def activate(module: Module) -> dict:
    """Run the cluster, if that is asked for, and make its contents."""
    given, changes = module.params, []
    try:
        # To the end: a role that two owners share would be made by both.
        with claims.locked(postgresql_config.FOLDER, module.check_mode):
            due, beaten = bring_about(given, changes, module.check_mode)
    except Failure as failure:
        # With what was done before.
        module.fail_json(msg=str(failure), **report(changes))
    for sentence in beaten:
        module.warn(sentence)
    # Of Patroni's, the role patroni says so.
    if due and given["managed_by"] == "systemd":
        module.warn(
            f"A restart of PostgreSQL is due for {', '.join(due)}. It was not done, because"
            " postgres_allow_restart is false. Do it when it suits: systemctl restart"
            f" {Server(given['version'], given['cluster']).unit}"
        )
    return {"restart_due": due, **report(changes)}


def bring_about(given: dict, changes: list[str], check: bool) -> tuple[list[str], list[str]]:
    """Note what this changes; return which settings wait for a restart, and which are beaten."""
    due, beaten, contents = [], [], (given["roles"], given["databases"])
    if given["stage"] == "contents":
        need_psycopg2()
        server = Server(given["version"], given["cluster"]) if given["version"] else None
        session = session_now(server)
        if session is None:
            raise Failure("PostgreSQL lets nobody in. See why: systemctl status 'postgresql@*'")
    else:
        server = Server(given["version"], given["cluster"])
        is_managed = given["managed_by"] == "patroni"
        # Which server will lead, and have them made, is not known by then.
        if check and is_managed and not server.is_installed():
            return [], []
        if check and not server.is_installed():
            changes += [*SENTENCES.values(), *postgresql_contents.on_a_bare_server(*contents)]
            return [], []
        if check and psycopg2 is None:  # one set up by hand, and the package is yet to come
            changes += postgresql_contents.on_a_bare_server(*contents)
            return [], []
        need_psycopg2()
        started, session = managed(server, check) if is_managed else start(server, check)
        changes += started
        if session is None:  # only in a dry run, of a server that is down
            return [], []
        is_new = SENTENCES["start"] in started
        may_restart = given["allow_restart"] and not is_managed
        applied, due, session = apply(server, session, is_new, may_restart, check)
        changes += applied
        beaten = [] if check or is_managed else server.beaten(session)
    # What it has is from the one that leads.
    if given["managed_by"] == "patroni" and session.is_standby():
        return due, beaten
    session.check, session.changes = check, changes
    if is_standby(session, given["primary"], check):
        if not check:
            postgresql_standby.streaming(server, given["primary"])
        return due, beaten
    postgresql_contents.ensure(session, *contents)
    if given["stage"] == "activate":
        everybody = claims.read(postgresql_config.FOLDER, "", None)
        names = [x["name"] for x in postgresql_config.standbys(everybody)]
        postgresql_standby.ensure_slots(session, names)
    return due, beaten


def is_standby(session: Session, primary: str, check: bool) -> bool:
    """Tell whether a server follows another one, and refuse one that is not what it is to be."""
    follows = session.is_standby()
    if follows and not primary:
        raise Failure(
            "This PostgreSQL is a standby, and is to be the primary. Nothing was made in it. Have"
            " it be the primary: ansible-playbook carafe.stack.promote"
        )
    if primary and not follows and not check:
        raise Failure(
            f"This PostgreSQL is a primary, and is to follow {primary}. Have the one that the"
            " inventory has in the group db be the only one: ansible-playbook carafe.stack.promote"
        )
    return bool(primary)


def dump(module: Module) -> dict:
    """Dump what an owner is about to leave, for the control machine to fetch."""
    given = module.params
    server, names = Server(given["version"], given["cluster"]), []
    if owned := postgresql_removal.owned(given["owner"]).databases:
        session = postgresql_removal.session(server, given["owner"])
        leads = session and not session.is_standby()
        names = postgresql_removal.existing(session, owned) if leads else []
    dumps = postgresql_removal.dump(server, given["owner"], names, given["dump_user"], module)
    return {"dumps": dumps, **report([f"dump the database {name}" for name in names])}


def remove(module: Module) -> dict:
    """Drop what an owner has, and bring the files of the others into force."""
    given, check, owner = module.params, module.check_mode, module.params["owner"]
    folder, server, changes = (
        postgresql_config.FOLDER,
        Server(given["version"], given["cluster"]),
        [],
    )
    if claims.stored(folder, owner) is None:
        return report([])
    try:
        with claims.locked(folder, check):
            everybody = claims.read(folder, owner, None)
            owned = postgresql_removal.owned(owner)
            # A copy that nobody else is in may be down: Patroni has stopped it.
            is_copy = bool(given["primary"]) and not everybody
            ask = session_now if is_copy else partial(postgresql_removal.session, owner=owner)
            session = ask(server)
            # What the primary drops is dropped on its standby by itself.
            if session and not given["primary"]:
                session.check, session.changes = check, changes
                if not session.is_standby():
                    postgresql_removal.drop(session, owned)
                    names = [x["name"] for x in postgresql_config.standbys(everybody)]
                    postgresql_standby.ensure_slots(session, names)
            # What Patroni has run follows nobody by these files.
            follows = (server.config / "standbys.json").exists()
            is_patronis = is_copy and server.is_installed() and not follows
            asked = given | {"primary": ""} if is_patronis else given
            composes = bool(session) or is_patronis
            diff = compose(module, server, everybody, changes, asked) if composes else []
            if given["primary"] and not everybody and server.data.exists():
                changes.append(f"remove {server.data}, the copy of {given['primary']}'s data")
                if not check:
                    postgresql_standby.forget(server)
            if not check:
                postgresql_removal.forget(owner)
            # Last, so that a removal that was cut short is gone on with.
            if claims.claim(folder, owner, None, check):
                changes.append(f"remove {folder / owner}.json")
    except Failure as failure:
        module.fail_json(msg=str(failure), **report(changes))
    return report(changes, diff)


def compose(
    module: Module, server: Server, everybody: dict, changes: list[str], given: dict
) -> list[dict]:
    """Put the files together for those who stay, and have the server read them."""
    values = wanted_settings(server, given, everybody, read(server.settings_file))
    text = postgresql_config.settings_text(values)
    rules = rules_for(server, everybody, kept_rules(server))
    wanted = wanted_files(server, {}, text, rules) + standby_files(server, given, everybody)
    files = FileSet(wanted, module.check_mode)
    changes += [f"write {x.path}" for x in files.due if isinstance(x, File)]
    changes += [f"remove {x.path}" for x in files.due if isinstance(x, Absent)]
    files.write()
    if module.check_mode or not session_now(server):
        return files.diff
    prove(server, files)
    # Those who stay are connected. Nothing that only a restart brings is worth one.
    # Of one that Patroni runs, restarts are Patroni's.
    may_restart = not everybody and not found.is_patronis(server.config)
    applied, due, _ = apply(server, Session(server.place()), False, may_restart, False)
    changes += applied
    if due:
        module.warn(
            f"PostgreSQL takes back {', '.join(due)} at its next restart; until then it has what it"
            f" had with {given['owner']}."
        )
    return files.diff


STAGES = {"configure": configure, "dump": dump, "remove": remove}


def main() -> None:
    module = Module(ARGUMENTS, required_if=REQUIRED)
    if module.params["claims"]:
        postgresql_config.FOLDER /= module.params["claims"]
    module.answer(STAGES.get(module.params["stage"], activate), module)


if __name__ == "__main__":
    main()
