"""Take a release of an app through the gate, one step at a time, and keep the books.

    release.py STEP         standard input is a JSON object, standard output another

Standard input is ``__app_book`` of the role's vars/main.yml. A deployment is ``see``, ``unpack``,
``build``, ``load``, ``migrate``, ``probe``, ``switch``, ``workers`` and ``finish``; a rollback is
``choose``, ``downgrade``, ``probe``, ``switch``, ``workers`` and ``finish``. ``hook`` belongs to a
point that has task files. ``back`` and ``undone`` take back what this run has done, when it failed
where no step can: in the slots, the workers, a task file, or on another server. What brings no
release is between ``hold`` and ``free``. ``listing`` only reads. Runs as root, on the server.

``build``, ``choose`` and ``hold`` take the app's lock; each later step wants to find it as they
left it. A step that fails marks the release as broken, gives the lock back, writes the audit log,
and exits with 1 and the end of the release's own log. Exit status 75 means that another run has the
lock.

The books, ``releases.json``, keep for each release ``revision``, ``by``, ``began`` and ``deployed``
(seconds since the epoch: when it was first tried, and when it was last deployed with success),
``from`` (what served before), ``head`` (of the migrations) and ``broken`` (why, or absent).
"""

import contextlib
import fcntl
import http.client
import itertools
import json
import os
import pathlib
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

LOCKED = os.EX_TEMPFAIL
LOG_TAIL = 6000  # bytes of a release's log that a failure shows at most
KEEP_BROKEN = 2  # releases that failed, kept to be looked at
STATIC_FROM = 2  # releases whose hashed static files stay reachable
UNKNOWN = "supervisord does not know it"
# What a server says that has no app yet.
NOTHING = {
    **{"live": False, "built": False, "venv": False, "table": []},
    **{"workers": [], "schedules": [], "restarted": {}, "unknown": []},
}


class Failure(Exception):
    """What went wrong, in words for whoever deploys."""


def clock(seconds):
    """Return a point in time as people write it, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def write(path, data):
    """Replace a JSON file as a whole, so that neither a reader nor a crash meets half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w") as file:
        json.dump(data, file, indent=2, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)


def read(path):
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}


