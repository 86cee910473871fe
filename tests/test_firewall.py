"""What the firewall refuses, whom it would lock out, and what it makes of ports and networks."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT, Role, load_module

WANTED: dict[str, Any] = {
    "firewall_allow": [],
    "firewall_ssh_ports": [22],
    "firewall_ssh_sources": [],
    "firewall_ssh_unlimited": [],
    "firewall_ssh_rate": 10,
    "firewall_ssh_burst": 20,
    "firewall_trusted_interfaces": [],
    "firewall_revert_seconds": 60,
}
ENTRY: dict[str, Any] = {"ports": ["80"], "protocol": "tcp", "sources": [], "comment": ""}
SSH = "SSH_CONNECTION=203.0.113.7 40022 192.0.2.1 22"
SSH_V6 = "SSH_CONNECTION=2001:db8::7 40022 2001:db8::1 2222"


@pytest.fixture
def see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, on a server that nobody has reached by ssh."""
    module = load_module(ROOT / "roles/firewall/files/see.py", "see")
    monkeypatch.setattr(module, "PROC", tmp_path)
    return module


def reached_by(proc: Path, *environs: str) -> None:
    """Write what /proc says of this process and of those that started it, the nearest first."""
    for number, environ in enumerate(environs):
        folder = proc / (str(100 - number) if number else "self")
        folder.mkdir()
        (folder / "environ").write_bytes(environ.encode())
        parent = 100 - number - 1 if number < len(environs) - 1 else 0
        (folder / "status").write_text(f"Name:\tx\nPid:\t1\nPPid:\t{parent}\n")


def seen(see: ModuleType, monkeypatch: pytest.MonkeyPatch, **wanted: Any) -> Any:
    """Run the module as the role does."""
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(WANTED | wanted)))
    monkeypatch.setattr(sys, "stdout", output)
    see.main()
    return json.loads(output.getvalue())


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ({"firewall_allow": [ENTRY | {"ports": ["https"]}]}, "firewall_allow has 'https'"),
        ({"firewall_allow": [ENTRY | {"ports": ["0"]}]}, "firewall_allow has '0'"),
        ({"firewall_allow": [ENTRY | {"ports": ["65536"]}]}, "firewall_allow has '65536'"),
        ({"firewall_allow": [ENTRY | {"ports": ["90-80"]}]}, "firewall_allow has '90-80'"),
        (
            {"firewall_allow": [ENTRY | {"ports": ["80 } accept; #"]}]},
            "firewall_allow has '80 } accept",
        ),
        ({"firewall_allow": [ENTRY | {"ports": []}]}, "an entry without ports"),
        ({"firewall_allow": [ENTRY | {"protocol": "sctp"}]}, "the protocol 'sctp'"),
        (
            {"firewall_allow": [ENTRY | {"sources": ["example.com"]}]},
            "firewall_allow has 'example.com'",
        ),
        # Whoever writes that may mean the address, or the network.
        ({"firewall_allow": [ENTRY | {"sources": ["192.0.2.7/24"]}]}, "has host bits set"),
        ({"firewall_allow": [ENTRY | {"comment": 'a "b"'}]}, "no double quote"),
        ({"firewall_allow": [ENTRY | {"comment": "a\nb"}]}, "no line break"),
        ({"firewall_allow": [ENTRY | {"comment": "ü" * 61}]}, "120 bytes"),
        ({"firewall_ssh_ports": []}, "firewall_ssh_ports is empty"),
        ({"firewall_ssh_ports": [70000]}, "firewall_ssh_ports has '70000'"),
        ({"firewall_ssh_sources": ["office"]}, "firewall_ssh_sources has 'office'"),
        ({"firewall_ssh_unlimited": ["ci"]}, "firewall_ssh_unlimited has 'ci'"),
        ({"firewall_ssh_rate": -1}, "firewall_ssh_rate"),
        ({"firewall_ssh_burst": 1}, "firewall_ssh_burst"),
        ({"firewall_revert_seconds": 5}, "firewall_revert_seconds"),
        ({"firewall_trusted_interfaces": ['wg0" accept']}, "names no interface"),
        ({"firewall_trusted_interfaces": ["*"]}, "names no interface"),
    ],
    ids=lambda x: "" if isinstance(x, dict) else x,
)
def test_what_cannot_be_is_told(
    see: ModuleType, monkeypatch: pytest.MonkeyPatch, wanted: dict[str, Any], problem: str
) -> None:
    (told,) = seen(see, monkeypatch, **wanted)["problems"]
    assert problem in told


