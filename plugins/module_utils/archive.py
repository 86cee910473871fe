"""Pack what an app leaves behind, before it goes."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from ansible.module_utils.common.text.formatters import bytes_to_human

from . import files
from .commands import Failure
from .words import one_line

ROOM = 64 * 1024**2  # bytes that stay free for others
HEADERS = 3 * tarfile.BLOCKSIZE  # of a file with a long name, and what fills its last block


def measured(folder: Path) -> tuple[int, int]:
    """Return how many files a folder has in all, and their bytes; no link is followed."""
    count = size = 0
    for place, folders, names in os.walk(folder):
        # Of a link to a folder, the link is what is packed.
        for name in [*names, *(x for x in folders if Path(place, x).is_symlink())]:
            count += 1
            size += Path(place, name).lstat().st_size
    return count, size


def make(wanted: dict[str, Any], check: bool) -> dict[str, Any]:
    """Make the archive that a module is asked for, and return what it returns."""
    folder, dest = Path(wanted["folder"]), Path(wanted["dest"])
    count, size = measured(folder) if files.is_folder(folder) else (0, 0)
    if not count:
        return {"changed": False, "changes": [], "archives": []}
    what = f"{folder}: {count} {'file' if count == 1 else 'files'}, {bytes_to_human(size)}"
    free = shutil.disk_usage(folder).free
    if size + count * HEADERS + ROOM > free:
        raise Failure(
            f"There is no room to pack {what}, since {bytes_to_human(free)} are free. Nothing of it"
            f" went. Fetch it yourself, or make room; {wanted['otherwise']}"
        )
    if not check:
        pack(folder, dest, wanted["user"])
    return {"changed": True, "changes": [f"pack {what}"], "archives": [str(dest)]}


def pack(folder: Path, dest: Path, user: str) -> None:
    dest.parent.mkdir(exist_ok=True)
    # One knows the name of what one is to fetch.
    dest.parent.chmod(0o711)
    files.remove(dest)
    descriptor = os.open(dest, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    with os.fdopen(descriptor, "wb") as file:
        done = subprocess.run(
            ["tar", "--create", "--numeric-owner", f"--directory={folder}", "."],
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={"LC_ALL": "C.UTF-8", "PATH": os.defpath},
            check=False,
        )
    if done.returncode:
        dest.unlink()
        raise Failure(f"{folder} could not be packed, and stays: {one_line(done.stderr)}")
    os.chown(dest, files.user_id(user), -1)
