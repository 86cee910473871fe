"""What a server has for its backups: settings, units and a program, from the claims of all apps.

A server has one place for backups, and one key: two apps that state others are refused. What is an
app's alone is a timer for its files.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from . import (
    backup_archive,
    backup_copy,
    backup_drill,
    backup_files,
    backup_jobs,
    backup_program,
    backup_repository,
    backup_restore,
    backup_scratch,
    backup_shared,
    backup_source,
    backup_state,
    backup_target,
    claims,
    commands,
    etcd,
    files,
    patroni,
    peer_https,
    postgresql_pinned,
    programs,
    sandbox,
    words,
)
from .commands import Refused, ask
from .file_set import Absent, File, Folder

CLAIMS = Path("/etc/carafe/backup.d")
UNITS = Path("/etc/systemd/system")
LIBRARY = (
    *(
        backup_program,
        backup_archive,
        backup_copy,
        backup_drill,
        backup_files,
        backup_jobs,
        backup_repository,
    ),
    *(backup_restore, backup_scratch, backup_shared, backup_source, backup_state, backup_target),
    *(commands, etcd, files, patroni, peer_https, postgresql_pinned, words),
)
HEADER = "# Managed by Ansible, role backup.\n"
# What a server has once, by the role's variables: their defaults are those of nobody.
SCHEDULES = {
    "full": "Sun *-*-* 02:00",
    "diff": "Mon..Sat *-*-* 02:00",
    "incr": "*-*-* 08,14,20:00",
    "drill": "*-*-* 04:00",
    "copy": "*-*-* *:40:00",
}
# Of the second place; by these names with "copy_" before them.
COPY = {"repository": "", "s3_endpoint": "", "s3_region": "us-east-1", "s3_ca": ""}
COPY_SECRETS = ("s3_key", "s3_secret", "ssh_key", "ssh_known_hosts")
ONCE = {
    **{"retention_days": 14, "delay": 900},
    **{"s3_endpoint": "", "s3_region": "us-east-1", "s3_ca": ""},
    **{f"copy_{name}": default for name, default in COPY.items()},
    **SCHEDULES,
}
MARKER = "*:0/10"
GRACE = 6 * 3600  # seconds by which a job may be late, at most
DAY = 86400
SERVICE = """{header}# Run it now: systemctl start {unit}; what it said: journalctl -u {unit}
[Unit]
Description={description}
Wants=network-online.target
After=network-online.target postgresql.service{after}
{mount}
[Service]
Type=oneshot
ExecStart=/usr/bin/python3 -I {program} {words}
TimeoutStartSec=1d
# What serves comes first.
{priority}
# The sandbox. It becomes postgres, and the users whose files it copies and brings back.
{sandbox}
CapabilityBoundingSet={capabilities}
"""
PRIORITY = "Nice=19\nIOSchedulingClass=idle\nCPUWeight=10"
CAPABILITIES = (
    "CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID"
    " CAP_SETUID"
)
TIMER = """{header}[Unit]
Description=When {unit} runs

[Timer]
OnCalendar={when}
# Not all servers at once, each at its own time.
RandomizedDelaySec={delay}s
FixedRandomDelay=true
# One that was due while the server was off is made up for.
Persistent=true
AccuracySec=1s

[Install]
WantedBy=timers.target
"""
ELAPSE = re.compile(r"(?:Next elapse|Iter(?:ation|\.) #\d+): \w+ (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)")


def claim(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an owner claims; of the key only what tells it from another one."""
    salt = given["repository"].encode()
    key = hashlib.scrypt(given["key"].encode(), salt=salt, n=1 << 12, r=8, p=1, dklen=8).hex()
    place = {"backup_repository": given["repository"], "backup_key": f"one with the sum {key}"}
    if given["database"]:
        # By its name: the version is that of whoever has run since an upgrade.
        place["backup_cluster"] = given["cluster"]
    return {
        "once": place | claims.stated(given, ONCE, "backup_"),
        "database": given["database"],
        **({"fails_over": True} if given["database"] and given.get("patroni") else {}),
        "files": given["files"] if given["paths"] or given["more_paths"] else "",
    }


def once(claim: Mapping[str, Any]) -> Mapping[str, Any]:
    return claim["once"]


