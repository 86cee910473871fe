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


# What everybody may read: it holds no word of an app or of a visitor.
OPEN_LOGS = {
    "alternatives.log": "which program stands for which",
    "bootstrap.log": "of the making of the machine",
    "dpkg.log": "which package was installed when",
    "eipp.log.xz": "which packages apt has looked at",
    "faillog": "how many logins failed, of a program that is not used",
    "fontconfig.log": "which fonts there are",
    "history.log": "which package was installed when",
    "lastlog": "who has logged in when, as lastlog tells everybody",
    "lastlog2.db": "the same, of Debian 13",
    "wtmp": "the same, as last tells everybody",
    "wtmp.db": "the same, of Debian 13",
}


@pytest.mark.parametrize("rotated", [False, True], ids=["written", "rotated"])
def test_logs_are_not_for_every_user(host: Host, rotated: bool) -> None:
    """Each log, whoever writes it: asked for as a user who is in no group."""
    if rotated:
        host.check_output("logrotate --force /etc/logrotate.conf")
        # Something for each to write.
        host.run("curl --insecure --silent https://localhost/ https://localhost/none")
        host.run("systemctl restart fail2ban postgresql; sleep 6")
    log = "-path '/var/log/*' -o -path '*/logs/*' -o -name '*.log' -o -name '*.log.*'"
    folders = "$(readlink -e /var/log /srv /var/lib /run /tmp /opt /home)"
    words = rf"-xdev -not -path '*/site-packages/*' -type f \( {log} \)"
    every = host.check_output(f"find {folders} {words}").splitlines()
    for name in ("nginx/access.log", "supervisor/guestbook_0.log", "fail2ban.log"):
        assert f"/var/log/{name}" in every
    assert any(path.startswith("/srv/guestbook/logs/") for path in every)
    as_nobody = "setpriv --reuid=nobody --regid=nogroup --clear-groups"
    found = host.run(f"{as_nobody} find {folders} {words} -readable").stdout.splitlines()
    assert [x for x in found if x.split("/")[-1].split(".1")[0] not in OPEN_LOGS] == []
