"""Switch the maintenance page of sites, by files that nginx looks for at each request."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .files import read, remove, write
from .ssh_peer import address, peer

SITES = Path("/etc/nginx/sites-enabled")
DATA = Path("/var/lib/nginx")
# Longer than any worker remembers that a file was there, which is for two seconds.
SECONDS = 15


def visitor(text: str) -> str | None:
    """Return an address as nginx writes it, or None where no visitor can have it.

    A loopback address is refused: a proxy on the server itself has it, and with it everybody.
    """
    found = address(text)
    return None if found is None or ipaddress.ip_address(found).is_loopback else found


def words(allow: Any) -> list[str]:
    """Return the entries of a list, which arrives as a text when it was typed with -e."""
    return re.findall(r"[^\s,\[\]\"']+", str(allow))


def let_in(allow: list[str]) -> list[str]:
    """Return the addresses to let in, that which ssh comes from among them."""
    operator = peer()
    addresses = [*allow, *([operator.client] if operator else [])]
    return sorted({visitor(text) for text in addresses} - {None})


def problems(names: list[str], allow: list[str]) -> Iterator[str]:
    """Yield what keeps maintenance from being switched."""
    if not names:
        yield "nginx_sites has no site that is present."
    for text in allow:
        if visitor(text) is None:
            yield (
                f"nginx_maintenance_allow has {text}, but needs addresses of visitors: no network,"
                " no host name, not the server itself."
            )
    for name in names:
        if not (SITES / f"{name}.conf").exists():
            yield f"This server has no site {name}: see nginx_maintenance_sites and nginx_sites."


def folder(name: str) -> Path:
    return DATA / f"maintenance-{name}"


def due(name: str, on: bool, page: str, ways: list[str]) -> dict[Path, str]:
    """Return what is to be written for a site, or what is to be removed."""
    if not on:
        return {folder(name): ""} if folder(name).exists() else {}
    # nginx looks for a file that is named after the visitor: there is no way to look into one.
    # The page comes last, so that nobody who is to be let in is shut out meanwhile.
    wanted = {folder(name) / f"allow-{way}": "" for way in ways} | {folder(name) / "on": page}
    return {path: text for path, text in wanted.items() if read(path) != text}


def switch(on: bool, changes: dict[Path, str]) -> None:
    for path, text in changes.items():
        if on:
            path.parent.mkdir(mode=0o755, exist_ok=True)
            write(path, text)
        else:
            remove(path)


def maintained(name: str, port: int, tls: bool) -> bool | None:
    """Return whether nginx shows the page for a host name, or None where there is no answer."""
    connection = http.client.HTTPConnection(name, timeout=10)
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection.sock = socket.create_connection(("127.0.0.1", port), timeout=10)
        if tls:
            # Which certificate it is does not matter here: it is this very server.
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            connection.sock = context.wrap_socket(connection.sock, server_hostname=name)
        connection.request("HEAD", "/")
        return connection.getresponse().getheader("X-Maintenance") is not None
    return None


def answers(site: dict[str, Any], on: bool) -> bool:
    """Return whether nginx comes to answer for a site as it is to."""
    name = re.sub(r"^[*]?[.]", "any.", site["server_names"][0])
    tls = bool(site["certificate"])
    deadline = time.monotonic() + SECONDS
    while maintained(name, site["listen_tls" if tls else "listen"], tls) is not on:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
