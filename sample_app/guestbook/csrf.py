"""CSRF protection: each request that changes something carries a token in X-CSRFToken."""

from flask import Flask
from flask_wtf.csrf import CSRFProtect

protect = CSRFProtect()


def init_app(app: Flask) -> None:
    """Refuse every POST, PUT, PATCH and DELETE without a valid token, with a 400."""
    # Flask-WTF knows nothing of the fallbacks, and takes several keys, of which the last one signs.
    fallbacks = app.config["SECRET_KEY_FALLBACKS"] or []
    app.config["WTF_CSRF_SECRET_KEY"] = [*fallbacks, app.config["SECRET_KEY"]]
    protect.init_app(app)
