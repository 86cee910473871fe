"""Where a server's backups lie, and how pgBackRest and restic are told.

A place is one word: a folder, ``s3://bucket/prefix``, or ``sftp://user@host[:port]/path``, which is
for files only. Below it pgBackRest has ``pgbackrest``, and each app's files are in ``files/<app>``,
a repository of restic's.

Used by modules, and by programs that run without Ansible.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import files, postgresql_pinned
from .commands import CommandFailed, Failure

FOLDER = Path("/etc/carafe/backup")
SETUP = FOLDER / "setup.json"  # what the jobs need to know, with the secrets: root's alone
PGBACKREST = Path("/etc/pgbackrest/pgbackrest.conf")
# Named after the machine: a copy of the disk archives nothing, as long as it has another number.
STANZA = "/etc/pgbackrest/stanza-{machine}"
MACHINE = Path("/etc/machine-id")
# By which a copy of the repository is read, for as long as the server is up.
READING = Path("/run/carafe-backup-reading.conf")
HEADER = "# Managed by Ansible, role backup. What is changed here by hand is lost.\n"
SOCKET = "/run/postgresql"
SFTP = re.compile(r"sftp://([^@/:]+)@(\[[0-9a-fA-F:]+\]|[^@/:]+)(?::(\d+))?(/.*[^/])")
S3 = re.compile(r"s3://([a-z0-9][a-z0-9.-]+)((?:/[^/]+)*)")
AMAZON = ".amazonaws.com"
# What they end with where it is no mere failure, in words of the user's.
RESTIC = {
    10: "there is no repository yet",
    11: "another restic has locked the repository",
    12: "backup_key does not open the repository of the files",
}


@dataclasses.dataclass
class Place:
    """A place for backups, in its parts."""

    kind: str  # folder, sftp or s3
    path: str
    user: str = ""
    host: str = ""  # or the bucket
    port: int = 22


def parse(text: str) -> Place:
    """Return the parts of a place; raise ValueError where it is none."""
    if text.startswith("/") and len(Path(text).parts) > 1 and ".." not in Path(text).parts:
        return Place("folder", text.rstrip("/"))
    if found := SFTP.fullmatch(text):
        user, host, port, path = found.groups()
        return Place("sftp", path, user, host.strip("[]"), int(port or 22))
    if found := S3.fullmatch(text.rstrip("/")):
        return Place("s3", found[2] or "/", host=found[1])
    raise ValueError(text)


def own_stanza() -> str:
    """Return the stanza that this machine archives into, and no copy of its disk; '' for none."""
    machine = (files.read(MACHINE) or "").strip()
    return (files.read(Path(STANZA.format(machine=machine))) or "").strip()


def is_mount(path: str) -> bool:
    """Tell whether a folder is on another file system than the root."""
    above = Path(path)
    while not above.exists():
        above = above.parent
    return above.stat().st_dev != Path("/").stat().st_dev


def setup() -> dict[str, Any]:
    """Return what the role has left for the jobs."""
    try:
        return json.loads(files.read(SETUP) or "")
    except ValueError:
        raise Failure(
            f"{SETUP} is not there or cannot be read. Run site with --tags backup."
        ) from None


def check_place(setup: Mapping[str, Any]) -> None:
    """Refuse to fill the root's file system where a mount is meant and missing."""
    place = parse(setup["repository"])
    if place.kind == "folder" and setup["is_mount"] and not is_mount(place.path):
        raise Failure(f"{place.path} is not mounted. See findmnt and /etc/fstab, and mount it.")


def of_copy(setup: Mapping[str, Any]) -> dict[str, Any]:
    """Return the setup by which the second copy of the repository is read and written."""
    if not setup.get("copy"):
        raise Failure(
            "There is no copy of this server's backups. Set backup_copy_repository in group_vars,"
            " see docs/how-to/backups.md, and run site with --tags backup."
        )
    return {**setup, **setup["copy"], "ssh": "copy"}


