"""Three servers of each release, a client that writes to them, and what happens to a server."""

import contextlib
import fcntl
import ipaddress
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import object_store
import pytest
import testinfra
import yaml
from testinfra.host import Host

REPOSITORY = Path(__file__).parents[3]
CONTAINERS = {
    instance["instance"]: instance["container"]
    for instance in yaml.safe_load(Path(os.environ["MOLECULE_INSTANCE_CONFIG"]).read_text())
}
LOG = "/var/log/writer"
# Seconds in which nothing may be written where a server is lost; where it was tried, 19 to 28.
LONGEST = 60


def docker(*words: str) -> str:
    return subprocess.run(["docker", *words], check=True, capture_output=True, text=True).stdout


STATE = "/var/lib/carafe/backup"


@dataclass
class Server:
    """One of the three."""

    name: str
    container: str
    host: Host = field(repr=False)

    @cached_property
    def address(self) -> str:
        return self.host.check_output("hostname -I").split()[0]

    def job(self, name: str) -> None:
        """Run a job of the backups as its timer does."""
        # A few of these within seconds are too many for systemd.
        self.host.run("systemctl reset-failed carafe-backup-%s.service", name)
        self.host.check_output("systemctl start carafe-backup-%s.service", name)

    def noted(self, what: str) -> dict:
        """Return what is known here of a job of the backups; {} where it was never done."""
        done = self.host.run(f"cat {STATE}/{what}.json")
        return {} if done.rc else json.loads(done.stdout)

    def is_masked(self) -> bool:
        shown = self.host.check_output("systemctl show -p LoadState 'postgresql@*-main.service'")
        return shown.strip() in ("", "LoadState=masked")


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Have no server of the other release down: Docker gives the lowest address that is free."""
    with Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "power.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def without_power(*servers: Server) -> Iterator[None]:
    """Have servers lose their power, and get it back at the end."""
    places = sorted(servers, key=lambda x: ipaddress.ip_address(x.address))
    with alone():
        docker("kill", *(x.container for x in servers))
        try:
            yield
        finally:
            for server in places:
                docker("start", server.container)
    for server in servers:
        assert server.host.check_output("hostname -I").split()[0] == server.address


@dataclass
class Cluster:
    """The three servers of a release."""

    servers: list[Server]
    client: Host = field(repr=False)

    def state(self) -> dict[str, dict]:
        """Return what Patroni says of each member, asked on the first server that answers."""
        command = "patronictl -c /etc/patroni/config.yml list -f json"
        for server in self.servers:
            done = server.host.run(command)
            if done.rc == 0 and done.stdout.strip().startswith("["):
                return {x["Member"]: x for x in json.loads(done.stdout)}
        return {}

    @property
    def leader(self) -> Server:
        names = [k for k, x in self.state().items() if x["Role"] == "Leader"]
        assert names, "nobody leads at this moment"
        return next(x for x in self.servers if x.name in names)

    @property
    def followers(self) -> list[Server]:
        leader = self.leader
        return [x for x in self.servers if x.name != leader.name]

    def is_whole(self) -> bool:
        """Tell whether one leads, and both others have what it has, one of them in step."""
        found = self.state().values()
        roles = sorted(x["Role"] for x in found)
        states = {x["State"] for x in found}
        return roles == ["Leader", "Replica", "Sync Standby"] and states <= {"running", "streaming"}

    def sql(self, statement: str, server: Server | None = None) -> str:
        """Ask a server, as its superuser; the one that leads where none is named."""
        command = "runuser -u postgres -- psql -XAtq -d shop -c %s"
        return (server or self.leader).host.check_output(command, statement)


@pytest.fixture(scope="module", params=sorted({name.split("-")[1] for name in CONTAINERS}))
def cluster(request: pytest.FixtureRequest) -> Cluster:
    hosts = {
        name: testinfra.get_host(f"docker://{container}")
        for name, container in CONTAINERS.items()
        if name.startswith(f"cluster-{request.param}-")
    }
    client = hosts.pop(f"cluster-{request.param}-client")
    return Cluster([Server(x, CONTAINERS[x], hosts[x]) for x in sorted(hosts)], client)


@pytest.fixture(scope="session")
def store(
    tmp_path_factory: pytest.TempPathFactory, eventually: Callable[..., None]
) -> Iterator[object_store.Store]:
    """Have a store that speaks S3 for as long as there are tests, since all is archived there."""
    container, folder = next(iter(CONTAINERS.values())), tmp_path_factory.mktemp("store")
    with object_store.serving(container, folder, eventually) as there:
        yield there


@pytest.fixture(scope="module")
def play(cluster: Cluster) -> Callable[..., str]:
    """Run a playbook of the scenario's on the three servers."""

    def run(book: str, **variables: object) -> str:
        done = subprocess.run(
            [
                *("ansible-playbook", "--limit", ",".join(x.name for x in cluster.servers)),
                *("--extra-vars", json.dumps(variables)),
                *("--inventory", Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent),
                Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"]) / f"{book}.yml",
            ],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@dataclass
class Log:
    """What the writer has noted since a moment."""

    acknowledged: list[tuple[float, str]]
    errors: list[str]
    two: list[str]

    @property
    def gap(self) -> float:
        """Seconds of the longest time in which nothing was acknowledged."""
        times = [at for at, _ in self.acknowledged]
        return max((b - a for a, b in pairwise(times)), default=float("inf"))


def logged(client: Host, since: float = 0) -> Log:
    found = Log([], [], [])
    for line in client.check_output("cat %s", LOG).splitlines():
        at, kind, text = line.split(" ", 2)
        if float(at) < since:
            continue
        if kind == "acknowledged":
            found.acknowledged.append((float(at), text))
        else:
            (found.errors if kind == "error" else found.two).append(text)
    return found


def lost(cluster: Cluster) -> list[str]:
    """Return what was acknowledged, and is not there."""
    # In this order: it is written to all the while.
    acknowledged = [name for _, name in logged(cluster.client).acknowledged]
    stored = set(cluster.sql("SELECT name FROM shop.rows").split())
    return [name for name in acknowledged if name not in stored]


@pytest.fixture
def event(cluster: Cluster, eventually: Callable[..., None]) -> Iterator[None]:
    """What happens to a whole cluster that is written to: it heals, and nothing is lost of it."""
    eventually(cluster.is_whole)
    since = time.time()
    before = len(logged(cluster.client).acknowledged)
    eventually(lambda: len(logged(cluster.client).acknowledged) > before)
    yield
    eventually(cluster.is_whole, 180)
    last = logged(cluster.client).acknowledged[-1][0]
    eventually(lambda: logged(cluster.client).acknowledged[-1][0] > last + 1)
    seen = logged(cluster.client, since)
    print(f"gap {seen.gap:.1f} s, {len(seen.errors)} errors, {len(seen.acknowledged)} rows")
    assert seen.two == [], "two servers took writes at one time"
    assert lost(cluster) == []
    assert seen.gap < LONGEST
