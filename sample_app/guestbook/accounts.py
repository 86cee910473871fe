"""Accounts: sign up, log in, log out, and who the current user is."""

import unicodedata
from functools import cache
from http import HTTPStatus
from typing import NamedTuple

from flask import Blueprint, Response, current_app, jsonify, session
from flask.typing import ResponseReturnValue
from flask_wtf.csrf import generate_csrf
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError
from werkzeug.security import check_password_hash, generate_password_hash

from . import inputs
from .database import INKS, NAME_LENGTH, transaction, users
from .errors import ApiError

PASSWORD_LENGTH = (10, 200)
"""Characters in a password, at least and at most."""

blueprint = Blueprint("accounts", __name__, url_prefix="/api")


class User(NamedTuple):
    """The one who is logged in."""

    id: int
    name: str
    ink: str


@blueprint.get("/csrf")
def csrf() -> ResponseReturnValue:
    """Return the token to send as X-CSRFToken; it belongs to the session cookie set here."""
    return jsonify(csrf_token=generate_csrf())


@blueprint.get("/me")
def me() -> ResponseReturnValue:
    """Return the current user, or null."""
    user = current_user()
    return jsonify(user=shown(user) if user else None)


@blueprint.post("/signup")
def signup() -> ResponseReturnValue:
    """Create an account and log in: 201, or 409 when the name is taken."""
    data = inputs.json_object()
    name = inputs.line(data, "name", 2, NAME_LENGTH)
    password = inputs.secret(data, "password", *PASSWORD_LENGTH)
    ink = data.get("ink", INKS[0])
    if ink not in INKS:
        raise inputs.bad(f"The ink must be one of {', '.join(INKS)}.", "ink")
    values = {
        "name": name,
        "name_key": name_key(name),
        "password_hash": hashed(password),
        "ink": ink,
    }
    try:
        with transaction() as connection:
            user_id = connection.scalar(insert(users).values(values).returning(users.c.id))
    except IntegrityError as error:
        raise ApiError(HTTPStatus.CONFLICT, f"The name {name} is taken.", "name") from error
    return logged_in(User(user_id or 0, name, ink)), HTTPStatus.CREATED


@blueprint.post("/login")
def login() -> ResponseReturnValue:
    """Log in: 200, or 401 that does not say which of name and password was wrong."""
    data = inputs.json_object()
    name = inputs.secret(data, "name", 1, 1000)
    password = inputs.secret(data, "password", 1, PASSWORD_LENGTH[1])
    with transaction() as connection:
        found = connection.execute(select(users).where(users.c.name_key == name_key(name))).first()
    # Hashing also for an unknown name keeps the answer's time from telling who has an account.
    stored = found.password_hash if found else decoy(current_app.config["PASSWORD_HASH_METHOD"])
    if not check_password_hash(stored, password) or not found:
        raise ApiError(HTTPStatus.UNAUTHORIZED, "The name or the password is wrong.", "password")
    return logged_in(User(found.id, found.name, found.ink))


@blueprint.post("/logout")
def logout() -> ResponseReturnValue:
    """Forget the session; 204 also when there was none."""
    session.clear()
    return "", HTTPStatus.NO_CONTENT


def current_user() -> User | None:
    """Return the user whom the session names, if that account still exists."""
    user_id = session.get("user_id")
    if user_id is None:
        return None
    query = select(users.c.id, users.c.name, users.c.ink).where(users.c.id == user_id)
    with transaction() as connection:
        found = connection.execute(query).first()
    return User(*found) if found else None


def require_user() -> User:
    """Return the current user.

    Raises:
        ApiError: 401, nobody is logged in.

    """
    user = current_user()
    if user is None:
        raise ApiError(HTTPStatus.UNAUTHORIZED, "Log in first.")
    return user


def logged_in(user: User) -> Response:
    """Start a new session, so that nothing from before the login, its token included, remains."""
    session.clear()
    session.permanent = True
    session["user_id"] = user.id
    return jsonify(user=shown(user), csrf_token=generate_csrf())


def shown(user: User) -> dict[str, str]:
    """Return what the API tells about a user."""
    return {"name": user.name, "ink": user.ink}


def name_key(name: str) -> str:
    """Return what two spellings of one name have in common."""
    return unicodedata.normalize("NFKC", name.strip()).casefold()


def hashed(password: str) -> str:
    """Return the password's salted hash."""
    return generate_password_hash(password, current_app.config["PASSWORD_HASH_METHOD"])


@cache
def decoy(method: str) -> str:
    """Return a hash that no password fits."""
    return generate_password_hash("", method)
