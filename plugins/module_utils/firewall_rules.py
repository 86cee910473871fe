"""Compose the firewall's rules from what each owner claims, and check that they lock nobody out."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import pwd
import re
from collections.abc import Iterable
from typing import Any

from .claims import merged, stated
from .commands import Refused
from .ssh_peer import Peer

FAMILIES = {4: "ip", 6: "ip6"}
# Without ports, by their numbers: nft knows no others' names.
PROTOCOLS = {"vrrp": 112}
COMMENT = 120  # bytes; nft takes 127
# What the server has once, and what it is where no owner says otherwise.
DEFAULTS: dict[str, Any] = {
    "firewall_ssh_ports": [22],
    "firewall_ssh_sources": [],
    "firewall_ssh_unlimited": [],
    "firewall_ssh_rate": 10,
    "firewall_ssh_burst": 20,
    "firewall_trusted_interfaces": [],
    "firewall_metadata": False,
}
# Where clouds tell a server about itself: keys of its role, what cloud-init was given, passwords.
METADATA = {
    "ip": [
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure, besides the first of all
        "169.254.0.23",  # Tencent
        "169.254.42.42",  # Scaleway
        "169.254.169.254",  # AWS, Google, Azure, OpenStack, Hetzner, DigitalOcean and most others
        "169.254.170.2",  # AWS, for containers
        "192.0.0.192",  # Oracle, of old
    ],
    "ip6": [
        "fd00:42::42",  # Scaleway
        "fd00:a9fe:a9fe::1",  # Linode
        "fd00:c1::a9fe:a9fe",  # Oracle
        "fd00:ec2::23",  # AWS, for containers
        "fd00:ec2::254",  # AWS
        "fd20:ce::254",  # Google
        "fe80::a9fe:a9fe",  # OpenStack
    ],
}
# Who may ask there: root, as cloud-init and the clouds' agents are, and by whom sshd asks AWS for
# the operator's key.
METADATA_USERS = ("root", "ec2-instance-connect")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Ports = list[tuple[int, int]]


def networks(texts: Iterable[str], where: str) -> list[Network]:
    """Return the networks that these texts name, those that touch or overlap merged into one."""
    found = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text))
        except ValueError as error:
            raise Refused(
                f"{where} has {text!r}, but needs addresses and networks such as 192.0.2.7,"
                f" 192.0.2.0/24 or 2001:db8::/32 ({error})."
            ) from None
    return [
        network
        for version in FAMILIES
        for network in ipaddress.collapse_addresses(x for x in found if x.version == version)
    ]


def sources(found: list[Network], everybody: bool) -> list[str]:
    """Return the beginnings of rules for these networks; none means everybody or nobody."""
    if not found:
        return [""] if everybody else []
    by_family = {
        family: ", ".join(str(x) for x in found if x.version == version)
        for version, family in FAMILIES.items()
    }
    return [f"{family} saddr {{ {text} }} " for family, text in by_family.items() if text]


def ports(texts: Iterable[object], where: str) -> Ports:
    """Return pairs of the first and the last port, in order, those that overlap merged into one."""
    pairs = []
    for text in map(str, texts):
        found = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", text)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= first <= last <= 65535:
            raise Refused(
                f"{where} has {text!r}, but needs ports from 1 to 65535, or ranges such as"
                " '8000-8010'."
            )
        pairs.append((first, last))
    merged: Ports = []
    for first, last in sorted(pairs):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def port_set(pairs: Ports) -> str:
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in pairs)


def entry(wanted: dict[str, Any]) -> tuple[list[str], Ports, list]:
    """Return the rules of one entry of firewall_allow, and its ports and networks."""
    where = "firewall_allow"
    number = PROTOCOLS.get(wanted["protocol"])
    if not number and not wanted["ports"]:
        raise Refused(f"{where} has an entry without ports: {json.dumps(wanted)}.")
    if number and (wanted["ports"] or not wanted["sources"]):
        raise Refused(
            f"{where} has an entry for {wanted['protocol']}, which knows no ports, and by which who"
            f" sends it takes addresses. Name its sources, and no ports: {json.dumps(wanted)}."
        )
    comment = wanted["comment"]
    if len(comment.encode()) > COMMENT or re.search(r'["\x00-\x1f\x7f]', comment):
        raise Refused(
            f"{where} has the comment {comment!r}, but takes {COMMENT} bytes at most, with no"
            " double quote and no line break."
        )
    pairs = ports(wanted["ports"], where)
    found = networks(wanted["sources"], where)
    end = f' comment "{comment}"' if comment else ""
    kind = f"{wanted['protocol']} dport {{ {port_set(pairs)} }}"
    if number:
        kind = f"meta l4proto {number}"
    rules = [f"{source}{kind} accept{end}" for source in sources(found, everybody=True)]
    return rules, pairs, found


def claim(allow: list[dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
    """Return what an owner claims: its ports, and what it states of the server's settings."""
    if not settings["firewall_ssh_ports"]:
        raise Refused("firewall_ssh_ports is empty, which would lock everybody out.")
    if settings["firewall_ssh_rate"] < 0 or settings["firewall_ssh_burst"] < 5:
        raise Refused("firewall_ssh_rate must be 0 or more, and firewall_ssh_burst 5 or more.")
    for name in settings["firewall_trusted_interfaces"]:
        if not re.fullmatch(r"[A-Za-z0-9_.:@-]{1,15}|[A-Za-z0-9_.:@-]{1,14}\*", name):
            raise Refused(f"firewall_trusted_interfaces has {name!r}, which names no interface.")
    return {"firewall_allow": allow, **stated(settings, DEFAULTS)}


