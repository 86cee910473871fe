"""A second copy of the repository, in another place, by a timer.

The repository is encrypted already, so its files are copied as they are, by rclone. Of a file that
is never written anew the copy keeps what it has, whatever becomes of it in the repository; what is
gone from there stays in the copy for as long as backups are kept. What leads to the files, such as
the list of backups, follows them, as it was when they were listed: whenever the copy is cut short,
it can be restored.

rclone ends with 0 where a file that it was given is not there, so what is in the copy is looked at.

Used by programs that run without Ansible.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import random
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from . import backup_files, backup_jobs, backup_repository, backup_shared, backup_state, files
from .backup_jobs import Lost, alone, size
from .backup_repository import below
from .backup_target import shown
from .commands import Failure
from .words import one_line

DAY = 86400
LEDGER = "copying"
TRIES = 3  # for a repository out of which something goes while it is copied
CHANGES = (
    "The repository has changed each time that it was listed. It is copied the next time, or now:"
    " systemctl start carafe-backup-copy"
)
SAMPLE, BYTES = 20, 24 << 20  # files that are compared each time, and bytes of them all
# What restic's files are called: after their content. A lock is of who is at work there.
RESTIC = re.compile(r"config|keys/[0-9a-f]{64}|(?:data/..|index|snapshots)/[0-9a-f]{64}")
LEADING = ("index/", "snapshots/")
# pgBackRest's names end with this while they are written.
UNDONE = ".pgbackrest.tmp"
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
OPTIONS = (
    *("--retries=1", "--contimeout=30s", "--timeout=5m", "--stats=0", "--log-level=ERROR"),
    *("--transfers=2", "--checkers=4", "--use-mmap", "--buffer-size=4M"),
    *("--s3-upload-concurrency=2",),
)
ABSENT = "directory not found"
WHEN = re.compile(r"^[\d/]+ [\d:]+ (?:[A-Z]+ *: )?")
# What rclone says, and whose fault it is.
MEANINGS = (
    (r"no space left|quota", "See whether it is full (df -h), and make room there"),
    (
        r"SignatureDoesNotMatch|InvalidAccessKeyId|AccessDenied|Forbidden",
        "See backup_copy_s3_key and backup_copy_s3_secret in group_vars",
    ),
    (r"NoSuchBucket", "Make the bucket that backup_copy_repository names"),
    (r"knownhosts", "See backup_copy_ssh_known_hosts in group_vars: all that ssh-keyscan prints"),
    (r"unable to authenticate", "See backup_copy_ssh_key in group_vars, and authorized_keys there"),
    (r"x509|certificate", "See backup_copy_s3_ca in group_vars"),
    (r"no such host|connection refused|i/o timeout", "See whether it can be reached from here"),
)


@dataclasses.dataclass
class Seen:
    """What a part of the repository has at one moment."""

    sizes: dict[str, int]  # of files that are never written anew
    waves: list[list[str]]  # the same in the order in which they may be there
    heads: dict[str, bytes]  # what is written anew, and leads to the rest
    units: dict[str, float]  # backups or snapshots, each with its moment
    newest: float
    is_whole: bool


class Side:
    """One of the two places, as rclone is told."""

    def __init__(self, name: str, setup: Mapping[str, Any]) -> None:
        self.name, self.setup = name, setup
        self.place = backup_repository.parse(setup["repository"])

    def at(self, *names: str) -> str:
        path = below(self.place, *names)
        if self.place.kind == "folder":
            return path
        return f"{self.name}:{self.place.host * (self.place.kind == 's3')}{path}"

    def environment(self) -> dict[str, str]:
        """Return the place in variables: what is an argument, all could read."""
        found: dict[str, Any] = {}
        if self.place.kind == "s3":
            s3 = self.setup["s3"]
            is_amazon = backup_repository.AMAZON in s3["endpoint"]
            found = {
                **{"type": "s3", "provider": "AWS" if is_amazon else "Other"},
                **{"endpoint": f"https://{s3['endpoint']}", "region": s3["region"]},
                **{"access_key_id": s3["key"], "secret_access_key": s3["secret"]},
                **{"force_path_style": str(not is_amazon).lower(), "no_check_bucket": "true"},
            }
        elif self.place.kind == "sftp":
            folder = backup_repository.ssh_folder(self.setup)
            found = {
                **{"type": "sftp", "host": self.place.host, "port": self.place.port},
                **{"user": self.place.user, "key_file": folder / "id"},
                **{"known_hosts_file": folder / "known_hosts", "disable_hashcheck": "true"},
                # Its key may do nothing else there.
                **{"md5sum_command": "none", "sha1sum_command": "none"},
            }
        prefix = f"RCLONE_CONFIG_{self.name.upper()}_"
        return {f"{prefix}{key.upper()}": str(value) for key, value in found.items()}


class Places:
    """The repository and its copy."""

    def __init__(self, setup: Mapping[str, Any], work: Path) -> None:
        self.setup, self.work = setup, work
        self.source = Side("source", setup)
        self.target = Side("target", backup_repository.of_copy(setup))
        # rclone takes one file, and then knows no others.
        own = [x.setup["s3"]["ca"] for x in (self.source, self.target) if x.place.kind == "s3"]
        self.authorities = work / "authorities"
        if any(own):
            texts = [files.read(Path(x)) or "" for x in (AUTHORITIES, *filter(None, own))]
            self.authorities.write_text("\n".join(texts))

    def rclone(
        self, *words: str, paths: Iterable[str] | None = None, base: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run rclone, on these paths alone where there are some."""
        who: dict[str, Any] = {}
        kinds = (self.source.place.kind, self.target.place.kind)
        if base == "pgbackrest" and kinds in (("folder", "folder"), ("s3", "folder")):
            # In a folder they belong to whom pgBackRest runs as, who reads no key of ssh's.
            who = {"user": "postgres", "group": "postgres", "extra_groups": []}
        more = [*OPTIONS]
        if self.authorities.exists():
            more.append(f"--ca-cert={self.authorities}")
        if paths is not None:
            more.append("--files-from-raw=-")
        return subprocess.run(
            ["rclone", *more, *words],
            **{"capture_output": True, "text": True, "errors": "replace", "cwd": "/"},
            **{"check": False, "umask": 0o027, **who},
            input="".join(f"{x}\n" for x in paths or ()),
            env={
                **{"PATH": os.defpath, "LC_ALL": "C.UTF-8", "RCLONE_CONFIG": os.devnull},
                **self.source.environment(),
                **self.target.environment(),
            },
        )

    def list(self, side: Side, *names: str) -> dict[str, int]:
        """Return the files of a folder with their sizes; none where it is not there."""
        words = ("lsjson", "-R", "--files-only", "--no-modtime", "--no-mimetype", side.at(*names))
        for _ in range(TRIES):
            done = self.rclone(*words, base=names[0])
            if not done.returncode:
                return {x["Path"]: x["Size"] for x in json.loads(done.stdout)}
            if ABSENT not in done.stderr:
                break
            # It is not there, unless it is one below it that has gone meanwhile.
            if not done.stdout.strip("[]\n"):
                return {}
        raise Failure(f"{side.setup['repository']} cannot be listed: {explained(done.stderr)}")

    def read(self, side: Side, base: str, paths: Iterable[str]) -> dict[str, bytes]:
        """Return what small files hold, as far as they are there."""
        paths = [*paths]
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            Path(folder).chmod(0o777)
            done = self.rclone("copy", side.at(base), folder, paths=paths, base=base)
            if done.returncode and ABSENT not in done.stderr:
                place = side.setup["repository"]
                raise Failure(f"{place} cannot be read: {explained(done.stderr)}")
            there = {x: Path(folder, x) for x in paths}
            return {x: path.read_bytes() for x, path in there.items() if path.is_file()}

    def send(self, base: str, paths: Iterable[str]) -> str:
        """Copy files that are not there; return what rclone says of it."""
        words = ("--no-traverse", "--no-check-dest", self.source.at(base), self.target.at(base))
        return self.rclone("copy", *words, paths=paths, base=base).stderr

    def write(self, base: str, heads: Mapping[str, bytes], moment: str) -> None:
        """Write what is written anew, and keep what was there."""
        there = self.read(self.target, base, heads)
        due = {x: text for x, text in heads.items() if there.get(x) != text}
        if not due:
            return
        # Each has a twin, so that one of the two is whole whenever this is cut short.
        copies = [x for x in due if x.endswith(".copy")]
        for twins in (copies, [x for x in due if x not in copies]):
            with tempfile.TemporaryDirectory(dir=self.work) as folder:
                for path in twins:
                    Path(folder, path).parent.mkdir(parents=True, exist_ok=True)
                    Path(folder, path).write_bytes(due[path])
                if twins:
                    for path in (Path(folder), *Path(folder).rglob("*")):
                        path.chmod(0o755)
                    kept = f"--backup-dir={self.target.at('former', moment, base)}"
                    words = ("--ignore-times", kept, folder, self.target.at(base))
                    self.rclone("copy", *words, paths=twins, base=base)
        left = self.read(self.target, base, heads)
        if wrong := sorted(x for x, text in heads.items() if left.get(x) != text):
            raise Failure(
                f"{self.target.setup['repository']} does not keep {wrong[0]} as it was written."
                " See whether it is full, and may be written"
            )

    def compare(self, base: str, paths: Iterable[str]) -> list[str]:
        """Return which files have another content in the copy."""
        paths = [*paths]
        if not paths:
            return []
        words = ("--download", "--one-way", "--combined=-")
        words += (self.source.at(base), self.target.at(base))
        done = self.rclone("check", *words, paths=paths, base=base)
        found = {x[2:]: x[0] for x in done.stdout.splitlines()}
        if not found:
            raise Failure(f"The copy cannot be compared: {explained(done.stderr)}")
        # One that is gone from the repository since is missing, and no other.
        unread = {x for x, how in found.items() if how == "!"}
        if unread and (left := sorted(unread & self.list(self.source, base).keys())):
            raise Failure(f"{left[0]} cannot be compared with its copy: {explained(done.stderr)}")
        return sorted(x for x, how in found.items() if how == "*")

    def remove(self, base: str, paths: Iterable[str]) -> None:
        self.rclone("delete", self.target.at(base), paths=paths, base=base)


