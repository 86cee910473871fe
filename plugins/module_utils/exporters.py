"""Debian's exporters for Prometheus: who may ask which of them, where, as systemd is told.

Used by the module metrics, and by the preflight.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# What the program metrics writes, for node's exporter to hand on. Only root writes there.
TEXTFILES = "/var/lib/carafe/metrics"
NODE, POSTGRES, NGINX = "node", "postgres", "nginx"


@dataclass(frozen=True)
class Exporter:
    """One of Debian's exporters; ``port`` is the one that Prometheus' users know it by."""

    kind: str
    port: int

    @property
    def unit(self) -> str:
        return f"prometheus-{self.kind}-exporter.service"

    @property
    def program(self) -> str:
        return f"/usr/bin/prometheus-{self.kind}-exporter"


EXPORTERS = {x.kind: x for x in (Exporter(NODE, 9100), Exporter(POSTGRES, 9187))}
EXPORTERS[NGINX] = Exporter(NGINX, 9113)


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def is_public(address: str) -> bool:
    """Tell whether the Internet may know the way to an address, or all that a server has."""
    found = ipaddress.ip_address(address)
    return found.is_global or found.is_unspecified


def problems(address: str, allowed: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with who may ask where: a variable, and a sentence without it."""
    try:
        local = is_loopback(address)
    except ValueError:
        yield (
            "metrics_address",
            f"is {address!r}, and needs an IPv4 or IPv6 address of the server, such as 127.0.0.1",
        )
        return
    wrong = False
    for text in allowed:
        try:
            ipaddress.ip_network(text)
        except ValueError as error:
            wrong = True
            yield (
                "metrics_allowed_addresses",
                f"has {text!r}, and needs addresses and networks such as 10.0.0.7 or 10.0.0.0/24"
                f" ({error})",
            )
    if local and allowed:
        yield (
            "metrics_allowed_addresses",
            f"has addresses of others, and metrics_address is {address}, which only this server"
            " reaches",
        )
    elif not local and not allowed and not wrong:
        yield (
            "metrics_allowed_addresses",
            f"is empty, and metrics_address is {address}: name the address of your Prometheus,"
            " or nobody could ask",
        )


def wanted(everybody: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the exporters that are to run by all claims, with what each of them is to ask."""
    if not everybody:
        return {}
    asked = {
        kind: sorted({x[kind] for x in everybody.values() if x.get(kind)})
        for kind in (POSTGRES, NGINX)
    }
    return {NODE: [], **{kind: places for kind, places in asked.items() if places}}


def drop_in(kind: str, asked: Iterable[str], address: str, allowed: Iterable[str]) -> str:
    """Return what systemd is told of an exporter besides its sandbox.

    Of Debian's /etc/default nothing is taken: what stands there would be added, another address to
    listen at for instance.
    """
    exporter, environment = EXPORTERS[kind], []
    place = f"[{address}]" if ":" in address else address
    words = [exporter.program, f"--web.listen-address={place}:{exporter.port}"]
    if kind == NODE:
        words.append(f"--collector.textfile.directory={TEXTFILES}")
    elif kind == POSTGRES:
        environment = [f"Environment={quoted('DATA_SOURCE_NAME=' + ','.join(asked))}"]
    else:
        words += [f"--nginx.scrape-uri={x}" for x in asked]
    return "\n".join(
        [
            "# Managed by Ansible, role metrics. It follows from what all apps here claim.",
            "[Service]",
            "EnvironmentFile=",
            *environment,
            "ExecStart=",
            f"ExecStart={' '.join(quoted(x).replace('$', '$$') for x in words)}",
            "IPAddressDeny=any",
            # Who asks from the server itself at such an address comes from it, too.
            f"IPAddressAllow={' '.join(['localhost', *sorted({*allowed, *own(address)})])}",
            "",
        ]
    )


def own(address: str) -> list[str]:
    """Return an address of the server that is not to be asked from elsewhere alone."""
    found = ipaddress.ip_address(address)
    return [] if found.is_loopback or found.is_unspecified else [address]


def reached_at(address: str) -> str:
    """Return where the server itself finds what listens at an address, or at all of its own."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # nosec B104 # none of ours


def quoted(text: str) -> str:
    """Return a text as one word of a unit's."""
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text}"' if set(text) & set(" \t;'\"\\") else text