class UnixConnection(http.client.HTTPConnection):
    """HTTP to a unix socket."""

    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class App:
    """An app on this server, its books, and the run that works on it."""

    def __init__(self, book):
        self.book, self.id, self.output = book, book["release"], {}
        self.root = pathlib.Path(book["root"])
        self.lock_path = self.root / "lock.json"
        self.lock = {}

    @property
    def serving(self):
        """The id of the release that ``current`` points to, or ''."""
        current = self.root / "current"
        return current.readlink().name if current.is_symlink() else ""

    @property
    def log_path(self):
        return self.root / "logs" / f"{self.id}.log"

    def folder(self, release):
        return self.root / "releases" / release

    # The books.

    @property
    def releases(self):
        return read(self.root / "releases.json")

    def note(self, release, **values):
        """Write down something about a release; what is None is forgotten."""
        releases = self.releases
        entry = releases.get(release, {}) | values
        releases[release] = {key: value for key, value in entry.items() if value is not None}
        write(self.root / "releases.json", releases)

    def usable(self):
        """Return the releases that have served well and still could, the newest first."""
        found = [
            name
            for name, entry in self.releases.items()
            if entry.get("deployed") and not entry.get("broken") and self.built(name)
        ]
        return sorted(found, key=lambda name: -self.releases[name]["deployed"])

    def built(self, release):
        return (self.folder(release) / ".built").exists()

    def before(self, release):
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

    def audit(self, text):
        with (self.root / "releases.log").open("a") as file:
            file.write(f"{clock(time.time())}  {text}\n")

    # The lock.

    @property
    def mine(self):
        """Whether this run has the lock."""
        return read(self.lock_path).get("id") == self.book["run"]["id"]

    def take_lock(self):
        """Take the app's lock, or say who has it."""
        run = self.book["run"]
        if (old := read(self.lock_path)) and self.book["break_lock"]:
            # A step of the run that is gone may still be at work: this process has waited for it.
            self.audit(f"{run['by']}  broke the lock of {old['by']}: {old['what']}")
            self.lock_path.unlink()
        lock = run | {"from": self.serving, "steps": []}
        lock["what"] = f"{run['what']} {self.id}".rstrip()
        partial = self.root / f".lock.{os.getpid()}"
        write(partial, lock | {"since": time.time()})
        try:
            # Of several runs at the same time, one makes the link.
            os.link(partial, self.lock_path)
        except FileExistsError:
            self.refuse()
        finally:
            partial.unlink()

    def refuse(self):
        """Say who has the lock, and end."""
        lock = read(self.lock_path)
        step = lock["steps"][-1] if lock.get("steps") else ["lock", lock["since"]]
        # The control machine adds whether that run is alive, where it can know.
        lock["says"] = (
            f"{lock['by']} holds the lock of {self.book['name']} since {clock(lock['since'])}, for:"
            f" {lock['what']}. Its last step, {step[0]}, began at {clock(step[1])}."
        )
        print(json.dumps({"lock": lock}))
        sys.exit(LOCKED)

    def step(self, name):
        """Note in the lock that a step begins; fail when the lock is not this run's."""
        self.lock = read(self.lock_path)
        if self.lock.get("id") != self.book["run"]["id"]:
            sys.exit(
                f"This run has lost the lock of {self.book['name']} to"
                f" {self.lock.get('by', 'somebody')}, and stops here."
            )
        self.lock["steps"].append([name, time.time()])
        write(self.lock_path, self.lock)

    def end(self, result):
        """Give the lock back, and write down how the run ended."""
        took = time.time() - self.lock["since"]
        self.audit(f"{self.lock['by']}  {self.lock['what']}  {result}  {took:.1f} s")
        self.lock_path.unlink()

    def durations(self):
        """Return how many seconds each step took, and all of them together."""
        steps = [*self.lock["steps"], ["", time.time()]]
        shown = {"switch": "switch and slots"}
        took = [
            f"{shown.get(name, name)} {following[1] - began:.1f} s"
            for (name, began), following in itertools.pairwise(steps)
        ]
        return [*took, f"in all {time.time() - self.lock['since']:.1f} s"]

    # Commands.

    def call(self, words, shown, **options):
        """Run a command; its output goes to the release's log, and is returned."""
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            **options,
        )
        with self.log_path.open("a") as file:
            file.write(f"--- {clock(time.time())}  {shown}\n{done.stdout}{done.stderr}")
        if done.returncode:
            raise Failure(f"exit status {done.returncode}")
        return done.stdout

    def shell(self, script, shown, folder):
        """Run a shell script as the deploy user."""
        user = ["runuser", "-u", self.book["deploy_user"], "--"]
        return self.call([*user, "sh", "-euc", script], shown, cwd=folder)

    def inside(self, user, command, *options, release=None):
        """Run a shell command in a release, with the app's environment."""
        run = [self.book["run_command"], "-r", str(self.folder(release or self.id)), *options]
        words = ["runuser", "-u", self.book[user], "--", *run, "sh", "-euc", command]
        return self.call(words, command)

    def has_task_files(self, point):
        return any(isinstance(entry, dict) for entry in self.book["hooks"].get(point) or [])

    def hooks(self, point):
        """Run the commands of a point, unless it has task files: then tasks run all of it."""
        if not self.has_task_files(point):
            for command in self.book["hooks"].get(point) or []:
                self.inside("deploy_user", command)

    # Migrations.

    def alembic(self, words, release=None):
        """Ask Alembic, as whoever migrates."""
        command = f"{self.book['alembic']} {words}"
        return self.inside("deploy_user", command, "-m", release=release)

    def head(self, release):
        """Return the migration that the database is at, as the code of this release knows it."""
        if not self.book["alembic"]:
            return None
        lines = self.alembic("current", release).split()
        return lines[0] if lines else "base"

    def between(self, older, newer, code):
        """Return a line for each migration from one to another, told by the newer code."""
        try:
            lines = self.alembic(f"history --rev-range {older}:{newer}", code).splitlines()
        except Failure:
            return [f"{older} -> {newer}"]
        # The first of the range is the one that the older code has already.
        return [line.strip() for line in lines if "->" in line and f"-> {older}" not in line]

    def ahead(self):
        """Return what to say when the database is ahead of the code that serves."""
        now, then = (self.releases.get(x, {}).get("head") for x in (self.id, self.serving))
        if not (now and then) or now == then:
            return ""
        lines = "\n  ".join(self.between(then, now, self.id))
        return f"These migrations are ahead of the code that serves:\n  {lines}\n"

    # How it ends.

    def fail(self, step, why):
        """Mark the release as broken, give the lock back, and tell all that helps."""
        ahead = ""
        if self.lock:
            if step == "switch" and self.lock["from"]:
                self.point(self.lock["from"])
            self.restore_schema()
            self.note(self.id, broken=f"{step}: {why}")
            ahead = self.ahead()
        log = ""
        if self.log_path.exists():
            tail = self.log_path.read_bytes()[-LOG_TAIL:].decode(errors="replace")
            log = f"The end of {self.log_path}:\n{tail}"
        if self.lock:
            self.end(f"failed at {step}: {why}")
        serves = f"{self.serving} serves" if self.serving else "nothing serves yet"
        sys.exit(f"{self.id} failed at the step {step}: {why}; {serves}.\n{ahead}{log}")

    def restore_schema(self):
        """Bring the database back to what the serving release knows, after a downgrade in vain."""
        if self.lock.pop("downgraded", False):
            release = self.lock["from"]
            self.inside("deploy_user", self.book["migrate_command"], "-m", release=release)
            self.note(release, head=self.head(release))

    def point(self, release):
        """Point ``current`` to a release, in one go."""
        partial = self.root / ".current"
        partial.unlink(missing_ok=True)
        partial.symlink_to(f"releases/{release}")
        partial.rename(self.root / "current")


