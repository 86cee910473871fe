"""What is stored, and that it comes back."""


def test_placeholder(host):
    assert host.file("/etc/pgbackrest/pgbackrest.conf").mode == 0o640
