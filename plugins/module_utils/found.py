"""What a server has that Carafe did not bring: users, folders, ports, services set up by hand."""

from __future__ import annotations

import grp
import json
import pwd
import re
import stat
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from . import adopted
from .commands import ask

ROOT = Path("/")
# As a run of the role nginx begins a site.
SITE = re.compile(r"^# The (?:site|service) \S+ of ", re.M)
# What the role's nginx.conf reads.
LIVE = ("conf.d/*.conf", "sites-enabled/*.conf")
# The version that Debian has, by its release.
POSTGRESQL_OF_DEBIAN = {"12": "15", "13": "17"}
SAMPLE = 3  # names that stand for all that is in a folder
SECONDS = 5
LIMIT = 1_000_000  # bytes that are read of a configuration
# A database that somebody has made; below that are PostgreSQL's own (FirstNormalObjectId).
FIRST_OWN_DATABASE = 16384
SETTINGS = (
    *("port", "data_directory", "hba_file", "unix_socket_directories"),
    "listen_addresses",
)
QUERY = """
SELECT json_build_object(
  'databases', (SELECT coalesce(json_object_agg(datname, pg_get_userbyid(datdba)), '{}')
    FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres'),
  'roles', (SELECT coalesce(json_agg(rolname ORDER BY 1), '[]')
    FROM pg_roles WHERE rolname !~ '^pg_' AND rolname <> 'postgres'),
  'in_recovery', pg_is_in_recovery(),
  'position', CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
    ELSE pg_current_wal_lsn() END,
  'altered', (SELECT coalesce(json_agg(name ORDER BY 1), '[]')
    FROM pg_file_settings WHERE sourcefile ~ '/postgresql\\.auto\\.conf$' AND applied))
"""


def text(path: Path) -> str:
    """Return a file's text, '' where there is none that can be read."""
    try:
        with path.open(errors="replace") as file:
            return file.read(LIMIT)
    except OSError:
        return ""


def claims(role: str) -> list[str]:
    """Return the owners, apps for instance, for whom Carafe has configured something."""
    return sorted(x.stem for x in ROOT.glob(f"etc/carafe/{role}.d/*.json"))


def environments() -> dict[str, str]:
    """Return which environment has claimed this server for an app that is on another one."""
    return {x.stem: text(x).strip() for x in sorted(ROOT.glob("etc/carafe/*.environment"))}


def accounts() -> dict[str, Any]:
    users = {
        x.pw_name: {
            "uid": x.pw_uid,
            "gecos": x.pw_gecos.strip(", "),
            "home": x.pw_dir,
            "shell": x.pw_shell,
        }
        for x in pwd.getpwall()
    }
    groups = {x.gr_name: {"gid": x.gr_gid, "members": x.gr_mem} for x in grp.getgrall()}
    return {"users": users, "groups": groups}


def folders() -> dict[str, list[str]]:
    """Return what is in each folder of /srv, a few names; nothing of one that is empty."""
    found = {}
    for folder in sorted(ROOT.glob("srv/*")):
        try:
            names = sorted(x.name for x in folder.iterdir() if x.name != "lost+found")
        except NotADirectoryError:
            names = ["(a file)"]
        except OSError:
            continue
        if names:
            found[folder.name] = names[:SAMPLE]
    return found


def units() -> list[str]:
    """Return the units that an administrator has written."""
    paths = ROOT.glob("etc/systemd/system/*.*")
    return sorted(
        x.name
        for x in paths
        if x.suffix in (".service", ".timer", ".slice")
        and stat.S_ISREG(x.lstat().st_mode)
        and not adopted.is_managed(text(x))
    )


def listeners() -> list[dict[str, Any]]:
    """Return the TCP ports on which somebody listens, with the process and its unit."""
    try:
        said = ask("ss", "-Hltnp").stdout
    except OSError:
        return []
    found = []
    for line in said.splitlines():
        columns = line.split()
        if len(columns) < 4:
            continue
        place, who = columns[3], re.search(r'\("([^"]+)",pid=(\d+)', line)
        name, pid = (who[1], int(who[2])) if who else ("", 0)
        host, _, port = place.rpartition(":")
        found.append(
            {"host": host, "port": int(port), "name": name, "pid": pid, "unit": unit_of(pid)}
        )
    return found


def unit_of(pid: int) -> str:
    said = text(ROOT / f"proc/{pid}/cgroup") if pid else ""
    named = re.findall(r"/([^/\n]+\.(?:service|scope))", said)
    return named[-1] if named else ""


def as_packaged(*packages: str) -> dict[str, str]:
    """Return the digests that the configuration files of packages have come with."""
    # It fails for those that are not installed, and lists the others.
    said = ask("dpkg-query", "--show", "--showformat=${Conffiles}\n", *packages).stdout
    lines = [line.split() for line in said.splitlines()]
    return {words[0]: words[1] for words in lines if len(words) >= 2}


