"""Each fault, on the server that leads, on the one in step, and on the one that follows."""

import contextlib
import subprocess
from collections.abc import Callable, Iterator

import pytest
from conftest import REPOSITORY, Cluster, Server, logged, without_power

ROLES = {"leads": "Leader", "is in step": "Sync Standby", "follows": "Replica"}
NOBODY = """
table inet fault {
  chain input { type filter hook input priority -200; policy drop; iif lo accept; }
  chain output { type filter hook output priority -200; policy drop; oif lo accept; }
}
"""


@contextlib.contextmanager
def cut_off(server: Server, others: list[Server]) -> Iterator[None]:
    """Have a server reach its clients, and no other server."""
    for other in others:
        server.host.check_output("ip route add blackhole %s", other.address)
    yield
    for other in others:
        server.host.check_output("ip route del blackhole %s", other.address)


@contextlib.contextmanager
def unplugged(server: Server) -> Iterator[None]:
    """Have a server reach nobody."""
    server.host.check_output("printf %s %s | nft -f -", "%s", NOBODY)
    yield
    server.host.check_output("nft delete table inet fault")


@contextlib.contextmanager
def without_etcd(*servers: Server) -> Iterator[None]:
    for server in servers:
        server.host.check_output("systemctl stop etcd.service")
    yield
    for server in servers:
        server.host.check_output("systemctl start --no-block etcd.service")


LASTING = {
    "no power": lambda server, others: without_power(server),
    "cut off from the other servers": cut_off,
    "cut off from everybody": lambda server, others: unplugged(server),
    "no etcd": lambda server, others: without_etcd(server),
}
KILL = "systemctl kill --kill-who=main --signal=KILL %s"
AT_ONCE = {
    "PostgreSQL killed": "kill -KILL $(head -n 1 /var/lib/postgresql/*/main/postmaster.pid)",
    "Patroni killed": KILL.replace("%s", "patroni.service"),
    "etcd killed": KILL.replace("%s", "etcd.service"),
}


@pytest.fixture(params=ROLES)
def struck(
    request: pytest.FixtureRequest, cluster: Cluster, eventually: Callable[..., None]
) -> Server:
    """The server that something happens to, by what it is before."""
    eventually(cluster.is_whole)
    state = cluster.state()
    return next(x for x in cluster.servers if state[x.name]["Role"] == ROLES[request.param])


def leaders(cluster: Cluster) -> list[str]:
    return [name for name, x in cluster.state().items() if x["Role"] == "Leader"]


def is_written_to(cluster: Cluster, since: int) -> bool:
    """Tell whether a hundred rows were acknowledged since there were so many."""
    return len(logged(cluster.client).acknowledged) > since + 100


@pytest.mark.usefixtures("event")
@pytest.mark.parametrize("fault", LASTING)
def test_what_lasts_is_borne(
    cluster: Cluster, struck: Server, eventually: Callable[..., None], fault: str
) -> None:
    others = [x for x in cluster.servers if x.name != struck.name]
    asked = Cluster(others, cluster.client)
    lasts = LASTING[fault](struck, others)
    with lasts:
        # Without its etcd a server asks the others', and goes on.
        if fault != "no etcd":
            eventually(lambda: leaders(asked) not in ([], [struck.name]), 120)
        since = len(logged(cluster.client).acknowledged)
        eventually(lambda: is_written_to(cluster, since), 120)


@pytest.mark.usefixtures("event")
@pytest.mark.parametrize("fault", AT_ONCE)
def test_what_is_killed_comes_back(
    cluster: Cluster, struck: Server, eventually: Callable[..., None], fault: str
) -> None:
    since = len(logged(cluster.client).acknowledged)
    struck.host.check_output(AT_ONCE[fault])
    eventually(lambda: is_written_to(cluster, since), 120)


@pytest.mark.usefixtures("event")
def test_a_server_is_rebooted(struck: Server) -> None:
    subprocess.run([REPOSITORY / "scripts/server", "restart", struck.container], check=True)
    assert struck.is_masked()


@pytest.mark.usefixtures("event")
def test_etcd_has_no_majority(cluster: Cluster, eventually: Callable[..., None]) -> None:
    with without_etcd(*cluster.followers):
        before = logged(cluster.client).acknowledged[-1][0]
        # Longer than the lead lasts without a word of etcd's.
        eventually(lambda: logged(cluster.client).acknowledged[-1][0] > before + 25)


@pytest.mark.usefixtures("event")
def test_the_power_of_all_is_lost(cluster: Cluster) -> None:
    with without_power(*cluster.servers):
        pass
