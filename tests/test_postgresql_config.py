"""The configuration of a PostgreSQL server, from what each of its owners claims."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import claims as claims_of
from ansible_collections.carafe.stack.plugins.module_utils import postgresql_config as config
from conftest import FACTS, ROOT, Role

MEASURED = {"memory_mb": 1024, "cores": 2}
PEER = {"type": "local", "database": "all", "user": "all", "method": "peer"}


def claim(**stated: Any) -> dict[str, Any]:
    """Return the claim of an owner that states this and nothing else."""
    given = {
        "connections": 0,
        "max_connections": 100,
        "settings": {},
        "listen_addresses": [],
        "hba": [],
        "default_hba": [],
        "client_addresses": [],
        "databases": [],
        "measured": MEASURED,
        **MEASURED,
    }
    return config.claim(given | stated)


def settings(has_connections: int = 100, **everybody: dict[str, Any]) -> dict[str, str]:
    """Return the settings as PostgreSQL reads them: name = 'value', where '' is a quote."""
    found = {}
    text = config.settings_text(config.settings(everybody, MEASURED, has_connections))
    for line in text.splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([a-z_.]+) = '((?:[^']|'')*)'", line)
            assert match, line
            found[match[1]] = match[2].replace("''", "'")
    assert config.parse_settings(text) == found
    return found


def conflicts(**everybody: dict[str, Any]) -> list[str]:
    once = {owner: config.once(claim) for owner, claim in everybody.items()}
    return list(claims_of.conflicts(once, config.FOLDER))


# What two owners make of one server.


@pytest.mark.parametrize(
    ("has", "wanted", "connections"),
    [
        (0, {"shop": claim(connections=40), "blog": claim(connections=50)}, "100"),
        (0, {"shop": claim(connections=40), "blog": claim(connections=60)}, "103"),
        (0, {"shop": claim(max_connections=200), "blog": claim(connections=60)}, "200"),
        (150, {"shop": claim(connections=40)}, "150"),
        (150, {"shop": claim(settings={"Max_Connections": 40})}, "40"),
    ],
    ids=["fits", "sum", "least", "never lowered", "stated"],
)
def test_the_connections_of_all_owners_fit(
    has: int, wanted: dict[str, Any], connections: str
) -> None:
    assert settings(has, **wanted)["max_connections"] == connections


def test_addresses_and_settings_are_those_of_all_owners() -> None:
    found = settings(
        shop=claim(listen_addresses=["192.0.2.2", "127.0.0.1"], settings={"jit": False}),
        blog=claim(listen_addresses=["127.0.0.1"], settings={"work_mem": "16MB"}),
    )
    assert found["listen_addresses"] == "127.0.0.1,192.0.2.2"
    assert (found["jit"], found["work_mem"]) == ("False", "16MB")


def hba(version: str = "17", **everybody: dict[str, Any]) -> list[list[str]]:
    """Return the words of the lines of pg_hba.conf, without those of the superuser."""
    text = config.hba_text(config.hba(everybody, version))
    lines = [hba_words(line) for line in text.splitlines() if line and not line.startswith("#")]
    assert lines[:2] == [
        ["host", "all,replication", "postgres", "all", "reject"],
        ["local", "all,replication", "postgres", "peer"],
    ]
    return lines[2:]


def hba_words(line: str) -> list[str]:
    """Split a line at its blanks; in quotes, one is part of a word."""
    return re.findall(r'(?:[^\s"]|"[^"]*")+', line)


def hba_tokens(word: str) -> list[tuple[str, bool]]:
    """Return the names in a word as PostgreSQL reads them, and whether each began with a quote."""
    found = re.findall(r'(?:[^",]|"(?:[^"]|"")*")+', word)
    inside = re.compile(r'"((?:[^"]|"")*)"')
    return [(inside.sub(lambda x: x[1].replace('""', '"'), x), x[0] == '"') for x in found]


SHOP = {"name": "shop", "owner": "shop-owner", "writers": ["shop"]}
SHOP_ROLES = '+"shop-owner",+"shop"'


def test_a_database_is_for_the_roles_that_it_was_made_for() -> None:
    assert hba(shop=claim(databases=[SHOP])) == [["local", '"shop"', SHOP_ROLES, "peer"]]


def test_from_afar_it_is_reached_from_the_clients_over_tls_and_with_a_password() -> None:
    given = {"client_addresses": ["192.0.2.7", "2001:db8::7", "198.51.100.0/24"]}
    lines = hba(shop=claim(databases=[SHOP], **given))
    ranges = ["192.0.2.7/32", "2001:db8::7/128", "198.51.100.0/24"]
    assert lines[1:] == [
        ["hostssl", '"shop"', SHOP_ROLES, each, "scram-sha-256"] for each in ranges
    ]


def test_one_owner_s_clients_reach_no_database_of_another() -> None:
    blog = {"name": "blog", "owner": "blog", "writers": None}
    lines = hba(
        shop=claim(databases=[SHOP]), blog=claim(databases=[blog], client_addresses=["192.0.2.7"])
    )
    assert [line[1] for line in lines if line[0] == "hostssl"] == ['"blog"']


def test_a_claim_of_an_older_carafe_keeps_its_lines_until_it_is_made_anew() -> None:
    older = claim(default_hba=[PEER])
    del older["databases"], older["client_addresses"]
    lines = hba(blog=older, shop=claim(databases=[SHOP]))
    assert lines == [["local", '"shop"', SHOP_ROLES, "peer"], ["local", "all", "all", "peer"]]


NAMES = ["all", "replication", "sameuser", "a, b", "  ", "+ops", "@file", "#1", "Ünï", 'q"u""o"']
NAMES += ["/slash", "/^a.*$", "/", "\\", "samerole", "it's", "'", '"', "0.0.0.0/0", "x" * 63]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("version", ["15", "17"])
def test_a_name_is_a_name_whatever_is_in_it(name: str, version: str) -> None:
    database = {"name": name, "owner": name, "writers": [f"{name}!"]}
    ((kind, where, who, method),) = hba(version, shop=claim(databases=[database]))
    assert (kind, method) == ("local", "peer")
    assert hba_tokens(who) == [(f"+{name}", False), (f"+{name}!", False)]
    ((found, is_quoted),) = hba_tokens(where)
    assert is_quoted
    if version == "17" and name.startswith("/"):
        assert re.search(found[1:], name)
        assert not [x for x in NAMES if x != name and re.search(found[1:], x)]
    else:
        assert found == name


def test_lines_of_pg_hba_are_those_of_all_owners_each_once_and_what_is_stated_first() -> None:
    ops = PEER | {"user": "+ops"}
    reject = {"type": "host", "database": "all", "user": "all", "method": "reject"}
    reject |= {"address": "0.0.0.0/0"}
    blog = claim(hba=[ops], default_hba=[PEER])
    shop = claim(hba=[reject, ops], default_hba=[PEER], databases=[SHOP, SHOP])
    assert hba(blog=blog, shop=shop) == [
        ["local", "all", '+"ops"', "peer"],
        ["host", "all", "all", "0.0.0.0/0", "reject"],
        ["local", '"shop"', SHOP_ROLES, "peer"],
        ["local", "all", "all", "peer"],
    ]


def test_what_follows_from_the_machine_is_not_stated_so_another_owner_s_word_counts() -> None:
    everybody = {"blog": claim(), "shop": claim(memory_mb=512, cores=8)}
    assert conflicts(**everybody) == []
    found = settings(**everybody)
    assert found["shared_buffers"] == f"{512 // 4 * 1024}kB"
    assert found["max_worker_processes"] == "8"


@pytest.mark.parametrize(
    ("stated", "other", "name"),
    [
        ({"memory_mb": 512}, {"memory_mb": 256}, "postgres_memory_mb is 512"),
        ({"cores": 4}, {"cores": 8}, "postgres_cores is 4"),
        (
            {"settings": {"Work_Mem": "7MB"}},
            {"settings": {"work_mem": "8MB", "jit": "on"}},
            "work_mem in postgres_settings is '7MB'",
        ),
    ],
)
def test_what_two_owners_state_differently_is_refused_by_both_names(
    stated: dict[str, Any], other: dict[str, Any], name: str
) -> None:
    (problem,) = conflicts(blog=claim(**stated), shop=claim(**other))
    assert problem.startswith(f"{name} for blog and ")
    assert " for shop, " in problem


@pytest.mark.parametrize("value", [8, "8"])
def test_the_same_value_is_no_conflict_however_it_is_written(value: object) -> None:
    assert (
        conflicts(
            blog=claim(settings={"max_wal_senders": 8}),
            shop=claim(settings={"max_wal_senders": value}),
        )
        == []
    )


# A claim that the server has not run with yet.


def test_a_claim_keeps_the_one_before_until_the_server_has_run_with_it(tmp_path: Path) -> None:
    proven, tried, again = (claim(connections=x) for x in (1, 2, 3))
    for wanted in (tried, again):
        noted = config.unproven(wanted, claims_of.stored(tmp_path, "shop") or proven)
        claims_of.claim(tmp_path, "shop", noted)
    config.settle(tmp_path, works=False)
    assert claims_of.stored(tmp_path, "shop") == proven
    claims_of.claim(tmp_path, "shop", config.unproven(tried, proven))
    config.settle(tmp_path, works=True)
    assert claims_of.stored(tmp_path, "shop") == tried
    assert config.unproven(tried, tried) == tried


def test_a_first_claim_that_the_server_does_not_start_with_is_gone(tmp_path: Path) -> None:
    claims_of.claim(tmp_path, "shop", config.unproven(claim(), None))
    config.settle(tmp_path, works=False)
    assert not list(tmp_path.glob("*.json"))


def test_a_claim_is_the_same_when_it_is_read_again() -> None:
    mine = claim(hba=[PEER | {"address": None, "options": ""}], settings={"a.b": 1.5})
    assert json.loads(json.dumps(mine)) == mine
    assert mine["hba"] == [PEER]


# The texts.


def test_quotes_in_a_setting_of_postgres_are_kept() -> None:
    stated = {"log_line_prefix": "it's 'quoted' %m ", "search_path": '"$user", public'}
    found = settings(shop=claim(settings=stated))
    assert {name: found[name] for name in stated} == stated


# What https://pgtune.leopard.in.ua says for: web application, SSD, and these machines.
PGTUNE = {
    "4 GB, 2 cores, 200 connections": (
        {"memory_mb": 4096, "cores": 2, "max_connections": 200},
        {
            "max_connections": "200",
            "shared_buffers": "1GB",
            "effective_cache_size": "3GB",
            "maintenance_work_mem": "256MB",
            "checkpoint_completion_target": "0.9",
            "wal_buffers": "16MB",
            "default_statistics_target": "100",
            "random_page_cost": "1.1",
            "effective_io_concurrency": "200",
            "work_mem": "5242kB",
            "min_wal_size": "1GB",
            "max_wal_size": "4GB",
            "max_worker_processes": None,
        },
    ),
    "8 GB, 4 cores, 200 connections": (
        {"memory_mb": 8192, "cores": 4, "max_connections": 200},
        {
            "shared_buffers": "2GB",
            "effective_cache_size": "6GB",
            "maintenance_work_mem": "512MB",
            "wal_buffers": "16MB",
            "work_mem": "5242kB",
            "max_worker_processes": "4",
            "max_parallel_workers_per_gather": "2",
            "max_parallel_workers": "4",
            "max_parallel_maintenance_workers": "2",
        },
    ),
    "64 GB, 16 cores, 200 connections": (
        {"memory_mb": 65536, "cores": 16, "max_connections": 200},
        {
            "shared_buffers": "16GB",
            "effective_cache_size": "48GB",
            "maintenance_work_mem": "2GB",
            "work_mem": "20971kB",
            "max_parallel_workers_per_gather": "4",
        },
    ),
}


def in_kb(value: str | None) -> str | int | None:
    match = re.fullmatch(r"(\d+)(kB|MB|GB)", value or "")
    return int(match[1]) * {"kB": 1, "MB": 1024, "GB": 1024**2}[match[2]] if match else value


@pytest.mark.parametrize(("machine", "advice"), PGTUNE.values(), ids=PGTUNE)
def test_postgres_is_tuned_as_pgtune_would(machine: dict[str, int], advice: dict[str, str]) -> None:
    found = settings(shop=claim(**machine))
    assert {k: in_kb(found.get(k)) for k in advice} == {k: in_kb(v) for k, v in advice.items()}


def test_half_of_the_memory_is_postgres_s() -> None:
    assert Role("postgres").value("postgres_memory_mb") == 1024


def test_a_setting_of_postgres_wins_over_what_the_role_computes() -> None:
    found = settings(shop=claim(settings={"work_mem": "16MB", "max_connections": 7}))
    assert found["work_mem"] == "16MB"
    assert found["max_connections"] == "7"


def test_rules_that_somebody_stated_keep_their_order_and_names() -> None:
    rules = [
        {"type": "local", "database": "all, the rest", "user": "+ops", "method": "peer"},
        {"type": "hostssl", "database": 'my "db', "user": "Ünï", "method": "scram-sha-256"},
        {"type": "host", "database": "all", "user": "#1", "method": "reject"},
    ]
    rules[1] |= {"address": "192.0.2.0/24", "options": 'map="a b"'}
    rules[2] |= {"address": "0.0.0.0/0"}
    assert hba(shop=claim(hba=rules)) == [
        ["local", '"all, the rest"', '+"ops"', "peer"],
        ["hostssl", '"my ""db"', '"Ünï"', "192.0.2.0/24", "scram-sha-256", 'map="a b"'],
        ["host", "all", '"#1"', "0.0.0.0/0", "reject"],
    ]


# The lists that a playbook fills and its user adds to.


def test_an_entry_of_the_user_s_is_merged_over_the_playbook_s() -> None:
    found = Role("postgres").value(
        "__postgres_databases",
        postgres_default_databases=[{"name": "shop", "owner": "o", "writers": ["a"]}],
        postgres_databases=[
            {"name": "shop", "extensions": ["citext"], "writers": ["b"]},
            {"name": "more", "owner": "x"},
        ],
    )
    assert found == [
        {"name": "shop", "owner": "o", "writers": ["a", "b"], "extensions": ["citext"]},
        {"name": "more", "owner": "x"},
    ]


def test_a_role_of_the_user_s_is_merged_over_the_playbook_s() -> None:
    found = Role("postgres").value(
        "__postgres_roles",
        postgres_default_roles=[{"name": "shop", "member_of": ["a"], "settings": {"role": "a"}}],
        postgres_roles=[{"name": "shop", "settings": {"statement_timeout": "5s"}}],
    )
    settings = {"role": "a", "statement_timeout": "5s"}
    assert found == [{"name": "shop", "member_of": ["a"], "settings": settings}]


def test_what_systemd_reads_of_it_is_the_role_s_files() -> None:
    files = Role("postgres").value("__postgres_unit_files")
    folder = Role("postgres").path / "files/systemd"
    for path, text in files.items():
        file = folder / path.removeprefix("/etc/systemd/system/")
        if file.name == "fit-sandbox":
            file = ROOT / "plugins/files/fit-sandbox"
        assert text == file.read_text()
    assert len(files) == 3


@pytest.mark.parametrize("release", ["12", "13"])
def test_an_extension_brings_its_package(release: str) -> None:
    version = {"12": "15", "13": "17"}[release]

    def packages(extensions: list[str], **more: object) -> list[str]:
        databases = [{"name": "a"}, {"name": "b", "extensions": extensions}]
        facts = FACTS | {"distribution_major_version": release}
        return Role("postgres").value(
            "postgres_packages", postgres_databases=databases, ansible_facts=facts, **more
        )[2:]

    assert packages(["pg_trgm", "uuid-ossp", "citext"]) == []
    found = packages(["vector", "postgis", "postgis_raster", "pg_stat_kcache", "plpython3u"])
    assert sorted(found) == [
        f"postgresql-{version}-pg-stat-kcache",
        f"postgresql-{version}-pgvector",
        f"postgresql-{version}-postgis-3",
        f"postgresql-plpython3-{version}",
    ]
    others = {"timescaledb": "timescaledb-2-postgresql-17", "own": ""}
    assert packages([*others], postgres_extension_packages=others) == [others["timescaledb"]]
