"""What the wiring makes of a standby, what the preflight refuses, and what the status says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.carafe.stack.playbooks.meta import preflight as stack
from ansible_collections.carafe.stack.plugins.module_utils import (
    postgresql_config,
    status_app,
    status_database,
)
from ansible_collections.carafe.stack.plugins.plugin_utils import options
from ansible_collections.carafe.stack.plugins.plugin_utils.problems import Server
from inventories import of_servers

POSTGRES = options.checks_of("roles.postgres")
TWO = {"db": ["one"], "app": ["one"], "web": ["one"], "standby": ["two"]}


# --- the wiring --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An app on one server, and another one that follows it."""
    looked = of_servers(tmp_path_factory.mktemp("two"), TWO, stack_database="postgresql")
    assert looked.said == ""
    return looked


def test_with_a_standby_the_app_keeps_its_unix_socket(two: Any) -> None:
    assert two.value("stack_is_one_server")
    assert "host=/run/postgresql" in two.value("stack_database_url")
    assert two.value("gunicorn_socket") == "unix:///run/shop.sock"
    assert two.value("internal_tls_tunnels") == []
    assert two.value("postgres_client_addresses") == []


def test_both_know_each_other_by_certificates(two: Any) -> None:
    for host, other, address in (("one", "two", "10.0.0.11"), ("two", "one", "10.0.0.10")):
        assert two.value("postgres_standbys", host) == [{"name": other, "address": address}]
        assert two.value("postgres_certificate", host) == "/etc/internal-tls/shop/server.pem"
        assert two.value("postgres_replication_trusted", host) == "/etc/internal-tls/shop/ca.pem"
        assert "127.0.0.1" in two.value("postgres_listen_addresses", host)
        (rule,) = [x for x in two.value("firewall_default_allow", host) if "5432" in x["ports"]]
        assert rule["sources"] == [address]
    # In this order each time, or another certificate would be signed.
    units = [f"{x}.shop.internal" for x in ("db", "app", "web")]
    assert two.value("internal_tls_names", "one") == ["one", "10.0.0.10", *units]
    assert two.value("postgres_primary", "one") == ""
    assert two.value("postgres_primary", "two") == "10.0.0.10"
    # The primary alone makes roles.
    assert "shop-replicator" in [x["name"] for x in two.value("__postgres_roles", "one")]
    assert "shop-replicator" not in [x["name"] for x in two.value("__postgres_roles", "two")]


def test_a_standby_has_the_database_and_no_app(two: Any) -> None:
    roles = {*two.value("stack_host_roles", "two")}
    of_app = {*two.value("stack_roles.app"), *two.value("stack_roles.web")}
    assert {"postgres", "internal_tls"} <= roles
    assert roles & of_app == {"internal_tls"}


def test_servers_of_an_app_apart_look_for_the_one_that_writes(tmp_path: Path) -> None:
    groups = {"db": ["data"], "app": ["a"], "web": ["a"], "standby": ["data2"]}
    looked = of_servers(tmp_path, groups, stack_database="postgresql+psycopg")
    assert looked.said == ""
    url = looked.value("stack_database_url", "a")
    assert "@/shop?host=10.0.0.10,10.0.0.12&port=5432,5432&sslmode=verify-full" in url
    assert "target_session_attrs=read-write" in url
    assert "tcp_user_timeout=8000" in url
    (rule,) = [x for x in looked.value("firewall_default_allow", "data2") if "5432" in x["ports"]]
    assert rule["sources"] == ["10.0.0.11", "10.0.0.10"]


@pytest.mark.parametrize(
    ("groups", "more", "said"),
    [
        (TWO | {"standby": ["one"]}, {}, "has one, which is in db and app and web, too"),
        ({**TWO, "db": ["one", "three"]}, {}, "the group db has 2 servers to follow"),
        (TWO, {"database_replication_password": ""}, "is empty, and with several servers"),
    ],
    ids=["itself", "two primaries", "no password"],
)
def test_a_standby_that_cannot_be_is_refused(
    tmp_path: Path, groups: Any, more: Any, said: str
) -> None:
    looked = of_servers(tmp_path, groups, stack_database="postgresql", **more)
    assert said in looked.said


def test_what_a_standby_does_not_need_is_not_asked_for(tmp_path: Path) -> None:
    """On one server the app proves who it is by its unix user, also where that has a standby."""
    none = dict.fromkeys(stack.OF_SEVERAL, "{{ vault_that_nobody_has }}")
    looked = of_servers(tmp_path, TWO, stack_database="postgresql", **none)
    assert looked.said == ""


# --- the preflight -----------------------------------------------------------------------------

CLUSTER = {
    "version": "17",
    "name": "main",
    "runs": True,
    "claims": {"shop": {"databases": ["shop"], "roles": []}},
    "addresses": "127.0.0.1,10.0.0.10",
    "is_standby": False,
    "is_fenced": False,
}
STANDBYS = [{"name": "two", "address": "10.0.0.11"}]
VALUES = {
    "postgres_primary": "",
    "postgres_standbys": STANDBYS,
    "postgres_listen_addresses": ["127.0.0.1", "10.0.0.10"],
    "postgres_replication_password": "hush",
}


def of_place(cluster: dict[str, Any], **values: Any) -> list[str]:
    facts = {"distribution_major_version": "13", "found": {"postgresql": {"clusters": [cluster]}}}
    server = Server("one", values=VALUES | values, facts=facts)
    return [f"{x.what} {x.command}" for x in POSTGRES.check_place(server)]


