"""Two servers that stand in for each other behind one address."""

import itertools
import json
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pytest
import testinfra
import yaml
from testinfra.host import Host

NAMES = ("pair-13-one", "pair-13-two")
CONTAINERS = {
    instance["instance"]: instance["container"]
    for instance in yaml.safe_load(Path(os.environ["MOLECULE_INSTANCE_CONFIG"]).read_text())
}
# Seconds without an answer where a server is lost; where it was tried, 3 to 4.
LONGEST = 20
LAST_STATE = "journalctl -u keepalived -o cat | grep -o 'Entering [A-Z]* STATE' | tail -n 1"
SERVED = (
    "openssl s_client -connect {}:443 -servername pair.test </dev/null 2>/dev/null"
    " | openssl x509 -noout -fingerprint -sha256 -issuer"
)


@pytest.fixture(scope="module", params=["13"])
def release(request: pytest.FixtureRequest) -> str:
    """Name the stack, so that nothing is asked of it while a test has one of its servers down."""
    return request.param


@pytest.fixture(scope="module")
def servers(release: str) -> dict[str, Host]:
    return {name: testinfra.get_host(f"docker://{CONTAINERS[name]}") for name in NAMES}


@pytest.fixture(scope="module")
def shared(servers: dict[str, Host]) -> str:
    """The address that one of them has."""
    own = servers[NAMES[0]].check_output("hostname -I").split()
    return own[0].rpartition(".")[0] + ".250"


def holders(servers: dict[str, Host], shared: str) -> list[str]:
    """Return who has the address, of those that run."""
    return [
        name
        for name, host in servers.items()
        if shared in host.run("ip -brief -4 address").stdout.replace("/", " ").split()
    ]


@dataclass
class Visitor:
    """Asks by the shared address over and over, on a new connection each time."""

    address: str
    answers: list[tuple[float, str]] = field(default_factory=list)

    @cached_property
    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context

    def ask(self) -> str:
        """Return which server has answered, '' where none has."""
        request = b"GET / HTTP/1.0\r\nHost: pair.test\r\n\r\n"
        try:
            with (
                socket.create_connection((self.address, 443), timeout=2) as plain,
                self.context.wrap_socket(plain, server_hostname="pair.test") as secure,
            ):
                secure.sendall(request)
                answer = b"".join(iter(lambda: secure.recv(4096), b""))
        except OSError:
            return ""
        head, _, body = answer.partition(b"\r\n\r\n")
        return json.loads(body)["server"] if b" 200 " in head else ""

    def __enter__(self) -> "Visitor":
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.work)
        self.thread.start()
        return self

    def work(self) -> None:
        while not self.done.wait(0.02):
            self.answers.append((time.monotonic(), self.ask()))

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def gap(self) -> float:
        """Return the longest time without a good answer, in seconds."""
        good = [at for at, server in self.answers if server]
        return max((after - before for before, after in itertools.pairwise(good)), default=0)


@pytest.fixture
def visitor(shared: str) -> Iterator[Visitor]:
    with Visitor(shared) as visitor:
        yield visitor


@pytest.fixture
def killed(
    servers: dict[str, Host], shared: str, eventually: Callable[..., None]
) -> Iterator[Callable[[str], None]]:
    """Take the power from a server; it comes back at the end."""
    gone: list[str] = []

    def kill(name: str) -> None:
        gone.append(name)
        subprocess.run(["docker", "kill", CONTAINERS[name]], check=True, capture_output=True)

    yield kill
    for name in gone:
        subprocess.run(["docker", "start", CONTAINERS[name]], check=True, capture_output=True)
        host = servers[name]
        eventually(lambda host=host: host.run("systemctl is-active nginx keepalived").rc == 0)
        host.check_output("echo %s pair.test >>/etc/hosts", shared)


def test_one_of_them_has_the_address(servers: dict[str, Host], shared: str) -> None:
    assert len(holders(servers, shared)) == 1


@pytest.mark.parametrize("name", NAMES)
def test_each_renews_a_certificate_of_its_own(
    servers: dict[str, Host], name: str, eventually: Callable[..., None]
) -> None:
    """The directory asks at the shared address, and who has it asks the other."""
    host = servers[name]
    pem = "/var/lib/certificates/pair.pem"
    # One of 61 days, of which one is left.
    host.check_output(
        "cd /root && faketime -f -60d openssl req -x509 -newkey rsa:2048 -nodes -keyout old.key"
        f" -out old.crt -subj /CN=pair.test -days 61 -addext subjectAltName=DNS:pair.test"
        f" && cat old.crt old.key >{pem} && systemctl reload nginx"
    )
    done = host.run("systemctl start certificates.service")
    assert done.rc == 0, host.check_output("journalctl -u certificates -n 20 -o cat")
    eventually(lambda: "Pebble Intermediate CA" in host.check_output(SERVED.format("127.0.0.1")))
    other = next(x for x in NAMES if x != name)
    mine, others = (servers[x].check_output(SERVED.format("127.0.0.1")) for x in (name, other))
    assert mine != others


def test_where_the_web_server_is_gone_the_other_has_the_address(
    servers: dict[str, Host], shared: str, visitor: Visitor, eventually: Callable[..., None]
) -> None:
    (before,) = holders(servers, shared)
    (after,) = {*NAMES} - {before}
    servers[before].check_output("systemctl stop nginx")
    try:
        eventually(lambda: holders(servers, shared) == [after])
        eventually(lambda: visitor.ask())
    finally:
        servers[before].check_output("systemctl start nginx")
    # It does not come back by itself, which would break connections once more.
    eventually(lambda: "BACKUP" in servers[before].check_output(LAST_STATE))
    assert holders(servers, shared) == [after]
    assert visitor.gap() < LONGEST


def test_where_the_power_is_gone_the_other_has_the_address(
    servers: dict[str, Host],
    shared: str,
    visitor: Visitor,
    killed: Callable[[str], None],
    eventually: Callable[..., None],
) -> None:
    (before,) = holders(servers, shared)
    (after,) = {*NAMES} - {before}
    eventually(lambda: len(visitor.answers) > 20)
    killed(before)
    eventually(lambda: holders(servers, shared) == [after])
    answered = len(visitor.answers)
    eventually(lambda: any(server for _, server in visitor.answers[answered:]))
    assert visitor.gap() < LONGEST


def test_its_exposure_is_low(host: Host) -> None:
    host.check_output("systemd-analyze security --no-pager --threshold=50 keepalived.service")
