"""What the role refuses besides what its argument_specs.yml says."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ansible_collections.carafe.stack.plugins.plugin_utils.problems import Problem, Server

# Less than Valkey itself takes would let it refuse every write.
RANGES = {"valkey_memory_mb": (4, None)}
SETTING, VALUE = re.compile(r"[a-z][a-z0-9-]*"), re.compile(r"[^\n\r\0]+")
# What the instances are kept apart by, and what the role has a variable for.
VARIABLES = {
    "maxmemory": "valkey_memory_mb",
    "maxmemory-policy": "valkey_eviction",
    "appendonly": "valkey_persistent",
}
OWN = {
    *VARIABLES,
    *("port", "bind", "tls-port", "unixsocket", "unixsocketperm", "dir"),
    *("user", "aclfile", "requirepass", "rename-command", "include", "loadmodule"),
    *("daemonize", "supervised", "pidfile", "logfile", "syslog-enabled"),
    *("enable-debug-command", "enable-module-command", "enable-protected-configs"),
}


def check_settings(server: Server) -> Iterator[Problem]:
    """A line more could open the instance to others; Valkey would refuse a value in its journal."""
    for name, value in (server.values.get("valkey_settings") or {}).items():
        if str(name) in OWN:
            variable = VARIABLES.get(str(name))
            yield Problem(
                "valkey_settings",
                f"has {name}, which is the role's own",
                f"say it by {variable}" if variable else "take it out",
            )
        elif not SETTING.fullmatch(str(name)) or not VALUE.fullmatch(str(value)):
            yield Problem(
                "valkey_settings",
                f"has {name}: {value!r}, and must have names of valkey.conf with one line of text"
                " each, such as notify-keyspace-events: Ex",
            )


CHECKS = (check_settings,)
