"""What the role refuses besides what its argument_specs.yml says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.helpers import load_list_of_blocks
from ansible.playbook.play import Play
from ansible_collections.carafe.stack.plugins.plugin_utils import pins
from ansible_collections.carafe.stack.plugins.plugin_utils.problems import (
    FILE_NAME,
    HOST_NAME_RULE,
    MESSAGE_LENGTH,
    Problem,
    Server,
    check_environment,
    check_file_names,
    check_twins,
    is_host_name,
)

RANGES = {
    "app_batch": (0, None),
    "app_health_timeout": (1, None),
    "app_keep_releases": (1, None),
    "app_memory_max_mb": (0, None),
    "app_schedules.timeout": (1, None),
    "app_workers.numprocs": (1, None),
}
TASKS_MIN = 64
PYTHON_MIN = 9  # Flask 3's
SECRET_LENGTH = 32  # characters; itsdangerous signs with SHA-1, and 16 bytes in hex are 32
MEMORY = re.compile(r"(100|[1-9][0-9]?)%|[1-9][0-9]*[KMGT]?")
SETTING, SETTING_VALUE = re.compile(r"[A-Z][A-Za-z]+"), re.compile(r"[^\[{\n][^\n]*|")
FIRST_PERSON = 1000  # from this uid on Debian counts people (adduser's FIRST_UID)
SRV = Path("/srv")
LINUX_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,30}")  # stricter than useradd's own rule

# Users and groups of Debian's base-passwd and of packages that share a server with an app.
RESERVED_USERS = """
    root daemon bin sys sync games man lp mail news uucp proxy www-data backup list irc _apt nobody
    nogroup adm tty disk kmem dialout fax voice cdrom floppy tape sudo audio dip operator src shadow
    utmp video sasl plugdev staff users crontab messagebus sshd _ssh ssh ssl-cert systemd-journal
    systemd-network systemd-resolve systemd-timesync polkitd postgres nginx supervisor gunicorn
    redis valkey mysql rabbitmq memcached docker ansible deploy admin debian ubuntu postfix dovecot
    certbot chrony ntp
