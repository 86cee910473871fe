"""Say what a server lacks of what standard input asks for, and bring it about when told to.

Standard input is a JSON object:

``act``       whether to do it, or only to say what is due
``packages``  Debian packages that are to be there
``timezone``  name in /usr/share/zoneinfo, or empty
``hostname``  the server's name for itself, or empty
``kernel``    path of the file in /etc/sysctl.d whose settings are to be in force
``journal``   path of the file that journald is to have read

Standard output is a JSON object: ``packages`` lists those that are missing, ``due`` one sentence
for each thing that was done, or is to be done, and ``refused`` one for each setting that cannot be
set here, as in a container. Runs as root.
"""

import fnmatch
import glob
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

TIMERS = ("apt-daily.timer", "apt-daily-upgrade.timer")
TIMESYNCD = "systemd-timesyncd"
LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"


def run(*command):
    """Return a command's output; a failure ends this program with what the command said."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def property_of(unit, name):
    return run("systemctl", "show", "--property", name, "--value", unit).strip()


def parse(text):
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


def effective(text, root="/proc/sys"):
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


def unlike(own, everything, root="/proc/sys"):
    """Return the value by path of each setting of one's own that is not in force."""
    patterns = [f"{root}/{name}" for name, _ in parse(own)]
    return {
        path: value
        for path, value in effective(everything, root).items()
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns) and read(path) != value
    }


def read(path):
    """Return a setting as it is in force, or None where this kernel does not show it."""
    try:
        return " ".join(Path(path).read_text().split())
    except OSError:
        return None


class Server:
    """What is due on this server. Each method looks at one thing, and does it if it may."""

    def __init__(self, wanted):
        self.wanted = wanted
        self.due, self.refused = [], []

    def to_do(self, sentence):
        """Note what is due, and tell whether to do it now."""
        self.due.append(sentence)
        return self.wanted["act"]

    def missing(self):
        """Return the packages that are missing, with one that keeps the time where none does."""
        installed, keepers = set(), set()
        form = "${db:Status-Status} ${Package} ${Provides}\n"
        for line in run("dpkg-query", "--show", "--showformat", form).splitlines():
            status, name, *provided = line.replace(",", " ").split()
            if status == "installed":
                installed.add(name)
                if "time-daemon" in provided:
                    keepers.add(name)
        self.keeper = TIMESYNCD if TIMESYNCD in keepers else None
        wanted = self.wanted["packages"] + ([] if keepers else [TIMESYNCD])
        return [name for name in wanted if name not in installed]

    def kernel(self):
        own = Path(self.wanted["kernel"])
        if not own.exists():
            return
        everything = run("/lib/systemd/systemd-sysctl", "--cat-config")
        for path, value in sorted(unlike(own.read_text(), everything).items()):
            name = path.removeprefix("/proc/sys/").translate(str.maketrans("./", "/."))
            if not Path(path).exists():
                self.refused.append(f"{name}: this kernel has no such setting.")
            elif not os.access(path, os.W_OK):
                self.refused.append(f"{name} stays {read(path)}: it cannot be set here.")
            elif self.wanted["act"]:
                self.set(path, name, value)
            else:
                self.to_do(f"{name} = {value}")

    def set(self, path, name, value):
        before = read(path)
        try:
            Path(path).write_text(value)
        except OSError as error:
            self.refused.append(f"{name} stays {before}: {error.strerror}.")
        if read(path) != before:
            self.to_do(f"{name} = {value}")

    def journal(self):
        """Restart journald when it is older than its configuration; it loses no line."""
        file = Path(self.wanted["journal"])
        started = int(property_of("systemd-journald.service", "ExecMainStartTimestampMonotonic"))
        started = time.time() - time.monotonic() + started / 1e6
        if file.exists() and file.stat().st_mtime > started and self.to_do("restarted journald"):
            run("systemctl", "restart", "systemd-journald.service")

    def units(self):
        """Enable and start what upgrades by night and what keeps the time."""
        for unit in TIMERS + ((f"{self.keeper}.service",) if self.keeper else ()):
            state = subprocess.run(
                ["systemctl", "is-enabled", unit], capture_output=True, text=True
            )
            # Where it was tried and may not run, as in a container, somebody else keeps the time.
            vain = (
                property_of(unit, "ConditionResult") == "no"
                and property_of(unit, "ConditionTimestampMonotonic") != "0"
            )
            runs = property_of(unit, "ActiveState") in ("active", "activating") or vain
            if (state.stdout.strip() != "enabled" or not runs) and self.to_do(f"started {unit}"):
                run("systemctl", "enable", "--now", unit)

    def timezone(self):
        wanted = self.wanted["timezone"]
        if not wanted:
            return
        zone, current = Path("/usr/share/zoneinfo", wanted), Path("/etc/localtime")
        if not re.fullmatch(r"[\w+-]+(/[\w+-]+)*", wanted) or not zone.is_file():
            sys.exit(
                f'hardening_timezone is "{wanted}", and /usr/share/zoneinfo has no such zone. '
                "Correct it in group_vars (timedatectl list-timezones names them), and run the "
                "playbook again."
            )
        same = current.exists() and current.read_bytes() == zone.read_bytes()
        if not same and self.to_do(f"set the time zone to {wanted}"):
            run("timedatectl", "set-timezone", wanted)

    def hostname(self):
        wanted = self.wanted["hostname"]
        if not wanted:
            return
        if len(wanted) > 64 or not re.fullmatch(rf"{LABEL}(\.{LABEL})*", wanted):
            sys.exit(
                f'hardening_hostname is "{wanted}", and that is no host name: letters, digits, '
                "hyphens and dots, 64 at most. Correct it in group_vars and run the playbook again."
            )
        file, hosts = Path("/etc/hostname"), Path("/etc/hosts")
        kept = file.read_text().strip() if file.exists() else ""
        if (socket.gethostname(), kept) != (wanted, wanted) and self.to_do(
            f"set the host name to {wanted}"
        ):
            socket.sethostname(wanted)
            file.write_text(f"{wanted}\n")
        # Without a line there, each sudo asks the network for the server's own name.
        lines = hosts.read_text().splitlines() if hosts.exists() else []
        known = any(wanted in line.partition("#")[0].split()[1:] for line in lines)
        if not known and self.to_do(f"wrote {wanted} into /etc/hosts"):
            lines = [line for line in lines if line.split()[:1] != ["127.0.1.1"]]
            names = dict.fromkeys([wanted, wanted.partition(".")[0]])
            hosts.write_text("\n".join([*lines, f"127.0.1.1 {' '.join(names)}", ""]))


def main():
    server = Server(json.load(sys.stdin))
    # What ends the program comes first.
    server.timezone()
    server.hostname()
    packages = server.missing()
    server.kernel()
    server.journal()
    server.units()
    print(json.dumps({"packages": packages, "due": server.due, "refused": server.refused}))


if __name__ == "__main__":
    main()
