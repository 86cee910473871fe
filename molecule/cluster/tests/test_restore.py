"""What is in the repository after all that has happened, and what comes back of it."""

import time
from collections.abc import Callable

from conftest import Cluster, Done, Server, logged

POINT = "python3 -I /usr/local/lib/carafe/backup point %s"
RESTORE = "playbooks/restore.yml"
KEPT = "SELECT datname FROM pg_database WHERE datname LIKE 'shop_before_%'"


def test_the_archive_has_no_gap(cluster: Cluster, eventually: Callable[..., None]) -> None:
    """Though whoever led has been lost, cut off, killed and told to go."""
    eventually(cluster.is_whole)
    leader = cluster.leader
    leader.job("incr")
    noted = leader.noted("database-incr")
    assert (noted["result"], noted["details"]["lost"], noted["details"]["holes"]) == ("ok", [], [])
    assert int(cluster.sql("SELECT timeline_id FROM pg_control_checkpoint()")) > 2


def test_one_that_follows_proves_that_it_can_be_restored(
    cluster: Cluster, eventually: Callable[..., None]
) -> None:
    leader, drills = cluster.leader, min(cluster.followers, key=lambda x: x.name)
    for _ in range(2):
        leader.job("marker")
    began = time.time()
    for server in cluster.servers:
        server.host.check_output("systemctl start --no-block carafe-backup-drill.service")

    def is_done() -> bool:
        # What is written meanwhile is archived as soon as it is a segment.
        cluster.sql("SELECT pg_switch_wal()", leader)
        return drills.noted("drill-database").get("ended", 0) > began

    eventually(is_done)
    assert drills.noted("drill-database")["result"] == "ok", drills.noted("drill-database")
    leader.job("marker")
    assert leader.noted("drill-database") == drills.noted("drill-database")


def test_what_was_written_before_and_after_comes_back_for_all_servers(
    cluster: Cluster, playbook: Callable[..., Done], eventually: Callable[..., None]
) -> None:
    """Whoever made the point: one that leads after it has it, too."""
    cluster.leader.host.check_output(POINT, "before-all")
    then = logged(cluster.client).acknowledged[-1]
    eventually(lambda: logged(cluster.client).acknowledged[-1][0] > then[0] + 1)
    first = logged(cluster.client).acknowledged[0][1]
    last = logged(cluster.client).acknowledged[-1][1]
    looked = playbook(RESTORE, restore_to="before-all")
    assert looked.status != 0
    assert "this would bring back" in looked.output
    assert there(cluster, last, cluster.leader)
    done = playbook(RESTORE, restore_to="before-all", restore_confirm="ledger")
    assert done.status == 0, done.output
    for server in cluster.followers:
        eventually(lambda server=server: there(cluster, first, server))
        assert not there(cluster, last, server)
    eventually(cluster.is_whole)
    (kept,) = cluster.sql(KEPT).split()
    done = playbook(
        RESTORE, restore_undo=kept.removeprefix("shop_before_"), restore_confirm="ledger"
    )
    assert done.status == 0, done.output
    for server in cluster.servers:
        eventually(lambda server=server: there(cluster, last, server))


def there(cluster: Cluster, row: str, server: Server) -> bool:
    return cluster.sql(f"SELECT count(*) FROM shop.rows WHERE name = '{row}'", server) == "1"
