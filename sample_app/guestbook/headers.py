"""Headers that every response carries."""

from flask import Flask, Response

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'"
)


def init_app(app: Flask) -> None:
    """Set the policy and, where a view has not chosen otherwise, forbid caching."""
    app.after_request(finish)


def finish(response: Response) -> Response:
    """Add the headers that the view left open."""
    response.headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Cache-Control", "private, no-store")
    return response
