"""Debian packages: which are missing, and an installation that heals wherever it is cut short."""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import os
import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from .commands import Failure, ask, run
from .files import write

LISTS = Path("/var/lib/apt/lists")
FRESH_SECONDS = 3600
# What dpkg was about to note when it was cut off. It does nothing else before that is done.
JOURNAL = Path("/var/lib/dpkg/updates")
# What dpkg and apt lock, in the order in which they do.
LOCKS = tuple(
    Path("/var", x)
    for x in (
        "lib/dpkg/lock-frontend",
        "lib/dpkg/lock",
        "lib/apt/lists/lock",
        "cache/apt/archives/lock",
    )
)
UNITS = {".service", ".socket", ".timer", ".path"}
BROKEN = {"half-installed", "unpacked", "half-configured", "triggers-awaited", "triggers-pending"}

# One installation of Carafe at a time. The kernel takes the lock back from whoever is killed.
LOCK = Path("/run/carafe-packages.lock")
POLICY = Path("/usr/sbin/policy-rc.d")
ADMINISTRATORS = POLICY.with_name("policy-rc.d.administrator")
# What packages were kept from starting: an action and a service a line. Boot starts them all.
HELD = Path("/run/carafe-packages.held")
MARK = "# Managed by Ansible, module carafe.stack.packages."
POLICY_TEXT = f"""#!/bin/sh
{MARK}
# While it installs packages, none of them starts a service; a timer may start. When that was cut
# short, this file may be left; but nothing holds the lock then, and services start as if it were
# not here.
flock --nonblock --conflict-exit-code 101 {LOCK} true
if test $? = 101; then
    # invoke-rc.d may say --quiet first.
    test "$1" != --quiet || shift
    case "$2 $1" in
    *.timer) ;;
    "start "* | "restart "*) echo "$2 $1" >>{HELD}; exit 101 ;;
    *) exit 101 ;;
    esac
fi
test ! -x {ADMINISTRATORS} || exec {ADMINISTRATORS} "$@"
"""

ENVIRONMENT = {
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    "DEBIAN_PRIORITY": "critical",
    "APT_LISTCHANGES_FRONTEND": "none",
}
CONFIGURATION = ("--force-confdef", "--force-confold")
OLD_LISTS = re.compile(r"Unable to locate package|has no installation candidate|was not found|404 ")


class Package(NamedTuple):
    """What dpkg knows of a package."""

    status: str
    version: str
    provides: tuple[str, ...]
    # Each as it stands there, with its alternatives.
    depends: tuple[str, ...] = ()


def look() -> dict[str, Package]:
    """Return what dpkg knows of each package."""
    fields = ("db:Status-Status", "Package", "Version", "Provides", "Pre-Depends", "Depends")
    form = "\t".join(f"${{{x}}}" for x in fields) + "\n"
    found: dict[str, Package] = {}
    for line in run("dpkg-query", "--show", "--showformat", form).splitlines():
        status, name, version, provides, *depends = line.split("\t")
        # Of two architectures, the one that is there.
        if name not in found or status == "installed":
            names = tuple(x.split()[0] for x in provides.split(",") if x.strip())
            needs = tuple(x for x in ",".join(depends).split(",") if x.strip())
            found[name] = Package(status, version, names, needs)
    return found


def installed(known: Mapping[str, Package]) -> dict[str, str]:
    """Return the version of each package that is there, by its name."""
    return {name: x.version for name, x in known.items() if x.status == "installed"}


def missing(wanted: Iterable[str], known: Mapping[str, Package]) -> list[str]:
    """Return what to install: of alternatives the first, where none of them is there."""
    there = installed(known)
    provided = {name for x in there for name in known[x].provides}

    def is_there(choice: str) -> bool:
        name, _, version = choice.partition("=")
        name = re.split("[:/]", name)[0]
        if version:
            return fnmatch.fnmatchcase(there.get(name, ""), version)
        return name in there or name in provided

    choices = [[choice.strip() for choice in item.split("|")] for item in wanted]
    return list(dict.fromkeys(x[0] for x in choices if not any(map(is_there, x))))


def with_dependencies(names: Iterable[str], known: Mapping[str, Package]) -> set[str]:
    """Return what of these packages is there, with what they need: of alternatives the first."""
    there = installed(known)
    providers: dict[str, list[str]] = {}
    for name in there:
        for provided in known[name].provides:
            providers.setdefault(provided, []).append(name)
    found: set[str] = set()
    wanted = list(names)
    while wanted:
        choices = [re.split("[:/=( ]", x.strip())[0] for x in wanted.pop().split("|")]
        named = [x for x in choices if x in there][:1]
        for name in named or [x for choice in choices for x in providers.get(choice, [])]:
            if name not in found:
                found.add(name)
                wanted += known[name].depends
    return found


