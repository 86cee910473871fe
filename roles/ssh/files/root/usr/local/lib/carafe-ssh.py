# Managed by Ansible, role ssh.
"""Change sshd's settings such that a mistake takes itself back.

    carafe-ssh.py look <WANTED   say what is due for these settings, and whom they would lock out
    carafe-ssh.py arm 60 <WANTED make what they need, and put the old ones back after 60 seconds
    carafe-ssh.py confirm        keep the new ones; says no over a connection that is older than they are
    carafe-ssh.py revert         put the old ones back, now

WANTED is JSON; the role's vars/main.yml says what is in it. `look` changes nothing, and answers with JSON.
"""

import contextlib
import datetime
import fcntl
import fnmatch
import glob
import grp
import ipaddress
import json
import os
import pwd
import re
import subprocess
import sys
import tempfile
from pathlib import Path

MAIN = Path("/etc/ssh/sshd_config")
DROP_IN = Path("/etc/ssh/sshd_config.d/00-carafe.conf")
RSA_KEY = Path("/etc/ssh/ssh_host_rsa_carafe_key")
ED25519_KEY = Path("/etc/ssh/ssh_host_ed25519_key")
MODULI = Path("/etc/ssh/moduli_carafe")
MODULI_BITS = 3071  # moduli(5) counts from the bit below the highest
STATE = Path("/var/lib/carafe-ssh")
PENDING = STATE / "pending.json"  # the former settings; there until the new ones are confirmed
REVERT = "carafe-ssh-revert"


def run(*command, check=True):
    return subprocess.run(command, capture_output=True, text=True, check=check)


def systemctl(*words):
    return run("systemctl", *words, check=False).stdout.strip()


def write(path, text):
    """Write a file such that it is whole or not there, after a power cut too."""
    # A name that sshd does not read.
    new = path.with_name(path.name + ".new")
    with new.open("w") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


# Who is asking.


def session():
    """Return the process of sshd that this command runs under, and the one below it; none if it is not ssh."""
    pid, child = os.getpid(), None
    while pid > 1:
        stat = Path(f"/proc/{pid}/stat").read_text()
        name, fields = stat[stat.index("(") + 1 : stat.rindex(")")], stat[stat.rindex(")") + 2 :].split()
        if name.startswith("sshd"):
            # A number is used again in time; with the time of its start it is unique.
            return f"{pid} {fields[19]}", child
        pid, child = int(fields[1]), pid
    return None, None


def connected():
    """Return the user, and the addresses and port, of the connection that this command came by."""
    _, child = session()
    if child is None:
        return None
    lines = Path(f"/proc/{child}/environ").read_bytes().decode(errors="replace").split("\0")
    environment = dict(line.split("=", 1) for line in lines if "=" in line)
    client, _, server, port = environment["SSH_CONNECTION"].split()
    return {
        "user": environment["LOGNAME"],
        "client": client.partition("%")[0],
        "server": server.partition("%")[0],
        "port": port,
    }


# What sshd would make of the settings.


def included(text, candidate):
    """Return sshd_config with one more file among those that it includes, or in place of the one there."""
    lines, found = [], False
    for line in text.splitlines():
        keyword, *patterns = line.replace("=", " ", 1).split() or [""]
        if keyword.lower() != "include":
            lines.append(line)
            continue
        for pattern in (str(MAIN.parent / x.strip('"')) for x in patterns):
            paths = set(glob.glob(pattern))
            if fnmatch.fnmatch(str(DROP_IN), pattern):
                paths.add(str(DROP_IN))
            for path in sorted(paths):
                found = found or path == str(DROP_IN)
                lines.append(f"Include {candidate if path == str(DROP_IN) else path}")
    return "\n".join([*lines, ""]), found


def effective(path, who=None):
    """Return the settings that sshd takes from a file, for everybody or for one connection."""
    options = []
    if who:
        # sshd asks no name server unless it is told to.
        options = ["-C", "user={user},host={client},addr={client},laddr={server},lport={port}".format(**who)]
    found = {}
    for line in run("/usr/sbin/sshd", "-T", "-f", str(path), *options).stdout.splitlines():
        keyword, _, value = line.partition(" ")
        found.setdefault(keyword, set()).add(value)
    return found


