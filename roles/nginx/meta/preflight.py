"""What the role refuses besides what its argument_specs.yml says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from ansible_collections.carafe.stack.plugins.plugin_utils.problems import (
    HOST_NAME_RULE,
    PORT,
    Problem,
    Server,
    check_file_names,
    check_networks,
    check_twins,
    entries,
    is_host_name,
)

RANGES = {
    "nginx_cache_size_mb": (1, None),
    "nginx_client_timeout": (1, None),
    "nginx_sites.connect_timeout": (1, None),
    "nginx_sites.listen": PORT,
    "nginx_sites.listen_tls": PORT,
    "nginx_sites.locations.read_timeout": (1, None),
    "nginx_sites.max_conns": (0, None),
    "nginx_sites.read_timeout": (1, None),
    "nginx_sites.redirect_port": PORT,
    "nginx_worker_connections": (1, None),
}


def present_sites(server: Server) -> list[Mapping[str, Any]]:
    """Return the sites as the role sees them: the user's merged over those of the wiring."""
    sites = [x for x in entries(server, "nginx_sites") if "name" in x]
    return [site for site in sites if site.get("state") != "absent"]


def check_server_names(server: Server) -> Iterator[Problem]:
    """A wrong host name makes a site that nobody reaches."""
    # A mistake in a name of the app's is told as the app's.
    domains = server.values.get("app_domains") or []
    wired = [site.get("name") for site in entries(server, "nginx_default_sites")]
    for site in present_sites(server):
        names = site.get("server_names") or []
        if not names and site["name"] not in wired:
            yield Problem(
                "nginx_sites",
                f"has the site {site['name']!r} with no server_names, so no request could reach it",
            )
        for name in names:
            # nginx takes a regular expression after a tilde.
            if name not in domains and not name.startswith("~") and not is_host_name(name, True):
                yield Problem(
                    "nginx_sites",
                    f"has in the site {site['name']!r} the server name {name!r}, {HOST_NAME_RULE}",
                )


def check_names(server: Server) -> Iterator[Problem]:
    for variable, kind in (("nginx_sites", "sites"), ("nginx_streams", "streams")):
        yield from check_twins(server, variable, kind)
        yield from check_file_names(server, variable, kind)


def check_places(server: Server) -> Iterator[Problem]:
    """Of two sites with one name on one port, nginx serves the first, and hardly says so."""
    places: dict[tuple[Any, str], list[str]] = defaultdict(list)
    for site in present_sites(server):
        for name in site.get("server_names") or []:
            places[site.get("listen", 80), name.lower()].append(site["name"])
    for (port, name), sites in places.items():
        if len(sites) > 1:
            where = " and ".join(repr(site) for site in dict.fromkeys(sites))
            yield Problem("nginx_sites", f"serves {name!r} on port {port} twice, in {where}")


def check_proxies(server: Server) -> Iterator[Problem]:
    """The firewall lets in those that nginx believes, and takes no names."""
    yield from check_networks("nginx_real_ip_from", server.values.get("nginx_real_ip_from") or [])


CHECKS = (check_server_names, check_names, check_places, check_proxies)
