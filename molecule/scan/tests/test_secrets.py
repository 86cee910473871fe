"""Secrets stay where they belong: whatever else a run leaves behind is searched for them.

It brings a second app to the servers, so that only test_shared.py comes after it.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import NAMES, stack
from testinfra.host import Host

SCENARIO = Path(__file__).parents[1]
REPOSITORY = SCENARIO.parents[1]
FINDER = (SCENARIO / "files/find_secrets.py").read_text()
BROKEN = "\nraise RuntimeError('no such luck')\n"


class Finder:
    """Looks for secrets, from its making to the end: at processes, and then into files."""

    def __init__(self, docker_name: str, folder: Path) -> None:
        self.values: dict[str, str] = {}
        home = [os.environ["ANSIBLE_HOME"], str(Path("~/.ansible").expanduser())]
        places = ["/var/log", "/tmp", "/var/tmp", "/root", "/home", "/"]
        python = ["-c", FINDER, str(time.time() - 1)]
        self.searches = [
            [sys.executable, *python, str(folder), *home],
            ["docker", "exec", "--interactive", docker_name, "python3", *python, *places],
        ]

    def fresh(self) -> dict[str, str]:
        """Make another set: for each variable with a secret a string that stands nowhere else."""
        made = {name: secrets.token_hex(24) for name in NAMES}
        self.values |= {
            f"{name}, set {len(self.values) // len(NAMES)}": made[name] for name in NAMES
        }
        return made

    def start(self) -> None:
        """Begin to watch the processes: this machine sees those of its containers, too."""
        self.run = subprocess.Popen(self.searches[0], text=True, stdin=-1, stdout=-1)
        self.run.stdin.write(json.dumps(self.values) + "\n")
        self.run.stdin.flush()

    def found(self) -> set[tuple[str, str]]:
        """End it, search the files of both machines, and tell what was found, and where."""
        here, _ = self.run.communicate()
        assert self.run.returncode == 0
        there = subprocess.run(
            self.searches[1],
            input=json.dumps(self.values) + "\n",
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return {tuple(entry) for output in (here, there) for entry in json.loads(output)}


@pytest.fixture
def finder(docker_name: str, tmp_path: Path) -> Finder:
    """What looks for secrets on the server, and in this test's own folder."""
    return Finder(docker_name, tmp_path / "left")


# What a run leaves behind does not depend on the release.
@pytest.mark.either_release
def test_each_place_is_searched(
    finder: Finder, docker_name: str, host: Host, tmp_path: Path
) -> None:
    left = tmp_path / "left"
    left.mkdir()
    values = finder.fresh()
    finder.start()
    for name in ("output", "retry"):
        (left / name).write_text(f"x{values['app_config']}x")
    # Not by testinfra, whose own processes would have the secret in their arguments.
    script = """
    read -r config key token
    for folder in /var/log /etc /root; do printf %s "$config" >$folder/leak; done
    chmod 600 /var/log/leak /root/leak
    printf %s "$key" | systemd-cat
    # As long as the search takes.
    exec python3 -c 'import sys; print("done", flush=True); sys.stdin.read()' "$token"
    """
    said = " ".join(values[x] for x in ("app_config", "app_secret_key", "app_environment"))
    command = ["docker", "exec", "--interactive", docker_name, "sh", "-c", script]
    with subprocess.Popen(command, text=True, stdin=-1, stdout=-1) as leak:
        leak.stdin.write(f"{said}\n")
        leak.stdin.flush()
        assert leak.stdout.readline() == "done\n"
        found = finder.found()
    host.check_output("rm /var/log/leak /etc/leak /root/leak")
    files = {str(left / "output"), str(left / "retry"), "/var/log/leak", "/etc/leak", "/root/leak"}
    assert found == {
        *(("app_config, set 0", place) for place in files),
        ("app_secret_key, set 0", "the journal"),
        ("app_environment, set 0", "the arguments of python3"),
    }


@pytest.mark.either_release
def test_secrets_are_nowhere_else(
    finder: Finder,
    playbook: Callable[..., int],
    host: Host,
    authority: str,
    tmp_path: Path,
    show: Callable[..., None],
) -> None:
    first, second = (stack(host, finder.fresh(), authority) for _ in range(2))
    # A line of its key is enough.
    finder.values["internal_tls_ca_key"] = authority.partition("PRIVATE KEY-----\n")[2].split()[0]
    code = Path(shutil.copytree(REPOSITORY / "sample_app", tmp_path / "code"))
    finder.start()
    # On a bare server, and on a live one whose secrets are to change.
    assert playbook("site", **first) == 0
    assert playbook("site", "--check", **second) == 0
    assert playbook("site", **second) == 0
    (code / "wsgi.py").write_text((code / "wsgi.py").read_text() + "# another release\n")
    assert playbook("playbooks/deploy", **second, app_path=str(code)) == 0
    assert playbook("playbooks/rollback", **second) == 0
    # Errors tell what they know.
    (code / "wsgi.py").write_text((code / "wsgi.py").read_text() + BROKEN)
    assert playbook("playbooks/deploy", **second, app_path=str(code)) != 0
    wrong = {"app_environment": second["app_secret_key"], "app_config": second["app_secret_key"]}
    assert playbook("playbooks/preflight", **second | wrong) != 0
    found = finder.found()
    show("secrets found where they do not belong", len(found), "0", not found)
    assert found == set()
    # They are where they do.
    kept = host.check_output("cd /srv/canary/serving && cat secrets environment")
    assert second["app_secret_key"] in kept
    assert second["database_password"] in kept
