"""Probes: /healthz says that the process serves, /readyz that it can do its work."""

from flask import Blueprint, current_app, jsonify
from flask.typing import ResponseReturnValue
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError, SQLAlchemyError

from .database import REVISIONS, transaction

blueprint = Blueprint("health", __name__)


class NotReady(Exception):
    """The app cannot do its work; the message is the reason."""


@blueprint.get("/healthz")
def healthz() -> ResponseReturnValue:
    """Answer without touching the database, with the release's name if there is one."""
    release = current_app.config["RELEASE"]
    return uncached({"status": "ok"} | ({"release": release} if release else {}))


@blueprint.get("/readyz")
def readyz() -> ResponseReturnValue:
    """Answer 200 when the database is up and its schema fits this code, else 503 and why."""
    try:
        revision = schema_revision()
        check(revision)
    except NotReady as reason:
        return uncached({"status": "unavailable", "reason": str(reason)}, 503)
    return uncached({"status": "ok", "schema": revision})


def schema_revision() -> str:
    """Return the database's migration.

    Raises:
        NotReady: the database does not answer, or no migration has run.

    """
    try:
        with transaction() as connection:
            found = connection.scalar(text("SELECT version_num FROM alembic_version"))
    except ProgrammingError as error:
        current_app.logger.error("not ready: %s", error)
        raise NotReady(
            "The schema's version cannot be read: run `flask db upgrade`, "
            "and let this database role read alembic_version."
        ) from error
    except SQLAlchemyError as error:
        current_app.logger.error("not ready: %s", error)
        raise NotReady("The database does not answer.") from error
    if found is None:
        raise NotReady("The schema is empty: run `flask db upgrade`.")
    return str(found)


def check(revision: str) -> None:
    """Compare the database's migration with the newest one that this code knows.

    Raises:
        NotReady: they differ. A newer one is allowed by READYZ_ALLOW_NEWER_SCHEMA, for a
            rollback over a migration that only added something.

    """
    if revision == REVISIONS[-1]:
        return
    newer = revision not in REVISIONS
    if newer and current_app.config["READYZ_ALLOW_NEWER_SCHEMA"]:
        return
    raise NotReady(
        f"The schema is at {revision}, which is {'newer' if newer else 'older'} than this code's "
        f"{REVISIONS[-1]}."
    )


def uncached(payload: dict[str, str], status: int = 200) -> ResponseReturnValue:
    """Return the payload as JSON that no cache keeps."""
    return jsonify(payload), status, {"Cache-Control": "no-store"}
