"""The text of sshd's settings, what is due for them, and whom they would lock out."""

from __future__ import annotations

import contextlib
import datetime
import fnmatch
import grp
import ipaddress
import os
import pwd
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from . import sshd
from .claims import merged, stated
from .commands import CommandFailed, run
from .ssh_peer import Peer

# What an owner states where it says nothing else.
DEFAULTS: dict[str, Any] = {
    "ports": [22],
    "permit_root_login": "auto",
    "allow_users": [],
    "allow_groups": [],
    "allow_tcp_forwarding": False,
    "allow_agent_forwarding": False,
    "allow_x11_forwarding": False,
    "max_auth_tries": 3,
    "max_sessions": 2,
    "login_grace_seconds": 30,
    "max_startups": "10:30:60",
    "client_alive_seconds": 120,
    "rsa_host_key_bits": 4096,
}
# Key exchanges and MACs that ssh-audit's hardened policies of Debian 13 and 12 ask for, in their
# order. The first counts whose key exchange the server has; with one that withstands quantum
# computers in it, the policy wants no other kind.
ALGORITHMS = {
    "mlkem768x25519-sha256": (
        "mlkem768x25519-sha256,sntrup761x25519-sha512,sntrup761x25519-sha512@openssh.com",
        "hmac-sha2-512-etm@openssh.com,hmac-sha2-256-etm@openssh.com,umac-128-etm@openssh.com",
    ),
    "curve25519-sha256": (
        "sntrup761x25519-sha512,sntrup761x25519-sha512@openssh.com,curve25519-sha256,"
        "curve25519-sha256@libssh.org,diffie-hellman-group16-sha512,diffie-hellman-group18-sha512,"
        "diffie-hellman-group-exchange-sha256",
        "hmac-sha2-256-etm@openssh.com,hmac-sha2-512-etm@openssh.com,umac-128-etm@openssh.com",
    ),
}
UNKNOWN = "what openssh-server knows of, once it is installed"
TEXT = """\
# Managed by Ansible, role sshd.
# sshd takes the first value that it meets, so this file comes before all others.
{settings}\
{ports}
# Keys, and nothing else.
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
HostbasedAuthentication no
GSSAPIAuthentication no
PermitEmptyPasswords no
PermitRootLogin {root}
{users}\
{groups}\
MaxAuthTries {max_auth_tries}
# Each further one logs in anew: it is counted, and stands in the log.
MaxSessions {max_sessions}
LoginGraceTime {login_grace_seconds}
MaxStartups {max_startups}

# In their order, what ssh-audit asks of this release.
HostKey {sshd.ED25519_KEY}
HostKey {sshd.RSA_KEY}
# Those with -cert- are for servers whose host keys an authority has signed.
HostKeyAlgorithms ssh-ed25519-cert-v01@openssh.com,rsa-sha2-512-cert-v01@openssh.com,\
rsa-sha2-256-cert-v01@openssh.com,ssh-ed25519,rsa-sha2-512,rsa-sha2-256
KexAlgorithms {kex}
Ciphers chacha20-poly1305@openssh.com,aes256-gcm@openssh.com,aes256-ctr,aes192-ctr,\
aes128-gcm@openssh.com,aes128-ctr
MACs {macs}
# Without the groups of less than 3072 bits.
ModuliFile {sshd.MODULI}

AllowTcpForwarding {allow_tcp_forwarding}
AllowStreamLocalForwarding {allow_tcp_forwarding}
AllowAgentForwarding {allow_agent_forwarding}
X11Forwarding {allow_x11_forwarding}
PermitTunnel no
Compression no

# A client that is gone is noticed inside of the encryption, where nobody can answer in its place.
TCPKeepAlive no
ClientAliveInterval {client_alive_seconds}
ClientAliveCountMax 2

# With the fingerprint of the key that was used.
LogLevel VERBOSE
Banner none
DebianBanner no
"""


def claim(params: dict[str, Any]) -> dict[str, Any]:
    """Return what an owner states of sshd: nothing of what is as it is by default.

    The names are those of the role's variables. Each keyword of sshd_settings is stated by itself.
    """
    # In an order that the file of the claim keeps.
    settings = {f"sshd_settings.{k}": x for k, x in sorted(params["settings"].items())}
    return stated(params, DEFAULTS, "sshd_") | settings


