"""A stack on four servers, and the playbooks that work on it."""

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
import testinfra
import yaml
from testinfra.host import Host

REPOSITORY = Path(__file__).parents[3]
CONTAINERS = {
    instance["instance"]: instance["container"]
    for instance in yaml.safe_load(Path(os.environ["MOLECULE_INSTANCE_CONFIG"]).read_text())
}
VARIABLES = yaml.safe_load((Path(__file__).parents[1] / "converge.yml").read_text())[1]["vars"]


@pytest.fixture(scope="module", params=sorted({name.split("-")[1] for name in CONTAINERS}))
def release(request: pytest.FixtureRequest) -> str:
    """Debian's release, which names a stack here."""
    return request.param


@pytest.fixture
def server(release: str) -> Callable[[str], Host]:
    """Get a server of the stack by what it is for: db, app-1, app-2 or web."""
    return lambda role: testinfra.get_host(f"docker://{CONTAINERS[f'split-{release}-{role}']}")


@pytest.fixture(scope="module")
def url(release: str) -> str:
    """Where the stack answers."""
    mapping = subprocess.run(
        ["docker", "port", CONTAINERS[f"split-{release}-web"], "80"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return f"http://localhost:{mapping.split()[0].rpartition(':')[2]}"


def address(host: Host) -> str:
    """The server's address on the stack's network."""
    return host.check_output("hostname -I").split()[0]


# What is named after the app, or knows it.
LEFT = """
find / -xdev '(' -path /proc -o -path /sys ')' -prune -o -name '*guestbook*' -print
grep -l guestbook /etc/passwd /etc/group
grep -rl guestbook /etc/carafe /etc/nginx /etc/postgresql /etc/supervisor /etc/systemd/system
systemctl list-units --all --plain --no-legend '*guestbook*'
systemctl --failed --plain --no-legend
command -v psql && runuser -u postgres -- psql -XAtc "
    SELECT datname::text FROM pg_database WHERE datname = 'guestbook'
    UNION ALL SELECT rolname FROM pg_roles WHERE rolname ~ 'guestbook'"
"""


def left(host: Host) -> set[str]:
    """What a server has of the app."""
    return {*host.run("sh -c %s 2>/dev/null", LEFT).stdout.splitlines()} - {"/usr/bin/psql"}


class Visitors(threading.Thread):
    """Requests one after another, a POST for each GET, and what went wrong with them."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url, self.done, self.count = url, threading.Event(), 0
        # Which releases have answered, one after the other.
        self.releases: list[str] = []
        self.failures: dict[str, list[object]] = {"GET": [], "POST": []}

    def run(self) -> None:
        while not self.done.is_set():
            # A POST is refused by the app for its missing token: an answer all the same.
            for method, path in (("GET", "/healthz"), ("GET", "/readyz"), ("POST", "/api/posts")):
                try:
                    answer = requests.request(method, self.url + path, json={}, timeout=30)
                    if answer.status_code >= 500:
                        self.failures[method].append(answer.status_code)
                    elif path == "/healthz":
                        self.releases.append(answer.json()["release"])
                except requests.RequestException as error:
                    self.failures[method].append(error)
                self.count += 1


@pytest.fixture
def visitors(url: str) -> Iterator[Visitors]:
    """Four visitors at a time, as long as the test runs."""
    threads = [Visitors(url) for _ in range(4)]
    for thread in threads:
        thread.start()
    yield threads
    for thread in threads:
        thread.done.set()
        thread.join()


@pytest.fixture(scope="session")
def inventories(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options that name the servers, and the address by which the others reach each."""
    file = tmp_path_factory.mktemp("inventory") / "hosts.yml"
    hosts = {
        name: {"private_address": address(testinfra.get_host(f"docker://{container}"))}
        for name, container in CONTAINERS.items()
    }
    file.write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
    molecule = Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent
    return [f"--inventory={molecule}", f"--inventory={file}"]


@pytest.fixture(scope="module")
def playbook(inventories: list[str], release: str) -> Callable[..., tuple[int, str]]:
    """Run a playbook on the stack, with variables; returns the exit status, and the output."""

    def run(name: str, *options: str, **variables: object) -> tuple[int, str]:
        folder = REPOSITORY / ("" if name == "site" else "playbooks")
        given = VARIABLES | variables
        done = subprocess.run(
            [
                *("ansible-playbook", folder / f"{name}.yml", *inventories),
                f"--limit=split-{release}-*",
                *options,
                # What is None, an inventory says.
                *("--extra-vars", json.dumps({k: v for k, v in given.items() if v is not None})),
            ],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"},
        )
        return done.returncode, done.stdout + done.stderr

    return run