@pytest.mark.parametrize(
    ("cluster", "values", "said"),
    [
        ({}, {}, None),
        ({"is_standby": True}, {}, "its PostgreSQL is a standby have the inventory say"),
        ({"is_fenced": True, "runs": False}, {}, "is stopped for good"),
        ({"is_standby": True}, {"postgres_primary": "10.0.0.11"}, None),
        ({"is_fenced": True, "runs": False}, {"postgres_primary": "10.0.0.11"}, None),
        ({}, {"postgres_primary": "10.0.0.11"}, "is a primary itself if it was this app's"),
        ({}, {"postgres_primary": "10.0.0.11", "postgres_convert": True}, None),
        ({"addresses": ""}, {}, "has to restart once, to listen on 127.0.0.1"),
        ({"addresses": ""}, {"postgres_convert": True}, None),
        ({"addresses": "*"}, {}, None),
        ({"addresses": "", "runs": False}, {}, None),
        ({"addresses": ""}, {"postgres_standbys": []}, None),
    ],
)
def test_a_server_is_what_it_says_itself(cluster: Any, values: Any, said: str | None) -> None:
    found = of_place(CLUSTER | cluster, **values)
    assert len(found) == bool(said), found
    assert not said or said in found[0]


def test_two_names_are_not_one_slot() -> None:
    standbys = [{"name": "db-1", "address": "10.0.0.1"}, {"name": "db.1", "address": "10.0.0.2"}]
    server = Server("one", values=VALUES | {"postgres_standbys": standbys})
    (problem,) = POSTGRES.check_standbys(server)
    assert "one name for a slot" in problem.what


def test_both_have_one_debian() -> None:
    values = {"stack_db": ["one"], "stack_standby": ["two"]}
    one, two = (
        Server(name, values=values, facts={"distribution_major_version": release})
        for name, release in (("one", "13"), ("two", "12"))
    )
    (problem,) = stack.check_releases([one, two])
    assert "two with Debian 12, and one has Debian 13" in problem.what
    two.facts = one.facts
    assert list(stack.check_releases([one, two])) == []


# --- what is written ---------------------------------------------------------------------------


def test_each_standby_comes_in_for_replication_alone() -> None:
    claim = {"hba": [], "default_hba": [], "standbys": STANDBYS, "replication_user": 'a"b'}
    lines = postgresql_config.hba({"shop": claim}, "17")
    assert 'hostssl replication "a""b" 10.0.0.11/32 scram-sha-256' in lines
    assert postgresql_config.standbys({"shop": claim, "blog": claim, "old": {}}) == STANDBYS


# --- the status --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "is_lost", "size", "seconds", "copied", "level", "said"),
    [
        ("streaming", False, 0.0, 0.0, None, "green", "it streams, 0.0 MiB and 0.0 s behind"),
        ("streaming", False, 2.0**27, 1.0, None, "yellow", "128.0 MiB"),
        ("streaming", False, 10.0, 400.0, None, "red", "400.0 s behind"),
        ("", False, 2.0**20, 0.0, None, "red", "does not stream; 1 MiB are kept for it"),
        ("", True, 2.0**33, 0.0, None, "red", "it needs a new copy"),
        ("", False, 0.0, 0.0, "12 of 34 MiB", "yellow", "being copied, 12 of 34 MiB"),
    ],
)
def test_a_primary_tells_of_each_standby(
    state: str,
    is_lost: bool,
    size: float,
    seconds: float,
    copied: str | None,
    level: str,
    said: str,
) -> None:
    rows = [("two", state, is_lost, size, seconds, copied)]
    session = SimpleNamespace(rows=lambda _: rows)
    first, row = status_database.answering(session, "postgresql 17/main")
    assert first.says == "it answers, as the primary"
    assert (row.what, row.level) == ("standby two", level)
    assert said in row.says
    assert bool(row.next) is (level != "green" and not copied)
    assert status_database.is_asked(row.what)


@pytest.mark.parametrize(
    ("state", "size", "seconds", "level"),
    [
        ("streaming", 0.0, 9999.0, "green"),
        ("streaming", 10.0, 31.0, "yellow"),
        ("streaming", 2.0**31, 1.0, "red"),
        ("", 0.0, 0.0, "red"),
    ],
    ids=["all is there", "late", "far behind", "alone"],
)
def test_a_standby_tells_how_far_it_is(state: str, size: float, seconds: float, level: str) -> None:
    session = SimpleNamespace(rows=lambda _: [(state, size, seconds, "10.0.0.10")])
    (row,) = status_database.following(session, "postgresql 17/main")
    assert row.level == level
    assert "10.0.0.10" in row.says


def test_what_a_standby_has_is_backed_up_on_its_primary() -> None:
    assert status_database.keeps_data([CLUSTER])
    assert not status_database.keeps_data([CLUSTER | {"is_standby": True}])


def test_an_app_that_was_stopped_for_good_is_no_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_app, "FACTS", tmp_path)
    programs: dict[str, str] = {}
    monkeypatch.setattr(status_app.restarts, "slot_files", lambda _: programs)
    for name in ("shop.fact", "blog.fact", "shop.stopped"):
        (tmp_path / name).touch()
    assert [x.name for x in status_app.apps()] == ["blog"]
    # Since a run has brought it back.
    programs["shop"] = "/srv/shop/serving/slots.json"
    assert [x.name for x in status_app.apps()] == ["blog", "shop"]
