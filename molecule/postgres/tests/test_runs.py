"""What later runs of the role change, refuse and make up for; the last brings everything back."""

import functools
import re
from pathlib import Path

import pytest
import yaml

VARIABLES = yaml.safe_load((Path(__file__).parents[1] / "converge.yml").read_text())[0]["vars"]
SETTINGS = VARIABLES["postgres_settings"]
DATABASES = VARIABLES["postgres_databases"]
ROLES = {role["name"]: role for role in VARIABLES["postgres_roles"]}
BY_HAND = {
    "type": "hostssl",
    "database": "byhand",
    "user": "byhand",
    "address": "127.0.0.1/32",
    "method": "scram-sha-256",
}
WRONG_RULE = {
    "type": "host",
    "database": "all",
    "user": "all",
    "address": "10.0.0.0/99",
    "method": "reject",
}


@pytest.fixture(scope="module")
def role(converge):
    """Run the role with other values of some variables; what is installed stays."""
    return functools.partial(converge, postgres_manage_packages=False)


@pytest.fixture(scope="module")
def admin(host):
    """Run a statement as the superuser, over the unix socket."""

    def run(statement, database="shop"):
        return host.check_output(
            "runuser -u postgres -- psql -XqAt -v ON_ERROR_STOP=1 -c %s %s", statement, database
        )

    return run


@pytest.fixture(scope="module")
def started(admin):
    """Tell when the running server was started."""
    return lambda: admin("SELECT pg_postmaster_start_time()")


@pytest.fixture(scope="module")
def can_log_in(host):
    def can(user, password, database="shop"):
        url = f"postgresql://{user}:{password}@127.0.0.1/{database}?sslmode=require"
        done = host.run("psql -Xc 'SELECT 1' %s", url)
        assert done.rc == 0 or "password authentication failed" in done.stderr
        return done.rc == 0

    return can


@pytest.fixture(scope="module", autouse=True)
def bring_back(role):
    """Leave the server as converge.yml wants it, whatever a test has done to it."""
    yield
    changed, output = role()
    assert changed >= 0, output


@pytest.fixture(scope="module")
def reloaded(role, admin, started):
    """Run the role with changes that need no restart, beside things made by hand."""
    for statement in (
        "DROP DATABASE IF EXISTS byhand",
        "DROP ROLE IF EXISTS byhand",
        "CREATE ROLE byhand LOGIN PASSWORD 'byhand'",
        "CREATE DATABASE byhand OWNER byhand",
        "GRANT CONNECT ON DATABASE shop TO byhand",
    ):
        admin(statement, "postgres")
    admin(
        'SET ROLE "shop-owner"; SET search_path = public; DROP SEQUENCE IF EXISTS counter;'
        " CREATE SEQUENCE counter; DROP TABLE IF EXISTS early; CREATE TABLE early ()"
    )
    before = started()
    changed, output = role(
        "--diff",
        postgres_settings=SETTINGS | {"work_mem": "7MB"},
        postgres_hba=[BY_HAND],
        postgres_roles=[
            *(role for name, role in ROLES.items() if name not in ("shop-deploy", "neighbour")),
            {"name": "neighbour"},
            {
                "name": "shop-deploy",
                "password": "changed",
                "member_of": ["shop-owner"],
                "settings": {"role": "shop-owner"},
            },
        ],
        postgres_databases=[DATABASES[0] | {"writers": ["shop", "neighbour"]}, *DATABASES[1:]],
    )
    assert changed >= 0, output
    return {"changed": changed, "same server": started() == before, "output": output}


def test_a_setting_takes_effect_without_a_restart(reloaded, admin):
    assert admin("SHOW work_mem") == "7MB"
    assert reloaded["same server"]
    assert reloaded["changed"] == 2, reloaded["output"]  # the settings, and what follows


@pytest.mark.usefixtures("reloaded")
def test_a_changed_password_is_the_only_one(can_log_in):
    assert can_log_in("shop-deploy", "changed")
    assert not can_log_in("shop-deploy", "deploy")


@pytest.mark.usefixtures("reloaded")
def test_a_removed_password_is_refused(can_log_in):
    assert not can_log_in("neighbour", "neighbour")


