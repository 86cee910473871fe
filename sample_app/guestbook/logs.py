"""Logging: one line per event on standard error, where the process supervisor collects it."""

import logging
import sys


def configure() -> None:
    """Send every logger of this process to standard error, from level INFO up."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
