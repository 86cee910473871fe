#!/usr/bin/python
"""Backups of a server that several owners share: what there is to do, when, and by which units."""

from __future__ import annotations

DOCUMENTATION = r"""
module: backup
short_description: Have a server's database and files backed up, and proven to be
description:
  - V(configure) notes what an owner claims of the server's one place for backups, in
    C(/etc/carafe/backup.d/<owner>.json), and writes the settings of pgBackRest, the units and
    timers, and the program that they run.
  - Two owners that state another place, key or time are refused, before anything is changed.
  - V(activate) makes the place of the cluster in the repository, has the timers run, and begins the
    first backup where there is none.
  - V(run) makes one now, and waits for it. V(point) makes a named restore point.
  - With O(patroni), several servers have one database, and what there is to do once for it is
    done by the one that leads, and a drill by one that follows. The others do nothing then, and
    V(point) returns no name there.
  - V(remove) is for an owner that leaves; with the last one all goes that is on the server. What is
    in the repository stays.
author: [Carafe (@carafe)]
options:
  stage:
    description: What to do.
    type: str
    choices: [configure, activate, run, point, remove]
    required: true
  owner:
    description: Who claims.
    type: str
    default: default
  repository:
    description: Place of the backups, see the role.
    type: str
    default: ""
  key:
    description: What the backups are encrypted with.
    type: str
    default: ""
  s3_endpoint:
    description: Host of the S3 store, with its port where it is another one than 443.
    type: str
    default: ""
  s3_region:
    description: Region of the bucket.
    type: str
    default: us-east-1
  s3_key:
    description: Name of the key for the bucket.
    type: str
    default: ""
  s3_secret:
    description: The key for the bucket.
    type: str
    default: ""
  s3_ca:
    description: File on the server with the authority that has signed the store's certificate.
    type: str
    default: ""
  ssh_key:
    description: Private key for a place by sftp, which is for files only.
    type: str
    default: ""
  ssh_known_hosts:
    description: Lines of C(known_hosts) for it.
    type: list
    elements: str
    default: []
  patroni:
    description:
      - How servers that take each other's place with the database know of each other, as the module
        M(carafe.stack.patroni) has it. They have one place in the repository, whose name is kept in
        etcd. Without it, the database stays on one server.
    type: dict
    suboptions:
      name:
        description: Name of this server.
        type: str
        required: true
      dcs:
        description: IP addresses of etcd's members.
        type: list
        elements: str
        required: true
      certificate:
        description: File with the certificate and the key of the server.
        type: path
        required: true
      trusted:
        description: File with the authorities that are trusted.
        type: path
        required: true
      scope:
        description: Name of the cluster in etcd.
        type: str
        default: main
      namespace:
        description: Where Patroni keeps its clusters there.
        type: str
        default: /service/
  retention_days:
    description: Days for which one can go back.
    type: int
    default: 14
  full:
    description: When there is a full backup of the database, as systemd writes times.
    type: str
    default: Sun *-*-* 02:00
  diff:
    description: When there is a differential one.
    type: str
    default: Mon..Sat *-*-* 02:00
  incr:
    description: When there is an incremental one.
    type: str
    default: "*-*-* 08,14,20:00"
  drill:
    description: When all of it is restored for a proof.
    type: str
    default: "*-*-* 04:00"
  copy:
    description: When all that is stored is copied to the second place.
    type: str
    default: "*-*-* *:40:00"
  copy_repository:
    description: The second place, none where it is empty.
    type: str
    default: ""
  copy_s3_endpoint:
    description: Host of its S3 store.
    type: str
    default: ""
  copy_s3_region:
    description: Region of its bucket.
    type: str
    default: us-east-1
  copy_s3_key:
    description: Name of the key for its bucket.
    type: str
    default: ""
  copy_s3_secret:
    description: The key for its bucket.
    type: str
    default: ""
  copy_s3_ca:
    description: File on the server with the authority that has signed its store's certificate.
    type: str
    default: ""
  copy_ssh_key:
    description: Private key for a second place by sftp.
    type: str
    default: ""
  copy_ssh_known_hosts:
    description: Lines of C(known_hosts) for it.
    type: list
    elements: str
    default: []
  files:
    description: When there is a snapshot of the owner's files.
    type: str
    default: "*:0/15"
  delay:
    description: Seconds over which the times are spread.
    type: int
    default: 900
  database:
    description: Whether this server has the owner's database.
    type: bool
    default: false
  version:
    description: Major version of the cluster.
    type: str
    default: ""
  cluster:
    description: Name of the cluster.
    type: str
    default: main
  databases:
    description: Databases of the owner, that it may bring back.
    type: list
    elements: str
    default: []
  paths:
    description: Folders of the owner that are stored, and brought back.
    type: list
    elements: str
    default: []
  more_paths:
    description: What else is stored, and brought back by hand only.
    type: list
    elements: str
    default: []
  release:
    description: Link to the release that serves, whose name is noted.
    type: str
    default: ""
  job:
    description: Job for V(run), such as V(full) or V(files-shop).
    type: str
    default: full
  point:
    description: Name for V(point).
    type: str
    default: ""
attributes:
  check_mode:
    description: Looks, changes nothing, and says what it would change.
    support: full
  diff_mode:
    description: Shows the files, without secrets.
    support: full
"""

