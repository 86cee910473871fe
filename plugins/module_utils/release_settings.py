"""The settings that a release passes the gate with, and that it alone runs with.

Each release has a folder of root's own, ``<root>/settings/<release>``:

``environment``, ``secrets``       variables of the app, in the syntax of the shell: those with a
                                   secret in their value are in the latter
``migrate.environment``, ``migrate.secrets``   what a migration has besides
``secret-files/``                  files with a secret in them, for the app's group to read
``build.secrets``                  what a build finds in the place of ``secrets``
``install.environment``            what dependencies are installed with
``workers.conf``, ``schedules/``   background workers for supervisord, timers for systemd
``code``                           a link to the release's code

and whatever else the app's server reads at its start. ``<root>/serving`` links to one of them.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import shlex
import urllib.parse
from pathlib import Path
from typing import Any

from . import (
    database_questions,
    file_set,
    files,
    programs,
    sandbox,
    schedule_runs,
    supervisord,
    terminal,
    uploads,
    words,
)
from .commands import Refused, ask, run, show
from .file_set import File, Folder
from .release_state import State
from .services import slice_of

UNITS = Path("/etc/systemd/system")
STAMPS = Path("/var/lib/systemd/timers")
CLAIMS = Path("/etc/carafe")
NOLOGIN = "/usr/sbin/nologin"
PROGRAMS = Path("/etc/supervisor/conf.d")
SERVICE = """# Managed by Ansible.
# Run it now: systemctl start {unit}; what it wrote: journalctl -u {unit}
[Unit]
Description={name} of {app}
After=network-online.target postgresql.service

[Service]
Type=oneshot
User={user}
SyslogIdentifier={unit}
ExecStart={run} sh -euc "{command}"
# Notes how it went, as root, whatever becomes of that.
ExecStopPost=+-/usr/bin/python3 -I {program} ended {history} {unit} {name}
TimeoutStartSec={timeout}
Slice={slice}
# The sandbox that the app's slots have.
{sandbox}
"""
TIMER = """# Managed by Ansible.
[Unit]
Description=When {name} of {app} runs

[Timer]
OnCalendar={when}
# A run that was due while the server was off is made up for.
Persistent=true
AccuracySec=1s

[Install]
WantedBy=timers.target
"""
SLICE = """# Managed by Ansible.
# What {app} may take of what others need as well: app_memory_max_mb and app_tasks_max.
[Unit]
Description=All that runs of {app}

[Slice]
MemoryMax={memory}
TasksMax={tasks}
"""
STAND_INS = "build.secrets"
STAND_IN = "a-secret-that-no-build-of-a-release-is-told"
SECRET = ("FLASK_SECRET_KEY", "FLASK_SECRET_KEY_FALLBACKS")  # whatever their value is


# What stands in a variable for the folder of the release, or of its secret files, and what the
# shell makes it from, between two parts in single quotes.
FOLDERS = {"@release@": "'\"$release\"'", "@secrets@": "'\"$secret_files\"'"}
SECRET_FILES = "secret-files"  # nosec B105 # a folder


def to_text(variables: dict[str, Any]) -> str:
    """Return variables in the shell's syntax, where single quotes keep every character as it is."""
    # shlex.quote() quotes what needs it only.
    quoted = {x: shlex.quote(f"{y} ")[:-2] + "'" for x, y in variables.items()}
    text = "".join(f"{name}={value}\n" for name, value in sorted(quoted.items()))
    for folder, in_shell in FOLDERS.items():
        text = text.replace(folder, in_shell)
    return text


def from_text(text: str) -> dict[str, str]:
    """Return the variables of a file that to_text() has made."""
    for folder, in_shell in FOLDERS.items():
        text = text.replace(in_shell, folder)
    return dict(word.split("=", 1) for word in shlex.split(text))


def written(secrets: list[str]) -> set[str]:
    """Return all that secrets look like in variables: as they are, in a URL, and in JSON."""
    return {
        word
        for x in map(str, secrets)
        if x
        for word in (
            *(x, json.dumps(x)[1:-1], json.dumps(x, ensure_ascii=False)[1:-1]),
            *(urllib.parse.quote(x, safe=""), urllib.parse.quote(x), urllib.parse.quote_plus(x)),
        )
    }


