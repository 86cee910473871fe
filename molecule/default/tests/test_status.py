"""The screen of the status, of a server that is live: what is down is red, and so ends the run."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
from testinfra.host import Host

REPOSITORY = Path(__file__).parents[3]


def status(host: Host, folder: Path) -> tuple[int, dict[tuple[str, str], dict[str, Any]]]:
    """Return how the playbook ends, and its rows by app and by what they are of."""
    server, file = host.check_output("hostname"), folder / "status.json"
    done = subprocess.run(
        [
            *("ansible-playbook", REPOSITORY / "playbooks/status.yml"),
            *("--inventory", Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent),
            *("--limit", server, "--extra-vars", json.dumps({"status_file": str(file)})),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "changed=0 " in done.stdout, done.stdout + done.stderr
    rows = json.loads(file.read_text())["hosts"][server]
    assert all(f"{row['level']:<6}  {row['what']}" in done.stdout for row in rows)
    return done.returncode, {(row["app"], row["what"]): row for row in rows}


def test_what_is_down_is_red_until_its_command_was_run(
    host: Host,
    site: Callable[..., requests.Response],
    eventually: Callable[..., None],
    tmp_path: Path,
) -> None:
    host.check_output("supervisorctl stop guestbook:guestbook_1")
    code, rows = status(host, tmp_path)
    assert code == 2
    assert (rows["guestbook", "slot 1"]["level"], rows["guestbook", "slot 0"]["level"]) == (
        "red",
        "green",
    )
    host.check_output(rows["guestbook", "slot 1"]["next"])
    code, rows = status(host, tmp_path)
    assert code < 2
    assert {row["level"] for (app, what), row in rows.items() if "slot" in what} == {"green"}
    # What is well is told of, and what nobody has set up is no green: there is no backup yet.
    assert rows["", "certificate guestbook"]["level"] == "green"
    assert rows["", "connections"]["level"] == "green"
    assert site("/readyz").status_code == 200


def test_a_prometheus_finds_the_app_and_what_it_builds_on(host: Host) -> None:
    host.check_output("systemctl start metrics.service")
    program = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode())"
    ask = "python3 -c %s http://127.0.0.1:%s/metrics"
    text = "\n".join(host.check_output(ask, program, port) for port in ("9100", "9187", "9113"))
    for known in (
        r'carafe_status{app="guestbook",what="slot 0"} 0',
        r'carafe_status{app="neighbour",what="slot 0"} 0',
        r'carafe_release_deployed_timestamp_seconds{app="guestbook",release="\w+.*"} .+',
        r'carafe_certificate_end_timestamp_seconds{app="",what="certificate guestbook"} .+',
        "pg_up 1",
        r'pg_stat_database_numbackends{.*datname="guestbook".*} .+',
        "nginx_up 1",
    ):
        assert re.search(f"^{known}$", text, re.M), known
