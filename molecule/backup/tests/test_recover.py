"""A server that is gone, and a new one that begins with what it has stored."""

import pytest

LOSE = """
set -e
systemctl disable --quiet --now $(cd /etc/systemd/system && ls carafe-backup-*.timer)
rm -r /etc/systemd/system/carafe-backup-* /etc/carafe /etc/pgbackrest
rm -r /var/lib/carafe /usr/local/lib/carafe
find /srv/shop/shared -type f -delete
cluster=$(ls /etc/postgresql)
pg_dropcluster --stop "$cluster" main
pg_createcluster "$cluster" main
tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id
# The new server has given the app's user another number.
usermod --uid 4321 shop
groupmod --gid 4322 shop
chown -R shop:shop /srv/shop/shared/*
systemctl daemon-reload
"""


@pytest.fixture(scope="module")
def lost(host, admin, called, job, converge):
    """Have a new server in the place of the one that is gone; return the name of that one."""
    admin('SET ROLE "shop-owner"; CREATE TABLE IF NOT EXISTS public.survivors (text text)')
    admin("INSERT INTO public.survivors VALUES ('stored')")
    host.check_output("runuser -u shop -- sh -c 'echo stored >/srv/shop/shared/uploads/survivor'")
    assert job("files-shop")["result"] == "ok"
    called("backup_jobs.switch(backup_jobs.backup_repository.setup())")
    name = host.check_output("hostname")
    changed, said = converge(backup_restore_from=name)
    assert changed == -1
    assert "has databases already" in said
    host.check_output(LOSE)
    return name


def test_a_new_server_takes_over(host, lost, admin, converge, called, first_stored):
    changed, said = converge(backup_restore_from="somebody-else")
    assert changed == -1
    assert f"Say which: -e restore_from={lost}-" in said
    changed, said = converge(backup_restore_from=lost)
    assert changed > 0, said
    assert admin("SELECT text FROM public.survivors ORDER BY 1 LIMIT 1") == "stored"
    survivor = host.file("/srv/shop/shared/uploads/survivor")
    assert survivor.content_string == "stored\n"
    assert (survivor.uid, survivor.gid) == (4321, 4322)
    # It stores in a place of its own, from the moment on at which it took over.
    first_stored()
    assert admin("SELECT timeline_id > 1 FROM pg_control_checkpoint()") == "t"
    places = host.check_output("ls /backup/pgbackrest/backup").split()
    assert len(places) == 2
    assert admin("SHOW restore_command") == ""
    assert called("backup_jobs.switch(backup_jobs.backup_repository.setup())")
    assert host.run("ls /backup/pgbackrest/archive/*/*/*.history*").rc == 0
    assert called("[x for x in backup_state.problems() if x['level'] == 'red']") == []
    # The same once more finds all done.
    assert converge(backup_restore_from=lost)[0] == 0
