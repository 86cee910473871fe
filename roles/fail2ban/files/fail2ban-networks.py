"""fail2ban's server, to which all addresses of an IPv6 network of 64 bits are one client.

Whoever has one of them mostly has all, and comes from another each time. fail2ban can ban networks,
but takes each address in a log for a client of its own. Networks in which the server itself is, or
somebody who is to be ignored, are left as they are.
"""

import sys
from pathlib import Path

from fail2ban.client.fail2banserver import exec_command_line
from fail2ban.server.actions import Actions
from fail2ban.server.filter import Filter
from fail2ban.server.ipdns import DNSUtils, IPAddr

BITS = 64
ADDRESSES = Path("/proc/net/if_inet6")


def network_of(ip):
    """Return the network of a single IPv6 address, and None for all else."""
    if isinstance(ip, str):
        ip = IPAddr(ip)
    is_one = isinstance(ip, IPAddr) and ip.isIPv6 and ip.isSingle
    return IPAddr(ip.ntoa, BITS) if is_one else None


def friends(jail):
    """Yield who must not be banned with others."""
    # Debian 12's fail2ban knows those of the host's name alone.
    for line in ADDRESSES.read_text().splitlines() if ADDRESSES.exists() else ():
        digits = line.split()[0]
        yield IPAddr(":".join(digits[i : i + 4] for i in range(0, 32, 4)))
    for ip in jail.getIgnoreIP():
        yield from [ip] if ip.isValid else DNSUtils.dnsToIp(ip.raw)


def count_networks():
    """Have a failure counted for the network, as soon as it is known to be none of a friend's."""
    is_ignored = Filter._inIgnoreIPList

    def is_ignored_or_widened(self, ip, ticket, *args, **options):
        ignored = is_ignored(self, ip, ticket, *args, **options)
        network = None if ignored or ticket is None else network_of(ticket.getID())
        if network and not any(map(network.contains, friends(self))):
            ticket.setID(network)
        return ignored

    Filter._inIgnoreIPList = is_ignored_or_widened


def unban_networks():
    """Have the ban of an address end with that of its network."""
    unban = Actions.removeBannedIP

    def unban_both(self, ip=None, db=True, ifexists=False):
        network = network_of(ip)
        count = unban(self, network, db, True) if network else 0
        return count + unban(self, ip, db, ifexists or count > 0)

    Actions.removeBannedIP = unban_both


def main():
    try:
        unban_networks()
        count_networks()
    except AttributeError as error:
        # Another version of it: bans of single addresses are better than none.
        print(f"IPv6 addresses are banned one by one: {error}", file=sys.stderr)
    exec_command_line(sys.argv)


if __name__ == "__main__":
    main()
