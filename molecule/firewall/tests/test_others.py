"""Tables of others, Docker's among them, and what a reboot leaves of all."""

import pytest
from conftest import LOCKED, NEIGHBOUR

BANNED = ("10.9.0.130", "10.9.0.1")
# What others may have: a ban of fail2ban's kind, and a rule that only counts. They are loaded at
# boot before the rules of the role.
OTHERS = """
table inet f2b-table {
    set banned { type ipv4_addr; elements = { 10.9.0.130 }; }
    chain input {
        type filter hook input priority filter - 1;
        ip saddr @banned drop
    }
}
table ip other {
    chain forward { type filter hook forward priority filter; counter; }
}
"""
UNIT = """
[Unit]
DefaultDependencies=no
Before=carafe-firewall.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/nft -f /opt/others.nft
[Install]
WantedBy=sysinit.target
"""


@pytest.fixture(scope="module", autouse=True)
def others(host):
    """Tables of others, now and at boot."""
    host.check_output(f"printf %s '{OTHERS}' >/opt/others.nft")
    host.check_output(f"printf %s '{UNIT}' >/etc/systemd/system/others.service")
    host.check_output("systemctl enable --now others")
    yield
    host.check_output("systemctl disable others; rm /etc/systemd/system/others.service")
    host.run("nft delete table ip other")
    host.run("nft delete table inet f2b-table")


@pytest.fixture
def untouched(host, neighbour):
    """Check that the tables of others are there and at work."""

    def check():
        assert "hook forward" in host.check_output("nft list table ip other")
        assert neighbour("tcp", *BANNED, 8001) == "dropped"
        # Docker's DNS lives from rules that it has put into the container.
        assert host.check_output("getent -s dns ahostsv4 $(hostname)")

    return check


def test_new_rules_touch_no_other_table(in_force, allow, neighbour, untouched):
    untouched()
    in_force(firewall_allow=allow("8004"))
    assert neighbour("tcp", *NEIGHBOUR, 8004) == "open"
    untouched()


def test_rules_that_are_taken_back_touch_no_other_table(apply, state, eventually, untouched):
    before = state()
    assert apply(LOCKED, 1).returncode == 0
    eventually(lambda: state() == before)
    untouched()


@pytest.mark.parametrize("verb", ["reload", "restart"])
def test_the_service_touches_no_other_table(host, state, untouched, verb):
    before = state()
    host.check_output(f"systemctl {verb} carafe-firewall")
    assert state() == before
    untouched()


def test_a_reboot_brings_back_the_confirmed_rules_and_nothing_else(
    restart_server, apply, state, neighbour, untouched, due
):
    before = state()
    assert apply(LOCKED, 600).returncode == 0
    assert state() != before
    restart_server()
    assert state() == before
    assert neighbour("tcp", *NEIGHBOUR, 8001) == "open"
    assert neighbour("tcp", *NEIGHBOUR, 8004) == "dropped"
    untouched()
    assert due() == ""


def test_the_rules_are_loaded_before_there_is_a_network(host):
    ordered = host.check_output("systemctl show --property=Before carafe-firewall")
    assert "network-pre.target" in ordered
    assert host.check_output("systemctl is-active network-pre.target") == "active"


@pytest.fixture
def flushing(host, restart_server):
    """Debian's service, which throws all tables away; Docker's DNS is back after a reboot only."""
    host.check_output("systemctl enable --now nftables && systemctl restart carafe-firewall")
    yield
    host.check_output("systemctl disable --now nftables")
    restart_server()


def test_the_rules_are_back_after_all_that_the_service_of_debian_does(
    flushing, restart_server, host, state, eventually
):
    before = state()
    assert "hook input" in before[0]
    for verb in ("reload", "restart"):
        host.check_output(f"systemctl {verb} nftables")
        eventually(lambda: state() == before)
    restart_server()
    assert state() == before
