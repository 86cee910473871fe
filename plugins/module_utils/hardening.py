"""Time zone, host name, kernel settings, journal and nightly upgrades: what is due on a server.

Several owners, each an app for instance, state what they want of one server. A value that is the
role's default states nothing.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from . import (
    commands,
    database_restart,
    file_set,
    files,
    processes,
    programs,
    restarts,
    slots,
    supervisord,
    unix_http,
    words,
)
from .claims import merged, stated
from .commands import Failure, Refused, run, show
from .file_set import Absent, File

DEFAULTS = {
    "upgrade_origins": ["origin=Debian,codename=${distro_codename}-security,label=Debian-Security"],
    "reboot_time": "",
    "restart_time": "",
    "timezone": "Etc/UTC",
    "hostname": "",
}
# What upgrades by night, what has a shutdown wait for that, and what keeps the time.
UNITS = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "unattended-upgrades.service"),
    "systemd-timesyncd.service",
)
# The program restart-upgraded is made of them, which therefore travel with this one.
RESTARTS = programs.names(
    *(restarts, database_restart, slots, supervisord, processes, unix_http),
    *(commands, files, words),
)
JOURNALD = "systemd-journald.service"
JOURNAL = Path("/etc/systemd/journald.conf.d/50-carafe.conf")
# The role's own, and after it what the inventories say.
KERNEL = Path("/etc/sysctl.d/99-server.conf")
KERNEL_SETTINGS = Path("/etc/sysctl.d/99-server.settings.conf")
UPGRADE_SETTINGS = Path("/etc/apt/apt.conf.d/61carafe")
ZONES = Path("/usr/share/zoneinfo")
RESTART, RESTART_TIMER = (
    Path(f"/etc/systemd/system/restart-upgraded.{kind}") for kind in ("service", "timer")
)
RESTART_TEXT = """# Managed by Ansible, role hardening.
[Unit]
Description=Restart what runs with libraries that have been upgraded since, with no request lost

[Service]
Type=oneshot
ExecStart=/usr/bin/python3 /usr/local/lib/carafe/restart-upgraded
"""
TIMER_TEXT = """# Managed by Ansible, role hardening, hardening_restart_time.
[Unit]
Description=When what was upgraded is restarted

[Timer]
OnCalendar={time}
RandomizedDelaySec=60
Persistent=false

[Install]
WantedBy=timers.target
"""
HEAD = "Managed by Ansible, role hardening. What inventories say of this server:"
LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
AGAIN = "in the inventory's group_vars, and run the playbook again."


def check(wanted: Mapping[str, Any]) -> None:
    """Refuse what no server could be given."""
    zone, name = wanted["timezone"], wanted["hostname"]
    for kind in ("reboot", "restart"):
        if not re.fullmatch(r"(([01]\d|2[0-3]):[0-5]\d)?", time_of_day := wanted[f"{kind}_time"]):
            raise Failure(
                f'hardening_{kind}_time is "{time_of_day}". Write a time of day with its quotes,'
                f' for instance "03:30", or "" for no {kind}, {AGAIN}'
            )
    if zone and not (re.fullmatch(r"[\w+-]+(/[\w+-]+)*", zone) and (ZONES / zone).is_file()):
        raise Failure(
            f'hardening_timezone is "{zone}", and {ZONES} has no such zone. Correct it (timedatectl'
            f" list-timezones names them) {AGAIN}"
        )
    if name and (len(name) > 64 or not re.fullmatch(rf"{LABEL}(\.{LABEL})*", name)):
        raise Failure(
            f'hardening_hostname is "{name}", and that is no host name: letters, digits, hyphens'
            f" and dots, 64 at most. Correct it {AGAIN}"
        )


def claim(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an owner states of the server, by the names of the variables."""
    return stated(wanted, DEFAULTS, "hardening_") | {
        f"hardening_sysctl.{k}": str(v) for k, v in wanted["sysctl"].items()
    }


