# Managed by Ansible, role firewall.
"""Change the rules of the table inet carafe such that a mistake takes itself back.

    carafe-firewall.py due <RULES       say why these rules are not those in force, if they are not
    carafe-firewall.py apply 60 <RULES  load these rules, and take them back after 60 seconds
    carafe-firewall.py confirm          keep what was applied, now and at boot
    carafe-firewall.py revert           take back what was applied, now
    carafe-firewall.py record           remember what carafe-firewall.service has just loaded

RULES is a file for nft that replaces the table. No other table is touched.
"""

import contextlib
import fcntl
import os
import subprocess
import sys
from pathlib import Path

TABLE = ("table", "inet", "carafe")
NOTHING = "table inet carafe\ndelete table inet carafe\n"
UNIT = "carafe-firewall.service"
REVERT = "carafe-firewall-revert"
CONFIRMED = Path("/etc/carafe-firewall.nft")
RUN = Path("/run/carafe-firewall")
LOADED = RUN / "loaded.nft"  # the rules that were loaded last
LISTING = RUN / "loaded.list"  # what nft made of them
BEFORE = RUN / "before.nft"  # those to go back to, while others wait for their confirmation


def run(*command, text=None, check=True):
    return subprocess.run(command, input=text, capture_output=True, text=True, check=check)


def nft(*options, text=None, check=True):
    return run("/usr/sbin/nft", *options, text=text, check=check)


def systemctl(*words):
    return run("systemctl", *words, check=False).stdout.strip()


def read(path):
    return path.read_text() if path.exists() else None


def write(path, text):
    """Write a file such that it is whole or not there, after a power cut too."""
    new = path.with_name(path.name + ".new")
    with new.open("w") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def listing():
    """Return the table as the kernel has it, without counters and what ssh's limit remembers."""
    return nft("--stateless", "--terse", "list", *TABLE, check=False).stdout


def record(text):
    write(LOADED, text)
    write(LISTING, listing())


def load(text):
    nft("-f", "-", text=text)
    record(text)


def in_force():
    """Return rules that bring the table back as it is."""
    if listing() == read(LISTING):
        return read(LOADED)
    # Somebody has changed it by hand, or this is the first time.
    return NOTHING + nft("--stateless", "list", *TABLE, check=False).stdout


def restore():
    """Take unconfirmed rules back. At worst to none: who is locked out can mend nothing."""
    for text in (read(BEFORE), read(CONFIRMED), NOTHING):
        with contextlib.suppress(subprocess.CalledProcessError):
            if text is not None:
                load(text)
                break
    BEFORE.unlink()


def disarm():
    systemctl("stop", f"{REVERT}.timer", f"{REVERT}.service")


def due(text):
    wanted = {"ActiveState=active", "UnitFileState=enabled", "NeedDaemonReload=no"}
    names = ",".join(line.partition("=")[0] for line in wanted)
    unit = set(systemctl("show", f"--property={names}", UNIT).splitlines())
    reasons = {
        "the rules are others than the confirmed ones": read(CONFIRMED) != text,
        "the rules are others than the loaded ones": read(LOADED) != text,
        "somebody else has changed the table": listing() != read(LISTING),
        "rules wait for their confirmation": BEFORE.exists(),
        f"{UNIT} is not as it should be": unit != wanted,
    }
    if any(reasons.values()):
        nft("-c", "-f", "-", text=text)
    print(*(reason for reason, holds in reasons.items() if holds), sep="\n", end="")


def apply(text, seconds):
    nft("-c", "-f", "-", text=text)
    if BEFORE.exists():
        restore()
    disarm()
    write(BEFORE, in_force())
    try:
        # Before the rules: there must be no moment in which nothing would take them back.
        run(
            *("systemd-run", "--quiet", "--collect", f"--unit={REVERT}", f"--on-active={seconds}s"),
            *("--timer-property=AccuracySec=100ms", sys.executable, str(Path(__file__)), "revert"),
        )
        load(text)
    except subprocess.CalledProcessError:
        restore()
        disarm()
        raise


def confirm():
    if not BEFORE.exists():
        sys.exit(
            "no rules wait for their confirmation: it came too late, and the old ones are back"
        )
    if listing() != read(LISTING):
        sys.exit("somebody else has changed the table inet carafe meanwhile")
    write(CONFIRMED, read(LOADED))
    BEFORE.unlink()
    disarm()


def main():
    RUN.mkdir(mode=0o755, exist_ok=True)
    with (RUN / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        match sys.argv[1:]:
            case ["due"]:
                due(sys.stdin.read().strip() + "\n")
            case ["apply", seconds]:
                apply(sys.stdin.read().strip() + "\n", int(seconds))
            case ["confirm"]:
                confirm()
            case ["revert"]:
                if BEFORE.exists():
                    restore()
            case ["record"]:
                BEFORE.unlink(missing_ok=True)
                record(CONFIRMED.read_text())
            case _:
                sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(map(str, error.cmd[:3]))}: {error.stderr.strip()}")