def once(claimed: dict[str, Any]) -> dict[str, Any]:
    """Return what a claim states of what the server has once."""
    return {name: value for name, value in claimed.items() if name in DEFAULTS}


def let_in(peer: Peer, ways: Iterable[tuple[Ports, list[Network]]]) -> bool:
    """Tell whether one of the ways, ports and the networks they are for, is open to somebody."""
    address = ipaddress.ip_address(peer.client)
    return address.is_loopback or any(
        any(first <= peer.port <= last for first, last in pairs)
        and (not found or any(address in x for x in found if x.version == address.version))
        for pairs, found in ways
    )


def metadata_chain() -> str:
    """Return the chain that keeps users other than root from the cloud's metadata."""
    users = set()
    for name in METADATA_USERS:
        # By number: with a name that is gone, nft would load nothing at all.
        with contextlib.suppress(KeyError):
            users.add(pwd.getpwnam(name).pw_uid)
    opens = "tcp flags & (fin | syn | rst | ack) == syn tcp dport != 53"
    who = f"meta skuid != {{ {', '.join(map(str, sorted(users)))} }}"
    rules = "".join(
        f"\t\t{opens} {family} daddr {{ {', '.join(addresses)} }} {who}"
        ' counter reject with tcp reset comment "metadata of the cloud"\n'
        for family, addresses in METADATA.items()
    )
    return METADATA_CHAIN.format(rules=rules)


def compose(claims: dict[str, dict[str, Any]], peer: Peer | None) -> str:
    """Return the rules of all owners as nft takes them. Refuse those that would not do."""
    settings = DEFAULTS | merged(claims.values())
    ssh_ports = ports(settings["firewall_ssh_ports"], "firewall_ssh_ports")
    ssh_sources = networks(settings["firewall_ssh_sources"], "firewall_ssh_sources")
    unlimited = networks(settings["firewall_ssh_unlimited"], "firewall_ssh_unlimited")
    entries = [(owner, *entry(x)) for owner, y in claims.items() for x in y["firewall_allow"]]

    ways = [(ssh_ports, ssh_sources), *([(ssh_ports, unlimited)] if unlimited else [])]
    ways += [(pairs, found) for _, rules, pairs, found in entries if "tcp dport" in rules[0]]
    if peer and not let_in(peer, ways):
        raise Refused(
            f"These rules would lock you out: your ssh comes from {peer.client} to port"
            f" {peer.port}. Let firewall_ssh_ports have {peer.port}, and firewall_ssh_sources or"
            f" firewall_ssh_unlimited have {peer.client}, or be empty."
        )
    allowed: dict[str, list[str]] = {}
    for owner, rules, _, _ in entries:
        seen = [x for others in allowed.values() for x in others]
        allowed.setdefault(owner, []).extend(x for x in rules if x not in seen)
    return text(settings, ssh_ports, ssh_sources, unlimited, allowed)


