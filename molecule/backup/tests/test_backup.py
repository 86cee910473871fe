"""What is stored is whole, comes back as it was, and what is wrong with it is told."""

import re
import time

import pytest

STATE = "/var/lib/carafe/backup"
KEY = "a-key-that-opens-the-backups-of-this-test"
REPOSITORY = "/backup/pgbackrest"
# An app that has its database open, with what it wrote last in a file beside.
WRITER = """
import sqlite3, time
there = sqlite3.connect('/srv/shop/shared/the $data [1]/shop')
there.execute('PRAGMA journal_mode = WAL')
there.execute('PRAGMA wal_autocheckpoint = 0')
there.execute('CREATE TABLE IF NOT EXISTS notes (text)')
there.execute("INSERT INTO notes VALUES ('%s')")
there.commit()
%s
"""
NOTES = "sqlite3.connect('file:/srv/shop/shared/the $data [1]/shop?mode=ro', uri=True)"


@pytest.fixture(scope="module")
def note(host):
    """Write with SQLite as the app; it ends without a checkpoint, as one that is killed."""

    def write(text):
        script = WRITER % (text, "import os; os._exit(0)")
        host.check_output("runuser -u shop -- python3 -c %s", script)

    return write


@pytest.fixture(scope="module")
def notes(host):
    query = "[x for (x,) in there.execute('SELECT text FROM notes ORDER BY rowid')]"
    script = f"import sqlite3; there = {NOTES}; print(*{query})"
    return lambda: host.check_output("runuser -u shop -- python3 -c %s", script)


def test_nothing_is_wrong(problems):
    assert problems() == []


@pytest.mark.parametrize(
    ("path", "mode", "group"),
    [
        ("/etc/pgbackrest/pgbackrest.conf", 0o640, "postgres"),
        ("/etc/carafe/backup/setup.json", 0o600, "root"),
        ("/backup/files", 0o700, "root"),
        ("/backup/pgbackrest", 0o750, "postgres"),
        (f"{STATE}/database-full.json", 0o640, "root"),
    ],
)
def test_nobody_else_reads_the_key_or_what_is_stored(host, path, mode, group):
    file = host.file(path)
    assert (file.mode, file.group) == (mode, group)


def test_no_secret_is_in_a_unit_or_a_program(host):
    assert host.run("grep -r %s /etc/systemd /usr/local/lib/carafe", KEY).rc == 1


def test_a_new_cluster_has_checksums(admin):
    assert admin("SHOW data_checksums") == "on"


@pytest.mark.parametrize("unit", ["full", "diff", "incr", "marker", "drill", "copy", "files-shop"])
def test_timers_begin_all_of_it_at_each_boot_too(host, unit):
    timer = host.service(f"carafe-backup-{unit}.timer")
    assert timer.is_enabled
    assert timer.is_running


def test_the_drill_takes_what_nobody_else_wants_and_has_no_network(host):
    shown = host.check_output(
        "systemctl show -p Nice,IOSchedulingClass,CPUWeight,PrivateNetwork carafe-backup-drill"
    )
    wanted = {"Nice=19", "IOSchedulingClass=3", "CPUWeight=10", "PrivateNetwork=yes"}
    assert set(shown.splitlines()) == wanted


def test_a_timer_that_is_off_is_told(host, problems):
    host.check_output("systemctl stop carafe-backup-drill.timer")
    assert any("carafe-backup-drill.timer does not run" in x for x in problems())
    host.check_output("systemctl start carafe-backup-drill.timer")


@pytest.mark.parametrize(
    ("moment", "says"),
    [
        ("2001-01-01 00:00:00+00", "before the first backup"),
        ("2101-01-01 00:00:00+00", "after the newest moment"),
        ("2026-11-22 10:00:00", "no zone"),
        ("before 46b2c12fc937", "have no release"),
    ],
)
def test_a_moment_out_of_reach_is_refused_with_what_can_be_reached(called, moment, says):
    assert says in called(f"backup_restore.begin('shop', '{moment}')")["refused"]
    assert called("backup_restore.Restore('shop').progress") == {}


