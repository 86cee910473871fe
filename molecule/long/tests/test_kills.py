"""Fifty processes of the stack are killed at random moments, under load."""

import random
from collections.abc import Callable

import pytest
from conftest import Load
from testinfra.host import Host

SEED = 20261127
VICTIMS = {
    "nginx": "cat /run/nginx.pid",
    "nginx worker": "pgrep -P $(cat /run/nginx.pid) | head -n 1",
    "supervisord": "cat /run/supervisord.pid",
    "gunicorn master": "supervisorctl pid ledger:ledger_{0}",
    "gunicorn worker": "pgrep -P $(supervisorctl pid ledger:ledger_{0}) | head -n 1",
    "worker": "supervisorctl pid ledger.jobs:ledger.jobs_0",
    "postgres": "head -n 1 /var/lib/postgresql/*/main/postmaster.pid",
    "postgres backend": "pgrep -f 'postgres: .* ledger ledger ' | head -n 1",
    "postgres checkpointer": "pgrep -f 'postgres: .*checkpointer' | head -n 1",
    "valkey": "systemctl show --property=MainPID --value valkey@ledger",
}
CHOICE = random.Random(SEED)
KILLS = [
    (number, CHOICE.choice(sorted(VICTIMS)), CHOICE.randrange(2), CHOICE.randrange(10, 60))
    for number in range(50)
]


@pytest.mark.parametrize(("number", "victim", "slot", "after"), KILLS)
def test_a_process_is_killed(
    host: Host,
    load: Load,
    serves: Callable[[], float],
    books: Callable[[], dict],
    eventually: Callable[..., None],
    number: int,
    victim: str,
    slot: int,
    after: int,
) -> None:
    noted, find = books(), VICTIMS[victim].format(slot)
    load.go_on(after)
    host.check_output("kill -9 %s", host.check_output(find))
    seconds = serves()
    print(f"kill {number:2}, {victim}: serves after {seconds:.1f} s")
    load.go_on(20, load.now)
    # All of it is back, and not only what serves.
    eventually(lambda: host.run(find).stdout.strip() not in ("", "0"))
    eventually(lambda: "RUNNING" in host.check_output("supervisorctl status ledger.jobs:"))
    eventually(lambda: host.run("supervisorctl status").rc == 0)
    assert books() == noted
