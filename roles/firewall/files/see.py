"""Check what the firewall is to be, and that it would not lock out who asks for it.

Standard input is a JSON object: the role's variables without their prefix. Standard output is a
JSON object: ``problems``, one sentence for each; ``installed``, whether nft is there; and what the
rules are made of: ``ssh``, ``allow`` and ``interfaces``. A source is the beginning of a rule, such
as ``ip saddr { 192.0.2.0/24 } ``, and empty where it means anybody.
"""

import ipaddress
import json
import re
import sys
from pathlib import Path

PROC = Path("/proc")
NFT = Path("/usr/sbin/nft")
FAMILIES = {4: "ip", 6: "ip6"}
COMMENT = 120  # bytes; nft takes 127


class Problem(ValueError):
    """What is wrong with a variable."""


def networks(texts, where):
    """Return the networks that these texts name, those that touch or overlap merged into one."""
    found = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text))
        except ValueError as error:
            raise Problem(
                f"{where} has {text!r}, but needs addresses and networks such as 192.0.2.7,"
                f" 192.0.2.0/24 or 2001:db8::/32 ({error})."
            ) from None
    return [
        network
        for version in FAMILIES
        for network in ipaddress.collapse_addresses(x for x in found if x.version == version)
    ]


def sources(found, everybody):
    """Return the beginnings of rules for these networks; none means everybody or nobody."""
    if not found:
        return [""] if everybody else []
    by_family = {
        family: ", ".join(str(x) for x in found if x.version == version)
        for version, family in FAMILIES.items()
    }
    return [f"{family} saddr {{ {text} }} " for family, text in by_family.items() if text]


def ports(texts, where):
    """Return pairs of the first and the last port, in order, those that overlap merged into one."""
    pairs = []
    for text in map(str, texts):
        found = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", text)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= first <= last <= 65535:
            raise Problem(
                f"{where} has {text!r}, but needs ports from 1 to 65535, or ranges such as"
                " '8000-8010'."
            )
        pairs.append((first, last))
    merged = []
    for first, last in sorted(pairs):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def port_set(pairs):
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in pairs)


def ssh_connection():
    """Return the address that this session's ssh comes from and the port it came in by, or None.

    sudo drops SSH_CONNECTION from the environment, but what started sudo still has it.
    """
    pid = "self"
    try:
        while pid != "0":
            environ = (PROC / pid / "environ").read_bytes()
            if found := re.search(rb"(?:^|\0)SSH_CONNECTION=([^\0]+)", environ):
                client, _, _, port = found[1].decode().split()
                address = ipaddress.ip_address(client.partition("%")[0])
                return getattr(address, "ipv4_mapped", None) or address, int(port)
            pid = re.search(r"^PPid:\s+(\d+)", (PROC / pid / "status").read_text(), re.M)[1]
    except OSError:
        pass  # a process of the host's, where a container is the server
    return None


def inside(address, found):
    return not found or any(address in x for x in found if x.version == address.version)


def entry(wanted):
    """Return one entry of firewall_allow as the template wants it, and its ports and networks."""
    where = "firewall_allow"
    if wanted["protocol"] not in ("tcp", "udp"):
        raise Problem(f"{where} has the protocol {wanted['protocol']!r}, but needs tcp or udp.")
    if not wanted.get("ports"):
        raise Problem(f"{where} has an entry without ports: {json.dumps(wanted)}.")
    comment = wanted["comment"]
    if len(comment.encode()) > COMMENT or re.search(r'["\x00-\x1f\x7f]', comment):
        raise Problem(
            f"{where} has the comment {comment!r}, but takes {COMMENT} bytes at most, with no"
            " double quote and no line break."
        )
    pairs = ports(wanted["ports"], where)
    found = networks(wanted["sources"], where)
    rule = {
        "ports": port_set(pairs),
        "protocol": wanted["protocol"],
        "sources": sources(found, everybody=True),
        "comment": f' comment "{comment}"' if comment else "",
    }
    return rule, pairs, found


def rules(wanted):
    """Return what the rules are made of. Raise a Problem when they would not do."""
    connection = ssh_connection()
    if not wanted["firewall_ssh_ports"]:
        raise Problem("firewall_ssh_ports is empty, which would lock everybody out.")
    ssh_pairs = ports(wanted["firewall_ssh_ports"], "firewall_ssh_ports")
    ssh_networks = networks(wanted["firewall_ssh_sources"], "firewall_ssh_sources")
    unlimited = networks(wanted["firewall_ssh_unlimited"], "firewall_ssh_unlimited")
    entries = [entry(x) for x in wanted["firewall_allow"]]

    rate, burst = wanted["firewall_ssh_rate"], wanted["firewall_ssh_burst"]
    if rate < 0 or burst < 5:
        raise Problem("firewall_ssh_rate must be 0 or more, and firewall_ssh_burst 5 or more.")
    if wanted["firewall_revert_seconds"] < 20:
        raise Problem(
            "firewall_revert_seconds must be 20 or more: a new connection takes its time."
        )
    for name in wanted["firewall_trusted_interfaces"]:
        if not re.fullmatch(r"[A-Za-z0-9_.:@-]{1,15}|[A-Za-z0-9_.:@-]{1,14}\*", name):
            raise Problem(f"firewall_trusted_interfaces has {name!r}, which names no interface.")

    ways = [(ssh_pairs, ssh_networks), *([(ssh_pairs, unlimited)] if unlimited else [])]
    ways += [(pairs, found) for rule, pairs, found in entries if rule["protocol"] == "tcp"]
    if connection and not let_in(*connection, ways):
        address, port = connection
        raise Problem(
            f"These rules would lock you out: your ssh comes from {address} to port {port}. Let"
            f" firewall_ssh_ports have {port}, and firewall_ssh_sources or firewall_ssh_unlimited"
            f" have {address}, or be empty."
        )
    return {
        "ssh": {
            "ports": port_set(ssh_pairs),
            "sources": sources(ssh_networks, everybody=True),
            "unlimited": sources(unlimited, everybody=False),
            "rate": rate,
            "limit": f"limit rate over {rate}/minute burst {burst} packets",
            # Seconds after which a source that was quiet may open as many again.
            "memory": burst * 60 // rate + 60 if rate else 0,
        },
        "allow": [rule for rule, _, _ in entries],
        "interfaces": wanted["firewall_trusted_interfaces"],
    }


def let_in(address, port, ways):
    """Tell whether one of the ways, ports and the networks they are for, is open to this."""
    return address.is_loopback or any(
        inside(address, found) and any(first <= port <= last for first, last in pairs)
        for pairs, found in ways
    )


def main():
    result = {"problems": [], "installed": NFT.exists()}
    try:
        result |= rules(json.load(sys.stdin))
    except Problem as problem:
        result["problems"].append(str(problem))
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
