"""What the role refuses besides what its argument_specs.yml says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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
    yield from problems_of(server, "backup_")
    if not server.values.get("backup_copy_repository"):
        return
    yield from problems_of(server, "backup_copy_")
    first = parsed(server.values.get("backup_repository"))
    copy = parsed(server.values.get("backup_copy_repository"))
    if first and copy and is_same_place(server, first, copy):
        yield Problem(
            "backup_copy_repository",
            f"is in backup_repository, or that is in it: {place_of(server, 'backup_copy_')}",
            "name another disk, store or host: what takes the one takes the other",
        )


def parsed(place: object) -> backup_repository.Place | None:
    try:
        return backup_repository.parse(str(place))
    except ValueError:
        return None


def place_of(server: Server, prefix: str) -> str:
    return str(server.values.get(f"{prefix}repository"))


def is_same_place(
    server: Server, first: backup_repository.Place, copy: backup_repository.Place
) -> bool:
    """Tell whether one lies in the other."""
    if (first.kind, first.host, first.port) != (copy.kind, copy.host, copy.port):
        return False
    ends = {str(server.values.get(f"{x}s3_endpoint")) for x in ("backup_", "backup_copy_")}
    if first.kind == "s3" and len(ends) > 1:
        return False
    one, other = Path(first.path), Path(copy.path)
    return one == other or one in other.parents or other in one.parents


def problems_of(server: Server, prefix: str) -> Iterator[Problem]:
    """Yield what is wrong with one of the places, whose variables begin with a prefix."""
    place, values, name = server.values.get(f"{prefix}repository"), server.values, f"{prefix}{{}}"
    # It could not be made out, which is told.
    if place is None:
        return
    try:
        found = backup_repository.parse(str(place))
    except ValueError:
        yield Problem(
            name.format("repository"),
            f"is {place!r}, and no place for backups",
            "write s3://bucket/prefix, sftp://user@host/path, or a folder such as /mnt/backup",
        )
        return
    needed = {
        "s3": ("s3_endpoint", "s3_key", "s3_secret"),
        "sftp": ("ssh_key", "ssh_known_hosts"),
        "folder": (),
    }
    for variable in map(name.format, needed[found.kind]):
        if not values.get(variable) and not server.failed(variable):
            yield Problem(variable, f"is empty, and {place} is reached by it")
    if found.kind == "s3" and "://" in str(values.get(name.format("s3_endpoint"))):
        yield Problem(name.format("s3_endpoint"), "is a URL; a host is meant, without https://")
    if found.kind == "sftp" and prefix == "backup_" and values.get("backup_database"):
        # Of 2.55, which Debian 13 has: each file that it reads stays open on the other host,
        # which opens 1,024 of them. Debian 12's knows no sftp at all.
        yield Problem(
            "backup_repository",
            f"is {place}, from where pgBackRest of Debian cannot restore a database with more"
            " than about a thousand files, which each has",
            "take a store that speaks S3, or mount the other host's folder, by sshfs for"
            " instance, and name that; as backup_copy_repository it may be what it is",
        )


def check_shared(server: Server) -> Iterator[Problem]:
    """What one server stores is to be there for the next one that leads."""
    place = parsed(server.values.get("backup_repository"))
    if not server.values.get("backup_patroni") or not place or place.kind != "folder":
        return
    mounts = [str(x) for x in server.found.get("remote_mounts") or []]
    if not any(place.path == x or place.path.startswith(f"{x}/") for x in mounts):
        yield Problem(
            "backup_repository",
            f"is {place.path}, a folder of {server.name} alone, and the database fails over: each"
            " server would have backups of its own, of which none is whole",
            "take a store that speaks S3, or mount one folder of another host on all of them",
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
    mounts = [str(x) for x in server.found.get("mounts") or []]
    for name in ("backup_repository", "backup_copy_repository"):
        place = str(server.values.get(name) or "")
        there = [x for x in mounts if place == x or place.startswith(f"{x}/")]
        if place.startswith("/") and not there:
            yield (
                f"{name} is {place}, a folder on {server.name}'s own disk: its backups help"
                " against a mistake, and are lost with the disk. See docs/how-to/backups.md"
            )


CHECKS = (check_place, check_shared, check_key, check_owner)
NOTES = (note_folder,)