def composed(claims: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the owners state together, once none contradicts another."""
    said = merged(claims.values())
    settings = {k: said.get(f"hardening_{k}", v) for k, v in DEFAULTS.items()}
    names = [x for x in said if x.startswith("hardening_sysctl.")]
    return settings | {"sysctl": {x.removeprefix("hardening_sysctl."): said[x] for x in names}}


def kernel_file(settings: Mapping[str, Any]) -> str | None:
    lines = [f"{name} = {value}\n" for name, value in settings["sysctl"].items()]
    return f"# {HEAD} hardening_sysctl.\n{''.join(lines)}" if lines else None


def upgrade_file(settings: Mapping[str, Any]) -> str | None:
    """Return what differs from the role's own /etc/apt/apt.conf.d/60carafe."""
    origins, reboot = settings["upgrade_origins"], settings["reboot_time"]
    text = ""
    if origins != DEFAULTS["upgrade_origins"]:
        lines = "".join(f'    "{origin}";\n' for origin in origins)
        text += "#clear Unattended-Upgrade::Origins-Pattern;\n"
        text += f"Unattended-Upgrade::Origins-Pattern {{\n{lines}}};\n"
    if reboot:
        text += 'Unattended-Upgrade::Automatic-Reboot "true";\n'
        text += f'Unattended-Upgrade::Automatic-Reboot-Time "{reboot}";\n'
    return f"// {HEAD} hardening_upgrade_origins, hardening_reboot_time.\n{text}" if text else None


def parse(text: str) -> Iterator[tuple[str, str | None]]:
    """Yield each setting of sysctl.d(5) files as its path below /proc/sys and its value.

    The value is None where the file only takes the name out of what a pattern matches.
    """
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if not name or name[0] in "#;":
            continue
        ignored = name.startswith("-")
        name = name.lstrip("-").strip()
        if equals or ignored:
            first = re.search(r"[./]", name)
            if first and first[0] == ".":
                # An interface's name may hold a dot, which then is a slash.
                name = name.translate(str.maketrans("./", "/."))
            yield name, " ".join(value.split()) if equals else None


def effective(text: str, root: str = "/proc/sys") -> dict[str, str]:
    """Return what the settings of all files come to, as systemd-sysctl has it: the value by path.

    The last one of a name counts, and a name counts before any pattern.
    """
    settings = {}
    for name, value in parse(text):
        settings.pop(name, None)
        settings[name] = value
    named = {f"{root}/{x}": value for x, value in settings.items() if not glob.has_magic(x)}
    values = {}
    for name, value in settings.items():
        if glob.has_magic(name):
            values.update((str(path), value) for path in Path(root).glob(name))
    values.update(named)
    return {path: value for path, value in values.items() if value is not None}


def unlike(own: str, everything: str, root: str = "/proc/sys") -> dict[str, str]:
    """Return the value by path of each setting of one's own that is not in force."""
    patterns = [f"{root}/{name}" for name, _ in parse(own)]
    return {
        path: value
        for path, value in effective(everything, root).items()
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns) and read(path) != value
    }


def read(path: str) -> str | None:
    """Return a setting as it is in force, or None where this kernel does not show it."""
    try:
        return " ".join(Path(path).read_text().split())
    except OSError:
        return None