EXAMPLES = r"""
- name: Make a full backup now
  carafe.stack.backup:
    stage: run
    job: full
  become: true
"""

RETURN = r"""
changes:
  description: What was changed, a sentence for each.
  type: list
  elements: str
  returned: success
point:
  description: Name of the restore point.
  type: str
  returned: for the stage point
said:
  description: What came out of a run.
  type: str
  returned: for the stage run
"""

import json
from pathlib import Path

from ansible_collections.carafe.stack.plugins.module_utils.module import Module, choice, options

from ..module_utils import (
    backup_jobs,
    backup_recover,
    backup_repository,
    backup_server,
    backup_shared,
    backup_state,
    claims,
    files,
    found,
    programs,
    removal,
    services,
)
from ..module_utils.commands import CommandFailed, Failure, ask, run
from ..module_utils.file_set import FileSet, with_parents
from ..module_utils.postgresql_server import report

PATRONI = {
    "name": {"type": "str", "required": True},
    "dcs": {"type": "list", "elements": "str", "required": True},
    **{x: {"type": "path", "required": True} for x in ("certificate", "trusted")},
    **options(scope="main", namespace="/service/"),
}
STAGES = ("configure", "activate", "run", "point", "remove")
ARGUMENTS = {
    "stage": choice(*STAGES, required=True),
    **options(owner="default", repository="", s3_endpoint="", s3_region="us-east-1", s3_ca=""),
    "key": {"type": "str", "default": "", "no_log": True},
    "s3_key": {"type": "str", "default": "", "no_log": False},
    "s3_secret": {"type": "str", "default": "", "no_log": True},
    "ssh_key": {"type": "str", "default": "", "no_log": True},
    **options(**{f"copy_{name}": default for name, default in backup_server.COPY.items()}),
    "copy_s3_key": {"type": "str", "default": "", "no_log": False},
    "copy_s3_secret": {"type": "str", "default": "", "no_log": True},
    "copy_ssh_key": {"type": "str", "default": "", "no_log": True},
    **options(
        copy_ssh_known_hosts=[],
        ssh_known_hosts=[],
        retention_days=14,
        files="*:0/15",
        delay=900,
        database=False,
    ),
    **options(**backup_server.SCHEDULES),
    **options(version="", cluster="main", paths=[], more_paths=[], release="", job="full"),
    **options(databases=[], point=""),
    "patroni": {"type": "dict", "options": PATRONI},
}
# With which the stanza was made: a place of its own for each.
MADE = backup_state.STATE / "stanza"


def needed(given: dict) -> None:
    """Refuse what would fail at night only."""
    programs_ = [
        *["pgbackrest"] * given["database"],
        *["restic"] * bool(given["paths"] or given["more_paths"]),
        *["rclone"] * bool(given["copy_repository"]),
    ]
    missing = [x for x in programs_ if not Path("/usr/bin", x).exists()]
    if missing:
        raise Failure(
            f"The server has no {' and no '.join(missing)}. Set backup_manage_packages to true in"
            " group_vars, or install what backup_packages has, and run the playbook again."
        )
    path = backup_repository.PGBACKREST
    there = files.read(path) if given["database"] else None
    if there is not None and not there.startswith(backup_repository.HEADER):
        raise Failure(
            f"{path} is somebody's own, and the server archives by it. Move it away when nobody"
            " needs it any more, and run the playbook again."
        )


def about_cluster(given: dict) -> dict:
    seen = found.cluster(given["version"], given["cluster"]) if given["database"] else {}
    usual = f"/var/lib/postgresql/{given['version']}/{given['cluster']}"
    return {"data": seen.get("data", usual), "port": seen.get("port", 5432)}


