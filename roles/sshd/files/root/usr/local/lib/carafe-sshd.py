# Managed by Ansible, role sshd.
"""Change sshd's settings such that a mistake takes itself back.

    carafe-sshd.py look <WANTED    say what is due for these settings, and whom they would lock out
    carafe-sshd.py arm 60 <WANTED  make what they need, and put the old ones back after 60 seconds
    carafe-sshd.py load            let sshd read the new ones
    carafe-sshd.py confirm         keep them; refuses a connection that is older than they are
    carafe-sshd.py revert          put the old ones back, now
    carafe-sshd.py boot            the same before sshd starts

WANTED is JSON, as vars/main.yml of the role has it. `look` only reads, and answers with JSON.
"""

import contextlib
import datetime
import fcntl
import fnmatch
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

SSHD = Path("/usr/sbin/sshd")
MAIN = Path("/etc/ssh/sshd_config")
DROP_IN = Path("/etc/ssh/sshd_config.d/00-carafe.conf")
ED25519_KEY = Path("/etc/ssh/ssh_host_ed25519_key")
RSA_KEY = Path("/etc/ssh/ssh_host_rsa_carafe_key")
DEBIANS_RSA_KEY = Path("/etc/ssh/ssh_host_rsa_key")
DEBIANS_MODULI = Path("/etc/ssh/moduli")
MODULI = Path("/etc/ssh/moduli_carafe")
MODULI_BITS = 3071  # moduli(5) has one less than the size of the group
STATE = Path("/var/lib/carafe-sshd")
PENDING = STATE / "pending.json"  # the old settings; there until the new ones are confirmed
REVERT = "carafe-sshd-revert"  # the timer, which is not a file
BOOT = "carafe-sshd-boot.service"


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
    """Return which sshd this command runs under, and the process below it; none without ssh."""
    pid, child = os.getpid(), None
    while pid > 1:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
        fields = rest.split()
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
    if client == "UNKNOWN":
        # By a socket of the machine that hosts this one, which is no matter of ports and addresses.
        return None
    return {
        "user": environment["LOGNAME"],
        "client": client.partition("%")[0],
        "server": server.partition("%")[0],
        "port": port,
    }


# What sshd would make of the settings.


def included(text, candidate):
    """Return sshd_config with one more file among those that it includes, or in place of it."""
    lines, found = [], False
    for line in text.splitlines():
        patterns = re.fullmatch(r"(?i)\s*include(?:\s*=\s*|\s+)(.*)", line)
        if not patterns:
            lines.append(line)
            continue
        for pattern in (str(MAIN.parent / x.strip('"')) for x in patterns[1].split()):
            paths = set(Path("/").glob(pattern.lstrip("/")))
            if fnmatch.fnmatch(str(DROP_IN), pattern):
                paths.add(DROP_IN)
                found = True
            lines += (f"Include {candidate if x == DROP_IN else x}" for x in sorted(paths))
    return "\n".join([*lines, ""]), found


def effective(path, who=None):
    """Return the settings that sshd takes from a file, for everybody or for one connection."""
    options = []
    if who:
        # Without UseDNS, sshd knows a client by its address only.
        condition = "user={user},host={client},addr={client},laddr={server},lport={port}"
        options = ["-C", condition.format(**who)]
    # sshd makes it when it starts, and tests nothing without it.
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    found = {}
    for line in run(str(SSHD), "-T", "-f", str(path), *options).stdout.splitlines():
        keyword, _, value = line.partition(" ")
        found.setdefault(keyword, set()).add(value)
    return found


def keywords(text):
    """Return the keywords that a file has, each once, in their order."""
    lines = (line.split() for line in text.splitlines())
    return list(dict.fromkeys(x[0].lower() for x in lines if x and not x[0].startswith("#")))