def split(variables: dict[str, Any], secrets: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the variables without a secret in them, and those with one."""
    words = written(secrets)

    def holds(name: str) -> bool:
        return name in SECRET or any(word in str(variables[name]) for word in words)

    return (
        {name: value for name, value in variables.items() if not holds(name)},
        {name: value for name, value in variables.items() if holds(name)},
    )


def stand_ins(variables: dict[str, Any], secrets: list[str]) -> dict[str, Any]:
    """Return variables with another word in the place of each secret: a URL stays one."""
    # The longest first: one may be a part of another.
    words, found = sorted(written(secrets), key=len, reverse=True), {}
    for name, value in variables.items():
        text = str(value)
        for word in words:
            text = text.replace(word, STAND_IN)
        found[name] = text
    shapes = {name: json.dumps(x) for name, x in zip(SECRET, (STAND_IN, [STAND_IN]), strict=True)}
    return found | {name: text for name, text in shapes.items() if name in variables}


def forward(serving: Path, older: Path, prefix: str) -> dict[str, str]:
    """Return the secrets with which an older release comes back: those of what serves now.

    A secret that has been taken out of use since then is not brought back.
    """
    now = from_text(files.read(serving / f"{prefix}secrets") or "")
    plain = from_text(files.read(serving / f"{prefix}environment") or "")
    then = from_text(files.read(older / f"{prefix}secrets") or "")
    return {name: plain[name] for name in then if name in plain} | now


def forward_files(serving: Path, older: Path, group: str) -> None:
    """Give an older release that comes back the secret files of what serves now, and no others."""
    there, here = serving / SECRET_FILES, older / SECRET_FILES
    files.remove(here)
    for path in sorted(there.iterdir()) if there.is_dir() else []:
        write_secret(here / path.name, files.read(path) or "", group)


def write_secret(path: Path, text: str, group: str) -> None:
    """Write a secret file, in a folder that no other user may look into."""
    folder = path.parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.set_attributes(folder, 0o750, os.geteuid(), group)
    files.write(path, text, 0o640, owner=os.geteuid(), group=group)


def in_unit(command: str) -> str:
    """Return a command for double quotes of systemd.syntax(7) and systemd.service(5)."""
    for letter, written in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("%", "%%"), ("$", "$$")):
        command = command.replace(letter, written)
    return command


def schedule_files(app: dict[str, Any]) -> dict[str, str]:
    """Return the units of the app's schedules, by file."""
    found = {}
    for schedule in app["schedules"]:
        unit = f"{app['name']}.{schedule['name']}"
        values = {
            **{"app": app["name"], "unit": unit, "user": app["user"], "run": app["run_command"]},
            **{"name": schedule["name"], "timeout": schedule["timeout"]},
            "command": in_unit(schedule["command"]),
            "when": schedule["when"].replace("%", "%%"),
            "slice": slice_of(app["user"]),
            "sandbox": "\n".join(sandbox.for_app(app.get("sandbox"))),
            "program": programs.FOLDER / "schedules",
            "history": schedule_runs.history(app["root"]),
        }
        found[f"schedules/{unit}.service"] = SERVICE.format_map(values)
        found[f"schedules/{unit}.timer"] = TIMER.format_map(values)
    return found


def program(app: dict[str, Any], worker: dict[str, Any]) -> dict[str, Any]:
    """Return a worker as a program of supervisord's. Its command is the same in all releases."""
    return supervisord.DEFAULTS | {
        "name": f"{app['name']}.{worker['name']}",
        "command": f"{app['run_command']} {worker['command'].replace('%', '%%')}",
        "user": app["user"],
        # Otherwise setproctitle, which celery has, writes over the environment that tells which
        # release it is.
        "environment": {"SPT_NOENV": "1"},
        **{name: worker[name] for name in ("numprocs", "startsecs", "stopwaitsecs")},
    }


def check_schedules(app: dict[str, Any]) -> None:
    """Refuse a schedule with a time that is none."""
    for schedule in app["schedules"]:
        done = ask("systemd-analyze", "calendar", "--", schedule["when"])
        if done.returncode:
            raise Refused(
                f"app_schedules: {schedule['name']} has a time that systemd does not understand."
                f" {done.stderr.strip()} Try one there: systemd-analyze calendar '*-*-* 03:00'"
            )


def wanted(app: dict[str, Any]) -> dict[str, tuple[str, int, str]]:
    """Return text, mode and group of each file of a release's settings."""
    variables, found = app["variables"], {}
    for prefix, group in (("", app["user"]), ("migrate.", app["deploy_user"])):
        kind = "migrate" if prefix else "environment"
        plain, secrets = split(variables[kind], variables["secrets"])
        found[f"{prefix}environment"] = (to_text(plain), 0o640, group)
        found[f"{prefix}secrets"] = (to_text(secrets), 0o640, group)
        if not prefix:
            text = to_text(stand_ins(secrets, variables["secrets"]))
            found[STAND_INS] = (text, 0o640, app["deploy_user"])
    if variables["install"]:
        text = to_text(variables["install"])
        found["install.environment"] = (text, 0o640, app["deploy_user"])
    for name, text in (variables.get("files") or {}).items():
        found[f"{SECRET_FILES}/{name}"] = (text, 0o640, app["user"])
    workers = "".join(supervisord.program_text(program(app, worker)) for worker in app["workers"])
    texts = {"workers.conf": supervisord.HEADER + workers, **schedule_files(app), **app["files"]}
    return found | {name: (text, 0o644, "root") for name, text in texts.items()}


def differing(state: State, release: str, files_: dict[str, tuple[str, int, str]]) -> list[str]:
    """Return the names of files that are not as wanted, or are too many."""
    folder = state.settings(release)
    there = {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if not path.is_dir() and path.name != "code"
    }
    wrong = [name for name, (text, _, _) in files_.items() if files.read(folder / name) != text]
    code = folder / "code"
    if not code.is_symlink() or str(code.readlink()) != f"../../releases/{release}":
        wrong.append("code")
    return [*wrong, *sorted(there - files_.keys())]


def store(state: State, release: str, files_: dict[str, tuple[str, int, str]]) -> None:
    """Write a release's settings."""
    folder = state.settings(release)
    for name in differing(state, release, files_):
        path = folder / name
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if name == "code":
            path.unlink(missing_ok=True)
            path.symlink_to(f"../../releases/{release}")
        elif name not in files_:
            path.unlink()
        else:
            text, mode, group = files_[name]
            if path.parent.name == SECRET_FILES:
                write_secret(path, text, group)
                continue
            group = group if group != "root" else os.getegid()
            files.write(path, text, mode, owner=os.geteuid(), group=group)


def described(state: State, release: str, files_: dict[str, tuple[str, int, str]]) -> str:
    """Return a diff of the settings against those that serve; of variables only the names."""
    import difflib

    serving, lines = state.settings(state.serving or "-"), []
    for name, (text, _, _) in sorted(files_.items()):
        before = files.read(serving / name) or ""
        if before == text:
            continue
        path = str(state.settings(release) / name)
        if name.startswith(f"{SECRET_FILES}/"):
            how = "changed" if before else "new"
            lines.append(f"{path} is {how}\n")
        elif name.endswith(("environment", "secrets")):
            then, now = from_text(before), from_text(text)
            for variable in sorted(then.keys() | now.keys()):
                if then.get(variable) != now.get(variable):
                    how = (
                        "new" if variable not in then else "changed" if variable in now else "gone"
                    )
                    lines.append(f"{path}: {variable} is {how}\n")
        else:
            sides = (before.splitlines(True), text.splitlines(True))
            lines += difflib.unified_diff(*sides, str(serving / name), path)
    return "".join(lines)


# The app's place on the server.


def refuse_somebody(app: dict[str, Any], user: pwd.struct_passwd) -> None:
    """Refuse a user who is not the app's: what the app leaves of itself says that it is."""
    if not (CLAIMS / f"{app['name']}.fact").exists():
        raise Refused(
            f"The server has a user {user.pw_name} already, and not from Carafe: uid {user.pw_uid},"
            f" home {user.pw_dir}, shell {user.pw_shell}. Choose another app_name, app_user or"
            " app_deploy_user in group_vars; if nobody needs that user: sudo deluser"
            f" {user.pw_name}"
        )


def accounts(app: dict[str, Any], check: bool) -> list[str]:
    """Make the users; return what changed."""
    changed = []
    for name in (app["user"], app["deploy_user"]):
        try:
            refuse_somebody(app, pwd.getpwnam(name))
        except KeyError:
            changed.append(f"the user {name}")
            if not check:
                group = ["--user-group"]
                if any(entry.gr_name == name for entry in grp.getgrall()):
                    group = ["--gid", name]
                home = ["--no-create-home", "--home-dir", app["root"]]
                run("useradd", "--system", *group, *home, "--shell", NOLOGIN, name)
    members = {m for entry in grp.getgrall() if entry.gr_name == app["user"] for m in entry.gr_mem}
    if app["deploy_user"] != app["user"] and app["deploy_user"] not in members:
        changed.append(f"{app['deploy_user']} as a member of {app['user']}")
        if not check:
            run("usermod", "--append", "--groups", app["user"], app["deploy_user"])
    return changed


def folders(app: dict[str, Any]) -> dict[str, tuple[int, str, str]]:
    """Return mode, user and group of each of the app's folders."""
    user, deploy, root = app["user"], app["deploy_user"], Path(app["root"])
    found = {
        "": (0o755, "root", "root"),
        "bin": (0o755, "root", "root"),
        "state": (0o755, "root", "root"),
        "state/built": (0o755, "root", "root"),
        "state/venvs": (0o755, "root", "root"),
        "settings": (0o755, "root", "root"),
        "logs": (0o750, "root", "root"),
        "logs/schedules": (0o750, "root", "root"),
        "shared": (0o755, "root", "root"),
        "home": (0o700, user, user),
        "archives": (0o750, "root", deploy),
        "cache": (0o750, deploy, deploy),
        "uv": (0o755, deploy, deploy),
        "python": (0o755, deploy, deploy),
        "releases": (0o755, deploy, deploy),
        "venvs": (0o755, deploy, deploy),
        **{f"shared/{name}": (0o750, user, user) for name in app["shared"]},
    }
    return {str(root / name): wanted for name, wanted in found.items()}


def limits(app: dict[str, Any]) -> list[File]:
    """Return the unit of the app's slice."""
    memory, tasks = app["memory_max_mb"], app["tasks_max"]
    text = SLICE.format(
        app=app["name"],
        memory=f"{memory}M" if memory else "infinity",
        tasks=tasks or "infinity",
    )
    return [File(UNITS / slice_of(app["user"]), content=text.encode())]


def place(app: dict[str, Any], check: bool) -> list[str]:
    """Make the users, folders and commands of the app; return what changed."""
    texts = {
        Path(x): File(Path(x), mode=mode, content=text.encode())
        for x, (text, mode) in app["place"].items()
    }
    # Refuses what is somebody's.
    accounts(app, check=True)
    # Before all else: it tells what a run that is cut short leaves from what somebody has there.
    first = [file for path, file in texts.items() if path.parent == CLAIMS]
    changed = file_set.write(file_set.with_parents(first), check).paths
    changed += accounts(app, check)
    wanted = [
        *(Folder(Path(x), *owned, mode) for x, (mode, *owned) in folders(app).items()),
        *(file for file in texts.values() if file not in first),
    ]
    changed += file_set.write(file_set.with_parents(wanted), check).paths
    changed += uploads.open_to_web(app, check)
    written = file_set.write(limits(app), check).paths
    if written and not check:
        run("systemctl", "daemon-reload")
    changed += written
    # Named, so that its text is sent along.
    for program in (terminal, database_questions):
        (name,) = programs.names(program)
        changed += programs.install(name.replace("_", "-"), [name], check)
    if app["schedules"]:
        parts = programs.names(schedule_runs, files, words)
        changed += programs.install("schedules", parts, check)
    link = Path(app["root"], "current")
    if not link.is_symlink() or str(link.readlink()) != "serving/code":
        changed.append(str(link))
        if not check:
            link.unlink(missing_ok=True)
            link.symlink_to("serving/code")
    # Those that an older Carafe made were for all to read, and have what apps printed.
    for path in (
        *Path(app["root"], "state").glob("releases.*"),
        *Path(app["root"], "logs").glob("*"),
    ):
        if path.lstat().st_mode & 0o007 and not path.is_symlink():
            changed.append(str(path))
            if not check:
                path.chmod(0o640)
    return changed


# What serves, brought to supervisord and systemd.


def apply_schedules(state: State, check: bool) -> list[str]:
    """Let systemd run the schedules of the release that serves, and no others."""
    prefix, serving = f"{state.app['name']}.", state.root / "serving/schedules"
    want = {path.name: path.read_text() for path in serving.glob("*") if path.is_file()}
    there = {x.name for kind in ("service", "timer") for x in UNITS.glob(f"{prefix}*.{kind}")}
    written = [name for name, text in want.items() if files.read(UNITS / name) != text]
    gone = sorted(there - want.keys())
    timers = sorted(name for name in want if name.endswith(".timer"))
    states = show("ActiveState,UnitFileState", *timers) if timers else []
    runs = {"ActiveState": "active", "UnitFileState": "enabled"}
    idle = [name for name, state in zip(timers, states, strict=True) if state != runs]
    changed = sorted({*written, *gone, *idle})
    if check or not changed:
        return changed
    old = [name for name in gone if name.endswith(".timer")]
    if old:
        ask("systemctl", "disable", "--now", *old)
    for name in old:
        # Of its last run. Where it comes back one day, another server has had those since then.
        (STAMPS / f"stamp-{name}").unlink(missing_ok=True)
    for name in gone:
        (UNITS / name).unlink(missing_ok=True)
        schedule = name.removeprefix(prefix).rpartition(".")[0]
        (schedule_runs.history(state.root) / f"{schedule}.json").unlink(missing_ok=True)
    for name in written:
        files.write(UNITS / name, want[name])
    if written or gone:
        run("systemctl", "daemon-reload")
    # A timer that runs keeps the time that it was started with.
    anew = sorted(
        {*idle, *(x for x in timers if x in written or x.replace(".timer", ".service") in written)}
    )
    if anew:
        run("systemctl", "enable", *anew)
        run("systemctl", "restart", *anew)
    return changed
