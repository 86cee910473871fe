"""Note what listens to more than this machine, from a bare server until its firewall is loaded."""

import json
import subprocess
import time
from pathlib import Path

NFT = Path("/usr/sbin/nft")
FOUND = Path("/var/lib/watched-ports.json")
# As the kernel writes them: a TCP socket that listens, a UDP socket that takes from anybody.
STATES = {"tcp": "0A", "udp": "07"}
V6_LOOPBACK = "00000000000000000000000001000000"


def listeners():
    found = set()
    for protocol, wanted in STATES.items():
        for suffix in ("", "6"):
            for line in Path(f"/proc/net/{protocol}{suffix}").read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                address, port = local.split(":")
                # An IPv4 address, mapped or not, has its first number in the last two digits.
                is_v4 = len(address) == 8 or address.startswith("0000000000000000FFFF0000")
                is_local = address.endswith("7F") if is_v4 else address == V6_LOOPBACK
                if state == wanted and not is_local:
                    found.add(f"{protocol} {int(port, 16)}")
    return found


def is_firewall_loaded():
    command = [NFT, "list", "table", "inet", "carafe"]
    return NFT.exists() and subprocess.run(command, capture_output=True).returncode == 0


began, looks, seen = time.monotonic(), 0, {}
while True:
    now = listeners()
    # After the look: what was seen then was there without a firewall.
    if is_firewall_loaded():
        break
    looks += 1
    for name in now:
        seen.setdefault(name, round(time.monotonic() - began, 1))
    time.sleep(0.05)
seconds = round(time.monotonic() - began, 1)
FOUND.write_text(json.dumps({"seen": seen, "looks": looks, "seconds": seconds}))
