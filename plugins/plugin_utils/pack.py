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
import json
import os
import re
import stat
import tarfile
import tempfile
import time
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ..module_utils.commands import Failure, ask
from ..module_utils.files import locked, write
from ..module_utils.words import one_line
from . import pins, project
from .secret_files import folder_looks_secret, looks_secret
from .urls import credential, without_credentials

GENERATED = ".requirements.txt"
OVERRIDE = ".requirements.override.txt"
# What says what is installed: the first that is there, and a lock before what it was made from.
LOCKS = {x: x for x in ("uv.lock", "poetry.lock", "Pipfile.lock")}
NAMES_OF_DEPENDENCIES = ["pylock.toml", *LOCKS, "requirements.txt", "pyproject.toml"]
# A requirement that no index resolves: pip builds it, whatever it is told of wheels.
DIRECT = re.compile(r"-e\b|--editable\b|[./]|[^-\s][^;]*(?:@|/|[.](?:zip|tgz|tar)\b)")
VERSIONED = re.compile(r"===?|~=|@")
KEPT = 30 * 86400  # seconds for which an archive that no run has asked for stays in the cache

NAMED = 10  # of what is left out, that a warning names
# What is left out or sent all the same, and what to do about it, by why.
SECRET, COMMITTED, OUTSIDE, NO_FILE = "secret", "committed", "outside", "no file"
WARNINGS = {
    SECRET: "{source}: left at home, since they look like secrets: {names}. Name one in app_include"
    " to let it travel.",
    COMMITTED: "{source}: committed and sent to the server, though they look like secrets: {names}."
    " Leave one out by app_exclude, or name what is none in app_include.",
    OUTSIDE: "{source}: left out, since these links lead out of the app's folder: {names}. For what"
    " the app keeps on the server there is app_shared.",
    NO_FILE: "{source}: left out, since these are no files: {names}.",
}

Files = dict[str, tuple[int, bytes | str]]


def matches(path: str, patterns: list[str]) -> bool:
    """Tell whether the path of an entry, or its name, is one of the patterns."""
    names = (path, PurePosixPath(path).name)
    return any(fnmatch.fnmatch(name, pattern) for name in names for pattern in patterns)


def leads_out(folder: Path, link: Path) -> bool:
    """Tell whether a link leads out of the folder, as it is written or by other links."""
    target = link.readlink()
    written = os.path.normpath(link.parent.relative_to(folder) / target)
    real = Path(os.path.realpath(link))
    inside = real.is_relative_to(os.path.realpath(folder))
    return target.is_absolute() or PurePosixPath(written).parts[:1] == ("..",) or not inside


