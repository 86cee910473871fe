"""A database that fails over: what each server does, what is agreed on, and what is refused."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.carafe.stack.playbooks.meta import preflight as stack
from ansible_collections.carafe.stack.plugins.module_utils import found, status_cluster
from ansible_collections.carafe.stack.plugins.module_utils import patroni as logic
from ansible_collections.carafe.stack.plugins.module_utils.commands import Failure, Refused
from ansible_collections.carafe.stack.plugins.module_utils.etcd import Entry
from ansible_collections.carafe.stack.plugins.module_utils.patroni import Cluster, Local
from ansible_collections.carafe.stack.plugins.module_utils.peer_https import Unanswered
from ansible_collections.carafe.stack.plugins.modules import patroni
from ansible_collections.carafe.stack.plugins.plugin_utils.options import checks_of
from ansible_collections.carafe.stack.plugins.plugin_utils.problems import Server
from conftest import FACTS, ROOT, Role
from inventories import SECRETS, Looked

ROLE, BACKUP = checks_of("roles.patroni"), checks_of("roles.backup")
NAMES = {"server": "one", "scope": "main", "key": "/service/main/initialize"}
EMPTY, LIVE = Local("", False), Local("7", True)


def cluster(**keys: str) -> Cluster:
    named = {k.replace("__", "/"): v for k, v in keys.items()}
    return Cluster({k: Entry(v, n) for n, (k, v) in enumerate(named.items(), 1)})


def step(there: Cluster, local: Local, first: bool = False, convert: bool = False) -> str:
    return logic.next_step(there, local, first, convert, NAMES)


@pytest.mark.parametrize(
    ("keys", "local", "first", "does"),
    [
        # A bare stack: apt has made a cluster on each server, in which nobody has made anything.
        ({}, Local("7", False), True, "begin"),
        ({}, Local("8", False), False, "await"),
        ({"initialize": "7", "leader": "one"}, Local("8", False), False, "follow"),
        ({"initialize": "7", "leader": "one"}, EMPTY, False, "follow"),
        # Whoever is first later on: the cluster is there.
        ({"initialize": "7", "leader": "one"}, Local("8", False), True, "follow"),
        # It has the cluster's data, whether or not it runs.
        ({"initialize": "7", "leader": "one"}, LIVE, True, "run"),
        ({"initialize": "7"}, LIVE, False, "run"),
        # One that began and did not end.
        ({"initialize": ""}, Local("7", False), True, "begin"),
        ({"initialize": "", "members__one": "{}"}, EMPTY, False, "await"),
    ],
)
def test_what_a_server_does(keys: dict[str, str], local: Local, first: bool, does: str) -> None:
    assert step(cluster(**keys), local, first) == does


def test_a_database_in_use_is_converted_where_that_was_asked_for() -> None:
    with pytest.raises(Refused, match="about 5 seconds in which nothing is written"):
        step(cluster(), LIVE, first=True)
    assert step(cluster(), LIVE, first=True, convert=True) == "begin"


@pytest.mark.parametrize(
    ("keys", "local", "first", "says"),
    [
        # Nothing that somebody has made is removed, whatever was asked for.
        ({"initialize": "7", "leader": "one"}, Local("8", True), False, "databases of its own"),
        ({"initialize": "7", "leader": "one"}, Local("8", True), True, "databases of its own"),
        ({"initialize": "7"}, Local("8", True), True, "etcdctl del /service/main/initialize"),
        # All of the cluster's servers are down, which may have the only data.
        ({"initialize": "7"}, Local("8", False), True, "none of its servers runs"),
        ({"initialize": "7"}, EMPTY, False, "etcdctl del /service/main/initialize"),
        ({"initialize": ""}, EMPTY, False, "leave out --limit"),
        ({"initialize": "", "members__two": "{}"}, EMPTY, True, "two is making the cluster main"),
    ],
)
def test_what_could_cost_data_is_refused(
    keys: dict[str, str], local: Local, first: bool, says: str
) -> None:
    with pytest.raises(Refused, match=says):
        step(cluster(**keys), local, first, convert=True)


def test_who_is_there_is_read_from_its_keys() -> None:
    there = cluster(
        leader="two",
        members__two='{"role": "primary"}',
        members__one="no JSON",
        sync='{"leader": "two", "sync_standby": "three,one"}',
    )
    assert there.members == {"one": {}, "two": {"role": "primary"}}
    assert (there.leader, there.synchronous) == ("two", ["one", "three"])
    assert (there.identifier, there.config) == (None, {})


GIVEN = {"ttl": 20, "loop_wait": 5, "retry_timeout": 5, "synchronous_mode": True, "settings": {}}


def test_what_patroni_gives_to_postgresql_comes_from_the_roles_file() -> None:
    settings = {"max_connections": "143", "shared_buffers": "1GB", "listen_addresses": "x"}
    asked = logic.wanted(GIVEN, settings)
    assert asked["postgresql"]["parameters"] == {"max_connections": "143"}
    assert (asked["synchronous_mode"], asked["failsafe_mode"], asked["ttl"]) == (True, True, 20)


def test_less_than_patroni_takes_is_no_difference_for_ever() -> None:
    asked = logic.wanted(GIVEN, {"max_connections": "7", "max_worker_processes": "4"})
    parameters = {"max_connections": "25", "max_worker_processes": "4"}
    assert asked["postgresql"]["parameters"] == parameters


def test_what_is_stated_wins_and_keeps_the_rest() -> None:
    more = {"synchronous_node_count": 2, "postgresql": {"parameters": {"max_connections": 9}}}
    asked = logic.wanted(GIVEN | {"settings": more}, {"max_wal_senders": "20"})
    assert asked["synchronous_node_count"] == 2
    parameters = {"max_wal_senders": "20", "max_connections": 9}
    assert asked["postgresql"] == {"use_pg_rewind": True, "use_slots": True} | {
        "parameters": parameters
    }
    assert more == {
        "synchronous_node_count": 2,
        "postgresql": {"parameters": {"max_connections": 9}},
    }


def test_a_quote_is_no_difference_and_what_others_have_said_stays() -> None:
    has = {"ttl": 20, "pause": True, "postgresql": {"parameters": {"a": 100, "b": True, "c": "x"}}}
    asked = {"ttl": "20", "postgresql": {"parameters": {"a": "100", "b": "on"}}}
    assert logic.differences(has, asked) == []
    assert logic.merged(has, asked) == has
    asked["postgresql"]["parameters"]["a"] = "200"
    assert logic.differences(has, asked) == ["postgresql.parameters.a"]
    now = logic.merged(has, asked)
    assert now["postgresql"]["parameters"] == {"a": "200", "b": True, "c": "x"}
    assert now["pause"] is True


class Node(patroni.Node):
    """A server whose etcd, systemd and PostgreSQL are what a test says."""

    def __init__(self, given: dict[str, Any], dry: bool = False, **keys: str) -> None:
        self.given, self.dry, self.changes = given, dry, []
        self.prefix, self.own = "/service/main/", "10.0.0.1:8008"
        self.cluster, self.kept = cluster(**keys), {}
        self.server = SimpleNamespace(
            data=given["data"], settings_file=given["data"] / "x", config=given["data"]
        )
        self.server.ask_program = lambda name, _: SimpleNamespace(
            stdout={
                "max_connections": "300\n",
                "max_wal_senders": "4\n",
                "wal_level": "logical\n",
            }.get(name, "")
        )
        self.debians = "postgresql@17-main.service"
        self.etcd = SimpleNamespace(put=self.put, remove=self.remove)

    def put(self, key: str, value: str, former: Entry | None) -> bool:
        self.kept[key] = json.loads(value)
        return not self.given.get("raced")

    def remove(self, key: str, former: Entry) -> bool:
        self.kept[key] = None
        return True


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    data = tmp_path / "data"
    (data / "base/1").mkdir(parents=True)
    (data / "PG_VERSION").touch()
    (data / "outside").symlink_to(tmp_path)
    return GIVEN | {"name": "one", "scope": "main", "data": data, "first": True, "convert": False}


def test_it_begins_with_what_the_server_allows_already(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of it could not start with less; what is less than Patroni's own is left to it."""
    monkeypatch.setattr(patroni, "session_now", lambda _: None)
    node = Node(given, initialize="")
    node.begin()
    assert node.kept["/service/main/initialize"] is None
    parameters = node.kept["/service/main/config"]["postgresql"]["parameters"]
    assert parameters == {"max_connections": "300", "wal_level": "logical"}
    assert node.changes[0] == "begin the cluster main with the data of one"


