"""No change of the rules locks anybody out for long, and none touches another table."""

import re

import pytest
from conftest import LOCKED, NEIGHBOUR, RULES, SCRIPT

pytestmark = pytest.mark.either_release


@pytest.fixture
def gateway(host):
    """Address that Ansible's ssh comes from."""
    return re.search(r"via (\S+)", host.check_output("ip route show default"))[1]


def test_a_port_that_is_added_opens_and_one_that_is_removed_closes(role, neighbour, allow, due):
    changed, output = role(firewall_allow=allow("8004"))
    assert changed >= 1, output
    assert neighbour("tcp", *NEIGHBOUR, 8004) == "open"
    changed, output = role()
    assert changed >= 1, output
    assert neighbour("tcp", *NEIGHBOUR, 8004) == "dropped"
    assert due() == ""


def test_unconfirmed_rules_are_taken_back(apply, state, neighbour, eventually):
    before = state()
    assert apply(LOCKED, 5).returncode == 0
    assert neighbour("tcp", *NEIGHBOUR, 22) == "dropped"
    eventually(lambda: state() == before)
    assert neighbour("tcp", *NEIGHBOUR, 22) == "open"


def test_unconfirmed_rules_are_taken_back_to_what_somebody_changed_by_hand(
    host, apply, state, role, eventually
):
    host.check_output("nft add rule inet carafe ssh counter comment byhand")
    before = state()
    assert apply(LOCKED, 3).returncode == 0
    eventually(lambda: state() == before)
    assert "byhand" in before[0]
    changed, output = role()
    assert changed >= 1, output
    assert "byhand" not in state()[0]


def test_the_first_rules_are_taken_back_to_none(host, apply, state, role, eventually):
    host.check_output("systemctl stop carafe-firewall")
    assert state()[0] == ""
    assert apply(LOCKED, 3).returncode == 0
    assert state()[0]
    eventually(lambda: state()[0] == "")
    changed, output = role()
    assert changed >= 1, output


def test_a_second_attempt_is_taken_back_to_the_rules_from_before_the_first(
    apply, state, eventually
):
    before = state()
    assert apply(LOCKED, 600).returncode == 0
    assert apply(LOCKED.replace("lo accept", "lo counter accept"), 3).returncode == 0
    eventually(lambda: state() == before)


def test_rules_that_nft_refuses_change_nothing(host, apply, state):
    before = state()
    done = apply(LOCKED.replace("accept", "acept"), 5)
    assert done.returncode != 0
    assert "acept" in done.stderr
    assert state() == before
    assert host.run("systemctl is-active carafe-firewall-revert.timer").stdout.strip() == "inactive"


def test_a_confirmation_that_comes_too_late_is_refused(host, apply, state, eventually):
    before = state()
    assert apply(LOCKED, 1).returncode == 0
    eventually(lambda: state() == before)
    late = host.run(f"{SCRIPT} confirm")
    assert late.rc != 0
    assert "too late" in late.stderr
    assert state() == before


def test_a_confirmation_of_what_somebody_else_changed_is_refused(host, apply, state, eventually):
    before = state()
    assert apply(before[1] + "# the same\n", 600).returncode == 0
    host.check_output("nft add rule inet carafe ssh counter comment byhand")
    assert host.run(f"{SCRIPT} confirm").rc != 0
    host.check_output(f"{SCRIPT} revert")
    assert state() == before


def test_confirmed_rules_stay(host, apply, state, role):
    rules = state()[1].replace("8010-8011", "8010-8012")
    assert apply(rules, 600).returncode == 0
    host.check_output(f"{SCRIPT} confirm")
    assert host.run("systemctl is-active carafe-firewall-revert.timer").stdout.strip() == "inactive"
    assert state()[1] == rules
    assert "8010-8012" in state()[0]
    changed, output = role()
    assert changed >= 1, output


