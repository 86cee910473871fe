"""What the role refuses besides what its argument_specs.yml says."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ansible_collections.carafe.stack.plugins.module_utils import exporters
from ansible_collections.carafe.stack.plugins.plugin_utils.problems import Problem, Server


def check_addresses(server: Server) -> Iterator[Problem]:
    """An exporter that nobody reaches is missed when somebody needs what it would have told."""
    address = str(server.values.get("metrics_address") or "")
    if address:
        allowed = [str(x) for x in server.values.get("metrics_allowed_addresses") or []]
        for variable, says in exporters.problems(address, allowed):
            yield Problem(variable, says)


def check_status(server: Server) -> Iterator[Problem]:
    """The exporter asks nginx of its own server."""
    url = str(server.values.get("metrics_nginx") or "")
    if url and (not url.startswith(("http://", "https://")) or set(url) & set(" \t\n\"'\\")):
        yield Problem(
            "metrics_nginx", f"is {url!r}, and needs a URL such as http://127.0.0.1/status"
        )


def check_password(server: Server) -> Iterator[Problem]:
    """systemd shows what it gives to a service to everybody on the server."""
    if re.search(
        r"password\s*=|://[^/@\s]*:[^/@\s]*@", str(server.values.get("metrics_postgres") or "")
    ):
        yield Problem(
            "metrics_postgres",
            "has a password, which everybody on the server could read: let the unix user prometheus"
            " in by peer, over the unix socket",
        )


CHECKS = (check_addresses, check_status, check_password)
