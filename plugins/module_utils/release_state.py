"""What is known of an app's releases on its server: the lock, the history, what serves.

All of it is in ``<root>/state``, a folder of root's own:

``lock.json``      the run that is at work, and the steps that it has begun
``releases.json``  for each release ``revision``, ``code`` (the digest of what was packed),
                   ``by``, ``began`` and ``deployed`` (seconds since
                   the epoch: when it was first tried, and last deployed with success), ``from``
                   (what served before), ``head`` (of the migrations), ``broken`` (why, or absent)
``built/``         a file for each release that was built as a whole, with a copy of its entry
``venvs/``         a file for each virtual environment that is complete: how many files it has
``releases.log``   who released what when, and how it ended: a line for each, in words of Carafe's

Outside it is ``/etc/carafe/<app>.removing``: who removes the app, from the beginning to the end.

What an app printed is in none of these, but in ``<root>/logs`` and in what a run says. Of a failure
they keep the first line: a module's is its own, and what others wrote comes in the lines after it.

The folders of the releases and of the virtual environments are the deploy user's, who runs the
code of all dependencies: what is there counts only where this folder, or ``settings``, knows of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import files
from .commands import Failure
from .words import one_line

KEEP_BROKEN = 2  # releases that failed, kept to be looked at
CLAIMS = Path("/etc/carafe")


class Locked(Failure):
    """Another run has the lock, which ``lock`` describes."""

    def __init__(self, lock: dict[str, Any], says: str) -> None:
        super().__init__(says)
        self.lock = lock


def clock(seconds: float) -> str:
    """Return a point in time as people write it, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def read(path: Path, mend: str) -> dict[str, Any]:
    """Read one of the state's files; ``mend`` says what to do about one that is damaged."""
    text = files.read(path)
    if text is None:
        return {}
    try:
        data = json.loads(text)
        if isinstance(data, dict):
            return data
    except ValueError:
        pass
    raise Failure(
        f"{path} is damaged: it is {'empty' if not text.strip() else 'no JSON object'}. {mend}"
    )


