"""Clients that are no friends of the server, each with addresses of its own."""

import re

import pytest

PEER = {"v4": "10.99.0.1", "v6": "fd99::1"}
ENEMY = {"v4": "10.99.0.2", "v6": "fd99::2"}
# Another client of the same network.
NEIGHBOUR = {"v4": "10.99.0.3", "v6": "fd99::3"}
# Addresses of one network of 64 bits, in which the server is not, and one of the next.
SWARM = ("fd98:0:0:1::2", "fd98:0:0:1::3", "fd98::1:a:b:c:d", "fd98::1:a:0:0:d")
STRANGER = "fd98:0:0:2::2"
# A network namespace with one end of a cable; Docker's own network stays out of it.
NETWORK = f"""
ip -n enemy address show dev far up 2>/dev/null | grep -q {STRANGER} && exit
ip netns delete enemy 2>/dev/null || true
ip netns add enemy
ip link add cable type veth peer name far netns enemy
# Docker forbids IPv6 where its own network has none.
sysctl -qw net.ipv6.conf.cable.disable_ipv6=0
ip netns exec enemy sysctl -qw net.ipv6.conf.far.disable_ipv6=0
ip address add 10.99.0.1/24 dev cable
ip address add fd99::1/64 dev cable nodad
ip link set cable up
for end in 2 3; do
  ip -n enemy address add 10.99.0.$end/24 dev far
  ip -n enemy address add fd99::$end/64 dev far nodad
done
for address in {" ".join(SWARM)} {STRANGER}; do
  ip -n enemy address add $address/48 dev far nodad
done
ip -n enemy link set far up
ip route add fd98::/48 dev cable
"""
CONNECT = """
import socket, sys
socket.create_connection((sys.argv[2], int(sys.argv[3])), 5, (sys.argv[1], 0))
"""
WRITE = """
import sys
open("/var/log/nginx/access.log", "a").write((sys.argv[1] + "\\n") * int(sys.argv[2]))
"""


@pytest.fixture
def enemy():
    return ENEMY


@pytest.fixture
def neighbour():
    return NEIGHBOUR


@pytest.fixture
def swarm():
    return SWARM


@pytest.fixture
def stranger():
    return STRANGER


@pytest.fixture(autouse=True)
def network(host):
    """Lay the cable; a reboot takes it away."""
    host.check_output("sh -ec %s", NETWORK)


@pytest.fixture(autouse=True)
def no_bans(host):
    """Let each test begin with nobody banned."""
    host.run("fail2ban-client unban --all")


@pytest.fixture
def reaches(host):
    """Tell whether a client gets a connection, by its address."""

    def connects(client, port):
        peer = PEER["v6" if ":" in client else "v4"]
        command = "ip netns exec enemy python3 -c %s %s %s %s"
        return host.run(command, CONNECT, client, peer, str(port)).rc == 0

    return connects


@pytest.fixture
def banned(host):
    """Tell the addresses that the kernel refuses, by jail."""

    def addresses():
        table = host.run("nft list table inet f2b-table").stdout
        sets = re.findall(
            r"set (addr6?)-set-(\S+) \{.*?(?:elements = \{(.*?)\})?\s*\}", table, re.S
        )
        found = {}
        for _, jail, elements in sets:
            found.setdefault(jail, set()).update(re.findall(r"[0-9a-f.:/]+", elements or ""))
        return found

    return addresses


@pytest.fixture
def guess(host):
    """Try to log in as somebody who does not exist."""

    def attempt(client):
        peer = PEER["v6" if ":" in client else "v4"]
        options = "-o BatchMode=yes -o StrictHostKeyChecking=no -o ConnectTimeout=8"
        # The ban cuts a connection that is open, and ssh would wait for minutes.
        ssh = f"timeout 8 ssh {options} -b {client} nosuchuser@{peer} true"
        host.run(f"ip netns exec enemy {ssh}")

    return attempt


@pytest.fixture
def flood(host):
    """Write answers of nginx into its log, as its format `timed` has them."""

    def write(client, count=100, status=429, user="-", request="GET / HTTP/1.1"):
        now = host.check_output("date '+%d/%b/%Y:%H:%M:%S %z'")
        line = f'{client} - {user} [{now}] "{request}" {status} 162 "-" "curl/8.5.0" 0.000 - - -'
        host.check_output("python3 -c %s %s %s", WRITE, line, str(count))

    return write
