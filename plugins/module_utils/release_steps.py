"""The steps that take a release of an app through the gate, and back.

A deployment begins with ``begin``, a rollback with ``choose``. Both return a plan: which steps of
``STEPS`` are to be taken, and between which of them a run of Ansible has task files to include.
``workers`` and ``finish`` end both. ``revert`` and ``report_failure`` undo what this run has done,
when it failed where no step can: in the slots, the workers, a task file, or on another server.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
import xmlrpc.client  # nosec B411 # of supervisord, by its own socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from . import (
    files,
    migrations,
    processes,
    programs,
    sandbox,
    schedule_runs,
    supervisord,
    unix_http,
    venvs,
)
from . import release_settings as settings
from .backup_target import shown, stamp
from .commands import CommandFailed, Failure, Refused, ask
from .release_state import State, clock
from .words import escaped, one_line

LOG_TAIL = 6000  # bytes of a release's log that a failure shows at most
# What the deploy user runs: all of these paths are its own, and so is what it may find there.
# A line that leads out of the release is no file of its own.
CARRY = """
cd {old} || exit 0
if [ -f .static ] && [ ! -L .static ]; then
  grep -aP -e {hashed} .static | grep -av -e '^/' -e '^[.][.]/' -e '/[.][.]/' |
    while IFS= read -r file; do
      if [ -f "$file" ] && [ ! -e {new}/"$file" ]; then printf '%s\\0' "$file"; fi
    done | xargs -0r cp --link --parents --target-directory={new} --