class State:
    """An app on this server, what is known of it, and the run that works on it."""

    def __init__(self, app: dict[str, Any], check: bool = False) -> None:
        self.app, self.check, self.id = app, check, app.get("release", "")
        self.root = Path(app["root"])
        self.state = self.root / "state"
        self.lock_path = self.state / "lock.json"
        # Not in the app's folder, which goes before its database does.
        self.removing_path = CLAIMS / f"{app['name']}.removing"
        self.lock: dict[str, Any] = {}
        # In a run that is taken back, what cannot be written any more must not stop it.
        self.best_effort = False

    @property
    def serving(self) -> str:
        """The id of the release that serves, or ''."""
        link = self.root / "serving"
        return link.readlink().name if link.is_symlink() else ""

    @property
    def log_path(self) -> Path:
        return self.root / "logs" / f"{self.id}.log"

    def folder(self, release: str) -> Path:
        return self.root / "releases" / release

    def settings(self, release: str) -> Path:
        return self.root / "settings" / release

    def write(self, path: Path, data: Any) -> None:
        text = json.dumps(data, indent=2, sort_keys=True) + "\n"
        with contextlib.suppress(OSError) if self.best_effort else contextlib.nullcontext():
            path.parent.mkdir(mode=0o755, exist_ok=True)
            files.write(path, text, 0o640, owner=os.geteuid(), group=os.getegid())

    # What is known of the releases.

    @property
    def releases(self) -> dict[str, Any]:
        path = self.state / "releases.json"
        if not path.exists():
            return self.rebuilt()
        mend = "Remove it: the next run makes it anew from the folders of the releases."
        found = read(path, mend)
        if not all(isinstance(entry, dict) for entry in found.values()):
            raise Failure(f"{path} is damaged: not all of its entries are objects. {mend}")
        return found

    def rebuilt(self) -> dict[str, Any]:
        """Return the releases as their settings tell, where what was known of them is lost."""
        found, marks = {}, self.state / "built"
        lost = not marks.is_dir() or not any(marks.iterdir())
        settings = self.root / "settings"
        for name in files.folders(settings) if settings.is_dir() else []:
            if not files.is_folder(self.folder(name)):
                continue
            entry, when = {}, (settings / name).stat().st_mtime
            with contextlib.suppress(OSError, Failure):
                entry = read(marks / name, "")
            # Where nobody knows which of them have served, none is lost for it: the gate will tell.
            served = {"deployed": when} if lost or name == self.serving else {}
            found[name] = entry or {"began": when, **served}
        return found

    def adopt(self) -> None:
        """Write down anew what is known of the releases, where it is lost."""
        if self.known():
            return
        releases = self.rebuilt()
        self.write(self.state / "releases.json", releases)
        for name, entry in releases.items():
            if entry.get("deployed") and not (self.state / "built" / name).exists():
                self.mark_built(name)

    def note(self, release: str, **values: Any) -> None:
        """Write down something about a release; what is None is forgotten."""
        with files.locked(self.state):
            releases = self.releases
            entry = releases.get(release, {}) | values
            releases[release] = {key: value for key, value in entry.items() if value is not None}
            self.write(self.state / "releases.json", releases)

    def usable(self) -> list[str]:
        """Return the releases that have served well and still could, the newest first."""
        releases = self.releases
        found = [
            name
            for name, entry in releases.items()
            if entry.get("deployed") and not entry.get("broken") and self.built(name)
        ]
        return sorted(found, key=lambda name: -releases[name]["deployed"])

    def built(self, release: str) -> bool:
        there = files.is_folder(self.folder(release)) and self.settings(release).is_dir()
        # Without what is known of them, the marks may be gone, too.
        return there and ((self.state / "built" / release).exists() or not self.known())

    def known(self) -> bool:
        return (self.state / "releases.json").exists()

    def mark_built(self, release: str) -> None:
        self.write(self.state / "built" / release, self.releases.get(release, {}))

    def proven(self, release: str) -> bool:
        """Tell whether a release has served well."""
        entry = self.releases.get(release, {})
        return "deployed" in entry and "broken" not in entry

    def has_served(self, release: str) -> bool:
        return bool(self.releases.get(release, {}).get("deployed"))

    def before(self, release: str) -> str:
        """Return the release that a rollback from this one goes to, or ''."""
        releases, usable, seen = self.releases, self.usable(), {release}
        name = releases.get(release, {}).get("from")
        # What was there when this one came; when that is gone or broken, what was there before it.
        while name and name not in seen:
            if name in usable:
                return name
            seen.add(name)
            name = releases.get(name, {}).get("from")
        limit = releases.get(release, {}).get("deployed") or float("inf")
        older = (x for x in usable if x not in seen and releases[x]["deployed"] < limit)
        return next(older, "")

    def venv(self, key: str) -> bool:
        """Tell whether a virtual environment is there, as a whole."""
        folder, mark = self.root / "venvs" / key, self.state / "venvs" / key
        return (
            files.is_folder(folder)
            and os.access(folder / "bin/python", os.X_OK)
            and (files.read(mark) or "").strip() == str(files.count_files(folder))
        )

    def audit(self, by: str, *what: str) -> None:
        """Add a line to what people read of the past, whatever is in the words."""
        fields = "  ".join(map(one_line, (by, *what)))
        try:
            with (self.state / "releases.log").open("a", encoding="utf-8") as file:
                os.fchmod(file.fileno(), 0o640)
                file.write(f"{clock(time.time())}  {fields}\n")
        except OSError:
            if not self.best_effort:
                raise

    def point(self, release: str) -> None:
        """Let a release serve, in one go; or none, for ''."""
        link, partial = self.root / "serving", self.root / ".serving"
        partial.unlink(missing_ok=True)
        if not release:
            link.unlink(missing_ok=True)
            return
        partial.symlink_to(f"settings/{release}")
        partial.rename(link)

    # The lock.

    def read_lock(self) -> dict[str, Any]:
        return read(
            self.lock_path,
            "Nobody can tell whether a run is at work. If none is, run this again with"
            " -e app_break_lock=true",
        )

    @property
    def mine(self) -> bool:
        """Whether this run has the lock."""
        try:
            return self.read_lock().get("id") == self.app["run"]["id"]
        except Failure:
            return False

    def take_lock(self) -> None:
        """Take the lock, or raise Locked; ``break_lock`` takes it from whoever has it."""
        run = self.app["run"]
        with files.locked(self.state):
            if self.lock_path.exists() and self.app["break_lock"] and not self.mine:
                try:
                    by = self.read_lock().get("by", "somebody")
                except Failure:
                    by = "somebody"
                self.audit(run["by"], f"broke the lock of {by}")
                self.lock_path.unlink(missing_ok=True)
            if self.removing_path.exists() and self.app["break_lock"]:
                self.audit(run["by"], "makes anew what a removal has not ended")
                self.removing_path.unlink(missing_ok=True)
            self.refuse()
            serving = self.serving
            self.lock = run | {
                # What a failure goes back to: what has served well.
                "from": serving if self.proven(serving) else self.before(serving),
                "what": f"{run['what']} {self.id}".rstrip(),
                "since": time.time(),
                "steps": [],
            }
            if not self.lock_path.exists():
                self.write(self.lock_path, self.lock)
        self.adopt()

    def begin_removal(self) -> None:
        """Keep releases from beginning until all of the app is gone, unless one is at work.

        A removal that was cut short is gone on with by another one.
        """
        held = files.locked(self.state) if self.state.is_dir() else contextlib.nullcontext()
        with held:
            self.refuse_release()
            if not self.check:
                self.write(self.removing_path, self.app["run"] | {"since": time.time()})

    def refuse(self) -> None:
        """Raise Locked when another run is at work, unless this one is to break its lock."""
        self.refuse_release()
        if self.app["break_lock"] or not self.removing_path.exists():
            return
        removal = read(self.removing_path, "Run playbooks/remove.yml again, which makes it anew")
        raise Locked(
            {"machine": "", "pid": ""} | removal,
            f"{one_line(removal.get('by', 'somebody'))} removes {self.app['name']} since"
            f" {clock(removal.get('since', 0))}. Nothing was touched. A removal that was cut short"
            " goes on by playbooks/remove.yml.",
        )

    def refuse_release(self) -> None:
        if not self.lock_path.exists() or self.mine or self.app["break_lock"]:
            return
        lock = self.read_lock()
        try:
            step = lock["steps"][-1] if lock["steps"] else ["lock", lock["since"]]
            says = (
                f"{one_line(lock['by'])} holds the lock of {self.app['name']} since"
                f" {clock(lock['since'])}, for: {one_line(lock['what'])}. Its last step,"
                f" {one_line(step[0])}, began at {clock(step[1])}."
            )
        except (KeyError, IndexError, TypeError):
            says = (
                f"Somebody holds the lock of {self.app['name']}; {self.lock_path} does not say who."
            )
        # The control machine adds whether that run is alive, where it can know.
        raise Locked({"machine": "", "pid": ""} | lock, says)

    @contextlib.contextmanager
    def own_lock(self) -> Iterator[dict[str, Any]]:
        """Keep the lock from being broken meanwhile; fail when it is not this run's any more."""
        with files.locked(self.state):
            lock = self.read_lock()
            if lock.get("id") != self.app["run"]["id"]:
                raise Locked(
                    {},
                    f"This run has lost the lock of {self.app['name']} to"
                    f" {one_line(lock.get('by', 'somebody'))}, and stops here.",
                )
            yield lock

    def step(self, name: str) -> None:
        """Note in the lock that a step begins."""
        with self.own_lock() as self.lock:
            if gone():
                raise Failure("the run that began this is gone")
            self.lock["steps"].append([name, time.time()])
            self.write(self.lock_path, self.lock)

    def keep_lock(self) -> None:
        """Write down what this run has noted in the lock."""
        with self.own_lock():
            self.write(self.lock_path, self.lock)

    def end(self, result: str) -> None:
        """Give the lock back, and write down how the run ended."""
        with self.own_lock():
            took = time.time() - self.lock["since"]
            self.audit(self.lock["by"], self.lock["what"], result, f"{took:.1f} s")
            self.lock_path.unlink()

    def durations(self) -> list[str]:
        """Return how many seconds each step took, and all of them together."""
        steps = [*self.lock["steps"], ["", time.time()]]
        shown = {"switch": "switch and slots"}
        took = [
            f"{shown.get(steps[i][0], steps[i][0])} {steps[i + 1][1] - steps[i][1]:.1f} s"
            for i in range(len(steps) - 1)
        ]
        return [*took, f"in all {time.time() - self.lock['since']:.1f} s"]

    # What goes.

    def prune(self) -> list[str]:
        """Remove old releases, and the virtual environments and archives that none needs.

        What does not go is returned, in words for people: what serves well fails for none of it.
        Only folders are of a release; what else somebody has put beside them is left alone.
        """
        releases, usable, serving = self.releases, self.usable(), self.serving
        rest = [x for x in releases if x not in usable]
        rest.sort(key=lambda name: -releases[name].get("began", 0))
        newest = usable[: self.app["keep"]]
        keep = {serving, self.before(serving), *newest, *rest[:KEEP_BROKEN]}
        gone = [
            self.root / kind / name
            for kind in ("releases", "settings")
            for name in files.folders(self.root / kind)
            if name not in keep
        ]
        for name in set(releases) - keep:
            releases.pop(name)
            gone.append(self.root / "logs" / f"{name}.log")
        self.write(self.state / "releases.json", releases)
        gone += [mark for mark in (self.state / "built").iterdir() if mark.name not in keep]
        used = set()
        for name in keep - {""}:
            with contextlib.suppress(OSError):
                used.add((self.folder(name) / ".venv").readlink().name)
        for name in files.folders(self.root / "venvs"):
            if name not in used:
                gone += [self.state / "venvs" / name, self.root / "venvs" / name]
        for archive in (self.root / "archives").iterdir():
            there = files.status(archive)
            if there and stat.S_ISREG(there.st_mode) and there.st_mtime < time.time() - 30 * 86400:
                gone.append(archive)
        return [said for path in gone if (said := self.drop(path))]

    def drop(self, path: Path) -> str:
        """Remove what is not needed any more; return '' or why it is still there."""
        try:
            files.remove(path)
        except OSError as error:
            return f"{ascii(str(path))[1:-1]} is not needed any more and stays: {error.strerror}"
        return ""

    def listing(self) -> list[str]:
        """Return what is known of the releases, in lines for people."""
        releases = self.releases

        def when(name: str) -> float:
            return releases[name].get("deployed") or releases[name].get("began") or 0

        rows = [("release", "revision", "when", "by", "migration", "")]
        for name in sorted(releases, key=when, reverse=True):
            entry = releases[name]
            states = {
                "serves": name == self.serving,
                "broken, at " + entry.get("broken", ""): "broken" in entry,
                "not finished": "deployed" not in entry and "broken" not in entry,
            }
            state = "; ".join(text for text, holds in states.items() if holds)
            revision, by, head = (entry.get(key) or "-" for key in ("revision", "by", "head"))
            rows.append(tuple(map(one_line, (name, revision, clock(when(name)), by, head, state))))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        if lock := self.read_lock():
            lines.append(one_line(f"{lock.get('by')} is at work: {lock.get('what')}"))
        return lines


def gone() -> bool:
    """Tell whether nobody reads any more what this process says: its run was killed."""
    poll = select.poll()
    try:
        poll.register(1, 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except OSError:
        return False
