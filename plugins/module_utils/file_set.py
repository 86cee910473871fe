"""A set of files that lands as a whole: looked at, checked, and only then written."""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import adopted, files
from .commands import Refused
from .files import diff, group_id, land, locked, stage, user_id

# In a folder of root's: in /run/lock others could hold it.
LOCK = Path("/run/carafe-files.lock")
BACKUPS = Path("/var/backups/carafe")
# Longer ones are compared by their size only, where somebody reads the difference.
SHOWN = 200_000
CHECK_SECONDS = 120


@dataclass
class Item:
    """A path, as it is to be."""

    path: Path
    owner: str | None = "root"
    group: str | None = "root"
    mode: int = 0o644

    def __post_init__(self) -> None:
        self.there = self.look(follow=False)

    def look(self, follow: bool) -> os.stat_result | None:
        """Return what is there now."""
        try:
            return files.status(self.path, follow)
        except OSError as error:
            raise Refused(
                f"{self.path} cannot be written: {error.strerror}. Nothing was written."
            ) from None

    def attributes(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return owner, group and mode where they differ: as they are, and as they are to be."""
        kept, wanted = {}, {}
        if self.there is None:
            return kept, wanted
        for name, number, current in (
            ("owner", self.number(user_id, self.owner), self.there.st_uid),
            ("group", self.number(group_id, self.group), self.there.st_gid),
        ):
            if number not in (-1, current):
                kept[name], wanted[name] = str(current), str(getattr(self, name))
        current = stat.S_IMODE(self.there.st_mode)
        if current != self.mode:
            kept["mode"], wanted["mode"] = f"{current:04o}", f"{self.mode:04o}"
        return kept, wanted

    def number(self, find: Any, name: str | None) -> int | None:
        """Return the number of a user or group, None where the server does not know it yet."""
        try:
            return find(name)
        except KeyError:
            return None

    def missing(self) -> Iterator[str]:
        """Yield what must be on the server before this can be."""
        if self.number(user_id, self.owner) is None:
            yield f"the user {self.owner} of {self.path}"
        if self.number(group_id, self.group) is None:
            yield f"the group {self.group} of {self.path}"

    def set_attributes(self) -> None:
        files.set_attributes(self.path, self.mode, self.owner, self.group)

    def attribute_diff(self) -> Iterator[dict[str, Any]]:
        before, after = self.attributes()
        if before:
            header = f"{self.path} (permissions)"
            yield diff(header, before, after)


@dataclass
class Folder(Item):
    """A folder. With ``only_new``, one that is there stays as it is."""

    mode: int = 0o755
    only_new: bool = False

    def __post_init__(self) -> None:
        self.there = self.look(follow=True)
        if self.there and not stat.S_ISDIR(self.there.st_mode):
            raise Refused(f"{self.path} is to be a folder, but a file is in its place.")

    @property
    def due(self) -> bool:
        return self.there is None or bool(not self.only_new and self.attributes()[0])

    def diff(self) -> Iterator[dict[str, Any]]:
        if self.there is None:
            yield diff(self.path, {"state": "absent"}, {"state": "directory"})
        else:
            yield from self.attribute_diff()

    def land(self) -> None:
        if self.there is None:
            files.make_folder(self.path)
        self.set_attributes()


@dataclass
class File(Item):
    """A file with its text."""

    content: bytes = b""
    validate: str | None = None
    sensitive: bool = False
    staged: Path | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.old: bytes | None = None
        if self.there is None:
            return
        if stat.S_ISDIR(self.there.st_mode):
            raise Refused(f"{self.path} is to be a file, but a folder is in its place.")
        # One that has a second name may be somebody else's, and is replaced as a link is.
        if stat.S_ISREG(self.there.st_mode) and self.there.st_nlink == 1:
            try:
                self.old = files.read_bytes(self.path)
            except OSError as error:
                if error.errno != errno.EFBIG:
                    raise

    @property
    def rewritten(self) -> bool:
        return self.old != self.content

    @property
    def due(self) -> bool:
        return self.rewritten or bool(self.attributes()[0])

    def diff(self) -> Iterator[dict[str, Any]]:
        if self.rewritten and self.sensitive:
            yield {"prepared": f"{self.path}: written anew; its content is not shown\n"}
        elif self.rewritten:
            yield diff(self.path, text(self.old or b""), text(self.content))
        # A link that is replaced has no permissions of its own.
        if self.old is not None:
            yield from self.attribute_diff()

    def stage(self) -> None:
        if self.rewritten:
            self.staged = stage(self.path, self.content, self.mode, self.owner, self.group)

    def land(self) -> None:
        if self.staged:
            staged, self.staged = self.staged, None
            land(staged, self.path)
        else:
            self.set_attributes()


@dataclass
class Absent:
    """A path with nothing in it."""

    path: Path

    @property
    def due(self) -> bool:
        return os.path.lexists(self.path)

    def diff(self) -> Iterator[dict[str, Any]]:
        yield diff(self.path, {"state": "there"}, {"state": "absent"})

    def land(self) -> None:
        files.remove(self.path)


def text(content: bytes) -> str:
    """Return a file's content as a person can read it."""
    try:
        shown = content.decode()
    except UnicodeDecodeError:
        return f"({len(content)} bytes that are no text)\n"
    return shown if len(shown) <= SHOWN and "\0" not in shown else f"({len(content)} bytes)\n"


class FileSet:
    """Folders, files and what is to be absent, all of one call.

    What changes is in ``paths``, and in ``diff`` for people. After write(), ``notes`` says what was
    not checked.
    """

    def __init__(
        self,
        items: Iterable[Item | Absent],
        check_mode: bool,
        checks: Iterable[dict[str, str]] = (),
        backup: Callable[[Path], bool] | None = None,
    ) -> None:
        self.check_mode, self.checks, self.backup = check_mode, checks, backup
        self.items = list(items)
        self.due = [x for x in self.items if x.due]
        self.paths = [str(x.path) for x in self.due]
        verbs = ["remove" if isinstance(x, Absent) else "write" for x in self.due]
        self.changes = [f"{verb} {path}" for verb, path in zip(verbs, self.paths, strict=True)]
        self.diff = [entry for x in self.due for entry in x.diff()]
        self.notes: list[str] = []
        if not check_mode:
            self.need()

    def write(self) -> None:
        self.notes = self.check()
        if not self.check_mode:
            self.land()

    def need(self) -> None:
        """Refuse a set that cannot land on this server."""
        there = {x.path for x in self.items if isinstance(x, Folder)}
        for entry in self.due:
            if isinstance(entry, Absent):
                continue
            for what in entry.missing():
                raise Refused(f"The server does not have {what}. Nothing was written.")
            parent = entry.path.parent
            if parent not in there and not parent.is_dir():
                raise Refused(
                    f"The folder {parent} of {entry.path} is not there, and not among those that"
                    " are to be made. Nothing was written."
                )

    def check(self) -> list[str]:
        """Let the checkers see all files that change, before one lands; return what they miss.

        Only in check mode may a checker be missing: a package that is yet to come will bring it.
        """
        changed = [x for x in self.due if isinstance(x, File) and x.rewritten]
        notes = []
        with tempfile.TemporaryDirectory(prefix="carafe-") as place:
            for number, file in enumerate(changed):
                if not file.validate:
                    continue
                copy = Path(place, str(number), file.path.name)
                copy.parent.mkdir()
                self.put(file, copy)
                notes += self.ask(file.validate, copy, file.path)
            for number, check in enumerate(self.checks):
                folder = Path(check["folder"])
                inside = [
                    x for x in self.due if isinstance(x, File | Absent) and folder in x.path.parents
                ]
                missing = [x for x in check.get("needs") or [] if not Path(x).exists()]
                if inside and missing and self.check_mode:
                    notes.append(
                        f"{folder} is not checked, since the server has no {missing[0]} yet."
                    )
                elif inside:
                    copy = Path(place, f"check-{number}")
                    self.copy(folder, copy, inside)
                    notes += self.ask(check["command"], copy, folder)
        return notes

    def put(self, file: File, copy: Path) -> None:
        copy.write_bytes(file.content)
        # A checker may want the owner that the file is to have, whom a dry run need not find.
        with contextlib.suppress(KeyError):
            os.chown(copy, user_id(file.owner), group_id(file.group))
        copy.chmod(file.mode)

    def copy(self, folder: Path, copy: Path, changed: list[File | Absent]) -> None:
        """Copy a folder as it will be."""
        if folder.is_dir():
            shutil.copytree(folder, copy, symlinks=True, ignore=special)
        for entry in changed:
            place = copy / entry.path.relative_to(folder)
            if isinstance(entry, File):
                place.parent.mkdir(parents=True, exist_ok=True)
                # What is there may be a link, to a file of the server's.
                files.remove(place)
                self.put(entry, place)
            else:
                files.remove(place)

    def ask(self, command: str, copy: Path, path: Path) -> list[str]:
        """Run a checker on a copy."""
        words = [word.replace("%s", str(copy)) for word in shlex.split(command)]
        try:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=CHECK_SECONDS,
                env={**os.environ, "LC_ALL": "C.UTF-8"},
                check=False,
            )
        except FileNotFoundError:
            if self.check_mode:
                return [f"{path} is not checked, since the server has no {words[0]} yet."]
            raise Refused(
                f"{path} cannot be checked: the server has no {words[0]}. Nothing was written."
            ) from None
        except subprocess.TimeoutExpired:
            raise Refused(
                f"{path} cannot be checked: {words[0]} took longer than {CHECK_SECONDS} seconds."
                " Nothing was written."
            ) from None
        if done.returncode:
            said = done.stdout.decode(errors="replace").replace(str(copy), str(path))
            lines = [line.strip() for line in said.splitlines() if line.strip()]
            said = "; ".join(lines[-4:]) or f"{words[0]} ended with {done.returncode}"
            raise Refused(f"{path} is refused, and nothing was written: {said}")
        return []

    def land(self) -> None:
        """Write everything."""
        due = [x for x in self.due if isinstance(x, File)]
        done: list[str] = []
        try:
            for folder in self.due:
                if isinstance(folder, Folder):
                    folder.land()
                    done.append(str(folder.path))
            # A full disk shows here, where nothing has changed yet.
            for file in due:
                file.stage()
            for file in due if self.backup else []:
                keep(file, self.backup)
            for file in due:
                file.land()
                done.append(str(file.path))
            for entry in self.due:
                if isinstance(entry, Absent):
                    entry.land()
                    done.append(str(entry.path))
        except OSError as error:
            raise Refused(
                f"{error.filename or 'A file'} cannot be written: {error.strerror}."
                f" Written before that: {', '.join(done) or 'nothing'}."
            ) from None
        finally:
            for file in due:
                if file.staged:
                    files.remove(file.staged)


