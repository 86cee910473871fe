"""Pages, headers and errors, as browsers and caches see them."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, request
from sqlalchemy import update

from guestbook import database, posts
from tests.conftest import Browser, new_app

STATIC = Path(database.__file__).parent / "static"


def move(app: Flask, post_id: int, when: datetime) -> None:
    """Give a post another time."""
    change = update(database.posts).where(database.posts.c.id == post_id).values(created_at=when)
    with app.app_context(), database.transaction() as connection:
        connection.execute(change)


def test_front_page_is_revalidated(browser: Browser) -> None:
    answer = browser.get("/")
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-cache"
    assert "Set-Cookie" not in answer.headers
    again = browser.get("/", headers={"If-None-Match": answer.headers["ETag"]})
    assert again.status_code == 304


@pytest.mark.parametrize("path", ["/api/me", "/api/posts", "/api/csrf", "/api/nothing", "/nothing"])
def test_what_may_be_personal_is_never_cached(june: Browser, path: str) -> None:
    assert june.get(path).headers["Cache-Control"] == "private, no-store"


def test_archive_for_anonymous_readers_may_be_cached(june: Browser, browser: Browser) -> None:
    june.post("Hello")
    answer = browser.get("/archive")
    assert answer.headers["Cache-Control"] == "public, max-age=10"
    assert "Set-Cookie" not in answer.headers
    # The next reader through the same cache may be a writer.
    assert answer.headers["Vary"] == "Cookie"


def test_archive_for_writers_is_not_cached(june: Browser) -> None:
    answer = june.get("/archive")
    assert answer.headers["Cache-Control"] == "private, no-store"
    assert "Set-Cookie" not in answer.headers


def test_archive_groups_posts_by_month(app: Flask, june: Browser) -> None:
    for number, when in enumerate([datetime(2026, 4, 30, 23, 59), datetime(2026, 5, 1)]):
        move(app, june.post(f"post {number}").get_json()["id"], when.replace(tzinfo=UTC))
    html = june.get("/archive").get_data(as_text=True)
    assert re.findall(r"<h2[^>]*>(.*?)</h2>|post (\d)</p>", html) == [
        ("May 2026", ""),
        ("", "1"),
        ("April 2026", ""),
        ("", "0"),
    ]
    april = june.get("/archive?month=2026-04").get_data(as_text=True)
    assert "post 0" in april
    assert "post 1" not in april


def test_times_are_in_utc_whatever_the_database_says(app: Flask, june: Browser) -> None:
    post_id = june.post("Hello").get_json()["id"]
    move(app, post_id, datetime(2026, 4, 30, 20, 15, tzinfo=UTC))
    url = app.config["DATABASE_URL"]
    tokyo = new_app(f"{url}{'&' if '?' in url else '?'}options=-ctimezone%3DAsia/Tokyo")
    client = tokyo.test_client()
    post = client.get("/api/posts").get_json()["posts"][0]
    assert post["created_at"] == "2026-04-30T20:15:00+00:00"
    html = client.get("/archive").get_data(as_text=True)
    assert "April 2026</h2>" in html
    assert "30 Apr, 20:15" in html
    assert 'month=2026-04">' in html
    with tokyo.app_context():
        database.engine().dispose()


def test_archive_can_be_paged_to_its_end(app: Flask, june: Browser) -> None:
    start = datetime(2026, 12, 31, tzinfo=UTC)
    for number in range(65):
        post_id = june.post(f"post {number}.").get_json()["id"]
        move(app, post_id, start + timedelta(minutes=number))
    path, seen = "/archive?month=2026-12", []
    while path:
        html = june.get(path).get_data(as_text=True)
        seen += re.findall(r"post (\d+)\.</p>", html)
        following = re.search(r'href="([^"]+)" rel="next"', html)
        path = following[1].replace("&amp;", "&") if following else ""
    assert seen == [str(number) for number in range(64, -1, -1)]


@pytest.mark.parametrize("query", ["month=2026-13", "month=x", "month=%00", "before=x", "before=0"])
def test_archive_page_that_cannot_exist(browser: Browser, query: str) -> None:
    assert browser.get(f"/archive?{query}").status_code == 404


def test_archive_escapes_what_users_wrote(june: Browser) -> None:
    june.post("<script>alert(1)</script>")
    assert "<script>" not in june.get("/archive").get_data(as_text=True)


def test_unknown_page_is_html_and_unknown_api_is_json(browser: Browser) -> None:
    page = browser.get("/nothing")
    assert (page.status_code, page.mimetype) == (404, "text/html")
    assert "never written" in page.get_data(as_text=True)
    api = browser.get("/api/nothing")
    assert (api.status_code, api.mimetype) == (404, "application/json")


def test_wrong_method_names_the_right_ones(browser: Browser) -> None:
    answer = browser.get("/api/login")
    assert answer.status_code == 405
    assert "POST" in answer.headers["Allow"]
    assert answer.get_json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "mimetype"), [("/archive", "text/html"), ("/api/posts", "application/json")]
)
def test_a_bug_is_answered_without_its_details(
    browser: Browser, monkeypatch: pytest.MonkeyPatch, path: str, mimetype: str
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a detail")

    monkeypatch.setattr(posts, "fetch_page", broken)
    monkeypatch.setattr("guestbook.archive.fetch_page", broken)
    answer = browser.get(path)
    assert (answer.status_code, answer.mimetype) == (500, mimetype)
    assert "a detail" not in answer.get_data(as_text=True)


@pytest.mark.parametrize("path", ["/", "/archive", "/nothing", "/api/posts", "/static/app.js"])
def test_policy_forbids_what_is_not_ours(browser: Browser, path: str) -> None:
    policy = browser.get(path).headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("path", ["/", "/archive", "/nothing"])
def test_pages_hold_nothing_inline_and_nothing_foreign(june: Browser, path: str) -> None:
    june.post("Hello")
    html = june.get(path).get_data(as_text=True)
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|https?://|<script>", html)


def test_proxied_scheme_and_host_reach_the_app(app: Flask) -> None:
    other = new_app(app.config["DATABASE_URL"])
    other.add_url_rule("/seen", view_func=lambda: f"{request.url} {request.remote_addr}")
    answer = other.test_client().get(
        "/seen",
        headers={
            "X-Forwarded-Proto": "https",
            "X-Forwarded-Host": "book.example",
            "X-Forwarded-For": "203.0.113.9, 198.51.100.7",
        },
    )
    # The last address is the one that our proxy wrote; those before it are the client's claim.
    assert answer.get_data(as_text=True) == "https://book.example/seen 198.51.100.7"


def test_change_over_https_needs_no_referrer(browser: Browser) -> None:
    browser.token = browser.get("/api/csrf").get_json()["csrf_token"]
    answer = browser.change(
        "POST",
        "/api/signup",
        {"name": "June", "password": "correct horse battery"},
        headers={"X-Forwarded-Proto": "https"},
    )
    assert answer.status_code == 201
