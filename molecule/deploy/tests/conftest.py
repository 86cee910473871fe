"""Playbooks on a live site, and the load on it."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from testinfra.host import Host

SCENARIO = Path(__file__).parents[1]
REPOSITORY = SCENARIO.parents[1]
sys.path.insert(0, str(REPOSITORY / "molecule"))
from load import Load  # noqa: E402 (found by the line above)

# A hook that waits until a test says so.
WAITS = "until test -e /var/tmp/go; do sleep 0.1; done"

# A run that is killed leaves a step at work on the server, which Mitogen would end.
LINEAR = {**os.environ, "ANSIBLE_STRATEGY": "linear"}


@pytest.fixture
def playbook(command: Callable[..., list[str]]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a playbook on this server, by Mitogen unless told, and return the finished run."""

    def run(
        name: str, strategy: str = "mitogen_linear", **variables: object
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(name, **variables),
            capture_output=True,
            text=True,
            check=False,
            env={
                **os.environ,
                "ANSIBLE_FORCE_COLOR": "0",
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_STRATEGY": strategy,
            },
        )

    return run


@pytest.fixture
def code(tmp_path: Path) -> Callable[[str], Path]:
    """Make a copy of the ledger's code that differs by a word, or by more: code("one")."""

    def copy(word: str, wsgi: str = "", migration: str = "", worker: str = "") -> Path:
        folder = tmp_path / word
        shutil.copytree(SCENARIO / "files/ledger", folder)
        (folder / "ledger/static" / f"style.{word.encode().hex():0>8}.css").write_text(word)
        (folder / "wsgi.py").write_text((folder / "wsgi.py").read_text() + wsgi)
        (folder / "worker.py").write_text(worker + (folder / "worker.py").read_text())
        if migration:
            (folder / "migrations/versions/0002_more.py").write_text(migration)
        return folder

    return copy


@pytest.fixture
def go(host: Host) -> Iterator[Callable[[], object]]:
    """Let a hook that WAITS go on."""
    host.check_output("rm -f /var/tmp/go")
    yield lambda: host.check_output("touch /var/tmp/go")
    host.check_output("touch /var/tmp/go")


@pytest.fixture
def serving(host: Host) -> Callable[[], str]:
    """Get the release that `current` points to."""
    return lambda: host.check_output("basename $(readlink /srv/ledger/serving)")


@pytest.fixture
def url(docker_name: str) -> str:
    """Where the site answers."""
    mapping = subprocess.run(
        ["docker", "port", docker_name, "80"], capture_output=True, text=True, check=True
    ).stdout
    return f"http://localhost:{mapping.split()[0].rpartition(':')[2]}"


@pytest.fixture
def rows(host: Host) -> Callable[[], list[str]]:
    """Get the ids of all rows that were written, in order."""
    query = "runuser -u ledger -- psql -XAtc 'SELECT id FROM rows' ledger"
    return lambda: sorted(host.check_output(query).split())


@pytest.fixture
def jobs(host: Host) -> Callable[[], dict[str, list[bool]]]:
    """Get the jobs that each release began, and whether each one ended."""
    query = "runuser -u ledger -- psql -XAtF' ' -c 'SELECT release, ended FROM jobs' ledger"

    def read() -> dict[str, list[bool]]:
        found: dict[str, list[bool]] = {}
        for line in host.check_output(query).splitlines():
            release, ended = line.split()
            found.setdefault(release, []).append(ended == "t")
        return found

    return read


@contextlib.contextmanager
def lossless(url: str, rows: Callable[[], list[str]], rate: float = 50) -> Iterator[Load]:
    """Load; at its end no request may have failed, and no row be lost or twice."""
    before = rows()
    with Load(url, rate) as site:
        yield site
    assert site.failures == []
    assert rows() == sorted(before + site.acknowledged)


@pytest.fixture
def load(url: str, rows: Callable[[], list[str]]) -> Iterator[Load]:
    """Load during the whole test, of which nothing may be lost."""
    with lossless(url, rows) as site:
        yield site


@pytest.fixture
def heavy_load(url: str, rows: Callable[[], list[str]]) -> Iterator[Load]:
    """As much as keeps one of two cores busy."""
    with lossless(url, rows, rate=200) as site:
        yield site
