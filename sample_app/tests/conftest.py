"""One PostgreSQL for the session, an empty migrated database for each test, and clients."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import flask_migrate
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from werkzeug.test import TestResponse

from guestbook import create_app, database, migrate
from tests.postgres import server

PASSWORD = "correct horse battery"
SECRET_KEY = "only-for-tests-0123456789"


class Browser(FlaskClient):
    """A client that sends the CSRF token with each change, as the page's script does."""

    token = ""

    def change(self, method: str, path: str, data: Any = None, **options: Any) -> TestResponse:
        """Send `data` as JSON, with a token of this client's session."""
        if not self.token:
            self.token = self.get("/api/csrf").get_json()["csrf_token"]
        headers = {"X-CSRFToken": self.token} | options.pop("headers", {})
        response = self.open(path, method=method, json=data, headers=headers, **options)
        self.token = (response.get_json(silent=True) or {}).get("csrf_token", self.token)
        return response

    def sign_up(self, name: str, **extra: Any) -> TestResponse:
        """Create an account with PASSWORD and stay logged in."""
        return self.change("POST", "/api/signup", {"name": name, "password": PASSWORD} | extra)

    def log_in(self, name: str, password: str = PASSWORD) -> TestResponse:
        """Log in."""
        return self.change("POST", "/api/login", {"name": name, "password": password})

    def post(self, body: Any, *_: Any, **options: Any) -> TestResponse:
        """Write a post."""
        return self.change("POST", "/api/posts", {"body": body}, **options)


@pytest.fixture(scope="session")
def database_url() -> Iterator[str]:
    """Return the URL of a database that tests may empty: TEST_DATABASE_URL, or a throwaway one."""
    if given := os.environ.get("TEST_DATABASE_URL"):
        yield given
        return
    with server() as url:
        yield url


@pytest.fixture(scope="session")
def migrated_app(database_url: str) -> Iterator[Flask]:
    """Return an app whose database is at the newest migration."""
    app = new_app(database_url)
    with app.app_context():
        flask_migrate.upgrade()
    yield app
    with app.app_context():
        database.engine().dispose()


@pytest.fixture
def app(migrated_app: Flask) -> Flask:
    """Return an app with an empty database."""
    with migrated_app.app_context(), database.transaction() as connection:
        connection.execute(text("TRUNCATE users, posts RESTART IDENTITY CASCADE"))
    return migrated_app


@pytest.fixture
def new_browser(app: Flask) -> Callable[[], Browser]:
    """Return a function that opens one more browser, with cookies of its own."""
    app.test_client_class = Browser
    return app.test_client


@pytest.fixture
def browser(new_browser: Callable[[], Browser]) -> Browser:
    """Return a browser of a reader who is not logged in."""
    return new_browser()


@pytest.fixture
def june(new_browser: Callable[[], Browser]) -> Browser:
    """Return the browser of June, who is logged in."""
    browser = new_browser()
    assert browser.sign_up("June").status_code == 201
    return browser


@pytest.fixture
def empty_database(database_url: str) -> Iterator[str]:
    """Return the URL of a new database with no table in it."""
    admin = create_engine(
        make_url(database_url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
    )
    name = "guestbook_test_empty"
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
        connection.execute(text(f"CREATE DATABASE {name}"))
        yield make_url(database_url).set(database=name).render_as_string(hide_password=False)
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


def new_app(url: str, **overrides: Any) -> Flask:
    """Build an app for a test, with a hash that costs no time and with `flask db`."""
    app = create_app(
        {
            "TESTING": True,
            # Also in tests an unhandled exception is answered, as it is for a reader.
            "PROPAGATE_EXCEPTIONS": False,
            "SECRET_KEY": SECRET_KEY,
            "DATABASE_URL": url,
            "PASSWORD_HASH_METHOD": "scrypt:1024:8:1",
            "SESSION_COOKIE_SECURE": False,
            **overrides,
        }
    )
    migrate.register(app)
    return app