def explained(text: str) -> str:
    """Return what rclone says, and what to do about it."""
    lines = [WHEN.sub("", x) for x in text.splitlines() if x.strip()]
    said = one_line("; ".join(dict.fromkeys(lines[:3])) or "it does not say why", 400)
    then = next((then for words, then in MEANINGS if re.search(words, text, re.IGNORECASE)), "")
    return f"{said}. {then}" if then else said


# What there is to copy.


def database(places: Places) -> Seen:
    """Look at the cluster's place in the repository; it is the same before and after the look."""
    setup, stanza = places.setup, places.setup["stanza"]
    for _ in range(TRIES):
        found = lists(places, stanza)
        known = backup_jobs.inspect(dict(setup), whole=False)
        backups = backup_repository.info(setup)["backup"]
        labels = {x["label"]: x["timestamp"]["stop"] for x in backups}
        sizes = {
            f"archive/{stanza}/{path}": count
            for path, count in places.list(places.source, "pgbackrest", "archive", stanza).items()
            if not path.startswith("archive.info")
        }
        for path, count in places.list(places.source, "pgbackrest", "backup", stanza).items():
            # What a backup has brought that is not done, or was cut short, is none yet.
            if path.partition("/")[0] in (*labels, "backup.history"):
                sizes[f"backup/{stanza}/{path}"] = count
        sizes = {x: count for x, count in sizes.items() if not x.endswith(UNDONE)}
        if found == lists(places, stanza):
            is_whole = not (known["lost"] or known["holes"])
            units = {f"{stanza}/{label}": float(at) for label, at in labels.items()}
            return Seen(sizes, [[*sizes]], found, units, known["newest"], is_whole)
    raise Failure(CHANGES)


