"""Find what is wrong with an inventory before anything is changed on a server.

The functions that check take plain values and yield problems, so that they can be tested alone. The
action at the end gathers those values from all servers of the play, once, on the control machine.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ansible import context
from ansible.errors import AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.helpers import load_list_of_blocks
from ansible.playbook.play import Play
from ansible.plugins.action import ActionBase
from ansible.utils.vars import load_extra_vars

ROLES = Path(__file__).parents[2] / "roles"
RELEASES = {"12": "bookworm", "13": "trixie"}
STACK = ("stack_db", "stack_app", "stack_web")  # playbooks/group_vars/all/stack.yml
FACTS = re.compile(r"'(memtotal_mb|processor_vcpus|distribution\w*)'")
VAULT = re.compile(r"\bvault_\w+")
UNDEFINED = re.compile(r"'(\w+)' is undefined")

SECRET_LENGTH = 32  # characters; itsdangerous signs with SHA-1, and 16 bytes in hex are 32
LINUX_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,30}")  # stricter than useradd's own rule
SHELL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
HOST_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
DATABASE_NAME_BYTES = 63  # PostgreSQL's NAMEDATALEN - 1
RESERVED_CONNECTIONS = 3  # superuser_reserved_connections
MESSAGE_LENGTH = 300  # characters of another program's message
SYSTEM_MEMORY_MB = 128  # what Debian, nginx and supervisord hold

# Users and groups of Debian's base-passwd and of packages that share a server with an app.
RESERVED_USERS = """
    root daemon bin sys sync games man lp mail news uucp proxy www-data backup list irc _apt nobody
    nogroup adm tty disk kmem dialout fax voice cdrom floppy tape sudo audio dip operator src shadow
    utmp video sasl plugdev staff users crontab messagebus sshd _ssh ssh ssl-cert systemd-journal
    systemd-network systemd-resolve systemd-timesync polkitd postgres nginx supervisor gunicorn
    redis mysql rabbitmq memcached docker ansible deploy admin debian ubuntu postfix dovecot certbot
    chrony ntp
"""
# Names in /etc that belong to Debian or to this stack; the app's folder is /etc/<app_name>.
RESERVED_FOLDERS = """
    alternatives apache2 apparmor apt ca-certificates carafe chrony cloud credstore cron dbus-1
    default dpkg environment fail2ban fonts fstab group grub gshadow gss gunicorn hostname hosts
    initramfs-tools inputrc iproute2 issue kernel ldap letsencrypt lighttpd localtime logrotate lvm
    machine-id magic modules motd mtab mysql netconfig network networks nftables nginx opt passwd
    perl php polkit-1 postgresql postgresql-common ppp profile protocols python3 redis rmt rpc runit
    security selinux services shadow shells skel ssh ssl subgid subuid sudoers supervisor sv sysctl
    systemd terminfo timezone udev ufw vim xdg
