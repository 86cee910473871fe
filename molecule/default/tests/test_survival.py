"""What is still there after a daemon was killed, and after the server was restarted."""

from collections.abc import Callable

import pytest
import requests
from testinfra.host import Host

VICTIMS = {
    "nginx": "cat /run/nginx.pid",
    "nginx worker": "pgrep -P $(cat /run/nginx.pid) | head -n 1",
    "supervisord": "cat /run/supervisord.pid",
    "gunicorn master": "supervisorctl pid guestbook:guestbook_0",
    "gunicorn worker": "pgrep -P $(supervisorctl pid guestbook:guestbook_0) | head -n 1",
    "postgres": "head -n 1 /var/lib/postgresql/*/main/postmaster.pid",
}


@pytest.mark.parametrize("victim", VICTIMS)
def test_site_is_back_after_a_kill(
    host: Host,
    site: Callable[..., requests.Response],
    eventually: Callable[..., None],
    victim: str,
) -> None:
    pid = host.check_output(VICTIMS[victim])
    host.check_output("kill -9 %s", pid)
    eventually(lambda: host.run(VICTIMS[victim]).stdout.strip() not in ("", "0", pid))
    eventually(lambda: site("/readyz").status_code == 200)
    eventually(lambda: host.run("supervisorctl status guestbook:").rc == 0)


def test_site_and_its_rows_are_back_after_a_restart(
    host: Host,
    site: Callable[..., requests.Response],
    eventually: Callable[..., None],
    restart_server: Callable[[], None],
) -> None:
    count = "runuser -u guestbook -- psql -XAtc 'SELECT count(*) FROM users' guestbook"
    before = host.check_output(count)
    restart_server()
    eventually(lambda: site("/readyz").status_code == 200)
    assert host.check_output(count) == before
