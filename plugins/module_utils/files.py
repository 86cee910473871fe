"""Read and write files: who reads one sees the old text or the new, also after a loss of power.

Used by modules and by programs that run without Ansible.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import grp
import os
import pwd
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# What a write that was cut short leaves behind, until the next write of the same file.
SUFFIX = ".carafe"


def read(path: str | Path) -> str | None:
    """Return the text of a file, or None where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except (FileNotFoundError, NotADirectoryError):
        return None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file, or a folder that is there. The kernel takes the lock back from who is killed."""
    create = 0 if path.is_dir() else os.O_CREAT
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | create, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def diff(path: str | Path, before: Any, after: Any) -> dict[str, Any]:
    """Return a change of a file as a module's ``diff`` has it."""
    return {
        "before_header": str(path),
        "after_header": str(path),
        "before": before or "",
        "after": after or "",
    }


def user_id(name: str | int | None) -> int:
    """Return the number of a user; -1, which leaves things as they are, for None.

    Raises KeyError where the server has no such user.
    """
    if name is None:
        return -1
    return int(name) if str(name).isdecimal() else pwd.getpwnam(str(name)).pw_uid


def group_id(name: str | int | None) -> int:
    """Return the number of a group, as user_id() does for users."""
    if name is None:
        return -1
    return int(name) if str(name).isdecimal() else grp.getgrnam(str(name)).gr_gid


def write(
    path: str | Path,
    data: str | bytes,
    mode: int = 0o644,
    owner: str | int | None = None,
    group: str | int | None = None,
) -> None:
    """Put a file into its place at once. A link in that place is replaced, not followed."""
    land(stage(path, data, mode, owner, group), path)


def stage(
    path: str | Path,
    data: str | bytes,
    mode: int = 0o644,
    owner: str | int | None = None,
    group: str | int | None = None,
) -> Path:
    """Write the file beside its place, safe on disk; land() puts it there."""
    path = Path(path)
    uid, gid = user_id(owner), group_id(group)
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogateescape")
    _sweep(path)
    staged = path.with_name(f".{path.name}.{os.getpid()}{SUFFIX}")
    staged.unlink(missing_ok=True)
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            # The owner first: a change of owner takes the set-user-ID bit away.
            os.fchown(descriptor, uid, gid)
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    return staged


def land(staged: Path, path: str | Path) -> None:
    """Move what stage() wrote into its place."""
    try:
        staged.replace(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    sync_folder(Path(path).parent)


def remove_folder(path: str | Path) -> None:
    """Remove a folder with all that is in it, where there is one; raises OSError if some stays."""
    if Path(path).is_symlink():
        # rmtree refuses it as well, without a word on why.
        raise OSError(errno.ENOTDIR, "A link is in the place of a folder", str(path))
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


def sync_folder(path: str | Path) -> None:
    """Make sure that a change of names in a folder outlasts a loss of power."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(path: Path) -> None:
    """Remove what writers that are no longer alive left beside a file."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*{SUFFIX}"):
        pid = leftover.name.removesuffix(SUFFIX).rpartition(".")[2]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            with contextlib.suppress(FileNotFoundError):
                leftover.unlink()