@pytest.mark.parametrize(
    ("environs", "wanted", "refused"),
    [
        ([SSH], {}, False),
        ([SSH], {"firewall_ssh_ports": [2222]}, True),
        ([SSH], {"firewall_ssh_ports": [2222, 22]}, False),
        ([SSH], {"firewall_ssh_sources": ["203.0.113.0/24"]}, False),
        ([SSH], {"firewall_ssh_sources": ["198.51.100.0/24"]}, True),
        ([SSH], {"firewall_ssh_sources": ["2001:db8::/32"]}, True),
        (
            [SSH],
            {
                "firewall_ssh_sources": ["198.51.100.0/24"],
                "firewall_ssh_unlimited": ["203.0.113.7"],
            },
            False,
        ),
        (
            [SSH],
            {"firewall_ssh_ports": [2222], "firewall_allow": [ENTRY | {"ports": ["20-30"]}]},
            False,
        ),
        (
            [SSH],
            {
                "firewall_ssh_ports": [2222],
                "firewall_allow": [ENTRY | {"ports": ["22"], "protocol": "udp"}],
            },
            True,
        ),
        (
            [SSH],
            {
                "firewall_ssh_ports": [2222],
                "firewall_allow": [ENTRY | {"ports": ["22"], "sources": ["192.0.2.0/24"]}],
            },
            True,
        ),
        ([SSH_V6], {}, True),
        (
            [SSH_V6],
            {"firewall_ssh_ports": [2222], "firewall_ssh_sources": ["2001:db8::/64"]},
            False,
        ),
        (
            ["SSH_CONNECTION=::ffff:203.0.113.7 1 ::ffff:192.0.2.1 22"],
            {"firewall_ssh_sources": ["203.0.113.7"]},
            False,
        ),
        (
            ["SSH_CONNECTION=fe80::9%eth0 1 fe80::1%eth0 22"],
            {"firewall_ssh_sources": ["fe80::/10"]},
            False,
        ),
        # sudo has dropped it.
        (["SUDO_USER=deploy", "A=b", f"A=b\0{SSH}\0C=d"], {"firewall_ssh_ports": [2222]}, True),
        # From one server on to the next: the nearest is how this one was reached.
        (["A=b", SSH, SSH_V6], {}, False),
        # Not by ssh, or by a tunnel that ends on the server itself.
        (["A=b"], {"firewall_ssh_ports": [2222]}, False),
        (["SSH_CONNECTION=127.0.0.1 1 127.0.0.1 22"], {"firewall_ssh_ports": [2222]}, False),
        (["MY_SSH_CONNECTION=203.0.113.7 1 192.0.2.1 22"], {"firewall_ssh_ports": [2222]}, False),
        ([], {"firewall_ssh_ports": [2222]}, False),
    ],
)
def test_rules_that_would_lock_out_who_asks_for_them_are_refused(
    see: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environs: list[str],
    wanted: dict[str, Any],
    refused: bool,
) -> None:
    reached_by(tmp_path, *environs)
    problems = seen(see, monkeypatch, **wanted)["problems"]
    assert bool(problems) is refused
    assert all("would lock you out" in x and "firewall_ssh_ports" in x for x in problems)


@pytest.mark.parametrize(
    ("texts", "ports"),
    [
        (["443", "80"], "80, 443"),
        ([80, 80], "80"),
        # nft refuses a set in which two ranges overlap.
        (["8000-8010", "8005-8020", "8021"], "8000-8021"),
        (["1-65535"], "1-65535"),
    ],
)
def test_ports_become_a_set_that_nft_takes(
    see: ModuleType, monkeypatch: pytest.MonkeyPatch, texts: list[str], ports: str
) -> None:
    found = seen(see, monkeypatch, firewall_allow=[ENTRY | {"ports": texts}])
    assert found["allow"][0]["ports"] == ports


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
def test_sources_become_one_rule_for_each_family(
    see: ModuleType, monkeypatch: pytest.MonkeyPatch, texts: list[str], sources: list[str]
) -> None:
    found = seen(see, monkeypatch, firewall_allow=[ENTRY | {"sources": texts}])
    assert found["allow"][0]["sources"] == sources


def test_the_rules_change_no_table_but_their_own(
    see: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = seen(see, monkeypatch, firewall_allow=[ENTRY], firewall_trusted_interfaces=["wg0"])
    text = Role("firewall").render(
        "etc/carafe-firewall.nft.j2", __firewall_look={"stdout": json.dumps(found)}
    )
    commands = [x for x in text.splitlines() if x and not x.startswith(("#", "\t", "}"))]
    assert commands == ["table inet carafe", "delete table inet carafe", "table inet carafe {"]