def is_changed(path: Path, packaged: dict[str, str]) -> bool:
    """Tell whether somebody has changed, or brought, a configuration file."""
    import hashlib

    if not path.is_file():
        return False
    place = "/" + str(path.resolve().relative_to(ROOT.resolve()))
    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    return packaged.get(place) != digest


def is_by_hand(path: Path) -> bool:
    """Tell whether somebody has changed a file since its package has brought it."""
    return is_changed(path, as_packaged("nginx-common", "nginx", "supervisor"))


def pools(texts: Iterable[str]) -> dict[str, list[str]]:
    """Return whom nginx sends the requests of each of the role's sites."""
    upstreams = [x for text in texts for x in adopted.top(text) if x.name == "upstream"]
    return {
        x.words[1]: [y.words[1] for y in adopted.top(x.inner or "") if y.name == "server"]
        for x in upstreams
    }


def nginx() -> dict[str, Any]:
    folder = ROOT / "etc/nginx"
    main = text(folder / "nginx.conf")
    if not main:
        return {}
    sites = [x for x in sorted(folder.glob("sites-enabled/[!.]*")) if x.is_file()]
    theirs = [x for x in sites if not SITE.search(text(x))]
    ours = [said for x in sites if SITE.search(said := text(x))]
    found: dict[str, Any] = {
        "sites": [x.name for x in theirs],
        "by_hand": False,
        "pools": pools(ours),
    }
    said = [text(x) for x in [*theirs, *folder.glob("conf.d/*.conf")]]
    said += [] if adopted.is_carafes(main) else [x.text for x in adopted.inside(main, "http")]
    # By such a name nginx knows the servers behind one of our sites.
    names = [x.words[1] for x in adopted.top("\n".join(said)) if x.name == "upstream"]
    found["upstreams"] = sorted(names)
    if claims("nginx") or adopted.is_carafes(main):
        return found
    packaged = as_packaged("nginx-common", "nginx")
    others = adopted.other_sites(folder, main)
    theirs = [
        x for x in theirs if is_changed(x, packaged) and (x.suffix == ".conf" or x.name in others)
    ]
    extra = [x for x in sorted(folder.glob("conf.d/*.conf")) if is_changed(x, packaged)]
    main_changed = is_changed(folder / "nginx.conf", packaged)
    kept, gone = adopted.split(main) if main_changed else ([], [])
    # The same in a file that goes on: nginx would refuse to start with both.
    twice = []
    for path in extra:
        twice += [
            f"{x.name} in {path.relative_to(folder)}"
            for x in adopted.top(text(path))
            if adopted.is_ours(x) and x.name not in adopted.MANY
        ]
    return found | {
        "by_hand": bool(main_changed or theirs or extra),
        "is_debians": "/etc/nginx/nginx.conf" in packaged and bool(as_packaged("nginx-common")),
        "main": main_changed,
        "sites": [x.name for x in theirs],
        "extra": [x.name for x in extra],
        "kept": sorted({x.title for x in kept}),
        "gone": sorted({x.title for x in gone if x.name != "include"}),
        "twice": twice,
    }


def goes_on(kind: str, path: Path) -> dict[Path, str]:
    """Return the files in which what somebody has configured goes on once ``path`` is replaced."""
    said = text(path)
    if not said or adopted.is_carafes(said):
        return {}
    if kind == "supervisor":
        changed = is_changed(path, as_packaged("supervisor"))
        return adopted.supervisor(path, said) if changed else {}
    packaged, folder = as_packaged("nginx-common", "nginx"), path.parent
    changed = is_changed(path, packaged)
    others = [
        x
        for x in adopted.other_sites(folder, said)
        if is_changed(folder / "sites-enabled" / x, packaged)
    ]
    texts = [x.text for x in adopted.inside(said, "http")] if changed else []
    texts += [text(folder / "sites-enabled" / x) for x in others]
    texts += [text(x) for place in LIVE for x in folder.glob(place)]
    return adopted.nginx(path, said if changed else "", others, adopted.written(texts))