fi
"""
# The playbook in a command.
DEPLOY = re.compile(r"(?<=carafe\.stack\.)deploy(?= |$)|(?<=[ /])deploy(?=\.yml( |$))")
# As Alembic says it. What an app prints besides, as it is loaded, is no migration.
REVISION = re.compile(r"(\S{1,100})(?: \([^()]*\))*\s*")


class Release(State):
    """A release on its way through the gate."""

    def __init__(self, app: dict[str, Any], check: bool = False) -> None:
        super().__init__(app, check)
        self.output: dict[str, Any] = {}
        # What a step has asked to end, and the next ones do not wait for.
        self.ending = contextlib.ExitStack()

    # Commands.

    def call(
        self,
        words: list[str],
        shown: str,
        limit: str,
        folder: Path | None = None,
        unit: sandbox.Unit | None = None,
    ) -> str:
        """Run a command; its output goes to the release's log, and what it answers is returned.

        Files take the output, so that what it leaves running does not hold it up. At its ``limit``
        it is ended, with all that it has started.
        """
        seconds = self.app["limits"][limit]
        with (
            tempfile.TemporaryFile() as out,
            self.open_log() as log,
            unit.command(words, os.environ, folder)
            if unit
            else contextlib.nullcontext(words) as argv,
        ):
            log.write(f"--- {clock(time.time())}  {shown}\n".encode())
            log.flush()
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,
                cwd=None if unit else folder,
            )
            try:
                status = process.wait(seconds)
            except subprocess.TimeoutExpired:
                end(process, unit)
                status = f"it did not end within {seconds} s, app_{limit}_timeout"
            out.seek(0)
            output = out.read()
            log.write(output)
        if status:
            if unit and unit.failed() == "oom-kill" and isinstance(status, int):
                status = (
                    "it needed more memory than there was, or than app_memory_max_mb lets the app"
                    " have, or app_build_memory a build"
                )
            raise Failure(status if isinstance(status, str) else f"exit status {status}")
        return output.decode(errors="replace")

    def open_log(self) -> BinaryIO:
        """Open the release's log, which root alone reads: it has whatever the app prints."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        log = os.fdopen(os.open(self.log_path, flags, 0o640), "ab")
        os.fchmod(log.fileno(), 0o640)
        return log

    def unit(self, user: str, limit: str, lines: list[str] | None = None) -> sandbox.Unit:
        """Return where a command runs: in the sandbox of the app's slots, or a closer one."""
        lines = sandbox.for_app(self.app.get("sandbox")) if lines is None else lines
        where, seconds = settings.slice_of(self.app["user"]), self.app["limits"][limit]
        return sandbox.Unit(self.app["name"], self.app[user], where, lines, seconds)

    def build_sandbox(self, *places: Path) -> list[str]:
        """Return what a release and its dependencies are built in: it knows no secret.

        Another release is not its to write, nor a virtual environment that another one has.
        Other places than these two and the cache come to it.
        """
        own, root = self.settings(self.id), self.root
        venv, shared = root / "venvs" / self.app["venv"], root / "shared"
        secret_files = own / settings.SECRET_FILES
        others = ((root / "releases" / x / ".venv") for x in self.releases if x != self.id)
        used = any(x.is_symlink() and x.readlink().name == venv.name for x in others)
        return sandbox.for_build(
            [self.folder(self.id), root / "cache", *places, *([] if used else [venv])],
            [
                *(root / "settings", shared, *(shared / name for name in self.app["shared"])),
                *([secret_files] if secret_files.is_dir() else []),
            ],
            {
                own: own,
                own / "secrets": own / settings.STAND_INS,
                own / "migrate.secrets": own / settings.STAND_INS,
            },
            self.app["build_memory"],
            # What serves has the other half.
            self.app["tasks_max"] // 2,
            self.app.get("sandbox"),
        )

    def shell(self, script: str, shown: str, folder: Path) -> str:
        """Run a shell script of Carafe's as the deploy user, who goes into the folder by itself.

        Root would get into places where that user must not, if a link to one were there.
        """
        user = ["runuser", "-u", self.app["deploy_user"], "--"]
        script = f"cd {shlex.quote(str(folder))}\n{script}"
        return self.call([*user, "sh", "-euc", script], shown, "build", self.root)

    def build_shell(self, script: str, shown: str, *places: Path) -> str:
        """Run a shell script in a release that may run what packages bring."""
        unit = self.unit("deploy_user", "build", self.build_sandbox(*places))
        return self.call(["sh", "-euc", script], shown, "build", self.folder(self.id), unit)

    def inside(
        self,
        user: str,
        command: str,
        *options: str,
        release: str = "",
        limit: str = "step",
        lines: list[str] | None = None,
        shown: str = "",
    ) -> str:
        """Run a shell command in a release, with the app's environment."""
        run = [self.app["run_command"], "-r", release or self.id, *options]
        words = [*run, "sh", "-euc", command]
        return self.call(words, shown or command, limit, unit=self.unit(user, limit, lines))

    def hook(self, point: str, command: str) -> None:
        """Run a command of a point; those around the build are part of it."""
        if point in ("before_build", "after_build"):
            with install_environment(self):
                self.inside("deploy_user", command, lines=self.build_sandbox())
        else:
            self.inside("deploy_user", command)

    def has_task_files(self, point: str) -> bool:
        return any(isinstance(entry, dict) for entry in self.app["hooks"].get(point) or [])

    def hooks(self, point: str) -> None:
        """Run the commands of a point, unless it has task files: then tasks run all of it."""
        if not self.has_task_files(point):
            for command in self.app["hooks"].get(point) or []:
                self.hook(point, command)

    # Migrations.

    def as_migrator(
        self, command: str, release: str = "", shown: str = "", limit: str = "migrate"
    ) -> str:
        """Run a command as whoever migrates, who does not wait for a lock for long."""
        option = f"-c lock_timeout={migrations.LOCK_TIMEOUT}"
        patience = f'PGOPTIONS="${{PGOPTIONS:-}} {option}"\nexport PGOPTIONS\n'
        user, options = ("user", ()) if self.app["user_migrates"] else ("deploy_user", ("-m",))
        return self.inside(
            user,
            f"{patience}{command}",
            *options,
            release=release,
            limit=limit,
            shown=shown or command,
        )

    def alembic(self, words: str, release: str = "") -> str:
        """Ask Alembic, as whoever migrates."""
        return self.as_migrator(f"{self.app['alembic']} {words}", release)

    def head(self, release: str = "") -> str | None:
        """Return the migration that the database is at, as the code of this release knows it."""
        if not self.app["alembic"]:
            return None
        return at(self.alembic("current", release))

    def migrated(self) -> str | None:
        """Migrate, and return the migration that the database is at then: one unit does both."""
        command, alembic = self.app["commands"]["migrate"], self.app["alembic"]
        if not alembic:
            self.patiently(command)
            return None
        # What the migration says goes to the log alone.
        script = f"( {command}\n) >&2\n{alembic} current"
        return at(self.patiently(script, command))

    def restore_point(self) -> str:
        """Have a moment to come back to before a migration, where backups are made; its name."""
        program = programs.FOLDER / "backup"
        if not (program / "__main__.py").exists() or not self.app["database"]:
            return ""
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        name = f"before-{self.id}-{moment}"
        done = ask("/usr/bin/python3", "-I", program, "point", name)
        if done.returncode:
            raise Failure(
                "There is no way back from the migration: the restore point could not be made."
                f" {one_line(done.stderr)}"
            )
        return name

    def patiently(
        self, script: str, shown: str = "", limit: str = "migrate", tries: int = 0
    ) -> str:
        """Migrate, and again where it had to wait for a lock; then say who holds one."""
        tries, number, way = tries or self.app["migrate_tries"], 0, ""
        while True:
            began = self.log_path.stat().st_size if self.log_path.exists() else 0
            try:
                return self.as_migrator(script, shown=shown, limit=limit)
            except Failure as failure:
                log = files.tail(self.log_path, self.log_path.stat().st_size - began)
                why, number = str(failure), number + 1
                if migrations.waited(log):
                    # Now, while they are at it. A next try may fail for what this one has left.
                    way = self.ask_database("others")
                    if number < tries:
                        time.sleep(migrations.PAUSE)
                        continue
                    times = "once" if number == 1 else f"{number} times"
                    why = f"the database did not let it have a lock, {times}"
                left = self.ask_database("invalid")
                raise Failure("\n".join(filter(None, [why, way, left]))) from None

    def ask_database(self, question: str) -> str:
        """Ask PostgreSQL, wherever it is, and return what there is to say, or ''.

        On another server it is asked by whoever migrates, with the app's own driver.
        """
        if self.app["database"]:
            return migrations.ask(self.app["database"], question)
        program, size = programs.FOLDER / "database-questions", self.log_path.stat().st_size
        try:
            return self.as_migrator(f"python {program} {question}", limit="step").strip()
        except Failure:
            return ""
        finally:
            # It is said below the log's end.
            os.truncate(self.log_path, size)

    def between(self, older: str, newer: str, code: str) -> list[str]:
        """Return a line for each migration from one to another, told by the newer code."""
        try:
            lines = self.alembic(f"history --rev-range {older}:{newer}", code).splitlines()
        except Failure:
            return [f"{older} -> {newer}"]
        # The first of the range is the one that the older code has already.
        return [line.strip() for line in lines if "->" in line and f"-> {older}" not in line]

    def ahead(self) -> str:
        """Return what to say when the database is ahead of the code that serves."""
        now, then = (self.releases.get(x, {}).get("head") for x in (self.id, self.serving))
        if not (now and then) or now == then:
            return ""
        lines = "\n  ".join(self.between(then, now, self.id))
        return f"These migrations are ahead of the code that serves:\n  {lines}\n"

    def restore_schema(self) -> None:
        """Bring the database back to what the serving release knows, after a downgrade in vain."""
        if self.lock.pop("downgraded", False):
            release = self.lock["from"]
            self.as_migrator(self.app["commands"]["migrate"], release)
            self.note(release, head=self.head(release))

    # How it ends.

    def fail(self, step: str, why: str) -> str:
        """Mark the release as broken, give the lock back, and return all that helps."""
        self.best_effort, ahead = True, ""
        # What comes after the first line are others' words, which are shown and not written down.
        why, _, theirs = why.partition("\n")
        # Of a run that has lost its lock, nothing is taken back: another one is at work.
        mine = self.mine
        if mine:
            if step == "switch":
                self.point(self.lock["from"])
            with contextlib.suppress(Failure, OSError):
                self.restore_schema()
            with contextlib.suppress(Failure, OSError):
                self.note(self.id, broken=one_line(f"{step}: {why}"))
                ahead = self.ahead()
        # Which package could not be built may stand far above.
        helps = migrations.hint(step, self.log_tail(10 * LOG_TAIL) + theirs.encode())
        # What slots and workers print is in logs of their own.
        log = "" if step in ("slots", "workers") else self.log_end()
        if mine:
            self.end(f"failed at {step}: {why}")
        first = f"{self.id} failed at the step {step}: {why.rstrip('.')}; {self.serves()}."
        # Last, where one looks first, what helps.
        parts = filter(None, [first, ahead, log, theirs, helps, self.next()])
        text = escaped("\n".join(part.strip("\n") for part in parts))
        # For the end of the run, when all is taken back: the task shows the first line.
        with contextlib.suppress(OSError):
            files.write(self.failure, text, 0o640, owner=os.geteuid(), group=os.getegid())
        return text

    @property
    def failure(self) -> Path:
        """Where the text of a step that failed lies for the end of its run."""
        return self.root / "logs" / "failure"

    def told(self, why: str) -> str:
        """Return all of the text of a step that failed, of which the task has shown one line."""
        text = files.read(self.failure) or ""
        same = text.partition("\n")[0] == why.partition("\n")[0]
        self.failure.unlink(missing_ok=True)
        return text if same else ""

    def serves(self) -> str:
        """Say what serves: a link may lead to a release that has never got that far."""
        return f"{self.serving} serves" if self.has_served(self.serving) else "nothing serves yet"

    def next(self) -> str:
        """Return the last line of what is said of a failure: how things are, and what to do."""
        again, served = self.app["again"], self.has_served(self.serving)
        command = f"run again: {again}" if again else "run this again."
        if self.unfinished():
            site = DEPLOY.sub("site", again)
            command = f"run: {site}" if again else "run site.yml."
            return (
                f"Nothing serves yet, and this server is not finished. Site comes first, {command}"
            )
        serves = f"As before, {self.serving} serves." if served else "Nothing serves yet."
        others = " The other servers give it up, too." if self.app["servers"] > 1 else ""
        return f"{serves}{others} Mend that, and {command}"

    def unfinished(self) -> bool:
        """Tell whether nothing has served yet where this run is for servers that are finished."""
        return self.app["expects_release"] and not any(map(self.has_served, self.releases))

    def begin_log(self) -> None:
        """Part what this run writes from what an earlier one has left in the release's log."""
        if self.log_path.exists():
            with self.open_log() as log:
                log.write(self.log_mark)

    @property
    def log_mark(self) -> bytes:
        return "=== {by}, {id}\n".format_map(self.app["run"]).encode()

    def log_tail(self, size: int = LOG_TAIL) -> bytes:
        """Return the end of what this run has written to the release's log."""
        text = files.tail(self.log_path, size) if self.log_path.exists() else b""
        return text.rpartition(self.log_mark)[2]

    def log_end(self) -> str:
        text = escaped(self.log_tail())
        return f"The end of {self.log_path}:\n{text}" if text else ""


