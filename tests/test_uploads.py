"""What visitors send is the web server's to read, whatever the app's umask."""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import uploads
from ansible_collections.carafe.stack.plugins.module_utils.commands import Failure, Refused
from conftest import Role

WEB = pwd.getpwnam("www-data").pw_uid
NO_ID = 0xFFFFFFFF
BECOME = '#!/bin/sh\nshift 3; exec "$@"\n'


def acl(user: int, mask: int = 7, who: int = WEB) -> bytes:
    """Return an ACL as the kernel has it."""
    entries = [(1, 7, NO_ID), (2, user, who), (4, 5, NO_ID), (16, mask, NO_ID), (32, 0, NO_ID)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *x) for x in entries)


@pytest.mark.parametrize(
    ("given", "wanted", "allowed"),
    [
        (acl(5), uploads.READ, True),
        (acl(7), uploads.READ, True),
        (acl(4), uploads.READ, False),
        (acl(1), uploads.PASS, True),
        # A chmod closes the folder to all but its owner.
        (acl(5, mask=0), uploads.READ, False),
        (acl(5, mask=1), uploads.PASS, True),
        (acl(5, who=WEB + 1), uploads.READ, False),
        (b"", uploads.READ, False),
    ],
)
def test_an_acl_is_read_as_the_kernel_does(
    monkeypatch: pytest.MonkeyPatch, given: bytes, wanted: int, allowed: bool
) -> None:
    def read(*_: Any, **__: Any) -> bytes:
        if not given:
            raise OSError
        return given

    monkeypatch.setattr(os, "getxattr", read)
    assert uploads.allows(Path("/x"), WEB, wanted) == allowed


@pytest.mark.parametrize(
    ("shared", "given", "kept", "closed"),
    [
        ([], {"/m/": "media"}, ["media"], []),
        ([], {"/m/": "a/media"}, ["a/media"], []),
        (["data"], {"/m/": "media/"}, ["data", "media"], []),
        (["data"], {"/m/": "data"}, ["data"], []),
        (["data"], {"/m/": "data/a/media"}, ["data"], ["data/a", "data"]),
        (["data"], {"/m/": "database"}, ["data", "database"], []),
        ([], {"/n/": "media/thumbs", "/m/": "media"}, ["media"], []),
        (["d.ta/"], {"/m/": "data/media", "/n/": "d.ta/m"}, ["d.ta/", "data/media"], ["d.ta"]),
    ],
)
def test_uploads_are_kept_and_the_folders_around_them_are_let_through(
    shared: list[str], given: dict[str, str], kept: list[str], closed: list[str]
) -> None:
    role, variables = Role("app"), {"app_shared": shared, "app_uploads": given}
    assert role.value("__app_shared", **variables) == kept
    app = {"root": "/x", "shared": kept}
    last = role.value("__app_uploads", **variables)[-1]
    assert uploads.around(app, last) == [Path("/x/shared", x) for x in closed]


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/runuser").write_text(BECOME)
    (tmp_path / "bin/runuser").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    (tmp_path / "shared/data").mkdir(parents=True)
    return {
        "root": str(tmp_path),
        "user": getpass.getuser(),
        "web_user": "www-data",
        "shared": ["data"],
        "uploads": ["data/media"],
    }


def test_a_dry_run_says_what_would_be_opened_and_opens_nothing(app: dict[str, Any]) -> None:
    [said] = uploads.open_to_web(app, check=True)
    assert "data/media" in said
    assert not Path(app["root"], "shared/data/media").exists()


def test_without_uploads_nothing_is_asked(app: dict[str, Any]) -> None:
    assert uploads.open_to_web(app | {"uploads": [], "web_user": "nobody-at-all"}, False) == []


def test_a_user_that_is_not_there_is_told_in_one_line(app: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="app_web_user is nobody-at-all"):
        uploads.open_to_web(app | {"web_user": "nobody-at-all"}, check=False)


def test_what_cannot_be_opened_is_told_with_what_to_do(app: dict[str, Any]) -> None:
    setfacl = Path(app["root"], "bin/setfacl")
    setfacl.write_text("#!/bin/sh\necho Operation not supported >&2; exit 1\n")
    setfacl.chmod(0o755)
    with pytest.raises(Failure, match=r"Operation not supported.*chown -R"):
        uploads.open_to_web(app, check=False)


@pytest.mark.skipif(not shutil.which("setfacl"), reason="needs the package acl")
def test_what_is_opened_stays_so_and_is_not_opened_again(app: dict[str, Any]) -> None:
    media = Path(app["root"], "shared/data/media")
    media.mkdir()
    (media / "old.txt").touch(0o600)
    assert uploads.open_to_web(app, check=False)
    assert uploads.open_to_web(app, check=False) == []
    before = os.umask(0o077)
    try:
        (media / "new").mkdir()
        (media / "new/file.txt").touch()
    finally:
        os.umask(before)
    assert uploads.allows(media / "old.txt", WEB, 4)
    assert uploads.allows(media / "new/file.txt", WEB, 4)
    assert not uploads.allows(media / "new/file.txt", WEB, 1)
    # Somebody closes a folder around it.
    Path(app["root"], "shared/data").chmod(0o700)
    assert uploads.open_to_web(app, check=True)
