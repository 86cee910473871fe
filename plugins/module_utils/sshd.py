"""Change sshd's settings such that a mistake takes itself back.

The program /usr/local/lib/carafe/sshd is this file. Its words are ``revert``, which takes back what
waits for its confirmation, and ``boot``, which does the same before sshd starts.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from .commands import ask, run, show
from .files import read, write
from .ssh_peer import session
from .takeback import NotConfirmed, TakeBack

SSHD = Path("/usr/sbin/sshd")
MAIN = Path("/etc/ssh/sshd_config")
DROP_IN = Path("/etc/ssh/sshd_config.d/00-carafe.conf")
ED25519_KEY = Path("/etc/ssh/ssh_host_ed25519_key")
RSA_KEY = Path("/etc/ssh/ssh_host_rsa_carafe_key")
DEBIANS_RSA_KEY = Path("/etc/ssh/ssh_host_rsa_key")
DEBIANS_MODULI = Path("/etc/ssh/moduli")
MODULI = Path("/etc/ssh/moduli_carafe")
MODULI_BITS = 3071  # moduli(5) has one less than the size of the group
CLAIMS = Path("/etc/carafe/sshd.d")
CHANGE = TakeBack("sshd", Path("/var/lib/carafe-sshd/pending.json"), CLAIMS, "sshd_confirm_seconds")
BOOT = "carafe-sshd-boot.service"
BOOT_UNIT = Path("/etc/systemd/system", BOOT)
BOOT_TEXT = f"""\
# Managed by Ansible, role sshd.
# A timer that is to put settings back dies with a reboot. Then this does it, before sshd starts.
[Unit]
Description=Put back the settings of sshd that nobody has confirmed
ConditionPathExists={CHANGE.record}
Before=ssh.service ssh.socket

[Service]
Type=oneshot
ExecStart=/usr/bin/python3 /usr/local/lib/carafe/sshd boot

[Install]
WantedBy=multi-user.target
"""


def units() -> tuple[dict[str, str], set[str]]:
    """Return what systemd knows of sshd, and the ports of a socket that starts it, if any."""
    names = "ActiveState,UnitFileState,StateChangeTimestamp,MainPID"
    (service,) = show(names, "ssh.service", options=["--timestamp=us+utc"])
    if ask("systemctl", "is-active", "ssh.socket").returncode:
        return service, set()
    listen = run("systemctl", "show", "--property=Listen", "ssh.socket")
    return service, set(re.findall(r":(\d+) \(Stream\)", listen))


def load() -> None:
    """Let sshd read its settings.

    A reload would only tell it to, so that the old ones count for a moment yet, and would end one
    that ssh.socket has started. Sessions live on through a restart too: KillMode is process.
    """
    service, socket = units()
    if not socket and service["UnitFileState"] == "disabled":
        # systemd 257 may lose sight of a service that runs when its alias comes back.
        ask("systemctl", "stop", "ssh.service")
        run("systemctl", "enable", "--quiet", "ssh.service")
    # With a socket, the next connection starts one that does not run.
    if not socket or service["MainPID"] != "0":
        # Else systemd could find that it was started too often.
        ask("systemctl", "reset-failed", "ssh.service")
        run("systemctl", "restart", "ssh.service")


def restore_drop_in(former: str | None) -> None:
    if former is None:
        DROP_IN.unlink(missing_ok=True)
    else:
        write(DROP_IN, former, mode=0o600)


def restore(former: str | None) -> None:
    restore_drop_in(former)
    load()


def bits(path: Path) -> int:
    """Return the size of a key, 0 if there is none."""
    found = ask("ssh-keygen", "-l", "-f", path).stdout.split()
    return int(found[0]) if found else 0


def make_key(path: Path, kind: str, size: int) -> None:
    path.unlink(missing_ok=True)
    comment = f"root@{os.uname().nodename}"
    options = ("-t", kind, "-b", str(size), "-N", "", "-C", comment, "-f", str(path))
    run("ssh-keygen", "-q", *options)


def prepare(rsa_bits: int) -> None:
    """Make host keys and moduli. Those that are there stay: the server is known by its keys."""
    if bits(ED25519_KEY) == 0:
        make_key(ED25519_KEY, "ed25519", 256)
    if bits(RSA_KEY) < rsa_bits:
        if bits(DEBIANS_RSA_KEY) < rsa_bits:
            make_key(RSA_KEY, "rsa", rsa_bits)
        else:
            for suffix in ("", ".pub"):
                link = RSA_KEY.with_name(RSA_KEY.name + suffix)
                link.unlink(missing_ok=True)
                link.symlink_to(DEBIANS_RSA_KEY.name + suffix)
    if not MODULI.exists():
        lines = DEBIANS_MODULI.read_text().splitlines(keepends=True)
        groups = (x for x in lines if x[:1].isdigit() and int(x.split()[4]) >= MODULI_BITS)
        write(MODULI, "".join(groups), mode=0o600)


def apply(text: str, rsa_bits: int, seconds: int, owner: str, claim: object) -> None:
    """Load these settings, and the old ones again after some seconds unless they are confirmed."""
    prepare(rsa_bits)
    if read(BOOT_UNIT) != BOOT_TEXT:
        write(BOOT_UNIT, BOOT_TEXT)
    run("systemctl", "enable", "--quiet", BOOT)
    with CHANGE.armed(restore, owner, seconds, read(DROP_IN), claim=claim, session=session()):
        write(DROP_IN, text, mode=0o600)
        run(SSHD, "-t")
        load()


def confirm(owner: str, same: bool) -> None:
    """Keep what was applied. Who comes by a connection that is older proves nothing."""
    record, now = CHANGE.unconfirmed(owner), session()
    if now is not None and now == record["session"] and not same:
        raise NotConfirmed(
            "The confirmation came by the old connection. Is there a ControlPath in ssh_args? Use"
            " control_path of ansible.cfg instead."
        )
    CHANGE.settle(record)


def main() -> str | None:
    return CHANGE.main(
        revert=lambda: CHANGE.revert(restore), boot=lambda: CHANGE.revert(restore_drop_in)
    )