"""


@dataclass(frozen=True)
class Problem:
    """What is wrong with one variable, as the end of a sentence that begins with its name."""

    variable: str
    what: str
    command: str = ""  # what to do, where that is not to edit a file


@dataclass
class Server:
    """What is known of one server: its variables as the roles will see them, and its facts."""

    name: str
    groups: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    raw: Mapping[str, Any] = field(default_factory=dict)
    contact: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    # Variables that needed others which are not there: why not, and which.
    failures: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    missing: set[str] = field(default_factory=set)

    @property
    def address(self) -> str:
        return str(self.values.get("ansible_host") or self.name)


# What one server's own variables and facts say.


def check_option(
    server: Server, role: str, name: str, spec: Mapping[str, Any]
) -> Iterator[Problem]:
    """An option must be there where it is required, and be of the type that the role says."""
    if name not in server.values:
        if spec.get("required") and not any(name in names for names in server.failures.values()):
            server.missing.add(name)
            yield Problem(name, f"is not set, and the role {role} needs it")
        return
    value = server.values[name]
    result = ArgumentSpecValidator({name: dict(spec)}).validate({name: value})
    if unknown := result.unsupported_parameters:
        del server.values[name]
        names, known = (".".join(x[1:]) for x in sorted(unknown)), ", ".join(spec["options"])
        yield Problem(name, f"has {', '.join(names)}, and knows only {known}")
    elif bare := [
        key
        for key, option in spec.get("options", {}).items()
        if option["type"] == "list"
        and isinstance(value, Mapping)
        and not isinstance(value.get(key, []), list)
    ]:
        # The validator makes a list of a text, and the role would take its letters.
        del server.values[name]
        yield Problem(name, f"needs a list in {', '.join(bare)}")
    elif result.error_messages:
        del server.values[name]
        yield Problem(name, f"has the wrong form: {'; '.join(result.error_messages)}")
    else:
        # With the defaults of what the entries of a list leave out.
        server.values[name] = result.validated_parameters[name]


def check_failures(server: Server) -> Iterator[Problem]:
    """What could not be rendered is told once for each reason, unless it was told already."""
    for reason, names in server.failures.items():
        told = any(reason == name or f"'{name}'" in reason for name in server.missing)
        if told or (not server.facts and FACTS.search(reason)):
            continue
        if reason.isidentifier():
            yield Problem(reason, f"is not set, and {names[0]} needs it")
        else:
            yield Problem(names[0], f"cannot be made out: {reason}")


def check_contact(server: Server) -> Iterator[Problem]:
    """A server must answer, with Python and the right to become root."""
    if not (server.contact.get("unreachable") or server.contact.get("failed")):
        return
    user, port = server.values.get("ansible_user"), server.values.get("ansible_port")
    ssh = [
        "ssh",
        *(["-p", str(port)] if port else []),
        f"{user}@{server.address}" if user else server.address,
    ]
    said = f"{server.contact.get('module_stderr') or ''} {server.contact.get('msg') or ''}"
    said = " ".join(said.split())[:MESSAGE_LENGTH]
    command = "try it by hand: " + shlex.join(ssh)
    if server.contact.get("unreachable"):
        what = f"leads nowhere: {server.name} cannot be reached at {server.address}"
    elif "sudo" in said or "become" in said:
        what = f"cannot become root on {server.name}"
        command = (
            "add -K to be asked for the sudo password, set ansible_become_password, or see what"
            " happens by hand: " + shlex.join([*ssh, "sudo -v"])
        )
        yield Problem("ansible_user", f"{what} ({said})", command)
        return
    elif server.contact.get("rc") == 127 or "interpreter" in said:
        what = f"has no Python 3 on {server.name}"
        command = "install it: " + shlex.join([*ssh, "sudo apt-get install -y python3"])
    else:
        what = f"did not say what {server.name} is"
    yield Problem("ansible_host", f"{what} ({said})", command)


def check_distribution(server: Server) -> Iterator[Problem]:
    """The roles know the packages and paths of two Debian releases."""
    has = (server.facts.get("distribution"), server.facts.get("distribution_major_version"))
    if server.facts and (has[0] != "Debian" or has[1] not in RELEASES):
        wanted = " or ".join(f"{number} ({name})" for number, name in RELEASES.items())
        yield Problem(
            "ansible_host",
            f"leads to a server with {has[0]} {has[1]}, but the roles need Debian {wanted}",
            "name another server, or install it anew with Debian 13",
        )


def check_secrets(server: Server) -> Iterator[Problem]:
    """A short secret key can be guessed, and with it every session forged."""
    secret = server.values.get("app_secret_key")
    if secret is not None and len(str(secret)) < SECRET_LENGTH:
        yield Problem(
            "app_secret_key",
            f"has {len(str(secret))} characters, and needs at least {SECRET_LENGTH} of chance",
            'make one: python3 -c "import secrets; print(secrets.token_hex(32))"',
        )


def taints(app: str | None, name: str) -> bool:
    """Tell whether a name is wrong because the app's name in it is."""
    return app is not None and not LINUX_NAME.fullmatch(app) and app in name


