"""What nginx on this server can do, what it has loaded, and which owner has which of its sites."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from . import services
from .claims import conflicts as conflicts_of
from .claims import stated, stored
from .commands import Failure, Refused, ask, run

CLAIMS = Path("/etc/carafe/nginx.d")
ETC = Path("/etc/nginx")
LOADED = Path("/run/nginx.loaded")
UNIT = "nginx.service"
DROP_INS = Path("/etc/systemd/system/nginx.service.d")
DATA = Path("/var/lib/nginx")
IPV6 = Path("/proc/net/if_inet6")
RELEASE = Path("/etc/os-release")
OWNER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
# The first lines of a file that a run of the role has written.
HEADER = re.compile(r"^# The (?:site|service) \S+ of (\S+)\. ", re.M)


# --- what is there ---------------------------------------------------------------------------


def abilities(check_mode: bool) -> dict[str, bool]:
    """Return what this nginx knows. A dry run on a bare server goes by the release of Debian."""
    try:
        said = ask("/usr/sbin/nginx", "-V").stderr
        http2_on = version(r"nginx/([0-9.]+)", said) >= (1, 25, 1)
        post_quantum = version(r"OpenSSL ([0-9.]+)", said) >= (3, 5)
    except FileNotFoundError:
        if not check_mode:
            raise Refused(
                "nginx is not installed. Let the role install it, by nginx_manage_packages: true,"
                " or import its entry point install before."
            ) from None
        http2_on = post_quantum = version(r'VERSION_ID="?(\d+)', RELEASE.read_text()) >= (13,)
    # A kernel without IPv6 has no such table, and nginx would not start if it were to use it.
    return {"http2_on": http2_on, "post_quantum": post_quantum, "ipv6": IPV6.exists()}


def version(pattern: str, text: str) -> tuple[int, ...]:
    found = re.search(pattern, text)
    return tuple(int(x) for x in found[1].split(".")) if found else (0,)


def written_for(owner: str, suffix: str) -> set[str]:
    """Return the names of the sites or streams whose file a run of the owner's has written."""
    return {
        path.stem
        for path in (ETC / "sites-enabled").glob(f"*{suffix}")
        if path.is_file() and owner in HEADER.findall(path.read_text(errors="replace"))
    }


def over_tls(names: Iterable[str]) -> bool:
    """Return whether a site is served over TLS that is not among these."""
    return any(
        "\n    ssl_certificate " in path.read_text(errors="replace")
        for path in (ETC / "sites-enabled").glob("*.conf")
        if path.is_file() and path.stem not in names
    )


# --- what owners claim -----------------------------------------------------------------------


def claim(
    sites: list[dict], streams: list[dict], settings: dict[str, Any], defaults: dict[str, Any]
) -> dict[str, Any]:
    """Return what an owner has of this server. What is as by default is stated by nobody."""
    return {
        "settings": stated(settings, defaults),
        "sites": {
            site["name"]: {
                "server_names": [*site["server_names"], *site["redirect_names"]],
                "ports": [
                    int(site["listen"]),
                    *[int(site["listen_tls"])] * bool(site["certificate"]),
                ],
                **({"nameless": nameless(site)} if nameless(site) else {}),
            }
            for site in present(sites)
        },
        "streams": [stream["name"] for stream in present(streams)],
    }


def nameless(site: dict) -> dict[str, Any]:
    """Return what is shown to who names no host in a handshake, as for an address, if anything."""
    if not (site.get("nameless") and site["certificate"]):
        return {}
    key = site["certificate_key"] or site["certificate"]
    return {"port": int(site["listen_tls"]), "certificate": site["certificate"], "key": key}


def share_nameless(everybody: dict[str, dict], owner: str) -> tuple[dict[str, dict], list[str]]:
    """Return by port what is shown to who names no host; who has it keeps it.

    A claim of the owner's that finds it taken is dropped, and told.
    """
    taken: dict[str, dict] = {}
    told = []
    # The owner comes last.
    for name, claimed in sorted(everybody.items(), key=lambda x: x[0] == owner):
        for site, entry in claimed["sites"].items():
            if not (shown := entry.get("nameless")):
                continue
            port = str(shown["port"])
            first = taken.setdefault(port, {**shown, "owner": name, "site": site})
            if first["site"] != site:
                entry.pop("nameless")
                told.append(
                    f"Who comes to {site} by a bare address, over TLS on port {port}, is shown the"
                    f" certificate of {first['site']} ({first['owner']}), which was there first:"
                    " this server can show one."
                )
    return taken, told


def addresses(sites: list[dict], taken: dict[str, dict]) -> list[str]:
    """Return what answers at the bare addresses of this owner's sites."""
    told = []
    for site in present(sites):
        if not site["certificate"]:
            continue
        names = [x for x in site["server_names"] if not is_address(x) and x[0] not in "~*."]
        port = str(site["listen_tls"])
        has = taken.get(port, {}).get("certificate") == site["certificate"]
        seen = "" if int(site["redirect_port"]) == 443 else f":{site['redirect_port']}"
        for name in filter(is_address, site["server_names"]):
            if has:
                told.append(f"https://{name}{seen} is answered by {site['name']}.")
            elif not site.get("nameless") and names:
                told.append(
                    f"http://{name} sends visitors to https://{names[0]}{seen}, and"
                    f" https://{name}{seen} is refused: the certificate is for names."
                )
    return told


