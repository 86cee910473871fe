"""What PostgreSQL cannot do, not even pg_ctlcluster as root, and what it still can."""

import pytest


@pytest.fixture(scope="module")
def service_unit(host):
    return f"postgresql@{host.check_output('ls /etc/postgresql')}-main.service"


@pytest.fixture
def admin(host):
    """Run a statement as the superuser, over the unix socket."""

    def run(statement):
        command = "runuser -u postgres -- psql -XqAt -v ON_ERROR_STOP=1 -c %s postgres"
        return host.run(command, statement)

    return run


def test_its_exposure_is_low(host, service_unit):
    host.check_output(f"systemd-analyze security --no-pager --threshold=40 {service_unit}")


def test_the_sandbox_forbids(inside, forbidden):
    succeeded, output = inside(forbidden)
    assert not succeeded, output


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("touch /etc/probe/file", "Read-only file system"),
        ("ls /home/probe", "Permission denied"),
        ("unshare --user true", "Operation not permitted"),
    ],
)
def test_a_program_of_the_superuser_lives_in_it(host, admin, command, reason):
    host.check_output("install -d -m 777 /etc/probe /home/probe")
    try:
        host.check_output(f"runuser -u postgres -- {command}")
        done = admin(f"COPY (SELECT 1) TO PROGRAM '{command} 2>&1 | tee /tmp/said; false'")
        assert done.rc != 0
        assert reason in host.check_output("cat /tmp/said")
    finally:
        host.check_output("rm -rf /etc/probe /home/probe /tmp/said")


def test_copy_writes_where_it_is_looked_for(host, admin):
    assert admin("COPY (SELECT 7) TO '/tmp/copied'").rc == 0
    assert host.check_output("cat /tmp/copied && rm /tmp/copied") == "7"


def test_a_tablespace_may_lie_elsewhere(host, admin):
    host.check_output("install -d -o postgres -g postgres /opt/space")
    for statement in (
        "CREATE TABLESPACE elsewhere LOCATION '/opt/space'",
        "CREATE TABLE public.far TABLESPACE elsewhere AS SELECT 1",
        "DROP TABLE public.far",
        "DROP TABLESPACE elsewhere",
    ):
        done = admin(statement)
        assert done.rc == 0, done.stderr


def test_queries_are_compiled(admin):
    query = "SET jit_above_cost = 0; EXPLAIN (ANALYZE) SELECT sum(x) FROM generate_series(1, 9) x"
    assert admin("SELECT pg_jit_available()").stdout.strip() == "t"
    assert "JIT:" in admin(query).stdout


@pytest.mark.usefixtures("without_mounts")
def test_where_nothing_can_be_mounted_it_runs_without(host, service_unit, admin, eventually):
    eventually(lambda: admin("SELECT 1").rc == 0)
    server = host.check_output("head -n 1 /var/lib/postgresql/*/main/postmaster.pid")
    host.check_output(f"nsenter --target {server} --mount touch /etc/probe && rm /etc/probe")
    assert "NoNewPrivs:\t1" in host.check_output(f"cat /proc/{server}/status")
