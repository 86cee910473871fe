"""Folders of what an app's visitors send: the web server may read what the app writes there.

A default ACL says so, which holds for all that is made in such a folder, whatever the umask.
"""

from __future__ import annotations

import os
import pwd
import struct
from pathlib import Path
from typing import Any

from .commands import CommandFailed, Failure, Refused, run

READ, PASS = 5, 1  # what a folder allows: to read what is in it, or to pass through alone
# As the kernel has it: a version, and then kind, permissions and user of each entry.
VERSION, ENTRY = 4, struct.Struct("<HHI")
OF_A_USER, MASK = 0x02, 0x10


def allows(path: Path, user: int, wanted: int, kind: str = "access") -> bool:
    """Tell whether an ACL of a folder allows a user what is wanted."""
    try:
        data = os.getxattr(path, f"system.posix_acl_{kind}", follow_symlinks=False)
    except OSError:  # there is none, or no such folder
        return False
    entries = {(tag, who if tag == OF_A_USER else 0): can for tag, can, who in parts(data)}
    return entries.get((OF_A_USER, user), 0) & entries.get((MASK, 0), 7) & wanted == wanted


def parts(data: bytes) -> list[tuple[int, int, int]]:
    return list(ENTRY.iter_unpack(data[VERSION:]))


def around(app: dict[str, Any], folder: str) -> list[Path]:
    """Return the folders around one that are the app's own, and so closed to others."""
    names = [str(x) for x in Path(folder).parents]
    kept = tuple(x.rstrip("/") + "/" for x in app["shared"])
    own = [x for x in names if f"{x}/".startswith(kept)]
    return [Path(app["root"], "shared", x) for x in own]


def open_to_web(app: dict[str, Any], check: bool) -> list[str]:
    """Let the web server read what is in the folders of uploads; return those that were closed."""
    if not app["uploads"]:
        return []
    try:
        web = pwd.getpwnam(app["web_user"]).pw_uid
    except KeyError:
        raise Refused(
            f"app_web_user is {app['web_user']}, and the server has no such user."
        ) from None
    opened = []
    for folder in app["uploads"]:
        path, closed = Path(app["root"], "shared", folder), around(app, folder)
        if not (
            allows(path, web, READ)
            and allows(path, web, READ, "default")
            and all(allows(x, web, PASS) for x in closed)
        ):
            opened.append(f"{path}, for {app['web_user']} to read")
            if not check:
                let_in(app, path, closed)
    return opened


def let_in(app: dict[str, Any], path: Path, closed: list[Path]) -> None:
    # As the app's user, to whom all of it belongs: root would follow a link that the app has made.
    user, web = ["runuser", "-u", app["user"], "--"], app["web_user"]
    try:
        run(*user, "mkdir", "-p", path)
        if closed:
            run(*user, "setfacl", "-m", f"u:{web}:x", *closed)
        run(*user, "setfacl", "-RPm", f"u:{web}:rX", path)
        # Last, as the sign that all else went well.
        run(*user, "setfacl", "-RPm", f"d:u:{web}:rX", path)
    except CommandFailed as failure:
        raise Failure(
            f"app_uploads: {path} cannot be opened to {web}: {failure}. It needs a file system with"
            f" ACLs, and all in it must be {app['user']}'s: chown -R {app['user']}: {path}"
        ) from None