def composed(claims: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the settings of all owners, none of whom contradicts another."""
    found = {k.removeprefix("sshd_"): x for k, x in merged(claims).items()}
    settings = {k.partition(".")[2]: found[k] for k in sorted(found) if k not in DEFAULTS}
    return DEFAULTS | {k: x for k, x in found.items() if k in DEFAULTS} | {"settings": settings}


def render(wanted: dict[str, Any], peer: Peer | None) -> str:
    """Return the settings as sshd reads them, with what only the server knows."""
    kex = macs = UNKNOWN
    if sshd.SSHD.exists():
        known = run("ssh", "-Q", "kex").split()
        best, macs = next(x for first, x in ALGORITHMS.items() if first in known)
        kex = ",".join(x for x in best.split(",") if x in known)

    def word(value: object) -> object:
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value

    def lines(keyword: str, values: object) -> str:
        found = values if isinstance(values, list) else [values]
        return "".join(f"{keyword} {word(x)}\n" for x in found)

    return TEXT.format(
        **{name: word(value) for name, value in wanted.items()}
        | {"settings": "".join(lines(k, x) for k, x in wanted["settings"].items())}
        | {"ports": lines("Port", wanted["ports"])},
        sshd=sshd,
        root=root_login(wanted["permit_root_login"], peer),
        users=lines("AllowUsers", wanted["allow_users"]),
        groups=lines("AllowGroups", wanted["allow_groups"]),
        kex=kex,
        macs=macs,
    )


# What sshd would make of the settings.


def included(text: str, candidate: Path) -> tuple[str, bool]:
    """Return sshd_config with one more file among those that it includes, or in place of it."""
    lines, found = [], False
    for line in text.splitlines():
        patterns = re.fullmatch(r"(?i)\s*include(?:\s*=\s*|\s+)(.*)", line)
        if not patterns:
            lines.append(line)
            continue
        for pattern in (str(sshd.MAIN.parent / x.strip('"')) for x in patterns[1].split()):
            paths = set(Path("/").glob(pattern.lstrip("/")))
            if fnmatch.fnmatch(str(sshd.DROP_IN), pattern):
                paths.add(sshd.DROP_IN)
                found = True
            lines += (f"Include {candidate if x == sshd.DROP_IN else x}" for x in sorted(paths))
    return "\n".join([*lines, ""]), found


def effective(path: Path, who: Peer | None = None) -> dict[str, set[str]]:
    """Return the settings that sshd takes from a file, for everybody or for one connection."""
    options = []
    if who:
        # Without UseDNS, sshd knows a client by its address only.
        condition = f"user={who.user},host={who.client},addr={who.client}"
        options = ["-C", f"{condition},laddr={who.server},lport={who.port}"]
    # sshd makes it when it starts, and tests nothing without it.
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    found = {}
    for line in run(sshd.SSHD, "-T", "-f", path, *options).splitlines():
        keyword, _, value = line.partition(" ")
        found.setdefault(keyword, set()).add(value)
    return found


def keywords(text: str) -> list[str]:
    """Return the keywords that a file has, each once, in their order."""
    lines = (line.split() for line in text.splitlines())
    return list(dict.fromkeys(x[0].lower() for x in lines if x and not x[0].startswith("#")))


def overruled(text: str, alone: dict[str, set[str]], whole: dict[str, set[str]]) -> Iterator[str]:
    """Yield what another file of sshd's says first, or in addition."""
    others = [
        sshd.MAIN,
        *(x for x in sorted(sshd.DROP_IN.parent.glob("*.conf")) if x != sshd.DROP_IN),
    ]
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
            f" {', '.join(sorted(ours))}. Remove {keyword} from"
            f" {' and '.join(guilty) or sshd.MAIN}, or have the same in the variables of the role."
        )


def matches(pattern: str, name: str, address: str | None = None) -> bool:
    """Tell whether a pattern of AllowUsers or AllowGroups means somebody."""
    wanted, _, place = pattern.partition("@") if address else (pattern, "", "")
    if not fnmatch.fnmatchcase(name, wanted.replace("[", "[[]")):
        return False
    if not place or fnmatch.fnmatchcase(address, place.replace("[", "[[]")):
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(address) in ipaddress.ip_network(place, strict=False)
    return False


def key_files(values: Iterable[str], user: str) -> list[Path]:
    """Return the files of AuthorizedKeysFile for a user."""
    account = pwd.getpwnam(user)
    tokens = {"%h": account.pw_dir, "%u": user, "%U": str(account.pw_uid), "%%": "%"}
    names = (x for x in " ".join(values).split() if x != "none")
    return [Path(account.pw_dir, re.sub("%[huU%]", lambda x: tokens[x[0]], x)) for x in names]


