"""What the tests of every scenario share."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
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