def at(said: str) -> str:
    """Return the migration that Alembic says the database is at, among what else is said."""
    lines = map(REVISION.fullmatch, said.splitlines())
    return next((line[1] for line in lines if line), "base")


def end(
    process: subprocess.Popen[Any], unit: sandbox.Unit | None = None, asked: bool = False
) -> None:
    """End a process, and whatever it has started in its unit, or its session."""
    for number, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        if asked and number == signal.SIGTERM:
            pass
        elif unit:
            unit.kill(number.name)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


# The beginning of a deployment.


def begin(app: Release) -> None:
    """See what is there; when something is to be done, take the lock and write the settings."""
    app.refuse()
    if app.unfinished():
        raise Refused("No release has served on this server yet")
    sandbox.check()
    settings.check_schedules(app.app)
    wanted = settings.wanted(app.app)
    place = settings.place(app.app, check=True)
    wrong = settings.differing(app, app.id, wanted)
    venv = app.venv(app.app["venv"])
    live = (
        app.serving == app.id
        and app.proven(app.id)
        and not app.lock_path.exists()
        and app.built(app.id)
        and venv
        and not wrong
    )
    app.output |= {
        **{"live": live, "built": app.built(app.id), "venv": venv},
        **{"place": place, "plan": [], "release": app.id},
        "diff": "".join(f"{path} is made or changed\n" for path in place)
        + ("" if live else settings.described(app, app.id, wanted)),
    }
    if app.check or (live and not place):
        return
    # Root's own, without which there is no lock to take.
    app.state.mkdir(mode=0o755, parents=True, exist_ok=True)
    app.take_lock()
    try:
        settings.place(app.app, check=False)
        if live:
            with app.own_lock():
                app.lock_path.unlink()
            return
        app.step("begin")
        app.begin_log()
        settings.store(app, app.id, wanted)
        app.note(
            app.id,
            revision=app.app["revision"],
            code=app.app["code"],
            by=app.app["run"]["by"],
            began=app.releases.get(app.id, {}).get("began") or time.time(),
            broken=None,
            before=None,
            **({"from": app.lock["from"]} if app.lock["from"] not in ("", app.id) else {}),
        )
    except (OSError, CommandFailed, Refused):
        if app.mine:
            app.lock_path.unlink()
        raise
    # An app that finds nothing of its own yet, or migrates itself, cannot be loaded before.
    # Several servers go in the same order, whichever of them notes that it was set up.
    several = app.app["servers"] > 1
    due = app.app["commands"]["setup"] if several else set_up_is_due(app)
    early = app.app["user_migrates"] or due
    middle = ("migrate", "load") if early else ("load", "migrate")
    app.output["plan"] = plan(app, ("build", *middle, "probe", "switch"))