"""


def check_secrets(server: Server) -> Iterator[Problem]:
    """A short secret key can be guessed, and with it every session forged."""
    secret = server.values.get("app_secret_key")
    if secret is not None and len(str(secret)) < SECRET_LENGTH:
        yield Problem(
            "app_secret_key",
            f"has {len(str(secret))} characters, and needs at least {SECRET_LENGTH} of chance",
            'make one: python3 -c "import secrets; print(secrets.token_hex(32))"',
        )


def check_python(server: Server) -> Iterator[Problem]:
    """YAML takes 3.10 for a number, and a number of 3.1."""
    asked = str(server.values.get("app_python") or "")
    version = re.fullmatch(r"3[.](\d{1,2})([.]\d{1,2})?", asked)
    if asked and not asked.startswith("/") and not (version and int(version[1]) >= PYTHON_MIN):
        yield Problem(
            "app_python",
            f"is {asked!r}, and neither a version from 3.{PYTHON_MIN} on nor a path",
            "write it in quotes: app_python: '3.12'",
        )


def check_requirements(server: Server) -> Iterator[Problem]:
    """Another version of what serves the app, or none of it, would be no app that is served."""
    brought = {
        pins.asked_for(str(x))[0]: x
        for x in server.values.get("app_default_extra_requirements") or []
    }
    for variable in ("app_requirements_override", "app_extra_requirements"):
        for entry in server.values.get(variable) or []:
            name, _ = pins.asked_for(str(entry))
            # One without a version, for its extras, takes the one that is brought.
            bare = re.fullmatch(r"[\w.-]+\s*(\[[^]]*\])?", str(entry).strip())
            if entry == brought.get(name):
                continue
            if name in brought and not (bare and variable == "app_extra_requirements"):
                yield Problem(
                    variable,
                    f"has {name}, which serves the app and is brought by the playbook as"
                    f" {brought[name]}",
                    f"take it out; for another version there is {name}_version",
                )
    try:
        pins.parsed([str(x) for x in server.values.get("app_requirements_override") or []])
    except ValueError as error:
        yield Problem("app_requirements_override", str(error))


def check_migrations(server: Server) -> Iterator[Problem]:
    """Who runs the app reads nothing that is for migrations alone."""
    if server.values.get("app_user_migrates") and server.values.get("app_migrate_environment"):
        yield Problem(
            "app_migrate_environment",
            "is not seen by the user that migrates with app_user_migrates",
            "move it to app_environment",
        )


def check_linux_names(server: Server) -> Iterator[Problem]:
    """Unix users, and with them folders and files, are named after the app."""
    app = server.values.get("app_name")
    for variable in ("app_name", "app_user", "app_deploy_user"):
        name = server.values.get(variable)
        if name is None:
            continue
        if not LINUX_NAME.fullmatch(name):
            yield Problem(
                variable,
                f"is {name!r}, which is not a name of a Linux user: at most 31 characters,"
                " only a to z, 0 to 9, - and _, and no digit or - at the start",
            )
        elif name in RESERVED_USERS.split() or name == server.values.get("ansible_user"):
            yield Problem(
                variable, f"is {name!r}, a user or group that the server has for something else"
            )
    if app is not None and server.values.get("app_deploy_user") == server.values.get("app_user"):
        yield Problem(
            "app_deploy_user", "is the same as app_user, so the app could change its own code"
        )


def check_domains(server: Server) -> Iterator[Problem]:
    """A wrong host name makes a site that nobody reaches."""
    domains = server.values.get("app_domains")
    if domains is not None and not domains:
        yield Problem("app_domains", "is empty, so no request could reach the app")
    for name in domains or []:
        if not is_host_name(name):
            yield Problem("app_domains", f"has {name!r}, {HOST_NAME_RULE}")


def check_names(server: Server) -> Iterator[Problem]:
    for variable, kind in (("app_workers", "workers"), ("app_schedules", "schedules")):
        yield from check_twins(server, variable, kind)
        yield from check_file_names(server, variable, kind)


def check_secret_files(server: Server) -> Iterator[Problem]:
    """What they hold is never shown; one that is empty is a mistake in the vault."""
    for name, content in (server.values.get("app_secret_files") or {}).items():
        if not FILE_NAME.fullmatch(str(name)):
            what = f"has files named {name!r}; a name has letters, digits, '-', '_' and '.'"
            yield Problem("app_secret_files", what)
        elif not isinstance(content, str) or not content.strip():
            what = f"has {name!r}, whose content is no text, or an empty one"
            yield Problem("app_secret_files", what)


def check_environments(server: Server) -> Iterator[Problem]:
    for name in ("app_environment", "app_migrate_environment", "app_install_environment"):
        yield from check_environment(name, server.values.get(name))
    # Flask's settings arrive as FLASK_NAME, so they may begin with a digit.
    yield from check_environment("app_config", server.values.get("app_config"), "FLASK_")


def check_tasks(server: Server) -> Iterator[Problem]:
    """With a handful of processes, no release passes the gate."""
    tasks = server.values.get("app_tasks_max")
    if isinstance(tasks, int) and (tasks < 0 or 0 < tasks < TASKS_MIN):
        yield Problem(
            "app_tasks_max", f"is {tasks}, and must be {TASKS_MIN} or more, or 0 for no limit"
        )


def check_sandbox(server: Server) -> Iterator[Problem]:
    """systemd would refuse each step of a release, in words of its own."""
    memory = str(server.values.get("app_build_memory", "75%"))
    if not MEMORY.fullmatch(memory):
        yield Problem(
            "app_build_memory", f"is {memory!r}, and must be a part, 75%, or bytes, 800M or 2G"
        )
    for name, value in (server.values.get("app_sandbox") or {}).items():
        if not SETTING.fullmatch(str(name)) or not SETTING_VALUE.fullmatch(str(value)):
            yield Problem(
                "app_sandbox",
                f"has {name}: {value!r}, and must have settings of systemd.exec(5) with a text"
                " each, such as PrivateDevices: 'no'",
            )


def check_accounts(server: Server) -> Iterator[Problem]:
    """A person's account, or another program's, would be taken for the app's."""
    app = server.values.get("app_name")
    users, groups = (server.found.get(x) or {} for x in ("users", "groups"))
    if is_known(server):
        return
    for variable in ("app_user", "app_deploy_user"):
        name = str(server.values.get(variable))
        # What is named after the app is told as the app's name.
        told = "app_name" if app and name in (app, f"{app}-deploy") else variable
        if name in RESERVED_USERS.split() or name == server.values.get("ansible_user"):
            continue
        user, group = users.get(name), groups.get(name)
        if user:
            person = f", {user['gecos']!r}" if user["gecos"] else ""
            yield Problem(
                told,
                f"would have the app run as {name!r}, a user that {server.name} has already, and"
                f" not from Carafe: uid {user['uid']}{person}, home {user['home']}, shell"
                f" {user['shell']}",
                f"choose another {told}; if nobody needs that user: sudo deluser {name}",
            )
        elif group and not user and (group["gid"] >= FIRST_PERSON or group["members"]):
            members = ", ".join(group["members"]) or "nobody"
            yield Problem(
                told,
                f"would give the app the group {name!r}, which {server.name} has already, and not"
                f" from Carafe: gid {group['gid']}, members {members}",
                f"choose another {told}; if nobody needs that group: sudo delgroup {name}",
            )


