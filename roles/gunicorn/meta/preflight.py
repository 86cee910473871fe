"""What the role refuses besides what its argument_specs.yml says."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ansible_collections.carafe.stack.plugins.plugin_utils.problems import (
    Problem,
    Server,
    check_environment,
)

RANGES = {
    "gunicorn_cores": (1, None),
    "gunicorn_health_timeout": (1, None),
    "gunicorn_memory_mb": (1, None),
    "gunicorn_slots": (1, None),
    "gunicorn_threads": (1, None),
    "gunicorn_worker_memory_mb": (1, None),
    "gunicorn_workers": (1, None),
}
# By what their names have; of others nobody knows.
WORKERS = {
    "wsgi": re.compile("gthread|sync$|gevent|eventlet|tornado", re.IGNORECASE),
    "asgi": re.compile("asgi|uvicorn", re.IGNORECASE),
}


def check_environments(server: Server) -> Iterator[Problem]:
    name = "gunicorn_install_environment"
    yield from check_environment(name, server.values.get(name))


def check_interface(server: Server) -> Iterator[Problem]:
    """A worker that speaks the other interface answers every request with an error."""
    interface, worker = (
        str(server.values.get(f"gunicorn_{name}")) for name in ("interface", "worker_class")
    )
    speaks = next((x for x, names in WORKERS.items() if names.search(worker)), interface)
    if speaks != interface:
        yield Problem(
            "gunicorn_worker_class",
            f"is {worker}, which is for {speaks.upper()}, and app_interface is {interface}: write"
            f" app_interface: {speaks}, or leave the worker to it",
        )


CHECKS = (check_environments, check_interface)
