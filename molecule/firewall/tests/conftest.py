"""What the tests of the firewall share."""

import subprocess
from pathlib import Path

import pytest
import yaml

VARIABLES = yaml.safe_load((Path(__file__).parents[1] / "converge.yml").read_text())[0]["vars"]
SCRIPT = "/usr/bin/python3 /usr/local/lib/carafe-firewall.py"
RULES = "/etc/carafe-firewall.nft"
# One of the neighbour's addresses, and one of the server's.
NEIGHBOUR = ("10.9.0.2", "10.9.0.1")
# Lets nobody in, and lets nothing go on that is open.
LOCKED = """
table inet carafe
delete table inet carafe
table inet carafe {
    chain input {
        type filter hook input priority filter; policy drop;
        iif lo accept
    }
}
"""


@pytest.fixture
def neighbour(host):
    """Let the neighbour do something: neighbour("tcp", from, to, port)."""

    def ask(*words):
        text = " ".join(map(str, words))
        return host.check_output(f"ip netns exec neighbour python3 /opt/neighbour.py {text}")

    return ask


@pytest.fixture
def allow():
    """Return firewall_allow with some more tcp ports."""

    def more(*ports):
        return [*VARIABLES["firewall_allow"], {"ports": list(ports)}]

    return more


@pytest.fixture
def state(host):
    """Tell the rules that are in force, and those of the next boot."""

    def read():
        live = host.run("nft --stateless --terse list table inet carafe").stdout
        return live, host.check_output(f"cat {RULES}")

    return read


@pytest.fixture(scope="module")
def due(host):
    """Ask the script, as each run does, why these rules, or the confirmed, are not in force."""

    def ask(rules=None):
        text = rules or host.check_output(f"cat {RULES}")
        return host.check_output(f"{SCRIPT} due <<'END'\n{text}\nEND")

    return ask


@pytest.fixture
def role(converge):
    """Run the role with other values of some variables."""

    def run(*options, **variables):
        return converge(*options, firewall_manage_packages=False, **variables)

    return run


@pytest.fixture
def apply(docker_name):
    """Apply rules with the script, unconfirmed."""

    def run(rules, seconds):
        command = [
            "docker",
            "exec",
            "--interactive",
            docker_name,
            *SCRIPT.split(),
            "apply",
            str(seconds),
        ]
        return subprocess.run(command, input=rules, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="module", autouse=True)
def bring_back(host, converge):
    """Leave the server as converge.yml wants it, whatever a test has done to it."""
    yield
    host.run("nft delete table inet barrier")
    host.run(f"{SCRIPT} revert")
    changed, output = converge(firewall_manage_packages=False)
    assert changed >= 0, output


@pytest.fixture(autouse=True)
def forget_who_came(host):
    """Let no test wait for what another has opened."""
    yield
    for name in ("recent_v4", "recent_v6"):
        host.run(f"nft flush set inet carafe {name}")
