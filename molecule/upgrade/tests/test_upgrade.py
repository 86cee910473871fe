"""A server goes from Debian 12 to 13 as docs/how-to/upgrading-debian.md has it, its data back too.

The tests build on each other, in their order.
"""

import json
import os
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from testinfra.host import Host

SCENARIO = Path(__file__).parents[1]
REPOSITORY = SCENARIO.parents[1]
GUIDE = REPOSITORY / "docs/how-to/upgrading-debian.md"
sys.path.insert(0, str(REPOSITORY / "molecule"))
from load import Load  # noqa: E402 (found by the line above)

# As the app, whose Python Debian's upgrade has taken away by then.
WRITE = "runuser -u ledger -- psql -Xqd ledger -c \"INSERT INTO rows (id) VALUES ('{0}')\""
CONFIRMED = {"upgrade_confirm": "ledger"}


@pytest.fixture
def playbook(command: Callable[..., list[str]]) -> Callable[..., tuple[int, str]]:
    """Run a playbook on the server; returns its exit status, and its output in one line."""

    def run(name: str, *options: str, **variables: object) -> tuple[int, str]:
        done = subprocess.run(
            [*command(name, **variables), *options],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"},
        )
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    return run


@pytest.fixture
def url(published: Callable[[int], str]) -> Callable[[], str]:
    """Get where the site answers; a restart of the server may change the port."""
    return lambda: f"http://localhost:{published(80).rpartition(':')[2]}"


def rows(host: Host) -> set[str]:
    """Return the ids of all rows that were written."""
    return set(
        host.check_output("runuser -u ledger -- psql -XAtc 'SELECT id FROM rows' ledger").split()
    )


def clusters(host: Host) -> dict[str, tuple[str, str]]:
    """Return each cluster's port and state."""
    lines = host.check_output("pg_lsclusters --no-header").splitlines()
    return {f"{x[0]}/{x[1]}": (x[2], x[3].split(",")[0]) for x in map(str.split, lines)}


def stanzas(host: Host) -> dict[str, int]:
    """Return the backups that each version has."""
    said = host.check_output("runuser -u postgres -- pgbackrest info --output=json")
    return {re.search(r"\d+-main$", x["name"])[0]: len(x["backup"]) for x in json.loads(said)}


@pytest.fixture
def archived(host: Host, eventually: Callable[..., None]) -> Callable[[], str]:
    """Have the WAL so far archived; returns where it goes."""
    psql = "cd /; runuser -u postgres -- psql -XAtd postgres -c"
    failed = f"{psql} 'SELECT failed_count FROM pg_stat_archiver'"
    done = f"{psql} 'SELECT archived_count FROM pg_stat_archiver'"

    def archive() -> str:
        # What is tried now; what was tried before there was a place does not count.
        before, failures = int(host.check_output(done)), host.check_output(failed)
        host.check_output(f"{psql} \"SELECT pg_create_restore_point('x'), pg_switch_wal()\"")
        eventually(lambda: int(host.check_output(done)) > before)
        assert host.check_output(failed) == failures
        return host.check_output("cat /etc/pgbackrest/stanza-$(cat /etc/machine-id)")

    return archive


def psql(host: Host, *statements: str) -> str:
    """Run statements as the superuser in the app's database; returns the values."""
    command = "cd /; PGOPTIONS='-c search_path=public' runuser -u postgres -- psql -XqAtd ledger"
    return host.check_output(command + " -c %s" * len(statements), *statements)


# Besides the app's table: a tablespace, a large object, and indexes that are sorted as Debian has
# it, by a collation of PostgreSQL's own and by one that somebody has made.
MORE = (
    "CREATE TABLESPACE aside LOCATION '/srv/aside'",
    "CREATE TABLE words (word text) TABLESPACE aside",
    "INSERT INTO words SELECT 'ä' || n FROM generate_series(1, 1000) n",
    "CREATE COLLATION phonebook (provider = icu, locale = 'de-u-co-phonebk')",
    'CREATE INDEX words_own ON words (word COLLATE "de-x-icu")',
    "CREATE INDEX words_made ON words (word COLLATE phonebook)",
    "SELECT lo_from_bytea(424242, 'large')",
)
SORTED_ANEW = (
    "SELECT pg_relation_filenode('words_own') <> 'words_own'::regclass::oid"
    " AND collversion = pg_collation_actual_version(oid) FROM pg_collation"
    " WHERE collname = 'phonebook'"
)