def keep(file: File, by_hand: Callable[[Path], bool]) -> None:
    """Put a copy aside of a file that is replaced, if a person has written it."""
    if file.there is None or not file.rewritten:
        return
    try:
        # What a link leads to, too.
        content = file.path.read_bytes()
    except OSError:
        return
    text = content.decode(errors="replace")
    is_main = file.path.name in ("nginx.conf", "supervisord.conf", "pg_hba.conf")
    is_ours = adopted.is_carafes(text) if is_main else adopted.is_managed(text)
    if is_ours or not by_hand(file.path):
        return
    place = BACKUPS / file.path.relative_to("/")
    for number in range(1, 1000):
        copy = place if number == 1 else place.with_name(f"{place.name}.{number}")
        if not copy.exists():
            break
        if copy.read_bytes() == content:
            return
    for folder in reversed([copy.parent, *copy.parent.parents]):
        if BACKUPS in (folder, *folder.parents) and not folder.exists():
            folder.mkdir(mode=0o700)
    # Whatever was in it is for root alone from now on.
    files.write(copy, content, 0o600)


def with_parents(items: list[Item]) -> list[Item]:
    """Return them with the folders that they lie in, which are made where they are not there."""
    above = {folder for x in items for folder in x.path.parents} - {x.path for x in items}
    return sorted([*items, *(Folder(x, only_new=True) for x in above)], key=lambda x: x.path)