def default_ports() -> list[int]:
    """Return the ports whose default server is somebody else's, whom ours would be one too many."""
    folder = ROOT / "etc/nginx"
    files = [x for place in LIVE for x in folder.glob(place)]
    main = text(folder / "nginx.conf")
    texts = [text(x) for x in files]
    if adopted.is_carafes(main):
        included = adopted.top(text(folder / "conf.d/adopted.conf"))
        names = [x.words[1] for x in included if x.name == "include" and len(x.words) > 1]
        texts += [text(folder / x) for x in names if x.startswith("sites-enabled/")]
    elif main:
        packaged = as_packaged("nginx-common", "nginx")
        if is_changed(folder / "nginx.conf", packaged):
            texts += [x.text for x in adopted.split(main)[0]]
        for name in adopted.other_sites(folder, main):
            if is_changed(folder / "sites-enabled" / name, packaged):
                texts.append(text(folder / "sites-enabled" / name))
    return sorted(adopted.default_ports(x for x in texts if not SITE.search(x)))


def supervisor() -> dict[str, Any]:
    folder = ROOT / "etc/supervisor"
    path = folder / "supervisord.conf"
    main = text(path)
    if not main:
        return {}
    theirs = [
        x.name for x in sorted(folder.glob("conf.d/*.conf")) if not adopted.is_managed(text(x))
    ]
    found: dict[str, Any] = {"programs": theirs, "by_hand": False}
    if adopted.is_carafes(main):
        return found
    changed = is_changed(path, as_packaged("supervisor"))
    plain = {x for x, _ in adopted.sections(main)} - set(adopted.PLAIN)
    return found | {
        "by_hand": changed or bool(theirs),
        "main": changed,
        "kept": adopted.programs(main),
        "gone": sorted(x for x in plain if not x.startswith(adopted.PROGRAMS)),
        "includes": adopted.includes(main),
    }


# --- PostgreSQL -------------------------------------------------------------------------------


def settings_of(folder: Path) -> dict[str, str]:
    """Return what a cluster's own files say of where it is; conf.d comes last."""
    found = {}
    paths = [folder / "postgresql.conf"]
    # Patroni has its own in that place, which begins with what was there.
    if is_patronis(folder):
        paths.insert(0, folder / "postgresql.base.conf")
    if "conf.d" in setting("include_dir", text(paths[0])):
        paths += sorted(folder.glob("conf.d/*.conf"))
        found["include_dir"] = "conf.d"
    for path in paths:
        said = text(path)
        for name in SETTINGS:
            if value := setting(name, said):
                found[name] = value
    return found


def is_patronis(folder: Path) -> bool:
    """Tell whether Patroni writes the settings of a cluster."""
    return (folder / "postgresql.base.conf").exists() and setting(
        "include", text(folder / "postgresql.conf")
    ).endswith("postgresql.base.conf")


def setting(name: str, said: str) -> str:
    found = re.findall(rf"(?mi)^\s*{name}\s*(?:=|\s)\s*('(?:[^']|'')*'|[^\s#]+)", said)
    return found[-1].strip("'").replace("''", "'") if found else ""


def clusters() -> Iterator[dict[str, Any]]:
    """Yield the clusters that pg_lsclusters has, without its second of Perl."""
    for path in sorted(ROOT.glob("etc/postgresql/*/*/postgresql.conf")):
        folder = path.parent
        version, name = folder.parts[-2:]
        said = settings_of(folder)
        data = ROOT / said.get("data_directory", f"/var/lib/postgresql/{version}/{name}").lstrip(
            "/"
        )
        lines = text(data / "postmaster.pid").splitlines()
        runs = len(lines) > 4 and (ROOT / "proc" / lines[0].strip()).exists()
        port = lines[3].strip() if runs else said.get("port", "5432")
        yield {
            "version": version,
            "name": name,
            "port": int(port) if port.isdecimal() else 5432,
            "runs": runs,
            "socket": lines[4].strip() if runs else "",
            "data": str(data),
            "addresses": said.get("listen_addresses", ""),
            "is_standby": (data / "standby.signal").exists(),
            # Patroni starts it without its unit.
            "is_fenced": is_masked(f"postgresql@{version}-{name}.service")
            and not is_patronis(folder),
            "reads_conf_d": "include_dir" in said,
            "hba_file": said.get("hba_file", str(folder / "pg_hba.conf")),
            "patroni": is_patronis(folder),
        }


def is_masked(unit: str) -> bool:
    """Tell whether systemd starts a unit in no case."""
    path = ROOT / "etc/systemd/system" / unit
    return path.is_symlink() and path.readlink() == Path("/dev/null")


def cluster(version: str, name: str) -> dict[str, Any]:
    """Return one of them, nothing where it is not there."""
    return next((x for x in clusters() if (x["version"], x["name"]) == (version, name)), {})


def has_databases(data: Path) -> bool:
    """Tell whether somebody has made a database, also where the cluster does not run."""
    numbers = [x.name for x in data.glob("base/*") if x.name.isdecimal()]
    return any(int(x) >= FIRST_OWN_DATABASE for x in numbers)


