#!/usr/bin/python
"""Have Patroni run a PostgreSQL cluster, as one of several servers."""

from __future__ import annotations

DOCUMENTATION = r"""
module: patroni
short_description: Have Patroni run PostgreSQL, as one of several servers
description:
  - V(run) has Patroni take over the cluster of PostgreSQL that is there, whose own unit is masked.
    Where etcd knows no such cluster yet, it begins with the data of the server that is O(first);
    the others are made anew from the one that leads. Only what nobody has made a database in is
    removed for that.
  - >-
    A server with databases becomes the first one with O(convert) only, since that costs some
    seconds in which nothing is written.
  - What all servers share is written to etcd, with what PostgreSQL's file C(conf.d/carafe.conf) has
    of the settings that Patroni gives to PostgreSQL. What somebody has added there stays.
  - V(settle) restarts PostgreSQL, or Patroni with it, where V(run) has said that this is due. To be
    done by one server after the other, and by the one that leads at last.
  - V(switchover) has another server lead, which waits for that and for what is not written yet.
  - V(remove) stops Patroni, unless somebody besides O(owner) has databases. The server that led
    goes on by PostgreSQL's own unit; on the others nothing runs, and their data stays. All that it
    needs to know is in Patroni's own configuration.
  - The files of the role patroni come first, see there.
author: [Carafe (@carafe)]
options:
  stage:
    description: What to do.
    type: str
    choices: [run, settle, switchover, remove]
    default: run
  version:
    description:
      - Major version of the cluster of PostgreSQL. All stages but V(remove) need this, O(name),
        O(address), O(dcs), O(certificate) and O(trusted).
    type: str
  cluster:
    description: Name of that cluster, as C(pg_lsclusters) has it.
    type: str
    default: main
  name:
    description: Name of the server.
    type: str
  address:
    description: IP address by which the others reach it.
    type: str
  scope:
    description: Name of the cluster in etcd.
    type: str
    default: main
  namespace:
    description: Where Patroni keeps its clusters there.
    type: str
    default: /service/
  dcs:
    description: IP addresses of etcd's members.
    type: list
    elements: str
  certificate:
    description: File with the certificate and the key of the server.
    type: path
  trusted:
    description: File with the authorities that are trusted.
    type: path
  replication_password:
    description: Password of the database role C(replicator).
    type: str
  first:
    description: Whether the cluster begins with this server's data.
    type: bool
    default: false
  convert:
    description: Whether databases that this server has may become the cluster's.
    type: bool
    default: false
  ttl:
    description: Seconds after which a server that is not heard of has lost the lead.
    type: int
    default: 20
  loop_wait:
    description: Seconds between two looks of Patroni.
    type: int
    default: 5
  retry_timeout:
    description: Seconds for which etcd may be away.
    type: int
    default: 5
  synchronous_mode:
    description: Whether nothing is acknowledged before a second server has it.
    type: bool
    default: true
  settings:
    description: Further settings that all servers share.
    type: dict
    default: {}
  allow_restart:
    description: Whether PostgreSQL is restarted for settings that need it.
    type: bool
    default: true
  owner:
    description: Who leaves with V(remove), as the module M(carafe.stack.postgresql) has it.
    type: str
    default: default
  goes_on:
    description:
      - Whether the server that led goes on without Patroni after V(remove). It is not to where
        other servers go on with the cluster.
    type: bool
    default: true
  candidate:
    description: Server that is to lead after V(switchover); when empty, the one that is most ready.
    type: str
    default: ""
  former:
    description: The only server that V(switchover) takes the lead from; when empty, whoever leads.
    type: str
    default: ""
requirements: [psycopg2]
attributes:
  check_mode:
    description: Looks, changes nothing, and says what it would change.
    support: full
  diff_mode:
    description: Lists what is done, a sentence for each.
    support: full
"""

EXAMPLES = r"""
- name: Be part of the cluster
  carafe.stack.patroni:
    version: "17"
    name: one
    address: 10.0.0.11
    first: true
    dcs: [10.0.0.11, 10.0.0.12, 10.0.0.13]
    certificate: /etc/internal-tls/shop/server.pem
    trusted: /etc/internal-tls/shop/ca.pem
    replication_password: "{{ vault_database_replication_password }}"
  become: true
"""

