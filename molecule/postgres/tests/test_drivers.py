"""What a password or a name has in it, every driver comes in by the URL that the wiring makes."""

import json
import random
import re
import string
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from testinfra.host import Host

REPOSITORY = Path(__file__).parents[3]
WIRING = DataLoader().load_from_file(
    str(REPOSITORY / "playbooks/group_vars/all/stack.yml"), trusted_as_template=True
)
PROGRAM = (Path(__file__).parents[1] / "files/drivers.py").read_text()
QUESTIONS = (REPOSITORY / "plugins/module_utils/database_questions.py").read_text() + "\nmain()\n"
VARIABLES = yaml.safe_load((Path(__file__).parents[1] / "converge.yml").read_text())[0]["vars"]
PASSWORDS = {role["name"]: role.get("password") for role in VARIABLES["postgres_roles"]}
SIGNS = [*string.punctuation, " ", "ü"]
# How a URL of each driver begins.
DRIVERS = {
    "psycopg2": "postgresql",
    "psycopg": "postgresql",
    "asyncpg": "postgresql",
    "sqlalchemy": "postgresql",
    "sqlalchemy psycopg2": "postgresql+psycopg2",
    "sqlalchemy psycopg": "postgresql+psycopg",
    "sqlalchemy_asyncpg": "postgresql+asyncpg",
}
VERSIONS = ("2.0", "2.1")


def encoded(text: str) -> str:
    return quote(text, safe="")


def shuffled(seed: int) -> str:
    return "".join(random.Random(seed).sample(SIGNS, len(SIGNS)))


def url(
    driver: str, way: str, role: str, password: str, database: str, servers: Sequence[str] = ()
) -> str:
    """Return what an app gets as DATABASE_URL; names are encoded by whoever writes one."""
    known = {
        "stack_database": DRIVERS[driver],
        "stack_database_port": 5432,
        "stack_has_internal_tls": False,
        "stack_db": ["here"],
        "stack_standby": [],
        "stack_absent": [],
        # The second is a server that is down.
        "hostvars": {
            "here": {"private_address": "127.0.0.1"},
            "down": {"private_address": "127.0.0.2"},
        },
        "app_user": role,
        "app_name": database,
        "database_password": password,
    }
    if servers:
        known["stack_db"], known["stack_standby"] = servers[:1], servers[1:]
    if driver == "asyncpg":
        # As docs/how-to/databases.md has it, where there is no CA.
        known["stack_database_options"] = "sslmode=require"
        known["stack_database_failover"] = "target_session_attrs=read-write"
    templar = Templar(DataLoader(), WIRING | known)
    return templar.template(templar.available_variables[f"stack_database_{way}"])


@pytest.fixture
def led(host: Host) -> Callable[..., list[object]]:
    """Come in by URLs, with one version of SQLAlchemy, as a user; where has each led?"""

    def run(version: str, cases: list[tuple[str, str]], user: str = "root") -> list[object]:
        words = "runuser -u %s -- env PYTHONPATH=/opt/drivers/%s python3 -c %s"
        cases_as_json = json.dumps([(driver.partition(" ")[0], url) for driver, url in cases])
        said = host.check_output(f"printf %%s %s | {words}", cases_as_json, user, version, PROGRAM)
        return json.loads(said)

    return run


@pytest.fixture
def generated(host: Host) -> Iterator[dict[str, str]]:
    """Roles that come into the database shop, and their passwords: all signs in whatever order.

    Each connection costs both sides a handshake, so there are a few.
    """
    roles = {shuffled(seed): f"{shuffled(seed + 100)}%2f%" for seed in range(2)}
    roles |= {shuffled(seed).replace(",", ""): shuffled(seed) for seed in range(2, 4)}

    def sql(*statements: str) -> None:
        psql = "runuser -u postgres -- psql -Xq -v ON_ERROR_STOP=1"
        host.check_output(f"printf %%s %s | {psql}", ";".join(statements))

    names = ['"{}"'.format(name.replace('"', '""')) for name in roles]
    passwords = ["'{}'".format(password.replace("'", "''")) for password in roles.values()]
    sql(
        *(
            f"CREATE ROLE {name} LOGIN PASSWORD {password} IN ROLE report"
            for name, password in zip(names, passwords, strict=True)
        )
    )
    yield roles
    sql(*(f"DROP ROLE {name}" for name in names))


def asyncpg_fails(driver: str, role: str) -> bool:
    """Tell what docs/how-to/databases.md says of asyncpg: it does not escape a role's name."""
    return "asyncpg" in driver and "," in role


def drivers_with(version: str) -> list[str]:
    """Return the drivers that a version of SQLAlchemy is tried with, and those without, once."""
    return [x for x in DRIVERS if version == VERSIONS[0] or "sqlalchemy" in x]


@pytest.mark.newest_release
@pytest.mark.parametrize("version", VERSIONS)
def test_whatever_a_password_has_in_it_the_driver_comes_in(led, generated, version):
    cases = [(driver, role) for driver in drivers_with(version) for role in generated]
    urls = [
        (driver, url(driver, "tls", encoded(role), generated[role], "shop"))
        for driver, role in cases
    ]
    found = dict(zip(cases, led(version, urls), strict=True))
    assert {
        case: where
        for case, where in found.items()
        if where != [case[1], "shop"] and not asyncpg_fails(*case)
    } == {}
    # As soon as that is mended, its line in the documentation is to go.
    assert all("malformed SCRAM" in found[case] for case in cases if asyncpg_fails(*case))


