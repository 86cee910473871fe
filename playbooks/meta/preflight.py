"""What is refused because of what several roles, apps or servers say together."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.carafe.stack.plugins.module_utils import exporters
from ansible_collections.carafe.stack.plugins.plugin_utils.options import role_names
from ansible_collections.carafe.stack.plugins.plugin_utils.problems import (
    MESSAGE_LENGTH,
    PORT,
    Problem,
    Server,
    check_networks,
    entries,
    product,
)
from ansible_collections.carafe.stack.plugins.plugin_utils.urls import credential_in

RANGES = {"stack_https_port": PORT}
# What only a stack of several servers needs, and one whose databases follow each other.
OF_SEVERAL = ("database_password", "database_migrate_password")
OF_STANDBYS = ("database_replication_password",)
KEPT_SECRET = re.compile(
    r"\w+_environment|\w+_secret_key(_fallbacks)?|\w+_password|app_(config|secrets|failure)"
)
ADDRESS = re.compile(r"([0-9]+[.]){3}[0-9]+$|\[")
RELEASES = {"12": "bookworm", "13": "trixie"}
# What hosts.yml says of a server that is away.
ABSENT = "stack_state: absent"
FACTS = re.compile(r"'(memtotal_mb|processor_vcpus|distribution\w*)'")
RESERVED_CONNECTIONS = 3  # superuser_reserved_connections
CLOCK = 300  # seconds that two clocks may be apart
# Those of servers that agree on who leads. They are not asked at the same moment.
CLOCKS = 10
SYSTEM_MEMORY_MB = 128  # what Debian, nginx and supervisord hold


# What one server is, and whether it answers.


def check_failures(server: Server) -> Iterator[Problem]:
    """What could not be rendered is told once for each reason, unless it was told already."""
    for reason, names in server.failures.items():
        known = any(reason == name or f"'{name}'" in reason for name in server.missing)
        if known or (not server.facts and FACTS.search(reason)):
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
        if has_stand_in(server):
            command += f"; where it stays down, say so beside its ansible_host: {ABSENT}"
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


def has_stand_in(server: Server) -> bool:
    """Tell whether the stack goes on without this server."""
    is_database = server.name in (server.values.get("stack_db") or [])
    if is_database and not server.values.get("stack_etcd"):
        return False
    of_kinds = [server.values.get(x) or [] for x in ("stack_app", "stack_web")]
    return all(len(x) > 1 for x in of_kinds if server.name in x)


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


# What several roles say of one server.


def check_stack_name(server: Server) -> Iterator[Problem]:
    name, groups = server.values.get("stack_name"), server.raw.get("groups")
    if groups and name not in groups:
        known = ", ".join(sorted(x for x in groups if x != "ungrouped"))
        yield Problem("stack_name", f"is {name!r}, which is none of the groups {known}")


def check_environment(server: Server) -> Iterator[Problem]:
    """Two environments with an app of one name would overwrite each other's releases and data."""
    app, ours = server.values.get("app_name"), server.values.get("app_environment_name")
    kept = (server.facts.get("ansible_local") or {}).get(str(app))
    noted = [(kept.get("environment"), "fact")] if isinstance(kept, Mapping) else []
    # Where the app itself is not.
    noted.append(((server.found.get("environments") or {}).get(str(app)), "environment"))
    for theirs, kind in noted:
        if theirs and ours and theirs != ours:
            yield Problem(
                "app_name",
                f"is {app!r}, a name that the environment {theirs!r} has taken on {server.name};"
                f" this one is {ours!r}",
                "choose another app_name, or take the app over: sudo rm"
                f" /etc/carafe/{app}.{kind} on {server.name}",
            )
            return


def check_server_roles(server: Server) -> Iterator[Problem]:
    roles = role_names()
    for name in server.values.get("stack_server_roles") or []:
        if name not in roles:
            yield Problem(
                "stack_server_roles", f"has {name!r}, and the roles are {', '.join(roles)}"
            )