# The steps of a deployment.


def see(app):
    """See what is there already."""
    entry = app.releases.get(app.id, {})
    proven = "deployed" in entry and "broken" not in entry
    venv = app.root / "venvs" / app.book["venv"] / ".complete"
    app.output |= {
        "live": app.serving == app.id and proven and not app.lock_path.exists(),
        "built": app.built(app.id),
        "venv": venv.exists(),
        "workers": own_files(app, "/etc/supervisor/conf.d", ".conf"),
        "schedules": own_files(app, "/etc/systemd/system", ".timer"),
    }
    for schedule in app.book["schedules"]:
        words = ["systemd-analyze", "calendar", "--", schedule["when"]]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(
                f"app_schedules: {schedule['name']} has a time that systemd does not understand."
                f" {done.stderr.strip()}\nTry one with: systemd-analyze calendar '*-*-* 03:00'"
            )


def own_files(app, folder, suffix):
    """Return the names of the app's workers or schedules that have a file in a folder."""
    prefix = app.book["name"] + "."
    found = pathlib.Path(folder).glob(f"{prefix}*{suffix}")
    return sorted(path.name[len(prefix) : -len(suffix)] for path in found)


def unpack(app):
    """Unpack the code into a folder of its own."""
    if not app.built(app.id):
        shutil.rmtree(app.folder(app.id), ignore_errors=True)
        app.log_path.unlink(missing_ok=True)
        app.shell(app.book["unpack"], "unpack the code", app.root)


def build(app):
    """Take the lock; build the virtual environment, unless it is there, and the release."""
    if app.mine:
        app.step("build")
    else:
        begin(app)
    if not app.built(app.id):
        os.environ.update(install_environment(app))
        app.hooks("before_build")
        app.shell(app.book["finish"], "build the release", app.folder(app.id))
        app.hooks("after_build")
        # Task files are still to come, and without them it would not be whole.
        if not app.has_task_files("after_build"):
            mark_built(app)


