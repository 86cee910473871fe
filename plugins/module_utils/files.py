"""Read and write files: who reads one sees the old text or the new, also after a loss of power.

Others may own a folder that root works in, and put a link, a pipe or a device into it at any time.
All of this goes by handles of folders, which ``place()`` opens; links are followed only where they
are root's, and nothing but files and folders is ever opened. So what was put there is refused with
an OSError, or goes, and what it leads to stays as it is.

Used by modules and by programs that run without Ansible.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import pwd
import stat
from collections.abc import Container, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import subprocess

# What a write that was cut short leaves behind, until the next write of the same file.
SUFFIX = ".carafe"
LIMIT = 64 << 20  # bytes of a file that is read
LINKS = 40  # that a path may have, as for the kernel
# A Mac, which packs, has no such handles.
HANDLE = getattr(os, "O_PATH", os.O_RDONLY) | os.O_NOFOLLOW
FOLDER = HANDLE | os.O_DIRECTORY


def refusal(number: int, says: str, path: str | Path) -> OSError:
    return OSError(number, says, str(path))


@contextlib.contextmanager
def place(
    path: str | Path, follow: bool = False, owners: Container[int] | None = None
) -> Iterator[tuple[int, str]]:
    """Hold the folder in which a path ends; return its handle, and the last name of the path.

    A link on the way is followed where nobody but its ``owners``, by default root and who runs
    this, may have put it; with ``follow`` that holds for the last name too.
    """
    owners = (0, os.geteuid()) if owners is None else owners
    here, rest, links = os.open("/", FOLDER), [*reversed(Path(path).absolute().parts[1:])], 0
    try:
        try:
            while True:
                name = rest.pop() if rest else "."
                aim = _aim(name, here) if rest or follow else None
                if aim is not None:
                    links += 1
                    if links > LINKS or not _alone(name, here, owners):
                        raise OSError(errno.ELOOP, f"{name!r} is a link that others can have put")
                    rest += reversed(Path(aim).parts)
                    if aim.startswith("/"):
                        rest.pop()
                        here = _moved(here, "/")
                elif rest:
                    here = _moved(here, name)
                else:
                    break
        except OSError as error:
            error.filename = str(path)
            raise
        yield here, name
    finally:
        os.close(here)


def _aim(name: str, folder: int) -> str | None:
    """Return where a link leads, None where there is no link."""
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return None
        raise


def _alone(name: str, folder: int, owners: Container[int]) -> bool:
    """Tell whether nobody but these owners can have put something into a folder."""
    here = os.fstat(folder)
    if here.st_uid not in owners:
        return False
    sticky = here.st_mode & stat.S_ISVTX
    there = os.stat(name, dir_fd=folder, follow_symlinks=False)
    return not here.st_mode & 0o022 or bool(sticky and there.st_uid in owners)


def _moved(here: int, name: str) -> int:
    """Return a handle of a folder below, in exchange for that of the one it lies in."""
    below = os.open(name, FOLDER, dir_fd=here)
    os.close(here)
    return below


@contextlib.contextmanager
def held(
    path: str | Path, follow: bool = False, owners: Container[int] | None = None
) -> Iterator[tuple[str, os.stat_result]]:
    """Hold what is at a path without opening it; return a way to it, and what it is."""
    with place(path, follow, owners) as (folder, name):
        handle = os.open(name, HANDLE, dir_fd=folder)
    try:
        yield f"/proc/self/fd/{handle}", os.fstat(handle)
    finally:
        os.close(handle)


def status(path: str | Path, follow: bool = False) -> os.stat_result | None:
    """Return what is at a path, or None where there is nothing."""
    try:
        with held(path, follow) as (_, there):
            return there
    except (FileNotFoundError, NotADirectoryError):
        return None


def is_folder(path: str | Path) -> bool:
    """Tell whether a folder is there, and no link to one."""
    there = status(path)
    return there is not None and stat.S_ISDIR(there.st_mode)


def folders(path: Path) -> list[str]:
    """Return the names of the folders in a folder, without files, links and the like."""
    return sorted(x.name for x in path.iterdir() if is_folder(x))


def count_files(path: str | Path) -> int:
    """Return how many files a folder has, apart from those that Python compiles by itself.

    find follows no link, and minds no depth; where it has trouble, no count is right.
    """
    each = "-name __pycache__ -prune -o ! -type d ! -xtype d -printf ."
    done = _below(path, "find", "-P", "{}", *each.split())
    return -1 if done.returncode else len(done.stdout)


def _below(path: str | Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a program in the folder that a path ends in; ``{}`` is what is there."""
    import subprocess  # slow, and a slot that starts has no need of it

    with place(path) as (folder, name):
        return subprocess.run(
            [f"./{name}" if word == "{}" else word for word in command],
            cwd=f"/proc/{os.getpid()}/fd/{folder}",
            env=os.environ | {"LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )


def read(path: str | Path) -> str | None:
    """Return the text of a file, or None where there is none."""
    data = read_bytes(path)
    return None if data is None else data.decode("utf-8", "surrogateescape")


def read_bytes(path: str | Path, owners: Container[int] | None = None) -> bytes | None:
    """Return what a file holds, or None where there is none."""
    try:
        with held(path, True, owners) as (way, there):
            if stat.S_ISDIR(there.st_mode):
                raise refusal(errno.EISDIR, "It is a folder", path)
            if not stat.S_ISREG(there.st_mode):
                raise refusal(errno.EINVAL, "It is no file", path)
            with Path(way).open("rb") as file:
                data = file.read(LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if len(data) > LIMIT:
        raise refusal(errno.EFBIG, "It is too large", path)
    return data


def tail(path: str | Path, length: int) -> bytes:
    """Return the end of a file that may be longer than what is ever read of one."""
    with held(path) as (way, there), Path(way).open("rb") as file:
        file.seek(max(0, there.st_size - length))
        return file.read(length)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file, or a folder that is there. The kernel takes the lock back from who is killed."""
    create = 0 if path.is_dir() else os.O_CREAT
    with place(path) as (folder, name):
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | create
        descriptor = os.open(name, flags, 0o600, dir_fd=folder)
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
    staged = path.with_name(f".{path.name}.{os.getpid()}{SUFFIX}")
    with place(path) as (folder, name):
        _sweep(folder, name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(staged.name, dir_fd=folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        descriptor = os.open(staged.name, flags, 0o600, dir_fd=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                # The owner first: a change of owner takes the set-user-ID bit away.
                os.fchown(descriptor, uid, gid)
                os.fchmod(descriptor, mode)
                os.fsync(descriptor)
        except BaseException:
            os.unlink(staged.name, dir_fd=folder)
            raise
    return staged


def land(staged: Path, path: str | Path) -> None:
    """Move what stage() wrote into its place."""
    with place(path) as (folder, name):
        try:
            os.replace(staged.name, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(staged.name, dir_fd=folder)
            raise
        _sync(folder)


def make_folder(path: str | Path) -> None:
    """Make a folder that nobody but its owner may use, until set_attributes()."""
    with place(path) as (folder, name):
        os.mkdir(name, 0o700, dir_fd=folder)


def set_attributes(
    path: str | Path, mode: int, owner: str | int | None, group: str | int | None
) -> None:
    """Set who owns a file, or a folder, and what it lets others do."""
    uid, gid = user_id(owner), group_id(group)
    # To a folder a link of root's may lead.
    with held(path, Path(path).is_dir()) as (way, there):
        # A file with a second name is somebody else's, too.
        whole = stat.S_ISREG(there.st_mode) and there.st_nlink == 1
        if not whole and not stat.S_ISDIR(there.st_mode):
            raise refusal(errno.EINVAL, "It is no folder, and no file with one name", path)
        os.chown(way, uid, gid)
        Path(way).chmod(mode)


def remove(path: str | Path) -> None:
    """Remove what is there, a folder with all that is in it; of a link, only the link goes.

    Raises OSError if some stays. rm goes by handles, however deep folders lie in each other, and
    opens nothing else; shutil.rmtree would wait for ever for a FIFO in the place of a folder.
    """
    try:
        with place(path) as (folder, name):
            try:
                os.unlink(name, dir_fd=folder)
            except IsADirectoryError:
                done = _below(path, "rm", "-rf", "--one-file-system", "{}")
                if done.returncode:
                    said = (done.stderr.strip().splitlines() or ["rm failed"])[-1]
                    raise refusal(errno.ENOTEMPTY, f"Not all of it goes ({said})", path) from None
            _sync(folder)
    except (FileNotFoundError, NotADirectoryError):
        return


@contextlib.contextmanager
def scratch(prefix: str) -> Iterator[str]:
    """Have a folder for a while, which somebody else may get to work in."""
    import tempfile  # as slow

    folder = tempfile.mkdtemp(prefix=prefix)
    try:
        yield folder
    finally:
        remove(folder)


def _sync(folder: int) -> None:
    """Make sure that a change of names in a folder outlasts a loss of power."""
    descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(folder: int, name: str) -> None:
    """Remove what writers that are no longer alive left beside a file."""
    start = f".{name}."
    for leftover in [x.name for x in Path(f"/proc/self/fd/{folder}").iterdir()]:
        pid = leftover.removeprefix(start).removesuffix(SUFFIX)
        written = leftover == f"{start}{pid}{SUFFIX}" and pid.isdecimal()
        if written and not Path("/proc", pid).exists():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(leftover, dir_fd=folder)