def is_interrupted(known: Mapping[str, Package]) -> bool:
    """Tell whether dpkg was cut off, so that some packages are neither there nor not."""
    return has_journal() or any(x.status in BROKEN for x in known.values())


def has_journal() -> bool:
    return JOURNAL.is_dir() and any(x.name.isdigit() for x in JOURNAL.iterdir())


def holder(path: Path) -> str:
    """Return who holds a lock, as the kernel lists them."""
    inode = path.stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if "->" not in words and words[5].rpartition(":")[2] == str(inode):
            with contextlib.suppress(OSError):
                name = Path("/proc", words[4], "comm").read_text().strip()
                return f"{name} (process {words[4]})"
    return "another process"


class Locks:
    """Waits for the locks of others, all in all for some seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.until = time.monotonic() + seconds

    def wait(self, path: Path, file, lock=fcntl.lockf) -> None:
        while True:
            try:
                return lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() > self.until:
                    raise Failure(
                        f"No package was installed: for {self.seconds:g} seconds, {holder(path)}"
                        f" has held {path}. Wait for its end, or end it on the server, and run the"
                        " playbook again."
                    ) from None
            time.sleep(0.2)

    def wait_for_debian(self) -> None:
        for path in LOCKS:
            if path.exists():
                with path.open("r+") as file:
                    self.wait(path, file)


def is_ours(path: Path) -> bool:
    return path.is_file() and MARK in path.read_text(errors="replace")


def is_left() -> bool:
    """Tell whether an installation that was cut short has left its policy for services."""
    if not is_ours(POLICY) and not ADMINISTRATORS.exists():
        return False
    with LOCK.open("a") as file, contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def deny_services() -> None:
    """Let no package start a service, for as long as the lock is held."""
    if os.path.lexists(POLICY) and not is_ours(POLICY):
        POLICY.replace(ADMINISTRATORS)
    write(POLICY, POLICY_TEXT, 0o755)


def allow_services() -> None:
    """Give the administrator's own policy for services its place again, where there is one."""
    if os.path.lexists(ADMINISTRATORS) and (is_ours(POLICY) or not os.path.lexists(POLICY)):
        ADMINISTRATORS.replace(POLICY)
    elif is_ours(POLICY):
        POLICY.unlink()


class Held(NamedTuple):
    """A service that a package was kept from starting."""

    action: str
    service: str
    package: str


def held(own: Iterable[str]) -> list[Held]:
    """Return the services that were held back, but for those of some packages and their needs."""
    if not HELD.exists():
        return []
    known = look()
    ours = with_dependencies(own, known)
    found = []
    for line in dict.fromkeys(HELD.read_text().splitlines()):
        action, service = line.split()
        places = (f"*/systemd/system/{unit_name(service)}", f"/etc/init.d/{service}")
        said = ask("dpkg-query", "--search", *places).stdout
        package = re.split("[,:]", said)[0]
        if package and package not in ours:
            found.append(Held(action, service, package))
    return found


def units(*packages: str) -> list[str]:
    """Return the units that packages bring along."""
    files = ask("dpkg-query", "--listfiles", *packages).stdout if packages else ""
    return [
        path.name
        for path in map(Path, files.splitlines())
        if path.parent.parts[-2:] == ("systemd", "system")
        and path.suffix in UNITS
        and "@" not in path.name
    ]


def start_timers(packages: Iterable[str]) -> None:
    """Start what listens to nobody, and would otherwise wait for a reboot: logrotate's, for one.

    A package asks for it together with a service, of which the first alone is refused.
    """
    timers = [x for x in units(*packages) if x.endswith(".timer")]
    if timers:
        ask("deb-systemd-invoke", "start", *timers)


def unit_name(service: str) -> str:
    return service if Path(service).suffix in UNITS else f"{service}.service"


def keep_held(services: list[Held]) -> None:
    """Note that these alone are held back."""
    if services:
        write(HELD, "".join(f"{x.action} {x.service}\n" for x in services), 0o644)
    else:
        HELD.unlink(missing_ok=True)