def install_environment(app):
    """Return what dependencies are installed with, from a file of the shell's syntax."""
    script = 'set -a; . "$1"; exec env -0'
    words = ["sh", "-euc", script, "sh", app.book["install_file"] or "/dev/null"]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise Failure(f"{words[-1]} cannot be read: {done.stderr.strip()}")
    return dict(entry.split("=", 1) for entry in done.stdout.split("\0") if entry)


def mark_built(app):
    (app.folder(app.id) / ".built").touch()


def begin(app):
    """Take the lock; build the virtual environment, unless it is there."""
    app.take_lock()
    app.step("build")
    app.note(
        app.id,
        revision=app.book["revision"],
        by=app.book["run"]["by"],
        began=app.releases.get(app.id, {}).get("began") or time.time(),
        broken=None,
        **({"from": app.serving} if app.serving not in ("", app.id) else {}),
    )
    app.shell(app.book["build_venv"], "build the virtual environment", app.folder(app.id))


def hook(app):
    """Begin with an entry of a point that has task files; run it, if it is a command."""
    point = app.book["point"]
    if point == "before_build" and not app.mine:
        begin(app)
    # The lock was given back by then.
    if point != "after_finish":
        app.step(point)
    if app.book["command"]:
        os.environ.update(install_environment(app))
        app.inside("deploy_user", app.book["command"])


def load(app):
    """Load the app with the loader of its server, as the user that will run it."""
    app.step("load")
    app.inside("user", app.book["boot_command"])


def migrate(app):
    """Migrate the database, and note where it is then."""
    app.step("migrate")
    app.hooks("before_migrate")
    app.inside("deploy_user", app.book["migrate_command"], "-m")
    app.note(app.id, head=app.head(app.id))
    app.hooks("after_migrate")


def probe(app):
    """Start the release on a private socket, and ask it for its health."""
    app.step("probe")
    user = pwd.getpwnam(app.book["user"])
    with tempfile.TemporaryDirectory(prefix=f"{app.book['name']}-") as folder:
        os.chown(folder, user.pw_uid, user.pw_gid)
        path = pathlib.Path(folder, "probe.sock")
        # Unlike runuser it is gone when it has begun: the process gets its signals, and ends with
        # this one.
        own = {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name}
        become = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--init-groups"]
        run = [app.book["run_command"], "-r", str(app.folder(app.id)), "sh", "-euc"]
        with app.log_path.open("a") as log:
            log.write(f"--- {clock(time.time())}  {app.book['probe_command']}\n")
            log.flush()
            process = subprocess.Popen(
                [*become, "--pdeathsig=TERM", "--", *run, app.book["probe_command"]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | own | {"PROBE_SOCKET": str(path)},
                start_new_session=True,
            )
            try:
                wait_until_healthy(app, process, path)
            finally:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)


def wait_until_healthy(app, process, path):
    """Return once the probed process answers below 500; fail at its or the time's end."""
    deadline = time.monotonic() + app.book["health_timeout"]
    trouble, pause = "it did not listen", 0.05
    headers = {"Host": app.book["health_host"], "X-Forwarded-Proto": "https"}
    while (left := deadline - time.monotonic()) > 0:
        if process.poll() is not None:
            raise Failure(f"it ended with exit status {process.returncode}")
        if not path.exists():
            time.sleep(pause)
            continue
        connection = UnixConnection(path, left)
        try:
            connection.request("GET", app.book["health_path"], headers=headers)
            status = connection.getresponse().status
            if status < 500:
                return
            trouble = f"{app.book['health_path']} answered {status}"
        except (OSError, http.client.HTTPException) as error:
            trouble = f"no answer to {app.book['health_path']}: {error}"
        finally:
            connection.close()
        time.sleep(pause)
        pause = min(pause * 1.5, 1)  # each answer may fill the log with a traceback
    raise Failure(f"not healthy within {app.book['health_timeout']} s: {trouble}")