def lists(places: Places, stanza: str) -> dict[str, bytes]:
    paths = [
        f"{kind}/{stanza}/{kind}.info{end}"
        for kind in ("archive", "backup")
        for end in ("", ".copy")
    ]
    found = places.read(places.source, "pgbackrest", paths)
    if len(found) < len(paths):
        raise Failure(
            f"{places.setup['repository']} has no {next(x for x in paths if x not in found)}, so"
            " the copy is left as it is. See systemctl start carafe-backup-full"
        )
    return found


def app_files(places: Places, app: str) -> Seen:
    """Look at the repository of an app's files, which is the same before and after the look."""
    base = f"files/{app}"
    for _ in range(TRIES):
        names = leading(places, base)
        every = places.list(places.source, "files", app)
        # What has come since leads to files that were not listed.
        sizes = {
            x: count
            for x, count in every.items()
            if RESTIC.fullmatch(x) and (x in names or not x.startswith(LEADING))
        }
        if "config" not in sizes or not any(x.startswith("snapshots/") for x in names):
            raise Failure(
                f"{places.setup['repository']} has no snapshot of {app}'s files, so the copy is"
                f" left as it is. See systemctl start carafe-backup-files-{app}"
            )
        if names <= sizes.keys() and names <= leading(places, base):
            break
    else:
        raise Failure(CHANGES)
    same_repository(places, base)
    units = {
        f"{app}/{x['id']}": x["at"]
        for x in backup_files.snapshots(dict(places.setup), app, anybody=True)
        if f"snapshots/{x['id']}" in sizes
    }
    first = [x for x in sizes if x.startswith("data/")]
    last = [x for x in sizes if x.startswith("snapshots/")]
    between = sorted(sizes.keys() - {*first, *last})
    newest = max(units.values(), default=0)
    return Seen(sizes, [first, between, last], {}, units, newest, bool(units))