def write(items: Iterable[Item | Absent], check_mode: bool) -> FileSet:
    """Check and write files, or only say what would change."""
    found = FileSet(items, check_mode)
    found.write()
    return found


def items_of(wanted: dict[str, Any]) -> list[Item | Absent]:
    """Return what a module's arguments ask for."""
    return [
        *(Folder(**item(entry)) for entry in wanted["folders"]),
        *(File(**item(entry)) for entry in wanted["files"]),
        *(Absent(Path(path)) for path in wanted["absent"]),
    ]


def item(entry: dict[str, Any]) -> dict[str, Any]:
    """Return what the classes take, of what a module's arguments say."""
    taken = {name: value for name, value in entry.items() if value is not None}
    taken["path"] = Path(taken.pop("dest", None) or taken["path"])
    taken["mode"] = int(taken["mode"], 8)
    taken.pop("adopt", None)
    if "content" in taken:
        encoded = taken.pop("encoding", "text") == "base64"
        content = taken["content"]
        taken["content"] = base64.b64decode(content) if encoded else content.encode()
    return taken


def special(folder: str, names: list[str]) -> list[str]:
    """Return the sockets and pipes of a folder, which cannot be copied."""
    kinds = {name: Path(folder, name).lstat().st_mode for name in names}
    plain = (stat.S_ISREG, stat.S_ISDIR, stat.S_ISLNK)
    return [name for name, mode in kinds.items() if not any(kind(mode) for kind in plain)]


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Keep other calls from checking or writing meanwhile: what was checked is what lands."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # not root, so these are files of one user's
            stack.enter_context(locked(LOCK))
        yield
