"""What is to be seen of a server: disks, memory, units, upgrades, certificates, backups, bans."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import backup_state, status_app
from .certificates import read_certificate
from .commands import ask, run, show
from .levels import DAY, GREEN, RED, YELLOW, Row, above, below, clock, span
from .levels import worst as worst_of
from .processes import units_upgraded
from .restarts import SCOPES
from .words import one_line

ROOT = Path("/")
# Folders that fill, each of which may be a file system of its own.
PLACES = (
    "/",
    "/boot",
    "/home",
    "/srv",
    "/var",
    "/var/lib",
    "/var/lib/postgresql",
    "/var/log",
)
# Percent that is used.
FULL, ALMOST_FULL = 95, 85
# Days left by a line through the history, which has to go back for some hours to say anything.
DAYS_SOON, DAYS_NOW = 14, 3
HISTORY = DAY / 4
# Those that a stack of Carafe's is made of, where they are on the server.
SERVICES = (
    *("nginx", "supervisor", "ssh", "fail2ban", "nftables", "unattended-upgrades"),
    "keepalived",
)
# A share of the memory that is to be had still.
SCARCE, SHORT = 0.10, 0.04
RESTORE = "ansible-playbook carafe.stack.restore"
STAMPS = "var/lib/apt/periodic"
RESTART = "python3 /usr/local/lib/carafe/restart-upgraded"


def text(path: str) -> str:
    try:
        return (ROOT / path).read_text(errors="replace")
    except OSError:
        return ""


# --- disks and memory --------------------------------------------------------------------------


def filesystems() -> dict[str, os.statvfs_result]:
    """Return the file systems that the stack writes to, by the folder that each begins at."""
    found: dict[int, tuple[str, os.statvfs_result]] = {}
    apps = []
    # An app's folder may be a disk of its own.
    with contextlib.suppress(OSError):
        apps = [str(app.root) for app in status_app.apps()]
    for place in (*PLACES, *apps):
        path = ROOT / place.lstrip("/")
        with contextlib.suppress(OSError):
            # The first one that is on it has the shortest name.
            found.setdefault(path.stat().st_dev, (place, os.statvfs(path)))
    return {place: about for place, about in found.values() if about.f_blocks}


def used(about: os.statvfs_result) -> int:
    return (about.f_blocks - about.f_bfree) * about.f_frsize


def disks(history: Sequence[Mapping[str, Any]] = (), now: float = 0) -> Iterator[Row]:
    """Yield how full each file system is, and when it will be by what the history says."""
    for place, about in filesystems().items():
        room = used(about) + about.f_bavail * about.f_frsize
        percent = 100 * used(about) / room if room else 100.0
        level = above(percent, ALMOST_FULL, FULL)
        says = f"{percent:.0f} % of {room / 2**30:.1f} GiB used"
        points = [(x["at"], x["disks"][place]) for x in history if place in x.get("disks", {})]
        days = days_left([*points, (now or time.time(), used(about))], room)
        if days is not None:
            level = worst_of((level, below(days, DAYS_SOON, DAYS_NOW)))
            says += f"; full in {days:.0f} days, as it grows"
        # Where the next level of folders is the one to look at.
        look = f"du -xh --max-depth=2 {place} | sort -h | tail -n 20"
        numbers = {} if days is None else {"carafe_disk_full_days": days}
        yield Row(f"disk {place}", level, says, "" if level == GREEN else look, numbers=numbers)
        if about.f_files:
            share = 100 * (about.f_files - about.f_ffree) / about.f_files
            level = above(share, ALMOST_FULL, FULL)
            if level != GREEN:
                look = f"du -x --inodes --max-depth=2 {place} | sort -n | tail -n 20"
                yield Row(f"inodes {place}", level, f"{share:.0f} % of them used", look)


def days_left(points: Sequence[tuple[float, float]], room: float) -> float | None:
    """Return in how many days a line through the points reaches the room; None for none soon."""
    if len(points) < 3 or points[-1][0] - points[0][0] < HISTORY:
        return None
    at = [(x - points[0][0]) / DAY for x, _ in points]
    middle, mean = sum(at) / len(at), sum(y for _, y in points) / len(points)
    spread = sum((x - middle) ** 2 for x in at)
    slope = sum((x - middle) * (y - mean) for x, (_, y) in zip(at, points, strict=True)) / spread
    # What grows by less than a thousandth of the room in a day is noise.
    if slope < room / 1000:
        return None
    return max(room - points[-1][1], 0) / slope


def sample(now: float) -> dict[str, Any]:
    """Return what the history keeps of this moment."""
    return {"at": now, "disks": {place: used(about) for place, about in filesystems().items()}}


def memory() -> Iterator[Row]:
    """Yield the memory that is to be had still, what the apps are promised, and the swap."""
    said = dict(re.findall(r"^(\w+):\s+(\d+) kB", text("proc/meminfo"), re.M))
    total, free = (int(said.get(x, 0)) // 1024 for x in ("MemTotal", "MemAvailable"))
    if not total:
        return
    look = "ps -eo pid,user,rss,args --sort=-rss | head -n 20"
    level = below(free / total, SCARCE, SHORT)
    says = f"{total - free} of {total} MiB used"
    promised = status_app.promised()
    if promised:
        says += f"; {sum(promised.values())} MiB promised to {', '.join(promised)}"
        if sum(promised.values()) > total:
            level, look = worst_of((level, YELLOW)), "cat /etc/carafe/*.fact"
    yield Row("memory", level, says, "" if level == GREEN else look)
    swap, left = (int(said.get(x, 0)) // 1024 for x in ("SwapTotal", "SwapFree"))
    if swap:
        level = YELLOW if left < swap / 4 else GREEN
        says = f"{swap - left} of {swap} MiB used"
        yield Row("swap", level, says, "" if level == GREEN else look)


# --- what systemd runs -------------------------------------------------------------------------


def units(apps: Sequence[str] = ()) -> Iterator[Row]:
    """Yield the services of the stack that are not up, and what else has failed."""
    said = run("systemctl", "list-units", "--failed", "--plain", "--no-legend", "--no-pager")
    failed = [line.split()[0] for line in said.splitlines() if line.split()]
    enabled = (ROOT / "etc/systemd/system").glob("*.wants/valkey@*.service")
    names = [*(f"{x}.service" for x in SERVICES), *sorted({x.name for x in enabled})]
    for unit in show("Id,LoadState,UnitFileState,ActiveState", *names):
        name, state = unit["Id"], unit["ActiveState"]
        # What is loaded once, as nftables is, is active for as long as it holds.
        wanted = unit["LoadState"] == "loaded" and unit["UnitFileState"] == "enabled"
        if wanted and state not in ("active", "reloading", "activating"):
            yield Row(f"unit {name}", RED, f"it is {state}", f"systemctl status {name}")
        if name in failed:
            failed.remove(name)
    # A schedule's last run is told of among the schedules.
    schedules = re.compile("|".join(re.escape(f"{x}.") for x in apps) or "$^")
    for name in failed:
        if not schedules.match(name):
            yield Row(f"unit {name}", YELLOW, "it has failed", f"systemctl status {name}")


def upgraded() -> Iterator[Row]:
    """Yield what runs with a library of before an upgrade, and whether a reboot is due."""
    # The kernel's package makes it with nothing in it.
    if (ROOT / "run/reboot-required").exists():
        packages = one_line(" ".join(dict.fromkeys(text("run/reboot-required.pkgs").split())))
        said = f"a reboot is due{packages and f', for {packages}'}"
        yield Row("reboot", YELLOW, said, "systemctl reboot")
    # A session of somebody's ends by itself, and what is systemd's own is not for the program.
    if found := [x for x in units_upgraded() if x.endswith(".service") or x.startswith(SCOPES)]:
        names = one_line(", ".join(found))
        says = f"{names}: running as before an upgrade"
        yield Row("restarts", YELLOW, says, RESTART)


def security_updates() -> list[str]:
    """Ask apt for the packages that wait; a new kernel is a package that was not there before."""
    options = ("--simulate", "--quiet", "--option=Debug::NoLocking=1", "--with-new-pkgs")
    return re.findall(
        r"^Inst (\S+) .*\([^)]*-[Ss]ecurity", run("apt-get", *options, "upgrade"), re.M
    )


def updates(now: float) -> Iterator[Row]:
    """Yield the security updates that wait, by the lists on the server, and who brings them."""
    waiting = security_updates()
    stamp = age(f"{STAMPS}/unattended-upgrades-stamp", now)
    lists = age(f"{STAMPS}/update-success-stamp", now)
    upgrade = "apt-get update && unattended-upgrade"
    says = f"{len(waiting)} security updates wait" if waiting else "no security update waits"
    if stamp is None:
        up = age("proc/1", now)
        nobody = up is not None and up > 2 * DAY and bool(waiting)
        level = YELLOW if nobody else GREEN
        says += "; no night has brought any yet"
    else:
        level = YELLOW if stamp > 2 * DAY else GREEN
        says += f"; looked for {span(stamp)} ago"
    if lists is not None and lists > 3 * DAY:
        level = YELLOW
        says += f"; the lists are {span(lists)} old"
    names = f": {one_line(' '.join(waiting), 80)}" if waiting else ""
    numbers = {"carafe_security_updates_waiting": len(waiting)}
    then = "" if level == GREEN else upgrade
    yield Row("updates", level, says + names, then, numbers=numbers)


def age(path: str, now: float) -> float | None:
    with contextlib.suppress(OSError):
        return now - (ROOT / path).stat().st_mtime
    return None


def clock_sync() -> Iterator[Row]:
    """Yield whether the clock is kept right; that of a container is its host's."""
    if ask("systemd-detect-virt", "--quiet", "--container").returncode == 0:
        return
    said = ask("timedatectl", "show", "--property=NTPSynchronized", "--value").stdout.strip()
    level = YELLOW if said == "no" else GREEN
    says = "it is not synchronized" if said == "no" else "synchronized"
    yield Row("clock", level, says, "timedatectl timesync-status" if said == "no" else "")


