"""Pack an app's code into one archive whose name says what is in it.

The same content gives the same archive, wherever and whenever it is packed. All of it runs on the
control machine, where several runs may pack at the same time.
"""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import gzip
import hashlib
import io
import os
import re
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ..module_utils.commands import Failure, ask
from ..module_utils.files import locked, write

GENERATED = ".requirements.txt"
INCLUDE = re.compile(r"^\s*(?:-r|-c|--requirement|--constraint)[\s=]+(\S+)")
VERSIONED = re.compile(r"===?|~=|@")
KEPT = 30 * 86400  # seconds for which an archive that no run has asked for stays in the cache

Files = dict[str, tuple[int, bytes | str]]


def collect(folder: Path, exclude: list[str]) -> Files:
    """Return the files below a folder as {path in the release: (mode, bytes or link target)}."""
    found: Files = {}
    for top, folders, files in os.walk(folder):
        parent = Path(top).relative_to(folder)

        def stays(entry: str, parent: Path = parent) -> bool:
            paths = (entry, (parent / entry).as_posix())
            return not any(fnmatch.fnmatch(path, pattern) for path in paths for pattern in exclude)

        links = [x for x in folders if Path(top, x).is_symlink()]
        folders[:] = sorted(x for x in folders if stays(x) and x not in links)
        for entry in filter(stays, files + links):
            path = Path(top, entry)
            if path.is_symlink():
                found[(parent / entry).as_posix()] = (0o777, str(path.readlink()))
            elif path.is_file():
                mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
                found[(parent / entry).as_posix()] = (mode, path.read_bytes())
    return found


def requirements_of(found: Files, wanted: str) -> tuple[str, str]:
    """Return the path that pip reads and the text that decides what it installs."""
    candidates = [wanted] if wanted else ["requirements.txt", "pyproject.toml"]
    path = next((x for x in candidates if x in found), None)
    if path is None:
        raise Failure(
            f"No {' or '.join(candidates)} in the app's folder. Add one, or set app_requirements to"
            " the file that names its Python dependencies."
        )
    if not path.endswith(".toml"):
        return path, included(found, path, set())
    try:
        project = tomllib.loads(text_of(found, path)).get("project", {})
    except tomllib.TOMLDecodeError as error:
        raise Failure(f"{path} in the app's folder is not TOML: {error}.") from None
    if "dependencies" not in project:
        raise Failure(
            f"{path} in the app's folder has no dependencies in [project], so nothing would be"
            " installed. Name them there, or set app_requirements to the file that does."
        )
    text = "".join(f"{line}\n" for line in project["dependencies"])
    found[GENERATED] = (0o644, text.encode())
    return GENERATED, text


def text_of(found: Files, path: str) -> str:
    content = found[path][1]
    try:
        return content if isinstance(content, str) else content.decode()
    except UnicodeDecodeError:
        raise Failure(f"{path} in the app's folder is not UTF-8. Save it as such.") from None


def included(found: Files, path: str, seen: set[str]) -> str:
    """Return a requirements file's text with that of the files it includes."""
    if path in seen or path not in found:
        return ""
    seen.add(path)
    text = text_of(found, path)
    for line in text.splitlines():
        if match := INCLUDE.match(line):
            beside = os.path.normpath(PurePosixPath(path).parent / match[1])
            text += included(found, beside, seen)
    return text


def archive_of(found: Files) -> bytes:
    """Return a compressed tar archive of the files, the same for the same content."""
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, compresslevel=6) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path, (mode, content) in sorted(found.items()):
            entry = tarfile.TarInfo(path)
            entry.mode = mode
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def keep(cache: Path, revision: str, found: Files) -> Path:
    """Return the archive of the files in the cache; remove those that no run has asked for."""
    archives = cache / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    archive = archives / f"{revision}.tar.gz"
    if not archive.exists():
        write(archive, archive_of(found))
    os.utime(archive)
    for path in archives.iterdir():
        # Another run may remove the same one.
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < time.time() - KEPT:
                path.unlink()
    return archive


def pack(app: Mapping[str, Any], cache: Path) -> dict[str, Any]:
    """Pack an app; the keys are the options of the module C(carafe.stack.pack).

    Returns its RETURN values. Raises Failure.
    """
    packages = [requirement_of(app)] if app["source"] == "package" else []
    with source_of(app, cache) as (folder, commit):
        found: Files = {}
        if folder is not None:
            inside = folder / app["subdirectory"]
            if not inside.is_dir():
                raise Failure(
                    f"There is no folder {app['subdirectory']} in the app's code. Correct"
                    " app_subdirectory."
                )
            found = collect(inside, app["exclude"])
            if not found:
                raise Failure(
                    f"{app['path'] or app['repository']} holds no file to deploy. Correct app_path,"
                    " app_subdirectory or app_exclude."
                )
    for extra in app["files"]:
        found[os.path.normpath(extra["path"])] = (0o644, extra["content"].encode())
    if packages:
        text = "".join(f"{line}\n" for line in packages)
        found[GENERATED], requirements = (0o644, text.encode()), GENERATED
    else:
        requirements, text = requirements_of(found, app["requirements"])
    digest = hashlib.sha256()
    for path, (mode, content) in sorted(found.items()):
        data = content.encode() if isinstance(content, str) else content
        digest.update(f"{path}\0{mode:o}\0{len(data)}\0".encode() + data)
    revision = digest.hexdigest()
    labels = {
        "git": f"{app['version'] or 'HEAD'} {commit[:10]}",
        "package": " ".join(packages).replace("==", " "),
        "local": revision[:10],
    }
    archive = keep(cache, revision, found)
    return {
        "revision": revision,
        "requirements": requirements,
        "dependencies": hashlib.sha256(text.encode()).hexdigest(),
        "archive": str(archive),
        "size": archive.stat().st_size,
        "label": labels[app["source"]],
    }