RETURN = r"""
changes:
  description: What was done, or is to be done in check mode, a sentence for each.
  type: list
  elements: str
  returned: success
  sample: [begin the cluster main with the data of one]
leads:
  description: Whether this server leads.
  type: bool
  returned: with V(run)
restart_due:
  description: What a restart is due for.
  type: list
  elements: str
  returned: with V(run)
"""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

try:
    import yaml  # which comes with Patroni
except ImportError:
    yaml = None

from ansible_collections.carafe.stack.plugins.module_utils.module import (
    Module,
    choice,
    options,
    without_default,
)

from ..module_utils import (
    files,
    found,
    patroni,
    postgresql_config,
    postgresql_contents,
    services,
)
from ..module_utils.commands import Failure, Refused, ask, run, show
from ..module_utils.etcd import Etcd, place
from ..module_utils.files import read
from ..module_utils.patroni import LEADERS, RUNNING, Cluster, Local
from ..module_utils.peer_https import Peer, Unanswered
from ..module_utils.postgresql_server import (
    Server,
    Session,
    need_psycopg2,
    one_line,
    psycopg2,
    report,
    session_now,
    sql,
)
from ..module_utils.processes import is_older

UNIT = "patroni.service"
HELPER = "patroni-sandbox.service"
PROGRAM = Path("/usr/bin/patroni")
SETTINGS = Path("/etc/patroni/config.yml")
DROP_IN = Path("/etc/systemd/system/patroni.service.d/carafe.conf")
LOADED = Path("/run/patroni/loaded")
PORT = 8008
# Seconds for a server that starts, and for one that restarts, which may have much to write.
PATIENCE = 120
RESTART = 600
PROGRESS = 2**20  # bytes
LOGIN = "replicator"
# What pg_rewind asks of who leads.
REWINDS = (
    "pg_ls_dir(text,boolean,boolean)",
    "pg_stat_file(text,boolean)",
    "pg_read_binary_file(text)",
    "pg_read_binary_file(text,bigint,bigint,boolean)",
)
# Of each server's own configuration.
PLACE = ("listen_addresses", "port")
SENTENCES = {
    "enable": "enable Patroni at boot",
    "start": "start Patroni",
    "reload": "have Patroni read its configuration anew",
}