def same_repository(places: Places, base: str) -> None:
    """Refuse to mix two repositories: one that was made anew has another key inside."""
    there = places.read(places.target, base, ["config"])
    if there and there != places.read(places.source, base, ["config"]):
        raise Failure(
            f"{base} in {places.setup['repository']} was made anew since it was copied, so the copy"
            " is left as it is. If that was meant, move the folder out of the way in the copy"
        )


def leading(places: Places, base: str) -> set[str]:
    """Return the names of what leads to restic's data, which nothing else has changed."""
    return {
        f"{kind}/{name}"
        for kind in (x.rstrip("/") for x in LEADING)
        for name in places.list(places.source, base, kind)
        if RESTIC.fullmatch(f"{kind}/{name}")
    }


# The copy.


@dataclasses.dataclass
class Part:
    """What is copied by itself: a cluster, or the files of an app."""

    name: str
    base: str  # folder of the repository
    scope: tuple[str, ...]  # what of it is this server's
    prefix: str  # of the names of its units
    look: Callable[[Places], Seen]


def parts(setup: Mapping[str, Any]) -> Iterator[Part]:
    if setup["database"]:
        stanza = setup["stanza"]
        scope = (f"archive/{stanza}/", f"backup/{stanza}/")
        yield Part("the database", "pgbackrest", scope, f"{stanza}/", database)
    for path in sorted((backup_repository.FOLDER / "apps").glob("*.json")):
        told, app = backup_files.app_of(path.stem), path.stem
        if told["paths"] or told["more_paths"]:
            look = functools.partial(app_files, app=app)
            yield Part(f"{app}'s files", f"files/{app}", ("",), f"{app}/", look)


class Ledger:
    """What is known of the copy: what was gone from the repository when, and what is on its way."""

    def __init__(self, place: str) -> None:
        known: dict[str, Any] = {}
        with contextlib.suppress(ValueError):
            known = json.loads(files.read(backup_state.path_of(LEDGER)) or "{}")
        if known.get("place") != place:
            known = {}
        self.place = place
        self.gone: dict[str, float] = known.get("gone", {})
        self.units: dict[str, float] = known.get("units", {})
        self.sending: list[str] = known.get("sending", [])

    def save(self) -> None:
        text = json.dumps(vars(self)) + "\n"
        who = {"owner": os.geteuid(), "group": os.getegid()}
        files.write(backup_state.path_of(LEDGER), text, 0o640, **who)

    def missed(self, prefix: str, units: Mapping[str, float], since: float) -> list[str]:
        """Note what there is; return what is gone from the repository, and was to be kept."""
        mine = {x: at for x, at in self.units.items() if x.startswith(prefix)}
        lost = {x: at for x, at in mine.items() if x not in units and at > since}
        others = {x: at for x, at in self.units.items() if x not in mine}
        self.units = others | lost | dict(units)
        return sorted(lost, key=lost.__getitem__)

    def due(self, there: Iterable[str], wanted: Iterable[str], prefix: str, now: float) -> None:
        """Note since when what the copy has is gone from the repository."""
        kept, there = set(wanted), set(there)
        stays = {x: at for x, at in self.gone.items() if not x.startswith(prefix)}
        found = {f"{prefix}{x}" for x in there - kept}
        self.gone = stays | {x: self.gone.get(x, now) for x in sorted(found)}