def shared(everybody: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the server has once: what anybody states, whoever runs last."""
    stated = claims.merged(once(x) for x in everybody.values())
    return {x: stated.get(f"backup_{x}", default) for x, default in ONCE.items()}


def has_database(everybody: Mapping[str, Mapping[str, Any]]) -> bool:
    return any(x["database"] for x in everybody.values())


def fails_over(everybody: Mapping[str, Mapping[str, Any]]) -> bool:
    return any(x.get("fails_over", False) for x in everybody.values())


def interval(variable: str, when: str) -> int:
    """Return the most seconds between two runs of a schedule."""
    done = ask("systemd-analyze", "calendar", "--iterations=20", "--", when)
    if done.returncode:
        raise Refused(
            f"{variable} is {when!r}, a time that systemd does not understand."
            f" {done.stderr.strip()} Try one there: systemd-analyze calendar '*-*-* 03:00'"
        )
    found = [datetime.fromisoformat(x) for x in ELAPSE.findall(done.stdout)]
    steps = [(after - before).total_seconds() for before, after in itertools.pairwise(found)]
    return int(max(steps, default=366 * DAY))


def stanza(version: str, cluster: str) -> str:
    """Return a name that no other server has, and no copy of this one, nor the next version."""
    machine = (files.read(backup_repository.MACHINE) or "").strip()
    host = re.sub(r"[^A-Za-z0-9-]", "-", os.uname().nodename)
    number = hashlib.sha256(f"carafe {machine}".encode()).hexdigest()[:8]
    return f"{host}-{number}-{version}-{cluster}"


def jobs(everybody: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what is to happen on the server: for each unit what it does, and when."""
    schedules = shared(everybody)
    delay = schedules["delay"]
    found: dict[str, dict[str, Any]] = {}
    if has_database(everybody):
        for kind, text in (("full", "A full"), ("diff", "A differential"), ("incr", "A small")):
            found[kind] = {
                **{"what": f"database-{kind}", "words": f"database {kind}"},
                **{"when": schedules[kind], "variable": f"backup_{kind}", "delay": delay},
                "description": f"{text} backup of the database",
            }
        found["marker"] = {
            **{"what": "", "words": "mark", "when": MARKER, "variable": "", "delay": 60},
            "description": "A row whose moment the drill of the backups comes back to",
        }
    for owner, data in everybody.items():
        if data["files"]:
            found[f"files-{owner}"] = {
                **{"what": f"files-{owner}", "words": f"files {owner}", "when": data["files"]},
                **{"variable": "backup_files", "delay": min(delay, 60)},
                "description": f"A snapshot of the files of {owner}",
            }
    if found:
        found["drill"] = {
            **{"what": "drill", "words": "drill", "when": schedules["drill"]},
            **{"variable": "backup_drill", "delay": delay},
            "description": "The proof that the backups can be restored",
        }
    if found and schedules["copy_repository"]:
        found["copy"] = {
            **{"what": "copy", "words": "copy", "when": schedules["copy"]},
            **{"variable": "backup_copy", "delay": delay},
            "description": "The second copy of the backups",
        }
    for name in {"drill", "copy"} & found.keys() if fails_over(everybody) else ():
        # Which of the servers does that part follows from who leads.
        found[name]["shared"] = f"{name}-database"
        if not any(x["files"] for x in everybody.values()):
            found[name]["what"] = ""
    return found


def unit_files(wanted: Mapping[str, Mapping[str, Any]], setup: Mapping[str, Any]) -> dict[str, str]:
    """Return the units by name."""
    place = backup_repository.parse(setup["repository"])
    lines, found = sandbox.properties(sandbox.SANDBOX + "PrivateTmp=yes\n"), {}
    alone = place.kind == "folder" and not setup.get("patroni")
    closed = alone and ask("unshare", "--net", "true").returncode == 0
    values = {"header": HEADER, "program": programs.FOLDER / "backup"}
    values |= {"capabilities": CAPABILITIES, "mount": mounts(setup["repository"]), "after": ""}
    # What is being stored is stored before it is copied.
    before = [f"carafe-backup-{x}.service" for x in wanted if x not in ("marker", "drill", "copy")]
    for name, job in wanted.items():
        unit = f"carafe-backup-{name}"
        # A copy of the past, with all that it knows how to reach, reaches nothing.
        more = ["PrivateNetwork=yes"] if closed and name == "drill" else []
        words = {"unit": unit, "description": job["description"], "words": job["words"]}
        if name == "copy":
            copied = setup["copy"]["repository"]
            words["mount"] = mounts(setup["repository"], copied)
            words["after"] = "".join(f" {x}" for x in before)
        found[f"{unit}.service"] = SERVICE.format(
            **values | words, priority=PRIORITY, sandbox="\n".join([*lines, *more])
        )
        found[f"{unit}.timer"] = TIMER.format(header=HEADER, unit=unit, **timing(job))
    if wanted:
        # The user waits for it.
        found["carafe-backup-restore@.service"] = SERVICE.format(
            **{**values, "unit": "carafe-backup-restore@APP", "words": "restore %i"},
            **{"description": "What is to be restored of %i, brought beside what is live"},
            **{"priority": "Nice=5", "sandbox": "\n".join(lines)},
        )
    return found


def mounts(*repositories: str) -> str:
    """Return what a unit that needs these places says of them."""
    places = map(backup_repository.parse, repositories)
    paths = [x.path for x in places if x.kind == "folder"]
    return f"RequiresMountsFor={' '.join(paths)}\n" if paths else ""


def timing(job: Mapping[str, Any]) -> dict[str, Any]:
    return {"when": job["when"].replace("%", "%%"), "delay": job["delay"]}


def expected(wanted: Mapping[str, Mapping[str, Any]], port: int) -> str:
    """Return what backup_state looks for; one that was there stays as old as it is."""
    known, found = backup_state.expected(), {}
    for name, job in wanted.items():
        for what in filter(None, (job["what"], job.get("shared"))):
            between = interval(job["variable"], job["when"])
            found[what] = {
                "timer": f"carafe-backup-{name}.timer",
                "seconds": between + job["delay"] + min(max(between, 900), GRACE),
                "since": known.get(what, {}).get("since", int(time.time())),
            }
    return json.dumps({"port": port, "jobs": found}, indent=2) + "\n"


def setup_of(
    given: Mapping[str, Any], everybody: Mapping[str, Mapping[str, Any]], check: bool = False
) -> dict[str, Any]:
    """Return what the jobs are told, which has the secrets."""
    place, former = backup_repository.parse(given["repository"]), {}
    if place.kind == "sftp" and has_database(everybody):
        raise Refused(
            f"backup_repository is {given['repository']}, and pgBackRest of Debian cannot restore a"
            " database from there. Name a store that speaks S3 in group_vars, or a folder, which"
            " may be a mount of the other host's, and run the playbook again."
        )
    try:
        former = backup_repository.setup()
    except commands.Failure:
        former = {}
    database = given["database"]
    found = {
        "repository": given["repository"],
        "key": given["key"],
        "is_mount": mounted(given["repository"], former),
        "s3": {x: given[f"s3_{x}"] for x in ("key", "secret")},
        "host": os.uname().nodename,
        "copy": copy_of(given, former.get("copy") or {}),
    }
    found = agreed(found, everybody)
    kept = ("version", "cluster", "port", "data", "stanza", "blocks", "patroni")
    if not database and found["database"] and former.get("database"):  # another app has it
        return found | {x: former[x] for x in kept if x in former}
    told = given.get("patroni") if found["database"] else {}
    if told:
        name = backup_shared.agreed(given, former, check)
    else:
        name = stanza(given["version"], given["cluster"]) if found["database"] else ""
    return found | {
        "version": given["version"],
        "cluster": given["cluster"],
        "port": given["port"],
        "data": str(given["data"]),
        "stanza": name,
        **({"patroni": dict(told)} if told else {}),
        # Debian 12's does not know it.
        "blocks": given["blocks"],
    }


def mounted(repository: str, former: Mapping[str, Any]) -> bool:
    """Tell whether a place is a mount; refuse one that was one, and is missing."""
    place = backup_repository.parse(repository)
    here = place.kind == "folder" and backup_repository.is_mount(place.path)
    if former.get("repository") == repository and former.get("is_mount", False) and not here:
        raise Refused(f"{place.path} is not mounted. See findmnt and /etc/fstab, and mount it.")
    return here


def copy_of(given: Mapping[str, Any], former: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the jobs are told of the second place by an owner; another one's stays."""
    if not given["copy_repository"]:
        return dict(former)
    return {
        "repository": given["copy_repository"],
        "is_mount": mounted(given["copy_repository"], former),
        "s3": {x: given[f"copy_s3_{x}"] for x in ("key", "secret")},
    }


def agreed(setup: Mapping[str, Any], everybody: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the jobs are told, by what all claims state."""
    values = shared(everybody)
    copy = setup.get("copy") or {}
    if values["copy_repository"]:
        more = {x: values[f"copy_s3_{x}"] for x in ("endpoint", "region", "ca")}
        # Without what its owner has left, it is reached after the next run of that one.
        copy = {"is_mount": False, **copy, "repository": values["copy_repository"]}
        copy["s3"] = dict.fromkeys(("key", "secret"), "") | copy.get("s3", {}) | more
    else:
        copy = {}
    return {
        **setup,
        "copy": copy,
        "s3": setup["s3"] | {x: values[f"s3_{x}"] for x in ("endpoint", "region", "ca")},
        "retention_days": values["retention_days"],
        "database": has_database(everybody),
    }


def items(
    given: Mapping[str, Any], setup: Mapping[str, Any], wanted: Mapping[str, Mapping[str, Any]]
) -> list[File | Folder]:
    """Return all files of the server's, and those of the owner."""
    folder, place = backup_repository.FOLDER, backup_repository.parse(setup["repository"])
    found: list[File | Folder] = [
        *(Folder(x) for x in (folder, folder / "apps", backup_state.STATE.parent)),
        Folder(backup_state.STATE),
        secret(folder / "apps" / f"{given['owner']}.json", json.dumps(app(given), indent=2) + "\n"),
        *composed(wanted, setup),
    ]
    if setup["database"]:
        machine = (files.read(backup_repository.MACHINE) or "").strip()
        found += [
            File(
                Path(backup_repository.STANZA.format(machine=machine)),
                content=f"{setup['stanza']}\n".encode(),
            ),
        ]
    found += reached(place, folder / "root", given, setup["database"])
    if given["copy_repository"]:
        mine = {x: given[f"copy_{x}"] for x in COPY_SECRETS}
        copy = backup_repository.parse(given["copy_repository"])
        found += reached(copy, folder / "copy", mine, setup["database"])
        if copy.kind == "folder" and setup["database"]:
            # What leads to the backups is kept there as it was before each change.
            found.append(Folder(Path(copy.path, "former"), "postgres", "postgres", 0o750))
    return found


def reached(
    place: backup_repository.Place, keys: Path, given: Mapping[str, Any], database: bool
) -> list[File | Folder]:
    """Return what there is to be for a place, before anything goes there."""
    if place.kind == "folder":
        more = [Folder(Path(place.path, "pgbackrest"), "postgres", "postgres", 0o750)] * database
        return [
            Folder(Path(place.path), only_new=True, mode=0o755),
            Folder(Path(place.path, "files"), mode=0o700),
            *more,
        ]
    if place.kind == "sftp":
        hosts = "".join(f"{line}\n" for line in given["ssh_known_hosts"])
        return [
            Folder(keys, mode=0o700),
            secret(keys / "id", f"{given['ssh_key'].strip()}\n"),
            File(keys / "known_hosts", mode=0o600, content=hosts.encode()),
        ]
    return []


def composed(
    wanted: Mapping[str, Mapping[str, Any]], setup: Mapping[str, Any]
) -> list[File | Folder]:
    """Return what follows from all claims together."""
    text, found = expected(wanted, setup["port"]), []
    if setup["database"]:
        conf = backup_repository.text(setup, setup["stanza"], setup["data"], setup["port"])
        found = [
            Folder(backup_repository.PGBACKREST.parent),
            secret(backup_repository.PGBACKREST, conf, 0o640, "postgres"),
        ]
    return [
        *found,
        secret(backup_repository.SETUP, json.dumps(setup, indent=2) + "\n"),
        File(backup_state.EXPECTED, content=text.encode()),
        *(File(UNITS / x, content=t.encode()) for x, t in unit_files(wanted, setup).items()),
    ]


def unused(setup: Mapping[str, Any]) -> list[Absent]:
    """Return the keys of a second place that is none any more."""
    return [] if setup["copy"] else [Absent(backup_repository.FOLDER / "copy/id")]


def gone(names: Iterable[str]) -> list[Absent]:
    """Return the units that are there and not wanted any more."""
    keep = set(names)
    there = [*UNITS.glob("carafe-backup-*.timer"), *UNITS.glob("carafe-backup-*.service")]
    return [Absent(x) for x in sorted(there) if x.name not in keep]


def secret(path: Path, text: str, mode: int = 0o600, group: str = "root") -> File:
    return File(path, "root", group, mode, text.encode(), sensitive=True)


def app(given: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: given[name] for name in ("paths", "more_paths", "release")}
    return found | {"databases": [{"name": x} for x in given["databases"]]}


def install(check: bool) -> list[str]:
    return programs.install("backup", programs.names(*LIBRARY), check)