def check_database(server: Server) -> Iterator[Problem]:
    """A variable says that the app has a database, and a group where it is."""
    kind = server.values.get("stack_database")
    if kind and not re.fullmatch(r"[a-z][a-z0-9]*(\+[a-z][a-z0-9_]*)?", kind):
        yield Problem(
            "stack_database",
            f"is {kind!r}, but is to be how the URL of the app's database begins: postgresql, or"
            " postgresql+psycopg",
        )
    elif kind and server.values.get("stack_db") == []:
        yield Problem(
            "stack_database",
            f"is {kind!r}, and no server is in the group db, where the database would be",
            "put a server into the group db of the inventory, or leave stack_database out",
        )


def check_cache(server: Server) -> Iterator[Problem]:
    """It is reached by a unix socket: what one server keeps, another would not see."""
    servers = server.values.get("stack_app") or []
    if server.values.get("stack_cache") and len(servers) > 1:
        yield Problem(
            "stack_cache",
            f"is true, and each of {', '.join(servers)} would have a cache of its own, in which it"
            " does not find what another one has put there",
            "take it out, and name one Redis for all of them by REDIS_URL in app_environment",
        )


def check_metrics(server: Server) -> Iterator[Problem]:
    """What Prometheus gets is not encrypted, and whoever reaches it may have it."""
    address = str(server.values.get("metrics_address") or "")
    roles = server.values.get("stack_host_roles") or []
    with contextlib.suppress(ValueError):
        if address and exporters.is_public(address) and "firewall" not in roles:
            yield Problem(
                "metrics_address",
                f"is {address}, which the Internet reaches, and no firewall of Carafe's is there to"
                " keep it off",
                "take a private address, or one of a VPN; or have the role firewall in"
                " stack_server_roles",
            )


def check_web_sources(server: Server) -> Iterator[Problem]:
    """Those that are wired in are told as what they are."""
    known = ("nginx_real_ip_from", "nginx_proxy_protocol_from")
    proxies = [x for variable in known for x in server.values.get(variable) or []]
    sources = server.values.get("stack_web_sources") or []
    yield from check_networks("stack_web_sources", [x for x in sources if x not in proxies])


def check_certificates(server: Server) -> Iterator[Problem]:
    """Whoever leaves a certificate out by mistake serves passwords over plain http."""
    if not server.values.get("stack_https"):
        return
    default = [x.get("name") for x in server.given.get("nginx_default_sites") or []]
    for site in server.given.get("nginx_sites") or []:
        if (
            site.get("name") not in default
            and site.get("state") != "absent"
            and "certificate" not in site
        ):
            app = server.values.get("app_name")
            yield Problem(
                "nginx_sites",
                f"has the site {site.get('name')!r} with no certificate, so it would be served"
                " over plain http while stack_https is true",
                f"add certificate: /var/lib/certificates/{app}.pem to the site, or"
                " certificate: '' if plain http is meant",
            )


def check_certificate_names(server: Server) -> Iterator[Problem]:
    """Who tries a server out has its address, and no directory signs a certificate for that."""
    if not server.values.get("stack_https"):
        return
    default = [x.get("name") for x in server.given.get("certificates_default_wanted") or []]
    for item in entries(server, "certificates_wanted"):
        if item.get("name") in default and not item.get("names"):
            yield Problem(
                "app_domains",
                "has no host name, and no certificate is issued for a bare address",
                "add the name that visitors type, or write stack_https: false to try it without",
            )


def note_addresses(server: Server) -> Iterator[str]:
    """Say what a bare address will answer, for which nobody signs a certificate."""
    names = [str(x) for x in server.values.get("app_domains") or []]
    bare = [x for x in names if ADDRESS.match(x)]
    of_web = server.values.get("nginx_default_sites")
    acme = server.values.get("certificates_source") == "acme" and server.values.get("stack_https")
    if acme and of_web and 0 < len(bare) < len(names):
        name = next(x for x in names if x not in bare)
        for address in bare:
            yield (
                f"app_domains has {address}. No directory signs a certificate for an address: https://"
                f"{address} will be refused, and http://{address} will send visitors to https://{name}"
            )


