"""The server as converge.yml leaves it: who may come in, who may do what, what survives."""

import json
import re

import pytest

# A client on the server: psql would keep the password from being given as it is.
CONNECT = """
import json, sys, psycopg2
user, password, database, sslmode, statement = json.load(sys.stdin)
try:
    connection = psycopg2.connect(
        host="127.0.0.1", user=user, password=password, dbname=database, sslmode=sslmode,
        connect_timeout=10, client_encoding="UTF8",
    )
    connection.autocommit = True
    cursor = connection.cursor()
    cursor.execute(statement)
    print(json.dumps(cursor.fetchall() if cursor.description else [], default=str))
except psycopg2.Error as error:
    sys.exit(f"refused: {error}")
"""
STRANGE = 'it\'s 100% "Ünï=cödé"'
PASSWORDS = {
    "shop": 'it\'s 100% "sécret" \\ $x',
    STRANGE: "ﬁ 密码 😀",
    "report": "r%20e/p:o@r?t#",
    "neighbour": "neighbour",
    "shop-deploy": "deploy",
    "replication": "a-keyword",
    "@a, +b": "a-list",
    "/^.*$": "a-pattern",
}
DATABASES = ["shop", STRANGE, "all", "/^.*$", "postgres", "template1"]
# Who may enter which of the role's databases.
WAYS = [
    ("shop", "shop"),
    ("shop-deploy", "shop"),
    ("report", "shop"),
    (STRANGE, STRANGE),
    ("replication", "all"),
    ("@a, +b", "/^.*$"),
    ("/^.*$", "/^.*$"),
]


@pytest.fixture
def query(host):
    """Run a statement over TCP as a client does; the rows, or None and the server's reason."""

    def run(user, statement, database="shop", password=None, sslmode="require"):
        arguments = json.dumps([user, password or PASSWORDS[user], database, sslmode, statement])
        command = host.run("printf %%s %s | python3 -c %s", arguments, CONNECT)
        return (json.loads(command.stdout) if command.rc == 0 else None), command.stderr

    return run


@pytest.fixture
def admin(host):
    """Run a statement as the superuser, over the unix socket."""

    def run(statement, database="shop"):
        return host.check_output(
            "runuser -u postgres -- psql -XqAt -v ON_ERROR_STOP=1 -c %s %s", statement, database
        )

    return run


@pytest.fixture
def table(admin):
    """A table that the owner makes when everything is set up already, and its sequence."""
    admin(
        'SET ROLE "shop-owner"; DROP TABLE IF EXISTS public.item;'
        " DROP SCHEMA IF EXISTS back CASCADE;"
        " CREATE TABLE public.item (id serial PRIMARY KEY, name text);"
        " CREATE SCHEMA back; CREATE TABLE back.item (id serial PRIMARY KEY, name text)"
    )


@pytest.mark.parametrize(("user", "database"), WAYS)
def test_a_password_opens_the_role_s_own_database_over_tls(query, user, database):
    rows, reason = query(user, "SELECT session_user, current_database()", database)
    assert rows == [[user, database]], reason


def test_a_wrong_password_is_refused(query):
    assert "password authentication failed" in query("shop", "SELECT 1", password="wrong")[1]


def test_a_connection_without_tls_is_refused(query):
    assert "no encryption" in query("shop", "SELECT 1", sslmode="disable")[1]


def test_a_role_without_a_password_is_refused(query):
    assert "authentication failed" in query("nobody", "SELECT 1", password="null")[1]


# Where somebody's own lines go on, one says no before they are asked.
NO_LINE = r"no pg_hba\.conf entry|pg_hba\.conf rejects connection"


@pytest.mark.parametrize("database", DATABASES)
def test_a_role_finds_no_other_database_open(query, database):
    for user in PASSWORDS:
        if (user, database) not in WAYS:
            assert re.search(NO_LINE, query(user, "SELECT 1", database)[1])


def test_no_role_has_the_privilege_to_enter_another_database_either(admin):
    found = admin(
        "SELECT d.datname, r.rolname FROM pg_database d, pg_roles r WHERE NOT r.rolsuper"
        " AND r.rolcanlogin AND d.datallowconn AND (has_database_privilege(r.oid, d.oid, 'CONNECT')"
        " OR has_database_privilege(r.oid, d.oid, 'TEMPORARY'))"
    )
    pairs = {tuple(line.split("|")) for line in found.splitlines()}
    assert {pair for pair in pairs if pair[0] in DATABASES} == {
        (database, user) for user, database in [*WAYS, ("nobody", "shop")]
    }


