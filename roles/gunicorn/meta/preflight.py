"""What the role refuses besides what its argument_specs.yml says."""

from __future__ import annotations

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


def check_environments(server: Server) -> Iterator[Problem]:
    name = "gunicorn_install_environment"
    yield from check_environment(name, server.values.get(name))


CHECKS = (check_environments,)
