"""What the tests of the firewall share."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

sys.path.append(str(Path(__file__).parents[3] / "collections"))
from ansible_collections.carafe.stack.plugins.module_utils import firewall_rules

VARIABLES = yaml.safe_load((Path(__file__).parents[1] / "converge.yml").read_text())[0]["vars"]
PROGRAM = "/usr/bin/python3 /usr/local/lib/carafe/firewall"
CLAIMS = "/etc/carafe/firewall.d"
RULES = "/etc/carafe-firewall.nft"
# Runs some code on the server as the module does, with what the module shares with the program.
LIBRARY = """
import json, sys
sys.path.insert(0, "/usr/local/lib/carafe/firewall")
from carafe import claims, commands, files, firewall
try:
    with claims.locked(firewall.CLAIMS):
        exec(sys.argv[1])
except commands.Failure as error:
    sys.exit(str(error))
"""
APPLY = """
claim = json.loads((firewall.CLAIMS / "default.json").read_text())
firewall.apply(sys.stdin.read(), {}, "default", claim)
"""
CONFIRM = "firewall.confirm('default')"
DUE = """
found = [*firewall.due(sys.stdin.read()), *["the service"] * firewall.service_is_due()]
print(*found, sep="\\n", end="")
"""
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
def library(host):
    """Run code on the server, with a text as its standard input."""

    def run(code, text=""):
        command = ["docker", "exec", "--interactive", host.backend.name, "python3", "-c", LIBRARY]
        return subprocess.run(
            [*command, code], input=text, capture_output=True, text=True, check=False
        )

    return run


@pytest.fixture(scope="module")
def due(host, library):
    """Ask, as each run does, why these rules, or the confirmed, are not in force."""

    def ask(rules=None):
        done = library(DUE, rules or host.file(RULES).content_string)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return ask


@pytest.fixture
def apply(library):
    """Apply rules, unconfirmed."""

    def run(rules, seconds):
        return library(APPLY.format(seconds), rules)

    return run


@pytest.fixture
def confirm(library):
    return lambda: library(CONFIRM)


@pytest.fixture
def in_force(apply, library):
    """Have the rules that the role makes of some other variables, for one test."""

    def run(**variables):
        wanted = {name: variables.pop(name, x) for name, x in firewall_rules.DEFAULTS.items()}
        allow = [
            {"protocol": "tcp", "sources": [], "comment": ""} | entry
            for entry in variables.pop("firewall_allow", VARIABLES["firewall_allow"])
        ]
        assert not variables
        claim = firewall_rules.claim(allow, wanted)
        done = apply(firewall_rules.compose({"default": claim}, None), 600)
        assert done.returncode == 0, done.stderr

    yield run
    assert library("firewall.CHANGE.revert(firewall.restore)").returncode == 0


@pytest.fixture
def role(converge):
    """Run the role with other values of some variables."""

    def run(*options, **variables):
        return converge(*options, firewall_manage_packages=False, **variables)

    return run


@pytest.fixture(scope="module", autouse=True)
def bring_back(host, converge):
    """Leave the server as converge.yml wants it, whatever a test has done to it."""
    yield
    host.run("nft delete table inet barrier")
    host.run(f"rm -f {CLAIMS}/blog.json {CLAIMS}/old.json; {PROGRAM} revert")
    changed, output = converge(firewall_manage_packages=False)
    assert changed >= 0, output


@pytest.fixture(autouse=True)
def forget_who_came(host):
    """Let no test wait for what another has opened."""
    yield
    for name in ("recent_v4", "recent_v6"):
        host.run(f"nft flush set inet carafe {name}")
