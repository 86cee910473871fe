"""What servers that take each other's place with the database know together of its backups.

They have one stanza. Whichever leads makes the backups; what came of each is kept in etcd, from
where the others have it, so that the next one that leads goes on with it:

``stanza``         the place of the cluster in the repository
``notes/<what>``   what the last job of a kind has left, as backup_state has it
``points``         the named restore points

Used by modules, and by programs that run without Ansible.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import backup_repository, backup_state, files, patroni
from .commands import CommandFailed, Failure
from .etcd import Etcd, place
from .peer_https import Peer, Refusal, Unanswered

PREFIX = "/carafe/backup/{scope}/"
POINTS = 100  # that are known, the newest
FOLLOWS = "SELECT pg_is_in_recovery()"


def fails_over(setup: Mapping[str, Any]) -> bool:
    return bool(setup.get("patroni")) and bool(setup["database"])


def follows(setup: Mapping[str, Any]) -> bool:
    """Tell whether another server has the lead, and with it what there is to do once for all."""
    return fails_over(setup) and backup_repository.psql(setup, FOLLOWS) == "t"


def leads(setup: Mapping[str, Any]) -> bool:
    """Tell whether this server takes writes; one whose PostgreSQL is away has given the lead up."""
    try:
        return not follows(setup)
    except CommandFailed:
        return False


class Shared:
    """What etcd keeps for all of them."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        self.told = told
        self.prefix = PREFIX.format(scope=told["scope"])
        peer = Peer(told["certificate"], told["trusted"])
        self.etcd = Etcd(peer, [place(x) for x in told["dcs"]])

    def stanza(self, name: str, ending: str, former: str, dry: bool) -> str:
        """Return the place that all of them archive into; who asks first gives it its name.

        It is a name by chance: a copy of the data that comes to life elsewhere has another etcd,
        and no way to this one. With an etcd that was made anew it is the ``former`` one.
        """
        new = former or f"{name}-{secrets.token_hex(4)}{ending}"
        key = f"{self.prefix}stanza"
        try:
            has = self.etcd.below(self.prefix).get("stanza")
            if not (has and has.value.endswith(ending)):
                if dry or self.etcd.put(key, new, has):
                    return new
                has = self.etcd.below(self.prefix)["stanza"]
        except (Unanswered, Refusal) as reason:
            if dry:  # etcd is yet to come
                return new
            raise Failure(
                "etcd does not say where this cluster's backups are, for want of a majority of its"
                f" members: {reason}. See systemctl status etcd on each of them, and run the"
                " playbook again."
            ) from None
        return has.value

    def drills(self) -> bool:
        """Tell whether a drill is this server's: it is done where no app writes, if there is one.

        All of them come to the same, so that it is done once.
        """
        told = self.told
        prefix = "/".join(["", told["namespace"].strip("/"), told["scope"], ""])
        cluster = patroni.Cluster.read(self.etcd, prefix)
        well = {x for x, said in cluster.members.items() if said.get("state") in patroni.RUNNING}
        others = sorted(well - {cluster.leader})
        return told["name"] == (others or [cluster.leader])[0]

    def sync(self) -> None:
        """Bring what etcd has and what this server has to the newer of both."""
        there = self.etcd.below(self.prefix)
        for what in backup_state.SHARED:
            key, mine = f"notes/{what}", backup_state.read(what) or {}
            theirs = patroni.parsed(there[key].value) if key in there else {}
            if theirs.get("ended", 0) > mine.get("ended", 0):
                write(backup_state.path_of(what), theirs)
            elif mine.get("ended", 0) > theirs.get("ended", 0):
                self.etcd.put(f"{self.prefix}{key}", json.dumps(mine), there.get(key))
        self.sync_points(there)

    def sync_points(self, there: Mapping[str, Any]) -> None:
        mine = backup_state.points()
        theirs = json.loads(there["points"].value) if "points" in there else []
        every = {x["name"]: x for x in sorted([*theirs, *mine], key=lambda x: x["at"])}
        known = sorted(every.values(), key=lambda x: x["at"])[-POINTS:]
        if known != theirs:
            self.etcd.put(f"{self.prefix}points", json.dumps(known), there.get("points"))
        if known != mine:
            write(backup_state.STATE / backup_state.POINTS, known)


def write(path: Path, found: Any) -> None:
    text = json.dumps(found, indent=2) + "\n"
    files.write(path, text, 0o640, owner=os.geteuid(), group=os.getegid())


def sync(setup: Mapping[str, Any]) -> None:
    """Bring what the servers know to the same; an etcd that is away keeps nobody from a backup."""
    if not fails_over(setup):
        return
    try:
        Shared(setup["patroni"]).sync()
    except Failure:
        return


def agreed(given: Mapping[str, Any], former: Mapping[str, Any], dry: bool) -> str:
    """Return the stanza of servers that take each other's place."""
    ending, mine = f"-{given['version']}-{given['cluster']}", backup_repository.own_stanza()
    known = mine if fails_over({"database": True, **former}) and mine.endswith(ending) else ""
    name = re.sub(r"[^A-Za-z0-9-]", "-", given["owner"])
    try:
        shared = Shared(given["patroni"])
    except Failure:
        if not dry:  # the certificate is yet to come
            raise
        return known or f"{name}-00000000{ending}"
    return shared.stanza(name, ending, known, dry)


def elsewhere(setup: Mapping[str, Any], what: str) -> bool:
    """Tell whether it is another server that does at this moment what is done once for all."""
    if what != "drill-database":
        return what in backup_state.SHARED and follows(setup)
    try:
        return fails_over(setup) and not Shared(setup["patroni"]).drills()
    except (Unanswered, Refusal) as reason:
        raise Failure(
            f"etcd does not say which servers there are, of which one does the drill: {reason}. See"
            " systemctl status etcd on each of them"
        ) from None
