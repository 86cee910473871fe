"""What Alembic runs: all pending migrations in one transaction, on the app's DATABASE_URL.

Whoever connects owns what is created, so a migration role of its own works.
"""

from alembic import context
from flask import current_app

from guestbook.database import engine, metadata


def run_offline() -> None:
    """Print the SQL instead of running it."""
    context.configure(
        url=current_app.config["DATABASE_URL"], target_metadata=metadata, literal_binds=True
    )
    with context.begin_transaction():
        context.run_migrations()


def run_online() -> None:
    """Run the migrations: PostgreSQL undoes all of them if one fails."""
    with engine().connect() as connection:
        context.configure(connection=connection, target_metadata=metadata)
        with context.begin_transaction():
            context.run_migrations()


if context.is_offline_mode():
    run_offline()
else:
    run_online()