def bans() -> Iterator[Row]:
    """Yield how many addresses are banned."""
    if not (ROOT / "usr/bin/fail2ban-client").exists():
        return
    done = ask("fail2ban-client", "banned")
    if done.returncode:
        yield Row("bans", YELLOW, "fail2ban does not answer", "systemctl status fail2ban")
        return
    count = len(re.findall(r"'[0-9a-fA-F.:/]+'", re.sub(r"'[^']*':", "", done.stdout)))
    numbers = {"carafe_banned_addresses": count}
    yield Row("bans", GREEN, f"{count} addresses banned", numbers=numbers)


# --- certificates and backups ------------------------------------------------------------------


def certificates() -> Iterator[Row]:
    """Yield the end of each certificate that nginx serves."""
    paths = {}
    for path in sorted((ROOT / "etc/nginx/sites-enabled").glob("[!.]*")):
        with contextlib.suppress(OSError):
            for found in re.findall(
                r"^\s*ssl_certificate\s+([^\s;$]+)\s*;", path.read_text(errors="replace"), re.M
            ):
                paths[found] = path.stem
    now = datetime.datetime.now(datetime.UTC)
    renew = "ansible-playbook carafe.stack.site --tags certificates"
    for name, site in paths.items():
        what = f"certificate {site}"
        certificate = read_certificate(ROOT / name.lstrip("/"))
        if certificate is None:
            yield Row(what, RED, f"{name} holds none", renew)
            continue
        left = (certificate.end - now).total_seconds()
        life = (certificate.end - certificate.start).total_seconds()
        # It is renewed when a third of its life is left.
        level = below(left, life / 4, min(7 * DAY, life / 10))
        says = f"ends {certificate.end:%Y-%m-%d}, in {span(left)}"
        if certificate.stands_in:
            level, says = worst_of((level, YELLOW)), "a stand-in, which no browser trusts"
        numbers = {"carafe_certificate_end_timestamp_seconds": certificate.end.timestamp()}
        yield Row(what, level, says, "" if level == GREEN else renew, numbers=numbers)