def test_a_dry_run_begins_nothing(given: dict[str, Any]) -> None:
    node = Node(given, dry=True, initialize="")
    node.begin()
    node.follow()
    assert node.kept == {}
    assert (given["data"] / "PG_VERSION").exists()


def test_a_copy_begins_empty_and_what_lies_elsewhere_stays(given: dict[str, Any]) -> None:
    Node(given, leader="two").follow()
    assert list(given["data"].iterdir()) == []
    assert given["data"].parent.exists()


def test_a_change_by_somebody_else_is_not_written_over(given: dict[str, Any]) -> None:
    with pytest.raises(Failure, match="Somebody else has changed"):
        Node(given | {"raced": True}).agree()


def test_a_copy_that_was_cut_short_is_nobodys_databases(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """pg_basebackup writes what has the cluster's number at last."""
    monkeypatch.setattr(patroni.found, "has_databases", lambda _: True)
    node = Node(given, initialize="7", leader="two")
    monkeypatch.setattr(node, "identifier", lambda: "")
    monkeypatch.setattr(node, "is_taken_over", lambda: True)
    assert node.step() == "follow"
    monkeypatch.setattr(node, "is_taken_over", lambda: False)
    with pytest.raises(Refused, match="databases of its own"):
        node.step()


@pytest.mark.parametrize(
    ("said", "ready"),
    [
        ({"role": "primary", "state": "running"}, True),
        ({"role": "master", "state": "running"}, True),
        ({"role": "primary", "state": "starting"}, False),
        ({"role": "replica", "state": "streaming"}, True),
        ({"role": "replica", "state": "running"}, True),
        ({"role": "replica", "state": "creating replica"}, False),
        ({}, False),
    ],
)
def test_ready_is_what_both_patronis_call_so(said: dict[str, str], ready: bool) -> None:
    assert patroni.is_settled(said) is ready


def test_a_long_copy_is_waited_for_and_a_server_that_fails_is_not(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, used = iter(range(0, 10_000, 50)), iter([*range(0, 9 * 2**21, 2**21), *[2**21] * 9])
    monkeypatch.setattr(patroni, "used", lambda _: next(used))
    monkeypatch.setattr(patroni.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(patroni.time, "sleep", lambda _: None)
    monkeypatch.setattr(patroni, "ask", lambda *_: SimpleNamespace(stdout="no space left"))
    node, said = Node(given), iter([{"state": "creating replica"}] * 9 + [{"state": "stopped"}] * 9)
    monkeypatch.setattr(node, "status", lambda: next(said))
    with pytest.raises(Failure, match=r"Patroni says that it is stopped.*no space left"):
        node.settled()
    assert len([*said]) < 9


def lead(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **keys: str) -> Callable[..., Any]:
    node = Node(given, **keys)
    asked: list[Any] = []

    def ask(place: str, path: str, body: object, **_: Any) -> tuple[int, str]:
        asked.append((place, path, body))
        node.cluster = cluster(leader=body["candidate"])
        return 200, "Successfully switched over"

    node.peer = SimpleNamespace(ask=ask)
    monkeypatch.setattr(node, "look", lambda: node.cluster)
    monkeypatch.setattr(patroni, "Node", lambda *_: node)
    return lambda candidate="", former="": (
        patroni.switch_over(given | {"candidate": candidate, "former": former}, False),
        asked,
    )


THREE = {
    "leader": "one",
    "sync": '{"leader": "one", "sync_standby": "two"}',
    "members__one": '{"api_url": "https://10.0.0.1:8008/patroni"}',
    "members__two": "{}",
    "members__three": "{}",
}


def test_the_one_that_has_everything_leads_next(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    done, asked = lead(given, monkeypatch, **THREE)()
    assert done["leader"] == "two"
    assert asked == [("10.0.0.1:8008", "/switchover", {"leader": "one", "candidate": "two"})]


def test_one_that_lacks_something_does_not_lead(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Refused, match=r"three does not have all.* Ready is two"):
        lead(given, monkeypatch, **THREE)("three")
    with pytest.raises(Refused, match="No server has all that one has acknowledged"):
        lead(given, monkeypatch, **THREE | {"sync": "{}"})()


def test_who_leads_already_stays(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    done, asked = lead(given, monkeypatch, **THREE)("one")
    assert (done["changed"], asked) == (False, [])


@pytest.mark.parametrize(("former", "leads"), [("one", "two"), ("two", "one"), ("three", "one")])
def test_only_who_is_to_give_up_the_lead_does(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch, former: str, leads: str
) -> None:
    done, asked = lead(given, monkeypatch, **THREE)(former=former)
    assert (done["leader"], done["changed"], len(asked)) == (leads, leads == "two", leads == "two")


@pytest.mark.parametrize(("goes_on", "runs"), [(True, True), (False, False)])
def test_who_leaves_the_others_to_go_on_runs_nothing(
    given: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    goes_on: bool,
    runs: bool,
) -> None:
    """Even where it led by its own word: it was cut off from etcd before."""
    settings, asked = tmp_path / "config.yml", []
    settings.write_text("{}")
    monkeypatch.setattr(patroni, "SETTINGS", settings)
    monkeypatch.setattr(patroni.postgresql_config, "FOLDER", tmp_path / "claims")
    monkeypatch.setattr(patroni, "noted", lambda _: {})
    monkeypatch.setattr(patroni, "Node", lambda *_, **more: asked.append(more) or node)
    monkeypatch.setattr(patroni.services, "state", lambda _: {"ActiveState": "active"})
    node, done = Node(given), []
    monkeypatch.setattr(node, "status", lambda: {"role": "primary"})
    monkeypatch.setattr(patroni, "run", lambda *words: done.append(words[1:]))
    patroni.remove({"owner": "shop", "goes_on": goes_on}, False)
    assert asked == [{"asks_etcd": False}]
    assert ("disable", "--now", "--quiet", "patroni.service") in done
    assert (("enable", "--now", "--quiet", node.debians) in done) is runs
    assert not settings.exists()


def test_settings_are_found_below_patronis_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "etc/postgresql/17/main"
    (folder / "conf.d").mkdir(parents=True)
    (folder / "postgresql.base.conf").write_text("include_dir = 'conf.d'\nport = 5433\n")
    (folder / "postgresql.conf").write_text("include_dir = 'conf.d'\nport = 5432\n")
    monkeypatch.setattr(found, "ROOT", tmp_path)
    # What Patroni has left behind says nothing.
    assert [x["patroni"] for x in found.clusters()] == [False]
    (folder / "postgresql.conf").write_text("include 'postgresql.base.conf'\nport = '5434'\n")
    (cluster,) = found.clusters()
    assert (cluster["patroni"], cluster["reads_conf_d"], cluster["port"]) == (True, True, 5434)


# --- what is refused before anything is touched -----------------------------------------------


def said(
    check: Callable[..., Any], facts: dict[str, Any] | None = None, **values: Any
) -> list[str]:
    return [x.what for x in check(Server("one", values=values, facts=facts or {}))]


def with_cluster(**more: Any) -> dict[str, Any]:
    there = {"version": "17", "name": "main", "claims": {}, **more}
    return {"distribution_major_version": "13", "found": {"postgresql": {"clusters": [there]}}}


LIVE_FACTS = with_cluster(claims={"shop": {}})


@pytest.mark.parametrize(
    ("facts", "first", "convert", "says"),
    [
        (LIVE_FACTS, True, False, "about 5 seconds"),
        (LIVE_FACTS, True, True, None),
        (LIVE_FACTS, False, True, "in the way of the cluster's"),
        (with_cluster(claims={"shop": {}}, patroni=True), False, False, None),
        (with_cluster(has_databases=True), True, False, "about 5 seconds"),
        (with_cluster(has_databases=False), True, False, None),
        ({}, True, False, None),
    ],
)
def test_a_conversion_is_asked_for(
    facts: dict[str, Any], first: bool, convert: bool, says: str | None
) -> None:
    found = said(ROLE.check_conversion, facts, patroni_first=first, patroni_convert=convert)
    assert (says in found[0]) if says else found == []


@pytest.mark.parametrize(("ttl", "refused"), [(20, True), (25, False)])
def test_times_that_patroni_would_change_are_refused(ttl: int, refused: bool) -> None:
    times = {"patroni_ttl": ttl, "patroni_loop_wait": 5, "patroni_retry_timeout": 10}
    assert bool(said(ROLE.check_times, **times)) is refused


def looked(folder: Path, servers: dict[str, list[str]], **variables: Any) -> Looked:
    place = folder / "inventory/prod"
    place.mkdir(parents=True, exist_ok=True)
    names = sorted({name for group in servers.values() for name in group})
    hosts = {x: {"private_address": f"192.0.2.{n}"} for n, x in enumerate(names, 1)}
    groups: dict[str, Any] = {"prod": {"hosts": hosts}}
    groups |= {k: {"hosts": dict.fromkeys(v)} for k, v in servers.items()}
    (place / "hosts.yml").write_text(json.dumps(groups))
    (place / "group_vars").mkdir(exist_ok=True)
    app = {"app_name": "shop", "app_domains": ["example.com"], "app_wsgi": "wsgi:app"}
    app |= {"app_path": str(ROOT / "sample_app"), "stack_database": "postgresql+psycopg"}
    (place / "group_vars/prod.yml").write_text(yaml.safe_dump({**app, **SECRETS, **variables}))
    return Looked(place)


ALL = ["a", "b", "c"]
THREE_SERVERS = {"db": ALL, "etcd": ALL, "app": ALL[:2], "web": ALL[:1]}


def test_three_servers_fail_over_by_their_groups_alone(tmp_path: Path) -> None:
    seen = looked(tmp_path, THREE_SERVERS)
    assert seen.said == ""
    assert {"etcd", "patroni", "postgres"} <= {*seen.value("stack_host_roles")}
    assert {"etcd-server", "patroni"} <= {*seen.value("stack_packages")}
    assert seen.value("postgres_managed_by") == "patroni"
    place, _, options = seen.value("stack_database_url").partition("@")[2].partition("?")
    assert place == "/shop"
    words = dict(x.split("=", 1) for x in options.split("&"))
    assert words == {
        **{"host": "192.0.2.1,192.0.2.2,192.0.2.3", "port": "5432,5432,5432"},
        **{"sslmode": "verify-full", "sslrootcert": "/etc/internal-tls/shop/ca.pem"},
        **{"target_session_attrs": "read-write", "connect_timeout": "3", "keepalives_idle": "5"},
        **{"keepalives_interval": "2", "keepalives_count": "3", "tcp_user_timeout": "8000"},
    }


def test_only_the_servers_of_the_cluster_reach_each_other(tmp_path: Path) -> None:
    seen = looked(tmp_path, THREE_SERVERS | {"app": ["z"], "web": ["z"]})
    assert seen.said == ""
    open_to: dict[str, set[str]] = {}
    for rule in seen.value("firewall_default_allow"):
        for port in rule["ports"]:
            open_to.setdefault(port, set()).update(rule["sources"])
    peers = {"192.0.2.1", "192.0.2.2", "192.0.2.3"}
    assert {open_to.pop(port) == peers for port in ("2379", "2380", "8008")} == {True}
    assert open_to["5432"] | {"192.0.2.1"} == peers | {"192.0.2.4"}
    follow = [x for x in seen.value("postgres_default_hba") if x["user"] == "replicator"]
    assert {x.get("address") for x in follow} == {None, *(f"{x}/32" for x in peers)}
    assert {x["method"] for x in follow} == {"scram-sha-256"}


def without(folder: Path, name: str, servers: dict[str, list[str]], *extra: str) -> Looked:
    """Look at a cluster of which one server is away, or leaves."""
    place = folder / "inventory/prod"
    if not place.exists():
        looked(folder, servers)
    hosts = json.loads((place / "hosts.yml").read_text())
    if not extra:
        hosts["prod"]["hosts"][name]["stack_state"] = "absent"
    (place / "hosts.yml").write_text(json.dumps(hosts))
    return Looked(place, *extra, limit=f"!{name}")


def test_one_that_is_away_keeps_its_place_and_is_asked_last(tmp_path: Path) -> None:
    seen = without(tmp_path, "a", THREE_SERVERS | {"app": ["b"], "web": ["b"]})
    assert seen.said == ""
    assert seen.value("etcd_members | map(attribute='name')") == ALL
    assert seen.value("patroni_members") == ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    assert "host=192.0.2.2,192.0.2.3,192.0.2.1&" in seen.value("stack_database_url")
    assert seen.value("stack_database_server") == "b"


def test_without_a_majority_none_is_away(tmp_path: Path) -> None:
    servers = THREE_SERVERS | {"app": ["b"], "web": ["b"]}
    without(tmp_path, "a", servers)
    said = without(tmp_path, "c", servers).said
    assert "is absent for a and c, and of 3 voters no majority is left" in said


def test_one_that_leaves_gives_its_place_to_another(tmp_path: Path) -> None:
    four = [*ALL, "d"]
    servers = {"db": four, "etcd": four, "app": ["a"], "web": ["a"]}
    assert "etcd_members has 4" in looked(tmp_path, servers).said
    seen = without(tmp_path, "c", servers, "remove_server=c")
    assert seen.said == ""
    assert seen.value("etcd_members | map(attribute='name')") == ["a", "b", "d"]
    assert seen.value("patroni_members") == ["192.0.2.1", "192.0.2.2", "192.0.2.4"]
    assert "host=192.0.2.1,192.0.2.2,192.0.2.4&" in seen.value("stack_database_url")
    for rule in seen.value("firewall_default_allow"):
        assert "192.0.2.3" not in rule["sources"]
    # What it has, the others have, too.
    assert seen.value("postgres_primary", "c") == "192.0.2.1"


def test_one_server_is_as_it_was(tmp_path: Path) -> None:
    one = {key: ["a"] for key in ("db", "app", "web")}
    seen = looked(tmp_path, one)
    assert seen.said == ""
    assert not {"etcd", "patroni"} & {
        *seen.value("stack_host_roles"),
        *seen.value("stack_packages"),
    }
    assert seen.value("stack_database_url").endswith("@/shop?host=/run/postgresql")
    assert seen.value("postgres_managed_by") == "systemd"


@pytest.mark.parametrize(
    ("groups", "more", "says"),
    [
        ({"etcd": ALL[:2]}, {}, "a majority that outlives a server needs 3 voters"),
        ({"etcd": [*ALL, "d"], "db": ALL}, {}, "etcd_members has 4"),
        ({"db": ALL[:1]}, {}, "patroni_members has one server"),
        ({"db": []}, {}, "no server is in the group db"),
        ({}, {"stack_database": "postgresql+asyncpg"}, "waits a minute for a server that is gone"),
        (
            {},
            {"backup_repository": "/var/backups/x"},
            "a folder of a alone, and the database fails",
        ),
    ],
)
def test_what_would_not_fail_over_is_refused(
    tmp_path: Path, groups: dict[str, list[str]], more: dict[str, Any], says: str
) -> None:
    assert says in looked(tmp_path, THREE_SERVERS | groups, **more).said


@pytest.mark.parametrize(("release", "refused"), [("12", True), ("13", False), ("14", False)])
def test_a_release_whose_patroni_has_lost_rows_is_refused(release: str, refused: bool) -> None:
    facts = {"distribution": "Debian", "distribution_major_version": release}
    server = Server("a", facts=facts)
    found = [x.what for x in ROLE.check_release(server)]
    assert [f"a has Debian {release}" in x for x in found] == [True] * refused


STORE = {
    **{"backup_repository": "s3://backups/shop", "backup_s3_endpoint": "s3.example.com"},
    **{"backup_s3_key": "AK", "backup_s3_secret": "SK"},
}
# The group etcd, and whether PostgreSQL is told to look for what the former leader owes.
PLACES = [({"etcd": ALL}, True), ({"etcd": [], "db": ALL[:1]}, False)]


def test_one_that_is_away_is_asked_for_no_restore_point(tmp_path: Path) -> None:
    servers = THREE_SERVERS | {"app": ["b"], "web": ["b"]}
    looked(tmp_path, servers, **STORE)
    seen = without(tmp_path, "a", servers)
    assert seen.said == ""
    assert seen.value("app_restore_point_servers") == ["b", "c"]


@pytest.mark.parametrize(("groups", "several"), PLACES)
def test_backups_of_several_servers_go_to_one_place(
    tmp_path: Path, groups: dict[str, list[str]], several: bool
) -> None:
    seen = looked(tmp_path, THREE_SERVERS | groups, **STORE)
    assert seen.said == ""
    command = seen.value("postgres_default_settings")["archive_command"]
    assert ("backup catch-up" in command) is several
    assert seen.value("app_restore_point_servers") == (ALL if several else ALL[:1])
    told = seen.value("backup_patroni")
    addresses = ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    assert told.get("dcs") == (addresses if several else None)


def test_a_command_that_archives_does_what_is_owed_first(tmp_path: Path) -> None:
    """As PostgreSQL has it run: by a shell, with the names in it."""
    command = looked(tmp_path, THREE_SERVERS, **STORE).value("postgres_default_settings")
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, ends in (("pgbackrest", 0), ("python3", 3), ("cat", 0)):
        (folder / name).write_text(f"#!/bin/sh\necho {name} $* >>{tmp_path}/ran\nexit {ends}\n")
        (folder / name).chmod(0o755)
    for name in ("000000010000000000000007", "00000002.history"):
        text = command["archive_command"].replace("%p", f"pg_wal/{name}").replace("%f", name)
        done = subprocess.run(["/bin/sh", "-c", text], env={"PATH": str(folder)}, check=False)
        # One that cannot be archived yet is tried again, with all that comes before it.
        assert done.returncode == (3 if "history" in name else 0)
    ran = [x.split()[0] for x in (tmp_path / "ran").read_text().splitlines()]
    assert [x for x in ran if x != "cat"] == ["pgbackrest", "python3"]


@pytest.mark.parametrize(
    ("mounts", "refused"),
    [([], True), (["/mnt"], False), (["/mnt/backup"], False), (["/mnt/back"], True)],
)
def test_a_folder_for_all_of_them_is_another_hosts(mounts: list[str], refused: bool) -> None:
    values = {"backup_repository": "/mnt/backup", "backup_patroni": {"name": "a"}}
    facts = {"found": {"remote_mounts": mounts, "mounts": ["/mnt/backup"]}}
    server = Server("a", values=values, facts=facts)
    assert bool([*BACKUP.check_shared(server)]) is refused
    values["backup_patroni"] = {}
    assert [*BACKUP.check_shared(server)] == []


@pytest.mark.parametrize(("apart", "refused"), [(3, False), (60, True)])
def test_clocks_of_voters_agree(apart: int, refused: bool) -> None:
    servers = [
        Server(name, values={"stack_etcd": ["a", "b"]}, facts={"clock": 1e9 + late})
        for name, late in (("a", 0), ("b", apart), ("c", 1e6))
    ]
    found = [x.what for x in stack.check_clocks(servers)]
    assert found == (
        ["has servers whose clocks differ: that of a is 60 s behind that of b"] * refused
    )


def test_who_asks_for_nothing_is_told_where_etcd_is(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(given)
    monkeypatch.setattr(patroni.Cluster, "read", lambda *_: (_ for _ in ()).throw(Unanswered("x")))
    with pytest.raises(Failure, match="for want of a majority of its members: x"):
        node.look()


# --- what is shown of it ----------------------------------------------------------------------


def member(name: str, role: str, state: str = "streaming", lag: int | str = 0) -> dict[str, Any]:
    return {"name": name, "role": role, "state": state, "lag": lag}


LEADER = member("one", "leader", "running")
STEP = member("two", "sync_standby")


@pytest.mark.parametrize(
    ("members", "level", "says"),
    [
        (
            [LEADER, STEP, member("three", "replica", lag=4096)],
            *("green", "one leads, two in step, three 4096 bytes behind"),
        ),
        # Patroni 3.
        ([LEADER, {**STEP, "state": "running"}], "green", "one leads, two in step"),
        ([LEADER, STEP, member("three", "replica", lag=2**21)], "yellow", "three 2097152 bytes"),
        (
            [LEADER, STEP, member("three", "replica", "stopped", "unknown")],
            *("yellow", "three is stopped"),
        ),
        ([LEADER, member("two", "replica")], "yellow", "none in step"),
        ([STEP], "red", "nobody leads"),
    ],
)
def test_the_status_has_who_leads_and_who_follows(
    members: list[dict[str, Any]], level: str, says: str
) -> None:
    row = status_cluster.of_members(members)
    assert (row.level, says in row.says) == (level, True), row
    assert (row.next == "") is (level == "green")


@pytest.mark.parametrize(
    ("well", "level", "says"),
    [
        ("abc", "green", "3 of 3 answer"),
        ("ab", "yellow", "2 of 3 answer, not c"),
        ("", "red", "0 of 3 answer, not a and b and c"),
    ],
)
def test_the_status_has_whether_a_majority_agrees(well: str, level: str, says: str) -> None:
    etcd = SimpleNamespace(places=["a", "b", "c"], is_healthy=lambda x: x in well)
    row = status_cluster.of_voters(etcd)
    assert (row.level, row.says) == (level, says)


def test_where_there_is_no_cluster_nothing_is_said_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_cluster, "CONFIG", tmp_path / "config.yml")
    monkeypatch.setattr(status_cluster, "SETTINGS", tmp_path / "etcd")
    assert list(status_cluster.rows()) == []
    (tmp_path / "etcd").write_text("ETCD_NAME=of-somebody-elses\n")
    assert list(status_cluster.rows()) == []


def test_who_has_a_vote_alone_says_how_many_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_cluster, "CONFIG", tmp_path / "config.yml")
    monkeypatch.setattr(status_cluster, "SETTINGS", tmp_path / "etcd")
    (tmp_path / "etcd").write_text(
        "# Ansible managed: Managed by Ansible.\nETCD_LISTEN_PEER_URLS=https://10.0.0.3:2380\n"
        "ETCD_INITIAL_CLUSTER=a=https://10.0.0.1:2380,c=https://10.0.0.3:2380\n"
        "ETCD_CERT_FILE=/pem\nETCD_TRUSTED_CA_FILE=/ca\nETCD_DATA_DIR=/data\n"
    )

    def well(place: str, _: str) -> tuple[int, Any]:
        return 200 if place == "10.0.0.3:2379" else 503, {"health": "true"}

    monkeypatch.setattr(status_cluster, "Peer", lambda *_: SimpleNamespace(ask=well))
    (row,) = status_cluster.rows()
    assert (row.what, row.level, row.says) == (
        *("etcd", "yellow"),
        "1 of 2 answer, not 10.0.0.1:2379",
    )


def test_a_patroni_that_is_silent_is_told_beside_etcd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_cluster, "CONFIG", tmp_path / "config.yml")
    config = {
        "restapi": {"certfile": "pem", "cafile": "ca", "connect_address": "10.0.0.1:8008"},
        "etcd3": {"hosts": ["10.0.0.1:2379"]},
    }
    (tmp_path / "config.yml").write_text(yaml.safe_dump(config))

    def ask(place: str, path: str) -> tuple[int, Any]:
        if path == "/cluster":
            raise Unanswered("no route")
        return 200, {"health": "true"}

    monkeypatch.setattr(status_cluster, "Peer", lambda *_: SimpleNamespace(ask=ask))
    assert [(x.what, x.level) for x in status_cluster.rows()] == [
        *(("cluster", "red"), ("etcd", "green")),
    ]


def test_a_server_leaves_by_what_it_has_noted_itself() -> None:
    role = Role("patroni")
    values = role.defaults | role.vars | {"patroni_address": "10.0.0.1", "patroni_name": "one"}
    values |= {"patroni_certificate": "/server.pem", "patroni_trusted": "/ca.pem"}
    values |= {"patroni_etcd_addresses": ["10.0.0.1", "fd00::2"], "ansible_facts": FACTS}
    values |= {"patroni_replication_password": "hush", "patroni_members": []}
    config = Templar(DataLoader(), values).template(trust_as_template("{{ __patroni_config }}"))
    assert patroni.noted(config) == {
        **{"name": "one", "scope": "main", "namespace": "/service/", "version": "17"},
        **{"cluster": "main", "address": "10.0.0.1", "dcs": ["10.0.0.1", "fd00::2"]},
        **{"certificate": "/server.pem", "trusted": "/ca.pem"},
    }
    assert config["restapi"]["verify_client"] == "optional"
    assert config["postgresql"]["listen"] == "10.0.0.1,127.0.0.1:5432"


def test_while_others_have_databases_patroni_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patroni, "SETTINGS", tmp_path / "blog.json")
    monkeypatch.setattr(patroni.postgresql_config, "FOLDER", tmp_path)
    (tmp_path / "blog.json").touch()
    assert patroni.remove({"owner": "shop"}, dry=False)["changes"] == []


def test_who_begins_is_waited_for_until_it_leads(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patroni starts it as one that follows nobody, and lets it lead afterwards."""
    monkeypatch.setattr(patroni.time, "sleep", lambda _: None)
    node = Node(given)
    follows, leads = {"role": "replica", "state": "running"}, {"role": "primary"}
    said = iter([follows, follows, leads | {"state": "running"}])
    known = iter([cluster(), cluster(leader="one"), cluster(leader="one")])
    monkeypatch.setattr(node, "status", lambda: next(said))
    monkeypatch.setattr(node, "look", lambda: next(known))
    assert node.settled()["role"] == "primary"