def note_clock(server: Server) -> Iterator[str]:
    """Say what makes apt, and whoever looks at a certificate, refuse what is right."""
    clock = server.facts.get("clock")
    late = time.time() - clock if isinstance(clock, int | float) else 0
    if abs(late) > CLOCK:
        yield (
            f"The clock of {server.name} is {abs(late) / 60:.0f} minutes"
            f" {'behind' if late > 0 else 'ahead of'} this machine's. By a wrong one, packages and"
            " certificates are refused that are right: sudo timedatectl set-ntp true"
        )


def check_uploads(server: Server) -> Iterator[Problem]:
    """What an app server keeps, the web server does not have, nor does another app server."""
    if server.values.get("app_uploads") and server.values.get("stack_is_one_server") is False:
        yield Problem(
            "app_uploads",
            "is for one server, whose nginx sees what the app writes, and this stack has several",
            "let the app answer for these URLs itself, from a service for files or from a shared"
            " file system in app_shared; where the web servers have that too, name its folder in"
            " uploads of the site, in nginx_sites",
        )


def check_urls(server: Server) -> Iterator[Problem]:
    """What is in a URL is shown by git, pip, logs and the list of processes, and kept in files."""
    for name, value in server.values.items():
        # Those are for secrets: only root and the app's own users read what they have on a server.
        if KEPT_SECRET.fullmatch(name) or not (found := credential_in(value)):
            continue
        role, _, _ = name.partition("_")
        if name == "app_repository":
            right = "let git know it by `git credential approve`, or use ssh"
        elif name.endswith(("_requirements", "_package")):
            right = f"name an index by PIP_EXTRA_INDEX_URL in {role}_install_environment"
        else:
            right = "let the program read it from its environment: app_environment"
        yield Problem(name, f"has {found}, where it is shown and kept; take it out, and {right}")


def check_memory(server: Server) -> Iterator[Problem]:
    """A server that promises more memory than it has kills processes under load."""
    has = server.facts.get("memtotal_mb")
    if not has:
        return
    database = int(server.values.get("postgres_memory_mb") or 0)
    has_cache = "valkey" in (server.values.get("stack_host_roles") or [])
    cache = int(server.values.get("valkey_memory_mb") or 0) if has_cache else 0
    workers = product(server, "gunicorn_workers", "gunicorn_slots", "gunicorn_worker_memory_mb")
    others = {k: number(v, "memory_mb") for k, v in server.other_apps().items()}
    promised = database + cache + workers + sum(others.values()) + SYSTEM_MEMORY_MB
    if promised <= has:
        return
    parts = [f"{database} for PostgreSQL"] if database else []
    if workers:
        parts.append(
            "{gunicorn_workers} workers x {gunicorn_slots} slots"
            " x {gunicorn_worker_memory_mb}".format(**server.values)
        )
    parts += [f"{cache} for Valkey"] if cache else []
    parts += [f"{mb} for the app {name}" for name, mb in others.items() if mb]
    parts.append(f"{SYSTEM_MEMORY_MB} for the system")
    lower = ("postgres_memory_mb", "gunicorn_workers", "gunicorn_worker_memory_mb")
    yield Problem(
        "gunicorn_workers" if workers > database else "postgres_memory_mb",
        f"promises more memory than {server.name} has:"
        f" {' + '.join(parts)} = {promised} MiB of {has}",
        f"lower {' or '.join(x for x in lower if x in server.values)}",
    )


def check_memory_max(server: Server) -> Iterator[Problem]:
    """Workers that take what they are promised must not be ended for it."""
    workers = product(server, "gunicorn_workers", "gunicorn_slots", "gunicorn_worker_memory_mb")
    allowed = int(server.values.get("app_memory_max_mb") or 0)
    if 0 < allowed < workers:
        yield Problem(
            "app_memory_max_mb",
            f"is {allowed}, less than the {workers} MiB that the workers are promised",
            "raise it, lower gunicorn_workers or gunicorn_worker_memory_mb, or let it be 0",
        )


