"""Without its database, and where a disk is full, a site serves what it can, and recovers."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from conftest import REPOSITORY, Load
from testinfra.host import Host

CLUSTER = "postgresql@17-main"
SLOTS = "supervisorctl pid ledger:ledger_0; supervisorctl pid ledger:ledger_1"
DATABASE, RELEASES, LOGS = "/var/lib/postgresql", "/srv/ledger/releases", "/var/log"
# What works in each of these folders.
SERVICES = {DATABASE: CLUSTER, RELEASES: "supervisor", LOGS: "supervisor nginx postgresql@17-main"}


def serves_the_rest(url: str) -> None:
    """Check that what needs the database gets a 503 that says when to come, and the rest all."""
    assert requests.get(url, timeout=30).ok
    answer = requests.get(f"{url}/query/0", timeout=30)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")


def test_the_database_is_down_when_the_server_boots(
    host: Host,
    restart_server: Callable[[], None],
    url: Callable[[], str],
    serves: Callable[[], float],
    eventually: Callable[..., None],
) -> None:
    host.check_output(f"systemctl mask {CLUSTER}")
    try:
        restart_server()
        eventually(lambda: requests.get(url(), timeout=30).ok)
        serves_the_rest(url())
        slots = host.check_output(SLOTS)
    finally:
        host.check_output(f"systemctl unmask {CLUSTER} && systemctl start {CLUSTER}")
    print(f"the database comes after the boot: {serves():.1f} s")
    assert host.check_output(SLOTS) == slots


@pytest.mark.parametrize("seconds", [0, 60])
def test_the_database_goes_and_comes_back(
    host: Host, load: Load, url: Callable[[], str], serves: Callable[[], float], seconds: int
) -> None:
    slots = host.check_output(SLOTS)
    load.go_on(20)
    host.check_output(f"systemctl stop {CLUSTER}")
    serves_the_rest(url())
    time.sleep(seconds)  # how long it is away, not something that is waited for
    serves_the_rest(url())
    host.check_output(f"systemctl start {CLUSTER}")
    print(f"the database was down for {seconds} s: {serves():.1f} s")
    back = load.now
    load.go_on(40, back)
    assert [x.failure for x in load.answers if x.failure and x.due > back] == []
    assert host.check_output(SLOTS) == slots


@pytest.fixture
def full(host: Host, serves: Callable[[], float]) -> Iterator[Callable[[str], Callable[[], None]]]:
    """Put a folder on a volume of its own, and fill it; returns what makes room again."""
    mounted: list[str] = []

    def fill(folder: str) -> Callable[[], None]:
        host.check_output(f"systemctl stop {SERVICES[folder]}")
        size = int(host.check_output(f"du -sm {folder}").split()[0]) + 40
        host.check_output(
            f"mkdir /run/volume && mount -t tmpfs -o size={size}m,mode=0755 volume /run/volume"
            f" && cp -a {folder}/. /run/volume && chown --reference={folder} /run/volume"
            f" && chmod --reference={folder} /run/volume && mount --move /run/volume {folder}"
        )
        mounted.append(folder)
        # In a sandbox a service has the mounts of when it was started.
        host.check_output(f"systemctl start {SERVICES[folder]}")
        serves()
        host.run(f"dd if=/dev/zero of={folder}/filling bs=1M")
        assert int(host.check_output(f"df --output=avail {folder} | tail -1")) == 0
        return lambda: host.check_output(f"rm -f {folder}/filling")

    yield fill
    for folder in mounted:
        host.check_output(f"systemctl stop {SERVICES[folder]}; rm -f {folder}/filling")
        host.check_output(
            f"mkdir -p /run/behind && mount --bind $(dirname {folder}) /run/behind"
            f" && cp -a {folder}/. /run/behind/$(basename {folder}) && umount /run/behind"
            f" && umount --lazy {folder} && rmdir /run/volume"
        )
        host.check_output(f"systemctl start {SERVICES[folder]}")
    serves()


def test_the_volume_of_the_releases_is_full(
    tmp_path: Path,
    load: Load,
    command: Callable[..., list[str]],
    books: Callable[[], dict],
    full: Callable[[str], Callable[[], None]],
) -> None:
    noted, make_room = books(), full(RELEASES)
    began = load.now
    path = tmp_path / "ledger"
    shutil.copytree(REPOSITORY / "molecule/deploy/files/ledger", path)
    (path / "ledger/static/word.css").write_text("full")
    words = command("deploy", ledger_path=str(path))
    refused = subprocess.run(words, capture_output=True, text=True, check=False)
    assert refused.returncode, refused.stdout
    assert "No space left on device" in refused.stdout + refused.stderr
    assert books()["serving"] == noted["serving"]
    make_room()
    again = subprocess.run(words, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout
    assert [x.failure for x in load.answers if x.failure and x.due > began] == []


def test_the_volume_of_the_database_is_full(
    host: Host,
    load: Load,
    serves: Callable[[], float],
    full: Callable[[str], Callable[[], None]],
    eventually: Callable[..., None],
) -> None:
    make_room = full(DATABASE)
    serves()
    # Rows are refused once the segment of the log that is open is full, and not before.
    fills = "CREATE TABLE f AS SELECT repeat('x', 1000) FROM generate_series(1, 100000)"
    refused = host.run("runuser -u ledger-deploy -- psql -Xd ledger -c %s", fills)
    assert refused.rc
    make_room()
    print(f"room on the database's volume: {serves():.1f} s")
    back = load.now
    load.go_on(40, back)
    assert [x.failure for x in load.answers if x.failure and x.due > back] == []


def test_the_volume_of_the_logs_is_full(
    host: Host,
    load: Load,
    url: Callable[[], str],
    full: Callable[[str], Callable[[], None]],
    eventually: Callable[..., None],
) -> None:
    make_room = full(LOGS)
    slots, began = host.check_output(SLOTS), load.now
    load.go_on(200, began)
    make_room()
    back = load.now
    load.go_on(40, back)
    assert [x.failure for x in load.answers if x.failure and x.due > began] == []
    assert host.check_output(SLOTS) == slots
    # What is logged then is there again.
    requests.get(f"{url()}/?after-the-filling", timeout=30)
    eventually(lambda: host.run("grep after-the-filling /var/log/nginx/access.log").rc == 0)
