"""Flask-Migrate: `flask db upgrade`, for the command line only.

Alembic adds 11 MB to a process, and a worker that serves requests has no use for it.
"""

import logging
import os
from pathlib import Path

from flask import Flask

from .database import metadata


def init_app(app: Flask) -> None:
    """Register the `flask db` commands when this process is a `flask` command."""
    if os.environ.get("FLASK_RUN_FROM_CLI") == "true":
        register(app)


def register(app: Flask) -> None:
    """Attach Flask-Migrate to the app; migrations/env.py reads the engine and the metadata."""
    # One line per plugin on every command would hide the lines on migrations.
    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)
    from flask_migrate import Migrate

    directory = Path(app.root_path).parent / "migrations"
    Migrate(app, metadata, directory=str(directory))
