"""Backups of a database that fails over: one place for all servers, and one that makes each.

What happens to the servers after that is archived there, and looked at by test_restore.py.
"""

import time
from collections.abc import Callable

import pytest
from conftest import Cluster, Done, Server
from object_store import Store

# It takes the place of one of them later.
SPARE = Server("cluster-13-four")
OWN = "cat /etc/pgbackrest/stanza-$(cat /etc/machine-id)"


@pytest.fixture(scope="module")
def stored(
    cluster: Cluster,
    store: Store,
    backups: dict[str, object],
    playbook: Callable[..., Done],
    eventually: Callable[..., None],
) -> Cluster:
    """Have backups of it, and wait for the first one."""
    eventually(cluster.is_whole)
    for server in (*cluster.servers, SPARE):
        told = store.told(server.host)
    # Whoever runs the tests once more has another store, which is empty.
    began = time.time()
    backups |= {"backup_repository": f"s3://first/{store.port}", "backup_key": "k" * 40}
    backups |= {f"backup_{name}": value for name, value in told.items()}
    done = playbook("site.yml")
    assert done.status == 0, done.output
    eventually(lambda: cluster.leader.noted("database-full").get("ended", 0) > began)
    return cluster


def test_the_first_backup_is_made_once_into_one_place(stored: Cluster) -> None:
    assert stored.leader.noted("database-full")["result"] == "ok"
    (stanza,) = {x.host.check_output(OWN) for x in stored.servers}
    for server in stored.servers:
        server.job("diff")
    found = stored.leader.host.check_output(
        "runuser -u postgres -- pgbackrest --stanza=%s info --output=text", stanza
    )
    assert [found.count(x) for x in ("full backup: ", "diff backup: ")] == [1, 1]


def test_all_servers_know_of_it_and_nothing_is_red(stored: Cluster) -> None:
    for server in stored.servers:
        server.job("marker")
        assert server.noted("database-diff")["result"] == "ok"
    assert wrong(stored) == {x.name: [] for x in stored.servers}


def wrong(cluster: Cluster) -> dict[str, list[str]]:
    """Return what is red on each server."""
    ask = (
        'python3 -I -c \'import sys; sys.path.insert(0, "/usr/local/lib/carafe/backup");'
        " from carafe import backup_state as x;"
        ' print(*(y["what"] for y in x.problems() if y["level"] == "red"), sep=chr(10))\''
    )
    return {x.name: x.host.check_output(ask).split("\n")[:-1] for x in cluster.servers}
