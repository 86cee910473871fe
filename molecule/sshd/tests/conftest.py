"""What the tests of sshd share."""

import json
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from testinfra.host import Host

DROP_IN = "/etc/ssh/sshd_config.d/00-carafe.conf"
PENDING = "/var/lib/carafe-sshd/pending.json"
# Looks as the module does, without the time that Ansible takes.
LOOK = """
import json, sys
sys.path.insert(0, "/opt/library")
from carafe import ssh_peer, sshd, sshd_settings
params = {**sshd_settings.DEFAULTS, "settings": {}, **json.load(sys.stdin)}
wanted = sshd_settings.composed([sshd_settings.claim(params)])
who, units = ssh_peer.peer(), sshd.units()
text = sshd_settings.render(wanted, who)
problems = list(sshd_settings.problems(text, who, *units))
due = list(sshd_settings.due(text, wanted["rsa_host_key_bits"], *units))
json.dump({"problems": problems, "due": due}, sys.stdout)
"""


@pytest.fixture
def release(host: Host) -> str:
    return host.check_output("hostname").rpartition("-")[2]


@pytest.fixture
def port(docker_name: str) -> str:
    """Return the port of this machine that leads to the server's sshd."""
    mapping = subprocess.check_output(["docker", "port", docker_name, "22"], text=True)
    return mapping.split()[0].rpartition(":")[2]


@pytest.fixture
def ssh(docker_name: str, port: str) -> Callable[..., list[str]]:
    """Return the command line of ssh for a user with the key, on a connection of its own."""
    instances = yaml.safe_load(Path(os.environ["MOLECULE_INSTANCE_CONFIG"]).read_text())
    (key,) = (x["identity_file"] for x in instances if x["container"] == docker_name)
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": "10",
        "ControlPath": "none",
        "IdentitiesOnly": "yes",
        "LogLevel": "ERROR",
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
    }

    def command(*words: str, user: str = "deploy", **more: str) -> list[str]:
        settings = [f"-o{name}={value}" for name, value in (options | more).items()]
        return ["ssh", "-F", "none", "-i", key, "-p", port, *settings, f"{user}@127.0.0.1", *words]

    return command


@pytest.fixture
def login(ssh: Callable[..., list[str]]) -> Callable[..., subprocess.CompletedProcess]:
    """Log in anew, as login(user="root", PubkeyAuthentication="no")."""

    def run(**options: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ssh("true", **options), capture_output=True, text=True, check=False, timeout=60
        )

    return run


@pytest.fixture(scope="module", autouse=True)
def library(host: Host) -> Callable[[str], str]:
    """Run code on the server that uses what the module shares with the program."""
    host.check_output("mkdir -p /opt/library")
    folder = Path(__file__).parents[3] / "plugins/module_utils"
    subprocess.run(
        ["docker", "cp", "--quiet", f"{folder}/.", f"{host.backend.name}:/opt/library/carafe"],
        check=True,
    )

    def run(code: str) -> str:
        start = "import sys; sys.path.insert(0, '/opt/library'); from carafe import sshd;"
        return host.check_output("python3 -c %s", f"{start} {code}")

    return run


@pytest.fixture
def look(docker_name: str, ssh: Callable[..., list[str]]) -> Callable[..., dict[str, list[str]]]:
    """Ask, as each run does, what is due for some variables, and what is wrong with them."""

    instances = yaml.safe_load(Path(os.environ["MOLECULE_INSTANCE_CONFIG"]).read_text())
    (key,) = (x["identity_file"] for x in instances if x["container"] == docker_name)
    password = Path(key).with_name("become_password").read_text()

    def ask(user: str = "deploy", **params: object) -> dict[str, list[str]]:
        # For a user who needs no password, sudo would leave it to the program.
        sudo = "" if user == "root" else "sudo -S -p '' "
        command = f"{sudo}python3 -c {shlex.quote(LOOK)}"
        done = subprocess.run(
            ssh(command, user=user),
            input=f"{password}\n" * bool(sudo) + json.dumps(params),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return ask


@pytest.fixture
def role(converge: Callable[..., tuple[int, str]]) -> Callable[..., tuple[int, str]]:
    """Run the role with these variables."""

    def run(**variables: object) -> tuple[int, str]:
        return converge(sshd_manage_packages=False, **variables)

    return run


@pytest.fixture
def bring_back(
    host: Host, converge: Callable[..., tuple[int, str]]
) -> Iterator[Callable[[str], None]]:
    """Leave the server as converge.yml wants it, after the commands that a test asks for."""
    commands = []
    yield commands.append
    for command in commands:
        host.check_output(command)
    changed, output = converge(sshd_manage_packages=False)
    assert changed >= 0, output