def requirement_of(app: Mapping[str, Any]) -> str:
    """Return what pip is asked for when the app is a package."""
    name, version = str(app["package"] or ""), str(app["version"] or "")
    if VERSIONED.search(name):
        return name
    if not version:
        raise Failure(
            f"app_package is {name!r} without a version, so two releases could hold two versions of"
            f" it unnoticed. Name one: app_package: {name or 'isso'}==1.2.3"
        )
    return f"{name}=={version}"


@contextlib.contextmanager
def source_of(app: Mapping[str, Any], cache: Path) -> Iterator[tuple[Path | None, str]]:
    """Give the folder with the app's code, None for a package, and its commit or ''."""
    if app["source"] == "package":
        yield None, ""
    elif app["source"] == "local":
        if not app["path"]:
            raise Failure(
                "Nothing says where the app's code is. Set app_path (a folder on this machine),"
                " app_repository (git) or app_package (the package index)."
            )
        folder = Path(app["path"]).expanduser()
        if not folder.is_dir():
            raise Failure(
                f"{folder} is not a folder on the control machine. Correct app_path; a relative one"
                f" begins in {Path.cwd()}."
            )
        yield folder, ""
    else:
        if not app["repository"]:
            raise Failure("app_source is git, and app_repository is not set. Set it to the URL.")
        # A folder of this run's own: another run may want another version at the same time.
        with tempfile.TemporaryDirectory(prefix="carafe-") as folder:
            yield Path(folder), checkout(app["repository"], app["version"], Path(folder), cache)


def without_login(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)


class Git:
    """Git for one repository, which must never wait for somebody to type something."""

    def __init__(self, url: str):
        self.url = url
        ssh = os.environ.get("GIT_SSH_COMMAND", "ssh -o BatchMode=yes")
        self.environment = {"GIT_TERMINAL_PROMPT": "0", "GIT_SSH_COMMAND": ssh}

    def run(self, *words: str, check: bool = True) -> str:
        # A line that has died is noticed after a minute.
        slow = ["-c", "http.lowSpeedLimit=1", "-c", "http.lowSpeedTime=60"]
        try:
            done = ask("git", *slow, *words, **self.environment)
        except FileNotFoundError:
            raise Failure(
                "git is not installed on the control machine. Install it, and run this again."
            ) from None
        if done.returncode and check:
            said = " ".join(done.stderr.replace(self.url, without_login(self.url)).split()[-60:])
            raise Failure(
                f"git could not get {without_login(self.url)}: {said} Correct app_repository, or"
                f" see by hand: git ls-remote {without_login(self.url)}"
            )
        return "" if done.returncode else done.stdout.strip()


def checkout(url: str, version: str | None, folder: Path, cache: Path) -> str:
    """Put a version of a repository into an empty folder; return the commit.

    What was fetched is kept in the cache, which one run at a time brings up to date.
    """
    git = Git(url)
    mirror = cache / "git" / hashlib.sha256(url.encode()).hexdigest()[:16]
    mirror.parent.mkdir(parents=True, exist_ok=True)
    with locked(mirror.with_suffix(".lock")):
        # One that is half there comes from a run that was killed.
        if git.run("-C", str(mirror), "rev-parse", "--is-bare-repository", check=False) != "true":
            git.run("init", "--quiet", "--bare", str(mirror))
        bare = ("-C", str(mirror))
        every = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
        git.run(*bare, "fetch", "--quiet", "--prune", "--force", url, *every)
        commit = resolve(git, bare, version)
        # It shares the objects, which nobody removes while the lock is held.
        clone = ("clone", "--quiet", "--shared", "--no-checkout", str(mirror), str(folder))
        git.run(*clone)
        inside = ("-C", str(folder))
        # Submodules may be named relative to it.
        git.run(*inside, "remote", "set-url", "origin", url)
        git.run(*inside, "checkout", "--quiet", "--detach", commit)
    git.run(*inside, "submodule", "--quiet", "update", "--init", "--recursive")
    return commit


def resolve(git: Git, bare: tuple[str, ...], version: str | None) -> str:
    """Return the commit that a branch, a tag or the beginning of a commit's hash names."""
    if not version:
        head = git.run("ls-remote", "--symref", git.url, "HEAD")
        found = re.search(r"^ref: (\S+)\s+HEAD$", head, re.MULTILINE)
        names = [found[1] if found else head.split()[0]]
    else:
        names = [f"refs/heads/{version}", f"refs/tags/{version}"]
        if re.fullmatch(r"[0-9a-f]{4,64}", version):
            names.append(version)
            if len(version) >= 40:
                # One that no branch and no tag leads to any more.
                git.run(*bare, "fetch", "--quiet", git.url, version, check=False)
    for name in names:
        if commit := git.run(*bare, "rev-parse", "--verify", f"{name}^{{commit}}", check=False):
            return commit
    known = git.run(*bare, "for-each-ref", "--format=%(refname:short)").split()
    close = difflib.get_close_matches(str(version), known, n=3)
    guess = f" Did you mean {' or '.join(close)}?" if close else ""
    raise Failure(
        f"app_version is {version!r}, and {without_login(git.url)} has no branch, tag or commit of"
        f" that name.{guess} Correct app_version."
    )