def keywords(text):
    lines = (line.split() for line in text.splitlines())
    return [words[0].lower() for words in lines if words and not words[0].startswith("#")]


def overruled(text, alone, whole):
    """Yield what another file of sshd says first, or in addition."""
    # A key more does no harm: HostKeyAlgorithms says which are used.
    for keyword in dict.fromkeys(keywords(text)):
        if keyword == "hostkey" or alone.get(keyword) == whole.get(keyword):
            continue
        paths = [MAIN, *(path for path in sorted(DROP_IN.parent.glob("*.conf")) if path != DROP_IN)]
        guilty = [str(x) for x in paths if re.search(rf"(?im)^\s*{keyword}\b", x.read_text())]
        yield (
            f"sshd would use {keyword} {', '.join(sorted(whole.get(keyword, ())))} instead of"
            f" {', '.join(sorted(alone.get(keyword, ())))}. Remove {keyword} from {' and '.join(guilty) or MAIN}, or name"
            " what it says there in the variables of the role."
        )


def matches(pattern, name, address=None):
    """Tell whether a pattern of AllowUsers or AllowGroups means somebody."""
    wanted, _, place = pattern.partition("@") if address else (pattern, "", "")
    if not fnmatch.fnmatchcase(name, wanted.replace("[", "[[]")):
        return False
    if not place or fnmatch.fnmatchcase(address, place.replace("[", "[[]")):
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(address) in ipaddress.ip_network(place, strict=False)
    return False


def key_files(values, user):
    account = pwd.getpwnam(user)
    tokens = {"%h": account.pw_dir, "%u": user, "%U": str(account.pw_uid), "%%": "%"}
    names = " ".join(values).split()
    return [
        Path(account.pw_dir) / re.sub("%[huU%]", lambda found: tokens[found[0]], name)
        for name in names
        if name != "none"
    ]


def locked_out(settings, who):
    """Yield why who is connected could not come back."""
    user, port = who["user"], who["port"]
    account = pwd.getpwnam(user)
    groups = [grp.getgrgid(x).gr_name for x in os.getgrouplist(user, account.pw_gid)]
    value = {name: " ".join(found) for name, found in settings.items()}
    if port not in settings["port"]:
        yield (
            f"Ansible is connected to port {port}, on which sshd would not listen any more. Have both in ssh_ports"
            " first and run the playbook; then set ansible_port, and leave the old one out."
        )
    if account.pw_uid == 0 and value["permitrootlogin"] not in ("yes", "without-password", "prohibit-password"):
        yield (
            "Ansible is connected as root, who could not log in any more. Set ansible_user to another user that has a"
            " key and sudo, or ssh_permit_root_login to auto."
        )
    for keyword, variable, names, address in (
        ("users", "ssh_allow_users", [user], who["client"]),
        ("groups", "ssh_allow_groups", groups, None),
    ):
        allowed, denied = settings.get(f"allow{keyword}"), settings.get(f"deny{keyword}", ())
        if allowed and not any(matches(x, name, address) for x in allowed for name in names):
            yield (
                f"Ansible is connected as {user}, who is not among those of {variable}:"
                f" {', '.join(sorted(allowed))}. Add {' or '.join(names)} to it."
            )
        if any(matches(x, name, address) for x in denied for name in names):
            yield f"Ansible is connected as {user}, whom deny{keyword} in {MAIN} or beside it would refuse."
    # A command or an authority may know keys that are in no file.
    other_ways = ("authorizedkeyscommand", "trustedusercakeys")
    if value["passwordauthentication"] == "yes" or any(value.get(x, "none") != "none" for x in other_ways):
        return
    files = key_files(settings["authorizedkeysfile"], user)
    if not any(run("ssh-keygen", "-l", "-f", str(x), check=False).returncode == 0 for x in files):
        yield (
            f"Ansible is connected as {user}, who has no key in {' or '.join(map(str, files))}, and sshd would take"
            f" nothing but a key. Put one there: ssh-copy-id {user}@the-server"
        )


# What is due.