def check_issue(server: Server) -> Iterator[Problem]:
    """Web servers ask each other for what a directory asks of any of them, in plain http."""
    web = server.values.get("stack_web") or []
    sources = {
        item.get("source") or server.values.get("certificates_source")
        for name in ("certificates_default_wanted", "certificates_wanted")
        for item in entries(server, name)
    }
    if len(web) > 1 and "acme" in sources and server.values.get("nginx_proxy_protocol_from"):
        yield Problem(
            "certificates_source",
            f"is acme, and {' and '.join(web)} hear only a load balancer that sends PROXY headers,"
            " so that none of them could ask another one for what the directory asks",
            "take files, with a certificate of your own; or let the balancer speak TLS, and say"
            " stack_https: false",
        )


# What somebody has configured by hand.


def check_adoption(server: Server) -> Iterator[Problem]:
    """Who has a server already has something on it, and says that Carafe may take it over."""
    roles = server.values.get("stack_host_roles") or []
    adopts = server.values.get("stack_adopt") is True
    for role, by_hand in (("nginx", nginx), ("supervisor", supervisor), ("postgres", postgresql)):
        if role not in roles:
            continue
        # The second is what no word of the user's makes good.
        told, blocked = by_hand(server)
        for what, command in blocked:
            yield Problem(
                "stack_adopt", f"takes over what is on {server.name}, but {what}", command
            )
        if told and not adopts:
            yield Problem(
                "stack_adopt",
                f"is not set, and {server.name} has {told}",
                "write stack_adopt: true to go on, after you have read"
                " docs/how-to/the-server.md. A copy of each file that is replaced goes to"
                " /var/backups/carafe",
            )


Told = tuple[str, list[tuple[str, str]]]


def listed(names: Sequence[str], most: int = 8) -> str:
    shown = [*names[:most], *(["…"] if len(names) > most else [])]
    return ", ".join(shown)


def nginx(server: Server) -> Told:
    found = server.found.get("nginx") or {}
    if not found.get("by_hand"):
        return "", []
    told = ["an nginx that somebody has configured"]
    blocked = []
    if not found["is_debians"]:
        blocked.append(
            (
                "its nginx is not Debian's package, which the role nginx installs",
                "remove that package and its source from apt, and keep /etc/nginx",
            )
        )
    if found["twice"]:
        blocked.append(
            (
                f"/etc/nginx has {listed(found['twice'])}, which the role says in nginx.conf, and"
                " nginx takes each once",
                "take it out there; where a variable of the role says it, set that: see"
                " docs/reference/variables.md",
            )
        )
    if found["sites"]:
        told.append(f"its sites go on ({listed(found['sites'])})")
    if found["extra"]:
        told.append(f"so does conf.d ({listed(found['extra'])})")
    if found["main"]:
        told.append("nginx.conf is replaced")
    if found["kept"]:
        told.append(f"what it says of {listed(found['kept'])} goes on in conf.d/adopted.conf")
    if found["gone"]:
        told.append(f"the role's own values take the place of {listed(found['gone'])}")
    return "; ".join(told), blocked


def supervisor(server: Server) -> Told:
    found = server.found.get("supervisor") or {}
    if not found.get("by_hand"):
        return "", []
    told, blocked = ["a supervisord that somebody has configured"], []
    if found["includes"]:
        blocked.append(
            (
                f"its supervisord.conf reads {listed(found['includes'])}, too, and the role's does"
                " not",
                "move those files to /etc/supervisor/conf.d, with names that end in .conf",
            )
        )
    if found["programs"]:
        told.append(
            f"its programs go on ({listed(found['programs'])}), and restart once, in the role's"
            " sandbox"
        )
    if found["main"]:
        told.append("supervisord.conf is replaced, and listens on its unix socket alone")
    if found["kept"]:
        told.append(f"its {listed(found['kept'])} go on in conf.d/adopted.conf")
    if found["gone"]:
        told.append(f"its {listed(found['gone'])} are gone")
    return "; ".join(told), blocked