def bring(places: Places, part: Part, ledger: Ledger) -> tuple[Seen, int, list[str]]:
    """Copy what the copy has not; return what there is, its new bytes, and what is damaged."""
    base, said = part.base, ""
    for _ in range(TRIES):
        seen = part.look(places)
        there = places.list(places.target, base)
        # One that was cut short is its beginning.
        on_its_way = {x for x in ledger.sending if x.startswith(f"{base}/")}
        if base == "pgbackrest" and backup_shared.fails_over(places.setup):
            # Or that of a server which led before, and is gone with what it had noted.
            on_its_way |= {f"{base}/{x}" for x, y in seen.sizes.items() if there.get(x, y) < y}
        damaged = [
            x
            for x, count in seen.sizes.items()
            if there.get(x, count) != count and f"{base}/{x}" not in on_its_way
        ]
        missing = [x for x, y in seen.sizes.items() if there.get(x) != y and x not in damaged]
        ledger.sending = sorted({*ledger.sending, *(f"{base}/{x}" for x in missing)})
        ledger.save()
        left: list[str] = []
        for wave in seen.waves:
            if due := sorted({*wave} & {*missing}):
                said = places.send(base, due)
                there = places.list(places.target, base)
                if left := [x for x in due if there.get(x) != seen.sizes[x]]:
                    break
        if not left:
            break
        if set(left) <= places.list(places.source, base).keys():
            raise Failure(f"{left[0]} and {len(left) - 1} more do not arrive: {explained(said)}")
    else:
        raise Failure(CHANGES)
    ledger.sending = [x for x in ledger.sending if not x.startswith(f"{base}/")]
    ledger.save()
    return seen, sum(seen.sizes[x] for x in missing), damaged


def sample(seen: Seen) -> list[str]:
    """Return some files by chance, as many as are read in a moment."""
    every, chosen, left = [*seen.sizes], [], BYTES
    random.SystemRandom().shuffle(every)
    for path in every:
        if len(chosen) < SAMPLE and seen.sizes[path] <= left:
            chosen.append(path)
            left -= seen.sizes[path]
    return chosen


def tidy(places: Places, part: Part, seen: Seen, ledger: Ledger, now: float) -> None:
    """Let go of what was gone from the repository for as long as backups are kept."""
    base, prefix = part.base, f"{part.base}/"
    before = now - places.setup["retention_days"] * DAY
    there = {x for x in places.list(places.target, base) if x.startswith(part.scope)}
    ledger.due(there, {*seen.sizes, *seen.heads}, prefix, now)
    # From what leads to the rest on, so that nothing leads to what is gone.
    old = [x for x in there if ledger.gone.get(f"{prefix}{x}", now) < before]
    for kind in ("snapshots/", "index/", ""):
        if some := [x for x in old if x.startswith(kind)]:
            places.remove(base, some)
            old = [x for x in old if x not in some]
    if seen.heads:
        stamp = time.strftime("%Y%m%dt%H%M%S", time.gmtime(before))
        former = [
            x
            for x in places.list(places.target, "former")
            if x.partition("/")[0] < stamp
            and x.partition("/")[2] in {f"{prefix}{y}" for y in seen.heads}
        ]
        if former:
            places.remove("former", former)


def readable(places: Places, part: Part, seen: Seen) -> None:
    """Have the tool itself read the copy, with the key, and name each backup that is there."""
    setup = places.setup
    if part.base != "pgbackrest":
        app = part.base.partition("/")[2]
        found = backup_files.snapshots(backup_repository.of_copy(setup), app, anybody=True)
        there = {f"{app}/{x['id']}" for x in found}
    elif places.target.place.kind == "sftp":
        return
    else:
        read = backup_repository.reading(setup, "copy")
        there = {f"{part.prefix}{x['label']}" for x in backup_repository.info(read)["backup"]}
    if missing := sorted(seen.units.keys() - there):
        raise Failure(f"The copy does not know {missing[0]}, whose files it has")


