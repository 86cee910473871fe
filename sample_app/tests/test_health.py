"""Probes."""

import flask_migrate
import pytest
from flask import Flask
from sqlalchemy import text

from guestbook import database
from tests.conftest import new_app

DOWN = "postgresql://nobody@/nothing?host=/nonexistent"


def test_alive_while_the_database_is_down() -> None:
    answer = new_app(DOWN).test_client().get("/healthz")
    assert answer.status_code == 200
    assert answer.get_json() == {"status": "ok"}
    assert answer.headers["Cache-Control"] == "no-store"


def test_alive_names_its_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_RELEASE", "20260501T120000Z")
    answer = new_app(DOWN).test_client().get("/healthz")
    assert answer.get_json() == {"status": "ok", "release": "20260501T120000Z"}


def test_ready(app: Flask) -> None:
    answer = app.test_client().get("/readyz")
    assert answer.status_code == 200
    assert answer.get_json()["status"] == "ok"
    assert answer.headers["Cache-Control"] == "no-store"


def test_not_ready_while_the_database_is_down() -> None:
    answer = new_app(DOWN).test_client().get("/readyz")
    assert answer.status_code == 503
    assert answer.get_json()["reason"] == "The database does not answer."
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("path", "mimetype"), [("/api/posts", "application/json"), ("/archive", "text/html")]
)
def test_a_database_that_is_down_is_said_so(path: str, mimetype: str) -> None:
    answer = new_app(DOWN).test_client().get(path)
    assert (answer.status_code, answer.mimetype) == (503, mimetype)
    assert answer.headers["Retry-After"] == "5"
    assert answer.headers["Cache-Control"] == "private, no-store"


def test_not_ready_before_any_migration(empty_database: str) -> None:
    answer = new_app(empty_database).test_client().get("/readyz")
    assert answer.status_code == 503
    assert "flask db upgrade" in answer.get_json()["reason"]


@pytest.mark.parametrize("newer_allowed", [False, True])
def test_not_ready_on_an_older_schema(empty_database: str, newer_allowed: bool) -> None:
    app = new_app(empty_database, READYZ_ALLOW_NEWER_SCHEMA=newer_allowed)
    with app.app_context():
        flask_migrate.upgrade(revision=database.REVISIONS[0])
    answer = app.test_client().get("/readyz")
    assert answer.status_code == 503
    assert "older" in answer.get_json()["reason"]


@pytest.mark.parametrize(("allowed", "status"), [(False, 503), (True, 200)])
def test_newer_schema_is_ready_only_if_allowed(
    empty_database: str, allowed: bool, status: int
) -> None:
    app = new_app(empty_database, READYZ_ALLOW_NEWER_SCHEMA=allowed)
    with app.app_context():
        flask_migrate.upgrade()
        with database.transaction() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '0003_future'"))
    assert app.test_client().get("/readyz").status_code == status
