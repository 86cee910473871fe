"""testinfra's docker backend, with one ``docker exec`` for all commands instead of one for each."""

import json
import subprocess
import threading
from typing import Any

from testinfra.backend import docker
from testinfra.backend.base import CommandResult

AGENT = """
import json, subprocess, sys
for line in sys.stdin:
    run = subprocess.run(
        ["/bin/sh", "-c", json.loads(line)], stdin=subprocess.DEVNULL, capture_output=True
    )
    # A shell gives a signal's number so.
    status = run.returncode if run.returncode >= 0 else 128 - run.returncode
    output = [text.decode("latin-1") for text in (run.stdout, run.stderr)]
    print(json.dumps([status, *output]), flush=True)
"""
STOPPED = [137, "", "the container was stopped"]


class DockerBackend(docker.DockerBackend):
    """Keeps a process in the container, which runs one command after another."""

    # Of each thread its own, so that none waits for the commands of another.
    agents = threading.local()

    def agent(self) -> subprocess.Popen[str]:
        """Return the process that takes commands: another one after a reboot."""
        known = self.agents.__dict__
        if self.name not in known or known[self.name].poll() is not None:
            known[self.name] = subprocess.Popen(
                ["docker", "exec", "--interactive", self.name, "python3", "-c", AGENT],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        return known[self.name]

    def run(self, command: str, *args: str, **_: Any) -> CommandResult:
        """Run a shell command as root."""
        words = self.get_command(command, *args)
        agent = self.agent()
        try:
            agent.stdin.write(json.dumps(words) + "\n")
            agent.stdin.flush()
            answer = agent.stdout.readline()
        except BrokenPipeError:
            answer = ""
        status, out, err = json.loads(answer) if answer else STOPPED
        return self.result(status, self.encode(words), out.encode("latin-1"), err.encode("latin-1"))