def overruled(text, alone, whole):
    """Yield what another file of sshd's says first, or in addition."""
    others = [MAIN, *(x for x in sorted(DROP_IN.parent.glob("*.conf")) if x != DROP_IN)]
    for keyword in keywords(text):
        ours, theirs = alone.get(keyword, set()), whole.get(keyword, set())
        # Most lists that another file adds to do no harm. What this one makes is not there yet.
        if (
            keyword == "hostkey"
            or ours == theirs
            or (ours < theirs and keyword not in ("port", "allowusers", "allowgroups"))
        ):
            continue
        guilty = [str(x) for x in others if re.search(rf"(?im)^\s*{keyword}\b", x.read_text())]
        yield (
            f"sshd would use {keyword} {', '.join(sorted(theirs))} instead of"
            f" {', '.join(sorted(ours))}. Remove {keyword} from {' and '.join(guilty) or MAIN}, or"
            " have the same in the variables of the role."
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
    """Return the files of AuthorizedKeysFile for a user."""
    account = pwd.getpwnam(user)
    tokens = {"%h": account.pw_dir, "%u": user, "%U": str(account.pw_uid), "%%": "%"}
    names = (x for x in " ".join(values).split() if x != "none")
    return [Path(account.pw_dir, re.sub("%[huU%]", lambda x: tokens[x[0]], x)) for x in names]


def locked_out(settings, who):
    """Yield why who is connected could not come back."""
    user, port = who["user"], who["port"]
    account = pwd.getpwnam(user)
    groups = [grp.getgrgid(x).gr_name for x in os.getgrouplist(user, account.pw_gid)]
    value = {name: " ".join(found) for name, found in settings.items()}
    if port not in settings["port"]:
        yield (
            f"Ansible is connected to port {port}, on which sshd would not listen any more. Have"
            " both in sshd_ports first and run the playbook; then set ansible_port, and leave the"
            " old one out."
        )
    by_key = ("yes", "without-password", "prohibit-password")
    if account.pw_uid == 0 and value["permitrootlogin"] not in by_key:
        yield (
            "Ansible is connected as root, who could not log in any more. Set ansible_user to"
            " another user that has a key and sudo, or sshd_permit_root_login to auto."
        )
    for kind, names, address in (("users", [user], who["client"]), ("groups", groups, None)):
        allowed, denied = settings.get(f"allow{kind}", ()), settings.get(f"deny{kind}", ())
        if allowed and not any(matches(x, name, address) for x in allowed for name in names):
            yield (
                f"Ansible is connected as {user}, who is not among {', '.join(sorted(allowed))}."
                f" Add {' or '.join(names)} to sshd_allow_{kind}."
            )
        if any(matches(x, name, address) for x in denied for name in names):
            yield (
                f"Ansible is connected as {user}, whom deny{kind} refuses. Remove"
                f" {', '.join(sorted(denied))} from it in {MAIN} or the files beside it."
            )
    # A command or an authority may know keys that are in no file.
    other_ways = ("authorizedkeyscommand", "trustedusercakeys")
    if value["passwordauthentication"] == "yes" or any(
        value.get(x, "none") != "none" for x in other_ways
    ):
        return
    files = key_files(settings["authorizedkeysfile"], user)
    if not any(run("ssh-keygen", "-l", "-f", str(x), check=False).returncode == 0 for x in files):
        yield (
            f"Ansible is connected as {user}, who has no key in {' or '.join(map(str, files))}, and"
            f" sshd would take nothing but a key. Put one there: ssh-copy-id {user}@the-server"
        )


# What is due.


def root_login(wanted, who):
    """Return sshd's word for who may log in as root."""
    if wanted != "auto":
        return {"never": "no", "keys": "prohibit-password"}[wanted]
    if who:
        # Who came as another user and is root now has proven that this way works.
        return "prohibit-password" if pwd.getpwnam(who["user"]).pw_uid == 0 else "no"
    # Who came by another way has proven nothing, and what was proven before still holds.
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
    """Return what systemd knows of sshd, and the ports of a socket that starts it, if any."""
    names = "--property=ActiveState,UnitFileState,StateChangeTimestamp,MainPID"
    lines = systemctl("show", "--timestamp=us+utc", names, "ssh.service").splitlines()
    service = dict(line.split("=", 1) for line in lines)
    if systemctl("is-active", "ssh.socket") != "active":
        return service, set()
    listen = systemctl("show", "--property=Listen", "ssh.socket")
    return service, set(re.findall(r":(\d+) \(Stream\)", listen))


def listens(ports):
    """Tell whether an sshd takes connections, whoever has started it."""
    filters = " or ".join(f"sport = :{port}" for port in sorted(ports))
    return '"sshd"' in run("ss", "-Hltnp", filters).stdout


def is_loaded(service):
    """Tell whether sshd has read the file since it was last touched."""
    # A start is a change of state, and so is a reload by hand.
    stamp = service["StateChangeTimestamp"]
    if not stamp:
        return False
    changed = datetime.datetime.strptime(stamp, "%a %Y-%m-%d %H:%M:%S.%f UTC")
    return DROP_IN.stat().st_ctime <= changed.replace(tzinfo=datetime.UTC).timestamp()


def bits(path):
    """Return the size of a key, 0 if there is none."""
    found = run("ssh-keygen", "-l", "-f", str(path), check=False).stdout.split()
    return int(found[0]) if found else 0


def due(text, wanted, service, socket):
    """Yield why the server is not as it should be."""
    if not DROP_IN.exists():
        yield f"{DROP_IN} is not there"
    else:
        stat = DROP_IN.stat()
        mode = (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid)
        if mode != (0o600, 0, 0) or DROP_IN.read_text() != text:
            yield f"{DROP_IN} is another"
        # With a socket, sshd may not have been needed yet.
        if not (socket and service["ActiveState"] == "inactive") and not is_loaded(service):
            yield f"sshd has not loaded {DROP_IN}"
    if not socket and (service["ActiveState"], service["UnitFileState"]) != ("active", "enabled"):
        yield f"ssh.service is {service['ActiveState']} and {service['UnitFileState']}"
    if bits(ED25519_KEY) == 0 or bits(RSA_KEY) < wanted["rsa_bits"]:
        yield "a host key is missing"
    if not MODULI.exists():
        yield f"{MODULI} is not there"
    if PENDING.exists():
        yield "settings wait for their confirmation"


def problems(text, who, service, socket):
    """Yield why these settings cannot be."""
    for keyword in ("match", "include"):
        if keyword in keywords(text):
            yield (
                f"sshd_settings cannot have {keyword}, which changes what the lines below it mean."
                f" Write it to a file of its own in {DROP_IN.parent}."
            )
            return
    with tempfile.TemporaryDirectory() as folder:
        candidate, whole = Path(folder, "candidate"), Path(folder, "sshd_config")
        # A host key that is yet to be made would be an error.
        candidate.write_text(re.sub("(?im)^hostkey ", "# ", text))
        configuration, found = included(MAIN.read_text(), candidate)
        whole.write_text(configuration)
        if not found:
            yield (
                f"{MAIN} does not read {DROP_IN}."
                f" Make this its first line: Include {DROP_IN.parent}/*.conf"
            )
            return
        try:
            settings = effective(whole, who)
            yield from overruled(text, effective(candidate), effective(whole))
        except subprocess.CalledProcessError as error:
            said = error.stderr.strip().replace(str(candidate), str(DROP_IN))
            yield (
                f"sshd does not take these settings: {said.replace(str(whole), str(MAIN))}."
                " Correct sshd_settings, or the file that it names."
            )
            return
    if who:
        yield from locked_out(settings, who)
    idle = service["ActiveState"] in ("inactive", "failed")
    if idle and not socket and listens(settings["port"]):
        # Debian 13's may lose sight of ssh.service when that is disabled and enabled again.
        yield (
            "systemd does not know of the sshd that runs, and could not start another. Reboot the"
            " server, and run the playbook again."
        )
    if socket and socket != settings["port"]:
        yield (
            f"ssh.socket listens on {', '.join(sorted(socket))} in place of sshd. Have the same in"
            " sshd_ports, or let sshd listen: systemctl stop ssh.socket ssh.service;"
            " systemctl disable ssh.socket; systemctl enable --now ssh.service"
        )


def look(wanted):
    """Return what is wrong with the settings, what is due for them, and what they are in full."""
    if not SSHD.exists():
        missing = "There is no sshd. Install openssh-server, or leave sshd_manage_packages at true."
        return {"problems": [] if wanted["check"] else [missing], "due": []}
    try:
        who, (service, socket) = connected(), units()
        text = filled(wanted, who)
        return {
            "problems": list(problems(text, who, service, socket)),
            "due": list(due(text, wanted, service, socket)),
            "text": text,
        }
    except subprocess.CalledProcessError as error:
        return {"problems": [told(error)], "due": []}


# Acting on it.


def make_key(path, kind, size):
    path.unlink(missing_ok=True)
    comment = f"root@{os.uname().nodename}"
    options = ("-t", kind, "-b", str(size), "-N", "", "-C", comment, "-f", str(path))
    run("ssh-keygen", "-q", *options)


def prepare(wanted):
    """Make host keys and moduli. Those that are there stay: the server is known by its keys."""
    if bits(ED25519_KEY) == 0:
        make_key(ED25519_KEY, "ed25519", 256)
    if bits(RSA_KEY) < wanted["rsa_bits"]:
        if bits(DEBIANS_RSA_KEY) < wanted["rsa_bits"]:
            make_key(RSA_KEY, "rsa", wanted["rsa_bits"])
        else:
            for suffix in ("", ".pub"):
                link = RSA_KEY.with_name(RSA_KEY.name + suffix)
                link.unlink(missing_ok=True)
                link.symlink_to(DEBIANS_RSA_KEY.name + suffix)
    if not MODULI.exists():
        lines = DEBIANS_MODULI.read_text().splitlines(keepends=True)
        groups = (x for x in lines if x[:1].isdigit() and int(x.split()[4]) >= MODULI_BITS)
        write(MODULI, "".join(groups))


def disarm():
    systemctl("stop", f"{REVERT}.timer", f"{REVERT}.service")


def arm(seconds, wanted):
    prepare(wanted)
    state = {"former": DROP_IN.read_text() if DROP_IN.exists() else None}
    if PENDING.exists():
        # Of a run that was cut short. What is there now was never confirmed.
        state = json.loads(PENDING.read_text())
    state["session"], _ = session()
    write(PENDING, json.dumps(state))
    disarm()
    run("systemctl", "enable", "--quiet", BOOT)
    run(
        *("systemd-run", "--quiet", "--collect", f"--unit={REVERT}", f"--on-active={seconds}s"),
        *("--timer-property=AccuracySec=100ms", sys.executable, str(Path(__file__)), "revert"),
    )


def load():
    """Let sshd read its settings.

    A reload would only tell it to, so that the old ones count for a moment yet, and would end one
    that ssh.socket has started. Sessions live on through a restart too: KillMode is process.
    """
    service, socket = units()
    if not socket and service["UnitFileState"] == "disabled":
        # systemd 257 may lose sight of a service that runs when its alias comes back.
        systemctl("stop", "ssh.service")
        run("systemctl", "enable", "--quiet", "ssh.service")
    # With a socket, the next connection starts one that does not run.
    if not socket or service["MainPID"] != "0":
        # Else systemd could find that it was started too often.
        systemctl("reset-failed", "ssh.service")
        run("systemctl", "restart", "ssh.service")


def confirm(same):
    if not PENDING.exists():
        sys.exit("The confirmation came too late. Give it more sshd_confirm_seconds.")
    former, (now, _) = json.loads(PENDING.read_text())["session"], session()
    if now is not None and now == former and not same:
        sys.exit(
            "The confirmation came by the old connection. Is there a ControlPath in ssh_args? Use"
            " control_path of ansible.cfg instead."
        )
    PENDING.unlink()
    disarm()


def restore():
    former = json.loads(PENDING.read_text())["former"]
    if former is None:
        DROP_IN.unlink(missing_ok=True)
    else:
        write(DROP_IN, former)


def told(error):
    return f"{' '.join(map(str, error.cmd[:3]))}: {error.stderr.strip()}"


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
            case ["load"]:
                load()
            case ["confirm", *same]:
                confirm(same == ["--same"])
            case ["revert"]:
                if PENDING.exists():
                    restore()
                    load()
                    PENDING.unlink()
                    # Not the service, which this may be.
                    systemctl("stop", f"{REVERT}.timer")
            case ["boot"]:
                if PENDING.exists():
                    restore()
                    PENDING.unlink()
            case _:
                sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(told(error))
