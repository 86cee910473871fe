"""What the scanners share: the server that they run on, and the table of what they have found."""

import json
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import testinfra
import yaml
from testinfra.host import Host

SCENARIO = Path(__file__).parents[1]
REPOSITORY = SCENARIO.parents[1]
BARS = yaml.safe_load((SCENARIO / "files/bars.yml").read_text())
ROW = "row of the table"
VARIABLES = yaml.safe_load((SCENARIO / "converge.yml").read_text())[0]["vars"]
NAMES = (
    *("app_secret_key", "app_secret_key_fallbacks", "app_environment", "app_config"),
    *("app_migrate_environment", "app_install_environment"),
    *("database_password", "database_migrate_password"),
)

# What a dependency of the second app tries while it is built, what it leaves behind, and where it
# writes down what it got.
OWN = "/srv/canary/settings/*/migrate.*"
BUILD_TRIES = {
    "read a secret of its own app": f"grep -hoE 'canary-deploy:[0-9a-f]{{48}}@' {OWN}",
    "enter the database of its own app": "psql -X -c 'SELECT 1' canary",
    "see what others run": "cat /proc/1/cmdline",
}
BUILD_LEAVES = "setsid sleep 73312 >/dev/null 2>&1 & touch /tmp/left-by-a-build"
BUILD_WROTE = "/srv/canary/cache/tried-%s"


@pytest.fixture
def release(host: Host) -> str:
    """Debian's release on the server that is scanned."""
    return host.check_output("hostname").removeprefix("scan-")


@pytest.fixture
def scanner(docker_name: str, release: str) -> Host:
    """Get the server that scans; there, the scanned one is known by the name of its site."""
    scanner = testinfra.get_host(f"docker://{docker_name.removesuffix(f'scan-{release}')}scanner")
    scanner.check_output(
        "grep -q ' %s.test$' /etc/hosts ||"
        " echo $(getent hosts %s | cut -d ' ' -f 1) %s.test >>/etc/hosts",
        *[f"scan-{release}"] * 3,
    )
    authority = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / f"scan-{release}-ca.crt"
    subprocess.run(
        ["docker", "cp", "--quiet", authority, f"{scanner.backend.name}:/root/scan-{release}.crt"],
        check=True,
    )
    return scanner


@pytest.fixture
def show(record_property: Callable[[str, Any], None], release: str) -> Callable[..., None]:
    """Put a row into the table: what was measured, the figure, its bar, whether it is kept."""

    def add(what: str, figure: object, bar: str, kept: bool | None, waived: int = 0) -> None:
        verdict = {True: "passed", False: "FAILED", None: ""}[kept]
        record_property(ROW, [what, f"Debian {release}", str(figure), bar, verdict, waived])

    return add


@pytest.fixture
def playbook(host: Host, tmp_path: Path) -> Callable[..., int]:
    """Run a playbook with all that may be told, kept and logged; returns the exit status."""
    left = tmp_path / "left"
    left.mkdir()
    values = tmp_path / "variables.json"

    def run(name: str, *options: str, **variables: object) -> int:
        values.write_text(json.dumps(VARIABLES | variables))
        with (left / "output").open("a") as output:
            done = subprocess.run(
                [
                    *("ansible-playbook", REPOSITORY / f"{name}.yml", "-vvv", "--diff", *options),
                    *("--inventory", Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent),
                    *("--limit", host.check_output("hostname"), "--extra-vars", f"@{values}"),
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
                env=os.environ
                | {
                    "ANSIBLE_STRATEGY": "linear",
                    "ANSIBLE_LOG_PATH": str(left / "log"),
                    "ANSIBLE_CACHE_PLUGIN": "jsonfile",
                    "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(left / "facts"),
                    "ANSIBLE_RETRY_FILES_ENABLED": "true",
                    "ANSIBLE_RETRY_FILES_SAVE_PATH": str(left / "retry"),
                },
            )
        return done.returncode

    return run


@pytest.fixture
def authority(tmp_path: Path) -> str:
    """The CA that servers of a stack know each other by, with its key."""
    file = tmp_path / "authority.pem"
    content = "content=\"{{ lookup('carafe.stack.internal_ca') }}\""
    copy = ["--module-name=ansible.builtin.copy", f"--args=dest={file} mode=600 {content}"]
    subprocess.run(["ansible", "localhost", *copy], check=True)
    return file.read_text()


def stack(host: Host, values: dict[str, str], authority: str) -> dict[str, object]:
    """A second app, to which the server is bare, and the database as if on another one."""
    return {
        "app_name": "canary",
        "app_domains": ["canary.test"],
        "stack_is_one_server": False,
        # No secret of the app comes near them.
        "stack_server_roles": [],
        "private_address": host.check_output("hostname -I").split()[0],
        "app_hooks": {
            "after_build": [
                *(
                    f"(sh -c {shlex.quote(tried)} && echo got it || echo got nothing)"
                    f" >{BUILD_WROTE % number} 2>&1"
                    for number, tried in enumerate(BUILD_TRIES.values())
                ),
                BUILD_LEAVES,
            ]
        },
        "app_secret_key": values["app_secret_key"],
        "app_secret_key_fallbacks": [values["app_secret_key_fallbacks"]],
        "app_environment": {
            "DATABASE_URL": "{{ stack_database_url }}",
            "TOKEN": values["app_environment"],
        },
        "app_config": {"MAIL_PASSWORD": values["app_config"]},
        "app_migrate_environment": {
            "DATABASE_URL": "{{ stack_database_migrate_url }}",
            "TOKEN": values["app_migrate_environment"],
        },
        "app_install_environment": {"TOKEN": values["app_install_environment"]},
        "database_password": values["database_password"],
        "database_migrate_password": values["database_migrate_password"],
        "internal_tls_ca_key": authority,
    }


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table."""
    rows = [
        row
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, row in getattr(report, "user_properties", ())
        if name == ROW and getattr(report, "when", "") == "call"
    ]
    terminalreporter.section("what the scanners have found")
    line = "{:<60} {:<10} {:>14} {:>12}  {:<7} {}"
    terminalreporter.line(line.format("", "", "figure", "bar", "", "waived, see bars.yml"))
    for *row, waived in sorted(rows):
        terminalreporter.line(line.format(*row, waived or "").rstrip())