def root_login(wanted, who):
    """Return sshd's word for who may log in as root."""
    if wanted != "auto":
        return {"never": "no", "keys": "prohibit-password"}[wanted]
    if who:
        # Who came as another user and is root now has proven that this way works.
        return "prohibit-password" if pwd.getpwnam(who["user"]).pw_uid == 0 else "no"
    # Nothing is proven by a run that came by another way, and nothing is taken back.
    return "no" if effective(MAIN)["permitrootlogin"] == {"no"} else "prohibit-password"


def filled(wanted, who):
    """Return the settings with what only the server knows."""
    known = run("ssh", "-Q", "kex").stdout.split()
    algorithms = next(x for x in wanted["algorithms"] if x["needs"] in known)
    return (
        wanted["text"]
        .replace("@root@", root_login(wanted["root"], who))
        .replace("@kex@", ",".join(x for x in algorithms["kex"] if x in known))
        .replace("@macs@", ",".join(algorithms["macs"]))
    )


def units():
    """Return what systemd knows of sshd: the service's properties, and the ports of a socket that starts it."""
    lines = systemctl(
        "show", "--timestamp=us+utc", "--property=ActiveState,UnitFileState,StateChangeTimestamp", "ssh.service"
    ).splitlines()
    service = dict(line.split("=", 1) for line in lines)
    if systemctl("is-active", "ssh.socket") != "active":
        return service, set()
    return service, set(re.findall(r":(\d+) \(Stream\)", systemctl("show", "--property=Listen", "ssh.socket")))


def is_loaded(service):
    """Tell whether sshd has read the file since it was last touched."""
    stamp = service["StateChangeTimestamp"]
    if not stamp:
        return False
    changed = datetime.datetime.strptime(stamp, "%a %Y-%m-%d %H:%M:%S.%f UTC").replace(tzinfo=datetime.UTC)
    return DROP_IN.stat().st_ctime <= changed.timestamp()


def bits(path):
    """Return the size of a key, 0 if there is none."""
    found = run("ssh-keygen", "-l", "-f", str(path), check=False).stdout.split()
    return int(found[0]) if found else 0


def due(text, wanted):
    service, socket = units()
    if not DROP_IN.exists():
        yield f"{DROP_IN} is not there"
    else:
        stat = DROP_IN.stat()
        if DROP_IN.read_text() != text or (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid) != (0o600, 0, 0):
            yield f"{DROP_IN} is another"
        # With a socket, sshd may not have been needed yet.
        if not (socket and service["ActiveState"] == "inactive") and not is_loaded(service):
            yield f"sshd has not loaded {DROP_IN}"
    if not socket and (service["ActiveState"], service["UnitFileState"]) != ("active", "enabled"):
        yield f"ssh.service is {service['ActiveState']} and {service['UnitFileState']}"
    if bits(ED25519_KEY) == 0 or bits(RSA_KEY) < wanted["rsa_bits"]:
        yield "a host key is missing"
    if "modulifile" in keywords(text) and not MODULI.exists():
        yield f"{MODULI} is not there"
    if PENDING.exists():
        yield "settings wait for their confirmation"


def look(wanted):
    who = connected()
    if not Path("/usr/sbin/sshd").exists():
        problem = "There is no sshd. Install openssh-server, or leave ssh_manage_packages at true."
        return {"problems": [] if wanted["check"] else [problem], "due": []}
    text = filled(wanted, who)
    with tempfile.TemporaryDirectory() as folder:
        alone, whole = Path(folder, "00-carafe.conf"), Path(folder, "sshd_config")
        # A host key that is yet to be made would be an error.
        alone.write_text(re.sub("(?im)^hostkey ", "# ", text))
        configuration, found = included(MAIN.read_text(), alone)
        whole.write_text(configuration)
        problems = []
        if not found:
            problems.append(
                f"{MAIN} does not read {DROP_IN}. Make this its first line: Include {DROP_IN.parent}/*.conf"
            )
        for keyword in {"match", "include"} & set(keywords(text)):
            problems.append(
                f"ssh_settings cannot have {keyword}, which would change what the rest of the file means. Write it"
                f" to a file of its own in {DROP_IN.parent}."
            )
        if not problems:
            try:
                settings = effective(whole, who)
                problems += overruled(text, effective(alone), effective(whole))
            except subprocess.CalledProcessError as error:
                said = error.stderr.strip().replace(str(alone), str(DROP_IN)).replace(str(whole), str(MAIN))
                problems.append(f"sshd does not take these settings: {said}. Correct ssh_settings.")
            else:
                problems += locked_out(settings, who) if who else []
                _, ports = units()
                if ports and ports != settings["port"]:
                    problems.append(
                        f"ssh.socket listens on {', '.join(sorted(ports))} in place of sshd. Have the same in"
                        " ssh_ports, or let sshd listen: systemctl disable --now ssh.socket && systemctl enable"
                        " --now ssh.service"
                    )
    _, socket = units()
    return {"problems": problems, "due": list(due(text, wanted)), "text": text, "socket": bool(socket)}


