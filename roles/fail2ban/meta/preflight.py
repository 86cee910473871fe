"""What the role refuses besides what its argument_specs.yml says."""

from __future__ import annotations

from ansible_collections.carafe.stack.plugins.plugin_utils.problems import PORT

RANGES = {
    "fail2ban_jails.ban_seconds": (1, None),
    "fail2ban_jails.ports": PORT,
    "fail2ban_jails.retries": (1, None),
    "fail2ban_jails.within_seconds": (1, None),
    "fail2ban_max_seconds": (1, None),
    "fail2ban_nginx_ports": PORT,
    "fail2ban_seconds": (1, None),
}
