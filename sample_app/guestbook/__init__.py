"""Guestbook: a small, real Flask app with accounts, posts and a server-rendered archive."""

from collections.abc import Mapping
from typing import Any

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from . import (
    accounts,
    archive,
    assets,
    config,
    csrf,
    database,
    errors,
    headers,
    health,
    logs,
    migrate,
    pages,
    posts,
)


def create_app(overrides: Mapping[str, Any] | None = None) -> Flask:
    """Build the app from its defaults, the environment and `overrides`, the last one winning.

    Raises:
        config.ConfigError: a setting is missing or unusable; the message says what to set.

    """
    logs.configure()
    app = Flask(__name__)
    config.load(app, overrides or {})
    for extension in (database, migrate, csrf, assets, errors, headers):
        extension.init_app(app)
    for module in (pages, archive, accounts, posts, health):
        app.register_blueprint(module.blueprint)
    # One proxy, nginx, sets these three; trusting one more hop would let clients forge them.
    app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=1)
    return app
