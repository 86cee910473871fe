"""A ledger under load, of which no row that was acknowledged may be lost."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from testinfra.host import Host

SCENARIO = Path(__file__).parents[1]
REPOSITORY = SCENARIO.parents[1]
sys.path.insert(0, str(REPOSITORY / "molecule"))
from load import Load  # noqa: E402 (found by the line above)

LONG = 120  # seconds after which what does not serve again never will


@pytest.fixture
def url(published: Callable[[int], str]) -> Callable[[], str]:
    """Get where the site answers; a restart of the server may change the port."""
    return lambda: f"http://localhost:{published(80).rpartition(':')[2]}"


@pytest.fixture
def rows(host: Host) -> Callable[[], list[str]]:
    """Get the ids of all rows that were written."""
    query = "runuser -u ledger -- psql -XAtc 'SELECT id FROM rows' ledger"
    return lambda: host.check_output(query).split()


@pytest.fixture
def serves(url: Callable[[], str]) -> Callable[[], float]:
    """Wait until the site serves, its database included; returns after how many seconds."""

    def wait() -> float:
        began = time.monotonic()
        while True:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{url()}/query/0", timeout=5).ok:
                    return time.monotonic() - began
            assert time.monotonic() < began + LONG, "it does not serve again"
            time.sleep(0.05)

    return wait


@pytest.fixture
def load(url: Callable[[], str], rows: Callable[[], list[str]]) -> Iterator[Load]:
    """Load that may lose requests, but no row that was acknowledged, and write none twice."""
    before = rows()
    with Load(url(), 20) as site:
        yield site
    has = rows()
    assert set(has) >= set(before) | set(site.acknowledged)
    assert len(has) == len(set(has))


@pytest.fixture
def books(host: Host) -> Callable[[], dict]:
    """Get what is known of the releases, and which one serves."""

    def read() -> dict:
        known = json.loads(host.file("/srv/ledger/state/releases.json").content_string)
        serving = host.check_output("basename $(readlink /srv/ledger/serving)")
        return {"known": known, "serving": serving}

    return read


@pytest.fixture
def kill_server(docker_name: str) -> Callable[[], None]:
    """Let the power of the server fail, and come back."""

    def kill() -> None:
        subprocess.run(["docker", "kill", docker_name], check=True, capture_output=True)
        subprocess.run(["docker", "start", docker_name], check=True, capture_output=True)

    return kill