def is_address(name: str) -> bool:
    """Tell whether a server name is a bare address, which no client says in a handshake."""
    try:
        return bool(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        return False


def present(entries: list[dict]) -> list[dict]:
    return [x for x in entries if x["state"] == "present"]


def conflicts(everybody: dict[str, dict], owner: str, absent: Iterable[str] = ()) -> Iterator[str]:
    """Yield what two owners state differently, or both have."""
    yield from conflicts_of({k: v["settings"] for k, v in everybody.items()}, CLAIMS)
    mine = everybody[owner]
    for other, theirs in everybody.items():
        if other == owner:
            continue
        advice = (
            f"Change it in the inventory of one of them, or remove {CLAIMS / other}.json where"
            f" {other} is gone from the server."
        )
        for name in sorted({*mine["sites"], *absent} & theirs["sites"].keys()):
            yield f"nginx_sites: {owner} and {other} both have the site {name}. {advice}"
        for name in sorted({*mine["streams"]} & {*theirs["streams"]}):
            yield f"nginx_streams: {owner} and {other} both have the service {name}. {advice}"
        for name, port in sorted(served(mine) & served(theirs)):
            yield f"nginx_sites: {owner} and {other} both serve {name} on port {port}. {advice}"


def served(claim: dict[str, Any]) -> set[tuple[str, int]]:
    sites = claim["sites"].values()
    return {(name, port) for x in sites for name in x["server_names"] for port in x["ports"]}


def recorded(owner: str) -> dict[str, Any]:
    """Return the sites and streams that an owner had at the end of the last run."""
    return stored(CLAIMS, owner) or {"settings": {}, "sites": {}, "streams": []}


def absent_paths(owner: str, sites: list[dict], streams: list[dict]) -> list[str]:
    """Return all that belongs to what is to be absent, or is not listed any more."""

    def gone(kind: str, suffix: str, entries: list[dict]) -> list[str]:
        had = {*recorded(owner)[kind], *written_for(owner, suffix), *(x["name"] for x in entries)}
        return sorted(had - {x["name"] for x in present(entries)})

    # The file last, by which a run that was cut short is made up for.
    return [
        str(path)
        for name in gone("sites", ".conf", sites)
        for path in (
            DATA / f"cache-{name}",
            DATA / f"maintenance-{name}",
            ETC / f"sites-enabled/{name}.htpasswd",
            ETC / f"sites-enabled/{name}.conf",
        )
    ] + [str(ETC / f"sites-enabled/{name}.stream") for name in gone("streams", ".stream", streams)]


# --- ports -----------------------------------------------------------------------------------


def wanted_ports(sites: list[dict], streams: list[dict], extra: str, tls: bool) -> set[str]:
    """Return all that nginx is to listen on by TCP, as its listen directives say it."""
    wanted = {"80", *(["443"] if tls else [])}
    for site in present(sites):
        wanted |= {str(site["listen"]), *[str(site["listen_tls"])] * bool(site["certificate"])}
        extra += f"\n{site['extra']}"
    wanted |= {stream["listen"] for stream in present(streams) if not stream["udp"]}
    return wanted | set(re.findall(r"(?m)^\s*listen\s+([^\s;]+)", extra))


def taken_ports(wanted: set[str]) -> Iterator[str]:
    """Yield the ports that another service has.

    nginx would take them for its own: it would keep the old configuration, and not start again.
    """
    for line in run("/usr/bin/ss", "-Hltnp").splitlines():
        columns = line.split()
        place, who = columns[3], " ".join(columns[5:])
        if '"nginx"' in who:
            continue
        for name in sorted(wanted):
            mine, theirs = address(name), address(place)
            if mine[1] == theirs[1] and (mine[0] == theirs[0] or "any" in (mine[0], theirs[0])):
                yield (
                    f"nginx is to listen on {name}: another service has this port,"
                    f" {place} {who}. Change the port in nginx_sites, nginx_streams or"
                    " nginx_status_port, or stop that service."
                )


def address(text: str) -> tuple[str, str]:
    """Return address and port of what a socket, or a listen directive, is bound to."""
    host, _, port = text.rpartition(":")
    return ("any" if host in ("", "*", "0.0.0.0", "[::]") else host), port  # nosec B104 # no address to listen on


# --- what is loaded --------------------------------------------------------------------------


def due(certificates: Iterable[str]) -> list[str]:
    """Return what systemd is to do, so that nginx runs with what is configured."""
    state = services.state(UNIT, "nginx-sandbox.service")
    active, loaded = state["ActiveState"] == "active", LOADED.exists()
    # Its package has started it, with none of the sandbox, and nobody is connected.
    if active and not loaded and not is_connected():
        return services.due(state, "restart")
    newer = services.is_newer([ETC, DROP_INS, *map(Path, certificates)], LOADED)
    return services.due(state, "reload" if newer else "")


def is_connected() -> bool:
    return '"nginx"' in run("/usr/bin/ss", "-Htnp", "state", "established")


def act(verbs: Iterable[str]) -> None:
    try:
        # For its message: systemd would keep it in the journal.
        run("/usr/sbin/nginx", "-t", "-q")
        services.act(UNIT, verbs)
    except Failure as failure:
        raise Failure(f"nginx serves what it has loaded before. {failure}") from None
