"""Tables of others, and what a reboot leaves of all."""

import pytest

from test_changes import LOCKED, NEIGHBOUR, OTHERS

BANNED = ("10.9.0.130", "10.9.0.1")
SIBLING = {"12": "13", "13": "12"}


@pytest.fixture
def others(host):
    """Tell whether the tables of others are as they were made."""
    host.check_output(f"nft list table ip other 2>/dev/null || nft -f - <<'END'\n{OTHERS}\nEND")

    def there():
        assert "hook forward" in host.check_output("nft list table ip other")
        assert "10.9.0.130" in host.check_output("nft list table inet f2b-table")
        return True

    assert there()
    return there
