"""What the role refuses besides what its argument_specs.yml says."""

from __future__ import annotations

from collections.abc import Iterator

from ansible_collections.carafe.stack.plugins.module_utils import backup_repository
from ansible_collections.carafe.stack.plugins.plugin_utils.problems import (
    FILE_NAME,
    Problem,
    Server,
)

RANGES = {"backup_retention_days": (1, None), "backup_delay": (0, 86400)}
KEY = 20  # characters, of which a secret that was made by chance has more


def check_place(server: Server) -> Iterator[Problem]:
    """A wrong word would be found at night, by a job that fails."""
    place, values = server.values.get("backup_repository"), server.values
    # It could not be made out, which is told.
    if place is None:
        return
    try:
        found = backup_repository.parse(str(place))
    except ValueError:
        yield Problem(
            "backup_repository",
            f"is {place!r}, and no place for backups",
            "write s3://bucket/prefix, sftp://user@host/path, or a folder such as /mnt/backup",
        )
        return
    if found.kind == "s3":
        for name in ("backup_s3_endpoint", "backup_s3_key", "backup_s3_secret"):
            if not values.get(name) and not server.failed(name):
                yield Problem(name, f"is empty, and {place} is reached by it")
        if "://" in str(values.get("backup_s3_endpoint")):
            yield Problem("backup_s3_endpoint", "is a URL; a host is meant, without https://")
    if found.kind == "sftp":
        for name in ("backup_ssh_key", "backup_ssh_known_hosts"):
            if not values.get(name) and not server.failed(name):
                yield Problem(name, f"is empty, and {place} is reached by it")
        if values.get("backup_database"):
            # Of 2.55, which Debian 13 has: each file that it reads stays open on the other host,
            # which opens 1,024 of them. Debian 12's knows no sftp at all.
            yield Problem(
                "backup_repository",
                f"is {place}, from where pgBackRest of Debian cannot restore a database with more"
                " than about a thousand files, which each has",
                "take a store that speaks S3, or mount the other host's folder, by sshfs for"
                " instance, and name that",
            )


def check_key(server: Server) -> Iterator[Problem]:
    key = server.values.get("backup_key")
    if isinstance(key, str) and len(key) < KEY:
        yield Problem(
            "backup_key",
            f"is shorter than {KEY} characters, and all that protects the backups",
            "let the vault have it: ansible-playbook carafe.stack.vault",
        )


def check_owner(server: Server) -> Iterator[Problem]:
    owner = server.values.get("backup_owner")
    if owner is not None and not FILE_NAME.fullmatch(str(owner)):
        yield Problem("backup_owner", f"is {owner!r}; it has letters, digits, '-', '_' and '.'")


def note_folder(server: Server) -> Iterator[str]:
    """A folder on the same disk goes with it."""
    place = str(server.values.get("backup_repository") or "")
    mounts = [str(x) for x in server.found.get("mounts") or []]
    there = [x for x in mounts if place == x or place.startswith(f"{x}/")]
    if place.startswith("/") and not there:
        yield (
            f"backup_repository is {place}, a folder on {server.name}'s own disk: its backups help"
            " against a mistake, and are lost with the disk. See docs/how-to/backups.md"
        )


CHECKS = (check_place, check_key, check_owner)
NOTES = (note_folder,)