@pytest.mark.usefixtures("reloaded")
def test_a_membership_that_is_not_asked_for_ends(admin):
    members = (
        "SELECT string_agg(pg_get_userbyid(roleid), ' ') FROM pg_auth_members"
        " WHERE pg_get_userbyid(member) = 'shop-deploy'"
    )
    assert admin(members) == "shop-owner"


@pytest.mark.usefixtures("reloaded")
def test_a_setting_of_a_role_that_is_not_asked_for_ends(admin):
    settings = (
        "SELECT setconfig FROM pg_db_role_setting JOIN pg_roles r ON setrole = r.oid"
        " WHERE rolname = 'shop-deploy'"
    )
    assert admin(settings) == "{role=shop-owner}"


@pytest.mark.usefixtures("reloaded")
@pytest.mark.parametrize(
    ("kind", "name", "privilege"), [("table", "early", "UPDATE"), ("sequence", "counter", "USAGE")]
)
def test_a_new_writer_may_use_what_was_there_before(admin, kind, name, privilege):
    assert admin(f"SELECT has_{kind}_privilege('neighbour', 'public.{name}', '{privilege}')") == "t"


@pytest.mark.usefixtures("reloaded")
def test_what_was_made_by_hand_is_left_alone(admin, can_log_in):
    owner = admin("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'byhand'")
    assert owner == "byhand"
    assert can_log_in("byhand", "byhand", "byhand")


@pytest.mark.usefixtures("reloaded")
def test_nobody_keeps_a_way_into_a_database_that_is_not_theirs(admin):
    assert admin("SELECT has_database_privilege('byhand', 'shop', 'CONNECT')") == "f"


def test_the_output_says_what_was_changed(reloaded):
    assert "set password of shop-deploy" in reloaded["output"]


EVERYBODY = {"type": "local", "database": "all", "user": "all", "method": "peer"}


@pytest.mark.usefixtures("reloaded")
def test_who_is_connected_stays_so_while_all_lines_become_lines_of_databases(
    role, admin, started, host, eventually
):
    """Until then a server had one line for all, as Debian has it."""
    changed, output = role(postgres_default_hba=[EVERYBODY])
    assert changed >= 1, output
    host.check_output("id neighbour >/dev/null 2>&1 || useradd neighbour")
    admin("GRANT CONNECT ON DATABASE byhand TO neighbour", "postgres")
    enter = "runuser -u neighbour -- psql -XAtc %s byhand"
    assert host.check_output(enter, "SELECT 1") == "1"
    before = started()
    host.check_output(
        "rm -f /run/go-on; ((until [ -e /run/go-on ]; do sleep .1; done; echo SELECT 7)"
        f" | {enter.replace('-XAtc %s', '-XAt')}) >/run/still-there 2>&1 &"
    )
    query = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'neighbour'"
    eventually(lambda: admin(query) == "1")
    for options in ["--check"], []:
        changed, output = role(*options)
        assert changed >= 1, output
        assert re.search(r"postgres can connect any more to [^:]*byhand", " ".join(output.split()))
    assert started() == before
    assert "no pg_hba.conf entry" in host.run(enter, "SELECT 1").stderr
    assert admin(query) == "1"
    host.check_output("touch /run/go-on; until [ -s /run/still-there ]; do sleep .1; done")
    assert host.check_output("cat /run/still-there") == "7"
    changed, output = role()
    assert changed == 0, output
    assert "any more" not in output


