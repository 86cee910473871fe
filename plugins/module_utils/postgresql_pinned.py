"""What a connection of the superuser's starts with, whatever a database's owner has set for it.

Used by modules, and by programs that run without Ansible.
"""

from __future__ import annotations

# By ALTER DATABASE, for instance. No name of the owner's is found by itself, and nothing makes work
# fail half way.
PINNED = {
    "search_path": "pg_catalog,pg_temp",
    "role": "none",
    "local_preload_libraries": "",
    "default_transaction_read_only": "off",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_session_timeout": "0",
    "standard_conforming_strings": "on",
    "lc_messages": "C",
}
# What only later versions know, by the first that does.
PINNED_SINCE = {17: {"transaction_timeout": "0"}}


def options(major: int) -> str:
    """Return it as libpq takes it; 0 is a version that is not known."""
    pinned = dict(PINNED)
    for since, more in PINNED_SINCE.items():
        pinned |= more if major >= since else {}
    return " ".join(f"-c {name}={value}" for name, value in pinned.items())
