"""One of three servers leads; whatever happens to one of them, what was acknowledged stays."""

import subprocess
from collections.abc import Callable

import pytest
from conftest import REPOSITORY, Cluster, Done, Server, logged, lost, without_power

SITE = "site.yml"
BOOT = "cat /proc/sys/kernel/random/boot_id"
# One more for each time that another one has come to lead.
TIMELINE = "SELECT timeline_id FROM pg_control_checkpoint()"


STRANGER = """python3 -c "
import http.client, ssl, sys
anybody = ssl._create_unverified_context()
there = http.client.HTTPSConnection(sys.argv[1], 2379, timeout=30, context=anybody)
there.request('GET', '/health')
print(there.getresponse().read())
" %s"""
# As HAProxy reaches it there.
ADD = """python3 -c "
import http.client, json, socket, uuid
there = http.client.HTTPConnection('localhost', timeout=30)
there.sock = socket.socket(socket.AF_UNIX)
there.sock.connect('/run/ledger.sock')
row = json.dumps({'id': str(uuid.uuid4())})
there.request('POST', '/rows', row, {'Content-Type': 'application/json'})
print(there.getresponse().status)
" """


def add(server: Server) -> str:
    """Have the app of a server write a row; return the status."""
    return server.host.run(ADD).stdout.strip()


def test_one_leads_one_is_in_step_and_nothing_else_starts_postgresql(
    cluster: Cluster, eventually: Callable[..., None]
) -> None:
    eventually(cluster.is_whole)
    assert all(server.is_masked() for server in cluster.servers)
    for server in cluster.followers:
        assert cluster.sql("SELECT pg_is_in_recovery()", server) == "t"
    assert cluster.sql("SHOW max_connections") == "100"
    # From the file of the role postgres, which is read below Patroni's own.
    assert cluster.sql("SHOW shared_buffers") == "64MB"


def test_nothing_was_lost_since_the_first_row(
    cluster: Cluster, eventually: Callable[..., None]
) -> None:
    """The client has written since before the database became that of three."""
    eventually(lambda: len(logged(cluster.client).acknowledged) > 0)
    assert lost(cluster) == []
    assert logged(cluster.client).two == []
    print(f"gap {logged(cluster.client).gap:.1f} s while it became that of three")


def test_a_dry_run_finds_nothing_to_change(playbook: Callable[..., Done]) -> None:
    done = playbook(SITE, "--check", "--diff")
    assert done.status == 0, done.output
    assert set(done.changed.values()) == {0}, done.output


def test_a_stranger_gets_no_answer_from_etcd(cluster: Cluster) -> None:
    asked = cluster.servers[1].host.run(STRANGER, cluster.servers[0].address)
    assert "CERTIFICATE_REQUIRED" in asked.stderr


def test_the_app_writes_wherever_it_runs(cluster: Cluster) -> None:
    assert [add(x) for x in cluster.servers[:2]] == ["201", "201"]


@pytest.mark.usefixtures("event")
def test_another_one_leads_when_it_is_told_to(
    cluster: Cluster, playbook: Callable[..., Done]
) -> None:
    leader = cluster.leader
    done = playbook("playbooks/switchover.yml")
    assert done.status == 0, done.output
    assert cluster.leader.name != leader.name


@pytest.mark.usefixtures("event")
def test_the_one_that_leads_is_lost(cluster: Cluster, eventually: Callable[..., None]) -> None:
    leader = cluster.leader
    with without_power(leader):
        eventually(lambda: cluster.leader.name != leader.name)


@pytest.mark.usefixtures("event")
def test_the_one_that_leads_is_cut_off_from_the_others(
    cluster: Cluster, eventually: Callable[..., None]
) -> None:
    """And not from its clients, who would go on with what is lost later."""
    leader, others = cluster.leader, cluster.followers
    for other in others:
        leader.host.check_output("ip route add blackhole %s", other.address)
    asked = Cluster(others, cluster.client)
    eventually(lambda: any(x["Role"] == "Leader" for x in lead(asked, leader)))
    for other in others:
        leader.host.check_output("ip route del blackhole %s", other.address)