def switch(app):
    """Let ``current`` point to the release, where the static files of the last ones stay."""
    if app.book["check"]:
        return
    app.step("switch")
    # The task files of after_build are through by now.
    mark_built(app)
    app.hooks("before_switch")
    for release in [app.serving, app.before(app.serving)][:STATIC_FROM]:
        if release and release != app.id:
            carry_static(app, release)
    app.point(app.id)
    app.hooks("after_switch")
    link_command(app)


def link_command(app):
    """Name a command after the app, unless that would hide another."""
    name, link = app.book["name"], pathlib.Path("/usr/local/bin", app.book["name"])
    others = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if not others and not link.exists() and not link.is_symlink():
        link.symlink_to(app.book["run_command"])


def carry_static(app, release):
    """Link the files of another release that have a hash in their name into this one."""
    hashed, here, there = re.compile(app.book["hashed"]), app.folder(app.id), app.folder(release)
    own = there / ".static"
    missing = [
        line
        for line in (own.read_text().splitlines() if own.exists() else [])
        if hashed.search(line) and (there / line).is_file() and not (here / line).exists()
    ]
    if missing:
        user = ["runuser", "-u", app.book["deploy_user"], "--"]
        copy = ["cp", "--link", "--parents", "--", *missing, str(here)]
        app.call([*user, *copy], f"keep {len(missing)} static files of {release}", cwd=there)


