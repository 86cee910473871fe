"""What the role refuses besides what its argument_specs.yml says."""

from __future__ import annotations

from ansible_collections.carafe.stack.plugins.plugin_utils.problems import PORT

RANGES = {
    "sshd_confirm_seconds": (1, None),
    "sshd_login_grace_seconds": (1, None),
    "sshd_max_auth_tries": (1, None),
    "sshd_max_sessions": (1, None),
    "sshd_ports": PORT,
    "sshd_rsa_host_key_bits": (2048, None),
}
