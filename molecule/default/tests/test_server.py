"""What the server itself gets, as the playbooks wire the roles hardening to fail2ban."""

import json
import re
import socket
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from testinfra.host import Host

DATABASES = (Path(__file__).parents[3] / "docs/how-to/databases.md").read_text()


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


def test_nothing_but_ssh_listened_to_the_outside_before_the_firewall(host: Host) -> None:
    watched = json.loads(host.file("/var/lib/watched-ports.json").content_string)
    assert watched["looks"] > 50
    assert watched["seen"].keys() == {"tcp 22"}, watched


def test_what_an_app_brings_along_runs_behind_the_firewall(host: Host) -> None:
    host.check_output("systemctl is-active ngircd")
    assert host.check_output("ss -Hltn 'sport = 6667'")
    assert not reachable(host, 6667)


# A network namespace with one end of a cable, in none of the networks that the neighbour answers.
PASSER_BY = """
ip netns list | grep -q passer-by && exit
ip netns add passer-by
ip link add cable type veth peer name far netns passer-by
ip address add 10.98.0.1/24 dev cable
ip link set cable up
ip -n passer-by address add 10.98.0.2/24 dev far
ip -n passer-by link set far up
"""
ASK = """
import socket, ssl, sys
name, port = sys.argv[1], int(sys.argv[2])
connection = socket.create_connection(("10.98.0.1", port), 5)
if port == 443:
    context = ssl._create_unverified_context()
    connection = context.wrap_socket(connection, server_hostname=name)
request = f"GET /readyz HTTP/1.1\\r\\nHost: {name}\\r\\nX-Forwarded-For: 192.168.0.1\\r\\n\\r\\n"
connection.sendall(request.encode())
try:
    print(connection.recv(100).decode().splitlines()[:1])
except ConnectionResetError:
    print([])
"""


@pytest.mark.parametrize(
    ("name", "port", "answer"),
    [
        ("localhost", 80, "['HTTP/1.1 308 Permanent Redirect']"),
        ("localhost", 443, "['HTTP/1.1 200 OK']"),
        ("neighbour.test", 80, "[]"),
        ("neighbour.test", 443, "[]"),
    ],
)
def test_nobody_walks_around_the_proxy_of_one_app_by_the_port_of_another(
    host: Host, name: str, port: int, answer: str
) -> None:
    host.check_output("sh -ec %s", PASSER_BY)
    ask = "ip netns exec passer-by python3 -c %s %s %s"
    assert host.check_output(ask, ASK, name, str(port)) == answer


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("sshd -T", "passwordauthentication no"),
        # Ansible came as deploy, and became root.
        ("sshd -T", "permitrootlogin no"),
        ("fail2ban-client status", "nginx-401, nginx-429, sshd"),
        ("apt-config dump", 'APT::Periodic::Unattended-Upgrade "1";'),
        ("systemctl is-enabled carafe-firewall fail2ban", "enabled\nenabled"),
        ("systemctl is-active logrotate.timer", "active"),
    ],
)
def test_settings_are_in_force(host: Host, command: str, shown: str) -> None:
    assert shown in host.check_output(command)


def recipe(name: str) -> str:
    """Return a block of docs/how-to/databases.md, with the app that is here."""
    block = re.search(rf"<!-- {name} -->\n *```\w+\n(.*?)```", DATABASES, re.S)
    return re.sub(r"\bshop\b", "guestbook", textwrap.dedent(block[1]))


@pytest.fixture
def tunnel(host: Host, eventually: Callable[..., None]) -> Iterator[Callable[..., object]]:
    """Be Anna and Ben, on their own machine: here it is the server itself."""
    folder = "/root/people"
    host.check_output(f"mkdir {folder} && ssh-keygen -qt ed25519 -N '' -f {folder}/anna")
    host.check_output(f"cd {folder} && sh -ec %s", recipe("on the server"))
    # He has a shell and a key, and no word in sshd's files.
    host.check_output(
        "useradd --create-home --shell /bin/bash ben && cp -r /home/anna/.ssh /home/ben"
        " && chown -R ben: /home/ben/.ssh"
    )
    (words,) = re.findall(r"ssh (-N .*) anna@server\.example\.com", recipe("on her machine"))
    options = f"-F none -i {folder}/anna -o BatchMode=yes -o StrictHostKeyChecking=accept-new"

    @contextmanager
    def open_as(user: str, words: str = words) -> Iterator[None]:
        command = f"ssh {options} {words} {user}@127.0.0.1"
        host.check_output(f"systemd-run --quiet --collect --unit=tunnel {command}")
        try:
            eventually(lambda: host.check_output("ss -Hltn 'sport = 5433'"))
            yield
        finally:
            host.check_output("systemctl stop tunnel")

    yield open_as
    host.check_output(f"userdel -r ben && rm -r {folder}")
    host.check_output("sh -ec %s", recipe("on the server, when she goes"))
    assert not host.user("anna").exists


def test_a_client_at_home_reads_through_ssh_what_it_may(
    host: Host, tunnel: Callable[..., object], eventually: Callable[..., None]
) -> None:
    given = yaml.safe_load(recipe("variables: reader"))
    converge = yaml.safe_load((Path(__file__).parents[1] / "converge.yml").read_text())
    assert given.items() <= converge[0]["vars"].items()
    (psql,) = re.findall(r"`(psql -h localhost [^`]*)`", DATABASES)
    ask = psql.replace("shop", "guestbook") + " --no-password -XAtc %s"
    with tunnel("anna"):
        assert host.check_output(ask, "SELECT session_user") == "anna"
        assert host.run(ask, "SELECT * FROM posts LIMIT 1").rc == 0
        assert "permission denied" in host.run(ask, "DELETE FROM posts").stderr
        another = host.run(ask.replace("-U anna", "-U guestbook"), "SELECT 1")
        assert "Peer authentication failed" in another.stderr
    # He may not, and she may to nothing else.
    for user, words in (
        ("ben", ()),
        ("anna", ("-N -L 5433:/run/supervisor.sock",)),
        ("anna", ("-N -L 5433:127.0.0.1:22",)),
    ):
        with tunnel(user, *words):
            assert host.run(ask, "SELECT 1").rc != 0
            # The journal may have it after psql has its answer.
            log = "journalctl --unit=tunnel --output=cat | tail -n 2"
            eventually(lambda log=log: "open failed" in host.check_output(log))


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


# What everybody may list: nothing in there is of an app or of a visitor. What exporters say is in
# the journal, and their own folder is empty.
OPEN_FOLDERS = {"apt", "journal", "prometheus", "runit"}


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
    listed = host.run(f"{as_nobody} find /var/log -mindepth 1 -maxdepth 1 -type d -readable").stdout
    assert {x.split("/")[-1] for x in listed.splitlines()} <= OPEN_FOLDERS
    found = host.run(f"{as_nobody} find {folders} {words} -readable").stdout.splitlines()
    assert [x for x in found if x.split("/")[-1].split(".1")[0] not in OPEN_LOGS] == []