def is_known(server: Server) -> bool:
    """Tell whether the app has been put on this server, by whichever environment.

    A run notes it before it makes anything, so that one that was cut short has noted it, too.
    """
    return str(server.values.get("app_name")) in (server.facts.get("ansible_local") or {})


def check_places(server: Server) -> Iterator[Problem]:
    """What lies where the app is to be is somebody's."""
    app, root = str(server.values.get("app_name")), Path(str(server.values.get("app_root")))
    if is_known(server):
        return
    names = (server.found.get("folders") or {}).get(root.name) if root.parent == SRV else None
    if names:
        yield Problem(
            "app_root" if root.name != app else "app_name",
            f"would have the app in {root}, a folder that {server.name} has already, and not from"
            f" Carafe: it holds {', '.join(names)}",
            f"choose another name, or move that away: sudo mv {root} {root}.old",
        )
    for unit in server.found.get("units") or []:
        stem, _, kind = unit.rpartition(".")
        # A schedule's unit is <app>.<schedule>.timer, and what is not one any more is removed.
        if (stem == app and kind == "service") or stem.startswith(f"{app}."):
            yield Problem(
                "app_name",
                f"is {app!r}, a name that the unit {unit} has on {server.name}, which is not from"
                " Carafe",
                f"choose another app_name; if nobody needs it: sudo systemctl disable --now {unit}"
                f" && sudo rm /etc/systemd/system/{unit}",
            )


def check_uploads(server: Server) -> Iterator[Problem]:
    """A folder elsewhere would show what no visitor has sent."""
    static = {str(url).strip("/") for url in server.values.get("app_static") or {}}
    for url, folder in (server.values.get("app_uploads") or {}).items():
        if not re.fullmatch(r"/[^\s{};]*[^\s{};/]/", str(url)):
            yield Problem(
                "app_uploads", f"has the URL {url!r}, which is to be a path such as /media/"
            )
        elif str(url).strip("/") in static:
            yield Problem("app_uploads", f"has the URL {url!r}, which app_static has, too")
        path = str(folder or "")
        if not re.fullmatch(r"[^/\s{};][^\s{};]*", path) or {"..", "."} & {*path.split("/")}:
            yield Problem(
                "app_uploads",
                f"has the folder {folder!r} for {url}, which is to be one of the app's, such as"
                " media or instance/media",
            )


def check_hooks(server: Server) -> Iterator[Problem]:
    """A task file that cannot be read would end a run in its midst, with nothing taken back."""
    for point, entries in (server.values.get("app_hooks") or {}).items():
        for entry in entries:
            if isinstance(entry, str):
                continue
            if not isinstance(entry, Mapping) or [*entry] != ["tasks"] or not entry["tasks"]:
                yield Problem(
                    "app_hooks",
                    f"has in {point} {entry!r}, which is neither a command nor {{tasks: FILE}}",
                )
                continue
            path = Path(server.values.get("app_hooks_path") or "", str(entry["tasks"]))
            if why := unreadable(path, server.raw):
                yield Problem("app_hooks", f"has in {point} the task file {path}, {why}")


def unreadable(path: Path, variables: Mapping[str, Any]) -> str:
    """Return why Ansible will not take a task file, or ''."""
    if not path.is_file():
        return "which is not there"
    loader = DataLoader()
    # What it imports is looked for beside it.
    loader.set_basedir(str(path.parent))
    manager = SimpleNamespace(get_vars=lambda **_: variables)
    try:
        tasks = loader.load_from_file(str(path), trusted_as_template=True)
        load_list_of_blocks(tasks, play=Play(), loader=loader, variable_manager=manager)
    except AnsibleError as error:
        return f"which Ansible cannot read: {' '.join(str(error).split())[:MESSAGE_LENGTH]}"
    return ""


CHECKS = (
    check_python,
    check_requirements,
    check_migrations,
    check_secrets,
    check_secret_files,
    check_linux_names,
    check_domains,
    check_names,
    check_environments,
    check_accounts,
    check_places,
    check_tasks,
    check_sandbox,
    check_hooks,
    check_uploads,
)
