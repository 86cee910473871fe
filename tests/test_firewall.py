"""What the firewall refuses, whom it would lock out, and what it makes of what its owners claim."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.carafe.stack.plugins.module_utils import (
    commands,
    firewall,
    firewall_rules,
    programs,
    ssh_peer,
    takeback,
)
from ansible_collections.carafe.stack.plugins.modules import firewall as module
from conftest import Role
from inventories import of_one_server

ENTRY: dict[str, Any] = {"ports": ["80"], "protocol": "tcp", "sources": [], "comment": ""}
VRRP = ENTRY | {"ports": [], "protocol": "vrrp", "sources": ["10.0.0.12", "fd00::12"]}
V4 = ssh_peer.Peer("deploy", "203.0.113.7", "192.0.2.1", 22)
V6 = ssh_peer.Peer("deploy", "2001:db8::7", "2001:db8::1", 2222)
LOCAL = ssh_peer.Peer("deploy", "127.0.0.1", "127.0.0.1", 22)


class Kernel:
    """Stands in for nft, for systemd, and for whoever is connected by ssh."""

    def __init__(self) -> None:
        self.table = ""
        self.peer: ssh_peer.Peer | None = None

    def run(self, *words: Any, text: str | None = None) -> str:
        if words[0] == firewall.NFT and "-c" not in words:
            self.table = text
        return ""

    def ask(self, *words: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(words, 0, self.table)

    def show(self, *_: str) -> list[dict[str, str]]:
        return [{"ActiveState": "active", "UnitFileState": "enabled", "NeedDaemonReload": "no"}]


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """A server with nft that nobody has reached by ssh."""
    found = Kernel()
    for name in ("CLAIMS", "CONFIRMED", "NFT", "LOADED", "LISTING", "UNIT", "RUN"):
        monkeypatch.setattr(firewall, name, tmp_path / name)
    firewall.NFT.touch()
    change = takeback.TakeBack(
        "firewall", tmp_path / "RUN/change.json", firewall.CLAIMS, "firewall_revert_seconds"
    )
    monkeypatch.setattr(firewall, "CHANGE", change)
    for name in ("run", "ask"):
        monkeypatch.setattr(firewall, name, getattr(found, name))
        monkeypatch.setattr(takeback, name, getattr(found, name))
    monkeypatch.setattr(firewall, "show", found.show)
    monkeypatch.setattr(programs, "FOLDER", tmp_path / "programs")
    monkeypatch.setattr(ssh_peer, "peer", lambda: found.peer)
    return found


def arguments(**params: Any) -> dict[str, Any]:
    """Return the arguments as the module has them: checked, and with those that are left out."""
    checked = ArgumentSpecValidator(module.ARGUMENTS).validate(params)
    assert not checked.error_messages
    return checked.validated_parameters


def apply(owner: str, *ports: str, check: bool = False, **params: Any) -> dict[str, Any]:
    """Apply what an owner claims, as one run does up to the new connection."""
    allow = [{"ports": list(ports)}] if ports else []
    return module.present(arguments(owner=owner, allow=allow, **params), check)


def confirm(owner: str) -> None:
    module.confirmed(arguments(owner=owner, state="confirmed"))


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ({"allow": [ENTRY | {"ports": ["https"]}]}, "firewall_allow has 'https'"),
        ({"allow": [ENTRY | {"ports": ["0"]}]}, "firewall_allow has '0'"),
        ({"allow": [ENTRY | {"ports": ["65536"]}]}, "firewall_allow has '65536'"),
        ({"allow": [ENTRY | {"ports": ["90-80"]}]}, "firewall_allow has '90-80'"),
        ({"allow": [ENTRY | {"ports": ["80 } accept; #"]}]}, "firewall_allow has '80 } accept"),
        ({"allow": [ENTRY | {"ports": []}]}, "an entry without ports"),
        ({"allow": [VRRP | {"sources": []}]}, "Name its sources, and no ports"),
        ({"allow": [VRRP | {"ports": ["80"]}]}, "Name its sources, and no ports"),
        ({"allow": [ENTRY | {"sources": ["example.com"]}]}, "firewall_allow has 'example.com'"),
        # Whoever writes that may mean the address, or the network.
        ({"allow": [ENTRY | {"sources": ["192.0.2.7/24"]}]}, "has host bits set"),
        ({"allow": [ENTRY | {"comment": 'a "b"'}]}, "no double quote"),
        ({"allow": [ENTRY | {"comment": "a\nb"}]}, "no line break"),
        ({"allow": [ENTRY | {"comment": "ü" * 61}]}, "120 bytes"),
        ({"ssh_ports": []}, "firewall_ssh_ports is empty"),
        ({"ssh_ports": [70000]}, "firewall_ssh_ports has '70000'"),
        ({"ssh_sources": ["office"]}, "firewall_ssh_sources has 'office'"),
        ({"ssh_unlimited": ["ci"]}, "firewall_ssh_unlimited has 'ci'"),
        ({"ssh_rate": -1}, "firewall_ssh_rate"),
        ({"ssh_burst": 1}, "firewall_ssh_burst"),
        ({"revert_seconds": 5}, "firewall_revert_seconds"),
        ({"trusted_interfaces": ['wg0" accept']}, "names no interface"),
        ({"trusted_interfaces": ["*"]}, "names no interface"),
    ],
    ids=lambda x: "" if isinstance(x, dict) else x,
)
@pytest.mark.parametrize("check", [True, False], ids=["check", "apply"])
def test_what_cannot_be_is_refused(
    kernel: Kernel, wanted: dict[str, Any], problem: str, check: bool
) -> None:
    with pytest.raises(commands.Refused) as refused:
        module.present(arguments(**wanted), check)
    assert problem in str(refused.value)
    assert kernel.table == ""
    assert not firewall.CONFIRMED.exists()


@pytest.mark.parametrize(
    ("peer", "wanted", "refused"),
    [
        (V4, {}, False),
        (V4, {"ssh_ports": [2222]}, True),
        (V4, {"ssh_ports": [2222, 22]}, False),
        (V4, {"ssh_sources": ["203.0.113.0/24"]}, False),
        (V4, {"ssh_sources": ["198.51.100.0/24"]}, True),
        (V4, {"ssh_sources": ["2001:db8::/32"]}, True),
        (V4, {"ssh_sources": ["198.51.100.0/24"], "ssh_unlimited": ["203.0.113.7"]}, False),
        (V4, {"ssh_ports": [2222], "allow": [ENTRY | {"ports": ["20-30"]}]}, False),
        (
            V4,
            {"ssh_ports": [2222], "allow": [ENTRY | {"ports": ["22"], "protocol": "udp"}]},
            True,
        ),
        (
            V4,
            {
                "ssh_ports": [2222],
                "allow": [ENTRY | {"ports": ["22"], "sources": ["192.0.2.0/24"]}],
            },
            True,
        ),
        (V6, {}, True),
        (V6, {"ssh_ports": [2222], "ssh_sources": ["2001:db8::/64"]}, False),
        # Not by ssh, or by a tunnel that ends on the server itself.
        (None, {"ssh_ports": [2222]}, False),
        (LOCAL, {"ssh_ports": [2222]}, False),
    ],
)
def test_rules_that_would_lock_out_who_asks_for_them_are_refused(
    kernel: Kernel, peer: ssh_peer.Peer | None, wanted: dict[str, Any], refused: bool
) -> None:
    kernel.peer = peer
    if not refused:
        module.present(arguments(**wanted), check=True)
        return
    with pytest.raises(commands.Refused, match=r"would lock you out.*firewall_ssh_ports"):
        module.present(arguments(**wanted), check=True)


@pytest.mark.parametrize(
    ("texts", "rule"),
    [
        (["443", "80"], "tcp dport { 80, 443 } accept"),
        ([80, 80], "tcp dport { 80 } accept"),
        # nft refuses a set in which two ranges overlap.
        (["8000-8010", "8005-8020", "8021"], "tcp dport { 8000-8021 } accept"),
        (["1-65535"], "tcp dport { 1-65535 } accept"),
    ],
)
def test_ports_become_a_set_that_nft_takes(texts: list[str], rule: str) -> None:
    rules, _, _ = firewall_rules.entry(ENTRY | {"ports": texts})
    assert rules == [rule]


@pytest.mark.parametrize(
    ("texts", "sources"),
    [
        ([], [""]),
        (["192.0.2.7"], ["ip saddr { 192.0.2.7/32 } "]),
        (
            ["2001:DB8::/32", "192.0.2.0/25", "192.0.2.128/25"],
            ["ip saddr { 192.0.2.0/24 } ", "ip6 saddr { 2001:db8::/32 } "],
        ),
        # Everybody of one family is nobody of the other.
        (["0.0.0.0/0"], ["ip saddr { 0.0.0.0/0 } "]),
    ],
)
def test_sources_become_one_rule_for_each_family(texts: list[str], sources: list[str]) -> None:
    rules, _, _ = firewall_rules.entry(ENTRY | {"sources": texts, "comment": "x"})
    assert rules == [f'{x}tcp dport {{ 80 }} accept comment "x"' for x in sources]


def test_the_rules_change_no_table_but_their_own(kernel: Kernel) -> None:
    apply("shop", "80", trusted_interfaces=["wg0"])
    commands = [x for x in kernel.table.splitlines() if x and not x.startswith(("#", "\t", "}"))]
    assert commands == ["table inet carafe", "delete table inet carafe", "table inet carafe {"]


def test_what_is_applied_counts_at_boot_once_it_is_confirmed(kernel: Kernel) -> None:
    found = apply("shop", "80")
    assert found["unconfirmed"]
    assert "tcp dport { 80 }" in kernel.table
    assert not firewall.CONFIRMED.exists()
    assert not list(firewall.CLAIMS.glob("*.json"))
    confirm("shop")
    assert firewall.CONFIRMED.read_text() == kernel.table
    assert json.loads((firewall.CLAIMS / "shop.json").read_text()) == {
        "firewall_allow": [ENTRY | {"ports": ["80"]}]
    }
    again = apply("shop", "80")
    assert not again["changed"]
    assert again["diff"] == again["due"] == []


def test_what_is_not_confirmed_leaves_neither_rules_nor_a_claim(kernel: Kernel) -> None:
    apply("shop", "80")
    confirm("shop")
    before = kernel.table
    apply("shop", "80", "443")
    assert kernel.table != before
    assert firewall.CHANGE.revert(firewall.restore)
    assert kernel.table == before
    assert not apply("shop", "80")["changed"]
    with pytest.raises(takeback.NotConfirmed, match="too late"):
        confirm("shop")


def test_a_dry_run_shows_the_rules_and_makes_nothing(kernel: Kernel, tmp_path: Path) -> None:
    firewall.NFT.unlink()
    before = sorted(tmp_path.rglob("*"))
    found = apply("shop", "80", check=True)
    assert found["changed"]
    assert not found["unconfirmed"]
    assert "nft is not installed" in found["due"]
    assert "tcp dport { 80 }" in found["diff"][0]["after"]
    assert "program" in found["diff"][1]["prepared"]
    assert sorted(tmp_path.rglob("*")) == before
    assert kernel.table == ""


def test_no_rules_without_nft(kernel: Kernel) -> None:
    firewall.NFT.unlink()
    with pytest.raises(commands.Refused, match="firewall_manage_packages"):
        apply("shop", "80")


def test_no_owner_closes_what_another_opened(kernel: Kernel) -> None:
    for owner, port in (("shop", "80"), ("blog", "8080")):
        apply(owner, port)
        confirm(owner)
    assert "{ 80 }" in kernel.table
    assert "{ 8080 }" in kernel.table
    # The other one's run has nothing to do.
    assert not apply("shop", "80")["changed"]
    # Its own claim shrinks.
    assert apply("shop")["changed"]
    assert "{ 80 }" not in kernel.table
    assert "{ 8080 }" in kernel.table


def test_a_claim_that_comes_between_look_and_act_is_in_the_rules(kernel: Kernel) -> None:
    looked = apply("shop", "80", check=True)
    assert "{ 8080 }" not in looked["diff"][0]["after"]
    apply("blog", "8080")
    confirm("blog")
    apply("shop", "80")
    confirm("shop")
    for port in ("80", "8080"):
        assert f"{{ {port} }}" in kernel.table
        assert f"{{ {port} }}" in firewall.CONFIRMED.read_text()


def test_what_two_owners_let_in_is_one_rule(kernel: Kernel) -> None:
    for owner in ("blog", "shop"):
        apply(owner, "80")
        confirm(owner)
    assert kernel.table.count("tcp dport { 80 }") == 1
    assert apply("blog")["unconfirmed"]
    assert kernel.table.count("tcp dport { 80 }") == 1


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("ssh_ports", [22, 2222], [22, 2223]),
        ("ssh_sources", ["192.0.2.0/24"], ["192.0.2.7"]),
        ("ssh_unlimited", ["192.0.2.0/24"], ["192.0.2.7"]),
        ("ssh_rate", 5, 0),
        ("ssh_burst", 5, 6),
        ("trusted_interfaces", ["wg0"], ["wg1"]),
    ],
)
def test_two_owners_cannot_state_what_the_server_has_once_differently(
    kernel: Kernel, name: str, one: Any, other: Any
) -> None:
    apply("shop", **{name: one})
    confirm("shop")
    before = kernel.table
    with pytest.raises(commands.Refused, match=rf"firewall_{name} .*blog .*shop"):
        apply("blog", "80", **{name: other})
    assert kernel.table == before
    # Who leaves it as it is by default states nothing, and gets what the other one states.
    apply("blog", "80")
    confirm("blog")
    assert not apply("shop", **{name: one})["changed"]
    # In another order it is the same.
    if isinstance(one, list):
        assert not apply("shop", **{name: one[::-1]})["changed"]


def test_the_claim_of_another_that_cannot_be_read_is_named(kernel: Kernel) -> None:
    apply("shop", "80")
    confirm("shop")
    (firewall.CLAIMS / "shop.json").write_text("")
    with pytest.raises(commands.Failure, match=r"shop\.json"):
        apply("blog", "8080")
    # Its own run writes it again.
    assert apply("shop", "80")["changed"]
    assert not apply("shop", "80")["changed"]


@pytest.mark.parametrize("harm", ["table", "CONFIRMED", "UNIT", "program"])
def test_what_somebody_did_by_hand_is_due(kernel: Kernel, harm: str, tmp_path: Path) -> None:
    apply("shop", "80")
    confirm("shop")
    if harm == "table":
        kernel.table = "table inet carafe {}"
    elif harm == "program":
        (tmp_path / "programs/firewall/__main__.py").unlink()
    else:
        getattr(firewall, harm).write_text("other")
    assert apply("shop", "80", check=True)["changed"]
    found = apply("shop", "80")
    assert found["changed"]
    # What lets in as before needs no proof.
    assert found["unconfirmed"] is (harm in ("table", "CONFIRMED"))
    if found["unconfirmed"]:
        confirm("shop")
    assert not apply("shop", "80")["changed"]


def test_the_metadata_of_the_cloud_is_root_s_until_somebody_opens_it(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply("blog", "80")
    confirm("blog")
    assert kernel.table.count("meta skuid != { 0 } counter reject") == 2
    # By whom sshd asks AWS for the operator's key, where there is such a user.
    known = {"root": 0, "ec2-instance-connect": 997}
    monkeypatch.setattr(
        firewall_rules.pwd, "getpwnam", lambda name: SimpleNamespace(pw_uid=known[name])
    )
    apply("blog", "80")
    confirm("blog")
    assert kernel.table.count("meta skuid != { 0, 997 } counter reject") == 2
    apply("shop", metadata=True)
    confirm("shop")
    assert "skuid" not in kernel.table
    # Who says nothing of it closes it for nobody.
    assert not apply("blog", "80")["changed"]


def test_the_module_has_the_defaults_of_the_role() -> None:
    defaults = Role("firewall").defaults
    for name, spec in module.ARGUMENTS.items():
        if name != "state":
            assert spec["default"] == defaults[f"firewall_{name}"], name


# --- what the playbooks let in ----------------------------------------------------------------


@pytest.fixture
def wired(tmp_path: Path):
    """Return what the playbooks make of an inventory of one server."""
    return lambda **variables: of_one_server(tmp_path, **variables)


PROXY = ["192.0.2.0/24", "2001:db8::1"]


@pytest.mark.parametrize(
    ("variables", "sources"),
    [
        ({}, []),
        ({"nginx_real_ip_from": PROXY}, PROXY),
        ({"nginx_proxy_protocol_from": PROXY}, PROXY),
        ({"nginx_real_ip_from": PROXY, "stack_web_sources": []}, []),
        ({"nginx_real_ip_from": PROXY, "stack_web_sources": ["198.51.100.1"]}, ["198.51.100.1"]),
        ({"stack_web_sources": ["198.51.100.1"]}, ["198.51.100.1"]),
    ],
)
def test_behind_a_proxy_the_web_is_open_to_it_alone(
    wired, kernel: Kernel, variables: dict[str, Any], sources: list[str]
) -> None:
    looked = wired(stack_https=False, **variables)
    allow = looked.value("firewall_default_allow")
    module.present(arguments(owner="shop", allow=allow), False)
    rules = [x.strip() for x in kernel.table.splitlines() if "{ 80 }" in x]
    assert rules == [
        f'{x}tcp dport {{ 80 }} accept comment "nginx"'
        for x in firewall_rules.sources(
            firewall_rules.networks(sources, "here"), everybody=not sources
        )
    ]
    assert looked.value("nginx_sources") == sources
    behind = any(name.startswith("nginx_") for name in variables)
    assert looked.value("fail2ban_default_ignore") == PROXY * behind


def test_ports_of_all_sites_are_open_and_closed_by_bans(wired) -> None:
    more = {"name": "more", "server_names": ["more.test"], "listen": 8080, "upstreams": ["x:1"]}
    more |= {"listen_tls": 9443, "certificate": "/var/lib/certificates/shop.pem"}
    own = {"name": "shop", "listen_tls": 8443}
    looked = wired(nginx_sites=[more, own])
    ports = [int(x) for x in looked.value("firewall_default_allow")[0]["ports"]]
    assert sorted(ports) == [80, 8080, 8443, 9443]
    assert sorted(looked.value("fail2ban_nginx_ports")) == sorted(ports)


def test_a_protocol_without_ports_is_let_in_from_its_sources() -> None:
    rules, pairs, _ = firewall_rules.entry(VRRP)
    assert rules == [
        "ip saddr { 10.0.0.12/32 } meta l4proto 112 accept",
        "ip6 saddr { fd00::12/128 } meta l4proto 112 accept",
    ]
    # It is no way in for ssh.
    assert pairs == []
