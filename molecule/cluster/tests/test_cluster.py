"""One of three servers leads; whatever happens to one of them, what was acknowledged stays."""

import subprocess
from collections.abc import Callable

import pytest
from conftest import REPOSITORY, Cluster, Server, alone, logged, lost, without_power


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
    """On Debian 13 the client has written since before the database became that of three."""
    eventually(lambda: len(logged(cluster.client).acknowledged) > 0)
    assert lost(cluster) == []
    assert logged(cluster.client).two == []


def test_a_stranger_gets_no_answer_from_etcd(cluster: Cluster) -> None:
    address = cluster.servers[0].address
    asked = cluster.servers[1].host.run(f"curl -sk https://{address}:2379/health")
    # 3.5 asks for the certificate after the handshake.
    assert "true" not in asked.stdout


@pytest.mark.usefixtures("event")
def test_another_one_leads_when_it_is_told_to(
    cluster: Cluster, eventually: Callable[..., None]
) -> None:
    leader = cluster.leader
    command = "patronictl -c /etc/patroni/config.yml switchover --force --%s %s"
    word = (
        "primary"
        if "--primary" in leader.host.run("patronictl switchover --help").stdout
        else "master"
    )
    leader.host.check_output(command, word, leader.name)
    eventually(lambda: cluster.leader.name != leader.name)


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
    with alone():
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
