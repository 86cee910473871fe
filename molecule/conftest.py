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
def playbook_check() -> Callable[[], tuple[dict[str, dict[str, int]], str]]:
    """Run the scenario's converge.yml with --check --diff.

    Returns the count of changed, unreachable and failed tasks by host, and the output.
    """

    def check() -> tuple[dict[str, dict[str, int]], str]:
        run = subprocess.run(
            [
                "ansible-playbook",
                "--check",
                "--diff",
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
def site(docker_name: str) -> Callable[..., requests.Response]:
    """Ask the server's port 80 from outside, as a visitor does: site(path, host=..., method=...).

    The port that Docker publishes is looked up each time, because a restart may change it.
    """

    def ask(
        path: str, host: str = "localhost", method: str = "GET", **options
    ) -> requests.Response:
        mapping = subprocess.run(
            ["docker", "port", docker_name, "80"], capture_output=True, text=True, check=True
        ).stdout
        port = mapping.split()[0].rpartition(":")[2]
        headers = {"Host": host} | options.pop("headers", {})
        return requests.request(
            method, f"http://127.0.0.1:{port}{path}", headers=headers, timeout=30, **options
        )

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
