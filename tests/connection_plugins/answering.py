"""Servers that are none: each module gets the answer that a test has for it, and is noted."""

from __future__ import annotations

import ast
import json
import os
import re
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection import ConnectionBase

DOCUMENTATION = """
name: answering
short_description: Servers that are none
description: [Each module gets the answer that a test has for it.]
options: {}
"""
# As Ansible sends a module that goes by a pipe.
MODULE = re.compile(r"module_fqn='[\w.]+\.(\w+)'")
PARAMETERS = re.compile(r"\bparams=(r?'(?:[^'\\]|\\.)*'|r?\"(?:[^\"\\]|\\.)*\")")
JOB = {"changed": True, "started": 1, "finished": 0, "ansible_job_id": "1", "results_file": "/x"}


class Connection(ConnectionBase):
    """What a test says is in the file that ANSWERS names: answers, by server and module.

    A step of a module's is told after its name. What has no answer has changed nothing; where it is
    none, or a server has none at all, it cannot be reached from then on. Each call is a line in the
    file that CALLS names.
    """

    transport = "answering"
    has_pipelining = True

    def _connect(self) -> Connection:
        return self

    def close(self) -> None:
        pass

    def put_file(self, in_path: str, out_path: str) -> None:
        pass

    def fetch_file(self, in_path: str, out_path: str) -> None:
        pass

    def exec_command(
        self, cmd: str, in_data: bytes | None = None, sudoable: bool = True
    ) -> tuple[int, bytes, bytes]:
        if not in_data:
            # A job of its own comes as a file, in a folder that is asked for before.
            folder = re.search(r"(ansible-tmp-[\d.-]+)=", cmd)
            begins = "AnsiballZ_" in cmd and "chmod" not in cmd
            said = json.dumps(JOB) if begins else f"{folder[1]}=/tmp/x" if folder else "/tmp"
            return 0, said.encode(), b""
        text, host = in_data.decode(), self._play_context.remote_addr
        name = MODULE.search(text)[1]
        given = json.loads(ast.literal_eval(PARAMETERS.search(text)[1]))["ANSIBLE_MODULE_ARGS"]
        arguments = {k: v for k, v in given.items() if not k.startswith("_ansible")}
        with Path(os.environ["CALLS"]).open("a") as calls:
            calls.write(json.dumps([host, name, arguments]) + "\n")
        return 0, json.dumps({"changed": False} | self.answer(host, name, arguments)).encode(), b""

    def answer(self, host: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        answers = json.loads(Path(os.environ["ANSWERS"]).read_text())
        if host not in answers:
            raise AnsibleConnectionFailure(f"{host} does not answer")
        of_host = answers["all"] | answers[host]
        found = of_host.get(f"{name} {arguments.get('step')}", of_host.get(name, {}))
        if found is None:
            raise AnsibleConnectionFailure(f"{host} does not answer any more")
        return found