def test_the_superuser_comes_in_over_the_unix_socket_only(query, admin):
    admin("ALTER ROLE postgres PASSWORD 'right'")
    try:
        for database in ("postgres", "shop"):
            reason = query("postgres", "SELECT 1", database, password="right")[1]
            assert "pg_hba.conf rejects connection" in reason
    finally:
        admin("ALTER ROLE postgres PASSWORD NULL")


def test_passwords_are_kept_as_scram(admin):
    assert (
        admin("SELECT count(*) FROM pg_authid WHERE rolpassword NOT LIKE 'SCRAM-SHA-256$%'") == "0"
    )


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("name", ["public.item", "back.item"])
def test_a_writer_reads_and_writes_the_rows_of_tables_made_later(query, name):
    rows, reason = query(
        "shop",
        f"INSERT INTO {name} (name) VALUES ('a'); UPDATE {name} SET name = 'b';"
        f" DELETE FROM {name} WHERE name = 'c'; SELECT name FROM {name}",
    )
    assert rows == [["b"]], reason


# What apps do with rows, beside the four that everybody knows.
@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("name", ["public.item", "back.item"])
@pytest.mark.parametrize(
    "statement",
    [
        "TRUNCATE {}",
        "BEGIN; LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE; COMMIT",
        "SELECT setval(pg_get_serial_sequence('{}', 'id'), 7), nextval('{}_id_seq')",
        "INSERT INTO {} (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET name = 'x' RETURNING id",
        "SELECT * FROM {} FOR UPDATE SKIP LOCKED",
        "MERGE INTO {} t USING (VALUES (1)) s(id) ON t.id = s.id WHEN NOT MATCHED THEN"
        " INSERT (id) VALUES (s.id)",
        "CREATE TEMP TABLE mine AS SELECT * FROM {}",
        "SELECT pg_advisory_lock(1), pg_notify('a', 'b'), lo_unlink(lo_from_bytea(0, 'x')) FROM {}",
        "DECLARE c CURSOR WITH HOLD FOR SELECT * FROM {}",
    ],
)
def test_what_apps_do_with_rows_works_for_a_writer(query, name, statement):
    rows, reason = query("shop", statement.replace("{}", name))
    assert rows is not None, reason


def test_a_writer_keeps_the_owner_s_tables_in_shape_from_postgresql_17_on(query, admin):
    admin(
        'SET ROLE "shop-owner"; DROP MATERIALIZED VIEW IF EXISTS public.seen;'
        " CREATE MATERIALIZED VIEW public.seen AS SELECT 1 AS one"
    )
    since = int(admin("SHOW server_version_num")) >= 170000
    for statement in ("REFRESH MATERIALIZED VIEW seen", "ANALYZE seen", "REINDEX TABLE seen"):
        rows, reason = query("shop", statement)
        if since or statement.startswith("ANALYZE"):
            # Before, PostgreSQL skips what it may not analyze, with a warning.
            assert rows == [], reason
        else:
            assert "must be owner" in reason


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("name", ["public.item", "back.item"])
def test_a_reader_reads_what_the_owner_makes_later_and_writes_nothing(query, name):
    assert query("report", f"SELECT * FROM {name}")[0] == []
    for statement in (
        f"INSERT INTO {name} (name) VALUES ('a')",
        f"DELETE FROM {name}",
        f"TRUNCATE {name}",
        f"SELECT nextval('{name}_id_seq')",
        f"CREATE TEMP TABLE mine AS SELECT * FROM {name}",
        "CREATE TABLE mine ()",
    ):
        assert "permission denied" in query("report", statement)[1], statement


def test_a_database_sorts_by_its_language(query):
    letters = "SELECT x FROM unnest(ARRAY['z', 'Z', 'ä', 'a', 'B']) x ORDER BY x"
    assert query("shop", letters)[0] == [["a"], ["ä"], ["B"], ["z"], ["Z"]]
    assert query(STRANGE, letters, STRANGE)[0] == [["B"], ["Z"], ["a"], ["z"], ["ä"]]


