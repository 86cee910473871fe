"""Accounts, sessions and CSRF."""

from collections.abc import Callable

import pytest
from flask import Flask
from sqlalchemy import select

from guestbook import database
from tests.conftest import PASSWORD, Browser, new_app


def test_sign_up_logs_in(browser: Browser) -> None:
    answer = browser.sign_up("June", ink="moss")
    assert answer.status_code == 201
    assert answer.get_json()["user"] == {"name": "June", "ink": "moss"}
    assert browser.get("/api/me").get_json() == {"user": {"name": "June", "ink": "moss"}}


def test_nobody_is_logged_in_at_first(browser: Browser) -> None:
    assert browser.get("/api/me").get_json() == {"user": None}


def test_log_out_forgets_the_user(june: Browser) -> None:
    assert june.change("POST", "/api/logout").status_code == 204
    assert june.get("/api/me").get_json() == {"user": None}


def test_log_in_from_another_browser(june: Browser, browser: Browser) -> None:
    assert browser.log_in("June").status_code == 200
    assert browser.get("/api/me").get_json()["user"]["name"] == "June"


@pytest.mark.parametrize("spelling", ["june", "JUNE", " June "])
def test_log_in_with_another_spelling(june: Browser, browser: Browser, spelling: str) -> None:
    assert browser.log_in(spelling).status_code == 200


@pytest.mark.parametrize(("name", "password"), [("June", "wrong password"), ("May", PASSWORD)])
def test_refused_login_does_not_say_what_was_wrong(
    june: Browser, browser: Browser, name: str, password: str
) -> None:
    answer = browser.log_in(name, password)
    assert answer.status_code == 401
    assert answer.get_json()["error"]["message"] == "The name or the password is wrong."
    assert browser.get("/api/me").get_json() == {"user": None}


@pytest.mark.parametrize("name", ["June", "june", "ＪＵＮＥ"])
def test_a_name_is_taken_in_every_spelling(june: Browser, browser: Browser, name: str) -> None:
    answer = browser.sign_up(name)
    assert answer.status_code == 409
    assert answer.get_json()["error"]["field"] == "name"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "   "),
        ("name", "J"),
        ("name", "J" * 31),
        ("name", "two words"),
        ("name", "<b>June</b>"),
        ("name", "Ju\0ne"),
        ("name", "Ju\ud800ne"),
        ("name", 7),
        ("name", None),
        ("password", "too short"),
        ("password", "p" * 201),
        ("password", "long enough\0 but"),
        ("password", ["a", "list"]),
        ("ink", "invisible"),
        ("ink", ["moss"]),
    ],
)
def test_unusable_sign_up_is_refused(browser: Browser, field: str, value: object) -> None:
    answer = browser.change(
        "POST", "/api/signup", {"name": "June", "password": PASSWORD, field: value}
    )
    assert answer.status_code == 400
    assert answer.get_json()["error"]["field"] == field
    assert answer.get_json()["error"]["message"].endswith(".")


def test_longest_name_is_stored(browser: Browser) -> None:
    # Case folding turns this letter into two.
    assert browser.sign_up("ß" * 30).status_code == 201


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/signup"),
        ("POST", "/api/login"),
        ("POST", "/api/logout"),
        ("POST", "/api/posts"),
        ("DELETE", "/api/posts/1"),
    ],
)
@pytest.mark.parametrize("token", [None, "forged"])
def test_change_without_a_valid_token_is_refused(
    june: Browser, method: str, path: str, token: str | None
) -> None:
    headers = {"X-CSRFToken": token} if token else {}
    answer = june.open(path, method=method, json={"body": "x"}, headers=headers)
    assert answer.status_code == 400
    assert answer.get_json()["error"]["field"] == "csrf_token"
    assert june.get("/api/me").get_json()["user"] is not None


def test_token_of_another_session_is_refused(june: Browser, browser: Browser) -> None:
    browser.get("/api/csrf")
    browser.token = june.token
    assert browser.sign_up("May").status_code == 400


def test_token_from_before_login_is_void(browser: Browser) -> None:
    before = browser.get("/api/csrf").get_json()["csrf_token"]
    browser.sign_up("June")
    assert browser.post("x", headers={"X-CSRFToken": before}).status_code == 400


def test_password_is_stored_as_a_salted_hash(
    app: Flask, new_browser: Callable[[], Browser]
) -> None:
    new_browser().sign_up("June")
    new_browser().sign_up("May")
    with app.app_context(), database.transaction() as connection:
        first, second = connection.scalars(select(database.users.c.password_hash))
    assert PASSWORD not in first
    assert first.startswith("scrypt:")
    assert first != second


def test_session_of_a_deleted_account_is_anonymous(app: Flask, june: Browser) -> None:
    with app.app_context(), database.transaction() as connection:
        connection.execute(database.users.delete())
    assert june.get("/api/me").get_json() == {"user": None}
    assert june.post("x").status_code == 401


@pytest.mark.parametrize("secure", [True, False])
def test_session_cookie_flags(app: Flask, secure: bool) -> None:
    other = new_app(app.config["DATABASE_URL"], SESSION_COOKIE_SECURE=secure)
    cookie = other.test_client().get("/api/csrf").headers["Set-Cookie"]
    assert "; HttpOnly" in cookie
    assert "; SameSite=Lax" in cookie
    assert ("; Secure" in cookie) is secure


def test_forged_session_is_anonymous(app: Flask, june: Browser, browser: Browser) -> None:
    genuine = june.get_cookie("session")
    assert genuine is not None
    browser.set_cookie("session", genuine.value[:-3] + "AAA")
    assert browser.get("/api/me").get_json() == {"user": None}
