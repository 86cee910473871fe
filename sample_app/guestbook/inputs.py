"""Reading input: whatever a client sends is either a clean value or a clear 4xx."""

import re
import unicodedata
from http import HTTPStatus
from typing import Any

from flask import request

from .errors import ApiError

LARGEST_ID = 2**63 - 1


def json_object() -> dict[str, Any]:
    """Return the request's JSON object.

    Raises:
        ApiError: 400, the body is not a JSON object.
        werkzeug.exceptions.UnsupportedMediaType: the request does not say that it is JSON.

    """
    if not request.is_json:
        raise ApiError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "Send JSON, with the header Content-Type: application/json.",
        )
    try:
        data = request.get_json(silent=True)
    except RecursionError:  # Thousands of opening brackets: valid as far as it was read.
        data = None
    if not isinstance(data, dict):
        raise bad("The body must be a JSON object.")
    return data


def line(data: dict[str, Any], field: str, at_least: int, at_most: int) -> str:
    """Return a name-like text: normalised, with no space and no control character.

    Lengths are in characters.

    Raises:
        ApiError: 400, with the field's name.

    """
    value = unicodedata.normalize("NFKC", paragraph(data, field, at_least, at_most))
    if not re.fullmatch(r"[\w.-]+", value):
        raise bad(f"The {field} may hold letters, digits, dots, dashes and underscores.", field)
    check_length(value, field, at_least, at_most)
    return value


def paragraph(data: dict[str, Any], field: str, at_least: int, at_most: int) -> str:
    """Return a text with single line ends, stripped of space at both ends.

    Lengths are in characters, after stripping.

    Raises:
        ApiError: 400, with the field's name.

    """
    value = secret(data, field).replace("\r\n", "\n").replace("\r", "\n").strip()
    check_length(value, field, at_least, at_most)
    return value


def secret(data: dict[str, Any], field: str, at_least: int = 0, at_most: int = LARGEST_ID) -> str:
    """Return a text as it was sent.

    Raises:
        ApiError: 400, with the field's name: no text, or one that PostgreSQL cannot store.

    """
    value = data.get(field)
    if not isinstance(value, str):
        raise bad(f"The {field} is missing or not a text.", field)
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise bad(f"The {field} holds a character that cannot be stored.", field)
    check_length(value, field, at_least, at_most)
    return value


def check_length(value: str, field: str, at_least: int, at_most: int) -> None:
    """Compare the value's length in characters with its limits.

    Raises:
        ApiError: 400, with the field's name.

    """
    if not value and at_least:
        raise bad(f"The {field} is empty.", field)
    if len(value) < at_least:
        raise bad(f"The {field} needs at least {at_least} characters.", field)
    if len(value) > at_most:
        raise bad(f"The {field} takes at most {at_most} characters, not {len(value)}.", field)


def number(name: str, default: int, at_least: int, at_most: int) -> int:
    """Return a whole number from the query string.

    Raises:
        ApiError: 400, with the parameter's name.

    """
    raw = request.args.get(name)
    if raw is None:
        return default
    if not re.fullmatch(r"[0-9]{1,19}", raw) or not at_least <= int(raw) <= at_most:
        raise bad(f"The parameter {name} must be a number from {at_least} to {at_most}.", name)
    return int(raw)


def bad(message: str, field: str | None = None) -> ApiError:
    """Return a 400."""
    return ApiError(HTTPStatus.BAD_REQUEST, message, field)
