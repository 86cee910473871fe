"""Keep a PostgreSQL from starting as a second primary.

The program /usr/local/lib/carafe/postgres-standbys is this file. systemd runs it before it starts a
cluster, such as 17-main, whose standbys stand in /etc/postgresql/17/main/standbys.json. A primary
that was down may have been replaced meanwhile: one of its standbys is on a later timeline then, or
does not let it in any more. Where none of them answers, the cluster starts: a standby that is down
must not take its primary along.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path("/")
REPLACED = 9  # what systemd is told
SECONDS = 10
# Whoever answers so is there, and knows this server no more.
REFUSES = re.compile(
    r"FATAL: .*(pg_hba\.conf|password authentication failed|role .* does not exist)"
)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={"LC_ALL": "C.UTF-8", "LC_MESSAGES": "C", "PATH": "/usr/bin:/bin"},
        check=False,
    )


def timeline(programs: Path, data: Path) -> int:
    """Return the timeline on which a cluster that is down was a primary."""
    said = run(programs / "pg_controldata", data).stdout
    found = re.findall(r"(?m)^Latest checkpoint's TimeLineID: +(\d+)", said)
    # One that was promoted and has made no checkpoint since has left this.
    names = [x.stem for x in data.glob("pg_wal/*.history")]
    return max([*(int(x) for x in found), *(int(x, 16) for x in names)], default=0)


def replaced(programs: Path, mine: int, standbys: Iterable[Mapping[str, Any]]) -> str:
    """Return why this server is the primary no more, '' where nobody says so."""
    for standby in standbys:
        connection = f"--dbname={standby['connection']} replication=true"
        words = ["-XAtq", "-F", " ", connection, "-c", "IDENTIFY_SYSTEM"]
        try:
            done = run(programs / "psql", *words)
        except subprocess.TimeoutExpired:
            continue
        if done.returncode == 0 and int(done.stdout.split()[1]) > mine:
            return f"{standby['name']} is the primary since, on timeline {done.stdout.split()[1]}"
        if done.returncode and (why := REFUSES.search(done.stderr)):
            return f"{standby['name']} does not let this server in any more: {why[0]}"
    return ""


def look(cluster: str) -> str:
    version, _, name = cluster.partition("-")
    try:
        known = json.loads((ROOT / "etc/postgresql" / version / name / "standbys.json").read_text())
    except FileNotFoundError:
        return ""
    programs, data = ROOT / f"usr/lib/postgresql/{version}/bin", Path(known["data"])
    if (data / "standby.signal").exists():
        return ""
    return replaced(programs, timeline(programs, data), known["standbys"])


def main() -> int:
    why = look(sys.argv[1])
    if why:
        print(
            f"PostgreSQL {sys.argv[1]} is not started: {why}. Run site.yml with this server in the"
            " group standby, or promote.yml to have it be the primary again.",
            flush=True,
        )
    return REPLACED if why else 0