def start(services: list[Held]) -> list[str]:
    """Start services as their packages would have done; return what went wrong with them.

    A package that was refused its first unit has not asked for its others.
    """
    wrong = []
    for action, service, package in services:
        others = [x for x in units(package) if x != unit_name(service)]
        # It starts none that is disabled, and asks the administrator's policy.
        for command in ((action, unit_name(service)), ("start", *others)):
            if command[1:] and ask("deb-systemd-invoke", *command).returncode:
                wrong.append(
                    f"The package {package} is installed, and has a service that does not start."
                    f" See on the server: systemctl status {' '.join(command[1:])}"
                )
    return wrong


class Apt:
    """Installs packages, while nobody else does."""

    def __init__(self, lock: int, locks: Locks) -> None:
        # apt inherits the lock: if this process alone is killed, services wait until apt is done.
        self.lock = lock
        self.locks = locks
        self.warnings: list[str] = []

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        self.locks.wait_for_debian()
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=os.environ | ENVIRONMENT,
            pass_fds=[self.lock],
            check=False,
        )

    def update(self) -> None:
        """Update the package lists. What fails may concern a source that nothing here needs."""
        done = self.run("apt-get", "--quiet", "update")
        self.warnings = re.findall(r"^[EW]: (.*)$", done.stdout, re.M)
        if not self.warnings:
            os.utime(LISTS)

    def install(self, names: list[str], repair: bool) -> None:
        """Install packages, after what dpkg was cut off from, if it was."""
        if repair:
            # What it cannot do for want of a package, apt does next.
            self.run("dpkg", *CONFIGURATION, "--configure", "-a")
        fresh = LISTS.is_dir() and time.time() - LISTS.stat().st_mtime < FRESH_SECONDS
        if not fresh:
            self.update()
        done = self.try_to(names, repair)
        if done.returncode and fresh and OLD_LISTS.search(done.stdout):
            self.update()
            done = self.try_to(names, repair)
        if done.returncode:
            raise Failure(reason(done.stdout, names, self.warnings))

    def try_to(self, names: list[str], repair: bool) -> subprocess.CompletedProcess[str]:
        return self.run(
            *("apt-get", "--quiet", "--yes", "--no-install-recommends"),
            *("-o", f"DPkg::Lock::Timeout={self.locks.seconds:.0f}"),
            *(word for option in CONFIGURATION for word in ("-o", f"Dpkg::Options::={option}")),
            # Whatever else is broken there, nothing is mended by taking it away.
            *(("--fix-broken", "--no-remove") if repair else ()),
            *("install", *names),
        )


@contextlib.contextmanager
def alone(seconds: float, start_services: bool) -> Iterator[Apt]:
    """Keep other installations of Carafe out, and services as asked, for as long as this lasts."""
    locks = Locks(seconds)
    with LOCK.open("a") as lock:
        locks.wait(LOCK, lock, fcntl.flock)
        allow_services()
        try:
            if not start_services:
                deny_services()
            yield Apt(lock.fileno(), locks)
        finally:
            allow_services()


def simulate(names: list[str]) -> list[str]:
    """Return what would be installed, with what that needs if the lists are such as to tell."""
    command = ("apt-get", "--simulate", "--no-install-recommends", "install", *names)
    done = ask(*command, **ENVIRONMENT)
    return names if done.returncode else sorted(re.findall(r"^Inst (\S+)", done.stdout, re.M))


def reason(output: str, names: list[str], warnings: list[str]) -> str:
    """Return in one line which package failed, and why, of all that apt and dpkg say."""
    broken = re.findall(
        r"^dpkg: error processing (?:package|archive) (\S+) .*:\n *(.+)$", output, re.M
    )
    if broken:
        # An archive goes by its path.
        package = re.sub(r"^\d+-|_.*", "", broken[0][0].rpartition("/")[2]).partition(":")[0]
        return (
            f"The package {package} could not be installed: {broken[0][1].strip()}. Mend that on"
            " the server, where apt-get --fix-broken install shows all of it, and run the playbook"
            " again."
        )
    said = re.findall(r"^ (\S+ : .*)$|^E: (.*)$", output, re.M)
    said = [unmet or error for unmet, error in said] + warnings
    lines = dict.fromkeys(line.strip().rstrip(".") for line in said)
    return (
        f"apt could not install {', '.join(names)}: {'. '.join(lines) or 'it gave no reason'}."
        " Correct the list of packages in the inventory, or what stands in /etc/apt on the server,"
        " and run the playbook again."
    )