def lead(cluster: Cluster, former: Server) -> list[dict]:
    return [x for name, x in cluster.state().items() if name != former.name]


@pytest.mark.usefixtures("event")
def test_patroni_is_killed_and_its_postgresql_goes_with_it(
    cluster: Cluster, eventually: Callable[..., None]
) -> None:
    leader = cluster.leader
    postmaster = "head -n 1 /var/lib/postgresql/*/main/postmaster.pid"
    before = leader.host.check_output(postmaster)
    leader.host.check_output("systemctl kill --kill-who=main --signal=KILL patroni.service")
    eventually(lambda: not leader.host.file(f"/proc/{before}").exists)


@pytest.mark.usefixtures("event")
def test_the_one_that_leads_is_rebooted(cluster: Cluster, eventually: Callable[..., None]) -> None:
    leader = cluster.leader
    subprocess.run([REPOSITORY / "scripts/server", "restart", leader.container], check=True)
    assert leader.is_masked()


@pytest.mark.usefixtures("event")
def test_etcd_has_no_majority_and_who_leads_goes_on(
    cluster: Cluster, eventually: Callable[..., None]
) -> None:
    leader, others = cluster.leader, cluster.followers
    for other in others:
        other.host.check_output("systemctl stop etcd.service")
    before = logged(cluster.client).acknowledged[-1][0]
    # Longer than the lead lasts without a word of etcd's.
    eventually(lambda: logged(cluster.client).acknowledged[-1][0] > before + 25)
    seen = logged(cluster.client, before)
    for other in others:
        other.host.check_output("systemctl start --no-block etcd.service")
    assert (seen.errors, leader.name) == ([], cluster.leader.name)


@pytest.mark.usefixtures("event")
def test_the_power_of_all_is_lost(cluster: Cluster) -> None:
    with without_power(*cluster.servers):
        pass


# From here on a server has left, and another one has its place.
@pytest.mark.usefixtures("event")
def test_another_server_takes_the_place_of_the_one_that_leads(
    cluster: Cluster, playbook: Callable[..., Done], eventually: Callable[..., None]
) -> None:
    # The other two have the app, which goes on.
    third, new = cluster.servers[2], Server("cluster-13-four")
    if cluster.leader.name != third.name:
        done = playbook("playbooks/switchover.yml", patroni_switchover_to=third.name)
        assert done.status == 0, done.output
        eventually(cluster.is_whole)
    leave = "playbooks/remove_server.yml"
    done = playbook(leave, joins=(new,), remove_server=third.name)
    assert done.status != 0
    assert f"-e remove_confirm={third.name}" in done.output
    words = {"remove_server": third.name, "remove_confirm": third.name}
    done = playbook(leave, joins=(new,), **words)
    assert done.status == 0, done.output
    cluster.servers[2] = new
    assert sorted(cluster.state()) == sorted(x.name for x in cluster.servers)
    assert not third.host.file("/var/lib/postgresql/17/main").exists


def test_a_run_with_the_new_one_changes_nothing(playbook: Callable[..., Done]) -> None:
    done = playbook(SITE)
    assert done.status == 0, done.output
    assert set(done.changed.values()) == {0}, done.output


@pytest.mark.usefixtures("event")
def test_servers_are_rebooted_one_after_the_other(
    cluster: Cluster, playbook: Callable[..., Done]
) -> None:
    boots = {x.name: x.host.check_output(BOOT) for x in cluster.servers}
    led = int(cluster.sql(TIMELINE))
    done = playbook("playbooks/roll_servers.yml", roll_reboot="always", roll_upgrade=False)
    assert done.status == 0, done.output
    assert all(x.host.check_output(BOOT) != boots[x.name] for x in cluster.servers)
    # Whoever leads goes last, and another one leads for that alone.
    assert int(cluster.sql(TIMELINE)) == led + 1


def test_the_app_writes_after_all_of_that(
    cluster: Cluster, eventually: Callable[..., None]
) -> None:
    for server in cluster.servers[:2]:
        eventually(lambda x=server: add(x) == "201")
