"""The server's power fails at random moments of a deployment, and comes back."""

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REPOSITORY

SEED = 20261127
CHOICE = random.Random(SEED)
MOMENTS = [round(CHOICE.uniform(1, 25), 1) for _ in range(8)]


@pytest.mark.parametrize("seconds", MOMENTS)
def test_the_power_fails_during_a_deployment(
    tmp_path: Path,
    command: Callable[..., list[str]],
    kill_server: Callable[[], None],
    serves: Callable[[], float],
    books: Callable[[], dict],
    rows: Callable[[], list[str]],
    seconds: float,
) -> None:
    noted, before = books(), set(rows())
    path = tmp_path / "ledger"
    shutil.copytree(REPOSITORY / "molecule/deploy/files/ledger", path)
    (path / "ledger/static/word.css").write_text(f"{seconds}")
    deployment = subprocess.Popen(
        command("deploy", ledger_path=str(path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    time.sleep(seconds)  # the moment at which it happens, not something that is waited for
    is_over = deployment.poll() is not None
    kill_server()
    print(f"power fails after {seconds} s: serves {serves():.1f} s later")
    said = deployment.communicate()[0]
    assert is_over or deployment.returncode != 0, said
    assert set(rows()) >= before
    # What serves is the release before or the new one, and the books say which.
    has = books()
    assert has["serving"] in has["known"] or has["serving"] == noted["serving"]
    again = subprocess.run(
        command("deploy", ledger_path=str(path), app_break_lock=True),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert again.returncode == 0, again.stdout
    serves()
    assert set(rows()) >= before
