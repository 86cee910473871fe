"""Settings: defaults and what the server says of itself, then every FLASK_* variable."""

import os
import sys
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from flask import Flask

MINIMUM_SECRET_LENGTH = 16
"""Characters; a shorter key can be guessed, and the sessions it signs can be forged."""

DRIVER = "postgresql+psycopg"


class ConfigError(RuntimeError):
    """A setting is missing or unusable; the message says what to set."""


class Defaults:
    """What holds when the environment says nothing."""

    SESSION_COOKIE_HTTPONLY = True
    SESSION_COOKIE_SAMESITE = "Lax"
    SESSION_COOKIE_SECURE = True
    # Without this every response to a signed-in reader sets the cookie again, also cached ones.
    SESSION_REFRESH_EACH_REQUEST = False
    PERMANENT_SESSION_LIFETIME = timedelta(days=30)
    # A token lives as long as its session: a page left open overnight can still post.
    WTF_CSRF_TIME_LIMIT = None
    # The check needs a Referer header, which a strict Referrer-Policy at the proxy takes away.
    WTF_CSRF_SSL_STRICT = False
    MAX_CONTENT_LENGTH = 64 * 1024
    PASSWORD_HASH_METHOD = "scrypt:32768:8:1"  # nosec B105 # noqa: S105 - names a method
    DATABASE_POOL_SIZE = 4
    DATABASE_POOL_OVERFLOW = 2
    DATABASE_POOL_TIMEOUT = 5
    DATABASE_CONNECT_TIMEOUT = 3
    READYZ_ALLOW_NEWER_SCHEMA = False


def load(app: Flask, overrides: Mapping[str, Any]) -> None:
    """Fill `app.config`.

    Raises:
        ConfigError: SECRET_KEY or the database's URL is missing or unusable.

    """
    app.config.from_object(Defaults)
    if limit := os.environ.get("APP_MAX_BODY_SIZE"):
        app.config["MAX_CONTENT_LENGTH"] = int(limit)
    app.config.from_prefixed_env()
    app.config.from_mapping(
        DATABASE_URL=os.environ.get("DATABASE_URL", ""),
        RELEASE=os.environ.get("APP_RELEASE", ""),
    )
    app.config.from_mapping(overrides)
    if building_assets():
        return
    app.config["SECRET_KEY"] = secret_key(app.config["SECRET_KEY"])
    app.config["DATABASE_URL"] = database_url(app.config["DATABASE_URL"])


def building_assets() -> bool:
    """Whether this process is `flask assets …`, which runs before a release has its settings."""
    return os.environ.get("FLASK_RUN_FROM_CLI") == "true" and "assets" in sys.argv[1:]


def secret_key(value: Any) -> str:
    """Return the key that signs sessions.

    Raises:
        ConfigError: it is missing or shorter than MINIMUM_SECRET_LENGTH.

    """
    if value and not isinstance(value, str):
        # The environment is read as JSON, where a key made of digits is a number.
        value = os.environ.get("FLASK_SECRET_KEY", "")
    if not value:
        raise ConfigError(
            "SECRET_KEY is not set: set FLASK_SECRET_KEY in the environment to a long random "
            "string, e.g. from `python3 -c 'import secrets; print(secrets.token_hex())'`."
        )
    if len(value) < MINIMUM_SECRET_LENGTH:
        raise ConfigError(
            f"SECRET_KEY has fewer than {MINIMUM_SECRET_LENGTH} characters: set FLASK_SECRET_KEY "
            "in the environment to a long random string."
        )
    return str(value)


def database_url(value: str) -> str:
    """Return the URL with the driver that this app is built on, psycopg 3.

    Raises:
        ConfigError: it is missing, or not a PostgreSQL URL.

    """
    if not value:
        raise ConfigError(
            "DATABASE_URL is not set: set it in the environment, "
            "e.g. to postgresql:///guestbook?host=/run/postgresql."
        )
    scheme, separator, rest = value.partition("://")
    if not separator or scheme not in {"postgres", "postgresql", DRIVER}:
        raise ConfigError(
            "DATABASE_URL must start with postgresql:// or postgresql+psycopg://; "
            f"it starts with {scheme.split(':')[0]!r}."
            if separator
            else "DATABASE_URL must be a URL that starts with postgresql:// "
            "or postgresql+psycopg://."
        )
    return f"{DRIVER}://{rest}"