def workers(app):
    """Restart the background workers that do not run the release that serves."""
    if read(app.lock_path).get("id") == app.book["run"]["id"]:
        app.step("workers")
    files = [app.book["environment_file"], app.book["run_command"]]
    state = {name: worker_trouble(app, name, files) for name in app.book["workers"]}
    # A program that supervisord does not know comes with its file, which this step does not write.
    stale = {name: why for name, why in state.items() if why not in ("", UNKNOWN)}
    app.output |= {"restarted": stale, "unknown": [x for x in state if state[x] == UNKNOWN]}
    if app.book["check"]:
        return
    # Each gets its time to end what it is at, all of them at once.
    runs = [
        subprocess.Popen(
            ["supervisorctl", "restart", f"{name}:*"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for name in stale
    ]
    for run in runs:
        run.communicate()
    if failed := {name: why for name in stale if (why := worker_trouble(app, name))}:
        logs = [supervisorctl("tail", f"-{LOG_TAIL}", f"{name}:{name}_0") for name in failed]
        why = "; ".join(f"the worker {name}: {why}" for name, why in failed.items())
        raise Failure("\n".join([why, *logs]))


def supervisorctl(*words):
    """Return what supervisorctl says; its exit status says less."""
    return subprocess.run(
        ["supervisorctl", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    ).stdout


def worker_trouble(app, name, files=()):
    """Return '' when all of a worker's processes run what serves, UNKNOWN, or why they do not."""
    for line in supervisorctl("status", f"{name}:*").splitlines():
        state, *told = line.split()[1:]
        if state == "ERROR":
            return UNKNOWN
        if state != "RUNNING":
            return f"it is {state}"
        # "pid 123, uptime 0:00:01"
        trouble = process_trouble(app, told[1].rstrip(","), files)
        if trouble:
            return trouble
    return ""


def process_trouble(app, pid, files):
    """Return '' when a process runs the release that serves, and began after these files."""
    proc = pathlib.Path("/proc", pid)
    try:
        environment = proc.joinpath("environ").read_bytes().split(b"\0")
        # The 22nd field of proc_pid_stat(5); the second may hold blanks.
        ticks = int(proc.joinpath("stat").read_text().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return "it ended"
    if f"APP_RELEASE={app.serving}".encode() not in environment:
        return "it runs another release"
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    if any(pathlib.Path(path).stat().st_mtime > time.time() - age for path in files):
        return "its environment has changed"
    return ""


def finish(app):
    """Remove what is not needed any more, give the lock back, and say how long it took."""
    app.step("finish")
    app.hooks("before_finish")
    rollback = app.book["run"]["what"] == "rollback to"
    app.note(app.id, broken=None, **({} if rollback else {"deployed": time.time()}))
    app.output["removed"] = prune(app)
    app.output["took"] = app.durations()
    app.end("ok")
    try:
        app.hooks("after_finish")
    except Failure as failure:
        # What serves well by now is not taken back for it.
        app.output["failed"] = f"after_finish: {failure}; see {app.log_path}"


def prune(app):
    """Remove old releases, and the virtual environments and archives that none needs."""
    releases, usable = app.releases, app.usable()
    rest = [x for x in releases if x not in usable]
    rest.sort(key=lambda name: -releases[name].get("began", 0))
    keep = {app.serving, app.before(app.serving), *usable[: app.book["keep"]], *rest[:KEEP_BROKEN]}
    removed = []
    for folder in (app.root / "releases").iterdir():
        if folder.name not in keep:
            shutil.rmtree(folder)
            removed.append(f"release {folder.name}")
    for name in set(releases) - keep:
        releases.pop(name)
        (app.root / "logs" / f"{name}.log").unlink(missing_ok=True)
    write(app.root / "releases.json", releases)
    links = (folder / ".venv" for folder in (app.root / "releases").iterdir())
    used = {link.readlink().name for link in links if link.is_symlink()}
    for folder in (app.root / "venvs").iterdir():
        if folder.is_dir() and folder.name not in used:
            shutil.rmtree(folder)
            removed.append(f"virtual environment {folder.name}")
    for archive in (app.root / "archives").iterdir():
        if archive.stat().st_mtime < time.time() - 30 * 86400:
            archive.unlink()
            removed.append(f"archive {archive.name}")
    return removed


# A run that is taken back.


def back(app):
    """Take back what this run has done here: it failed, here or on another server."""
    app.output["to"] = ""
    if not app.mine:
        if not app.book["switched"]:
            # The step that failed has taken itself back, or there was nothing to do.
            return
        # It is finished here already, and on another server it failed.
        app.take_lock()
    tried = bool(read(app.lock_path)["steps"])
    app.step("back")
    before = app.lock["from"] if app.lock["from"] != app.id else app.before(app.id)
    if tried or app.book["switched"]:
        app.note(app.id, broken=": ".join(trouble(app)))
    app.restore_schema()
    write(app.lock_path, app.lock)
    if app.book["switched"] and before:
        app.output["to"] = before
        app.point(before)


def trouble(app):
    """Return where it failed, a step or another server, and why."""
    why = app.book["trouble"]
    if app.book["elsewhere"]:
        return app.book["elsewhere"], why.partition("\n")[0]
    names = (name for name, _ in app.lock.get("steps", []))
    *_, step = "lock", *itertools.takewhile(lambda name: name != "back", names)
    if why.startswith(f"{step}: "):
        return step, why.removeprefix(f"{step}: ")
    # Of the slots the books know nothing.
    return "slots" if step in ("switch", "after_switch") else step, why


def undone(app):
    """End a run that was taken back."""
    if app.mine:
        app.step("undone")
    where, why = trouble(app)
    if app.lock and not app.book["elsewhere"]:
        app.fail(where, why)
    what, ahead = app.book["run"]["what"], ""
    if app.lock:
        ahead = app.ahead()
        app.end(f"given up, since it failed on {where}: {why}")
    if app.book["elsewhere"]:
        why = f"The {what} {app.id} is given up here, since it failed on {where}: {why}"
    # The task that failed has shown the rest.
    sys.exit(why.partition("\n")[0] + f"\n{ahead}")


# The steps of what brings no release.


def hold(app):
    """Take the lock for work on what all releases have, as their environment."""
    if not app.book["check"]:
        app.take_lock()


def free(app):
    """Give the lock back, when it is this run's."""
    if app.mine:
        app.step("free")
        app.end("ok" if not app.book["trouble"] else app.book["trouble"].partition("\n")[0])


# The steps of a rollback that a deployment has not.


def choose(app):
    """Choose the release to go back to, and see whether the database lets it."""
    serving, releases = app.serving, app.releases
    app.id = app.book["release"] or app.before(serving)
    usable = [name for name in app.usable() if name != serving]
    if not app.id or (app.id != serving and app.id not in usable):
        which = f"release {app.id}" if app.id else "older release"
        could = ", ".join(usable) or "none"
        sys.exit(
            f"There is no {which} to go back to. These are whole and have served: {could}."
            " See: ansible-playbook playbooks/releases.yml"
        )
    app.output |= {"release": app.id, "live": app.id == serving, "from": serving}
    now, then = (releases.get(x, {}).get("head") for x in (serving, app.id))
    app.output["downgrade"] = then if now and then and now != then else ""
    if app.id == serving or app.book["check"]:
        return
    app.take_lock()
    if app.output["downgrade"] and not app.book["migrations"]:
        app.step("choose")
        lines = "\n  ".join(app.between(then, now, serving))
        app.end("refused: migrations lie between")
        sys.exit(
            f"These migrations lie between {app.id} and {serving}, which serves:\n  {lines}\n"
            "Say what becomes of them:\n"
            "  -e app_rollback_migrations=keep       the older code runs on the newer schema\n"
            "  -e app_rollback_migrations=downgrade  they are undone, with what only they hold"
        )


def downgrade(app):
    """Take the database back to what the older release knows, told by the newer code."""
    app.step("downgrade")
    head = app.releases[app.id]["head"]
    app.alembic(f"downgrade {head}", app.serving)
    app.note(app.serving, head=head)
    write(app.lock_path, app.lock | {"downgraded": True})


def listing(app):
    """Tell what the books say, in lines for people."""
    releases = app.releases

    def when(name):
        return releases[name].get("deployed") or releases[name].get("began") or 0

    rows = [("release", "revision", "when", "by", "migration", "")]
    for name in sorted(releases, key=when, reverse=True):
        entry = releases[name]
        states = {
            "serves": name == app.serving,
            "broken, at " + entry.get("broken", ""): "broken" in entry,
            "not finished": "deployed" not in entry and "broken" not in entry,
        }
        state = "; ".join(text for text, holds in states.items() if holds)
        told = (entry.get(key) or "-" for key in ("revision", "by", "head"))
        revision, by, head = told
        rows.append((name, revision, clock(when(name)), by, head, state))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    app.output["table"] = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    if lock := read(app.lock_path):
        app.output["table"].append(f"{lock['by']} is at work: {lock['what']}")


READ = (see, listing)
WRITE = (
    *(unpack, build, load, migrate, probe, switch, workers, finish, back, undone),
    *(hook, choose, downgrade, hold, free),
)


def main():
    step = next(step for step in READ + WRITE if step.__name__ == sys.argv[1])
    app = App(json.load(sys.stdin))
    # Not there in a dry run on a bare server.
    if not app.root.exists():
        print(json.dumps(NOTHING))
        return
    others = app.lock_path.exists() and not app.mine
    if step in (see, build, choose, hold) and others and not app.book["break_lock"]:
        app.refuse()
    with contextlib.ExitStack() as stack:
        if step in WRITE and not app.book["check"]:
            # One step at a time: that of a run which was killed may still be at work.
            file = stack.enter_context((app.root / ".step").open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            step(app)
        except Failure as failure:
            # The slots run this release by now, so there is more to take back than the books.
            if step is workers:
                sys.exit(str(failure))
            if step in (finish, back, hook):
                name = app.book["point"] if step is hook else step.__name__
                sys.exit(f"{name}: {failure}; see {app.log_path}")
            app.fail(step.__name__, failure)
    print(json.dumps(app.output))


if __name__ == "__main__":
    main()
