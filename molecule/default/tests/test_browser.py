"""The sample app in a real browser, through nginx."""

import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]


def test_visitor_uses_the_site(docker_name: str) -> None:
    mapping = subprocess.run(
        ["docker", "port", docker_name, "80"], capture_output=True, text=True, check=True
    ).stdout
    url = f"http://localhost:{mapping.split()[0].rpartition(':')[2]}"
    run = subprocess.run(
        [REPOSITORY / "scripts/sample-app", "browser", url],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
