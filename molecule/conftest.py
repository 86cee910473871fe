"""What the tests of every scenario share."""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
import yaml
from testinfra.host import Host
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

REPOSITORY = Path(__file__).parent.parent
RECAP = re.compile(
    r"^(\S+)\s+: ok=\d+\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE
)


def pytest_configure(config: pytest.Config) -> None:
    """Point testinfra at the scenario's containers.

    Its docker backend is many times faster than the ansible one that molecule asks for.
    """
    if config.option.hosts is not None:
        return
    instances = Path(os.environ.get("MOLECULE_INSTANCE_CONFIG", ""))
    if not instances.is_file():
        raise pytest.UsageError(
            "no servers to test: run `molecule verify -s SCENARIO`, "
            "or name them with --hosts=docker://CONTAINER (docker ps --filter label=carafe)"
        )
    config.option.hosts = ",".join(
        f"docker://{instance['container']}" for instance in yaml.safe_load(instances.read_text())
    )


class ReleaseScheduling(LoadScopeScheduling):
    """The tests of one release in one process, in their order."""

    # Not xdist's own loadgroup: of pytest 9.2's node ids it loses the groups.
    def _split_scope(self, nodeid: str) -> str:
        # Either a parameter, or in the container's name: [docker://carafe-…-nginx-12-…].
        return re.search(r"[-[](12|13)[]-]", nodeid)[1]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ReleaseScheduling:
    """Run the tests of the two releases side by side: their servers know nothing of each other."""
    return ReleaseScheduling(config, log)


@pytest.fixture
def docker_name(host: Host) -> str:
    """Name of the container that stands for the server."""
    return host.backend.name


@pytest.fixture
def restart_server(docker_name: str) -> Callable[[], None]:
    """Reboot the server and wait until it is up, 30 seconds at most."""

    def restart() -> None:
        subprocess.run([REPOSITORY / "scripts/server", "restart", docker_name], check=True)

    return restart


@pytest.fixture
def playbook_check() -> Callable[[str], tuple[dict[str, dict[str, int]], str]]:
    """Run the scenario's converge.yml with --check --diff on the servers of one release.

    Returns the count of changed, unreachable and failed tasks by host, and the output.
    """

    def check(release: str) -> tuple[dict[str, dict[str, int]], str]:
        run = subprocess.run(
            [
                "ansible-playbook",
                "--check",
                "--diff",
                f"--limit=*-{release},*-{release}-*",
                "--inventory",
                Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent,
                "--skip-tags=molecule-notest,notest,molecule-idempotence-notest",
                Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"]) / "converge.yml",
            ],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"},
        )
        counts = {
            name: {"changed": int(changed), "unreachable": int(unreachable), "failed": int(failed)}
            for name, changed, unreachable, failed in RECAP.findall(run.stdout)
        }
        return counts, run.stdout + run.stderr

    return check


@pytest.fixture(scope="module")
def converge(host: Host) -> Callable[..., tuple[int, str]]:
    """Run the scenario's converge.yml on this server alone, with other values of some variables.

    Returns the number of changed tasks, or -1 when the run failed, and the output.
    """

    def run(*options: str, **variables: object) -> tuple[int, str]:
        name = host.check_output("hostname")
        done = subprocess.run(
            [
                "ansible-playbook",
                *("--limit", name, "--extra-vars", json.dumps(variables), *options),
                *("--inventory", Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent),
                Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"]) / "converge.yml",
            ],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"},
        )
        output = done.stdout + done.stderr
        changed = {row[0]: int(row[1]) for row in RECAP.findall(output)}
        return (-1 if done.returncode else changed[name]), output

    return run


@pytest.fixture
def published(docker_name: str) -> Callable[[int], str | None]:
    """Get the address at which Docker publishes a port of the server, None where it does not.

    It is looked up each time, because a restart may change it.
    """

    def look(port: int) -> str | None:
        mapping = subprocess.run(
            ["docker", "port", docker_name, str(port)], capture_output=True, text=True, check=False
        ).stdout
        return f"127.0.0.1:{mapping.split()[0].rpartition(':')[2]}" if mapping else None

    return look


@pytest.fixture
def authority(host: Host) -> Path:
    """The root of the server's private CA, as the role has downloaded it."""
    name = host.check_output("hostname")
    return Path(os.environ["MOLECULE_INSTANCE_CONFIG"]).parent / f"{name}-ca.crt"


class NamedAdapter(requests.adapters.HTTPAdapter):
    """Asks for a site by its name, and wants its certificate, whatever address it is reached by."""

    def __init__(self, name: str):
        self.name = name
        super().__init__()

    def init_poolmanager(self, *args, **options) -> None:
        super().init_poolmanager(
            *args, server_hostname=self.name, assert_hostname=self.name, **options
        )


@pytest.fixture
def site(
    published: Callable[[int], str | None], authority: Path
) -> Callable[..., requests.Response]:
    """Ask for a site from outside, as a visitor does: site(path, host=..., method=...).

    Over TLS where its port is published, and trusting the private CA only; otherwise on port 80.
    """

    def ask(
        path: str, host: str = "localhost", method: str = "GET", **options
    ) -> requests.Response:
        options["headers"] = {"Host": host} | options.pop("headers", {})
        tls = published(443)
        url = f"https://{tls}" if tls else f"http://{published(80)}"
        with requests.Session() as session:
            session.mount("https://", NamedAdapter(host))
            # Here, since what the environment says would beat the session's.
            return session.request(method, url + path, timeout=30, verify=str(authority), **options)

    return ask


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Wait until a check holds, 30 seconds at most; what it raises then is the test's failure."""

    def wait(check: Callable[[], bool], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                assert check()
                return
            except (AssertionError, requests.RequestException):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    return wait
