"""What somebody had configured by hand of supervisord goes on beside the role's programs."""

import pytest

HAND_MADE = "/root/supervisord.conf"


@pytest.fixture(autouse=True)
def _by_hand(host):
    if not host.file(HAND_MADE).exists:
        pytest.skip("nobody has configured this server's supervisord before")


@pytest.mark.parametrize("name", ["theirs", "theirs-too"])  # of supervisord.conf, and of conf.d
def test_a_program_of_theirs_runs(host, eventually, name):
    eventually(lambda: " RUNNING " in host.run(f"supervisorctl status {name}").stdout)


def test_a_copy_of_the_file_stays(host):
    copy = host.file("/var/backups/carafe/etc/supervisor/supervisord.conf")
    assert copy.content == host.file(HAND_MADE).content
    assert copy.mode == 0o600


def test_nobody_steers_it_over_tcp_any_more(host):
    assert not host.socket("tcp://127.0.0.1:9001").is_listening
