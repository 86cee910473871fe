"""What the scanners share: the server that they run on, and the table of what they have found."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import testinfra
import yaml
from testinfra.host import Host

BARS = yaml.safe_load((Path(__file__).parents[1] / "files/bars.yml").read_text())
ROW = "row of the table"


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
