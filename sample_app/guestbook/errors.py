"""Errors: JSON for programs, a page for people; neither tells a stranger what went wrong inside."""

from http import HTTPStatus

from flask import Flask, Response, current_app, jsonify, make_response, render_template, request
from flask.typing import ResponseReturnValue
from flask_wtf.csrf import CSRFError
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge

MESSAGES = {
    HTTPStatus.NOT_FOUND: "There is nothing at this address.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This address does not take that method.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "That is more than this server reads at once.",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "Send JSON, with the header Content-Type: application/json.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "Something broke on our side. It has been logged.",
}


class ApiError(Exception):
    """A request that the API refuses.

    Attributes:
        status: the HTTP status to answer with.
        message: a sentence for the person who reads it.
        field: the name of the input at fault, if there is one.

    """

    def __init__(self, status: HTTPStatus, message: str, field: str | None = None) -> None:
        """Keep what the answer is made of."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.field = field


def init_app(app: Flask) -> None:
    """Register a handler for each kind of failure."""
    app.register_error_handler(ApiError, refused)
    app.register_error_handler(CSRFError, csrf_refused)
    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(OperationalError, database_unavailable)
    app.register_error_handler(PoolTimeoutError, database_unavailable)


def refused(error: ApiError) -> ResponseReturnValue:
    """Answer an input or a permission error."""
    return as_json(error.status, error.message, error.field)


def csrf_refused(error: CSRFError) -> ResponseReturnValue:
    """Answer a missing or stale token; the page gets a new one and tries once more."""
    return as_json(HTTPStatus.BAD_REQUEST, error.description or "", "csrf_token")


def http_error(error: HTTPException) -> ResponseReturnValue:
    """Answer whatever Flask refused, and every unhandled exception, which Flask has logged."""
    if error.response is not None:
        return error.response
    status = HTTPStatus(error.code or HTTPStatus.INTERNAL_SERVER_ERROR)
    response = answer(status, MESSAGES.get(status, error.description or status.phrase))
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        response.headers["Allow"] = ", ".join(error.valid_methods)
    if isinstance(error, RequestEntityTooLarge):
        # The body was not read: what follows on this connection would be taken for a request.
        response.headers["Connection"] = "close"
    return response


def database_unavailable(error: Exception) -> ResponseReturnValue:
    """Answer while the database is down or all connections are busy."""
    current_app.logger.error("database unavailable: %s", error)
    response = answer(
        HTTPStatus.SERVICE_UNAVAILABLE, "The book is closed for a moment. Please try again soon."
    )
    response.headers["Retry-After"] = "5"
    return response


def answer(status: HTTPStatus, message: str) -> Response:
    """Return JSON below /api/ and for probes, a page elsewhere."""
    if request.path.startswith(("/api/", "/healthz", "/readyz")):
        return as_json(status, message)
    page = "errors/404.html" if status == HTTPStatus.NOT_FOUND else "errors/500.html"
    return make_response(render_template(page, status=status, message=message), status)


def as_json(status: HTTPStatus, message: str, field: str | None = None) -> Response:
    """Return `{"error": {"message", "field"?}}` with its status."""
    error = {"message": message} | ({"field": field} if field else {})
    response = jsonify(error=error)
    response.status_code = status
    return response