def postgresql(server: Server) -> Told:
    found = server.found.get("postgresql") or {}
    stated, clusters = server.values.get("postgres_cluster"), found.get("clusters") or []
    # Beside one of Carafe's, which is the app's, others stay as they are.
    is_told = stated or any(x["claims"] for x in clusters)
    for cluster in clusters:
        name = f"{cluster['version']}/{cluster['name']}"
        if cluster["claims"] or (is_told and stated != name):
            continue
        confs = [x for x in cluster["confs"] if x != "carafe.conf"]
        theirs = sorted(cluster.get("databases") or {})
        by_hand = cluster["hba"] or cluster["has_databases"] or confs or cluster.get("altered")
        if not by_hand:
            continue
        told = [f"a PostgreSQL that somebody uses, {name} on port {cluster['port']}"]
        if theirs:
            told.append(f"its databases stay ({listed(theirs)})")
        if cluster["hba"] or cluster["has_databases"]:
            told.append(
                "the lines of its pg_hba.conf go on behind the role's, except that the superuser"
                " comes in by the unix socket alone, and nobody else to the app's database"
            )
        told.append("its memory and connections are as the role says, for which it restarts once")
        if altered := cluster.get("altered"):
            told.append(f"what ALTER SYSTEM has set stays and wins ({listed(altered)})")
        if confs:
            told.append(f"so do the files of conf.d that come after carafe.conf ({listed(confs)})")
        return "; ".join(told), []
    return "", []


# What several servers say together.


def check_addresses(server: Server) -> Iterator[Problem]:
    """With several servers, each must be found by the others."""
    for host, address in server.peers.items():
        try:
            ipaddress.IPv4Address(str(address))
        except ValueError:
            server.missing.add("private_address")
            state = "is not set for" if address is None else f"is {address!r}, no IPv4 address, for"
            yield Problem(
                "private_address",
                f"{state} {host}; with several servers the others reach it by that",
            )


def absent_of(server: Server) -> list[str]:
    """Return whom the stack of this server does without."""
    stack = server.values.get("stack_servers") or []
    return [x for x in server.values.get("stack_absent") or [] if x in stack]


def check_absent(server: Server) -> Iterator[Problem]:
    """What a server alone has, no other one has instead of it."""
    absent = absent_of(server)
    databases, voters = (server.values.get(x) or [] for x in ("stack_db", "stack_etcd"))
    data = [x for x in databases if x in absent]
    gone = [x for x in voters if x in absent]
    if 2 * len(gone) >= len(voters) > 0:
        yield Problem(
            "stack_state",
            f"is absent for {' and '.join(gone)}, and of {len(voters)} voters no majority is left,"
            " without which no server may lead",
            "take that out for one that is up",
        )
    if data and (not voters or len(data) == len(databases)):
        yield Problem(
            "stack_state",
            f"is absent for {' and '.join(data)}, where the database is, and no other server has"
            " it",
            "take that out; a database that is lost comes back on another server, see"
            " docs/how-to/backups.md",
        )
    stack = server.values.get("stack_servers") or []
    for group in ("app", "web"):
        members = (server.raw.get("groups") or {}).get(group) or []
        gone = [x for x in members if x in stack]
        if gone and not server.values.get(f"stack_{group}", True):
            yield Problem(
                "stack_state",
                f"is absent for {' and '.join(gone)}, and no other {group} server is there",
                f"take that out for one that is up, or put another one into the group {group}",
            )


def is_release(server: Server) -> bool:
    """Tell whether this run brings another release to the app servers."""
    asked = {*(server.raw.get("ansible_run_tags") or ["all"])}
    skipped = {*(server.raw.get("ansible_skip_tags") or [])}
    tagged = asked & {"all", "tagged", "app", "deploy"} and not skipped & {"app", "deploy"}
    return bool(server.raw.get("preflight_for") and tagged)


