"""Settings from the environment."""

import subprocess
import sys

import pytest

from guestbook import config, create_app

KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what an app needs, and nothing else of ours."""
    monkeypatch.setenv("FLASK_SECRET_KEY", KEY)
    monkeypatch.setenv("DATABASE_URL", "postgresql:///guestbook")


@pytest.mark.parametrize("name", ["FLASK_SECRET_KEY", "DATABASE_URL"])
def test_missing_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv(name)
    with pytest.raises(config.ConfigError, match=f"[Ss]et.*{name}|{name}.*set it"):
        create_app()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FLASK_SECRET_KEY", "short"),
        ("DATABASE_URL", "sqlite:///book.db"),
        ("DATABASE_URL", "postgresql+psycopg2:///guestbook"),
        ("DATABASE_URL", "guestbook"),
    ],
)
def test_unusable_setting_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(config.ConfigError, match=name.removeprefix("FLASK_")):
        create_app()


def test_password_in_an_unusable_url_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "mysql://june:hunter2@db/guestbook")
    with pytest.raises(config.ConfigError) as caught:
        create_app()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_postgresql_url_gets_psycopg_3(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setenv("DATABASE_URL", f"{scheme}://june:a%40b@db/guestbook?sslmode=require")
    app = create_app()
    url = app.extensions["database"].url
    assert url.drivername == "postgresql+psycopg"
    assert (url.password, url.host, url.query["sslmode"]) == ("a@b", "db", "require")


@pytest.mark.parametrize("key", ["12345678901234567890", "1e99999999999999999", f'"{KEY}"'])
def test_secret_key_that_looks_like_json(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("FLASK_SECRET_KEY", key)
    assert create_app().config["SECRET_KEY"] == key.strip('"')


def test_any_setting_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_SESSION_COOKIE_SECURE", "false")
    monkeypatch.setenv("FLASK_DATABASE_POOL_SIZE", "9")
    app = create_app()
    assert app.config["SESSION_COOKIE_SECURE"] is False
    assert app.extensions["database"].pool.size() == 9


def test_the_server_says_how_much_it_lets_through(monkeypatch: pytest.MonkeyPatch) -> None:
    assert create_app().config["MAX_CONTENT_LENGTH"] == 65536
    monkeypatch.setenv("APP_MAX_BODY_SIZE", "10485760")
    assert create_app().config["MAX_CONTENT_LENGTH"] == 10 * 1024 * 1024
    monkeypatch.setenv("FLASK_MAX_CONTENT_LENGTH", "1024")
    assert create_app().config["MAX_CONTENT_LENGTH"] == 1024


def test_session_cookies_are_secure_by_default() -> None:
    assert create_app().config["SESSION_COOKIE_SECURE"] is True


def test_workers_do_not_load_what_only_migrations_need() -> None:
    code = "import sys, wsgi; sys.exit(' '.join({'alembic', 'sqlalchemy.orm'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr.strip() == ""