def check_linux_names(server: Server) -> Iterator[Problem]:
    """Unix users, and with them folders and files, are named after the app."""
    app = server.values.get("app_name")
    for variable in ("app_name", "app_user", "app_deploy_user"):
        name = server.values.get(variable)
        # One mistake, one message: the users are named after the app unless they are set.
        if name is None or (variable != "app_name" and (name == app or taints(app, name))):
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
        elif variable == "app_name" and name in RESERVED_FOLDERS.split():
            yield Problem(variable, f"is {name!r}, and /etc/{name} belongs to the system")
    if app is not None and server.values.get("app_deploy_user") == server.values.get("app_user"):
        yield Problem(
            "app_deploy_user", "is the same as app_user, so the app could change its own code"
        )


def check_database_names(server: Server) -> Iterator[Problem]:
    """PostgreSQL cuts a longer name off without a word, so that two names become one."""
    named = [
        ("postgres_databases", "database", key, x)
        for x in entries(server, "postgres_databases")
        for key in ("name", "owner")
    ]
    named += [("postgres_roles", "role", "name", x) for x in entries(server, "postgres_roles")]
    for variable, kind, key, entry in named:
        name = entry.get(key) or ""
        kind = "role" if key == "owner" else kind
        if not 1 <= len(name.encode()) <= DATABASE_NAME_BYTES or "\0" in name:
            yield Problem(
                variable,
                f"has a {kind} named {name!r}, but a name has 1 to {DATABASE_NAME_BYTES} bytes"
                " and no NUL",
            )
        elif kind == "database" and name in ("postgres", "template0", "template1"):
            yield Problem(variable, f"has a database named {name!r}, which is PostgreSQL's own")
        elif (
            kind == "role"
            and variable == "postgres_roles"
            and (name in ("postgres", "public", "none") or name.startswith("pg_"))
        ):
            yield Problem(variable, f"has a role named {name!r}, which is PostgreSQL's own")


def is_host_name(name: str, wildcard: bool = False) -> bool:
    """Tell whether a text is a host name or an address, as the Host header has it."""
    if wildcard and name.startswith("*."):
        name = name[2:]
    if name.startswith("[") and name.endswith("]"):
        try:
            return bool(ipaddress.IPv6Address(name[1:-1]))
        except ValueError:
            return False
    return 0 < len(name) <= 253 and all(HOST_LABEL.fullmatch(label) for label in name.split("."))


def check_host_names(server: Server) -> Iterator[Problem]:
    """A wrong host name makes a site that nobody reaches."""
    rule = "which is not a host name: no scheme, port, path or space; other alphabets in punycode"
    domains = server.values.get("app_domains")
    if domains is not None and not domains:
        yield Problem("app_domains", "is empty, so no request could reach the app")
    for name in domains or []:
        if not is_host_name(name):
            yield Problem("app_domains", f"has {name!r}, {rule}")
    for site in entries(server, "nginx_sites"):
        if site.get("state") == "absent":
            continue
        if not site.get("server_names"):
            yield Problem(
                "nginx_sites",
                f"has the site {site['name']!r} with no server_names, so no request could reach it",
            )
        for name in site.get("server_names") or []:
            # nginx takes a regular expression after a tilde.
            if (
                not name.startswith("~")
                and name not in (domains or [])
                and not is_host_name(name, wildcard=True)
            ):
                yield Problem(
                    "nginx_sites",
                    f"has in the site {site['name']!r} the server name {name!r}, {rule}",
                )


def check_twins(server: Server) -> Iterator[Problem]:
    """Of two things with one name, the second would quietly take the place of the first."""
    for variable, kind in (
        ("nginx_sites", "sites"),
        ("nginx_streams", "streams"),
        ("supervisor_programs", "programs"),
        ("app_workers", "workers"),
        ("app_schedules", "schedules"),
        ("postgres_databases", "databases"),
        ("postgres_roles", "roles"),
    ):
        names = [entry.get("name") for entry in entries(server, variable)]
        for name in twins(names):
            yield Problem(variable, f"has two {kind} named {name!r}")
        if variable.startswith(("nginx", "supervisor", "app")):
            for name in sorted(set(map(str, names))):
                if not FILE_NAME.fullmatch(name):
                    yield Problem(
                        variable,
                        f"has {kind} named {name!r}; a name has letters, digits, '-', '_' and '.'",
                    )
    places: dict[tuple[Any, str], list[str]] = defaultdict(list)
    for site in entries(server, "nginx_sites"):
        if site.get("state") != "absent":
            for name in site.get("server_names") or []:
                places[site.get("listen"), name.lower()].append(site["name"])
    for (port, name), sites in places.items():
        if len(sites) > 1:
            where = " and ".join(repr(site) for site in dict.fromkeys(sites))
            yield Problem("nginx_sites", f"serves {name!r} on port {port} twice, in {where}")


