"""What the role refuses besides what its argument_specs.yml says."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from ansible_collections.carafe.stack.plugins.plugin_utils.problems import Problem, Server

RANGES = {"keepalived_priority": (1, 254), "keepalived_router_id": (1, 255)}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
INTERFACE = re.compile(r"[A-Za-z0-9_.:@-]{1,15}")
URL = re.compile(r"https?://[^\s\"'{}]+")
COMMAND = re.compile(r"/[^\n\r\"{}]+")


def address(text: object) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(str(text))
    except ValueError:
        return None


def check_addresses(server: Server) -> Iterator[Problem]:
    wanted = server.values.get("keepalived_addresses") or []
    if "keepalived_addresses" in server.values and not wanted:
        yield Problem("keepalived_addresses", "is empty, so that there is nothing to move")
    for text in map(str, wanted):
        place, slash, length = text.partition("/")
        found = address(place)
        if not (found and slash and length.isdecimal() and int(length) <= found.max_prefixlen):
            yield Problem(
                "keepalived_addresses",
                f"has {text!r}, and needs an address with the length of its network, such as"
                " 198.51.100.100/24",
            )


def check_peers(server: Server) -> Iterator[Problem]:
    """What they send each other is of one family."""
    if "keepalived_source" not in server.values:
        return
    source = address(server.values["keepalived_source"])
    if not source:
        yield Problem(
            "keepalived_source",
            f"is {server.values['keepalived_source']!r}, and must be this server's IP address",
        )
        return
    for text in server.values.get("keepalived_peers") or []:
        peer = address(text)
        if not peer or peer.version != source.version:
            yield Problem(
                "keepalived_peers",
                f"has {text!r}, and needs IPv{source.version} addresses, as keepalived_source is",
            )
        elif peer == source:
            yield Problem("keepalived_peers", f"has {text}, which is {server.name} itself")
    fitting = [
        x
        for x in server.values.get("keepalived_addresses") or []
        if (":" in str(x)) == (source.version == 6)
    ]
    if server.values.get("keepalived_addresses") and not fitting:
        yield Problem(
            "keepalived_addresses",
            f"has none of IPv{source.version}, as keepalived_source is, by which the servers know"
            " of each other",
        )


def check_words(server: Server) -> Iterator[Problem]:
    """A word more would be one of keepalived's own."""
    needs = {
        "keepalived_owner": (NAME, "letters, digits, - and _"),
        "keepalived_interface": (INTERFACE, "the name of an interface, such as eth0"),
        "keepalived_check_url": (URL, "a URL such as http://127.0.0.1/"),
    }
    if server.values.get("keepalived_takeover_command"):
        needs["keepalived_takeover_command"] = (
            COMMAND,
            "a program's absolute path, with arguments that have no double quote",
        )
    for name, (form, words) in needs.items():
        value = server.values.get(name)
        if value is not None and not form.fullmatch(str(value)):
            yield Problem(name, f"is {value!r}, and must be {words}")


def check_other(server: Server) -> Iterator[Problem]:
    if path := server.found.get("keepalived"):
        yield Problem(
            "keepalived_addresses",
            f"needs {path} on {server.name}, which somebody has written by hand",
            "keep what it is to go on doing in a file of /etc/keepalived/conf.d, which the role"
            f" includes: mv {path} /etc/keepalived/conf.d/own.conf",
        )


CHECKS = (check_addresses, check_peers, check_words, check_other)