def backups(now: float, keeps: bool) -> Iterator[Row]:
    """Yield each kind of backup, drill and copy that is to be there; ``keeps``: there is data."""
    every = backup_state.expected()
    # What is the cluster's is told where it is done.
    seen = backup_state.archiving() if "drill-database" in every else None
    jobs = backup_state.answered(every, seen)
    if not every and keeps:
        says = "none is made of what the apps keep here"
        yield Row("backup", YELLOW, says, "set backup_repository, see docs/how-to/backups.md")
    wrong = set()
    for problem in backup_state.problems(now):
        what, says = kind_of(problem["what"], every)
        wrong.add(what)
        then, numbers = problem["next"], numbers_of(backup_state.read(what))
        yield Row(titled(what), problem["level"], one_line(says), then, app_of(what), numbers)
    for what in jobs:
        last = backup_state.read(what)
        if last and what not in wrong:
            says = f"well {span(now - last['last_ok'])} ago; {one_line(last['message'])}"
            numbers = numbers_of(last)
            yield Row(titled(what), GREEN, f"{says}{took(last)}", "", app_of(what), numbers)
    if jobs != every:
        yield Row("backup", GREEN, "of the database, those of the cluster: see the one that leads")
    mine = [x for x in backup_state.DATABASE if x in jobs]
    known = [x for x in map(backup_state.read, mine) if x and x.get("details")]
    window = [(x["ended"], x["details"]["oldest"]) for x in known if x["details"].get("oldest")]
    if window:
        oldest = max(window)[1]
        numbers = {"carafe_restore_window_start_timestamp_seconds": oldest}
        says = f"the database from {clock(oldest)} {reached()}"
        yield Row("restore window", GREEN, says, numbers=numbers)
    # What somebody has asked for, and no timer does again.
    for path in sorted(backup_state.STATE.glob("restore-*.json")):
        last, app = backup_state.read(path.stem), path.stem.removeprefix("restore-")
        if last and last["result"] != "ok":
            yield Row("restore", RED, one_line(last["message"]), RESTORE, app)


