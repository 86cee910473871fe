"""Two servers that follow each other, who writes to them, and the playbooks that work on them."""

import json
import os
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
import testinfra
import yaml
from testinfra.host import Host

REPOSITORY = Path(__file__).parents[3]
INSTANCES = {
    instance["instance"]: instance
    for instance in yaml.safe_load(Path(os.environ["MOLECULE_INSTANCE_CONFIG"]).read_text())
}
SCENARIO = Path(__file__).parents[1]
VARIABLES = yaml.safe_load((SCENARIO / "converge.yml").read_text())[0]["vars"]
ADDRESSES = yaml.safe_load((SCENARIO / "molecule.yml").read_text())["provisioner"]["inventory"][
    "host_vars"
]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was measured, whichever process has done it."""
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"Debian {name}: {value}")


@pytest.fixture
def measured(record_property: Callable[[str, object], None], release: str) -> Callable[..., None]:
    """Have a sentence printed at the end."""
    return lambda says: record_property(release, says)


@pytest.fixture(scope="module", params=sorted({name.split("-")[1] for name in INSTANCES}))
def release(request: pytest.FixtureRequest) -> str:
    """Debian's release, which names a pair here."""
    return request.param


class Server:
    """One of the two."""

    def __init__(self, name: str) -> None:
        self.name, self.container = name, INSTANCES[name]["container"]
        self.version = {"12": "15", "13": "17"}[name.split("-")[1]]

    @property
    def host(self) -> Host:
        return testinfra.get_host(f"docker://{self.container}")

    def sql(self, query: str) -> str:
        psql = "runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 ledger -c %s"
        return self.host.check_output(psql, query)

    def rows(self) -> set[str]:
        return {*self.sql("SELECT id FROM public.rows").split()}

    def follows(self) -> str:
        return self.sql("SELECT status FROM pg_stat_wal_receiver")

    @property
    def url(self) -> str:
        words = ["docker", "port", self.container, "80"]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        return f"http://localhost:{said.split()[0].rpartition(':')[2]}/rows"

    def kill(self) -> None:
        subprocess.run(["docker", "kill", self.container], capture_output=True, check=True)

    def boot(self) -> None:
        subprocess.run([REPOSITORY / "scripts/server", "restart", self.container], check=True)


@pytest.fixture(scope="module")
def one(release: str) -> Server:
    return Server(f"standby-{release}-one")


@pytest.fixture(scope="module")
def two(release: str) -> Server:
    return Server(f"standby-{release}-two")


class Writer(threading.Thread):
    """One row after another, which was acknowledged or not; and how long nobody answered."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url, self.done = url, threading.Event()
        self.acknowledged: set[str] = set()
        self.gap = 0.0

    def run(self) -> None:
        last = time.monotonic()
        while not self.done.is_set():
            row = str(uuid.uuid4())
            try:
                answer = requests.post(self.url, json={"id": row}, timeout=30)
                if answer.status_code == 201:
                    self.acknowledged.add(row)
                    self.gap = max(self.gap, time.monotonic() - last)
                    last = time.monotonic()
            except requests.RequestException:
                pass

    def __enter__(self) -> "Writer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.join()


@pytest.fixture(scope="module")
def playbook(
    release: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[int, str]]:
    """Run a playbook with one server as the primary and the others as its standbys."""
    # The environment is named after it, as molecule's is.
    folder = tmp_path_factory.mktemp("standby") / "inventory"
    folder.mkdir()

    def run(
        name: str, primary: Server, *standbys: Server, options: tuple[str, ...] = (), **more: object
    ) -> tuple[int, str]:
        hosts = {}
        for server in (primary, *standbys):
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
        groups = {"all": {"hosts": hosts}}
        groups |= {x: {"hosts": {primary.name: None}} for x in ("db", "app", "web")}
        groups |= {"standby": {"hosts": {x.name: None for x in standbys}}} if standbys else {}
        inventory = folder / "hosts.yml"
        inventory.write_text(yaml.safe_dump(groups))
        variables = {k: v for k, v in VARIABLES.items() if k != "stack_name"} | more
        words = ["ansible-playbook", REPOSITORY / "playbooks" / f"{name}.yml"]
        done = subprocess.run(
            [*words, f"--inventory={inventory}", "--extra-vars", json.dumps(variables), *options],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"},
        )
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.fixture(scope="module", autouse=True)
def end(one: Server, two: Server) -> Iterator[None]:
    """Leave no server down."""
    yield
    for server in (one, two):
        subprocess.run(["docker", "start", server.container], capture_output=True, check=True)
