"""Bring the nftables table inet carafe into force such that a mistake takes itself back.

The program /usr/local/lib/carafe/firewall is this file. Its words are ``revert``, which takes
back what waits for its confirmation, and ``record``, which notes what the service has loaded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from .commands import CommandFailed, ask, run, show
from .files import read, write
from .takeback import NotConfirmed, TakeBack

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
CHANGE = TakeBack("firewall", RUN / "change.json", CLAIMS, "firewall_revert_seconds")
UNIT_TEXT = f"""\
# Managed by Ansible, role firewall.
# Debian's nftables.service throws all tables away, those of Docker and fail2ban too. This one has a
# table of its own.
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
"""


def listing(*options: str) -> str:
    """Return the table as the kernel has it, without counters and what ssh's limit remembers."""
    return ask(NFT, "--stateless", *options, "list", *TABLE).stdout


def record(text: str) -> None:
    RUN.mkdir(mode=0o755, exist_ok=True)
    write(LOADED, text)
    write(LISTING, listing("--terse"))


def load(text: str) -> None:
    run(NFT, "-f", "-", text=text)
    record(text)


def is_changed() -> bool:
    """Tell whether somebody else has changed the table since it was loaded."""
    return listing("--terse") != read(LISTING)


def in_force() -> str:
    """Return rules that bring the table back as it is."""
    # It differs too where this is the first time.
    return NOTHING + listing() if is_changed() else LOADED.read_text()


def restore(former: str) -> None:
    """Load the rules from before. At worst none: who is locked out can mend nothing."""
    for text in (former, read(CONFIRMED), NOTHING):
        with contextlib.suppress(CommandFailed):
            if text is not None:
                load(text)
                return


def service_is_due() -> bool:
    """Tell whether the service would not bring the rules back at the next boot."""
    wanted = {"ActiveState": "active", "UnitFileState": "enabled", "NeedDaemonReload": "no"}
    return show(",".join(wanted), SERVICE) != [wanted] or read(UNIT) != UNIT_TEXT


def due(text: str) -> Iterator[str]:
    """Yield why these rules are not what the server has, now and at the next boot."""
    if not NFT.exists():
        yield "nft is not installed"
        return
    if read(CONFIRMED) != text:
        yield "the rules are others than the confirmed ones"
    if read(LOADED) != text:
        yield "the rules are others than the loaded ones"
    if is_changed():
        yield "somebody else has changed the table"
    if CHANGE.waiting():
        yield "rules wait for their confirmation"


def apply(text: str, seconds: int, owner: str, claim: object) -> None:
    """Load rules, and take them back after some seconds unless their owner confirms them."""
    run(NFT, "-c", "-f", "-", text=text)
    with CHANGE.armed(restore, owner, seconds, in_force(), claim=claim):
        load(text)


def confirm(owner: str) -> None:
    """Keep what was applied, now and at boot, and what its owner claims."""
    record = CHANGE.unconfirmed(owner)
    if is_changed():
        raise NotConfirmed(
            "Somebody else has changed the table inet carafe meanwhile, so the rules are taken"
            " back. Run the playbook again."
        )
    write(CONFIRMED, LOADED.read_text())
    CHANGE.settle(record)


def enable() -> None:
    """Have the confirmed rules loaded at boot."""
    if read(UNIT) != UNIT_TEXT:
        write(UNIT, UNIT_TEXT)
    run("systemctl", "daemon-reload")
    run("systemctl", "enable", "--quiet", "--now", SERVICE)


def boot() -> None:
    """Note what the service has loaded."""
    CHANGE.record.unlink(missing_ok=True)
    record(CONFIRMED.read_text())


def main() -> str | None:
    return CHANGE.main(revert=lambda: CHANGE.revert(restore), record=boot)