def check_environments(server: Server) -> Iterator[Problem]:
    """A name that no shell takes breaks the environment file; NUL cannot be passed at all."""
    lists = [
        (x, server.values.get(x))
        for x in ("app_environment", "app_migrate_environment", "app_install_environment")
    ]
    lists += [("gunicorn_install_environment", server.values.get("gunicorn_install_environment"))]
    lists += [("app_config", server.values.get("app_config"))]
    lists += [
        ("supervisor_programs", x.get("environment"))
        for x in entries(server, "supervisor_programs")
    ]
    for variable, environment in lists:
        for name, value in (environment or {}).items():
            # Flask's settings arrive as FLASK_NAME, so they may begin with a digit.
            if not SHELL_NAME.fullmatch(f"FLASK_{name}" if variable == "app_config" else str(name)):
                yield Problem(
                    variable,
                    f"has the name {name!r}; the name of an environment variable has letters,"
                    " digits and _, no digit first",
                )
            elif "\0" in str(value):
                yield Problem(
                    variable,
                    f"has a NUL in the value of {name}, which no environment variable can hold",
                )


def check_repository(server: Server) -> Iterator[Problem]:
    """What a URL has before its @ is shown by git, and by the list of processes."""
    if re.match(r"https?://[^/]*@", str(server.values.get("app_repository") or "")):
        yield Problem(
            "app_repository",
            "has a name or password in its URL, where git shows it to everybody; take it out, and"
            " let git know it by `git credential approve`, or use ssh",
        )


def check_memory(server: Server) -> Iterator[Problem]:
    """A server that promises more memory than it has kills processes under load."""
    has = server.facts.get("memtotal_mb")
    if not has:
        return
    database = int(server.values.get("postgres_memory_mb") or 0)
    workers = product(server, "gunicorn_workers", "gunicorn_slots", "gunicorn_worker_memory_mb")
    promised = database + workers + SYSTEM_MEMORY_MB
    if promised <= has:
        return
    parts = [f"{SYSTEM_MEMORY_MB} for the system"]
    if workers:
        parts.insert(
            0,
            "{gunicorn_workers} workers x {gunicorn_slots} slots"
            " x {gunicorn_worker_memory_mb}".format(**server.values),
        )
    if database:
        parts.insert(0, f"{database} for PostgreSQL")
    variable = "gunicorn_workers" if workers > database else "postgres_memory_mb"
    others = [
        x
        for x in ("postgres_memory_mb", "gunicorn_workers", "gunicorn_worker_memory_mb")
        if x in server.values
    ]
    yield Problem(
        variable,
        f"promises more memory than {server.name} has:"
        f" {' + '.join(parts)} = {promised} MiB of {has}",
        f"lower {' or '.join(others)}",
    )