def content_of(path: Path) -> tuple[int, bytes] | None:
    """Return mode and content of a file; None of what is none, and may never come to an end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if not path.is_file():  # a socket, or a device
            return None
        raise Failure(
            f"{path} cannot be read: {error.strerror}. Correct that, or name it in app_exclude."
        ) from None
    with os.fdopen(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            return None
        return 0o755 if mode & 0o100 else 0o644, file.read()


def collect(
    folder: Path, exclude: list[str], include: list[str] = (), committed: bool = False
) -> tuple[Files, dict[str, list[str]]]:
    """Return the files below a folder as {path in the release: (mode, bytes or link target)}.

    Also returns what was left out, or looks as if it should have been, by why. What is committed is
    the app's, and comes along whatever it looks like: for a test's key no deployment fails.
    """
    found: Files = {}
    noted: dict[str, list[str]] = defaultdict(list)
    for top, folders, files in os.walk(folder):
        parent = Path(top).relative_to(folder)
        paths = {x: (parent / x).as_posix() for x in (*folders, *files)}
        wanted = {x for x, path in paths.items() if not matches(path, exclude)}
        named = {x for x, path in paths.items() if matches(path, include)}
        links = {x for x in (*folders, *files) if Path(top, x).is_symlink()}
        below = []
        for entry in sorted(x for x in folders if x in wanted and x not in links):
            what = "" if entry in named else folder_looks_secret(entry)
            if what == "history" and committed:
                continue
            if what:
                noted[COMMITTED if committed else SECRET].append(f"{paths[entry]}/")
            if committed or not what:
                below.append(entry)
        folders[:] = below
        for entry in sorted(x for x in paths if x in wanted and (x in links or x in files)):
            path, source = paths[entry], Path(top, entry)
            if entry in links:
                if leads_out(folder, source) and entry not in named:
                    noted[OUTSIDE].append(f"{path} -> {source.readlink()}")
                else:
                    found[path] = (0o777, str(source.readlink()))
                continue
            file = content_of(source)
            if file is None:
                noted[NO_FILE].append(path)
                continue
            what = "" if entry in named else looks_secret(path, file[1])
            if what == "history" and committed:
                continue
            if what:
                noted[COMMITTED if committed else SECRET].append(f"{path} ({what})")
            if committed or not what:
                found[path] = file
    return found, noted


def warnings_of(source: str, noted: Mapping[str, list[str]]) -> list[str]:
    """Return what is said of what was left out."""
    said = []
    for why, text in WARNINGS.items():
        if names := sorted(noted.get(why, [])):
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            listed = ", ".join(one_line(name) for name in names[:NAMED]) + more
            said.append(text.format(source=source, names=listed))
    return said


def requirements_of(found: Files, wanted: str) -> tuple[str, str]:
    """Return the path of what is installed, and the text that decides what that is."""
    candidates = [wanted] if wanted else NAMES_OF_DEPENDENCIES
    path = next((x for x in candidates if x in found), None)
    if path is None:
        raise Failure(
            f"No {' or '.join(candidates)} in the app's folder. Add one, or set app_requirements to"
            " the file that names its Python dependencies."
        )
    kind = lock_kind(path)
    if kind == "Pipfile.lock":
        text = of_pipfile(parsed(found, path, is_json=True), path)
        found[GENERATED] = (0o644, text.encode())
        return GENERATED, text
    if kind:
        # Of what is locked, these two say which part is the app's.
        beside = str(PurePosixPath(path).parent / "pyproject.toml")
        if kind != "pylock.toml" and beside not in found:
            raise Failure(
                f"{path} is in the app's folder without {beside}, which {kind} belongs to. Add it,"
                " or set app_requirements to another file."
            )
        parsed(found, path)
        return path, text_of(found, path) + (text_of(found, beside) if beside in found else "")
    if not path.endswith(".toml"):
        return path, included(found, path, set())
    project = parsed(found, path).get("project", {})
    if "dependencies" not in project:
        raise Failure(
            f"{path} in the app's folder has no dependencies in [project], so nothing would be"
            " installed. Name them there, or set app_requirements to the file that does."
        )
    text = "".join(f"{line}\n" for line in project["dependencies"])
    found[GENERATED] = (0o644, text.encode())
    return GENERATED, text


def lock_kind(path: str) -> str:
    """Return which lock a file is, '' for a requirements file or a pyproject.toml."""
    name = PurePosixPath(path).name
    return "pylock.toml" if re.fullmatch(r"pylock([.][^.]+)?[.]toml", name) else LOCKS.get(name, "")


def parsed(found: Files, path: str, *, is_json: bool = False) -> dict[str, Any]:
    text = text_of(found, path)
    try:
        value = json.loads(text) if is_json else tomllib.loads(text)
    except ValueError as error:
        kind = "JSON" if is_json else "TOML"
        raise Failure(f"{path} in the app's folder is not {kind}: {error}.") from None
    if not isinstance(value, dict):
        raise Failure(f"{path} in the app's folder is no lock: it is not a JSON object.")
    return value


def of_pipfile(lock: Mapping[str, Any], path: str) -> str:
    """Return the requirements file that says what a Pipfile.lock does.

    The format is pipenv's Pipfile.lock of version 6 (https://github.com/pypa/pipfile).
    """
    if "default" not in lock:
        raise Failure(f"{path} in the app's folder has no section default. Run: pipenv lock")
    lines = []
    for number, source in enumerate(lock.get("_meta", {}).get("sources", [])):
        # By this name pipenv calls everybody's index, for which the server may have another.
        if source.get("name") != "pypi":
            lines.append(f"{'--extra-index-url' if number else '--index-url'} {source['url']}")
    for name, entry in sorted(lock["default"].items()):
        extras = ",".join(entry.get("extras", []))
        named = f"{name}[{extras}]" if extras else name
        vcs = next((x for x in ("git", "hg", "svn", "bzr") if x in entry), "")
        if vcs:
            url, inside = entry[vcs].removeprefix(f"{vcs}+"), entry.get("subdirectory")
            named += f" @ {vcs}+{url}@{entry.get('ref', 'HEAD')}"
            named += f"#subdirectory={inside}" if inside else ""
        elif "file" in entry:
            named += f" @ {entry['file']}"
        elif "path" in entry:
            named = entry["path"] + (f"[{extras}]" if extras else "")
        elif "version" in entry:
            named += entry["version"]
        else:
            raise Failure(f"{path} in the app's folder has no version of {name}. Run: pipenv lock")
        marker = f" ; {entry['markers']}" if entry.get("markers") else ""
        known = [] if vcs or "path" in entry else entry.get("hashes", [])
        hashes = "".join(f" --hash={x}" for x in known)
        lines.append(f"{named}{marker}{hashes}")
    return "".join(f"{line}\n" for line in lines)


def built_of_lock(found: Files, path: str) -> str:
    """Return a package of a lock that no index has as a wheel, so that it is built, or ''."""
    lock = parsed(found, path)
    for entry in lock.get("package", lock.get("packages", [])):
        source = entry.get("source") or {}
        places = {*source, source.get("type", ""), *entry}
        # The app's own entry is not installed.
        own = source.get("virtual") == "." or source.get("editable") == "."
        if not own and places & {"git", "hg", "vcs", "directory", "editable", "path", "archive"}:
            return entry.get("name", "")
    return ""


def local_of_lock(found: Files, path: str) -> set[str]:
    """Return the folders and files of the app from which a lock has packages."""
    lock, places = parsed(found, path), set()
    for entry in lock.get("package", lock.get("packages", [])):
        source = entry.get("source") or {}
        if source.get("type") in ("directory", "file"):
            places.add(source.get("url"))
        for key in ("directory", "editable", "path", "archive"):
            value = source.get(key, entry.get(key))
            places.add(value.get("path") if isinstance(value, dict) else value)
    # The app's own entry is not installed.
    return {x for x in places if isinstance(x, str) and not x.startswith("/")} - {"."}


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
        if match := pins.INCLUDE.match(line):
            beside = os.path.normpath(PurePosixPath(path).parent / match[1])
            text += included(found, beside, seen)
    return text


def built_anyway(text: str) -> str:
    """Return a requirement that is built although wheels alone are wanted, or ''."""
    for line in text.splitlines():
        asked = pins.COMMENT.sub("", line).strip()
        # What follows is a hash, or where it is meant for.
        if DIRECT.match(asked) and not re.match(r"\S*( *@ *\S+)?[.]whl(?![^\s;#])", asked):
            return asked
    return ""


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
    archives.mkdir(mode=0o700, parents=True, exist_ok=True)
    archive = archives / f"{revision}.tar.gz"
    if not archive.exists():
        write(archive, archive_of(found), 0o600)
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
    private(cache)
    packages = [requirement_of(app)] if app["source"] == "package" else []
    noted: Mapping[str, list[str]] = {}
    with source_of(app, cache) as (folder, commit):
        found: Files = {}
        if folder is not None:
            inside = folder / app["subdirectory"]
            if not inside.is_dir():
                raise Failure(
                    f"There is no folder {app['subdirectory']} in the app's code. Correct"
                    " app_subdirectory."
                )
            found, noted = collect(inside, app["exclude"], app["include"], bool(commit))
            if not found:
                place = app["path"] or without_credentials(app["repository"])
                raise Failure(
                    f"{place} holds no file to deploy. Correct app_path, app_subdirectory or"
                    " app_exclude."
                )
    for extra in app["files"]:
        found[os.path.normpath(extra["path"])] = (0o644, extra["content"].encode())
    if packages:
        text = "".join(f"{line}\n" for line in packages)
        found[GENERATED], requirements = (0o644, text.encode()), GENERATED
    else:
        there = [x for x in NAMES_OF_DEPENDENCIES[:-1] if x in found]
        requirements, text = requirements_of(found, app["requirements"])
    warnings = warnings_of("app_repository" if app["source"] == "git" else "app_path", noted)
    if not packages and not app["requirements"] and len(there) > 1:
        warnings.append(
            f"Of {', '.join(there)} in the app's folder, the first says what is installed. Set"
            " app_requirements to the one that is meant."
        )
    lock = lock_kind(requirements)
    if lock and app["installer"] != "uv":
        raise Failure(
            f"pip cannot install from {requirements}. Leave app_installer at uv, or set"
            " app_requirements to a requirements file."
        )
    override = ""
    if app["override"]:
        override = pins.apply(app["override"], found, requirements, lock)
        found[OVERRIDE] = (0o644, override.encode())
        # What is left of it.
        if lock == "pylock.toml":
            text = text_of(found, requirements)
        elif not lock:
            text = included(found, requirements, set())
    # As pip takes it: where one has a hash, all must have one.
    hashed = not lock and "--hash=" in text
    built = built_of_lock(found, requirements) if lock else built_anyway(text)
    inside = local_of_lock(found, requirements) if lock else pins.make_plain(found, requirements)
    if inside and not lock:
        text = included(found, requirements, set())
    text += f"# overridden:\n{override}" if override else ""
    if what := credential(text):
        warnings.append(
            f"{'app_package' if packages else requirements} has {what}, which whoever reads the"
            " release has, too. Write ${NAME} there, and set NAME in app_install_environment."
        )
    python_path = [] if inside & {"."} else project.add(found)
    digest = hashlib.sha256()
    for path, (mode, content) in sorted(found.items()):
        data = content.encode() if isinstance(content, str) else content
        digest.update(f"{path}\0{mode:o}\0{len(data)}\0".encode() + data)
    revision = digest.hexdigest()
    # What is installed from the app's own folder is another with each change to that.
    text += f"# with code of {revision}\n" if inside else ""
    labels = {
        "git": f"{app['version'] or 'HEAD'} {commit[:10]}",
        "package": " ".join(packages).replace("==", " "),
        "local": revision[:10],
    }
    archive = keep(cache, revision, found)
    return {
        "revision": revision,
        "requirements": requirements,
        "hashed": hashed,
        "built": built or built_anyway(override),
        "override": OVERRIDE if override else "",
        "override_hashed": all("--hash=" in line for line in override.splitlines()),
        "lock": lock,
        "python_path": python_path,
        "dependencies": hashlib.sha256(text.encode()).hexdigest(),
        "archive": str(archive),
        "size": archive.stat().st_size,
        "label": labels[app["source"]],
        "warnings": warnings,
    }


def private(cache: Path) -> None:
    """Make the cache, or take it away from whoever may look into it: it has all apps' code."""
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        if cache.stat().st_mode & 0o077:
            cache.chmod(0o700)
    except OSError as error:
        raise Failure(
            f"The cache {cache} cannot be made for its user alone: {error.strerror}. Correct its"
            " owner, or name another folder by XDG_CACHE_HOME."
        ) from None


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
        if found := credential(app["repository"]):
            raise Failure(
                f"app_repository has {found}, where git shows it; take it out, and let git know it"
                " by `git credential approve`, or use ssh."
            )
        # A folder of this run's own: another run may want another version at the same time.
        with tempfile.TemporaryDirectory(prefix="carafe-") as folder:
            yield Path(folder), checkout(app["repository"], app["version"], Path(folder), cache)


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
            # Of what a server says, and of the URLs of submodules, nothing is taken as it is.
            said = one_line(without_credentials(" ".join(done.stderr.split()[-60:])), 2000)
            raise Failure(
                f"git could not get {without_credentials(self.url)}: {said} Correct app_repository,"
                f" or see by hand: git ls-remote {without_credentials(self.url)}"
            )
        return "" if done.returncode else done.stdout.strip()


def checkout(url: str, version: str | None, folder: Path, cache: Path) -> str:
    """Put a version of a repository into an empty folder; return the commit.

    What was fetched is kept in the cache, which one run at a time brings up to date.
    """
    git = Git(url)
    # Whoever asks for it, a repository is kept once, and no two share a place.
    mirror = cache / "git" / hashlib.sha256(without_credentials(url).encode()).hexdigest()
    mirror.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
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
        f"app_version is {version!r}, and {without_credentials(git.url)} has no branch, tag or"
        f" commit of that name.{guess} Correct app_version."
    )