class Server:
    """Brings what is due about, or only says so. Each method looks at one thing."""

    def __init__(self, settings: Mapping[str, Any], dry: bool) -> None:
        self.settings = settings
        self.dry = dry
        self.done: list[str] = []
        self.refused: list[str] = []
        self.waits: list[str] = []
        self.diff: list[dict[str, str]] = []

    def to_do(self, sentence: str) -> bool:
        """Note what is due, and tell whether to do it now."""
        self.done.append(sentence)
        return not self.dry

    def bring_about(self) -> None:
        # With one file that it cannot read, apt does nothing at all.
        apt = "apt-config --config-file=%s dump"
        try:
            self.file(UPGRADE_SETTINGS, upgrade_file(self.settings), apt)
        except Refused as refused:
            raise Failure(
                f"hardening_upgrade_origins is what apt cannot read. Correct it {AGAIN} {refused}"
            ) from None
        self.file(KERNEL_SETTINGS, kernel_file(self.settings))
        self.timezone()
        self.hostname()
        self.kernel()
        self.services()
        self.restarts()

    def file(self, path: Path, text: str | None, validate: str | None = None) -> None:
        file = File(path, None, None, content=(text or "").encode(), validate=validate)
        written = file_set.write([Absent(path) if text is None else file], self.dry)
        for changed in written.paths:
            self.done.append(f"{'removed' if text is None else 'wrote'} {changed}")
        self.diff += written.diff

    def kernel(self) -> None:
        own = (files.read(KERNEL) or "") + (files.read(KERNEL_SETTINGS) or "")
        if not own:
            return
        everything = run("/lib/systemd/systemd-sysctl", "--cat-config")
        for path, value in sorted(unlike(own, everything).items()):
            name = path.removeprefix("/proc/sys/").translate(str.maketrans("./", "/."))
            if not Path(path).exists():
                self.refused.append(f"{name}: this kernel has no such setting.")
            elif not os.access(path, os.W_OK):
                self.refused.append(f"{name} stays {read(path)}: it cannot be set here.")
            elif self.dry:
                self.to_do(f"{name} = {value}")
            else:
                self.set(path, name, value)

    def set(self, path: str, name: str, value: str) -> None:
        before = read(path)
        try:
            Path(path).write_text(value)
        except OSError as error:
            self.refused.append(f"{name} stays {before}: {error.strerror}.")
        if read(path) != before:
            self.to_do(f"{name} = {value}")

    def services(self) -> None:
        """Start what upgrades by night and what keeps the time, and have journald read its file."""
        names = "LoadState,ActiveState,UnitFileState,ConditionResult,ConditionTimestampMonotonic"
        journald, *states = show(f"{names},MainPID", JOURNALD, *UNITS)
        for unit, state in zip(UNITS, states, strict=True):
            # Where it was tried and may not run, as in a container, somebody else keeps the time.
            vain = state["ConditionResult"] == "no" and state["ConditionTimestampMonotonic"] != "0"
            runs = state["ActiveState"] in ("active", "activating") or vain
            if state["LoadState"] != "loaded" or (runs and state["UnitFileState"] == "enabled"):
                continue
            if self.to_do(f"started {unit}"):
                run("systemctl", "enable", "--now", unit)
        older = processes.is_older(journald["MainPID"], [JOURNAL])
        # It loses no line.
        if older and self.to_do("restarted journald"):
            run("systemctl", "restart", JOURNALD)

    def restarts(self) -> None:
        """Have what was upgraded restarted by night, or say what runs as it was before."""
        when, before = self.settings["restart_time"], len(self.done)
        if not when and RESTART_TIMER.exists() and not self.dry:
            run("systemctl", "disable", "--now", RESTART_TIMER.name)
        for path in programs.install("restart-upgraded", RESTARTS, self.dry):
            self.done.append(f"wrote {path}")
        self.file(RESTART, RESTART_TEXT)
        self.file(RESTART_TIMER, TIMER_TEXT.format(time=when) if when else None)
        if len(self.done) > before and not self.dry:
            run("systemctl", "daemon-reload")
        if when and not self.dry:
            (state,) = show("ActiveState,UnitFileState", RESTART_TIMER.name)
            if (state["ActiveState"], state["UnitFileState"]) != ("active", "enabled"):
                self.to_do(f"started {RESTART_TIMER.name}")
                run("systemctl", "enable", "--now", RESTART_TIMER.name)
        # Programs of supervisord are looked at where a run gets to them.
        found = processes.units_upgraded().items()
        self.waits = [
            restarts.waits(unit, path)
            for unit, path in found
            if unit.endswith(".service") and unit != restarts.SUPERVISOR
        ]

    def timezone(self) -> None:
        wanted, current = self.settings["timezone"], Path("/etc/localtime")
        if not wanted or (
            current.exists() and current.read_bytes() == (ZONES / wanted).read_bytes()
        ):
            return
        if self.to_do(f"set the time zone to {wanted}"):
            run("timedatectl", "set-timezone", wanted)

    def hostname(self) -> None:
        wanted, hosts = self.settings["hostname"], Path("/etc/hosts")
        if not wanted:
            return
        kept = (files.read("/etc/hostname") or "").strip()
        if (socket.gethostname(), kept) != (wanted, wanted) and self.to_do(
            f"set the host name to {wanted}"
        ):
            socket.sethostname(wanted)
            Path("/etc/hostname").write_text(f"{wanted}\n")
        # Without a line there, each sudo asks the network for the server's own name.
        lines = (files.read(hosts) or "").splitlines()
        known = any(wanted in line.partition("#")[0].split()[1:] for line in lines)
        if not known and self.to_do(f"wrote {wanted} into /etc/hosts"):
            lines = [line for line in lines if line.split()[:1] != ["127.0.1.1"]]
            names = dict.fromkeys([wanted, wanted.partition(".")[0]])
            # In place: a container's is mounted, and cannot be replaced.
            hosts.write_text("\n".join([*lines, f"127.0.1.1 {' '.join(names)}", ""]))