def blocks() -> bool:
    """Tell whether pgBackRest stores parts of files, as it does from 2.46 on."""
    said = ask("pgbackrest", "version").stdout if Path("/usr/bin/pgbackrest").exists() else ""
    numbers = [int(x) for x in said.split()[-1].split(".") if x.isdecimal()] if said else []
    return numbers[:2] >= [2, 46] if numbers else False


def configure(module: Module) -> dict:
    given, check = dict(module.params), module.check_mode
    for name in filter(None, (given["repository"], given["copy_repository"])):
        backup_repository.parse(name)
    if not check:
        needed(given)
    given |= about_cluster(given) | {"blocks": blocks()}
    mine, folder = backup_server.claim(given), backup_server.CLAIMS
    with claims.locked(folder, check):
        everybody = claims.agreed(folder, given["owner"], mine, backup_server.once)
        setup = backup_server.setup_of(given, everybody, check)
        wanted = backup_server.jobs(everybody)
        items = with_parents(backup_server.items(given, setup, wanted))
        names = [x.path.name for x in items if x.path.parent == backup_server.UNITS]
        left = [*backup_server.gone(names), *backup_server.unused(setup)]
        files_ = FileSet([*items, *left], check)
        stop(backup_server.gone(names), check)
        files_.write()
        changes = files_.changes
        changes += [f"write {x}" for x in backup_server.install(check)]
        if claims.claim(folder, given["owner"], mine, check):
            changes.append(f"note what {given['owner']} claims in {folder}")
    return report(changes, files_.diff)


def stop(gone: list, check: bool) -> None:
    timers = [x.path.name for x in gone if x.path.suffix == ".timer"]
    if timers and not check:
        ask("systemctl", "disable", "--now", *timers)


def due_timers() -> list[str]:
    """Return what systemd is to begin: timers that do not run, or whose files are new."""
    names = [x.name for x in sorted(backup_server.UNITS.glob("carafe-backup-*.timer"))]
    return [x for x in names if services.due(services.state(x, x.replace(".timer", ".service")))]


def activate(module: Module) -> dict:
    given, check, changes = module.params, module.check_mode, []
    with claims.locked(backup_server.CLAIMS, check):
        if check and not backup_repository.SETUP.exists():
            return report(["begin the first backup"])
        setup = backup_repository.setup()
        made = json.dumps([setup["repository"], setup["stanza"]])
        is_new = files.read(MADE) != made
        # Who leads has done it, or will, and what comes after for all of them.
        follows = backup_shared.follows(setup)
        backup_shared.sync({} if check else setup)
        if is_new and not follows:
            changes.append(f"make {setup['stanza'] or 'a place'} in {setup['repository']}")
            if not check and setup["database"]:
                make_stanza(setup)
        if timers := due_timers():
            changes += [f"start {name}" for name in timers]
            if not check:
                run("systemctl", "daemon-reload")
                run("systemctl", "enable", *timers)
                run("systemctl", "restart", *timers)
        for what, unit in first(setup, given["owner"], is_new, follows):
            changes.append(f"begin the first backup, {what}")
            if not check:
                run("systemctl", "start", "--no-block", unit)
        if not check:
            backup_recover.forget_begun(given["owner"])
        # Last, so that a run that was cut short is made up for, by whoever leads then.
        is_made = not follows or backup_state.read("database-full") is not None
        if is_new and is_made and not check:
            files.write(MADE, made, 0o640)
    return report(changes)


def make_stanza(setup: dict) -> None:
    done = backup_repository.pgbackrest(setup, "stanza-create", check=False)
    if done.returncode:
        said = backup_repository.said(done)
        raise Failure(
            f"pgBackRest cannot begin in {setup['repository']}: {backup_jobs.explained(said)}. See"
            " backup_repository and what belongs to it in group_vars, and run the playbook again."
        )


def first(setup: dict, owner: str, is_new: bool, follows: bool = False) -> list[tuple[str, str]]:
    """Return what has never been stored there, with its unit, unless that is to begin already."""
    has_database = bool(setup["database"]) and not follows
    units = [("database-full", "carafe-backup-full.service")] * has_database
    if (backup_server.UNITS / f"carafe-backup-files-{owner}.service").exists():
        units.append((f"files-{owner}", f"carafe-backup-files-{owner}.service"))
    if copy := setup.get("copy"):
        whats = ["copy"]
        if backup_shared.fails_over(setup):
            whats = ["copy"] * any(backup_server.UNITS.glob("carafe-backup-files-*.service"))
            whats += ["copy-database"] * has_database
        places = [((backup_state.read(x) or {}).get("details") or {}).get("place") for x in whats]
        if any(x != copy["repository"] for x in places):
            units.append(("copy", "carafe-backup-copy.service"))
    # The copy waits for the others, and is no unit at work until then.
    begun = ask("systemctl", "list-jobs", "--plain", "--no-legend").stdout.split()
    return [
        (what, unit)
        for what, unit in units
        if (is_new or what == "copy" or backup_state.read(what) is None) and unit not in begun
    ]