def reading(setup: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the setup by which a restore reads: of the repository, its copy, or a folder."""
    if not where:
        return dict(setup)
    if where == "copy":
        found = of_copy(setup)
    elif where.startswith("/") and Path(where, "files").is_dir():
        found = {**setup, "repository": where, "is_mount": False}
    else:
        raise Failure(
            f"restore_place is {where!r}, which is neither copy nor a folder of this server's with"
            " a copy in it. Without it, backups come from backup_repository."
        )
    if parse(found["repository"]).kind == "sftp" and found["database"]:
        raise Failure(
            f"pgBackRest of Debian does not read {found['repository']}. Bring it to a folder with"
            " room for it: sudo python3 -I /usr/local/lib/carafe/backup fetch /mnt/copy; then run"
            " the same command with -e restore_place=/mnt/copy"
        )
    if found["database"]:
        conf = text(found, found["stanza"], found["data"], found["port"])
        files.write(READING, conf, 0o640, "root", "postgres")
        found["config"] = str(READING)
    return found


def ssh_folder(setup: Mapping[str, Any]) -> Path:
    return FOLDER / setup.get("ssh", "root")


def below(place: Place, *names: str) -> str:
    return "/".join(["" if place.path == "/" else place.path, *names])


def settings(setup: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Return the settings of pgBackRest's section [global]."""
    place = parse(setup["repository"])
    found: dict[str, Any] = {
        "repo1-path": below(place, "pgbackrest"),
        "repo1-cipher-type": "aes-256-cbc",
        "repo1-cipher-pass": setup["key"],
        "repo1-retention-full-type": "time",
        "repo1-retention-full": setup["retention_days"],
        "repo1-bundle": "y",
        "compress-type": "zst",
        "start-fast": "y",
        "process-max": 1,
        "log-level-console": "warn",
        "log-level-file": "off",
        # Not in /tmp, where anybody could make it first.
        "lock-path": "/run/postgresql/pgbackrest",
        "spool-path": "/var/spool/pgbackrest",
    }
    if setup["blocks"]:
        found["repo1-block"] = "y"
    if place.kind == "s3":
        host, _, port = setup["s3"]["endpoint"].partition(":")
        found |= {
            "repo1-type": "s3",
            "repo1-s3-bucket": place.host,
            "repo1-s3-endpoint": host,
            "repo1-s3-region": setup["s3"]["region"],
            "repo1-s3-key": setup["s3"]["key"],
            "repo1-s3-key-secret": setup["s3"]["secret"],
            "repo1-s3-uri-style": "host" if host.endswith(AMAZON) else "path",
        }
        found |= {"repo1-storage-port": port} if port else {}
        found |= {"repo1-storage-ca-file": setup["s3"]["ca"]} if setup["s3"]["ca"] else {}
    return found | more


def text(setup: Mapping[str, Any], stanza: str, data: str | Path, port: int, **more: Any) -> str:
    """Return pgBackRest's configuration for one cluster."""
    lines = [HEADER, "[global]\n"]
    lines += [f"{name}={value}\n" for name, value in settings(setup, **more).items()]
    lines += [f"\n[{stanza}]\n", f"pg1-path={data}\n", f"pg1-port={port}\n"]
    lines += ["pg1-socket-path=/run/postgresql\n"]
    return "".join(lines)


def as_postgres(
    *command: str | Path, check: bool = True, text: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program as the unix user postgres, who owns the cluster and its repository.

    A text is its standard input: what has a password in it is no argument, which all could read.
    """
    who: dict[str, Any] = {}
    if os.geteuid() == 0:
        who = {"user": "postgres", "group": "postgres", "extra_groups": []}
    done = subprocess.run(
        [str(word) for word in command],
        **{"capture_output": True, "text": True, "errors": "replace", "cwd": "/"},
        **{"check": False, "input": text, **who},
        env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", **environment},
    )
    if check and done.returncode:
        raise CommandFailed(f"{Path(command[0]).name}: {said(done)}")
    return done


def said(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a program that failed has said, on one line, without what pgBackRest puts first.

    It says at every error how its options are spelled, and the cause at the beginning.
    """
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    lines = [re.sub(r"^[\d :.-]+P\d\d +", "", line) for line in lines]
    errors = [line for line in lines if "error:" in line.lower()] or lines[-3:]
    return " ".join(errors)[:600] or f"exit status {done.returncode}"


def configured(setup: Mapping[str, Any]) -> tuple[str, ...]:
    """Return pgBackRest's words for another configuration than that of this server's backups."""
    return (f"--config={setup['config']}",) if "config" in setup else ()


def pgbackrest(
    setup: Mapping[str, Any], command: str, *words: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run pgBackRest for this server's stanza."""
    words = (f"--stanza={setup['stanza']}", *words)
    return as_postgres("pgbackrest", *configured(setup), *words, command, check=check)


def psql(
    setup: Mapping[str, Any], query: str, database: str = "postgres", socket: str = SOCKET
) -> str:
    """Ask PostgreSQL as its superuser, with no name of anybody's in the way."""
    options = postgresql_pinned.options(int(setup["version"]))
    words = ["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database, "-f", "-"]
    place = ["-p", str(setup["port"]), "-h", socket]
    return as_postgres("psql", *place, *words, text=query, PGOPTIONS=options).stdout.strip()


def info(setup: Mapping[str, Any]) -> dict[str, Any]:
    """Return what pgBackRest knows of the stanza; it ends with 0 whatever is wrong."""
    said = pgbackrest(setup, "info", "--output=json").stdout
    # It puts the lines of an error into a text as they are.
    found = json.loads(said or "[]", strict=False)
    mine = next((x for x in found if x["name"] == setup["stanza"]), None)
    if mine is None:
        raise Failure(
            f"{setup['repository']} has nothing of {setup['stanza']} yet. Run site with --tags"
            " backup, and see journalctl -u carafe-backup-full."
        )
    status = mine["status"]
    # 2 is: there is no backup yet.
    if status["code"] not in (0, 2):
        raise Failure(
            f"The repository cannot be read: {status['message'][:200]}. Mostly backup_key is not"
            " the one that it was made with: put the former one back in the vault, and run site"
            " with --tags backup."
        )
    return mine


def restic_url(setup: Mapping[str, Any], app: str) -> str:
    place = parse(setup["repository"])
    path = below(place, "files", app)
    if place.kind == "s3":
        return f"s3:https://{setup['s3']['endpoint']}/{place.host}{path}"
    if place.kind == "sftp":
        return f"sftp://{place.user}@{place.host}:{place.port}/{path}"
    return path


def restic(
    setup: Mapping[str, Any], app: str, *words: str | Path, check: bool = True, folder: str = "/"
) -> subprocess.CompletedProcess[str]:
    """Run restic on the repository of an app's files, as root."""
    place, options = parse(setup["repository"]), []
    # Of another environment: nothing is left there, nor here.
    options += ["--no-lock", "--no-cache"] if setup.get("read_only") else []
    environment = {
        "PATH": os.defpath,
        "LC_ALL": "C.UTF-8",
        "HOME": "/root",
        "RESTIC_PASSWORD": setup["key"],
        "RESTIC_REPOSITORY": restic_url(setup, app),
        "RESTIC_CACHE_DIR": "/var/cache/carafe-backup",
        "GOMAXPROCS": "1",
    }
    if place.kind == "s3":
        style = "dns" if AMAZON in setup["s3"]["endpoint"] else "path"
        options += ["-o", f"s3.bucket-lookup={style}", "-o", f"s3.region={setup['s3']['region']}"]
        options += ["--cacert", setup["s3"]["ca"]] if setup["s3"]["ca"] else []
        environment["AWS_ACCESS_KEY_ID"] = setup["s3"]["key"]
        environment["AWS_SECRET_ACCESS_KEY"] = setup["s3"]["secret"]
    elif place.kind == "sftp":
        own = ssh_folder(setup)
        ssh = f"ssh -p {place.port} -i {own}/id -o UserKnownHostsFile={own}/known_hosts"
        ssh += f" -o StrictHostKeyChecking=yes -o BatchMode=yes {place.user}@{place.host} -s sftp"
        options += ["-o", f"sftp.command={ssh}"]
    done = subprocess.run(
        ["restic", *options, *map(str, words)],
        **{"capture_output": True, "text": True, "errors": "replace", "cwd": folder},
        **{"check": False, "stdin": subprocess.DEVNULL, "env": environment},
    )
    if check and done.returncode:
        why = RESTIC.get(done.returncode, "")
        raise CommandFailed(f"restic {words[0]}: {why + '. ' if why else ''}{said(done)}")
    return done
