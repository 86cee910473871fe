"""Migrations, on an empty database."""

from itertools import pairwise

import flask_migrate
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from flask import Flask, current_app
from sqlalchemy import inspect, text

from guestbook import database
from tests.conftest import new_app


def tables() -> set[str]:
    """Return the names of the database's tables."""
    return set(inspect(database.engine()).get_table_names())


def shape() -> dict[str, tuple[set[str], set[str | None]]]:
    """Return the columns and the indexes of each table."""
    inspector = inspect(database.engine())
    return {
        table: (
            {column["name"] for column in inspector.get_columns(table)},
            {index["name"] for index in inspector.get_indexes(table)},
        )
        for table in tables()
    }


def test_up_down_up_ends_at_the_models(empty_database: str) -> None:
    app = new_app(empty_database)
    with app.app_context():
        flask_migrate.upgrade()
        flask_migrate.downgrade(revision="base")
        assert tables() == {"alembic_version"}
        flask_migrate.upgrade()
        assert tables() == {"alembic_version", "users", "posts"}
        flask_migrate.check()


@pytest.mark.parametrize(("older", "newer"), list(pairwise(database.REVISIONS)))
def test_each_migration_can_be_undone_alone(empty_database: str, older: str, newer: str) -> None:
    app = new_app(empty_database)
    with app.app_context():
        flask_migrate.upgrade(revision=older)
        before = shape()
        flask_migrate.upgrade(revision=newer)
        assert shape() != before
        flask_migrate.downgrade(revision=older)
        assert shape() == before


def test_models_and_migrations_agree(app: Flask) -> None:
    with app.app_context():
        flask_migrate.check()


def test_revisions_in_the_code_are_those_of_the_migrations(app: Flask) -> None:
    config = Config()
    config.set_main_option("script_location", f"{app.root_path}/../migrations")
    history = ScriptDirectory.from_config(config).walk_revisions()
    assert tuple(script.revision for script in history)[::-1] == database.REVISIONS


def test_failed_migration_leaves_nothing_behind(empty_database: str) -> None:
    app = new_app(empty_database)
    with app.app_context():
        with database.transaction() as connection:
            # The last migration wants to make an index of this name.
            connection.execute(text("CREATE TABLE ix_posts_created_at ()"))
        with pytest.raises(Exception, match="ix_posts_created_at"):
            flask_migrate.upgrade()
        assert tables() == {"ix_posts_created_at"}


def test_rows_survive_the_newest_migration(empty_database: str) -> None:
    app = new_app(empty_database)
    with app.app_context():
        flask_migrate.upgrade(revision=database.REVISIONS[-2])
        with database.transaction() as connection:
            connection.execute(
                text("INSERT INTO users (name, name_key, password_hash) VALUES ('J', 'j', 'x')")
            )
        flask_migrate.upgrade()
        with database.transaction() as connection:
            assert connection.scalar(text("SELECT ink FROM users")) == "claret"


def test_migration_role_and_app_role_can_differ(empty_database: str) -> None:
    app = new_app(empty_database)
    with app.app_context(), database.transaction() as connection:
        connection.execute(text("DROP ROLE IF EXISTS guestbook_test_migrator"))
        connection.execute(text("CREATE ROLE guestbook_test_migrator"))
        connection.execute(text("GRANT CREATE, USAGE ON SCHEMA public TO guestbook_test_migrator"))
    with app.app_context():
        separator = "&" if "?" in empty_database else "?"
        as_migrator = new_app(
            f"{empty_database}{separator}options=-crole%3Dguestbook_test_migrator"
        )
        with as_migrator.app_context():
            flask_migrate.upgrade()
            owners = text("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'")
            with database.transaction() as connection:
                assert list(connection.scalars(owners)) == ["guestbook_test_migrator"]
            assert current_app.extensions["database"] is database.engine()
            database.engine().dispose()
        with database.transaction() as connection:
            connection.execute(text("DROP OWNED BY guestbook_test_migrator"))
            connection.execute(text("DROP ROLE guestbook_test_migrator"))