# What an owner may do to a database, so that others who enter it run the owner's code: views in the
# place of catalogs, functions and operators in the place of PostgreSQL's, and settings.
CATALOGS = ("pg_class", "pg_namespace", "pg_extension", "pg_default_acl", "pg_roles", "pg_database")
OPERATORS = (
    ("name", "=", "name"),
    ("name", "=", "text"),
    ("name", "<>", "name"),
    ("name", "!~", "text"),
    ('"char"', "=", '"char"'),
    ("oid", "=", "oid"),
)
PLANTED = [
    "DROP SCHEMA IF EXISTS evil CASCADE",  # of a run that was killed
    "CREATE SCHEMA evil",
    """CREATE FUNCTION evil.seize() RETURNS boolean LANGUAGE plpgsql AS $$
    BEGIN
      BEGIN EXECUTE 'RESET ROLE'; EXCEPTION WHEN OTHERS THEN NULL; END;
      EXECUTE 'ALTER ROLE "shop-deploy" SUPERUSER'; RETURN true;
    EXCEPTION WHEN OTHERS THEN RETURN true; END $$""",
    *(
        f"CREATE VIEW evil.{name} AS SELECT * FROM pg_catalog.{name} WHERE evil.seize()"
        for name in CATALOGS
    ),
    "CREATE VIEW evil.item AS SELECT 1 AS id WHERE evil.seize()",
    "CREATE FUNCTION evil.pg_get_userbyid(oid) RETURNS name LANGUAGE sql AS"
    " $$SELECT current_user WHERE evil.seize()$$",
    *(
        f"CREATE FUNCTION evil.has_{kind}_privilege(oid, oid, text) RETURNS boolean LANGUAGE sql"
        " AS $$SELECT evil.seize()$$"
        for kind in ("table", "schema", "sequence")
    ),
    *(
        f"CREATE FUNCTION evil.is{i}({left}, {right}) RETURNS boolean LANGUAGE sql AS"
        f" $$SELECT evil.seize()$$; CREATE OPERATOR evil.{word}"
        f" (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = evil.is{i})"
        for i, (left, word, right) in enumerate(OPERATORS)
    ),
    "ALTER DATABASE shop SET search_path = evil, public, pg_catalog",
]
BLOCKING = [
    "ALTER DATABASE shop SET role = 'shop-owner'",
    "ALTER DATABASE shop SET default_transaction_read_only = on",
    "ALTER DATABASE shop SET statement_timeout = 1",
    "ALTER DATABASE shop SET idle_session_timeout = 1",
    "ALTER DATABASE shop SET local_preload_libraries = 'none'",
]


@pytest.fixture
def planted(host, admin):
    """What the role that deploys could leave in its database, made with its own rights."""
    host.check_output("id shop-deploy >/dev/null 2>&1 || useradd shop-deploy")
    as_owner = "runuser -u shop-deploy -- psql -XqAt -v ON_ERROR_STOP=1 -c %s shop"
    host.check_output(as_owner, "; ".join(PLANTED))
    yield lambda statement: host.check_output(as_owner, statement)
    admin('ALTER DATABASE shop RESET ALL; ALTER ROLE "shop-deploy" NOSUPERUSER', "postgres")
    admin("DROP SCHEMA evil CASCADE")


@pytest.fixture
def is_seized(admin):
    query = "SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = 'shop-deploy'"
    return lambda: admin(query, "postgres") == "t"


def test_what_is_planted_is_code_of_whoever_finds_it(planted, host, is_seized):
    """Proof that the trap works: whoever sets the path to it falls in."""
    host.run("runuser -u postgres -- psql -Xc 'SET search_path = evil; TABLE item' shop")
    assert is_seized()


@pytest.mark.parametrize(
    "typed",
    [
        "SELECT count(*) FROM pg_class WHERE relname = 'item'",
        "SELECT nspname = 'x'::text, nspname <> nspname FROM pg_namespace",
        "SELECT pg_get_userbyid(datdba) FROM pg_database",
        "TABLE item",
        "SELECT seize()",
        r"\d",
        r"\d evil.item",
        r"\dt public.*",
        r"\dn+",
        r"\df",
        r"\l",
        r"\dx",
    ],
)
def test_what_the_superuser_types_finds_nothing_of_the_owner_s(planted, host, is_seized, typed):
    host.run("timeout 20 runuser -u postgres -- psql -Xc %s shop", typed)
    assert not is_seized()


def test_a_run_does_its_work_in_a_database_full_of_traps(planted, role, admin, is_seized):
    planted("; ".join(BLOCKING))
    changed, output = role(
        postgres_databases=[
            DATABASES[0]
            | {"writers": ["shop", "nobody", "neighbour"], "extensions": ["pg_trgm", "hstore"]},
            *DATABASES[1:],
        ]
    )
    assert changed == 2, output
    assert not is_seized()
    admin("ALTER DATABASE shop RESET ALL", "postgres")
    assert admin("SELECT has_schema_privilege('neighbour', 'evil', 'USAGE')") == "t"
    assert admin("SELECT count(*) FROM pg_extension WHERE extname = 'hstore'") == "1"