class Node:
    """This server as a part of the cluster: its PostgreSQL, its Patroni, and what etcd has."""

    def __init__(self, given: dict, dry: bool, asks_etcd: bool = True) -> None:
        self.given, self.dry, self.changes = given, dry, []
        self.server = Server(given["version"], given["cluster"])
        self.debians = self.server.unit
        self.server.unit = UNIT
        self.prefix = "/".join(["", given["namespace"].strip("/"), given["scope"], ""])
        self.peer = Peer(given["certificate"], given["trusted"])
        self.etcd = Etcd(self.peer, [place(x) for x in given["dcs"]])
        self.own = place(given["address"], PORT)
        self.cluster = self.look() if asks_etcd else Cluster({})

    def look(self) -> Cluster:
        try:
            return Cluster.read(self.etcd, self.prefix)
        except Unanswered as reason:
            raise Failure(
                f"etcd does not say who leads, for want of a majority of its members: {reason}. See"
                " systemctl status etcd on each of patroni_etcd_addresses, and run the playbook"
                " again."
            ) from None

    def identifier(self) -> str:
        """Return PostgreSQL's number of the data that is here, '' where there is none."""
        program = self.server.program.with_name("pg_controldata")
        said = ask(program, "-D", self.server.data).stdout.splitlines()
        numbers = [x.rpartition(":")[2].strip() for x in said if "system identifier" in x]
        return (numbers or [""])[0]

    def step(self) -> str:
        number = self.identifier()
        # A copy that was cut short has no number; it is no cluster, and nobody's own.
        is_copy = not number and self.is_taken_over()
        local = Local(number, found.has_databases(self.server.data) and not is_copy)
        key = f"{self.prefix}initialize"
        names = {"server": self.given["name"], "scope": self.given["scope"], "key": key}
        given = self.given
        return patroni.next_step(self.cluster, local, given["first"], given["convert"], names)

    def note(self, sentence: str) -> bool:
        """Note a change; return whether it is to be made."""
        self.changes.append(sentence)
        return not self.dry

    # --- what PostgreSQL's own unit leaves to Patroni

    def is_taken_over(self) -> bool:
        (state,) = show("ActiveState,LoadState", self.debians)
        return state["LoadState"] == "masked" and state["ActiveState"] in ("inactive", "failed")

    def take_over(self) -> None:
        """Stop PostgreSQL's own unit, and keep it from being started, by whomever."""
        if self.is_taken_over():
            return
        # Disabled, it would be started at boot all the same, by postgresql.service.
        if self.note(f"stop and mask {self.debians}"):
            run("systemctl", "mask", "--now", "--quiet", self.debians)

    def begin(self) -> None:
        """Have the cluster begin with the data that is here."""
        self.note(f"begin the cluster {self.given['scope']} with the data of {self.given['name']}")
        if self.dry:
            return
        former = self.cluster.keys.get("initialize")
        if former and not self.etcd.remove(f"{self.prefix}initialize", former):
            raise Failure("Somebody else has begun the cluster meanwhile. Run the playbook again.")
        # So that it starts with them, and not only restarts.
        self.agree(self.stated())
        if session := session_now(self.server):
            # So that it has little to write while nobody can write.
            session.cursor.execute("CHECKPOINT")
            session.connection.close()

    def stated(self) -> dict[str, str]:
        """Return what PostgreSQL's files have of the settings that Patroni gives to it, where it is
        more than Patroni has."""
        more = {}
        for name, usual in patroni.PATRONIS.items():
            said = self.server.ask_program(name, self.server.config / "postgresql.conf").stdout
            said = said.strip()
            larger = said.isdecimal() and usual.isdecimal() and int(said) > int(usual)
            if larger or said in ("logical", "on"):
                more[name] = said
        return more

    def follow(self) -> None:
        """Have this server be made anew from who leads; nobody has made a database here."""
        data = self.server.data
        if self.note(
            f"remove {data}, which is made anew from {self.cluster.leader or 'the first'}"
        ):
            for path in data.iterdir() if data.is_dir() else ():
                files.remove(path)

    # --- what all servers share

    def asked(self, more: dict[str, str]) -> dict:
        settings = postgresql_config.parse_settings(read(self.server.settings_file) or "")
        return patroni.wanted(self.given, more | settings)

    def agree(self, more: dict[str, str] | None = None) -> None:
        """Bring what is kept in etcd to what is asked, unless somebody changes it meanwhile."""
        has, asked = self.cluster.config, self.asked(more or {})
        if not (names := patroni.differences(has, asked)):
            return
        if self.note(f"agree on {', '.join(names)}"):
            text = json.dumps(patroni.merged(has, asked))
            if not self.etcd.put(f"{self.prefix}config", text, self.cluster.keys.get("config")):
                raise Failure(
                    "Somebody else has changed what the servers agree on, at this moment. Run the"
                    " playbook again."
                )

    # --- how Patroni is

    def serve(self) -> None:
        """Have Patroni run by its files."""
        stale = services.is_newer([SETTINGS, Path(self.given["certificate"])], LOADED)
        verbs = services.due(services.state(UNIT, HELPER), "reload" if stale else "")
        self.changes += [SENTENCES[x] for x in verbs if x in SENTENCES]
        if not self.dry:
            services.act(UNIT, verbs)

    def status(self) -> dict:
        """Return what Patroni says of this server, {} where it says nothing."""
        try:
            _, said = self.peer.ask(self.own, "/patroni")
        except Unanswered:
            return {}
        return said if isinstance(said, dict) else {}

    def wait(self, ready: Callable[[dict], bool], what: str) -> dict:
        """Wait until Patroni says so of this server; a copy of the data takes its time."""
        until, most = time.monotonic() + PATIENCE, 0
        while not ready(said := self.status()):
            # One that fails begins anew, over and over.
            if (has := used(self.server.data)) > most + PROGRESS:
                until, most = time.monotonic() + PATIENCE, has
            if time.monotonic() > until:
                journal = ask("journalctl", f"--unit={UNIT}", "--lines=8", "--output=cat").stdout
                raise Failure(
                    f"{self.given['name']} {what} within {PATIENCE} s. Patroni says that it is"
                    f" {said.get('state') or 'not there'}; see systemctl status patroni there, and"
                    f" patronictl list. Its journal ends with: {one_line(journal)}"
                )
            time.sleep(0.2)
        return said

    def settled(self) -> dict:
        """Wait until it leads, or follows who does: it first follows nobody."""

        def agrees(said: dict) -> bool:
            if not is_settled(said):
                return False
            self.cluster = self.look()
            leader = self.cluster.leader
            return leader != "" and (leader == self.given["name"]) == (said["role"] in LEADERS)

        return self.wait(agrees, "neither leads nor follows")

    # --- what is in PostgreSQL

    def restarts(self, session: Session) -> list[str]:
        """Return what a restart is due for."""
        pending = self.server.state(session)[2]
        due = {name for name in pending if name not in (*patroni.OWN, *PLACE)}
        parameters = self.asked({})["postgresql"]["parameters"]
        # Of a size, "1GB" and "1024MB" are the same.
        names = [x for x in patroni.OWN if x in parameters and x != "wal_keep_size"]
        rows = session.rows(
            "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(%s)", names
        )
        due |= {name for name, has in rows if patroni.plain(has) != patroni.plain(parameters[name])}
        (shown,) = show("MainPID", UNIT)
        return sorted(due) + [DROP_IN.name] * is_older(shown["MainPID"], [DROP_IN])


