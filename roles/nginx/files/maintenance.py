"""Say what the role needs to know of this server before it switches maintenance.

Standard input is a JSON object: ``sites``, names of sites, and ``allow``, a text with addresses in
it. Standard output is a JSON object: ``ways``, the addresses to let in, as nginx writes them,
that which ssh comes from among them, and ``problems``, one sentence for each.
"""

import ipaddress
import json
import re
import sys
from pathlib import Path

PROC = Path("/proc")
SITES = Path("/etc/nginx/sites-enabled")


def visitor(text):
    """Return an address as nginx writes it, or None where no visitor can have it.

    A loopback address is refused: a proxy on the server itself has it, and with it everybody.
    """
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    address = getattr(address, "ipv4_mapped", None) or address
    return None if address.is_loopback else str(address)


def ssh_client():
    """Return the address that this session's ssh comes from, or an empty text.

    sudo drops SSH_CLIENT from the environment, but what started sudo still has it.
    """
    pid = "self"
    try:
        while pid != "0":
            found = re.search(
                rb"(?:^|\0)SSH_CLIENT=([^ \0]+)", (PROC / pid / "environ").read_bytes()
            )
            if found:
                return found[1].decode()
            pid = re.search(r"^PPid:\s+(\d+)", (PROC / pid / "status").read_text(), re.M)[1]
    except OSError:
        pass  # a process of the host's, where a container is the server
    return ""


def problems(sites, allow):
    """Yield what keeps maintenance from being switched."""
    if not sites:
        yield "nginx_sites has no site that is present."
    for text in allow:
        if visitor(text) is None:
            yield (
                f"nginx_maintenance_allow has {text}, but needs addresses of visitors: no network,"
                " no host name, not the server itself."
            )
    for site in sites:
        path = SITES / f"{site}.conf"
        if not path.exists():
            yield f"This server has no site {site}: see nginx_maintenance_sites and nginx_sites."
        elif f"/maintenance-{site}/on" not in path.read_text():
            yield (
                f"The site {site} was set up before there was maintenance, so nothing was done."
                " Run this first: ansible-playbook site.yml --tags nginx"
            )


def main():
    wanted = json.load(sys.stdin)
    # A list that was typed with -e arrives as the text of one.
    allow = re.findall(r"[^\s,\[\]\"']+", wanted["allow"])
    result = {
        "ways": sorted({visitor(text) for text in [*allow, ssh_client()]} - {None}),
        "problems": list(problems(wanted["sites"], allow)),
    }
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