def check_owner(server: Server) -> Iterator[Problem]:
    """Two environments that deploy an app of one name would overwrite each other's releases."""
    app, ours = server.values.get("app_name"), server.values.get("app_environment_name")
    kept = (server.facts.get("ansible_local") or {}).get(str(app))
    theirs = kept.get("environment") if isinstance(kept, Mapping) else None
    if theirs and ours and theirs != ours:
        yield Problem(
            "app_name",
            f"is {app!r}, a name that the environment {theirs!r} has taken on {server.name};"
            f" this one is {ours!r}",
            "choose another app_name, or take the app over: remove"
            f" /etc/carafe/{app}.fact on {server.name}",
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


# What several variables or servers say together.


def check_unknown(names: Iterable[str], options: Mapping[str, Iterable[str]]) -> Iterator[Problem]:
    """A variable with a role's prefix that the role does not know has no effect, silently."""
    known = {option for role in options.values() for option in role}
    for name in sorted(names):
        role = next((role for role in options if name.startswith(f"{role}_")), None)
        if role and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            guess = (
                f"; did you mean {close[0]}?"
                if close
                else f"; roles/{role}/README.md lists what it knows"
            )
            yield Problem(name, f"is a variable that the role {role} does not know{guess}")


def check_connections(servers: Iterable[Server]) -> Iterator[Problem]:
    """When all threads of all workers ask at once, each needs a connection."""
    servers = list(servers)
    for database in servers:
        allowed = database.values.get("postgres_max_connections")
        if allowed is None:
            continue
        stack = database.values.get("stack_app")
        clients = [
            x
            for x in servers
            if "gunicorn_workers" in x.values and (stack is None or x.name in stack)
        ]
        needed = sum(
            product(x, "gunicorn_workers", "gunicorn_threads", "gunicorn_slots") for x in clients
        )
        if needed > allowed - RESERVED_CONNECTIONS:
            parts = [
                "{gunicorn_workers} workers x {gunicorn_threads} threads x {gunicorn_slots} slots"
                " on {name}".format(name=x.name, **x.values)
                for x in clients
            ]
            yield Problem(
                "postgres_max_connections",
                f"is {allowed}, of which {RESERVED_CONNECTIONS} are kept for the superuser,"
                f" but the app may open {needed}: {' + '.join(parts)}",
                f"set it to {needed + RESERVED_CONNECTIONS} or more, or lower gunicorn_workers or"
                " gunicorn_threads",
            )


def check_address(server: Server, host: str, address: Any) -> Iterator[Problem]:
    """With several servers, each must be found by the others."""
    try:
        ipaddress.IPv4Address(str(address))
    except ValueError:
        server.missing.add("private_address")
        state = "is not set for" if address is None else f"is {address!r}, no IPv4 address, for"
        yield Problem(
            "private_address", f"{state} {host}; with several servers the others reach it by that"
        )


def check_issue(server: Server, web: list[str]) -> Iterator[Problem]:
    """An ACME directory asks any of the servers that a name points to, and one of them ordered."""
    sources = {
        item.get("source") or server.values.get("certificates_source")
        for item in entries(server, "certificates_wanted")
    }
    if len(web) > 1 and "acme" in sources:
        yield Problem(
            "certificates_source",
            f"is acme, and {' and '.join(web)} serve the same names: the directory would ask any of"
            " them for what only one knows",
            "take files, with a certificate of your own, or have one server in web",
        )


def check_password(server: Server, name: str) -> Iterator[Problem]:
    """With several servers, the database is reached over the network, and asks for a password."""
    failed = any(name in names for names in server.failures.values())
    if not failed and not server.values.get(name):
        server.missing.add(name)
        yield Problem(name, "is empty, and with several servers the database asks for it")


CHECKS = (
    check_failures,
    check_contact,
    check_distribution,
    check_secrets,
    check_linux_names,
    check_database_names,
    check_host_names,
    check_twins,
    check_environments,
    check_repository,
    check_memory,
    check_owner,
    check_hooks,
)


def entries(server: Server, variable: str) -> list[Mapping[str, Any]]:
    return [x for x in server.values.get(variable) or [] if isinstance(x, Mapping)]


def product(server: Server, *variables: str) -> int:
    result = 1
    for variable in variables:
        result *= int(server.values.get(variable) or 0)
    return result


def twins(names: Iterable[Any]) -> list[Any]:
    return [name for name, count in Counter(names).items() if count > 1]


# Where a variable comes from, and what to say.


class Sources:
    """The files that a variable may be set in, named as a user in the repository would."""

    def __init__(
        self, root: Path, inventories: Iterable[str], extra: Iterable[str], play: Iterable[str]
    ):
        self.root = root
        self.inventories = [Path(x) for x in inventories if Path(x).exists()]
        self.extra, self.play = set(extra), set(play)

    def short(self, path: Path) -> str:
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    def folders(self) -> list[Path]:
        """Return the folders that may hold group_vars, those of the environments first."""
        environments = [x if x.is_dir() else x.parent for x in self.inventories]
        return list(dict.fromkeys([*environments, self.root]))

    def inventory_files(self) -> list[Path]:
        """Return the files that name the hosts; those of a folder that hold no variables."""
        found = []
        for path in self.inventories:
            inside = sorted(x for x in path.iterdir() if x.is_file()) if path.is_dir() else [path]
            found += [x for x in inside if not x.name.startswith(".")]
        return found

    def files(self, host: str, groups: Iterable[str]) -> list[Path]:
        """Return the files with variables of a host, those that win first."""
        own = [f"host_vars/{host}"]
        of_groups = [f"group_vars/{group}" for group in groups if group != "all"]
        found: list[Path] = []
        for names, also in (
            (own, []),
            (of_groups, self.inventory_files()),
            (["group_vars/all"], []),
        ):
            for name in names:
                for folder in self.folders():
                    place = folder / name
                    found += [
                        x for x in (place, place.with_name(place.name + ".yml")) if x.is_file()
                    ]
                    found += (
                        sorted(x for x in place.glob("*") if x.is_file()) if place.is_dir() else []
                    )
            found += also
        return list(dict.fromkeys(x.resolve() for x in found))

    def find(self, variable: str, host: str, groups: Iterable[str]) -> tuple[str, str]:
        """Return where a variable is set, and the line; both are '' when it cannot be found."""
        if variable in self.extra:
            return "what -e on the command line says", ""
        if variable in self.play:
            return "the vars of the play", ""
        key = re.compile(rf"(?:^\s*-?\s*|[{{,]\s*|\s)[\"']?{re.escape(variable)}[\"']?\s*[:=]")
        for path in self.files(host, groups):
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
                if not line.lstrip().startswith("#") and key.search(line):
                    return f"{self.short(path)}, line {number}", line
        return "", ""

    def hosts_file(self) -> str:
        return self.short(self.inventory_files()[0]) if self.inventory_files() else "the inventory"

    def suggest(self, variable: str, groups: Iterable[str]) -> str:
        """Return the file where a variable that is not set should be."""
        if variable == "private_address" or variable.startswith("ansible_"):
            return self.hosts_file()
        if variable.startswith("vault_"):
            # playbooks/vault.yml writes it there.
            return f"group_vars/{self.folders()[0].name}/vault.yml"
        for folder in self.folders():
            if folder.name in groups:
                return f"group_vars/{folder.name}/main.yml"
        return f"group_vars/all/{variable.split('_')[0]}.yml"

    def advice(self, problem: Problem, host: str, groups: list[str]) -> str:
        """Return what to do about a problem: a file to edit, a command to run."""
        place, line = self.find(problem.variable, host, groups)
        if problem.what.startswith("is not set"):
            place = ""
        secret = VAULT.search(line if place else problem.variable)
        if secret:
            vault = self.suggest(secret[0], groups)
            if not (self.root / vault).exists():
                return f"Write {vault}: make vault ENV={Path(vault).parent.name}"
            return f"Set {secret[0]} in the vault: ansible-vault edit {vault}"
        place = place or self.suggest(problem.variable, groups)
        return f"Edit {place}{f'; {problem.command}' if problem.command else ''}."

    def again(self) -> str:
        """Return the command that was typed, as far as it matters."""
        words = [
            self.short(Path(x).resolve()) if Path(x).exists() else x
            for x in context.CLIARGS.get("args") or ["site.yml"]
        ]
        inventories = [word for x in self.inventories for word in ("-i", self.short(x))]
        return shlex.join(["ansible-playbook", *words, *inventories])


def report(found: Mapping[Problem, list[Server]], sources: Sources) -> str:
    """Return the text for all problems: what is wrong, on which servers, and what to do next."""
    count = f"{len(found)} problem{'s' if len(found) > 1 else ''}"
    lines = [f"{count} found before anything was changed:", ""]
    for number, (problem, servers) in enumerate(found.items(), 1):
        told = any(re.search(rf"\b{re.escape(x.name)}\b", problem.what) for x in servers)
        where = "" if told else f" ({', '.join(x.name for x in servers)})"
        lines.append(f"{number}. {problem.variable} {problem.what}.{where}".replace("?.", "?"))
        lines.append(f"   {sources.advice(problem, servers[0].name, servers[0].groups)}")
    return "\n".join([*lines, "", f"Then run again: {sources.again()}"])


# The values, as the roles will see them.


@dataclass
class Role:
    """What a role takes: the options of all its entry points, their defaults, and its own vars."""

    options: dict[str, Any]
    defaults: dict[str, Any]
    vars: dict[str, Any]


def read_role(loader: Any, name: str) -> Role:
    """Read a role's files as Ansible would."""

    def load(file: str) -> dict[str, Any]:
        path = ROLES / name / file
        return loader.load_from_file(str(path), trusted_as_template=True) if path.exists() else {}

    entry_points = load("meta/argument_specs.yml").get("argument_specs", {}).values()
    options = {k: v for entry in entry_points for k, v in entry.get("options", {}).items()}
    return Role(options, load("defaults/main.yml"), load("vars/main.yml"))


def cause(error: AnsibleError) -> str:
    """Return the innermost reason of a template that could not be rendered, in one line."""
    undefined = UNDEFINED.findall(str(error))
    return undefined[-1] if undefined else " ".join(str(error).split())


class ActionModule(ActionBase):
    """Check all servers of the play, and fail with all problems at once.

    ``several`` lists the variables that a stack of more than one server needs. ``facts`` is the
    variable in which the result of gathering facts was registered.
    """

    _requires_connection = False
    _VALID_ARGS = frozenset(("several", "facts"))

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        args, variables = self._task.args, task_vars or {}
        roles = {path.name: read_role(self._loader, path.name) for path in ROLES.glob("*")}
        play_vars = self._task.get_play().get_vars()
        extra_vars = load_extra_vars(self._loader)
        hostvars = variables["hostvars"]
        found: dict[Problem, list[Server]] = defaultdict(list)
        servers = []
        for host in variables["ansible_play_hosts_all"]:
            raw = {**hostvars.raw_get(host), **play_vars, **extra_vars, "hostvars": hostvars}
            contact, facts = raw.get(args["facts"]) or {}, raw.get("ansible_facts") or {}
            server = Server(host, raw["group_names"], raw=raw, contact=contact, facts=facts)
            servers.append(server)
            for problem in self.check(server, roles, args.get("several") or []):
                found[problem].append(server)
        for problem in check_connections(servers):
            found[problem] = [x for x in servers if problem.variable in x.values]
        if not found:
            return {"changed": False}
        inventories = variables.get("ansible_inventory_sources") or []
        root = Path(variables["playbook_dir"]).parent
        return {
            "failed": True,
            "msg": report(found, Sources(root, inventories, extra_vars, play_vars)),
        }

    def check(
        self,
        server: Server,
        roles: Mapping[str, Role],
        several: list[str],
    ) -> Iterator[Problem]:
        """Render all that the roles of a server take, and yield what is wrong with it."""
        variables = {
            **{k: v for role in roles.values() for k, v in role.defaults.items()},
            **server.raw,
        }
        internal = {k: v for role in roles.values() for k, v in role.vars.items()}
        templar = self._templar.copy_with_new_env(available_variables={**variables, **internal})

        def render(name: str) -> None:
            try:
                if name in variables:
                    server.values[name] = templar.template(variables[name])
            except AnsibleError as error:
                server.failures[cause(error)].append(name)

        for name in ("ansible_host", "ansible_port", "ansible_user", "stack_host_roles", *STACK):
            render(name)
        stack = dict.fromkeys(x for key in STACK for x in server.values.get(key) or [])
        if len(stack) > 1:
            for name in several:
                if name == "private_address":
                    for host in stack:
                        address = server.raw["hostvars"].raw_get(host).get(name)
                        yield from check_address(server, host, templar.template(address))
                else:
                    render(name)
                    yield from check_password(server, name)
        for role in server.values.get("stack_host_roles") or []:
            for name, spec in roles[role].options.items():
                render(name)
                yield from check_option(server, role, name, spec)
        for check in CHECKS:
            yield from check(server)
        yield from check_issue(server, server.values.get("stack_web") or [])
        yield from check_unknown(server.raw, {name: role.options for name, role in roles.items()})