def used(data: Path) -> int:
    """Return how much of the disk of PostgreSQL's data is in use, as a copy of it grows."""
    return shutil.disk_usage(data if data.exists() else data.parent).used


def is_settled(said: dict) -> bool:
    return (said.get("role") in LEADERS and said.get("state") == "running") or is_replica(said)


def is_replica(said: dict) -> bool:
    return said.get("role") == "replica" and said.get("state") in RUNNING


def ensure_login(session: Session, password: str) -> None:
    """Make the role by which the others follow, and go back to where they agree."""
    role = {"name": LOGIN, "login": True, "replication": True, "connection_limit": -1}
    postgresql_contents.ensure_role(session, role | {"settings": {}, "password": password})
    granted = {
        name
        for (name,) in session.rows(
            "SELECT p.oid::regprocedure::text FROM pg_proc p, aclexplode(p.proacl) x"
            " WHERE pg_get_userbyid(x.grantee) = %s",
            LOGIN,
        )
    }
    for function in REWINDS:
        if function not in granted:
            session.change(
                f"let {LOGIN} ask for {function}",
                "GRANT EXECUTE ON FUNCTION {f} TO {r}",
                f=sql.SQL(function),
                r=LOGIN,
            )
    # Which is nobody's but the superuser's otherwise.
    if not session.rows(
        "SELECT FROM pg_database d, aclexplode(d.datacl) x WHERE d.datname = 'postgres'"
        " AND x.privilege_type = 'CONNECT' AND x.grantee <> 0 AND pg_get_userbyid(x.grantee) = %s",
        LOGIN,
    ):
        session.change(
            f"open database postgres to {LOGIN}",
            "GRANT CONNECT ON DATABASE postgres TO {r}",
            r=LOGIN,
        )


def on_a_bare_server(given: dict) -> dict:
    """Return what a dry run says where there is nothing to ask yet."""
    does = f"begin the cluster {given['scope']}" if given["first"] else "follow who leads"
    said = report([does, SENTENCES["enable"], SENTENCES["start"]])
    return {**said, "leads": given["first"], "restart_due": []}


def is_bare(given: dict) -> bool:
    """Tell whether something that comes before is not there, as in a dry run of all roles."""
    server = Server(given["version"], given["cluster"])
    needs = (PROGRAM, Path(given["certificate"]), Path(given["trusted"]))
    return psycopg2 is None or not server.is_installed() or not all(x.exists() for x in needs)