def test_rules_that_let_no_new_connection_in_fail_and_are_taken_back(
    role, host, state, allow, eventually, due
):
    before = state()
    changed, output = role(firewall_allow=allow("8004"), firewall_revert_seconds=20, barred=True)
    host.check_output("nft delete table inet barrier")
    assert changed == -1
    told = " ".join(output.split())
    assert "The new rules let no new connection in" in told, output
    assert state()[1] == before[1]
    eventually(lambda: state() == before)
    # Nothing is left to be mended.
    assert due() == ""


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"firewall_ssh_ports": [2222]}, "would lock you out"),
        ({"firewall_allow": [{"ports": [80], "sources": ["192.0.2.256"]}]}, "'192.0.2.256'"),
    ],
    ids=["ssh port", "network"],
)
def test_what_cannot_be_is_refused_before_anything_is_touched(role, host, state, variables, reason):
    before = (
        state(),
        host.check_output("stat -c %Y /usr/local/lib/carafe-firewall.py /run/carafe-firewall"),
    )
    changed, output = role(**variables)
    assert changed == -1
    assert reason in " ".join(output.split()), output
    assert "apply |" not in output
    assert (
        state(),
        host.check_output("stat -c %Y /usr/local/lib/carafe-firewall.py /run/carafe-firewall"),
    ) == before


def test_ssh_may_be_for_some_sources_only(role, neighbour, gateway):
    changed, output = role(
        firewall_ssh_sources=[gateway, "fd09::3"], firewall_ssh_unlimited=["10.9.0.130"]
    )
    assert changed >= 1, output
    assert neighbour("tcp", *NEIGHBOUR, 22) == "dropped"
    assert neighbour("tcp", "fd09::2", "fd09::1", 22) == "dropped"
    assert neighbour("tcp", "fd09::3", "fd09::1", 22) == "open"
    assert neighbour("burst", "10.9.0.130", "10.9.0.1", 22, 60) == "60"


def test_ssh_may_have_several_ports_and_be_limited_more(role, neighbour):
    changed, output = role(firewall_ssh_ports=[22, 8004], firewall_ssh_burst=5)
    assert changed >= 1, output
    assert 5 <= int(neighbour("burst", *NEIGHBOUR, 8004, 40)) <= 7
    assert neighbour("burst", *NEIGHBOUR, 22, 9) != "9"


def test_ssh_may_have_no_limit_and_an_interface_may_be_trusted(role, neighbour, allow):
    changed, output = role(firewall_ssh_rate=0)
    assert changed >= 1, output
    assert neighbour("burst", *NEIGHBOUR, 22, 60) == "60"
    assert neighbour("tcp", *NEIGHBOUR, 8004) == "dropped"
    changed, output = role(firewall_trusted_interfaces=["wir*"])
    assert changed >= 1, output
    assert neighbour("tcp", *NEIGHBOUR, 8004) == "open"


@pytest.mark.parametrize(
    "harm",
    [
        "nft flush table inet carafe",
        "nft delete table inet carafe",
        "nft add rule inet carafe input accept",
        f"sed -i s/8010/8009/ {RULES}",
        "systemctl disable carafe-firewall",
        "systemctl stop carafe-firewall",
        # As after a run that was cut short, and not yet taken back.
        f"{SCRIPT} apply 600 <{RULES}",
    ],
    ids=["flush", "delete", "add", "file", "disable", "stop", "unconfirmed"],
)
def test_what_somebody_did_by_hand_is_noticed(host, role, due, harm):
    if due():
        changed, output = role()
        assert changed >= 1, output
    rules = host.check_output(f"cat {RULES}")
    host.check_output(harm)
    try:
        assert due(rules) != ""
    finally:
        # As the role does it.
        host.check_output(f"{SCRIPT} apply 600 <<'END'\n{rules}\nEND")
        host.check_output(f"{SCRIPT} confirm && systemctl enable --now carafe-firewall")
    assert due() == ""


def test_what_somebody_did_by_hand_is_shown_and_mended(role, host, state, neighbour, due):
    changed, output = role()
    assert changed >= 0, output
    before = state()
    host.check_output("nft flush table inet carafe && systemctl disable carafe-firewall")
    flushed = state()
    changed, output = role("--check")
    assert changed == 1, output
    assert state() == flushed
    changed, output = role()
    assert changed >= 1, output
    assert state() == before
    assert host.check_output("systemctl is-enabled carafe-firewall") == "enabled"
    assert neighbour("tcp", *NEIGHBOUR, 8001) == "open"
    assert neighbour("tcp", *NEIGHBOUR, 8004) == "dropped"
    assert due() == ""


def test_a_dry_run_shows_what_would_change(role, state, allow):
    before = state()
    changed, output = role("--check", "--diff", firewall_allow=allow("8004"))
    assert changed == 1, output
    assert re.search(r"^\+\s+tcp dport \{ 8004 \} accept", output, re.MULTILINE), output
    assert state() == before
