"""What the role refuses besides what its argument_specs.yml says."""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Iterator

from ansible_collections.carafe.stack.plugins.plugin_utils.authority import DAYS, Authority, now
from ansible_collections.carafe.stack.plugins.plugin_utils.problems import (
    FILE_NAME,
    Problem,
    Server,
    check_file_names,
    check_twins,
    described,
    entries,
    free,
)

UNIT = "internal-tls-{}.service"  # the role's own
NAME = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")


def check_authority(server: Server) -> Iterator[Problem]:
    """A CA that cannot sign would be told of by the first server that needs it."""
    text = server.values.get("internal_tls_ca_key")
    if not text:
        return
    try:
        left = Authority.load(text).certificate.not_valid_after_utc - now()
    except ValueError as error:
        yield Problem(
            "internal_tls_ca_key",
            f"{error}; it is the certificate and the key of the stack's CA, in PEM",
        )
        return
    # What it signs is renewed once a third of its life is left.
    if left < datetime.timedelta(days=DAYS / 3):
        yield Problem(
            "internal_tls_ca_key",
            f"holds a CA that ends in {left.days} days, and certificates are to live longer",
            "make another CA, as docs/how-to/several-servers.md says",
        )


def check_names(server: Server) -> Iterator[Problem]:
    names = server.values.get("internal_tls_names")
    if names == []:
        yield Problem("internal_tls_names", "is empty, and a certificate is for one name at least")
    for name in names or []:
        try:
            ipaddress.ip_address(name)
        except ValueError:
            if not NAME.fullmatch(str(name)):
                yield Problem(
                    "internal_tls_names", f"has {name!r}, which is no host name and no address"
                )


def check_owner(server: Server) -> Iterator[Problem]:
    owner = server.values.get("internal_tls_owner")
    if owner is not None and not FILE_NAME.fullmatch(owner):
        yield Problem("internal_tls_owner", f"is {owner!r}, and it names a folder")


def check_tunnels(server: Server) -> Iterator[Problem]:
    """Nobody is let in by a list of nobody, and HAProxy would say the rest in its own words."""
    yield from check_twins(server, "internal_tls_tunnels", "services")
    yield from check_file_names(server, "internal_tls_tunnels", "a service")
    for entry in entries(server, "internal_tls_tunnels"):
        if entry.get("clients") == []:
            yield Problem(
                "internal_tls_tunnels", f"has the service {entry.get('name')!r} for no clients"
            )


def check_ports(server: Server) -> Iterator[Problem]:
    """HAProxy would not start, after all the rest was done."""
    wanted = {
        str(x.get("listen") or "").rpartition(":")[2]: x.get("name")
        for x in entries(server, "internal_tls_tunnels")
    }
    own, told = UNIT.format(server.values.get("internal_tls_owner")), set()
    for holder in server.found.get("listeners") or []:
        port = str(holder["port"])
        if port in wanted and port not in told and holder["unit"] != own:
            told.add(port)
            another = "give it another port in listen, which is stack_app_port of a stack"
            # That of another app is nothing to stop.
            apps = re.fullmatch(UNIT.format(".+"), holder["unit"])
            yield Problem(
                "internal_tls_tunnels",
                f"needs port {port} for {wanted[port]!r}, which {described(holder)} holds on"
                f" {server.name}",
                another if apps else free(holder, another),
            )


CHECKS = (check_authority, check_names, check_owner, check_tunnels, check_ports)
