"""Clients that hold on to a connection, and say next to nothing."""

import json
from pathlib import Path

import pytest

SLOW = (Path(__file__).parents[2] / "slow.py").read_text()


# The latencies are for a machine that does nothing else; here, only what fails is a failure.
@pytest.mark.either_release
@pytest.mark.parametrize("mode", ["headers", "body"])
def test_a_thousand_slow_clients_keep_nobody_else_out(host, mode):
    # Docker writes this file anew when the server is restarted.
    host.check_output("grep -q ' app.test' /etc/hosts || echo '127.0.0.1 app.test' >>/etc/hosts")
    result = json.loads(host.check_output("python3 -c %s %s http://app.test/ 1000 8", SLOW, mode))
    print(f"{mode}: {result}")
    assert result["slow"] >= 1000
    assert result["failures"] == 0, result