def locked_out(settings: dict[str, set[str]], who: Peer) -> Iterator[str]:
    """Yield why who is connected could not come back."""
    user, port = who.user, str(who.port)
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
    for kind, names, address in (("users", [user], who.client), ("groups", groups, None)):
        allowed, denied = settings.get(f"allow{kind}", ()), settings.get(f"deny{kind}", ())
        if allowed and not any(matches(x, name, address) for x in allowed for name in names):
            yield (
                f"Ansible is connected as {user}, who is not among {', '.join(sorted(allowed))}."
                f" Add {' or '.join(names)} to sshd_allow_{kind}."
            )
        if any(matches(x, name, address) for x in denied for name in names):
            yield (
                f"Ansible is connected as {user}, whom deny{kind} refuses. Remove"
                f" {', '.join(sorted(denied))} from it in {sshd.MAIN} or the files beside it."
            )
    # A command or an authority may know keys that are in no file.
    other_ways = ("authorizedkeyscommand", "trustedusercakeys")
    if value["passwordauthentication"] == "yes" or any(
        value.get(x, "none") != "none" for x in other_ways
    ):
        return
    files = key_files(settings["authorizedkeysfile"], user)
    if not any(map(sshd.bits, files)):
        yield (
            f"Ansible is connected as {user}, who has no key in {' or '.join(map(str, files))}, and"
            f" sshd would take nothing but a key. Put one there: ssh-copy-id {user}@the-server"
        )


# What is due.


def root_login(wanted: str, peer: Peer | None) -> str:
    """Return sshd's word for who may log in as root."""
    if wanted != "auto":
        return {"never": "no", "keys": "prohibit-password"}[wanted]
    if peer and peer.user:
        # Who came as another user and is root now has proven that this way works.
        return "prohibit-password" if pwd.getpwnam(peer.user).pw_uid == 0 else "no"
    # Who came by another way has proven nothing, and what was proven before still holds.
    proven = sshd.SSHD.exists() and effective(sshd.MAIN)["permitrootlogin"] == {"no"}
    return "no" if proven else "prohibit-password"


def listens(ports: Iterable[str]) -> bool:
    """Tell whether an sshd takes connections, whoever has started it."""
    filters = " or ".join(f"sport = :{port}" for port in sorted(ports))
    return '"sshd"' in run("ss", "-Hltnp", filters)


def is_loaded(service: dict[str, str]) -> bool:
    """Tell whether sshd has read the file since it was last touched."""
    # A start is a change of state, and so is a reload by hand.
    stamp = service["StateChangeTimestamp"]
    if not stamp:
        return False
    changed = datetime.datetime.strptime(stamp, "%a %Y-%m-%d %H:%M:%S.%f UTC")
    return sshd.DROP_IN.stat().st_ctime <= changed.replace(tzinfo=datetime.UTC).timestamp()


def due(text: str, rsa_bits: int, service: dict[str, str], socket: set[str]) -> Iterator[str]:
    """Yield why the server is not as it should be."""
    if not sshd.DROP_IN.exists():
        yield f"{sshd.DROP_IN} is not there"
    else:
        stat = sshd.DROP_IN.stat()
        mode = (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid)
        if mode != (0o600, 0, 0) or sshd.DROP_IN.read_text() != text:
            yield f"{sshd.DROP_IN} is another"
        # With a socket, sshd may not have been needed yet.
        if not (socket and service["ActiveState"] == "inactive") and not is_loaded(service):
            yield f"sshd has not loaded {sshd.DROP_IN}"
    if not socket and (service["ActiveState"], service["UnitFileState"]) != ("active", "enabled"):
        yield f"ssh.service is {service['ActiveState']} and {service['UnitFileState']}"
    if sshd.bits(sshd.ED25519_KEY) == 0 or sshd.bits(sshd.RSA_KEY) < rsa_bits:
        yield "a host key is missing"
    if not sshd.MODULI.exists():
        yield f"{sshd.MODULI} is not there"
    if sshd.CHANGE.waiting():
        yield "settings wait for their confirmation"


def problems(
    text: str, who: Peer | None, service: dict[str, str], socket: set[str]
) -> Iterator[str]:
    """Yield why these settings cannot be."""
    for keyword in ("match", "include"):
        if keyword in keywords(text):
            yield (
                f"sshd_settings cannot have {keyword}, which changes what the lines below it mean."
                f" Write it to a file of its own in {sshd.DROP_IN.parent}."
            )
            return
    with tempfile.TemporaryDirectory() as folder:
        candidate, whole = Path(folder, "candidate"), Path(folder, "sshd_config")
        # A host key that is yet to be made would be an error.
        candidate.write_text(re.sub("(?im)^hostkey ", "# ", text))
        configuration, found = included(sshd.MAIN.read_text(), candidate)
        whole.write_text(configuration)
        if not found:
            yield (
                f"{sshd.MAIN} does not read {sshd.DROP_IN}."
                f" Make this its first line: Include {sshd.DROP_IN.parent}/*.conf"
            )
            return
        try:
            settings = effective(whole, who)
            yield from overruled(text, effective(candidate), effective(whole))
        except CommandFailed as error:
            said = str(error).partition(": ")[2].replace(str(candidate), str(sshd.DROP_IN))
            yield (
                f"sshd does not take these settings: {said.replace(str(whole), str(sshd.MAIN))}."
                " Correct sshd_settings, or the file that it names."
            )
            return
    if who and who.user:
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
