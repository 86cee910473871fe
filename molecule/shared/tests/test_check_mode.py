"""Included in every scenario's verify by .config/molecule/config.yml."""

import os

import pytest


@pytest.mark.parametrize("release", ["12", "13"])
@pytest.mark.skipif(
    "MOLECULE_INVENTORY_FILE" not in os.environ, reason="molecule's inventory is needed"
)
def test_check_mode_finds_nothing_to_change_on_a_converged_server(playbook_check, release):
    counts, output = playbook_check(release)
    assert counts, output
    assert all(not any(count.values()) for count in counts.values()), output