def run_one(module: Module) -> dict:
    """Begin a job's unit, or join the one that is at work, and tell what came out of it."""
    name, check = module.params["job"], module.check_mode
    unit = f"carafe-backup-{name}.service"
    what = name if name in ("drill", "copy") or name.startswith("files-") else f"database-{name}"
    setup = backup_repository.setup()
    if backup_shared.fails_over(setup) and name in ("drill", "copy"):
        what = f"{name}-database"
    if not (backup_server.UNITS / unit).exists():
        raise Failure(
            f"This server has no {unit}. Set backup_repository in group_vars, and run site."
        )
    if backup_shared.elsewhere(setup, what):
        said = f"{what}: another server of the cluster does that at this moment"
        return {"said": said, **report([])}
    if check:
        return report([f"start {unit}"])
    before = (backup_state.read(what) or {}).get("ended")
    ask("systemctl", "start", unit)
    entry = backup_state.read(what)
    if entry is None or entry["ended"] == before:
        raise Failure(f"{unit} has left no word. See journalctl -u {unit}")
    if entry["result"] != "ok":
        raise Failure(f"{what}: {entry['message']}")
    took = entry["ended"] - entry["began"]
    said = f"{what}: {entry['message']}, in {took:.0f} s"
    return {"said": said, "entry": entry, **report([said])}


def point(module: Module) -> dict:
    name = module.params["point"]
    if not module.check_mode:
        try:
            # Of servers that take each other's place, all are asked.
            if not backup_shared.leads(backup_repository.setup()):
                return {"point": "", **report([])}
            backup_jobs.point(name)
        except Failure as failure:
            raise Failure(f"The restore point {name} could not be made: {failure}") from None
    return {"point": name, **report([f"make the restore point {name}"])}


def remove(module: Module) -> dict:
    owner, check, folder = module.params["owner"], module.check_mode, backup_server.CLAIMS
    if claims.stored(folder, owner) is None:
        return report([])
    with claims.locked(folder, check):
        everybody = claims.read(folder, owner, None)
        removed = removal.Removal(check)
        if everybody:
            removed.units([f"carafe-backup-files-{owner}.*"])
            states = (f"files-{owner}", f"restore-{owner}", f"restoring-{owner}")
            if not check:
                backup_recover.forget_begun(owner, everything=True)
            removed.paths(
                [
                    str(backup_repository.FOLDER / "apps" / f"{owner}.json"),
                    *(str(backup_state.path_of(x)) for x in states),
                ]
            )
            setup = backup_server.agreed(backup_repository.setup(), everybody)
            items = backup_server.composed(backup_server.jobs(everybody), setup)
            stop(backup_server.gone([x.path.name for x in items]), check)
            units = backup_server.gone([x.path.name for x in items])
            left = FileSet([*items, *units, *backup_server.unused(setup)], check)
            left.write()
            removed.changes += left.changes
        else:
            forget_markers(check)
            removed.units(["carafe-backup-*"])
            removed.paths(
                [
                    str(backup_repository.FOLDER),
                    *map(str, Path("/etc/pgbackrest").glob("stanza-*")),
                    str(backup_repository.PGBACKREST),
                    str(backup_repository.READING),
                    str(programs.FOLDER / "backup"),
                    str(backup_state.STATE),
                    "/var/cache/carafe-backup",
                ]
            )
        if claims.claim(folder, owner, None, check):
            removed.changes.append(f"remove {folder / owner}.json")
    return report(removed.changes)


def forget_markers(check: bool) -> None:
    """Take the rows of the drill out of PostgreSQL, as far as it is there."""
    if check:
        return
    try:
        setup = backup_repository.setup()
        if setup["database"]:
            query = "SET client_min_messages = error; DROP SCHEMA IF EXISTS carafe_backup CASCADE"
            backup_repository.psql(setup, query)
    except (CommandFailed, Failure, KeyError):
        return


WORK = dict(zip(STAGES, (configure, activate, run_one, point, remove), strict=True))


def main() -> None:
    module = Module(ARGUMENTS)
    module.answer(WORK[module.params["stage"]], module)


if __name__ == "__main__":
    main()
