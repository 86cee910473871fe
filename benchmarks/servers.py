"""Bare servers in containers, and the ways to work on them that are measured."""

import json
import os
import re
import resource
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Keys, inventories and what is released, for as long as the servers live.
FOLDER = ROOT / ".bench"
RELEASE = os.environ.get("BENCH_RELEASE", "13")


def run(*command: object, **options) -> str:
    """Run a command of the control machine; its output, or the end with what it said."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, **options
    )
    if done.returncode:
        sys.exit(f"{shlex.join(map(str, command))}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def gunicorn_version() -> str:
    """Return the version that the role installs, so that both ways run the same."""
    defaults = (ROOT / "roles/gunicorn/defaults/main.yml").read_text()
    return re.search(r"^gunicorn_version: *(\S+)", defaults, re.MULTILINE)[1]


def say(text: str) -> None:
    print(f"bench: {text}", flush=True)


class Server:
    """A bare server in a container, reached over ssh as root, as the README does it."""

    def __init__(self, name: str) -> None:
        published = "--publish=127.0.0.1::80"
        answer = run(ROOT / "scripts/server", "up", "bench", name, RELEASE, FOLDER, published)
        self.container, self.port = answer.split()
        self.folder, self.name = FOLDER, name
        self.http_port = run("docker", "port", self.container, "80").split(":")[-1].strip()
        self.inside("cp -rT /home/deploy/.ssh /root/.ssh && chown -R root:root /root/.ssh")
        options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
        key = f"-o IdentitiesOnly=yes -i {self.folder}/id_ed25519"
        self.ssh_words = f"ssh {options} {key} -p {self.port}"

    def ssh(self, command: str, stdin: bytes | None = None) -> None:
        """Run a command over ssh, as a person would."""
        words = [*shlex.split(self.ssh_words), "root@127.0.0.1", command]
        done = subprocess.run(words, input=stdin or b"", capture_output=True, check=False)
        if done.returncode:
            sys.exit(f"{command[:200]}\n{(done.stdout + done.stderr).decode()[-3000:]}")

    def inside(self, command: str) -> str:
        """Run a command as root in the container, for measuring."""
        return run("docker", "exec", self.container, "sh", "-c", command)

    def has(self, path: str) -> bool:
        done = subprocess.run(["docker", "exec", self.container, "test", "-e", path], check=False)
        return done.returncode == 0

    def inventory(self, hosts: int = 1, app: str = "guestbook") -> Path:
        """Write the inventory that describes this server, as inventory/lab does the lab's.

        With several hosts each is this server under a name of its own, by a connection of its own,
        with a stack of its own. The app's group brings its values, where group_vars has one.
        """
        folder = self.folder / f"inventory-{self.name}-{app}-{hosts}"
        folder.mkdir(exist_ok=True)
        link = folder / "group_vars"
        link.unlink(missing_ok=True)
        link.symlink_to(ROOT / "group_vars")
        host = {
            "ansible_host": "127.0.0.1",
            "ansible_port": int(self.port),
            "ansible_user": "root",
            "ansible_ssh_private_key_file": f"{self.folder}/id_ed25519",
            "ansible_ssh_common_args": "-o IdentitiesOnly=yes -o StrictHostKeyChecking=no"
            " -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
        }
        names = [f"{self.name}{number}" for number in range(hosts)]
        # Ansible names a connection after address, port and user, which are the same here.
        own = {name: {"ansible_control_path": f"/tmp/bench-{self.port}-{name}"} for name in names}
        stacks = {f"stack_{name}": {"hosts": {name: {}}} for name in names}
        if hosts > 1:
            own = {name: {**own[name], "stack_name": f"stack_{name}"} for name in names}
        groups = ("db", "app", "web", app)
        inventory = {"bench": {"hosts": {name: {**host, **own[name]} for name in names}}, **stacks}
        inventory |= {group: {"hosts": {name: {} for name in names}} for group in groups}
        (folder / "hosts.json").write_text(json.dumps(inventory))
        return folder


@dataclass
class Run:
    """What a run of a playbook took, and what Ansible and the callback `trips` say of it."""

    seconds: float
    cpu_seconds: float  # of the control machine
    report: dict
    tasks: list[dict]

    @property
    def changed(self) -> int:
        return sum(x["changed"] for x in self.report["stats"].values())

    @property
    def trips(self) -> int:
        return sum(x["trips"] for x in self.tasks)

    @property
    def tasks_on_server(self) -> int:
        return sum(x["trips"] > 0 for x in self.tasks)

    @property
    def trips_by_role(self) -> dict[str, int]:
        """Return the trips of each role, and as `play` those of the tasks of no role."""
        roles: dict[str, int] = {}
        for task in self.tasks:
            if task["trips"]:
                role = task["role"].rpartition(".")[2] or "play"
                roles[role] = roles.get(role, 0) + task["trips"]
        return roles


def playbook(
    server: Server,
    name: str,
    variables: dict,
    hosts: int = 1,
    app: str = "guestbook",
    **environment: str,
) -> Run:
    """Run a playbook on a server, or on several hosts that are this server."""
    notes = FOLDER / "trips"
    notes.unlink(missing_ok=True)
    callback = {
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "benchmarks/callbacks"),
        "ANSIBLE_CALLBACKS_ENABLED": "trips",
        "BENCH_TRIPS": str(notes),
    }
    began, cpu = time.monotonic(), cpu_of_children()
    output = run(
        Path(sys.executable).parent / "ansible-playbook",
        ROOT / name,
        "--inventory",
        server.inventory(hosts, app),
        "--extra-vars",
        json.dumps(variables),
        cwd=ROOT,
        env={**os.environ, **callback, **environment},
    )
    seconds, cpu = time.monotonic() - began, cpu_of_children() - cpu
    report = json.loads(output[output.index("{") :])
    lines = notes.read_text().splitlines() if notes.exists() else []
    return Run(seconds, cpu, report, tasks_of(map(json.loads, lines)))


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def tasks_of(notes: Iterable[dict]) -> list[dict]:
    """Return the tasks of a run in order, with their trips, from what the callback has noted."""
    notes = list(notes)
    trips = Counter(x["task"] for x in notes if "trip" in x)
    tasks = {x["task"]: x for x in notes if "name" in x}
    # A task that is begun anew for each server is one.
    return [
        {"name": x["name"], "role": x["role"], "trips": trips[uuid]} for uuid, x in tasks.items()
    ]