def bring_about(given: dict, dry: bool) -> dict:
    if dry and is_bare(given):
        return on_a_bare_server(given)
    if not PROGRAM.exists():
        raise Failure(
            f"{PROGRAM} is not there. Set patroni_manage_packages to true in group_vars, or install"
            " what patroni_packages has, and run the playbook again."
        )
    need_psycopg2()
    try:
        node = Node(given, dry)
    except Failure:
        if dry:  # etcd is yet to come
            return on_a_bare_server(given)
        raise
    step = node.step()
    if step == "await":
        step = await_first(node)
    if step == "begin":
        node.begin()
    node.take_over()
    if step == "follow":
        node.follow()
    node.serve()
    if dry and (step != "run" or SENTENCES["start"] in node.changes):
        return {**report(node.changes), "leads": step == "begin", "restart_due": []}
    said = node.status() if dry else node.settled()
    return finish(node, said.get("role") in LEADERS)


def finish(node: Node, leads: bool) -> dict:
    """See to what is PostgreSQL's own, on a server that runs."""
    session = session_now(node.server) if node.dry else node.server.wait()
    if session is None:
        return {**report(node.changes), "leads": leads, "restart_due": []}
    session.check, session.changes = node.dry, node.changes
    node.cluster = node.look()
    if leads:
        node.agree()
        if not node.dry or session.rows("SELECT FROM pg_roles WHERE rolname = %s", LOGIN):
            ensure_login(session, node.given["replication_password"])
    due = node.restarts(session)
    node.changes += [f"restart for {', '.join(due)}"] * (bool(due) and node.given["allow_restart"])
    return {**report(node.changes), "leads": leads, "restart_due": due}


def await_first(node: Node) -> str:
    """Wait for the server that begins, whose turn it is before this one's."""
    if node.dry:
        return "follow"
    until = time.monotonic() + PATIENCE
    while (step := node.step()) == "await":
        if time.monotonic() > until:
            raise Failure(
                f"No server leads the cluster {node.given['scope']} yet. The one that begins, of"
                " which patroni_first is true, has to be in the same run: leave out --limit, and"
                " run the playbook again."
            )
        time.sleep(0.5)
        node.cluster = node.look()
    return step


def settle(given: dict, dry: bool) -> dict:
    """Restart what V(run) has said, and come back when it is as before."""
    node = Node(given, dry)
    session = node.server.wait()
    due = node.restarts(session)
    session.connection.close()
    leads = node.status().get("role") in LEADERS
    warnings = []
    if DROP_IN.name in due and leads:
        due.remove(DROP_IN.name)
        warnings.append(
            f"Patroni runs by older files of its unit than there are on {given['name']}, which"
            " leads: its restart would stop PostgreSQL there. Have another server lead, and run the"
            " playbook again: ansible-playbook carafe.stack.switchover"
        )
    if due and not given["allow_restart"]:
        warnings.append(
            f"A restart of PostgreSQL is due on {given['name']} for {', '.join(due)}. It was not"
            " done, because patroni_allow_restart is false. Do it when it suits: patronictl restart"
            f" {given['scope']} {given['name']}"
        )
        due = []
    if due and node.note(f"restart for {', '.join(due)}"):
        if DROP_IN.name in due:
            run("systemctl", "restart", UNIT)
        else:
            restart_postgresql(node, due)
        node.settled()
    return {**report(node.changes), "warnings": warnings}


def restart_postgresql(node: Node, due: list[str]) -> None:
    if set(due) & set(patroni.OWN):
        # It has seen what all agree on by then; before, it would restart with the former.
        node.wait(lambda said: bool(said.get("pending_restart")), "has not taken up the settings")
    status, said = node.peer.ask(node.own, "/restart", {}, seconds=RESTART)
    if status != 200:
        raise Failure(
            f"Patroni has not restarted PostgreSQL on {node.given['name']} for {', '.join(due)}:"
            f" {one_line(said)}. Correct postgres_settings or postgres_memory_mb in group_vars, and"
            " run the playbook again."
        )


