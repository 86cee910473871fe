"""What the role refuses besides what its argument_specs.yml says."""

from __future__ import annotations

from ansible_collections.carafe.stack.plugins.plugin_utils.problems import PORT

RANGES = {
    "firewall_revert_seconds": (20, None),
    "firewall_ssh_burst": (5, None),
    "firewall_ssh_ports": PORT,
    "firewall_ssh_rate": (0, None),
}
