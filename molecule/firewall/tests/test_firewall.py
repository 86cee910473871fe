"""What the firewall lets in."""

import socket

import pytest

# Each is an address of the server and one of its neighbour's.
V4, V6 = ("10.9.0.2", "10.9.0.1"), ("fd09::2", "fd09::1")
NETWORK_V4, NETWORK_V6 = ("10.9.0.130", "10.9.0.1"), ("fd09:0:0:1::2", "fd09:0:0:1::1")
FAMILIES = pytest.mark.parametrize("way", [V4, V6], ids=["ipv4", "ipv6"])


@FAMILIES
@pytest.mark.parametrize(
    ("protocol", "port", "answer"),
    [
        ("tcp", 22, "open"),
        ("tcp", 8001, "open"),
        ("tcp", 8010, "open"),
        ("tcp", 8011, "open"),
        ("tcp", 8012, "dropped"),
        ("tcp", 8004, "dropped"),
        ("tcp", 9999, "dropped"),
        ("udp", 8001, "open"),
        ("udp", 8002, "dropped"),
        ("udp", 8010, "dropped"),
    ],
)
def test_a_port_is_open_when_it_is_allowed(neighbour, way, protocol, port, answer):
    assert neighbour(protocol, *way, port) == answer


@pytest.mark.parametrize(
    ("way", "port", "answer"),
    [
        (V4, 8002, "open"),
        (V6, 8002, "open"),
        (NETWORK_V4, 8002, "dropped"),
        (NETWORK_V6, 8002, "dropped"),
        (V4, 8003, "dropped"),
        (V6, 8003, "dropped"),
        (NETWORK_V4, 8003, "open"),
        (NETWORK_V6, 8003, "open"),
    ],
)
def test_a_port_may_be_for_some_sources_only(neighbour, way, port, answer):
    assert neighbour("tcp", *way, port) == answer


def test_from_the_network_of_docker_it_is_the_same(host):
    address = host.check_output("ip -4 -o address show eth0").split()[3].partition("/")[0]
    for port in (22, 8001):
        socket.create_connection((address, port), timeout=5).close()
    with pytest.raises(TimeoutError):
        socket.create_connection((address, 8004), timeout=2)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "10.9.0.1"])
def test_the_server_reaches_itself(host, address):
    assert host.check_output(f"python3 /opt/neighbour.py tcp {address} {address} 8004") == "open"


@FAMILIES
def test_the_server_reaches_others(host, way):
    there, here = way
    # Nothing listens there, and the neighbour says so.
    assert host.check_output(f"python3 /opt/neighbour.py tcp {here} {there} 8001") == "refused"


@FAMILIES
def test_ping_is_answered_up_to_a_limit(neighbour, way):
    assert neighbour("ping", *way, 5) == "5"
    assert 20 <= int(neighbour("ping", *way, 500)) < 100


def test_a_neighbour_is_discovered_anew(host, neighbour):
    host.check_output("ip -6 neighbour flush dev wire; ip -n neighbour -6 neighbour flush dev wire")
    assert neighbour("tcp", *V6, 8001) == "open"


@pytest.mark.parametrize(
    ("family", "there"), [("-4", "10.10.0.2"), ("-6", "fd10::2")], ids=["ipv4", "ipv6"]
)
def test_the_server_learns_that_a_link_on_the_way_is_small(host, eventually, family, there):
    host.check_output(f"ip {family} route flush cache")

    def learnt():
        # Nobody is there to answer the datagrams, which are too big for the router.
        host.run(
            f"python3 -c 'import socket; f = socket.AF_INET{'6' if family == '-6' else ''};"
            f" s = socket.socket(f, socket.SOCK_DGRAM); s.setsockopt(0, 10, 2);"
            f' s.sendto(bytes(1390), ("{there}", 9))\''
        )
        return "mtu 1280" in host.check_output(f"ip {family} route get {there}")

    eventually(learnt)


@FAMILIES
def test_one_source_opens_only_so_many_ssh_connections(neighbour, way):
    # The limit lets one more in every six seconds.
    assert 20 <= int(neighbour("burst", *way, 22, 40)) <= 22


def test_another_source_is_not_held_up(neighbour):
    assert int(neighbour("burst", *V4, 22, 40)) < 40
    assert neighbour("tcp", *NETWORK_V4, 22) == "open"


def test_addresses_of_one_ipv6_network_are_one_source(neighbour):
    assert int(neighbour("burst", *V6, 22, 40)) < 40
    assert neighbour("burst", "fd09::3", "fd09::1", 22, 1) == "0"
    assert neighbour("tcp", *NETWORK_V6, 22) == "open"


@FAMILIES
def test_an_open_ssh_connection_goes_on_when_no_new_one_opens(neighbour, way):
    assert neighbour("steady", *way) == "True"


def test_other_ports_are_not_limited(neighbour):
    assert neighbour("burst", *V4, 8001, 60) == "60"


METADATA = ["169.254.169.254", "100.100.100.200", "fd00:ec2::254", "fd20:ce::254"]


@pytest.fixture
def local(host):
    """Let a user of the server ask for something there: local("nobody", "tcp", address, port)."""

    def ask(user, protocol, there, port):
        become = f"setpriv --reuid {user} --clear-groups"
        here = "::" if ":" in there else "0.0.0.0"
        command = f"{become} python3 /opt/neighbour.py {protocol} {here} {there} {port}"
        return host.check_output(command)

    return ask


@pytest.mark.parametrize("address", METADATA)
def test_only_root_asks_the_cloud_for_its_metadata(local, address):
    assert local("root", "tcp", address, 8001) == "open"
    # At once: an SDK that waits for an answer would hold up the app.
    assert local("nobody", "tcp", address, 8001) == "refused"
    assert local("www-data", "tcp", address, 8001) == "refused"


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_clouds_that_have_their_dns_there_are_asked_for_names(local, protocol):
    assert local("nobody", protocol, "169.254.169.254", 53) == "open"


def test_a_load_balancer_that_asks_from_there_is_answered(neighbour):
    # The service that answers is not root's.
    assert neighbour("tcp", "168.63.129.16", "10.9.0.1", 8001) == "open"


def test_who_needs_it_opens_it(in_force, local):
    in_force(firewall_metadata=True)
    assert local("nobody", "tcp", "169.254.169.254", 8001) == "open"


def test_nothing_else_that_goes_out_is_filtered(host):
    table = host.check_output("nft --stateless list table inet carafe")
    assert table.count(" hook ") == 2
    output = table.partition("chain output {")[2].partition("}\n}")[0]
    rules = [x for x in output.splitlines() if "reject" in x or "drop" in x]
    assert len(rules) == 2
    assert all("daddr {" in x and "skuid != 0" in x for x in rules)
