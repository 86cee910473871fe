"""Other places: another host by sftp, for files and for the copy, and a store that speaks S3."""

import object_store
import pytest

pytestmark = pytest.mark.newest_release
# Its key may do that and nothing else.
STORE = """
set -e
useradd --system --create-home --home-dir /srv/store store
test -f /root/store || ssh-keygen -q -t ed25519 -N '' -f /root/store
install -d -o store -g store -m 0700 /srv/store/.ssh /srv/store/backups
(printf 'restrict,command="internal-sftp" '; cat /root/store.pub) >/srv/store/.ssh/authorized_keys
chown store: /srv/store/.ssh/authorized_keys
"""


NAME = "s3.carafe.test"
COPY_THERE = """
import json
path = "/etc/carafe/backup/setup.json"
setup = json.load(open(path))
setup["copy"] = {"repository": "s3://second", "is_mount": False, "s3": setup["s3"]}
json.dump(setup, open(path, "w"))
"""


@pytest.fixture(scope="module")
def store(host, tmp_path_factory, eventually):
    """Have the store, with two buckets; return how the role is told of it.

    It is there until nothing is stored in it any more: what cannot be archived holds up the rest.
    """
    folder = tmp_path_factory.mktemp("store")
    with object_store.serving(host.backend.name, folder, eventually, NAME) as there:
        yield {"repository": "s3://first/shop", **there.told(host)}


@pytest.fixture(scope="module")
def another_host(host, store, converge, first_stored):
    """Have everything stored by sftp, and afterwards as before."""
    host.check_output(STORE)
    known = host.check_output("ssh-keyscan 127.0.0.1 2>/dev/null")
    changed, said = converge(
        backup_database=False,
        backup_repository="sftp://store@127.0.0.1/srv/store/backups",
        backup_ssh_key=f"{host.check_output('cat /root/store')}\n",
        backup_ssh_known_hosts=known.splitlines(),
    )
    assert changed > 0, said
    first_stored()
    yield
    changed, said = converge()
    assert changed > 0, said
    first_stored()


def test_files_are_stored_there(host, another_host, converge, job):
    assert host.run("ls /srv/store/backups/files/shop/config").rc == 0
    assert job("files-shop")["result"] == "ok"


def test_nobody_else_reads_the_key(host, another_host):
    file = host.file("/etc/carafe/backup/root/id")
    assert (file.user, file.mode) == ("root", 0o600)


def test_no_database_is_stored_there(host, another_host, converge):
    changed, said = converge(backup_repository="sftp://store@127.0.0.1/srv/store/backups")
    assert changed == -1
    assert "pgBackRest of Debian cannot restore a database from there" in said


@pytest.fixture(scope="module")
def in_s3(host, another_host, store, converge, first_stored):
    """Have everything stored by S3, and copied by sftp."""
    changed, said = converge(
        **{f"backup_{name}": value for name, value in store.items()},
        backup_copy_repository="sftp://store@127.0.0.1/srv/store/copy",
        backup_copy_ssh_key=f"{host.check_output('cat /root/store')}\n",
        backup_copy_ssh_known_hosts=host.check_output(
            "ssh-keyscan 127.0.0.1 2>/dev/null"
        ).splitlines(),
    )
    assert changed > 0, said
    first_stored()


def test_a_database_is_archived_stored_and_restored_by_s3(in_s3, called, job, problems):
    called("backup_jobs.switch(backup_jobs.backup_repository.setup())")
    # Both look at all that is in the store, the second one by restoring it.
    for unit in ("incr", "drill"):
        left = job(unit)
        assert left["result"] == "ok", left


def test_all_is_copied_out_of_it_by_sftp_and_comes_back_by_a_folder(host, in_s3, job, called):
    left = job("copy")
    assert left["result"] == "ok", left
    wanted = ("shop", "", "copy")
    assert "backup fetch /mnt/copy" in called(f"backup_restore.plan{wanted}")["refused"]
    said = host.check_output("python3 -I /usr/local/lib/carafe/backup fetch /srv/fetched")
    assert "are in /srv/fetched" in said
    found = called("backup_restore.plan('shop', '', '/srv/fetched')")
    assert found["backups"]
    assert found["snapshots"]


def test_s3_is_good_for_the_copy_too(host, in_s3, job, called):
    host.check_output("python3 -c %s", COPY_THERE)
    left = job("copy")
    assert left["result"] == "ok", left
    assert left["details"]["parts"]["the database"]["bytes"] > 0
    assert called("backup_restore.plan('shop', '', 'copy')")["backups"]
