"""Posts: reading, writing, deleting, and what the API refuses."""

from collections.abc import Callable

import pytest

from tests.conftest import Browser


def test_a_post_can_be_read_by_everyone(june: Browser, browser: Browser) -> None:
    written = june.post("Hello\r\nthere ")
    assert written.status_code == 201
    listed = browser.get("/api/posts").get_json()["posts"]
    assert listed == [written.get_json()]
    assert listed[0]["body"] == "Hello\nthere"
    assert listed[0]["author"] == "June"


def test_only_users_write(browser: Browser) -> None:
    assert browser.post("Hello").status_code == 401
    assert browser.get("/api/posts").get_json()["posts"] == []


@pytest.mark.parametrize(
    "body", ["", " \n\t ", "x" * 1001, "a\0b", "a\ud800b", None, 5, ["x"], {"a": 1}]
)
def test_unusable_body_is_refused(june: Browser, body: object) -> None:
    answer = june.post(body)
    assert answer.status_code == 400
    assert answer.get_json()["error"]["field"] == "body"


@pytest.mark.parametrize("body", ["x" * 1000, "𝒳" * 1000, "<script>alert(1)</script>", "\u202e"])
def test_unusual_body_is_stored_as_it_is(june: Browser, body: str) -> None:
    assert june.post(body).status_code == 201
    assert june.get("/api/posts").get_json()["posts"][0]["body"] == body


@pytest.mark.parametrize("data", ["", "{", "[]", "null", '"text"', "\xff", "[" * 50_000])
def test_invalid_json_is_refused(june: Browser, data: str) -> None:
    answer = june.open(
        "/api/posts",
        method="POST",
        data=data.encode("latin-1"),
        content_type="application/json",
        headers={"X-CSRFToken": june.token},
    )
    assert answer.status_code == 400
    assert answer.get_json()["error"]["message"] == "The body must be a JSON object."


def test_form_instead_of_json_is_refused(june: Browser) -> None:
    answer = june.open(
        "/api/posts", method="POST", data={"body": "x"}, headers={"X-CSRFToken": june.token}
    )
    assert answer.status_code == 415
    assert "application/json" in answer.get_json()["error"]["message"]


def test_huge_request_is_refused(june: Browser) -> None:
    answer = june.post("x" * 70_000)
    assert answer.status_code == 413
    assert answer.get_json()["error"]["message"]


def test_pages_join_without_gap_or_repeat_while_posts_arrive(june: Browser) -> None:
    written = [june.post(f"post {number}").get_json()["id"] for number in range(7)]
    first = june.get("/api/posts?limit=3").get_json()
    june.post("arrives between two pages")
    second = june.get(f"/api/posts?limit=3&before={first['next_before']}").get_json()
    third = june.get(f"/api/posts?limit=3&before={second['next_before']}").get_json()
    seen = [post["id"] for page in (first, second, third) for post in page["posts"]]
    assert seen == written[::-1]
    assert third["next_before"] is None


def test_full_last_page_has_no_next(june: Browser) -> None:
    june.post("one")
    june.post("two")
    assert june.get("/api/posts?limit=2").get_json()["next_before"] is None


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=101",
        "limit=x",
        "limit=-1",
        "limit=",
        "limit=１",
        "before=0",
        "before=9223372036854775808",
        "before=99999999999999999999",
        "before=%00",
    ],
)
def test_unusable_page_is_refused(browser: Browser, query: str) -> None:
    answer = browser.get(f"/api/posts?{query}")
    assert answer.status_code == 400
    assert answer.get_json()["error"]["field"] == query.split("=")[0]


def test_own_post_can_be_deleted(june: Browser) -> None:
    post_id = june.post("Hello").get_json()["id"]
    assert june.change("DELETE", f"/api/posts/{post_id}").status_code == 204
    assert june.get("/api/posts").get_json()["posts"] == []


def test_other_users_post_cannot_be_deleted(
    june: Browser, new_browser: Callable[[], Browser]
) -> None:
    post_id = june.post("Hello").get_json()["id"]
    may = new_browser()
    may.sign_up("May")
    assert may.change("DELETE", f"/api/posts/{post_id}").status_code == 403
    assert len(june.get("/api/posts").get_json()["posts"]) == 1


def test_anonymous_reader_cannot_delete(june: Browser, browser: Browser) -> None:
    post_id = june.post("Hello").get_json()["id"]
    assert browser.change("DELETE", f"/api/posts/{post_id}").status_code == 401
    assert len(june.get("/api/posts").get_json()["posts"]) == 1


@pytest.mark.parametrize("post_id", ["404", "9223372036854775808", "0", "word"])
def test_deleting_what_is_not_there(june: Browser, post_id: str) -> None:
    assert june.change("DELETE", f"/api/posts/{post_id}").status_code == 404
