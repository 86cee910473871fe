"""Bare servers in containers, and the ways to work on them that are measured."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RELEASE = os.environ.get("BENCH_RELEASE", "13")
# The last is a plugin of this repository, which reads what was gathered before.
NOT_ON_THE_SERVER = {
    *("validate_argument_spec", "assert", "fail", "debug", "set_fact", "meta"),
    "preflight",
}


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

    def __init__(self, name: str, folder: Path) -> None:
        published = "--publish=127.0.0.1::80"
        answer = run(ROOT / "scripts/server", "up", "bench", name, RELEASE, folder, published)
        self.container, self.port = answer.split()
        self.folder, self.name = folder, name
        self.http_port = run("docker", "port", self.container, "80").split(":")[-1].strip()
        self.inside("cp -r /home/deploy/.ssh /root && chown -R root:root /root/.ssh")
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

    def inventory(self) -> Path:
        """Write the inventory that describes this server, as inventory/lab does the lab's."""
        folder = self.folder / f"inventory-{self.name}"
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
        groups = {group: {"hosts": {self.name: {}}} for group in ("db", "app", "web", "guestbook")}
        (folder / "hosts.json").write_text(
            json.dumps({"bench": {"hosts": {self.name: host}}, **groups})
        )
        return folder


def playbook(server: Server, name: str, variables: dict, **environment: str) -> tuple[float, dict]:
    """Run a playbook; the seconds it took, and what Ansible reports of every task."""
    began = time.monotonic()
    output = run(
        Path(sys.executable).parent / "ansible-playbook",
        ROOT / name,
        "--inventory",
        server.inventory(),
        "--extra-vars",
        json.dumps(variables),
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json", **environment},
    )
    return time.monotonic() - began, json.loads(output[output.index("{") :])


def tasks_on_server(report: dict) -> int:
    """Count the tasks that ran on the server: not skipped, not on the control machine."""
    count = 0
    for play in report["plays"]:
        for task in play["tasks"]:
            for result in task["hosts"].values():
                action = result.get("action", "").rpartition(".")[2]
                elsewhere = "_ansible_delegated_vars" in result
                if not (result.get("skipped") or elsewhere or action in NOT_ON_THE_SERVER):
                    count += 1
    return count
