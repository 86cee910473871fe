"""Servers that lead in turn, a client that writes to them, and the playbooks that work on them."""

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import object_store
import pytest
import testinfra
import yaml
from testinfra.host import Host

REPOSITORY = Path(__file__).parents[3]
INSTANCES = {
    instance["instance"]: instance
    for instance in yaml.safe_load(Path(os.environ["MOLECULE_INSTANCE_CONFIG"]).read_text())
}
SCENARIO = Path(__file__).parents[1]
VARIABLES = yaml.safe_load((SCENARIO / "converge.yml").read_text())[1]["vars"]
ADDRESSES = yaml.safe_load((SCENARIO / "molecule.yml").read_text())["provisioner"]["inventory"][
    "host_vars"
]
LOG, STATE = "/var/log/writer", "/var/lib/carafe/backup"
# Seconds in which nothing may be written where a server is lost; where it was tried, 19 to 28.
LONGEST = 60


def docker(*words: str) -> str:
    return subprocess.run(["docker", *words], check=True, capture_output=True, text=True).stdout


@dataclass
class Server:
    """One of those that have the database."""

    name: str

    @property
    def container(self) -> str:
        return INSTANCES[self.name]["container"]

    @property
    def host(self) -> Host:
        return testinfra.get_host(f"docker://{self.container}")

    @property
    def address(self) -> str:
        return ADDRESSES[self.name]["private_address"]

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
def without_power(*servers: Server) -> Iterator[None]:
    """Have servers lose their power, and get it back at the end."""
    docker("kill", *(x.container for x in servers))
    try:
        yield
    finally:
        docker("start", *(x.container for x in servers))


@dataclass
class Cluster:
    """The servers that have the database at this moment, and the client."""

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
        found = {(x["Role"], x["State"]) for x in self.state().values()}
        return found == {
            ("Leader", "running"),
            ("Sync Standby", "streaming"),
            ("Replica", "streaming"),
        }

    def sql(self, statement: str, server: Server | None = None) -> str:
        """Ask a server, as its superuser; the one that leads where none is named."""
        command = "runuser -u postgres -- psql -XAtq -d shop -c %s"
        return (server or self.leader).host.check_output(command, statement)


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """Those of this moment: one leaves in the midst of the tests, and another one has its place."""
    client = testinfra.get_host(f"docker://{INSTANCES['cluster-13-client']['container']}")
    return Cluster([Server(f"cluster-13-{x}") for x in ("one", "two", "three")], client)


@dataclass
class Done:
    """What a playbook has said."""

    status: int
    output: str

    @property
    def changed(self) -> dict[str, int]:
        """Number of changes on each server."""
        found = re.findall(r"^(\S+) +: .*changed=(\d+)", self.output, re.MULTILINE)
        return {name: int(count) for name, count in found}


@pytest.fixture(scope="session")
def store(
    tmp_path_factory: pytest.TempPathFactory, eventually: Callable[..., None]
) -> Iterator[object_store.Store]:
    """Have a store that speaks S3 for as long as there are tests, since all is archived there."""
    container = next(iter(INSTANCES.values()))["container"]
    with object_store.serving(container, tmp_path_factory.mktemp("store"), eventually) as there:
        yield there


@pytest.fixture(scope="session")
def backups() -> dict[str, object]:
    """Variables of the backups, for all playbooks from the moment on at which there are some."""
    return {}


@pytest.fixture(scope="module")
def playbook(
    cluster: Cluster, backups: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Done]:
    """Run a playbook over the cluster's servers: playbook(name, option, ..., variable=value).

    A server in ``joins`` has the database, too. App servers are one and two, as far as they are
    among them, and the first one is the web server.
    """
    # The environment is named after it, as molecule's is.
    folder = tmp_path_factory.mktemp("cluster") / "inventory"
    folder.mkdir()

    def run(name: str, *options: str, joins: tuple[Server, ...] = (), **more: object) -> Done:
        hosts = {}
        for server in (*cluster.servers, *joins):
            known = INSTANCES[server.name]
            hosts[server.name] = {
                "ansible_host": known["address"],
                "ansible_port": known["port"],
                "ansible_user": known["user"],
                "ansible_ssh_private_key_file": known["identity_file"],
                "ansible_become_password": known["become_pass"],
                "ansible_ssh_common_args": "-o StrictHostKeyChecking=no"
                " -o UserKnownHostsFile=/dev/null -o ConnectTimeout=5",
                **ADDRESSES[server.name],
            }
        apps = [x for x in hosts if x.endswith(("-one", "-two"))]
        groups = {"ledger": [*hosts], "db": [*hosts], "etcd": [*hosts]}
        groups |= {"app": apps, "web": ["cluster-13-one"]}
        inventory = folder / "hosts.yml"
        all_of_it = {"all": {"hosts": hosts}}
        all_of_it |= {k: {"hosts": dict.fromkeys(x)} for k, x in groups.items()}
        inventory.write_text(yaml.safe_dump(all_of_it))
        words = ["ansible-playbook", REPOSITORY / name, f"--inventory={inventory}"]
        done = subprocess.run(
            [*words, "--extra-vars", json.dumps(VARIABLES | backups | more), *options],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"},
        )
        return Done(done.returncode, done.stdout + done.stderr)

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