def test_debian_is_upgraded_by_the_commands_of_the_guide(
    host: Host, url: Callable[[], str]
) -> None:
    host.check_output("install -d -o postgres -g postgres -m 700 /srv/aside")
    psql(host, *MORE)
    with Load(url(), 20) as load:
        load.go_on(40)
    assert set(load.acknowledged) <= rows(host)
    (block,) = re.findall(r"(?m)^ +sudo sed .*\n(?: +sudo .*\n)+", GUIDE.read_text())
    script = block.replace("sudo ", "")
    done = host.run(f"cd /; export DEBIAN_FRONTEND=noninteractive; set -e\n{script}")
    assert done.rc == 0, (done.stdout + done.stderr)[-3000:]
    assert host.check_output("cut -d. -f1 /etc/debian_version") == "13"
    assert clusters(host) == {"15/main": ("5432", "online")}


def test_every_other_work_is_refused_until_the_database_is_taken_along(
    playbook: Callable[..., tuple[int, str]],
) -> None:
    status, said = playbook("site")
    assert status
    assert "carafe.stack.upgrade_postgres" in said
    assert "15/main" in said


def test_nothing_is_touched_without_the_apps_name_and_a_backup(
    host: Host, playbook: Callable[..., tuple[int, str]]
) -> None:
    status, said = playbook("upgrade_postgres")
    assert status
    assert "The data of ledger would go from 15/main to 17/main" in said
    assert "-e upgrade_confirm=ledger" in said
    host.check_output("mv /var/lib/carafe/backup /var/lib/carafe/backup.away")
    try:
        status, said = playbook("upgrade_postgres", **CONFIRMED)
    finally:
        host.check_output("mv /var/lib/carafe/backup.away /var/lib/carafe/backup")
    assert status
    assert "There is no backup of the databases" in said
    assert "-e upgrade_without_backup=true" in said
    assert clusters(host) == {"15/main": ("5432", "online")}


def test_what_pg_upgrade_refuses_is_said_while_all_are_served(
    host: Host, playbook: Callable[..., tuple[int, str]]
) -> None:
    # 17 keeps such values in another way.
    psql(host, "CREATE TABLE refused (rights aclitem)")
    try:
        status, said = playbook("upgrade_postgres", **CONFIRMED)
    finally:
        psql(host, "DROP TABLE refused")
    assert status
    assert "Nothing was touched" in said
    assert "public.refused.rights" in said
    assert "Maintenance is on" not in said
    assert clusters(host) == {"15/main": ("5432", "online")}


class Writer(threading.Thread):
    """Writes rows, one after the other, and knows which ones PostgreSQL has acknowledged."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self.host, self.done, self.acknowledged = host, threading.Event(), set()

    def run(self) -> None:
        while not self.done.is_set():
            row = str(uuid.uuid4())
            if self.host.run(WRITE.format(row)).rc == 0:
                self.acknowledged.add(row)

    def go_on(self, eventually: Callable[..., None]) -> None:
        """Wait until more are acknowledged."""
        has = len(self.acknowledged)
        eventually(lambda: len(self.acknowledged) > has + 5)


# What a run leaves that is killed while the data is copied, its last steps done in part.
CUT_SHORT = """
systemctl stop postgresql@15-main
pg_createcluster 17 main
pg_conftool 15 main set port 5444
echo manual >/etc/postgresql/15/main/start.conf
printf '{"former": "15", "version": "17", "name": "main", "port": 5432}' \\
  >/var/lib/carafe/postgres-upgrade.json
