"""CSRF protection: each request that changes something carries a token in X-CSRFToken."""

from flask import Flask
from flask_wtf.csrf import CSRFProtect

protect = CSRFProtect()


def init_app(app: Flask) -> None:
    """Refuse every POST, PUT, PATCH and DELETE without a valid token, with a 400."""
    protect.init_app(app)
