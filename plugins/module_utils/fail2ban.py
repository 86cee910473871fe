"""What fail2ban is to watch, as several owners of one server say it, and whether it does.

Jails and addresses to ignore add up. A setting of the whole server, or of one jail, that two owners
state differently is a conflict; a value that is the role's default states nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import services
from .claims import merged, stated
from .commands import ask
from .file_set import File

DEFAULTS = {"seconds": 600, "max_seconds": 604800}
JAIL_DEFAULTS = {"ports": [], "retries": 5, "within_seconds": 600}
LOOPBACK = ("127.0.0.0/8", "::1")
CONFIGURATION = Path("/etc/fail2ban")
JAILS = CONFIGURATION / "jail.d/carafe.local"
DROP_IN = Path("/etc/systemd/system/fail2ban.service.d")
# What is newer than this has not been loaded; the drop-in keeps it.
LOADED = Path("/run/fail2ban/loaded")
# What is newer than this is not what runs.
STARTED = LOADED.with_name("started")
SERVER = Path("/usr/local/lib/fail2ban-networks.py")
CLIENT = Path("/usr/bin/fail2ban-client")
TRY = Path("/usr/local/lib/fail2ban-try.py")
UNIT = "fail2ban.service"


def given(jail: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an entry says of a jail, without options that it leaves out."""
    return {key: value for key, value in jail.items() if value not in (None, "")}


def claim(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an owner claims, by the names of the variables."""
    claim = stated(wanted, DEFAULTS, "fail2ban_")
    for jail in wanted["jails"]:
        claim |= {f"fail2ban_jails.{jail['name']}.{k}": v for k, v in given(jail).items()}
    lists = {"default_jails": [given(x) for x in wanted["default_jails"]]}
    return {**claim, **lists, "ignore": wanted["ignore"]}


def once(claim: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a claim states of what the server has once."""
    return {name: value for name, value in claim.items() if name.startswith("fail2ban_")}


def composed(claims: Mapping[str, Mapping[str, Any]], owner: str) -> dict[str, Any]:
    """Return what all owners claim together, once none contradicts another.

    Of jails that none states, those of the owner whose run this is are the newest; their ports,
    on which each owner has sites of its own, add up.
    """
    jails: dict[str, dict[str, Any]] = {}
    for claim in [*(x for name, x in claims.items() if name != owner), claims[owner]]:
        for jail in claim["default_jails"]:
            name = jail["name"]
            ports = jail.get("ports", [])
            before = jails.get(name, {}).get("ports", ports)
            jails[name] = {**JAIL_DEFAULTS, **jail, "ports": all_ports(before, ports)}
    said = merged(map(once, claims.values()))
    for name, value in sorted(said.items()):
        if name.startswith("fail2ban_jails."):
            jail, key = name.removeprefix("fail2ban_jails.").rsplit(".", 1)
            jails.setdefault(jail, {**JAIL_DEFAULTS, "name": jail})[key] = value
    ignore = [*LOOPBACK, *(x for claim in claims.values() for x in claim["ignore"])]
    settings = {k: said.get(f"fail2ban_{k}", v) for k, v in DEFAULTS.items()}
    return {**settings, "ignore": list(dict.fromkeys(ignore)), "jails": list(jails.values())}


def all_ports(some: list[int], others: list[int]) -> list[int]:
    """Return the ports of two owners' sites. None of its own means that a jail has all."""
    return sorted({*some, *others}) if some and others else []


def has_log(jail: Mapping[str, Any]) -> bool:
    return "log" not in jail or any(Path("/").glob(jail["log"].lstrip("/")))


def section(jail: Mapping[str, Any], seconds: int) -> str:
    lines = ["enabled = true", f"filter = {jail.get('filter', jail['name'])}"]
    if "log" in jail:
        # When the log is taken away, fail2ban does not start without another file, and no jail is
        # left.
        lines += ["backend = auto", f"logpath = {jail['log']}", "          /dev/null"]
    else:
        lines.append("backend = systemd")
        if "journal" in jail:
            lines.append(f"journalmatch = {jail['journal']}")
    lines.append(
        f"port = {','.join(map(str, jail['ports']))}"
        if jail["ports"]
        else "banaction = %(banaction_allports)s"
    )
    lines += [f"maxretry = {jail['retries']}", f"findtime = {jail['within_seconds']}"]
    lines.append(f"bantime = {jail.get('ban_seconds', seconds)}")
    return "\n".join(["", f"[{jail['name']}]", *lines, ""])


def jail_file(settings: Mapping[str, Any]) -> str:
    """Return the text of jail.d/carafe.local, which is read after all other files there."""
    waiting = [x for x in settings["jails"] if not has_log(x)]
    active = [x for x in settings["jails"] if x not in waiting]
    text = f"""\
# Managed by Ansible, role fail2ban: what the inventories in /etc/carafe/fail2ban.d say together.
# Who fails too often gets no answer for a while. Read after all other files here.
[DEFAULT]
ignoreip = {" ".join(settings["ignore"])}
ignoreself = true
usedns = no
bantime = {settings["seconds"]}
bantime.increment = true
bantime.maxtime = {settings["max_seconds"]}
# Lines that are kept of each address.
maxmatches = 5
protocol = tcp,udp
banaction = nftables-networks[type=multiport]
banaction_allports = nftables-networks[type=allports]
"""
    text += "".join(section(jail, settings["seconds"]) for jail in active)
    for jail in waiting:
        text += f"\n# {jail['name']} waits for {jail['log']}: run the playbook when it is there.\n"
    if "sshd" not in [jail["name"] for jail in active]:
        text += "\n# Debian has it on.\n[sshd]\nenabled = false\n"
    return text


def file(settings: Mapping[str, Any]) -> File:
    """Return the file with the jails, which fail2ban tries before it lands."""
    # Without it, this is a dry run on a bare server.
    validate = f"/usr/bin/python3 {TRY} %s" if TRY.exists() else None
    return File(JAILS, None, None, content=jail_file(settings).encode(), validate=validate)


def due(changed: bool) -> list[str]:
    """Return what systemd is to do, so that fail2ban runs and has loaded what is there."""
    state = services.state(UNIT)
    load = ""
    is_old = SERVER.exists() and services.is_newer([SERVER], STARTED)
    if state["ActiveState"] == "active" and (is_old or are_bans_lost()):
        # Only a start bans again who should be banned, and takes another server.
        load = "restart"
    elif changed or services.is_newer((CONFIGURATION, DROP_IN), LOADED):
        load = "reload"
    return services.due(state, load)


def are_bans_lost() -> bool:
    """Tell whether others have thrown away the kernel's table of those who are banned."""
    there = ask("nft", "list", "table", "inet", "f2b-table").returncode == 0
    return not there and "['" in ask(CLIENT, "banned").stdout
