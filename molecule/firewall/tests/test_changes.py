"""No change of the rules locks anybody out for long, and none touches another table."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import APPLY, CLAIMS, CONFIRM, LOCKED, NEIGHBOUR, PROGRAM, RULES

pytestmark = pytest.mark.either_release


def test_owners_that_run_at_once_close_nothing_of_each_other(role, neighbour, allow, due, host):
    claimed = ({"firewall_allow": allow("8004")}, {"firewall_owner": "blog"})
    claimed[1]["firewall_allow"] = [{"ports": ["8005"]}]
    with ThreadPoolExecutor() as pool:
        runs = list(pool.map(lambda variables: role(**variables), claimed))
    assert all(changed > 0 for changed, _ in runs), runs
    for port in (8001, 8004, 8005):
        assert neighbour("tcp", *NEIGHBOUR, port) == "open"
    # What leaves the one's list is closed, and no more.
    changed, output = role()
    assert changed > 0, output
    assert neighbour("tcp", *NEIGHBOUR, 8004) == "dropped"
    assert neighbour("tcp", *NEIGHBOUR, 8005) == "open"
    assert due() == ""
    changed, output = role()
    assert changed == 0, output


def test_what_another_owner_states_otherwise_is_refused(role, host, state):
    before = state()
    old = f"{CLAIMS}/old.json"
    host.check_output(f"""echo '{{"firewall_allow": [], "firewall_ssh_rate": 3}}' >{old}""")
    changed, output = role(firewall_ssh_rate=5)
    host.check_output(f"rm {old}")
    assert changed == -1
    told = " ".join(output.split())
    assert "firewall_ssh_rate is 5 for default and 3 for old" in told, output
    assert state() == before


def test_unconfirmed_rules_are_taken_back(apply, state, neighbour, eventually):
    before = state()
    assert apply(LOCKED, 600).returncode == 0
    assert neighbour("tcp", *NEIGHBOUR, 22) == "dropped"
    # A second attempt is taken back to the rules from before the first.
    assert apply(LOCKED.replace("lo accept", "lo counter accept"), 1).returncode == 0
    eventually(lambda: state() == before)
    assert neighbour("tcp", *NEIGHBOUR, 22) == "open"


def test_unconfirmed_rules_are_taken_back_to_what_somebody_changed_by_hand(
    host, apply, state, eventually
):
    host.check_output("nft add rule inet carafe ssh counter comment byhand")
    before = state()
    assert apply(LOCKED, 1).returncode == 0
    eventually(lambda: state() == before)
    assert "byhand" in before[0]
    host.check_output("systemctl reload carafe-firewall")
    assert "byhand" not in state()[0]


def test_the_first_rules_are_taken_back_to_none(host, apply, state, eventually, due):
    host.check_output("systemctl stop carafe-firewall")
    assert state()[0] == ""
    assert apply(LOCKED, 600).returncode == 0
    assert state()[0]
    assert apply(LOCKED, 1).returncode == 0
    eventually(lambda: state()[0] == "")
    host.check_output("systemctl start carafe-firewall")
    assert due() == ""


def test_rules_that_nft_refuses_change_nothing(host, apply, state):
    before = state()
    done = apply(LOCKED.replace("accept", "acept"), 5)
    assert done.returncode != 0
    assert "acept" in done.stderr
    assert state() == before
    assert host.run("systemctl is-active carafe-firewall-revert.timer").stdout.strip() == "inactive"


def test_a_confirmation_that_comes_too_late_is_refused(apply, confirm, state, eventually):
    before = state()
    assert apply(LOCKED, 1).returncode == 0
    eventually(lambda: state() == before)
    late = confirm()
    assert late.returncode != 0
    assert "too late" in late.stderr
    assert state() == before


def test_a_confirmation_of_what_somebody_else_changed_is_refused(host, apply, confirm, state):
    before = state()
    assert apply(before[1] + "# the same\n", 600).returncode == 0
    host.check_output("nft add rule inet carafe ssh counter comment byhand")
    assert "Somebody else" in confirm().stderr
    host.check_output(f"{PROGRAM} revert")
    assert state() == before


def test_confirmed_rules_stay(host, apply, confirm, state, due):
    before = state()
    rules = before[1].replace("8010-8011", "8010-8012")
    for wanted in (rules, before[1]):
        assert apply(wanted, 600).returncode == 0
        assert confirm().returncode == 0
        timer = host.run("systemctl is-active carafe-firewall-revert.timer")
        assert timer.stdout.strip() == "inactive"
        assert state()[1] == wanted
        assert ("8010-8012" in state()[0]) is (wanted == rules)
        assert due() == ""


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


def test_what_would_lock_out_is_refused_before_anything_is_touched(role, host, state):
    def touched():
        return host.check_output(f"stat -c %Y /usr/local/lib/carafe /run/carafe-firewall {CLAIMS}")

    before = state(), touched()
    changed, output = role(firewall_ssh_ports=[2222])
    assert changed == -1
    assert "would lock you out" in " ".join(output.split()), output
    assert (state(), touched()) == before


def test_ssh_may_be_for_some_sources_only(in_force, neighbour):
    in_force(firewall_ssh_sources=["fd09::3"], firewall_ssh_unlimited=["10.9.0.130"])
    assert neighbour("tcp", *NEIGHBOUR, 22) == "dropped"
    assert neighbour("tcp", "fd09::2", "fd09::1", 22) == "dropped"
    assert neighbour("tcp", "fd09::3", "fd09::1", 22) == "open"
    assert neighbour("burst", "10.9.0.130", "10.9.0.1", 22, 60) == "60"


def test_ssh_may_have_several_ports_and_be_limited_more(in_force, neighbour):
    in_force(firewall_ssh_ports=[22, 8004], firewall_ssh_burst=5)
    assert 5 <= int(neighbour("burst", *NEIGHBOUR, 8004, 40)) <= 7
    assert neighbour("burst", *NEIGHBOUR, 22, 9) != "9"


def test_ssh_may_have_no_limit(in_force, neighbour):
    in_force(firewall_ssh_rate=0)
    assert neighbour("burst", *NEIGHBOUR, 22, 60) == "60"
    assert neighbour("tcp", *NEIGHBOUR, 8004) == "dropped"


def test_an_interface_may_be_trusted(in_force, neighbour):
    in_force(firewall_trusted_interfaces=["wir*"])
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
        None,
    ],
    ids=["flush", "delete", "add", "file", "disable", "stop", "unconfirmed"],
)
def test_what_somebody_did_by_hand_is_noticed(host, library, due, harm):
    rules = host.file(RULES).content_string
    assert due(rules) == ""
    if harm:
        host.check_output(harm)
    else:
        library(APPLY.format(600), rules)
    try:
        assert due(rules) != ""
    finally:
        # As the role does it.
        assert library(APPLY.format(600), rules).returncode == 0
        assert library(CONFIRM).returncode == 0
        host.check_output("systemctl enable --now carafe-firewall")
    assert due() == ""


def test_what_somebody_did_by_hand_is_shown_and_mended(role, host, state, neighbour, due):
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
