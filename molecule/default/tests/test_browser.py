"""The sample app in a real browser, through nginx."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]


# What a browser shows is the app's, and the same on both releases.
@pytest.mark.newest_release
def test_visitor_uses_the_site(published: Callable[[int], str | None], authority: Path) -> None:
    url = f"https://{published(443)}".replace("127.0.0.1", "localhost")
    # Chromium gives up when a network of this machine comes or goes, as other scenarios' do.
    for _ in range(5):
        run = subprocess.run(
            [REPOSITORY / "scripts/sample-app", "browser", url, authority],
            capture_output=True,
            text=True,
            check=False,
        )
        if "ERR_NETWORK_CHANGED" not in run.stdout:
            break
    assert run.returncode == 0, run.stdout + run.stderr
