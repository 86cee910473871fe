"""Each documented tag of site.yml alone: a dry run on a bare server, and a run on a live one."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import testinfra
import yaml
from testinfra.host import Host

REPOSITORY = Path(__file__).parents[3]
SCENARIO = Path(__file__).parents[1]
# The name of each role, and what a release takes.
TAGS = [*sorted(x.name for x in (REPOSITORY / "roles").iterdir()), "deploy"]
RECAP = re.compile(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)\s+unreachable=0\s+failed=0", re.MULTILINE)
GUESTBOOK = yaml.safe_load((SCENARIO / "converge.yml").read_text())[0]["vars"]
# A task of the role's own, not the check of its arguments.
TASK = r"TASK \[{} : \w+ \| "
ETC = (
    "find /etc /srv /usr/local -xdev -type f -exec md5sum {} + | sort; dpkg-query -l; id -u deploy"
)

pytestmark = pytest.mark.newest_release


def run(server: str, inventory: Path, *options: str, **variables: str) -> tuple[int, str]:
    """Run site.yml for the guestbook on a server; returns the number of changed tasks."""
    done = subprocess.run(
        [
            *("ansible-playbook", REPOSITORY / "site.yml", "--limit", server),
            *("--inventory", inventory, *options),
            *("--extra-vars", json.dumps(GUESTBOOK | variables)),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"},
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    (changed,) = (x[1] for x in RECAP.findall(output) if x[0] == server)
    return int(changed), output


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Path]]:
    """A server as one rents it, and an inventory that has it."""
    folder = tmp_path_factory.mktemp("bare")
    words = [REPOSITORY / "scripts/server", "up", SCENARIO.name, "bare-13", "13", folder]
    name, port = subprocess.check_output(words, text=True).split()
    try:
        host = {
            "ansible_host": "127.0.0.1",
            "ansible_port": int(port),
            "ansible_user": "deploy",
            "ansible_ssh_private_key_file": str(folder / "id_ed25519"),
            "ansible_become_password": (folder / "become_password").read_text(),
            # Its port on this machine was that of another server yesterday.
            "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=none",
        }
        groups = {x: {"hosts": {"bare-13": {}}} for x in ("guestbook", "db", "app", "web", "bare")}
        inventory = folder / "inventory"
        inventory.mkdir()
        (inventory / "group_vars").symlink_to(REPOSITORY / "group_vars")
        (inventory / "hosts.yml").write_text(
            yaml.safe_dump({"all": {"hosts": {"bare-13": host}}} | groups)
        )
        yield testinfra.get_host(f"docker://{name}"), inventory
    finally:
        subprocess.run(["docker", "rm", "--force", "--volumes", name], check=True)


@pytest.mark.parametrize("tag", TAGS)
def test_a_dry_run_on_a_bare_server(bare: tuple[Host, Path], tag: str) -> None:
    server, inventory = bare
    before = server.check_output(ETC)
    options = ("--check", "--diff", "--tags", tag)
    changed, output = run("bare-13", inventory, *options, stack_name="bare")
    assert changed > 0, output
    assert re.search(TASK.format(tag.replace("deploy", "app")), output), output
    assert server.check_output(ETC) == before


@pytest.mark.parametrize("tag", TAGS)
def test_a_run_on_a_live_server(host: Host, tag: str) -> None:
    inventory = Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent
    changed, output = run(host.check_output("hostname"), inventory, "--tags", tag)
    assert changed == 0, output
    assert re.search(TASK.format(tag.replace("deploy", "app")), output), output