def plan(app: Release, steps: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the steps, in as few trips as the points that have task files allow.

    Each entry has ``steps``, and ``point`` (or '') whose task files come after them. With several
    servers all of them end a trip before any begins the next: the migration, and then the probe.
    """
    commands, found, trip = app.app["commands"], [], []
    for step in steps:
        early = step == "load" and "migrate" in steps[: steps.index(step)]
        if trip and (early or step in ("probe", "switch")) and app.app["servers"] > 1:
            found.append({"steps": trip, "point": ""})
            trip = []
        if step in ("load", "probe") and not commands[step]:
            continue
        if step == "migrate" and not (app.app["migrate_enabled"] and has_migration(app)):
            continue
        hooked = step in ("migrate", "switch") or (step == "build" and not app.built(app.id))
        if hooked and app.has_task_files(f"before_{step}"):
            # The dependencies are there by then.
            before = [*trip, "venv"] if step == "build" else trip
            found.append({"steps": before, "point": f"before_{step}"})
            trip = []
        # There the tasks have a restore point made, as late as can be.
        if step == "migrate" and app.app["point_server"] and commands["migrate"] and trip:
            found.append({"steps": trip, "point": ""})
            trip = []
        trip = [*trip, step]
        if hooked and app.has_task_files(f"after_{step}"):
            found.append({"steps": trip, "point": f"after_{step}"})
            trip = []
    return [*found, {"steps": trip, "point": ""}] if trip else found


def has_migration(app: Release) -> bool:
    """Tell whether there is anything to do around a migration: hooks may be all there is."""
    hooks = app.app["hooks"]
    return bool(
        app.app["commands"]["migrate"]
        or set_up_is_due(app)
        or hooks.get("before_migrate")
        or hooks.get("after_migrate")
    )


def moment(app: Release) -> None:
    """Tell which was the last moment before a release, by the books: its restore point, or a time.

    Nothing is told of one that they do not have.
    """
    asked, releases = app.app["asked"], app.releases
    there = [x for x in releases if asked and x.startswith(asked) and "before" in releases[x]]
    app.output |= {"moment": "", "says": ""}
    if not there:
        return
    name = max(there, key=lambda x: releases[x]["before"])
    entry = releases[name]
    app.output["moment"] = entry.get("point") or stamp(entry["before"])
    point = f", the restore point {entry['point']}" if entry.get("point") else ""
    app.output["says"] = f"The last moment before {name} was {shown(entry['before'])}{point}."


def serving(app: Release) -> None:
    """Tell what serves well, by the books; nothing where none does."""
    entry = app.releases.get(app.serving, {}) if app.proven(app.serving) else {}
    told = {"label": entry.get("revision") or "", "code": entry.get("code") or ""}
    app.output["serving"] = {"release": app.serving, **told} if entry else {}


# The steps of the gate.


def unpack(app: Release) -> None:
    """Unpack the code into a folder of its own."""
    files.remove(app.folder(app.id))
    app.log_path.unlink(missing_ok=True)
    app.shell(app.app["unpack"], "unpack the code", app.root)


def venv(app: Release) -> None:
    """Unpack the code, and build the virtual environment, each unless it is there."""
    # For a build that was begun while other work went on, or that outlived its run.
    with files.locked(app.state / "venv.lock"), install_environment(app):
        # Once in a run: what an earlier one has left of a release that is not whole is not used.
        mark, this = app.state / "unpacked", f"{app.id} {app.app['run']['id']}\n"
        if not app.built(app.id) and files.read(mark) != this:
            unpack(app)
            files.write(mark, this, owner=os.geteuid(), group=os.getegid())
        key = app.app["venv"]
        if app.venv(key):
            return
        mark, folder = app.state / "venvs" / key, app.root / "venvs" / key
        mark.unlink(missing_ok=True)
        if app.app["only_wheels"] and (built := app.app["built"]):
            raise Failure(
                f"app_only_wheels: {built} in the requirements is no wheel, and would be built."
                " Name a release of it on the package index, or a .whl"
            )
        wanted = app.app["build_venv"]
        with_uv = wanted["installer"] == "uv"
        why = build_with_uv(app, folder) if with_uv else ""
        python = venvs.python(app.app["python"], app.root)
        if not python:
            raise Failure(
                f"app_python: this server has no Python {app.app['python']}, and"
                f" {why or 'uv alone gets one'}. Have app_installer at uv and a mirror that the"
                " server reaches in app_install_environment, as UV_PYTHON_INSTALL_MIRROR, or name"
                " the path of one"
            )
        if why and wanted.get("lock"):
            raise Failure(f"{wanted['requirements']} is for uv alone: {why}")
        if why or not with_uv:
            clear(app, folder)
            script = venvs.pip_script(wanted | {"python": python}, app.root)
            app.build_shell(script, "build the virtual environment", folder)
        files.write(mark, f"{files.count_files(folder)}\n", owner=os.geteuid(), group=os.getegid())
        # For the end of the run: this may be the job that runs beside it.
        line = f"{app.app['run']['id']} pip has built the virtual environment: {why}" if why else ""
        files.write(app.state / "installer", line, owner=os.geteuid(), group=os.getegid())


def clear(app: Release, folder: Path) -> None:
    """Have an empty folder of the deploy user's: a build may write in it, but not beside it."""
    # As root: what a build that was cut short left may not be the deploy user's to remove.
    files.remove(folder)
    app.shell(f"mkdir {shlex.quote(str(folder))}", f"make {folder}", app.root)


def build_with_uv(app: Release, folder: Path) -> str:
    """Build the virtual environment with uv; return '' or why that was not possible."""
    uv = app.app["build_venv"]
    try:
        with environment(venvs.environment_of_uv(os.environ, app.root)):
            clear(app, folder)
            if not os.access(venvs.uv(uv, app.root), os.X_OK):
                # By itself: once packages have run code of theirs, it is not theirs to change.
                place = venvs.folder_of_uv(app.root)
                app.build_shell(venvs.get_uv(uv, app.root), "get uv", place)
            asked = app.app["python"]
            if not venvs.python(asked, app.root):
                place = venvs.folder_of_pythons(app.root)
                app.build_shell(venvs.get_python(uv, asked, app.root), f"get Python {asked}", place)
            script = venvs.script(uv | {"python": venvs.python(asked, app.root)}, app.root)
            app.build_shell(script, "build the virtual environment with uv", folder)
    except venvs.NoCounterpart as setting:
        return f"uv has no counterpart of pip's setting {setting}"
    except Failure as failure:
        return f"uv could not ({failure})"
    return ""


def build(app: Release) -> None:
    """Build the virtual environment and the release, unless they are there."""
    venv(app)
    if app.built(app.id):
        return
    app.hooks("before_build")
    with install_environment(app):
        app.build_shell(app.app["finish"], "build the release")
    app.hooks("after_build")
    # Task files are still to come, and without them it would not be whole.
    if not app.has_task_files("after_build"):
        app.mark_built(app.id)


@contextlib.contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Have these variables for a while: the next steps, which are the app's, must not see them."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def install_environment(app: Release) -> contextlib.AbstractContextManager[None]:
    """Have what dependencies are installed with."""
    text = files.read(app.settings(app.id) / "install.environment")
    return environment(settings.from_text(text or ""))


def load(app: Release) -> None:
    """Load the app with the loader of its server, as the user that will run it."""
    command = app.app["commands"]["load"]
    if app.app["user_migrates"]:
        # That may be what migrates.
        note_before(app)
        app.patiently(command, limit="step")
    else:
        app.inside("user", command)


def note_before(app: Release) -> None:
    """Note the last moment before a release changes anything; a point of a former try is none."""
    if "before" not in app.releases.get(app.id, {}):
        app.note(app.id, before=time.time(), point=None)


def migrate(app: Release) -> None:
    """Migrate the database, and note where it is then."""
    note_before(app)
    app.hooks("before_migrate")
    if app.app["commands"]["migrate"]:
        # By tasks where the database has a server of its own.
        if point := app.app.get("restore_point") or app.restore_point():
            app.note(app.id, point=point)
        app.note(app.id, head=app.migrated())
    set_up(app)
    app.hooks("after_migrate")


def way_back(release: dict[str, Any]) -> str:
    """Return how the data comes back to before a release's migrations, with all since lost."""
    if not release.get("point"):
        return ""
    command = f"ansible-playbook carafe.stack.restore -e restore_to={release['point']}"
    return f"\nOr bring the data back to before them, without what came since:\n  {command}"


def set_up(app: Release) -> None:
    """Run what is to be run once in the app's life, and note that it was."""
    if is_due := set_up_is_due(app):
        try:
            # Not tried again: it may have done a part of what is to be done once.
            app.patiently(is_due, tries=1)
        except Failure as failure:
            raise Failure(f"app_setup_command: {failure}") from None
        note_set_up(app)


def note_set_up(app: Release) -> None:
    line = f"{clock(time.time())} {app.id}\n"
    files.write(app.state / "setup", line, owner=os.geteuid(), group=os.getegid())


def set_up_is_due(app: Release) -> str:
    """Return the command that sets the app up, where it has not been run yet; else ''."""
    done = files.read(app.state / "setup") is not None and not app.app["setup_again"]
    return "" if done else app.app["commands"]["setup"]


def downgrade(app: Release) -> None:
    """Take the database back to what the older release knows, told by the newer code."""
    head = app.releases[app.id]["head"]
    app.alembic(f"downgrade {head}", app.serving)
    app.note(app.serving, head=head)
    app.lock["downgraded"] = True
    app.keep_lock()


def probe(app: Release) -> None:
    """Start the release on a private socket, and ask it for its health."""
    user, command = pwd.getpwnam(app.app["user"]), app.app["commands"]["probe"]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(files.scratch(f"{app.app['name']}-"))
        os.chown(folder, user.pw_uid, user.pw_gid)
        path = Path(folder, "probe.sock")
        unit = app.unit("user", "step")
        unit.seconds = app.app["health"]["timeout"]
        words = [app.app["run_command"], "-r", app.id, "sh", "-euc", command]
        own = {"PROBE_SOCKET": str(path)}
        with app.open_log() as log, unit.command(words, os.environ | own) as argv:
            log.write(f"--- {clock(time.time())}  {command}\n".encode())
            log.flush()
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

            def ended() -> str:
                status = process.poll()
                return "" if status is None else f"it ended with exit status {status}"

            def finish() -> None:
                end(process, unit, asked=True)
                if process.returncode:
                    unit.failed()

            stack.callback(finish)
            try:
                trouble, status = unix_http.wait(path, app.app["health"], ended)
            finally:
                unit.kill(signal.SIGTERM.name)
        if trouble:
            raise Failure(trouble)
        # A server takes its time to end, and is of no use to anybody now.
        app.ending.push(stack.pop_all())
    if not app.app["health"]["path"]:
        # Said at the end, with what each step took.
        app.lock["health"] = (
            f"no app_health_path is named, and / answered {status}, which is below 500 and will do"
        )
        app.keep_lock()


def switch(app: Release) -> None:
    """Let the release serve, where the static files of the last ones stay."""
    conf = app.settings(app.id) / "workers.conf"
    if "[program:" in (files.read(conf) or "") and (trouble := supervisord.check(str(conf))):
        raise Failure(f"app_workers: supervisord cannot read them: {trouble}")
    # The task files of after_build are through by now.
    app.mark_built(app.id)
    app.hooks("before_switch")
    for release in (app.serving, app.before(app.serving)):
        if release and release != app.id:
            carry_static(app, release)
    note_before(app)
    app.point(app.id)
    app.hooks("after_switch")
    link_command(app)


def link_command(app: Release) -> None:
    """Name a command after the app, unless that would hide another."""
    name, link = app.app["name"], Path("/usr/local/bin", app.app["name"])
    others = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if not others and not link.exists() and not link.is_symlink():
        link.symlink_to(app.app["run_command"])


def kept_names(app: dict[str, Any]) -> str:
    """Return what finds the files of a release that the next ones keep, by their paths in it."""
    found = [app["hashed"]]
    for url, folder in app["static"].items():
        above, path = url.rstrip("/") + "/", folder.rstrip("/") + "/"
        for prefix in app["immutable"]:
            if prefix.startswith(above):
                found.append("^" + re.escape(path + prefix.removeprefix(above)))
            elif above.startswith(prefix):
                found.append("^" + re.escape(path))
    return "|".join(filter(None, found))


def carry_static(app: Release, release: str) -> None:
    """Link the files of another release that have a hash in their name into this one."""
    names = {"old": app.folder(release), "new": app.folder(app.id), "hashed": kept_names(app.app)}
    script = CARRY.format_map({name: shlex.quote(str(value)) for name, value in names.items()})
    app.shell(script, f"keep the static files of {release}", app.root)


def hook(app: Release) -> None:
    """Begin with an entry of a point that has task files; run it, if it is a command."""
    if app.app["command"]:
        app.hook(app.app["point"], app.app["command"])


# The background workers, and the end.


def workers(app: Release) -> None:
    """Let supervisord run the background workers of what serves, as it should."""
    if app.mine:
        app.step("workers")
    release = app.serving
    folder = app.settings(release or "-")
    known = sorted(
        re.findall(r"^\[program:(.+)\]$", files.read(folder / "workers.conf") or "", re.M)
    )
    link = settings.PROGRAMS / f"{app.app['name']}.workers.conf"
    aim = str(app.root / "serving/workers.conf")
    linked = link.is_symlink() and str(link.readlink()) == aim
    app.output["workers"] = []
    if not settings.PROGRAMS.is_dir() or not (known or linked or link.exists()):
        return
    if app.check:
        if not linked and known:
            app.output["workers"] = [f"{name} would be started" for name in known]
        return
    if not known:
        link.unlink(missing_ok=True)
    elif not linked:
        link.unlink(missing_ok=True)
        link.symlink_to(aim)
    rpc, prefix = supervisord.connect(), f"{app.app['name']}."
    try:
        done = supervisord.update(rpc, lambda name: name.startswith(prefix))
        fresh = {line.partition(":")[0] for line in done}
        stale = {
            name: why for name in known if name not in fresh and (why := trouble(app, rpc, name))
        }
        restart(rpc, stale)
        app.output["workers"] = done + [
            f"{name}: restarted, since {why}" for name, why in stale.items()
        ]
        failed = wait_for(app, rpc, [*stale, *(name for name in known if name in fresh)])
    except (OSError, xmlrpc.client.Fault) as error:
        raise Failure(f"supervisord does not take in the workers: {error}") from None
    if failed:
        logs = [supervisord.log(rpc, f"{name}:{name}_0", LOG_TAIL)[0] for name in failed]
        why = "; ".join(f"the worker {name}: {why}" for name, why in failed.items())
        raise Failure("\n".join([why, *logs]))


def trouble(app: Release, rpc: Any, name: str) -> str:
    """Return '' when all of a worker's processes run what serves, or why they do not."""
    release = app.serving
    folder = app.settings(release)
    read_at_start = [folder / "environment", folder / "secrets", app.app["run_command"]]
    for info in supervisord.processes(rpc, name):
        if info["statename"] != "RUNNING":
            return f"it is {info['statename']}"
        if processes.environment(info["pid"]).get("APP_RELEASE") != release:
            return "it runs another release"
        if processes.is_older(info["pid"], read_at_start):
            return "its environment has changed"
        if path := processes.upgraded_in(info["pid"]):
            return f"{path} has been upgraded since it began"
    return ""


def restart(rpc: Any, names: Any) -> None:
    """Restart programs; each gets its time to end what it is at, all of them at once."""
    every = [x for name in names for x in supervisord.processes(rpc, name)]
    supervisord.stop(rpc, *(f"{info['group']}:{info['name']}" for info in every))
    for name in names:
        with contextlib.suppress(xmlrpc.client.Fault):
            rpc.startProcessGroup(name, False)


def wait_for(app: Release, rpc: Any, names: list[str]) -> dict[str, str]:
    """Return what is wrong with the programs, once they run or had their time to."""
    patience = max((int(x["startsecs"]) for x in app.app["workers"]), default=3) + 10
    deadline = time.monotonic() + patience
    while True:
        failed = {name: why for name in names if (why := trouble(app, rpc, name))}
        ended = all(why in ("it is BACKOFF", "it is FATAL") for why in failed.values())
        if not failed or (ended and failed) or time.monotonic() > deadline:
            return failed
        time.sleep(0.1)


def schedules(app: Release) -> None:
    """Let systemd run the schedules of what serves, unless another release is on its way."""
    if not app.lock_path.exists() or app.mine:
        app.output["schedules"] = settings.apply_schedules(app, app.check)
        there = schedule_runs.scheduled(app.app["name"], app.root)
        app.output["failing"] = schedule_runs.failing(schedule_runs.history(app.root), there)


def finish(app: Release) -> None:
    """Remove what is not needed any more, give the lock back, and say how long it took.

    The workers come first, unless a task of their own had to come before the task files of a point.
    """
    if "workers" not in dict(app.read_lock().get("steps") or []):
        workers(app)
    app.step("finish")
    try:
        app.hooks("before_finish")
    except Failure as failure:
        raise Failure(f"before_finish: {failure}; see {app.log_path}") from None
    for path in app.app["health"]["sockets"]:
        if trouble := unix_http.look(path, app.app["health"]):
            raise Failure(f"{Path(path).stem} did not stay healthy: {trouble}")
    # By another server, where this one does not migrate: once in the app's life, whichever does.
    if app.app["commands"]["setup"] and files.read(app.state / "setup") is None:
        note_set_up(app)
    rollback = app.lock["what"].startswith("rollback")
    served = {} if rollback else {"deployed": time.time()}
    app.note(app.id, broken=None, run=app.app["run"]["id"], **served)
    app.mark_built(app.id)
    schedules(app)
    app.output["warnings"] = app.prune()
    app.output["took"] = app.durations()
    if "health" in app.lock:
        app.output["took"].append(app.lock["health"])
    run, _, installer = (files.read(app.state / "installer") or "").partition(" ")
    if run == app.app["run"]["id"]:
        app.output["took"].append(installer)
    app.end("ok")
    try:
        app.hooks("after_finish")
    except Failure as failure:
        # What serves well by now is not taken back for it.
        app.output["after_finish"] = f"after_finish: {failure}\n{app.log_end()}"


# A run that is taken back.


def revert(app: Release) -> None:
    """Take back what this run has done here: it failed, here or on another server."""
    finished = app.releases.get(app.id, {}).get("run") == app.app["run"]["id"]
    app.output["serves"] = app.has_served(app.serving)
    if not app.mine:
        if not finished:
            # The step that failed has taken itself back, or there was nothing to do.
            return
        # It is finished here already, and on another server it failed.
        app.take_lock()
        app.lock["from"] = app.before(app.id)
        app.keep_lock()
    app.best_effort = True
    steps = [name for name, _ in app.read_lock()["steps"]]
    app.step("revert")
    if finished or len(steps) > 1:
        first = ": ".join(reason(app)).partition("\n")[0]
        app.note(app.id, broken=one_line(first), run=None)
    before = app.lock["from"] if app.lock["from"] != app.id else app.before(app.id)
    if finished or "switch" in steps:
        app.point(before)
        app.output["serves"] = app.has_served(app.serving)
    app.restore_schema()
    app.keep_lock()


def reason(app: Release) -> tuple[str, str]:
    """Return where it failed, a step or another server, and why."""
    why = app.app["failure"].strip()
    if app.app["failed_on"]:
        return app.app["failed_on"], why
    names = (name for name, _ in app.lock.get("steps", []))
    *_, step = "lock", *itertools.takewhile(lambda name: name != "revert", names)
    if why.startswith(f"{step}: "):
        return step, why.removeprefix(f"{step}: ")
    # Of the slots nothing is written down here.
    return "slots" if step in ("switch", "after_switch") else step, why


def report_failure(app: Release) -> None:
    """End a run that was taken back, and say why: it always fails."""
    app.best_effort = True
    if app.mine:
        app.step("report_failure")
        with contextlib.suppress(OSError, CommandFailed):
            schedules(app)
    where, why = reason(app)
    begun = [
        name for name, _ in app.lock.get("steps", []) if name not in ("revert", "report_failure")
    ]
    if len(begun) > 1 and not app.app["failed_on"]:
        raise Failure(app.fail(where, why))
    if text := app.told(why):
        raise Failure(text)
    ahead, what = "", app.app["run"]["what"]
    if app.lock:
        ahead = app.ahead() if len(begun) > 1 else ""
        app.end(f"given up, since it failed on {where}: {why}".partition("\n")[0])
    if app.app["failed_on"]:
        why = f"The {what} {app.id} is given up here, since it failed on {where}: {why}"
    raise Failure("\n".join(part.strip() for part in (why, ahead, app.next()) if part))


# The beginning of a rollback.


def choose(app: Release) -> None:
    """Choose the release to go back to, and see whether the database lets it."""
    app.refuse()
    sandbox.check()
    serving, releases = app.serving, app.releases
    asked, usable = app.app["asked"], [name for name in app.usable() if name != app.serving]
    app.id = asked or app.before(serving)
    if asked and asked != serving and asked not in usable:
        # The first part of an id tells the code, the second one the settings.
        app.id = next((name for name in [serving, *usable] if name.startswith(f"{asked}-")), asked)
    if not app.id or (app.id != serving and app.id not in usable):
        which = f"release {app.id}" if app.id else "older release"
        could = ", ".join(usable) or "none"
        raise Failure(
            f"There is no {which} to go back to. These are whole and have served: {could}."
            " See: ansible-playbook carafe.stack.releases"
        )
    live = app.id == serving
    now, then = (releases.get(x, {}).get("head") for x in (serving, app.id))
    down = then if now and then and now != then else ""
    app.output |= {"release": app.id, "live": live, "plan": [], "place": []}
    app.output |= {"venv": True, "built": True, "diff": ""}
    if not live:
        app.output["diff"] = f"{serving} is taken out of service, and {app.id} put into it\n"
    if live or app.check:
        return
    app.take_lock()
    app.step("choose")
    app.begin_log()
    if down and not app.app["migrations"]:
        lines = "\n  ".join(app.between(then, now, serving))
        app.end("refused: migrations lie between")
        raise Failure(
            f"These migrations lie between {app.id} and {serving}, which serves:\n  {lines}\n"
            "Say what becomes of them:\n"
            "  -e app_rollback_migrations=keep       the older code runs on the newer schema\n"
            "  -e app_rollback_migrations=downgrade  they are undone, with what only they hold"
            f"{way_back(releases.get(serving, {}))}"
        )
    for prefix, group in (("", app.app["user"]), ("migrate.", app.app["deploy_user"])):
        older = app.settings(app.id)
        secrets = settings.to_text(settings.forward(app.settings(serving), older, prefix))
        path = older / f"{prefix}secrets"
        if files.read(path) != secrets:
            files.write(path, secrets, 0o640, owner=os.geteuid(), group=group)
    settings.forward_files(app.settings(serving), app.settings(app.id), app.app["user"])
    steps = (
        ("downgrade",)
        if down and app.app["migrations"] == "downgrade" and app.app["migrate_enabled"]
        else ()
    )
    app.output["plan"] = plan(app, (*steps, "probe", "switch"))


def prepare(app: Release) -> None:
    """Begin to build the virtual environment while other work goes on.

    The step that wants it waits for it, or does it again and says why it fails.
    """
    if app.mine:
        with contextlib.suppress(Failure, OSError):
            venv(app)


STEPS = {x.__name__: x for x in (venv, build, load, migrate, downgrade, probe, switch)}


def take(app: Release, names: list[str]) -> None:
    """Take steps of the gate, one after the other; the first that fails ends the run."""
    with app.ending:
        for name in names:
            # One at a time: that of a run which was killed may still be at work.
            with files.locked(app.state / "step"):
                app.step(name)
                try:
                    STEPS[name](app)
                except Failure as failure:
                    raise Failure(app.fail(name, str(failure))) from None
                except OSError as error:
                    raise Failure(app.fail(name, describe(error))) from None


def describe(error: OSError) -> str:
    """Say in a few words what the system refused."""
    return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
