"""Bring the nftables table inet carafe into force such that a mistake takes itself back.

The program /usr/local/lib/carafe/firewall is this file. Its words are ``revert``, which takes
back what waits for its confirmation, and ``record``, which notes what the service has loaded.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from . import claims
from .files import read, write
from .takeback import NotConfirmed, TakeBack, reason, run, systemctl

NFT = Path("/usr/sbin/nft")
TABLE = ("table", "inet", "carafe")
NOTHING = "table inet carafe\ndelete table inet carafe\n"
SERVICE = "carafe-firewall.service"
UNIT = Path("/etc/systemd/system", SERVICE)
CLAIMS = Path("/etc/carafe/firewall.d")
CONFIRMED = Path("/etc/carafe-firewall.nft")
RUN = Path("/run/carafe-firewall")
LOADED = RUN / "loaded.nft"  # the rules that were loaded last
LISTING = RUN / "loaded.list"  # what nft made of them
CHANGE = TakeBack("firewall", RUN / "change.json", "firewall_revert_seconds")
UNIT_TEXT = f"""\
# Managed by Ansible, role firewall.
# Debian's nftables.service throws all tables away, those of Docker and fail2ban too. This one has a table of its own.
[Unit]
Description=Firewall of this server, the nftables table inet carafe
Documentation=man:nft(8)
DefaultDependencies=no
Wants=network-pre.target
Before=network-pre.target
# Where nftables.service is in use, the table is back after it has thrown it away.
After=nftables.service
PartOf=nftables.service
ReloadPropagatedFrom=nftables.service
# Rules that were never confirmed are not there.
ConditionPathExists={CONFIRMED}

[Service]
Type=oneshot
RemainAfterExit=yes
StandardInput=null
ProtectSystem=full
ProtectHome=true
ExecStart=/usr/sbin/nft -f {CONFIRMED}
# Not worth a server without firewall: the next run of the playbook makes up for it.
ExecStartPost=-/usr/bin/python3 /usr/local/lib/carafe/firewall record
ExecReload=/usr/sbin/nft -f {CONFIRMED}
ExecReload=-/usr/bin/python3 /usr/local/lib/carafe/firewall record
# There is no Conflicts=shutdown.target: the rules hold until the power is off.
ExecStop=-/usr/sbin/nft delete table inet carafe

[Install]
WantedBy=sysinit.target
"""  # noqa: E501


def nft(*options: str, text: str | None = None, check: bool = True) -> str:
    return run(str(NFT), *options, text=text, check=check)


def listing() -> str:
    """Return the table as the kernel has it, without counters and what ssh's limit remembers."""
    return nft("--stateless", "--terse", "list", *TABLE, check=False)


def record(text: str) -> None:
    RUN.mkdir(mode=0o755, exist_ok=True)
    write(LOADED, text)
    write(LISTING, listing())


def load(text: str) -> None:
    nft("-f", "-", text=text)
    record(text)


def in_force() -> str:
    """Return rules that bring the table back as it is."""
    if listing() == read(LISTING):
        return LOADED.read_text()
    # Somebody has changed it by hand, or this is the first time.
    return NOTHING + nft("--stateless", "list", *TABLE, check=False)


def restore(former: str) -> None:
    """Load the rules from before. At worst none: who is locked out can mend nothing."""
    for text in (former, read(CONFIRMED), NOTHING):
        with contextlib.suppress(subprocess.CalledProcessError):
            if text is not None:
                load(text)
                return


def service_is_due() -> bool:
    """Tell whether the service would not bring the rules back at the next boot."""
    wanted = {"ActiveState=active", "UnitFileState=enabled", "NeedDaemonReload=no"}
    names = ",".join(x.partition("=")[0] for x in wanted)
    found = set(systemctl("show", f"--property={names}", SERVICE).splitlines())
    return found != wanted or read(UNIT) != UNIT_TEXT


def due(text: str) -> Iterator[str]:
    """Yield why these rules are not what the server has, now and at the next boot."""
    if not NFT.exists():
        yield "nft is not installed"
        return
    if read(CONFIRMED) != text:
        yield "the rules are others than the confirmed ones"
    if read(LOADED) != text:
        yield "the rules are others than the loaded ones"
    if listing() != read(LISTING):
        yield "somebody else has changed the table"
    if CHANGE.waiting():
        yield "rules wait for their confirmation"


def apply(text: str, seconds: int, owner: str, claim: object) -> None:
    """Load rules, and take them back after some seconds unless their owner confirms them."""
    nft("-c", "-f", "-", text=text)
    try:
        # Before the rules: there must be no moment in which nothing would take them back.
        CHANGE.arm(owner, seconds, in_force(), claim=claim)
        load(text)
    except subprocess.CalledProcessError:
        CHANGE.revert(restore)
        raise


def confirm(owner: str) -> None:
    """Keep what was applied, now and at boot, and what its owner claims."""
    record = CHANGE.unconfirmed(owner)
    if listing() != read(LISTING):
        raise NotConfirmed(
            "Somebody else has changed the table inet carafe meanwhile, so the rules are taken"
            " back. Run the playbook again."
        )
    claims.claim(CLAIMS, owner, record["claim"])
    write(CONFIRMED, LOADED.read_text())
    CHANGE.settle()


def enable() -> None:
    """Have the confirmed rules loaded at boot."""
    if read(UNIT) != UNIT_TEXT:
        write(UNIT, UNIT_TEXT)
    systemctl("daemon-reload")
    run("systemctl", "enable", "--quiet", "--now", SERVICE)


def main() -> str | None:
    with claims.locked(CLAIMS):
        try:
            match sys.argv[1:]:
                case ["revert"]:
                    CHANGE.revert(restore)
                case ["record"]:
                    CHANGE.record.unlink(missing_ok=True)
                    record(CONFIRMED.read_text())
                case _:
                    return __doc__
        except subprocess.CalledProcessError as error:
            return reason(error)
    return None
