"""What a program is made of that looks at a server as the module status does.

Used by modules.
"""

from __future__ import annotations

from . import (
    adopted,
    backup_state,
    certificates,
    claims,
    commands,
    database_restart,
    etcd,
    files,
    found,
    levels,
    peer_https,
    postgresql_pinned,
    postgresql_server,
    processes,
    release_state,
    restarts,
    schedule_runs,
    services,
    slots,
    status,
    status_app,
    status_cluster,
    status_database,
    status_server,
    supervisord,
    unix_http,
    words,
)

PARTS = (
    *(adopted, backup_state, certificates, claims, commands, database_restart, files, found),
    *(levels, postgresql_pinned, postgresql_server, processes, release_state, restarts),
    *(schedule_runs, services, slots, status, status_app, status_database, status_server),
    *(etcd, peer_https, status_cluster, supervisord, unix_http, words),
)