def contents(cluster: dict[str, Any]) -> dict[str, Any]:
    """Ask a cluster that runs what is in it, as its own superuser."""
    place = cluster["socket"] or "/var/run/postgresql"
    command = [
        f"/usr/lib/postgresql/{cluster['version']}/bin/psql",
        *("--no-psqlrc", "--no-password", "--tuples-only", "--no-align", "--dbname=postgres"),
        *(f"--host={place}", f"--port={cluster['port']}", f"--command={QUERY}"),
    ]
    options = "-c search_path=pg_catalog -c statement_timeout=4s -c lock_timeout=1s"
    try:
        done = subprocess.run(
            command,
            user="postgres",
            group="postgres",
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            cwd="/",
            env={"PGOPTIONS": options, "LC_ALL": "C.UTF-8"},
            check=False,
        )
        if done.returncode == 0:
            return json.loads(done.stdout)
        said = done.stderr
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = str(error)
    return {"refused": " ".join(said.split())[: SAMPLE * 100]}


def usual_version() -> str:
    """Return the major version that the server's Debian has."""
    release = re.search(r'^VERSION_ID="?(\d+)', text(ROOT / "etc/os-release"), re.M)
    return POSTGRESQL_OF_DEBIAN.get(release[1] if release else "", "")


def formers(names: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return Debian's own cluster of a release before, where that of this one is not there yet."""
    usual = usual_version()
    if (usual, "main") in names or not usual:
        return []
    versions = [
        int(x)
        for x in POSTGRESQL_OF_DEBIAN.values()
        if int(x) < int(usual) and (x, "main") in names
    ]
    return [(str(max(versions)), "main")] if versions else []


def owners(
    cluster: dict[str, Any], cluster_names: Iterable[tuple[str, str]] = ()
) -> dict[str, dict[str, Any]]:
    """Return for whom Carafe has configured a cluster, with the databases and roles of each.

    Roles are None where the claim is an older one, which does not name them.
    """
    usual, this = (usual_version(), "main"), (cluster["version"], cluster["name"])
    # After an upgrade of Debian it is still there by the version that Debian had before.
    is_former = this in formers(cluster_names)
    named = "" if this == usual or is_former else "{version}-{name}/"
    claimed = {}
    for path in sorted(ROOT.glob(f"etc/carafe/postgres.d/{named.format(**cluster)}*.json")):
        try:
            stated = json.loads(text(path) or "{}")
        except ValueError:
            stated = {}
        databases = [x["name"] for x in stated.get("databases", [])]
        claimed[path.stem] = {"databases": databases, "roles": stated.get("roles")}
    return claimed


def postgresql() -> dict[str, Any]:
    found = list(clusters())
    names = [(x["version"], x["name"]) for x in found]
    for cluster in found:
        cluster["claims"] = owners(cluster, names)
        cluster["is_former"] = (cluster["version"], cluster["name"]) in formers(names)
        folder = ROOT / "etc/postgresql" / cluster["version"] / cluster["name"]
        if cluster["runs"]:
            cluster |= contents(cluster)
        if cluster["claims"]:
            continue
        rules = text(folder / "pg_hba.conf")
        plain = adopted.is_debians(rules) or adopted.is_carafes(rules)
        cluster |= {
            # A run that was cut short has written it, and claimed nothing yet.
            "hba": 0 if plain else len(adopted.hba(rules)),
            "has_databases": has_databases(Path(cluster["data"])),
            "confs": sorted(x.name for x in folder.glob("conf.d/*.conf")),
        }
    return {"clusters": found}


def mounts() -> list[str]:
    """Return the folders at which another disk, or another host's folder, is mounted."""
    lines = (line.split() for line in text(ROOT / "proc/self/mounts").splitlines())
    return sorted({x[1] for x in lines if len(x) > 2 and "/" in x[0] and x[1] != "/"})


def keepalived() -> str:
    """Return where somebody has configured keepalived by hand, '' where nobody has."""
    path = ROOT / "etc/keepalived/keepalived.conf"
    said = text(path)
    return str(path) if said.strip() and "Ansible managed" not in said else ""


def remote_mounts() -> list[str]:
    """Return those of them that are another host's, and may be the same on several servers."""
    lines = (line.split() for line in text(ROOT / "proc/self/mounts").splitlines())
    here = set(mounts())
    return sorted({x[1] for x in lines if x[1:] and x[1] in here and not x[0].startswith("/dev/")})


def look() -> dict[str, Any]:
    return {
        "mounts": mounts(),
        "remote_mounts": remote_mounts(),
        **accounts(),
        "environments": environments(),
        "folders": folders(),
        "units": units(),
        "listeners": listeners(),
        "nginx": nginx(),
        "supervisor": supervisor(),
        "postgresql": postgresql(),
        "keepalived": keepalived(),
    }