def numbers_of(last: Mapping[str, Any] | None) -> dict[str, float]:
    """Return what a job has left, in numbers; one that was never well has no time of that."""
    if not last:
        return {}
    known = {"last_success_timestamp": last.get("last_ok"), "last_end_timestamp": last["ended"]}
    known["last_duration"] = last["ended"] - last.get("began", last["ended"])
    return {f"carafe_backup_{name}_seconds": x for name, x in known.items() if x is not None}


def reached() -> str:
    """Return up to which moments one can go back: here, and with what is archived alone."""
    seen = backup_state.archiving() or {}
    archived, failed = seen.get("archived") or 0, seen.get("failed") or 0
    if not archived:
        return "to what was archived last"
    if failed > archived:
        return f"to {clock(archived)}"
    return f"to now; to {clock(archived)} should the server be gone"


def took(last: Mapping[str, Any]) -> str:
    """Return how long a drill took to have the database back, which a restore takes as well."""
    seconds = (((last.get("details") or {}).get("database") or {}).get("seconds")) or {}
    back = sum(seconds.get(x, 0) for x in ("restore", "replay"))
    return f"; it was back in {span(back)}" if back else ""


def kind_of(said: str, jobs: Mapping[str, Any]) -> tuple[str, str]:
    """Return what a problem is of, by which the next run knows it again, and what it is."""
    head, _, rest = said.partition(": ")
    if head in jobs:
        return head, rest
    timer = said.split(" ", 1)[0]
    return (timer if timer.endswith(".timer") else "archiving"), said


def titled(what: str) -> str:
    if what.startswith("files-"):
        return "backup of files"
    return f"backup {what}" if what.startswith(("copy", "database-")) else what


def app_of(what: str) -> str:
    return what.removeprefix("files-") if what.startswith("files-") else ""
