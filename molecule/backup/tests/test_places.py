"""Another host as the place, by sftp, for files."""

import pytest

# Its key may do that and nothing else.
STORE = """
set -e
useradd --system --create-home --home-dir /srv/store store
test -f /root/store || ssh-keygen -q -t ed25519 -N '' -f /root/store
install -d -o store -g store -m 0700 /srv/store/.ssh /srv/store/backups
(printf 'restrict,command="internal-sftp" '; cat /root/store.pub) >/srv/store/.ssh/authorized_keys
chown store: /srv/store/.ssh/authorized_keys
"""


@pytest.fixture(scope="module")
def another_host(host, converge, first_stored):
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