"""


def test_the_upgrade_loses_no_row_and_goes_on_where_it_was_cut_short(
    host: Host,
    playbook: Callable[..., tuple[int, str]],
    eventually: Callable[..., None],
) -> None:
    settings = host.check_output("cat /etc/postgresql/15/main/conf.d/carafe.conf")
    writer = Writer(host)
    writer.start()
    try:
        writer.go_on(eventually)
        host.check_output("sh -ec %s", CUT_SHORT)
        status, said = playbook("upgrade_postgres", **CONFIRMED)
        assert status == 0, said
        writer.go_on(eventually)
    finally:
        writer.done.set()
        writer.join()
    assert "Maintenance is on: ledger" in said
    assert writer.acknowledged <= rows(host)
    assert clusters(host) == {"15/main": ("5433", "down"), "17/main": ("5432", "online")}
    assert host.check_output("cat /etc/postgresql/17/main/conf.d/carafe.conf") == settings
    controls = host.check_output(
        "/usr/lib/postgresql/17/bin/pg_controldata /var/lib/postgresql/17/main"
    )
    assert not re.search(r"checksum version:\s+0$", controls, re.M)
    assert psql(host, SORTED_ANEW, "SELECT count(*) FROM words") == "t\n1000"
    assert psql(host, "SELECT lo_get(424242)") == r"\x6c61726765"


def test_backups_go_on_in_a_place_of_the_new_version(
    host: Host, archived: Callable[[], str], eventually: Callable[..., None]
) -> None:
    eventually(lambda: stanzas(host)["17-main"] >= 1)
    assert archived().endswith("-17-main")


def test_site_finds_the_new_version_and_brings_the_app_to_the_new_python(
    host: Host, playbook: Callable[..., tuple[int, str]], url: Callable[[], str]
) -> None:
    status, said = playbook("site")
    assert status == 0, said
    assert requests.get(url(), timeout=30).ok
    interpreter = "readlink -f /proc/$(supervisorctl pid ledger:ledger_0)/exe"
    assert host.check_output(interpreter) == "/usr/bin/python3.13"
    # That the rest is left alone is tested where a site is made.
    status, said = playbook("site", "--tags=postgres,backup")
    assert status == 0
    assert " changed=0 " in said


def test_after_a_reboot_the_new_version_alone_runs(
    host: Host,
    restart_server: Callable[[], None],
    url: Callable[[], str],
    eventually: Callable[..., None],
) -> None:
    restart_server()
    eventually(lambda: requests.get(url(), timeout=30).ok)
    assert clusters(host) == {"15/main": ("5433", "down"), "17/main": ("5432", "online")}


def test_there_is_a_way_back_and_forth_again(
    host: Host,
    playbook: Callable[..., tuple[int, str]],
    url: Callable[[], str],
    archived: Callable[[], str],
) -> None:
    since = str(uuid.uuid4())
    host.check_output(WRITE.format(since))
    before = rows(host)
    status, said = playbook("upgrade_postgres", upgrade_undo=True, upgrade_confirm="ledger")
    assert status == 0, said
    assert clusters(host)["15/main"] == ("5432", "online")
    assert rows(host) < before
    assert since not in rows(host)
    (kept,) = clusters(host).keys() - {"15/main"}
    assert kept.startswith("17/undone-")
    assert archived().endswith("-15-main")
    with Load(url(), 20) as load:
        load.go_on(40)
    assert load.failures == []
    # Its tablespace has no room for another one's: postgresql_upgrade_checks.refuse_tablespaces().
    host.check_output(f"pg_dropcluster {kept.replace('/', ' ')}")
    status, said = playbook("upgrade_postgres", **CONFIRMED)
    assert status == 0, said
    assert clusters(host)["17/main"] == ("5432", "online")
    assert set(load.acknowledged) <= rows(host)
    status, said = playbook("upgrade_postgres", upgrade_drop=True, upgrade_confirm="ledger")
    assert status == 0, said
    assert clusters(host).keys() == {"17/main"}
    assert host.check_output("ls /srv/aside | cut -d _ -f 2") == "17"
    assert psql(host, "SELECT count(*) FROM words") == "1000"