def test_an_extension_brings_its_package(query):
    assert query("shop", "SELECT '10.0.0.1'::ip4 + 1")[0] == [["10.0.0.2"]]


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE public.mine ()",
        "CREATE TABLE back.mine ()",
        "CREATE SCHEMA mine",
        "ALTER TABLE public.item ADD x text",
        "DROP TABLE public.item",
        'SET ROLE "shop-owner"',
        "CREATE ROLE mine",
    ],
)
def test_a_writer_changes_no_table_itself(query, statement):
    rows, reason = query("shop", statement)
    assert rows is None
    assert "must be owner" in reason or "permission denied" in reason, reason


def test_who_deploys_acts_as_the_owner(query):
    rows, reason = query("shop-deploy", "CREATE TABLE made (); SELECT current_user")
    assert rows == [["shop-owner"]], reason
    rows, reason = query("shop-deploy", "DROP TABLE made; SELECT tableowner FROM pg_tables LIMIT 0")
    assert rows == [], reason


def test_sessions_start_with_the_role_s_settings(query):
    rows, reason = query(
        "shop-deploy", "SELECT current_setting('timezone'), current_setting('search_path')"
    )
    assert rows == [["UTC", '"$user", public']], reason


def test_memberships_are_as_asked(admin):
    names = admin(
        "SELECT pg_get_userbyid(roleid) FROM pg_auth_members"
        " WHERE pg_get_userbyid(member) = 'shop-deploy'"
    )
    assert sorted(names.split()) == ["shop", "shop-guests", "shop-owner"]


def test_the_extension_works_for_the_writer(query):
    rows, reason = query("shop", "SELECT similarity('carafe', 'carafe')")
    assert rows == [[1.0]], reason


def test_settings_arrive_as_given(query):
    rows, reason = query("shop", "SELECT current_setting('application_name')")
    assert rows == [['it\'s a % "name"']], reason


def test_peer_admits_the_operating_system_s_user_and_no_other(host):
    host.check_output("id neighbour >/dev/null 2>&1 || useradd neighbour")
    as_neighbour = "runuser -u neighbour -- psql -XAt -c 'SELECT session_user' "
    assert re.search(NO_LINE, host.run(as_neighbour + "shop").stderr)
    assert "no pg_hba.conf entry" in host.run(as_neighbour + "postgres").stderr
    assert "Peer authentication failed" in host.run(as_neighbour + "-U shop shop").stderr


def test_no_other_user_reads_the_files(host):
    version = host.check_output("ls /etc/postgresql")
    folder = f"/etc/postgresql/{version}/main"
    assert "Permission denied" in host.run(f"runuser -u nobody cat {folder}/pg_hba.conf").stderr


@pytest.fixture
def postmaster(host):
    """Tell the process id of the running server, 0 while there is none that answers."""

    def pid():
        version = host.check_output("ls /etc/postgresql")
        answers = host.run("runuser -u postgres -- psql -XAtc 'SELECT 1' postgres").rc == 0
        return answers and int(
            host.check_output(f"head -n 1 /var/lib/postgresql/{version}/main/postmaster.pid")
        )

    return pid


def test_a_killed_server_is_back(host, postmaster, eventually):
    before = postmaster()
    assert before
    host.check_output(f"kill -9 {before}")
    eventually(lambda: postmaster() not in (False, before))


def test_a_backend_that_crashes_takes_no_data_with_it(admin, host, postmaster, eventually):
    before = postmaster()
    admin("CREATE TABLE IF NOT EXISTS public.kept AS SELECT 1 AS one")
    checkpointer = f"pgrep --parent {before} --full checkpointer"
    killed = host.check_output(checkpointer)
    host.check_output(f"kill -9 {killed}")
    # It answers as before until it has noticed.
    eventually(lambda: host.run(checkpointer).stdout.strip() not in ("", killed))
    eventually(lambda: postmaster() == before)
    assert admin("SELECT one FROM public.kept; DROP TABLE public.kept") == "1"


def test_a_restart_of_the_server_brings_it_back(restart_server, query, eventually):
    restart_server()
    eventually(lambda: query("shop", "SELECT 1")[0] == [[1]])
