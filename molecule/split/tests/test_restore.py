"""What somebody has deleted comes back, on servers of its own each, and a visitor sees it."""

import json
import re
import secrets
import subprocess
from collections.abc import Callable
from pathlib import Path

import requests
from conftest import REPOSITORY
from testinfra.host import Host

PSQL = "cd /; runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1"
BACKUP = "/var/lib/carafe/backup"


def write(url: str) -> str:
    """Sign the book; returns the line."""
    visitor, text = requests.Session(), f"A line of {secrets.token_hex(4)}"
    name = {"name": f"ada-{secrets.token_hex(4)}", "password": "correct horse", "ink": "moss"}
    for path, data in (("signup", name), ("posts", {"body": text})):
        token = visitor.get(f"{url}/api/csrf", timeout=30).json()["csrf_token"]
        headers = {"X-CSRFToken": token}
        answer = visitor.post(f"{url}/api/{path}", json=data, headers=headers, timeout=30)
        assert answer.ok, answer.text
    return text


def seen(url: str, profile: Path) -> str:
    """Return what a browser makes of the page."""
    browser = subprocess.run(
        [REPOSITORY / "scripts/browser"], capture_output=True, text=True, check=True
    ).stdout.strip()
    switches = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}")
    page = ("--virtual-time-budget=10000", "--dump-dom", url)
    return subprocess.run(
        [browser, *switches, *page], capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_a_visitor_sees_what_was_deleted_and_brought_back(
    server: Callable[[str], Host],
    url: str,
    playbook: Callable[..., tuple[int, str]],
    eventually: Callable[..., None],
    tmp_path: Path,
) -> None:
    database = server("db")
    # The first one was begun when the servers were made.
    first = f"cat {BACKUP}/database-full.json"
    eventually(lambda: json.loads(database.run(first).stdout or "{}").get("result") == "ok")
    text = write(url)
    assert text in seen(url, tmp_path)
    moment = database.check_output(f"{PSQL} -c 'SELECT clock_timestamp()'")
    database.check_output(f"{PSQL} -d guestbook -c 'DELETE FROM public.posts'")
    assert text not in seen(url, tmp_path)

    code, said = playbook("restore", restore_to=moment)
    assert code != 0, said
    assert "Nothing was touched" in said
    assert "guestbook: 1 transaction with rows written" in said
    assert re.search(r"public[.]posts: \d+ deleted", said)
    assert text not in seen(url, tmp_path)

    code, said = playbook("restore", restore_to=moment, restore_confirm="guestbook")
    assert code == 0, said
    eventually(lambda: text in seen(url, tmp_path), 20)
    kept = f"{PSQL} -c \"SELECT datname FROM pg_database WHERE datname LIKE 'guestbook_before_%'\""
    database.check_output(f"{PSQL} -c 'DROP DATABASE {database.check_output(kept)}'")