# Fewer clients need a restart, and so does a setting that is taken away.
LATER = {
    "postgres_settings": {"work_mem": "7MB", "max_connections": 40},
    "postgres_listen_addresses": [],
}


def test_a_restart_that_is_forbidden_is_announced_each_time(role, started):
    before = started()
    variables = LATER | {"postgres_allow_restart": False}
    changed, output = role(**variables)
    assert changed > 0, output
    again, output = role(**variables)
    assert again == 0, output
    due = "restart of PostgreSQL is due for huge_pages, listen_addresses, max_connections"
    assert due in " ".join(output.split())
    assert started() == before


def test_a_restart_brings_what_waited_into_force(role, admin, started, host):
    before = started()
    changed, output = role(**LATER)
    assert changed == 1, output
    assert started() != before
    assert admin("SHOW max_connections") == "40"
    assert admin("SHOW huge_pages") == "try"
    assert not host.socket("tcp://5432").is_listening


@pytest.mark.either_release
@pytest.mark.parametrize(
    ("variables", "reasons"),
    [
        ({"postgres_settings": {"work_mem": "plenty"}}, ["work_mem", "postgres_settings"]),
        ({"postgres_settings": {"wrok_mem": "8MB"}}, ["wrok_mem", "postgres_settings"]),
        (
            {"postgres_settings": {"work_mem": "7MB", "shared_buffers": "8000GB"}},
            ["shared_buffers", "postgres_settings"],
        ),
        ({"postgres_listen_addresses": ["192.0.2.1"]}, ["192.0.2.1", "postgres_listen_addresses"]),
        ({"postgres_hba": [WRONG_RULE]}, ["pg_hba.conf, line", "10.0.0.0/99", "postgres_hba"]),
    ],
    ids=["value", "name", "size", "address", "hba"],
)
def test_a_wrong_setting_is_explained_and_the_server_stays_safe(
    role, admin, host, eventually, variables, reasons
):
    changed, output = role(**LATER | variables)
    assert changed == -1
    explanation = output[output.rindex("[ERROR]") :]
    assert not [reason for reason in reasons if reason not in explanation], output
    assert admin("SHOW work_mem") == "7MB"
    # What the failed run left on the disk must do for the next start.
    host.check_output("systemctl restart postgresql")
    eventually(lambda: admin("SHOW work_mem") == "7MB")


@pytest.mark.either_release
@pytest.mark.parametrize("file", ["conf.d/carafe.conf", "pg_hba.conf"])
def test_a_lost_reload_is_made_up_for(role, admin, host, file):
    before = admin("SELECT pg_conf_load_time()")
    host.check_output(f"touch -d '+2 seconds' /etc/postgresql/*/main/{file}")
    changed, output = role(**LATER)
    assert changed >= 1, output
    assert admin("SELECT pg_conf_load_time()") != before


@pytest.mark.newest_release
def test_a_failure_of_the_contents_is_explained_without_a_password(role, host):
    changed, output = role(
        "-vvv",
        postgres_roles=[{"name": "fresh", "password": "S3cr3t-never-shown"}],
        postgres_databases=[{"name": "orphan", "owner": "no such role"}],
    )
    assert changed == -1
    assert 'role "no such role" does not exist' in " ".join(output.split())
    assert "postgres_databases in group_vars" in " ".join(output.split())
    assert "S3cr3t-never-shown" not in output
    # Ansible's modules write what they were given there, and one with a quote in it otherwise.
    journal = host.check_output("journalctl --no-pager")
    assert "S3cr3t-never-shown" not in journal
    assert "sécret" not in journal


@pytest.mark.newest_release
def test_a_corrected_run_goes_on_where_the_failed_one_stopped(role, admin):
    changed, output = role(
        postgres_roles=[{"name": "fresh", "password": "S3cr3t-never-shown"}],
        postgres_databases=[{"name": "orphan", "owner": "fresh"}],
    )
    assert changed >= 0, output
    owner = admin("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'orphan'")
    assert owner == "fresh"
