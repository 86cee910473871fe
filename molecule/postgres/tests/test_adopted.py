"""A PostgreSQL that somebody used before, and a second cluster beside it."""

import pytest

HAND_MADE = "/root/pg_hba.conf"


@pytest.fixture(autouse=True)
def _by_hand(host):
    if not host.file(HAND_MADE).exists:
        pytest.skip("nobody has used this server's PostgreSQL before")


@pytest.fixture(scope="module")
def other(host):
    """Ask the second cluster as its superuser."""

    def ask(query, database="postgres"):
        words = "runuser -u postgres -- psql --cluster 17/other -XAtc %s %s"
        return host.check_output(words, query, database)

    return ask


@pytest.fixture(scope="module")
def admin(host):
    """Ask the one that the role has."""
    return lambda query: host.check_output("runuser -u postgres -- psql -XAtc %s", query)


def enter(host, database, user="theirs"):
    url = f"postgresql://{user}:{user}@127.0.0.1/{database}"
    return host.run("psql -XAtc 'SELECT current_database()' %s", url)


def test_a_line_of_theirs_lets_them_in(host):
    assert enter(host, "theirs").stdout == "theirs\n"


def test_and_nobody_to_what_the_role_has_made(host):
    assert "pg_hba.conf rejects connection" in enter(host, "shop").stderr


def test_a_copy_of_the_file_stays(host):
    copy = host.file("/var/backups/carafe/etc/postgresql/17/main/pg_hba.conf")
    assert copy.content == host.file(HAND_MADE).content


def test_the_other_cluster_is_as_it_was(other):
    assert other("SELECT count(*) FROM pg_roles WHERE rolname ~ '^shop'") == "0"
    assert other("SELECT count(*) FROM pg_hba_file_rules WHERE database = '{shop}'") == "0"


def test_a_setting_that_alter_system_beats_is_named_and_the_other_cluster_can_be_taken(
    converge, admin, other
):
    changed, output = converge(postgres_manage_packages=False)
    assert changed == 0, output
    said = " ".join(output.split())
    assert "checkpoint_completion_target is '0.7' by ALTER SYSTEM, which beats the '0.9'" in said
    before = admin("SELECT count(*) FROM pg_roles")
    changed, output = converge(
        postgres_manage_packages=False,
        postgres_cluster="17/other",
        postgres_databases=[{"name": "apart", "owner": "apart"}],
        postgres_roles=[{"name": "apart"}],
        postgres_memory_mb=64,
    )
    assert changed > 0, output
    assert other("SELECT current_database()", "apart") == "apart"
    assert other("SHOW shared_buffers") == "16MB"
    assert admin("SELECT count(*) FROM pg_roles") == before
    assert admin("SHOW shared_buffers") == "64MB"