def check_step(servers: Sequence[Server]) -> Iterator[Problem]:
    """All app servers that get requests run one release: none is left behind by mistake."""
    names = {x.name for x in servers}
    for server in servers:
        if not is_release(server):
            continue
        app, web = (server.values.get(x) or [] for x in ("stack_app", "stack_web"))
        absent = absent_of(server)
        if (left := [x for x in app if x not in names]) and server.name in app:
            yield Problem(
                "stack_state",
                f"is not absent for {' and '.join(left)}, which --limit leaves out: with the"
                " release of before it would go on to get requests",
                "run this again without --limit; where it is down, say so beside its ansible_host:"
                f" {ABSENT}",
            )
        elif absent and (unseen := [x for x in web if x not in names]):
            yield Problem(
                "stack_state",
                f"is absent for {' and '.join(absent)}, and --limit leaves out"
                f" {' and '.join(unseen)}, whose nginx may send it requests all the same",
                "run this again without --limit",
            )
        elif server.raw["preflight_for"] != "site" and (
            leaving := server.values.get("stack_leaving")
        ):
            yield Problem(
                "stack_state",
                f"is absent, or the inventory has it no more, for the server at {leaving[0]}, to"
                " which nginx sends requests all the same: it would answer with the release of"
                " before",
                "let nginx know by site.yml, and then run this again",
            )


def note_absent(server: Server) -> Iterator[str]:
    """Say whom the run leaves out."""
    leaving = server.raw.get("remove_server")
    for name in [x for x in absent_of(server) if x != leaving]:
        yield (
            f"{name} is left out, since it is absent. Once it is back, take that out of the"
            " inventory, and run site.yml before anything else is released"
        )


def note_alone(server: Server) -> Iterator[str]:
    """Say that nobody has an address to share with."""
    is_alone = server.values.get("stack_web") == [server.name] and not absent_of(server)
    if is_alone and server.values.get("stack_web_addresses"):
        yield (
            f"stack_web_addresses is for several servers in the group web, and {server.name} is"
            " alone there: it gets none of them"
        )


def check_passwords(server: Server) -> Iterator[Problem]:
    """With several servers, the database is reached over the network, and asks for a password."""
    if not server.peers or not server.values.get("stack_db"):
        return
    needs = () if server.values.get("stack_is_one_server") else OF_SEVERAL
    follow = server.values.get("stack_standby") or server.values.get("stack_etcd")
    needs += OF_STANDBYS if follow else ()
    for name in needs:
        if not server.failed(name) and not server.values.get(name):
            server.missing.add(name)
            what = "is empty, and with several servers the database asks for it"
            yield Problem(name, what)


def check_standbys(server: Server) -> Iterator[Problem]:
    """A standby is a server of its own, and a copy of one database."""
    values = server.values
    standbys, databases = values.get("stack_standby") or [], values.get("stack_db") or []
    if server.name not in standbys:
        return
    others = [x for x in ("db", "app", "web") if server.name in (values.get(f"stack_{x}") or [])]
    if others:
        yield Problem(
            "stack_standby",
            f"has {server.name}, which is in {' and '.join(others)}, too",
            "take it out of the group standby, or out of the others",
        )
    elif len(databases) != 1:
        yield Problem(
            "stack_standby",
            f"has {server.name}, and the group db has {len(databases)} servers to follow",
            "have one server in the group db",
        )


def check_releases(servers: Sequence[Server]) -> Iterator[Problem]:
    """A standby reads what its primary writes, byte by byte: both have one PostgreSQL."""
    by_name = {x.name: x for x in servers}
    for standby in servers:
        for name in standby.values.get("stack_db") or []:
            primary = by_name.get(name)
            if standby.name not in (standby.values.get("stack_standby") or []) or not primary:
                continue
            has, wants = (x.facts.get("distribution_major_version") for x in (standby, primary))
            if has and wants and has != wants:
                yield Problem(
                    "stack_standby",
                    f"has {standby.name} with Debian {has}, and {name} has Debian {wants}: what one"
                    " PostgreSQL writes, another version does not read",
                    "have the same Debian on both, see docs/how-to/standby.md",
                )


