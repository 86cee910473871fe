"""Several owners on one server, each by a run of its own: what one has, no other's run takes."""

import functools

import pytest

pytestmark = pytest.mark.newest_release

BLOG = {
    "postgres_owner": "blog",
    "postgres_default_roles": [{"name": "blog-owner", "login": False}, {"name": "blog"}],
    "postgres_roles": [],
    "postgres_default_databases": [{"name": "blog", "owner": "blog-owner", "writers": ["blog"]}],
    "postgres_databases": [{"name": "blog", "extensions": ["citext"]}],
}
BIGGER = BLOG | {
    "postgres_connections": 150,
    "postgres_listen_addresses": ["127.0.0.2"],
    "postgres_hba": [{"type": "local", "database": "blog", "user": "+ops", "method": "peer"}],
}


@pytest.fixture(scope="module")
def role(converge):
    """Run the role with other values of some variables; what is installed stays."""
    return functools.partial(converge, postgres_manage_packages=False)


@pytest.fixture(scope="module")
def admin(host):
    """Run a statement as the superuser, over the unix socket."""

    def run(statement, database="postgres"):
        return host.check_output(
            "runuser -u postgres -- psql -XqAt -v ON_ERROR_STOP=1 -c %s %s", statement, database
        )

    return run


@pytest.fixture(scope="module")
def started(admin):
    """Tell when the running server was started."""
    return lambda: admin("SELECT pg_postmaster_start_time()")


@pytest.fixture(scope="module", autouse=True)
def bring_back(role, host, admin):
    """Leave the server to its first owner, as converge.yml has it."""
    yield
    host.check_output("rm -f /etc/carafe/postgres.d/blog.json")
    for thing in ("DATABASE blog", "ROLE blog", 'ROLE "blog-owner"'):
        admin(f"DROP {thing}")
    changed, output = role()
    assert changed >= 0, output


@pytest.fixture(scope="module")
def files(host):
    return lambda: host.check_output(
        "cat /etc/postgresql/*/main/conf.d/carafe.conf /etc/postgresql/*/main/pg_hba.conf"
        " /etc/carafe/postgres.d/*.json"
    )


def test_a_second_owner_whose_connections_fit_restarts_nothing(role, started, admin):
    before = started()
    changed, output = role(**BLOG, postgres_connections=60)
    assert changed == 2, output  # its claim, and its database
    assert started() == before
    assert admin("SHOW max_connections") == "100"
    assert admin("SELECT extname FROM pg_extension WHERE extname = 'citext'", "blog") == "citext"
    assert admin("SELECT has_database_privilege('blog', 'blog', 'CONNECT')") == "t"


def test_a_dry_run_tells_of_the_restart_and_makes_none(role, started, files):
    before, text = started(), files()
    changed, output = role("--check", "--diff", **BIGGER)
    assert changed >= 1, output
    assert "PostgreSQL restarts for listen_addresses, max_connections" in output
    assert "+max_connections = '153'" in output
    assert (started(), files()) == (before, text)


def test_connections_that_do_not_fit_cost_one_restart_and_no_second(role, started, admin, host):
    before = started()
    changed, output = role(**BIGGER)
    assert changed == 2, output
    assert started() != before
    assert admin("SHOW max_connections") == "153"
    assert host.socket("tcp://127.0.0.1:5432").is_listening
    assert host.socket("tcp://127.0.0.2:5432").is_listening
    assert "+ops" in admin("SELECT user_name FROM pg_hba_file_rules")
    before = started()
    for variables in ({}, BIGGER):
        changed, output = role(**variables)
        assert changed == 0, output
    assert started() == before
    assert admin("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'blog'") == (
        "blog-owner"
    )


def test_what_the_server_does_not_start_with_is_not_tried_by_another_owner(
    role, started, host, files
):
    before = files()
    changed, output = role(**BIGGER, postgres_settings={"shared_buffers": "8000GB"})
    assert changed == -1, output
    assert "shared_buffers" not in host.check_output("cat /etc/carafe/postgres.d/blog.json")
    assert files() == before
    since = started()
    changed, output = role()
    assert changed == 0, output
    assert started() == since


def test_fewer_connections_restart_nothing(role, started, admin):
    before = started()
    changed, output = role(**BIGGER | {"postgres_connections": 20})
    assert changed == 1, output
    assert started() == before
    assert admin("SHOW max_connections") == "153"


def test_an_owner_that_is_gone_leaves_no_line_behind(role, admin, host):
    lines = "SELECT string_agg(database::text || user_name::text, ' ') FROM pg_hba_file_rules"
    assert "{blog}{+blog-owner,+blog}" in admin(lines)
    host.check_output("rm /etc/carafe/postgres.d/blog.json")
    changed, output = role()
    assert changed >= 1, output
    assert "blog" not in admin(lines)
    assert "{shop}{+shop-owner,+shop,+nobody,+report}" in admin(lines)