def test_back_to_a_moment_between_two_rows_and_back_again(
    host, admin, rows, texts, note, notes, job, called
):
    """With what SQLite had only in its log of changes, and nobody else's database."""
    admin("CREATE TABLE IF NOT EXISTS public.theirs (text text)", "blog")
    note("one")
    rows("before")
    moment = called("__import__('time').time()") + 0.2
    time.sleep(0.5)
    assert job("files-shop")["details"]["sqlite"] == ["/srv/shop/shared/the $data [1]/shop"]
    rows("after")
    note("two")
    host.check_output("rm /srv/shop/shared/uploads/photo.jpg")
    admin("INSERT INTO public.theirs VALUES ('kept')", "blog")
    begun = called(
        f"backup_restore.begin('shop', backup_restore.shown({moment}).replace('+00:00', '.999+00'))"
    )
    done = job("restore@shop")
    assert done["result"] == "ok"
    # The promise is a minute for each GB, and then 10 s of maintenance.
    assert done["ended"] - done["began"] < 120
    # Nothing is switched yet.
    assert (texts(), notes()) == ("before after", "one two")
    began = time.monotonic()
    kept = called("backup_restore.switch('shop')")
    assert time.monotonic() - began < 20
    # Until the app has connected anew, the same command goes on, and nothing is given up.
    assert "restore_undo=" in called("backup_restore.cancel('shop')")["refused"]
    assert called("backup_restore.switch('shop')") == []
    called("backup_restore.finish('shop')")
    assert (texts(), notes()) == ("before", "one")
    assert host.file("/srv/shop/shared/uploads/photo.jpg").size == 100000
    assert host.file("/srv/shop/shared/uploads/photo.jpg").user == "shop"
    assert admin("SELECT text FROM public.theirs", "blog") == "kept"
    # As who runs the app: what it may do came along.
    host.check_output("runuser -u shop -- psql -Xc %s shop", "INSERT INTO rows VALUES ('more')")
    assert host.run("runuser -u shop -- psql -Xc %s shop", "DROP TABLE rows").rc != 0
    assert f"shop_before_{begun['id']}" in kept
    called(f"backup_restore.undo('shop', '{begun['id']}')")
    assert (texts(), notes()) == ("before after", "one two")
    (left,) = called("backup_restore.plan('shop', '')")["kept"]
    called(f"backup_restore.drop('shop', '{left}')")
    assert called("backup_restore.plan('shop', '')")["kept"] == {}
    assert "_undone_" not in admin("SELECT string_agg(datname, ' ') FROM pg_database")
    assert host.run("ls -d /srv/shop/shared.*").rc != 0


def test_archiving_goes_on_after_a_restore_on_the_same_timeline(admin, called):
    assert admin(
        "SELECT failed_count, timeline_id FROM pg_stat_archiver, pg_control_checkpoint()"
    ) == ("0|1")
    assert called("backup_jobs.switch(backup_jobs.backup_repository.setup())")


def test_a_database_that_somebody_dropped_comes_back_and_by_name(
    host, admin, rows, texts, called, job
):
    rows("then")
    called("backup_jobs.point('harmless')")
    rows("since")
    admin("DROP DATABASE shop WITH (FORCE)", "postgres")
    called("backup_restore.begin('shop', 'harmless')")
    assert job("restore@shop")["result"] == "ok"
    called("backup_restore.switch('shop')")
    called("backup_restore.finish('shop')")
    assert texts().split()[-1] == "then"


def test_a_restore_that_was_killed_goes_on(host, rows, texts, called, job):
    rows("kept")
    called("backup_restore.begin('shop', 'latest')")
    host.check_output("systemctl start --no-block carafe-backup-restore@shop")
    deadline = time.monotonic() + 60
    while host.run("ls /var/lib/postgresql/*/.carafe-restore-shop/log").rc != 0:
        assert time.monotonic() < deadline
    host.check_output("systemctl kill --signal=KILL carafe-backup-restore@shop")
    rows("later")
    assert job("restore@shop")["result"] == "ok"
    called("backup_restore.switch('shop')")
    called("backup_restore.finish('shop')")
    assert texts().split()[-1] == "kept"
    for moment in called("backup_restore.plan('shop', '')")["kept"]:
        called(f"backup_restore.drop('shop', '{moment}')")


def test_a_restore_that_is_given_up_leaves_nothing(host, admin, called):
    called("backup_restore.begin('shop', 'latest')")
    admin('CREATE ROLE "shop-restoring"', "postgres")
    assert called("backup_restore.cancel('shop')")
    assert admin("SELECT count(*) FROM pg_roles WHERE rolname = 'shop-restoring'") == "0"
    assert called("backup_restore.Restore('shop').progress") == {}


def test_the_playbook_says_what_is_lost(host, admin, playbook, rows, texts):
    rows("last")
    moment = admin("SELECT clock_timestamp()")
    for text in ("lost", "gone"):
        rows(text)
    admin("UPDATE public.rows SET text = 'gone too' WHERE text = 'gone'")
    admin("BEGIN; INSERT INTO public.rows VALUES ('never there'); ROLLBACK")
    admin("ANALYZE")
    admin("CREATE TABLE IF NOT EXISTS public.theirs (text text)", "blog")
    admin("INSERT INTO public.theirs VALUES ('of another app')", "blog")
    host.check_output("runuser -u shop -- touch /srv/shop/shared/uploads/new")
    done, said = playbook("restore", backup_restore_to=moment)
    assert done, said
    assert re.search(r"it loses what was written since", said)
    assert "shop: 3 transactions with rows written, the last " in said
    assert "  public.rows: 2 inserted, 1 updated" in said
    assert "0 deleted" in said
    assert "  /srv/shop/shared/uploads/new" in said
    assert texts().split()[-1] == "last"


