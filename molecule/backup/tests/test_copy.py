"""What is stored is in a second place, whatever becomes of the first one."""

import time

import pytest

STANZA = "$(cat /etc/pgbackrest/stanza-$(cat /etc/machine-id))"
# What differs between the two, of what is never written anew.
DIFFERENCE = f"""
cd /backup && find files/shop/data files/shop/index files/shop/snapshots \\
  pgbackrest/backup/{STANZA}/[0-9]* pgbackrest/backup/{STANZA}/backup.info -type f |
  while read -r file; do cmp "$file" "/copy/$file" || exit 1; done
"""
PACK = "find /backup/files/shop/data -type f | sort | head -n 1"
SNAPSHOT = "ls -tr /backup/files/shop/snapshots/* | tail -n 1"


@pytest.fixture
def away(host):
    """Move something out of its place, until the end of the test."""
    moved = []

    def move(*paths):
        for path in paths:
            host.check_output("mv %s %s", path, f"/backup/.away-{len(moved)}")
            moved.append(path)

    yield move
    for number, path in enumerate(moved):
        host.check_output("rm -rf %s && mv %s %s", path, f"/backup/.away-{number}", path)


@pytest.fixture(scope="module")
def copied(host, job):
    """Have all that is stored in the copy, and nobody else copy it meanwhile."""
    host.check_output("systemctl stop carafe-backup-copy.timer")
    left = job("copy")
    assert left["result"] == "ok", left
    yield left
    host.check_output("systemctl start carafe-backup-copy.timer")


def test_all_that_is_stored_is_copied(host, copied):
    host.check_output(DIFFERENCE)
    assert copied["details"]["parts"]["the database"]["bytes"] >= 0
    assert host.file("/copy/pgbackrest/backup").user == "postgres"


@pytest.mark.either_release
def test_nothing_is_copied_twice(host, copied, job):
    assert job("copy")["details"]["parts"]["shop's files"]["bytes"] == 0


@pytest.mark.either_release
def test_a_copy_that_was_killed_goes_on(host, copied, job, rows, called, eventually):
    rows("while it is copied")
    called("backup_jobs.switch(backup_jobs.backup_repository.setup())")
    host.check_output("systemctl start --no-block carafe-backup-copy")
    host.check_output("systemctl kill --signal=KILL carafe-backup-copy")
    eventually(lambda: host.run("systemctl is-failed carafe-backup-copy").rc == 0)
    assert job("copy")["result"] == "ok"
    host.check_output(DIFFERENCE)


@pytest.mark.either_release
def test_a_repository_that_was_emptied_leaves_the_copy_as_it_is(host, copied, job, away, problems):
    count = "find /copy -type f | wc -l"
    before = host.check_output(count)
    away("/backup/files/shop", f"/backup/pgbackrest/backup/{host.check_output('echo ' + STANZA)}")
    left = job("copy")
    assert left["result"] == "failed"
    for word in ("the database: ", "shop's files: ", "the copy is left as it is"):
        assert word in left["message"]
    assert [x for x in problems() if x.startswith("copy: ")]
    assert host.check_output(count) == before


@pytest.mark.either_release
def test_a_snapshot_that_somebody_removed_is_told_and_kept(host, copied, job, away):
    name = host.check_output(SNAPSHOT)
    away(name)
    left = job("copy")
    assert left["result"] == "failed"
    assert f"has lost shop/{name.rpartition('/')[2]}" in left["message"]
    assert host.file(name.replace("/backup/", "/copy/")).exists


@pytest.mark.either_release
def test_a_file_that_the_disk_has_changed_is_told_and_not_copied(host, copied, job):
    path = host.check_output(PACK)
    host.check_output("cp -p %s /root/pack && chmod u+w %s && truncate -s -1 %s", *[path] * 3)
    left = job("copy")
    host.check_output("mv /root/pack %s", path)
    assert left["result"] == "failed"
    assert "is not what it was when it was copied" in left["message"]
    host.check_output("cmp %s %s", path, path.replace("/backup/", "/copy/"))


def test_all_comes_back_out_of_the_copy_alone(
    host, copied, job, rows, called, admin, away, problems
):
    """Without the first place, as far as archiving goes on."""
    host.check_output("runuser -u shop -- sh -c 'echo copied >/srv/shop/shared/uploads/copied'")
    assert job("files-shop")["result"] == "ok"
    rows("copied")
    time.sleep(0.01)  # the moment between the two
    moment = called("__import__('time').time()")
    rows("since")
    called("backup_jobs.switch(backup_jobs.backup_repository.setup())")
    assert job("copy")["result"] == "ok"
    host.check_output("rm /srv/shop/shared/uploads/copied")
    away("/backup/files/shop", f"/backup/pgbackrest/backup/{host.check_output('echo ' + STANZA)}")
    stamp = f"backup_restore.backup_target.stamp({moment})"
    assert "before now" in called("backup_restore.begin('shop', 'latest', place='copy')")["refused"]
    begun = called(f"backup_restore.begin('shop', {stamp}, place='copy')")
    left = job("restore@shop")
    assert left["result"] == "ok", left
    called("backup_restore.switch('shop')")
    called("backup_restore.finish('shop')")
    assert not [x for x in problems() if x.startswith("copy: ")]
    assert admin("SELECT text FROM public.rows ORDER BY at DESC LIMIT 1") == "copied"
    assert host.file("/srv/shop/shared/uploads/copied").content_string == "copied\n"
    called(f"backup_restore.undo('shop', '{begun['id']}')")
    for kept in called("backup_restore.left('shop')")["kept"]:
        called(f"backup_restore.drop('shop', '{kept}')")