def check_voters(server: Server) -> Iterator[Problem]:
    """Several databases need somebody who says which of them leads, and a driver that asks."""
    databases, voters = (server.values.get(x) or [] for x in ("stack_db", "stack_etcd"))
    kind = str(server.values.get("stack_database") or "")
    if voters and not databases:
        yield Problem(
            "stack_etcd",
            f"has {', '.join(voters)}, and no server is in the group db",
            "put two servers into it at least, or leave the group etcd out",
        )
    elif len(databases) > 1 and not voters and not server.values.get("stack_standby"):
        yield Problem(
            "stack_db",
            f"has {', '.join(databases)}, and nobody says which of them leads",
            "leave one in the group db; or put the second into the group standby, which follows by"
            " itself and leads by your word; or have three servers in the group etcd, see"
            " docs/how-to/database-cluster.md",
        )
    elif voters and "+asyncpg" in kind:
        yield Problem(
            "stack_database",
            f"is {kind!r}, which knows no time-outs as libpq does, so that a connection waits a"
            " minute for a server that is gone",
            "use postgresql+psycopg",
        )


def check_clocks(servers: Sequence[Server]) -> Iterator[Problem]:
    """By clocks that differ, what one server has logged is before or after what it answers to."""
    voters = [x for x in servers if x.name in (x.values.get("stack_etcd") or [])]
    clocks = {x.name: x.facts["clock"] for x in voters if x.facts.get("clock")}
    if clocks and (apart := max(clocks.values()) - min(clocks.values())) > CLOCKS:
        late, early = min(clocks, key=clocks.get), max(clocks, key=clocks.get)
        yield Problem(
            "stack_etcd",
            f"has servers whose clocks differ: that of {late} is {apart:.0f} s behind that of"
            f" {early}",
            "on each of them: sudo timedatectl set-ntp true",
        )


def check_connections(servers: Sequence[Server]) -> Iterator[Problem]:
    """When all threads of all workers ask at once, each needs a connection."""
    for database in servers:
        # The role raises what is not stated to what all apps may open.
        settings = database.values.get("postgres_settings") or {}
        allowed = str(settings.get("max_connections", ""))
        if not allowed.isdigit():
            continue
        stack = database.values.get("stack_app")
        clients = [
            x
            for x in servers
            if "gunicorn_workers" in x.values and (stack is None or x.name in stack)
        ]
        others = {k: number(v, "connections") for k, v in database.other_apps().items()}
        needed = sum(others.values()) + sum(
            product(x, "gunicorn_workers", "gunicorn_threads", "gunicorn_slots") for x in clients
        )
        if needed > int(allowed) - RESERVED_CONNECTIONS:
            parts = [
                "{gunicorn_workers} workers x {gunicorn_threads} threads x {gunicorn_slots} slots"
                " on {name}".format(name=x.name, **x.values)
                for x in clients
            ]
            parts += [f"{count} of the app {name}" for name, count in others.items() if count]
            yield Problem(
                "postgres_settings",
                f"has max_connections {allowed}, of which {RESERVED_CONNECTIONS} are kept for the"
                f" superuser, but {'the apps' if any(others.values()) else 'the app'} may open"
                f" {needed}: {' + '.join(parts)}",
                f"set it to {needed + RESERVED_CONNECTIONS} or more, or lower gunicorn_workers or"
                " gunicorn_threads",
            )


def number(kept: Mapping[str, Any], name: str) -> int:
    """Return what an app keeps of itself on the server; an older release of Carafe did not."""
    value = kept.get(name)
    return value if isinstance(value, int) else 0


CHECKS = (
    check_environment,
    check_contact,
    check_distribution,
    check_stack_name,
    check_server_roles,
    check_database,
    check_standbys,
    check_cache,
    check_metrics,
    check_web_sources,
    check_certificates,
    check_certificate_names,
    check_uploads,
    check_urls,
    check_memory,
    check_memory_max,
    check_issue,
    check_adoption,
)
# What is no problem, and may surprise.
NOTES = (note_addresses, note_clock, note_absent, note_alone)
# These add to what is missing, so that they come before the words about what failed.
FIRST = (check_addresses, check_absent, check_passwords, check_voters)
LAST = (check_failures,)
TOGETHER = (check_connections, check_step, check_releases, check_clocks)
