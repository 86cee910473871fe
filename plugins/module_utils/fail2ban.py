"""What fail2ban is to watch, as several owners of one server say it, and whether it does.

Jails and addresses to ignore add up. A setting of the whole server, or of one jail, that two owners
state differently is a conflict; a value that is the role's default states nothing.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import files

DEFAULTS = {"seconds": 600, "max_seconds": 604800}
JAIL_DEFAULTS = {"ports": [], "retries": 5, "within_seconds": 600}
LOOPBACK = ("127.0.0.0/8", "::1")
CONFIGURATION = Path("/etc/fail2ban")
JAILS = CONFIGURATION / "jail.d/carafe.local"
DROP_IN = Path("/etc/systemd/system/fail2ban.service.d")
# What is newer than this has not been loaded; the drop-in keeps it.
LOADED = Path("/run/fail2ban/loaded")
CLIENT = Path("/usr/bin/fail2ban-client")
TRY = Path("/usr/local/lib/fail2ban-try.py")
UNIT = "fail2ban.service"


class Failure(Exception):
    """What fail2ban does not take, or does not do; says what to do."""


def given(jail: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an entry says of a jail, without options that it leaves out."""
    return {key: value for key, value in jail.items() if value is not None}


def stated(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an owner claims, by the names of the variables."""
    claim: dict[str, Any] = {
        f"fail2ban_{k}": wanted[k] for k, v in DEFAULTS.items() if wanted[k] != v
    }
    for jail in wanted["jails"]:
        claim |= {f"fail2ban_jails.{jail['name']}.{k}": v for k, v in given(jail).items()}
    lists = {"default_jails": [given(x) for x in wanted["default_jails"]]}
    return {**claim, **lists, "ignore": wanted["ignore"]}


def single(claims: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the names of what the server has once."""
    return sorted({name for x in claims.values() for name in x if name.startswith("fail2ban_")})


def composed(claims: Mapping[str, Mapping[str, Any]], owner: str) -> dict[str, Any]:
    """Return what all owners claim together, once none contradicts another.

    Of jails that none states, those of the owner whose run this is are the newest.
    """
    jails: dict[str, dict[str, Any]] = {}
    for claim in [*(x for name, x in claims.items() if name != owner), claims[owner]]:
        jails |= {x["name"]: {**JAIL_DEFAULTS, **x} for x in claim["default_jails"]}
    said = {name: value for claim in claims.values() for name, value in claim.items()}
    for name in single(claims):
        if name.startswith("fail2ban_jails."):
            jail, key = name.removeprefix("fail2ban_jails.").rsplit(".", 1)
            jails.setdefault(jail, {**JAIL_DEFAULTS, "name": jail})[key] = said[name]
    ignore = [*LOOPBACK, *(x for claim in claims.values() for x in claim["ignore"])]
    settings = {k: said.get(f"fail2ban_{k}", v) for k, v in DEFAULTS.items()}
    return {**settings, "ignore": list(dict.fromkeys(ignore)), "jails": list(jails.values())}


def has_log(jail: Mapping[str, Any]) -> bool:
    return "log" not in jail or any(Path("/").glob(jail["log"].lstrip("/")))


def section(jail: Mapping[str, Any], seconds: int) -> str:
    lines = ["enabled = true", f"filter = {jail.get('filter') or jail['name']}"]
    if "log" in jail:
        # When the log is taken away, fail2ban does not start without another file, and no jail is
        # left.
        lines += ["backend = auto", f"logpath = {jail['log']}", "          /dev/null"]
    else:
        lines.append("backend = systemd")
        if jail.get("journal"):
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
banaction = nftables[type=multiport]
banaction_allports = nftables[type=allports]
"""
    text += "".join(section(jail, settings["seconds"]) for jail in active)
    for jail in waiting:
        text += f"\n# {jail['name']} waits for {jail['log']}: run the playbook when it is there.\n"
    if "sshd" not in [jail["name"] for jail in active]:
        text += "\n# Debian has it on.\n[sshd]\nenabled = false\n"
    return text


def refused(text: str) -> str:
    """Return what fail2ban says against these jails, or an empty text."""
    if not TRY.exists():  # a dry run on a bare server
        return ""
    with tempfile.NamedTemporaryFile("w", suffix=".local") as file:
        file.write(text)
        file.flush()
        done = run("/usr/bin/python3", str(TRY), file.name)
    return " ".join((done.stderr or done.stdout).split()) if done.returncode else ""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def is_newer(folders: Iterable[Path], file: Path) -> bool:
    """Tell whether anything in the folders, or what they hold, changed after a file did."""
    if not file.exists():
        return True
    then = file.stat().st_mtime_ns
    return any(
        path.lstat().st_mtime_ns > then
        for folder in folders
        if folder.exists()
        for path in (folder, *folder.rglob("*"))
    )


def due(changed: bool) -> list[str]:
    """Return what systemd is to do, so that fail2ban runs and has loaded what is there."""
    names = ("ActiveState", "UnitFileState", "NeedDaemonReload")
    shown = run("systemctl", "show", "--property", ",".join(names), UNIT).stdout.splitlines()
    state = dict(line.split("=", 1) for line in shown)
    verbs = []
    if state["UnitFileState"] != "enabled":
        verbs.append("enable")
    if state["ActiveState"] != "active":
        verbs.append("start")
    elif are_bans_lost():
        # Only a start bans again who should be banned.
        verbs.append("restart")
    elif changed or is_newer((CONFIGURATION, DROP_IN), LOADED):
        verbs.append("reload")
    # Debian 12's systemd does not see that a unit has got its first drop-in, and says no.
    if verbs or state["NeedDaemonReload"] != "no":
        verbs.insert(0, "daemon-reload")
    return verbs


def are_bans_lost() -> bool:
    """Tell whether others have thrown away the kernel's table of those who are banned."""
    there = run("nft", "list", "table", "inet", "f2b-table").returncode == 0
    return not there and "['" in run(str(CLIENT), "banned").stdout


def write(text: str, dry: bool) -> None:
    """Put the jails into their place, unless fail2ban refuses them."""
    if message := refused(text):
        raise Failure(message)
    if not dry:
        files.write(JAILS, text)


def do(verbs: Iterable[str]) -> None:
    for verb in verbs:
        unit = [] if verb == "daemon-reload" else [UNIT]
        done = run("systemctl", verb, *unit)
        if done.returncode:
            said = run("journalctl", "-u", UNIT, "-n", "1", "-o", "cat").stdout.strip()
            raise Failure(
                f"fail2ban does not {verb}; its journal ends with: {said or done.stderr.strip()}"
                f" See systemctl status {UNIT} on the server, and run the playbook again."
            )