@pytest.mark.newest_release
@pytest.mark.parametrize("version", VERSIONS)
def test_whatever_a_name_has_in_it_the_driver_finds_the_database(led, version):
    expected, plain, by_word = [], [], []
    for entry in VARIABLES["postgres_databases"]:
        role, database = entry["owner"], entry["name"]
        for driver in drivers_with(version):
            if encoded(database) == database or asyncpg_fails(driver, role):
                continue
            words = (driver, "tls", encoded(role), PASSWORDS[role])
            expected.append((driver, [role, database]))
            plain.append((driver, url(*words, encoded(database))))
            if "sqlalchemy" in driver:
                word = "database" if "asyncpg" in driver else "dbname"
                by_word.append((driver, f"{url(*words, '')}&{word}={encoded(database)}"))
    found = led(version, by_word + plain)
    assert found[: len(by_word)] == [where for driver, where in expected if "sqlalchemy" in driver]
    # As docs/how-to/databases.md says of SQLAlchemy 2.0: in its place it leaves the name encoded.
    for (driver, right), where in zip(expected, found[len(by_word) :], strict=True):
        if version == "2.0" and "sqlalchemy" in driver:
            assert "no pg_hba.conf entry" in where
        else:
            assert where == right


@pytest.mark.newest_release
@pytest.mark.parametrize("version", VERSIONS)
def test_every_driver_comes_in_over_the_unix_socket(led, host, version):
    host.check_output("id shop >/dev/null 2>&1 || useradd shop")
    cases = [(x, url(x, "socket", "shop", "", "shop")) for x in drivers_with(version)]
    assert led(version, cases, user="shop") == [["shop", "shop"]] * len(cases)


@pytest.mark.newest_release
@pytest.mark.parametrize("version", VERSIONS)
def test_of_several_servers_every_driver_finds_the_one_that_is_there(led, version):
    cases = [
        (x, url(x, "tls", "shop-deploy", "deploy", "shop", servers))
        for x in drivers_with(version)
        for servers in (["down", "here"], ["here", "down"])
    ]
    assert led(version, cases) == [["shop-deploy", "shop"]] * len(cases)


# Two transactions: one of the app's own role, one of a role that whoever migrates is no member of.
HOLD = f"""
import psycopg2, signal
kept = []
for user, password in {[(user, PASSWORDS[user]) for user in ("shop", "report")]}:
    way = dict(host="127.0.0.1", dbname="shop", user=user, password=password)
    kept.append(psycopg2.connect(application_name="the " + user, **way))
    kept[-1].cursor().execute("SELECT count(*)\\n  FROM back.held")
signal.pause()
"""
# Each alone, as an app has it.
ALONE = """
import importlib, sys
real = importlib.import_module
def alone(name, *rest):
    if name in ("psycopg", "psycopg2", "asyncpg") and name != {!r}:
        raise ImportError(name)
    return real(name, *rest)
importlib.import_module = alone
"""


@pytest.fixture
def held(host: Host, eventually: Callable[..., None]) -> Iterator[None]:
    """A table that two others have read, in transactions that go on, and an index half made."""
    psql = "runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 shop -c %s"
    host.check_output(
        psql,
        'SET ROLE "shop-owner"; CREATE SCHEMA IF NOT EXISTS back; CREATE TABLE back.held ();'
        " CREATE INDEX broken ON back.held ((1)); RESET ROLE;"
        " UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'back.broken'::regclass",
    )
    host.check_output("printf %%s %s >/run/held.py", HOLD)
    host.check_output("systemd-run --quiet --collect --unit=held python3 /run/held.py")
    old = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE now() - xact_start > '3 s' AND application_name ~ '^the '"
    )
    eventually(lambda: host.check_output(psql, old) == "2")
    yield
    host.check_output("systemctl stop held")
    host.check_output(psql, "DROP TABLE back.held")


@pytest.mark.newest_release
@pytest.mark.usefixtures("held")
def test_whoever_migrates_learns_who_is_in_the_way_on_another_server(host: Host) -> None:
    for driver in ("psycopg", "psycopg2", "asyncpg"):
        way = url(driver, "tls", "shop-deploy", "deploy", "shop")
        ask = "DATABASE_URL=%s PYTHONPATH=/opt/drivers/2.0 python3 -c %s %s"
        program = ALONE.format(driver) + QUESTIONS.replace("from __future__ import annotations", "")
        said = host.check_output(ask, way, program, "others")
        assert re.search(
            r"process \d+ of shop \(the shop\), idle in transaction, since [\d:]+ UTC, for \d+ s:"
            r" SELECT count\(\*\) FROM back.held",
            said,
        )
        assert re.search(r"process \d+ of report \(the report\), whose query only the", said)
    left = host.check_output(ask, way, program, "invalid")
    assert left.endswith("DROP INDEX CONCURRENTLY back.broken;")
    nobody = host.check_output(ask, way.replace(":deploy@", ":wrong@"), program, "others")
    assert "Who is in the way, PostgreSQL says on the database's server: sudo -u postgres" in nobody
    assert host.check_output(ask, "sqlite:///x", program, "others") == ""
