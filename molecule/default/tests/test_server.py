"""What the server itself gets, as the playbooks wire the roles hardening to fail2ban."""

import json
import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest
from testinfra.host import Host


@pytest.fixture
def unasked_port(host: Host, eventually: Callable[..., None]) -> Iterator[int]:
    """Port of a service that somebody started for all the world, and that nobody deployed."""
    port = 9999
    host.check_output(
        f"systemd-run --collect --unit=unasked --property=DynamicUser=yes"
        f" python3 -m http.server --directory /usr/share {port}"
    )
    eventually(lambda: host.check_output(f"ss -Hltn 'sport = {port}'"))
    yield port
    host.check_output("systemctl stop unasked")


def reachable(host: Host, port: int) -> bool:
    """Tell whether a connection comes about from outside, by the server's own address."""
    inspected = subprocess.run(
        ["docker", "inspect", host.backend.name], capture_output=True, check=True
    )
    (network,) = json.loads(inspected.stdout)[0]["NetworkSettings"]["Networks"].values()
    try:
        socket.create_connection((network["IPAddress"], port), timeout=3).close()
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("port", [22, 80, 443])
def test_what_is_served_is_reachable(host: Host, port: int) -> None:
    assert reachable(host, port)


def test_what_nobody_deployed_is_not(host: Host, unasked_port: int) -> None:
    assert not reachable(host, unasked_port)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("sshd -T", "passwordauthentication no"),
        # Ansible came as deploy, and became root.
        ("sshd -T", "permitrootlogin no"),
        ("fail2ban-client status", "nginx-429, sshd"),
        ("apt-config dump", 'APT::Periodic::Unattended-Upgrade "1";'),
        ("systemctl is-enabled carafe-firewall fail2ban", "enabled\nenabled"),
    ],
)
def test_settings_are_in_force(host: Host, command: str, shown: str) -> None:
    assert shown in host.check_output(command)
