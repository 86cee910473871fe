"""What the preflight finds, and what it knows of a server: the words that all checks share.

A check takes a server and yields problems. Those of a role stand in its ``meta/preflight.py``,
those that look at several roles or servers in ``playbooks/meta/preflight.py``.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

MESSAGE_LENGTH = 300  # characters of another program's message
PORT = (1, 65535)
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
HOST_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
HOST_NAME_RULE = (
    "which is not a host name: no scheme, port, path or space; other alphabets in punycode"
)
SHELL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Problem:
    """What is wrong with one variable, as the end of a sentence that begins with its name."""

    variable: str
    what: str
    command: str = ""  # what to do, where that is not to edit a file
    meant: str = ""  # the value as JSON, where the value is known and only its type is wrong


@dataclass
class Server:
    """What is known of one server: its variables as the roles will see them, and its facts."""

    name: str
    groups: list[str] = field(default_factory=list)
    # As rendered, and then with the defaults of what the entries of a list leave out.
    given: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    raw: Mapping[str, Any] = field(default_factory=dict)
    contact: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    # The addresses by which the servers of its stack reach each other, where there are several.
    peers: dict[str, Any] = field(default_factory=dict)
    # Variables that needed others which are not there: why not, and which.
    failures: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    missing: set[str] = field(default_factory=set)

    @property
    def address(self) -> str:
        return str(self.values.get("ansible_host") or self.name)

    def failed(self, name: str) -> bool:
        return any(name in names for names in self.failures.values())

    @property
    def found(self) -> Mapping[str, Any]:
        """What the server has that Carafe did not bring; nothing where it has not been asked."""
        return self.facts.get("found") or {}

    def other_apps(self) -> dict[str, Mapping[str, Any]]:
        """Return what the other apps of this server keep of themselves, by name."""
        kept = self.facts.get("ansible_local") or {}
        own = str(self.values.get("app_name"))
        return {k: v for k, v in sorted(kept.items()) if k != own and isinstance(v, Mapping)}


def entries(server: Server, variable: str) -> list[Mapping[str, Any]]:
    return [x for x in server.values.get(variable) or [] if isinstance(x, Mapping)]


def product(server: Server, *variables: str) -> int:
    result = 1
    for variable in variables:
        result *= int(server.values.get(variable) or 0)
    return result


def check_twins(server: Server, variable: str, kind: str) -> Iterator[Problem]:
    """Of two things with one name, the second would quietly take the place of the first."""
    given = server.given.get(variable, server.values.get(variable)) or []
    names = Counter(x.get("name") for x in given if isinstance(x, Mapping))
    for name in [name for name, count in names.items() if count > 1]:
        yield Problem(variable, f"has two {kind} named {name!r}")


def check_networks(variable: str, texts: Iterable[Any]) -> Iterator[Problem]:
    """What a firewall or nginx is to tell from others by its address."""
    for text in texts:
        try:
            ipaddress.ip_network(str(text))
        except ValueError as error:
            yield Problem(
                variable,
                f"has {text!r}, but needs addresses and networks such as 192.0.2.7, 192.0.2.0/24"
                f" or 2001:db8::/32 ({error})",
            )


def check_file_names(server: Server, variable: str, kind: str) -> Iterator[Problem]:
    """Some things have a file that is called as they are."""
    for name in sorted({str(entry.get("name")) for entry in entries(server, variable)}):
        if not FILE_NAME.fullmatch(name):
            what = f"has {kind} named {name!r}; a name has letters, digits, '-', '_' and '.'"
            yield Problem(variable, what)


def check_environment(
    variable: str, environment: Mapping[Any, Any] | None, prefix: str = ""
) -> Iterator[Problem]:
    """A name that no shell takes breaks the environment file; NUL cannot be passed at all."""
    for name, value in (environment or {}).items():
        if not SHELL_NAME.fullmatch(f"{prefix}{name}"):
            yield Problem(
                variable,
                f"has the name {name!r}; the name of an environment variable has letters,"
                " digits and _, no digit first",
            )
        elif "\0" in str(value):
            yield Problem(
                variable,
                f"has a NUL in the value of {name}, which no environment variable can hold",
            )


def is_host_name(name: str, wildcard: bool = False) -> bool:
    """Tell whether a text is a host name or an address, as the Host header has it."""
    if wildcard and name.startswith("*."):
        name = name[2:]
    if name.startswith("[") and name.endswith("]"):
        try:
            return bool(ipaddress.IPv6Address(name[1:-1]))
        except ValueError:
            return False
    return 0 < len(name) <= 253 and all(HOST_LABEL.fullmatch(label) for label in name.split("."))


def described(holder: Mapping[str, Any]) -> str:
    """Return who holds a port."""
    name = holder["name"] or "another program"
    more = [f"pid {holder['pid']}"] if holder["pid"] else []
    more += [f"unit {holder['unit']}"] if holder["unit"] else []
    return f"{name} ({', '.join(more)})" if more else name


def free(holder: Mapping[str, Any], otherwise: str) -> str:
    """Return how a port that somebody holds is freed."""
    if holder["name"] == "docker-proxy":
        return (
            "it is a container's, published there: see which by sudo docker ps, and publish it on"
            f" another port, or {otherwise}"
        )
    if holder["unit"].endswith(".service"):
        return f"stop it: sudo systemctl disable --now {holder['unit']}; or {otherwise}"
    return f"stop it, or {otherwise}"