def switch_over(given: dict, dry: bool) -> dict:
    """Have another server lead."""
    node = Node(given, dry)
    leader, members = node.cluster.leader, node.cluster.members
    ready = (
        node.cluster.synchronous
        if given["synchronous_mode"]
        else [x for x in members if x != leader]
    )
    wanted = given["candidate"]
    if given["former"] not in ("", leader):
        return {**report([]), "leader": leader}
    if not leader:
        raise Refused("No server leads at this moment. See patronictl list.")
    if wanted == leader:
        return {**report([]), "leader": leader}
    if wanted and wanted not in ready:
        raise Refused(
            f"{wanted} does not have all that {leader} has acknowledged, and was left as it is."
            f" Ready is {' and '.join(ready) or 'none'}; wait until it follows: patronictl list"
        )
    if not ready:
        raise Refused(
            f"No server has all that {leader} has acknowledged, so that it goes on leading. See"
            " patronictl list."
        )
    to = wanted or ready[0]
    if node.note(f"have {to} lead in the place of {leader}"):
        at = members[leader]["api_url"].split("//", 1)[1].split("/", 1)[0]
        body = {"leader": leader, "candidate": to}
        status, said = node.peer.ask(at, "/switchover", body, seconds=PATIENCE)
        if status != 200:
            raise Failure(f"Patroni has not switched over: {one_line(said)}. See patronictl list.")
        until = time.monotonic() + PATIENCE
        while node.look().leader != to:
            if time.monotonic() > until:
                raise Failure(f"{to} does not lead yet. See patronictl list.")
            time.sleep(0.2)
    return {**report(node.changes), "leader": to}


def noted(config: dict) -> dict:
    """Return what Patroni's own configuration says of the server, as other stages are given it."""
    own = config["restapi"]

    def address(place: str) -> str:
        return place.rpartition(":")[0].strip("[]")

    version, name = Path(config["postgresql"]["config_dir"]).parts[-2:]
    return {
        **{key: config[key] for key in ("name", "scope", "namespace")},
        **{"version": version, "cluster": name, "address": address(own["connect_address"])},
        **{"certificate": own["certfile"], "trusted": own["cafile"]},
        "dcs": [address(x) for x in config["etcd3"]["hosts"]],
    }


def remove(given: dict, dry: bool) -> dict:
    """Leave PostgreSQL to its own unit where it leads, and stopped where it follows."""
    others = {x.stem for x in postgresql_config.FOLDER.glob("*.json")} - {given["owner"]}
    if not SETTINGS.exists() or others or yaml is None:
        return report([])
    # Of one that leaves, etcd may be gone by then.
    node = Node(noted(yaml.safe_load(SETTINGS.read_text())), dry, asks_etcd=False)
    leads = given["goes_on"] and node.status().get("role") in LEADERS
    state = services.state(UNIT)
    if state["ActiveState"] in ("active", "activating") and node.note("stop Patroni"):
        run("systemctl", "disable", "--now", "--quiet", UNIT)
    base = node.server.config / "postgresql.base.conf"
    if base.exists() and node.note(f"put {node.server.config}/postgresql.conf back as it was"):
        base.replace(node.server.config / "postgresql.conf")
    if leads and node.note(f"run PostgreSQL by {node.debians} again"):
        run("systemctl", "unmask", "--quiet", node.debians)
        run("systemctl", "enable", "--now", "--quiet", node.debians)
    if node.note(f"remove {SETTINGS}"):
        SETTINGS.unlink()
    return report(node.changes)


NEEDED = ("version", "name", "address", "dcs", "certificate", "trusted")
STAGES = {"run": bring_about, "settle": settle, "switchover": switch_over, "remove": remove}


def work(module: Module) -> dict:
    done = STAGES[module.params["stage"]](module.params, module.check_mode)
    for warning in done.pop("warnings", []):
        module.warn(warning)
    return done


def main() -> None:
    module = Module(
        {
            "stage": choice(*STAGES, default="run"),
            **without_default("version", "name", "address"),
            "dcs": {"type": "list", "elements": "str"},
            **without_default("certificate", "trusted", type="path"),
            **without_default("replication_password", no_log=True),
            **options(cluster="main", scope="main", namespace="/service/"),
            **options(candidate="", former="", owner="default"),
            **options(first=False, convert=False, synchronous_mode=True, allow_restart=True),
            **options(goes_on=True),
            **options(ttl=20, loop_wait=5, retry_timeout=5, settings={}),
        },
        required_if=[
            ("stage", "run", ("replication_password",)),
            *(("stage", stage, NEEDED) for stage in STAGES if stage != "remove"),
        ],
    )
    module.answer(work, module)


if __name__ == "__main__":
    main()
