"""The sample app in a real browser, through nginx and a port that is mapped, as in the lab."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

REPOSITORY = Path(__file__).parents[3]
# By which visitors come, whatever port of this machine Docker maps.
VISITED = "localhost:8443"


# What a browser shows is the app's, and the same on both releases.
@pytest.mark.newest_release
def test_visitor_uses_the_site(published: Callable[[int], str | None], authority: Path) -> None:
    # Chromium gives up when a network of this machine comes or goes, as other scenarios' do.
    for _ in range(5):
        run = subprocess.run(
            [REPOSITORY / "scripts/sample-app", "browser", f"https://{VISITED}", authority],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "E2E_CONNECT": published(443)},
        )
        if "ERR_NETWORK_CHANGED" not in run.stdout:
            break
    assert run.returncode == 0, run.stdout + run.stderr


# With a valid token and cookie, so that nothing but the page that it comes from is in the way.
@pytest.mark.parametrize(
    ("referer", "status"),
    [
        (f"https://{VISITED}/", 401),
        ("https://elsewhere.example/", 400),
        ("https://localhost/", 400),
        ("https://localhost:9443/", 400),
        (f"http://{VISITED}/", 400),
        ("https://localhost.elsewhere.example:8443/", 400),
    ],
)
def test_a_form_is_taken_from_the_page_at_the_visitor_s_own_port_alone(
    site: Callable[..., requests.Response], referer: str, status: int
) -> None:
    token = site("/api/csrf", headers={"Host": VISITED})
    cookie = token.headers["Set-Cookie"].partition(";")[0]
    headers = {"Host": VISITED, "Cookie": cookie, "X-CSRFToken": token.json()["csrf_token"]}
    post = site("/api/posts", method="POST", headers=headers | {"Referer": referer}, json={})
    # 401: past the check, there is nobody who is logged in.
    assert post.status_code == status, post.text