def one(places: Places, part: Part, ledger: Ledger, now: float) -> dict[str, Any]:
    """Copy a part, and look at what is in the copy."""
    seen, count, damaged = bring(places, part, ledger)
    days = places.setup["retention_days"]
    missed = ledger.missed(part.prefix, seen.units, now - days * DAY)
    if seen.heads and not missed:
        places.write(part.base, seen.heads, time.strftime("%Y%m%dt%H%M%S", time.gmtime(now)))
    damaged += places.compare(part.base, sample(seen))
    if damaged:
        raise Failure(
            f"{part.base}/{damaged[0]}{' and others' * (len(damaged) > 1)} is not what it was when"
            " it was copied, or the copy has changed: one of the two disks is damaged. The copy"
            " keeps what it has. See what the drill says of the repository: systemctl start"
            " carafe-backup-drill. If the repository is whole, remove the file in the copy"
        )
    if missed:
        # A list of backups without it would replace the one by which it can be restored.
        raise Failure(
            f"{places.setup['repository']} has lost {missed[0]}{' and others' * (len(missed) > 1)},"
            f" which was to be kept for {days} days. The copy keeps it. See who removed it; to"
            " bring something back: the playbook restore, with -e restore_place=copy. If it was"
            f" meant, have the copy follow: rm {backup_state.path_of(LEDGER)}"
        )
    readable(places, part, seen)
    if seen.is_whole:
        tidy(places, part, seen, ledger, now)
    return {"bytes": count, "files": len(seen.sizes), "newest": seen.newest}


def run(databases: bool = True, apps: bool = True) -> tuple[str, dict[str, Any]]:
    """Copy all that this server stores; what fails of it keeps nothing else from being copied."""
    setup = backup_repository.setup()
    for place in (setup, backup_repository.of_copy(setup)):
        backup_repository.check_place(place)
    found, failed, said = {}, [], []
    with alone("-copy"), tempfile.TemporaryDirectory() as work:
        Path(work).chmod(0o755)
        places = Places(setup, Path(work))
        ledger = Ledger(places.target.setup["repository"])
        for part in parts(setup):
            if not (databases if part.base == "pgbackrest" else apps):
                continue
            try:
                found[part.name] = done = one(places, part, ledger, time.time())
                said.append(f"{part.name} as of {shown(done['newest'])}, {size(done['bytes'])} new")
            except Failure as failure:
                failed.append(f"{part.name}: {failure}")
            finally:
                ledger.save()
    details = {"place": places.target.setup["repository"], "parts": found}
    if failed:
        raise Lost("; ".join(failed), **details)
    return "; ".join(said) or "there is nothing to copy", details


def fetch(folder: str) -> str:
    """Bring the copy into a folder, out of which pgBackRest can read it."""
    try:
        is_folder = backup_repository.parse(folder).kind == "folder"
    except ValueError:
        is_folder = False
    if not is_folder:
        raise Failure(f"{folder} is no folder. Name one that has room for all of the copy.")
    copy = backup_repository.of_copy(backup_repository.setup())
    target = copy | {"repository": folder, "is_mount": False}
    with tempfile.TemporaryDirectory() as work:
        Path(work).chmod(0o755)
        places = Places(copy | {"copy": {**target}}, Path(work))
        every = {x: places.list(places.source, x) for x in ("pgbackrest", "files")}
        if not Path(folder).exists():
            Path(folder).mkdir(parents=True)
            # Whatever the umask is: PostgreSQL's user reads what is below it.
            Path(folder).chmod(0o755)
        due = {}
        for base, sizes in every.items():
            there = places.list(places.target, base)
            due[base] = [x for x, count in sizes.items() if there.get(x) != count]
        needed = sum(every[base][x] for base, paths in due.items() for x in paths)
        if (free := shutil.disk_usage(folder).free) < needed:
            raise Failure(f"The copy needs {size(needed)}, and {folder} has {size(free)} free.")
        for base, paths in due.items():
            below = Path(folder, base)
            below.mkdir(mode=0o750, exist_ok=True)
            if base == "pgbackrest" and every[base]:
                shutil.chown(below, "postgres", "postgres")
            said = places.send(base, paths) if paths else ""
            there = places.list(places.target, base)
            if left := [x for x in paths if there.get(x) != every[base][x]]:
                raise Failure(f"{left[0]} does not arrive: {explained(said)}")
            for path in below.rglob("*") if base == "pgbackrest" else ():
                shutil.chown(path, "postgres", "postgres")
    count, total = sum(map(len, every.values())), sum(sum(x.values()) for x in every.values())
    return f"{count} files, {size(total)}, are in {folder}"