def test_the_drill_finds_all_well(job):
    left = job("drill")
    assert left["result"] == "ok", left
    assert left["details"]["database"]["target"] < left["ended"]


# What looks like success, and is none.


@pytest.fixture
def lost_segment(host, rows, called):
    """A file of WAL that is missing since the newest backup, until the end of the test."""
    setup = "backup_jobs.backup_repository.setup()"
    names = []
    for text in ("one", "two", "three"):
        rows(text)
        names.append(called(f"backup_jobs.switch({setup})"))
    path = host.check_output(f"find {REPOSITORY}/archive -name '{names[1]}-*'")
    host.check_output("mv %s /root/segment", path)
    yield names[1]
    host.check_output("mv /root/segment %s", path)


def test_a_missing_file_of_wal_is_told_by_the_drill_and_by_what_is_asked(
    lost_segment, job, problems
):
    left = job("drill")
    assert left["result"] == "failed"
    assert lost_segment in left["message"]
    assert "systemctl start carafe-backup-full" in left["message"]
    assert [x for x in problems() if lost_segment in x]
    # The next backup leads around it, and says what cannot be reached.
    assert job("incr")["details"]["holes"] == [lost_segment]
    assert [x for x in problems("yellow") if lost_segment in x]


@pytest.fixture
def corrupted(host):
    """A backup in which the disk has changed something, until the end of the test."""
    find = f"find {REPOSITORY}/backup -type f -printf '%s %p\\n' | sort -n | tail -n 1"
    length, _, path = host.check_output(find).partition(" ")
    host.check_output("cp -p %s /root/whole", path)
    place = f"of={path} seek={int(length) // 2} bs=1 count=4000 conv=notrunc"
    host.check_output(f"dd if=/dev/urandom {place} status=none")
    yield
    host.check_output("cat /root/whole >%s && rm /root/whole", path)


def test_a_corrupted_backup_is_told_by_the_next_one_and_by_the_drill(corrupted, job, problems):
    left = job("diff")
    assert left["result"] == "failed"
    assert "corrupted" in left["message"]
    assert [x for x in problems() if "database-diff: the repository is corrupted" in x]
    assert job("drill")["result"] == "failed"


def test_a_corrupted_file_of_an_app_is_told(host, job):
    find = "find /backup/files/shop/data -type f -size +50k | head -n 1"
    path = host.check_output(find)
    host.check_output("cp -p %s /root/pack", path)
    host.check_output("chmod u+w %s && printf x | dd of=%s conv=notrunc status=none", path, path)
    # Of the repository it reads a share each night, by chance.
    host.check_output(
        'cp -a %s /root/drill.py && sed -i \'s/share="5%%"/share="100%%"/\' %s',
        *["/usr/local/lib/carafe/backup/carafe/backup_drill.py"] * 2,
    )
    left = job("drill")
    host.check_output("mv /root/drill.py /usr/local/lib/carafe/backup/carafe/backup_drill.py")
    host.check_output("cat /root/pack >%s && rm /root/pack", path)
    assert left["result"] == "failed"
    assert "shop" in left["message"]


@pytest.fixture
def wrong_key(host):
    for path in ("/etc/pgbackrest/pgbackrest.conf", "/etc/carafe/backup/setup.json"):
        host.check_output("sed -i s/%s/another-key-that-opens-nothing-at-all/ %s", KEY, path)
    yield
    for path in ("/etc/pgbackrest/pgbackrest.conf", "/etc/carafe/backup/setup.json"):
        host.check_output("sed -i s/another-key-that-opens-nothing-at-all/%s/ %s", KEY, path)


@pytest.mark.parametrize("unit", ["incr", "files-shop", "drill"])
def test_a_wrong_key_is_named(wrong_key, job, problems, unit):
    left = job(unit)
    assert left["result"] == "failed"
    assert "backup_key" in left["message"]
    assert [x for x in problems() if "backup_key" in x]


def test_a_full_place_is_told(host, job, problems, rows, admin, eventually):
    host.run("dd if=/dev/zero of=/backup/filler bs=1M status=none")
    try:
        left = job("full")
        assert left["result"] == "failed"
        assert "df -h" in left["message"]
        rows("waits")
        admin("SELECT pg_switch_wal()")
        eventually(lambda: [x for x in problems("yellow") if "archiving of WAL fails" in x], 90)
    finally:
        host.check_output("rm /backup/filler")


def test_all_is_well_when_all_is_mended(host, job, problems, rows, admin, eventually):
    # Nobody tells PostgreSQL to close this segment: the promise is 60 s and the time of a push.
    rows("goes by itself")
    segment = admin("SELECT pg_walfile_name(pg_current_wal_lsn())")
    query = f"SELECT left(last_archived_wal, 24) >= '{segment}' FROM pg_stat_archiver"
    eventually(lambda: admin(query) == "t", 150)
    for unit in ("full", "diff", "files-shop", "copy", "drill"):
        left = job(unit)
        assert left["result"] == "ok", left
    assert problems() == []