SETS = """\
	set recent_v4 {{
		type ipv4_addr
		size 65535
		flags dynamic,timeout
		timeout {memory}s
	}}

	# A customer of a provider has a whole network of 64 bits.
	set recent_v6 {{
		type ipv6_addr
		size 65535
		flags dynamic,timeout
		timeout {memory}s
	}}

"""
LIMITS = """\
		# Only what opens a connection counts: one that is older than the table must go on.
		tcp flags & (fin | syn | rst | ack) == syn update @recent_v4 {{ ip saddr {limit} }} counter drop
		tcp flags & (fin | syn | rst | ack) == syn update @recent_v6 {{ ip6 saddr & ffff:ffff:ffff:ffff:: {limit} }} counter drop
"""  # noqa: E501 (a rule is one line, as nft lists it)
METADATA_CHAIN = """\

	chain output {{
		type filter hook output priority filter; policy accept;

		# Only what opens a connection: Azure's load balancer asks from such an address, and is answered.
		# Some clouds have their DNS there as well, and the time, by UDP.
{rules}\
	}}
"""  # noqa: E501 (a rule is one line, as nft lists it)
TABLE = """\
# Managed by Ansible, role firewall.
# The rules that carafe-firewall.service loads: only the table inet carafe, in one transaction.
table inet carafe
delete table inet carafe
table inet carafe {{
{sets}\
	chain input {{
		# The last rule drops. A policy that does would outlive `nft flush table`, and shut everybody out.
		type filter hook input priority filter; policy accept;

		iif "lo" accept
{trusted}
		# Without these there is no IPv6 (RFC 4890). From further away, nobody can send them so.
		icmpv6 type {{ nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert }} ip6 hoplimit 255 accept
		icmpv6 type {{ mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report }} ip6 saddr fe80::/10 accept

		# Before the state of a connection is looked at: a flood of pings is one "connection".
		icmp type echo-request limit rate over 20/second burst 40 packets drop
		icmpv6 type echo-request limit rate over 20/second burst 40 packets drop

		ct state vmap {{ established : accept, related : accept, invalid : drop }}

		# Ping, and errors such as a packet that is too big for a link on its way.
		icmp type {{ echo-request, destination-unreachable, time-exceeded, parameter-problem }} accept
		icmpv6 type {{ echo-request, destination-unreachable, packet-too-big, time-exceeded, parameter-problem }} accept

		# Answers to DHCP come from another address than the question went to. Without them the server loses its own.
		udp sport 67 udp dport 68 accept
		ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept

{ssh}
{allowed}
		counter drop comment "not allowed"
	}}

	chain ssh {{
{limits}\
		accept comment "ssh"
	}}
{output}}}
"""  # noqa: E501 (a rule is one line, as nft lists it)


def text(
    settings: dict[str, Any],
    ssh_ports: Ports,
    ssh_sources: list[Network],
    unlimited: list[Network],
    allowed: dict[str, list[str]],
) -> str:
    """Write the rules down as nft reads them."""
    rate, burst = settings["firewall_ssh_rate"], settings["firewall_ssh_burst"]
    ssh = f"tcp dport {{ {port_set(ssh_ports)} }}"

    def lines(found: Iterable[str]) -> str:
        return "".join(f"\t\t{line}\n" for line in found)

    return TABLE.format(
        # Seconds after which a source that was quiet may open as many again.
        sets=SETS.format(memory=burst * 60 // rate + 60) if rate else "",
        trusted=lines(f'iifname "{x}" accept' for x in settings["firewall_trusted_interfaces"]),
        ssh=lines(
            [
                *(f'{x}{ssh} accept comment "ssh, unlimited"' for x in sources(unlimited, False)),
                *(f"{x}{ssh} goto ssh" for x in sources(ssh_sources, True)),
            ]
        ),
        allowed="".join(
            f"\t\t# What {owner} lets in.\n{lines(rules)}" for owner, rules in allowed.items()
        ),
        limits=LIMITS.format(limit=f"limit rate over {rate}/minute burst {burst} packets")
        if rate
        else "",
        output="" if settings["firewall_metadata"] else metadata_chain(),
    )
