"""A visitor of nginx, and the role run again with other variables."""

import json
import os
import random
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from testinfra.host import Host


@dataclass
class Answer:
    """What came back; a status of 0 stands for a connection closed with no answer."""

    status: int
    headers: list[tuple[str, str]]
    body: str

    def header(self, name: str) -> str:
        return ", ".join(value for key, value in self.headers if key == name.lower())

    @property
    def seen(self) -> dict:
        """What the app saw of the request."""
        return json.loads(self.body)

    def seen_header(self, name: str) -> list[str]:
        return [value for key, value in self.seen["headers"] if key.lower() == name.lower()]


@pytest.fixture
def ask(host: Host) -> Callable[..., Answer]:
    """Ask nginx, as curl on the server does: ask(name, path, option, ...).

    An empty name sends no Host.
    """

    def ask(name: str, path: str = "/", *options: str, at: str = "127.0.0.1:80") -> Answer:
        command = ["curl", "-sS", "--path-as-is", "--globoff", "--include", "--max-time", "20"]
        arguments = [*command, "--header", f"Host: {name}" if name else "Host:", *options]
        run = host.run(" ".join(["%s"] * (len(arguments) + 1)), *arguments, f"http://{at}{path}")
        assert run.rc in (0, 52, 56), run.stderr
        if run.rc:  # an empty reply, or a reset
            return Answer(0, [], "")
        head, _, body = run.stdout.replace("\r\n", "\n").partition("\n\n")
        if head.startswith("HTTP/1.1 100"):
            head, _, body = body.partition("\n\n")
        status, *lines = head.splitlines()
        headers = [line.partition(":")[::2] for line in lines]
        return Answer(int(status.split()[1]), [(k.lower(), v.strip()) for k, v in headers], body)

    return ask


@pytest.fixture
def unique() -> str:
    """A path that no request has used."""
    return f"/{random.getrandbits(64):x}"


@pytest.fixture
def visitor() -> list[str]:
    """Options that make curl come from an address that no request has used."""
    address = ".".join(str(random.randrange(1, 255)) for _ in range(3))
    return ["--interface", f"127.{address}"]


@pytest.fixture(scope="session")
def as_proxy() -> list[str]:
    """Options that make curl a proxy in front, whose word nginx takes."""
    return ["--interface", "127.0.0.9"]


@pytest.fixture
def service(host: Host) -> Callable[[str, str], None]:
    """Call systemctl: service("stop", "nginx")."""

    def systemctl(verb: str, unit: str) -> None:
        host.check_output("systemctl %s %s", verb, unit)

    return systemctl


@pytest.fixture
def apply(host: Host) -> Callable[..., tuple[int, str]]:
    """Run the role on this server, with some variables changed; return the changes and the output.

    The changes are None when the run failed.
    """

    def run(**variables) -> tuple[int | None, str]:
        process = subprocess.run(
            [
                "ansible-playbook",
                "--inventory",
                Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent,
                "--limit",
                host.check_output("hostname"),
                "--extra-vars",
                json.dumps(variables),
                Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"]) / "converge.yml",
            ],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"},
        )
        changed = re.search(r"changed=(\d+)", process.stdout)
        failed = process.returncode or not changed
        return None if failed else int(changed[1]), process.stdout + process.stderr

    return run
