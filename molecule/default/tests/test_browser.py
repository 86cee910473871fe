"""The sample app in a real browser, through nginx."""

import subprocess
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]


def test_visitor_uses_the_site(published: Callable[[int], str | None], authority: Path) -> None:
    url = f"https://{published(443)}".replace("127.0.0.1", "localhost")
    run = subprocess.run(
        [REPOSITORY / "scripts/sample-app", "browser", url, authority],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
