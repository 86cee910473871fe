"""The database: its tables, and one pooled engine per app.

SQLAlchemy Core without its ORM: two tables need no identity map, and each idle worker is
5 MB lighter.
"""

from contextlib import AbstractContextManager
from datetime import UTC, datetime

from flask import Flask, current_app
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    Dialect,
    Engine,
    ForeignKey,
    Identity,
    Index,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    create_engine,
    func,
)

NAME_LENGTH = 30
"""Characters in a user's name, at most."""

BODY_LENGTH = 1000
"""Characters in a post, at most."""

INKS = ("claret", "cobalt", "moss", "saffron", "plum", "slate")
"""The colours that a user can write in; the first one is for users who chose none."""

REVISIONS = ("0001_users_and_posts", "0002_ink_and_archive_index")
"""The migrations that this code knows, oldest first.

A copy, held equal to migrations/ by a test: reading them from there would load Alembic into
each worker, at 11 MB.
"""

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time that is read in UTC, whatever the time zone of the database is."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert what the driver returns."""
        return value.astimezone(UTC) if value else None


users = Table(
    "users",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("name", String(NAME_LENGTH), nullable=False),
    # Case folded by Python, so that it does not hang on the database's locale.
    Column("name_key", String(3 * NAME_LENGTH), nullable=False, unique=True),
    Column("password_hash", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False, server_default=func.now()),
    Column("ink", String(16), nullable=False, server_default=INKS[0]),
)

posts = Table(
    "posts",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("body", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False, server_default=func.now()),
    CheckConstraint(f"char_length(body) BETWEEN 1 AND {BODY_LENGTH}", name="body_length"),
    Index("ix_posts_created_at", "created_at"),
)


def init_app(app: Flask) -> None:
    """Give the app an engine; it connects on first use, thus after gunicorn has forked.

    DATABASE_POOL_SIZE connections are kept and DATABASE_POOL_OVERFLOW more are opened under
    load; DATABASE_POOL_TIMEOUT and DATABASE_CONNECT_TIMEOUT are in seconds.
    """
    if not app.config["DATABASE_URL"]:
        return
    app.extensions["database"] = create_engine(
        app.config["DATABASE_URL"],
        pool_pre_ping=True,
        pool_size=app.config["DATABASE_POOL_SIZE"],
        max_overflow=app.config["DATABASE_POOL_OVERFLOW"],
        pool_timeout=app.config["DATABASE_POOL_TIMEOUT"],
        connect_args={"connect_timeout": app.config["DATABASE_CONNECT_TIMEOUT"]},
    )


def engine() -> Engine:
    """Return the engine of the current app."""
    found: Engine = current_app.extensions["database"]
    return found


def transaction() -> AbstractContextManager[Connection]:
    """Open a transaction: committed when its block ends, rolled back when the block raises.

    Raises:
        sqlalchemy.exc.OperationalError: the database does not answer.
        sqlalchemy.exc.TimeoutError: every pooled connection stayed busy.

    """
    return engine().begin()