# Acting on it.


def make_key(path, kind, size):
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    run("ssh-keygen", "-q", "-t", kind, "-b", str(size), "-N", "", "-C", f"root@{os.uname().nodename}", "-f", str(path))


def prepare(wanted):
    """Make host keys and moduli. Nothing that is there is touched: who knows the server knows it by its keys."""
    if bits(ED25519_KEY) == 0:
        make_key(ED25519_KEY, "ed25519", 256)
    if bits(RSA_KEY) < wanted["rsa_bits"]:
        old = RSA_KEY.with_name("ssh_host_rsa_key")
        if bits(old) >= wanted["rsa_bits"]:
            for suffix in ("", ".pub"):
                RSA_KEY.with_name(RSA_KEY.name + suffix).unlink(missing_ok=True)
                RSA_KEY.with_name(RSA_KEY.name + suffix).symlink_to(old.name + suffix)
        else:
            make_key(RSA_KEY, "rsa", wanted["rsa_bits"])
    if not MODULI.exists():
        lines = Path("/etc/ssh/moduli").read_text().splitlines(keepends=True)
        write(MODULI, "".join(x for x in lines if x[:1].isdigit() and int(x.split()[4]) >= MODULI_BITS))


def arm(seconds, wanted):
    prepare(wanted)
    state = {"former": DROP_IN.read_text() if DROP_IN.exists() else None}
    if PENDING.exists():
        # Of a run that was cut short. What is there now was never confirmed.
        state = json.loads(PENDING.read_text())
    state["session"], _ = session()
    write(PENDING, json.dumps(state))
    systemctl("stop", f"{REVERT}.timer", f"{REVERT}.service")
    run("systemctl", "enable", "--quiet", f"{REVERT}.service")
    run(
        *("systemd-run", "--quiet", f"--on-active={seconds}s", "--timer-property=AccuracySec=100ms"),
        f"--unit={REVERT}.service",
    )


def confirm(same):
    if not PENDING.exists():
        sys.exit("it came too late, and the former settings are back")
    former, (now, _) = json.loads(PENDING.read_text())["session"], session()
    if now is not None and now == former and not same:
        sys.exit("it came over the old connection; is there a ControlPath in ssh_args? ansible.cfg has control_path")
    PENDING.unlink()
    systemctl("stop", f"{REVERT}.timer")


def revert():
    if not PENDING.exists():
        return
    former = json.loads(PENDING.read_text())["former"]
    if former is None:
        DROP_IN.unlink(missing_ok=True)
    else:
        write(DROP_IN, former)
    # At boot, sshd has yet to start.
    if systemctl("is-active", "ssh.service") == "active":
        run("systemctl", "reload", "ssh.service")
    PENDING.unlink()
    systemctl("stop", f"{REVERT}.timer")


def main():
    if sys.argv[1:] == ["look"]:
        print(json.dumps(look(json.load(sys.stdin))))
        return
    STATE.mkdir(mode=0o700, exist_ok=True)
    with (STATE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        match sys.argv[1:]:
            case ["arm", seconds]:
                arm(int(seconds), json.load(sys.stdin))
            case ["confirm", *same]:
                confirm(same == ["--same"])
            case ["revert"]:
                revert()
            case _:
                sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(map(str, error.cmd[:3]))}: {error.stderr.strip()}")
