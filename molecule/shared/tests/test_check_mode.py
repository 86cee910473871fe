"""Included in every scenario's verify by .config/molecule/config.yml."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One case for each release that there are servers of."""
    known = Path(os.environ.get("MOLECULE_INSTANCE_CONFIG", ""))
    servers = yaml.safe_load(known.read_text()) if known.is_file() else []
    releases = {re.search(r"-(1[23])\b", server["instance"])[1] for server in servers}
    metafunc.parametrize("release", sorted(releases))


def test_check_mode_finds_nothing_to_change_on_a_converged_server(
    playbook_check: Callable[[str], tuple[dict[str, dict[str, int]], str]], release: str
) -> None:
    counts, output = playbook_check(release)
    assert counts, output
    assert all(not any(count.values()) for count in counts.values()), output
