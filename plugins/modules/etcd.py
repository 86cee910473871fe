#!/usr/bin/python
"""Run a member of an etcd cluster by its files."""

from __future__ import annotations

DOCUMENTATION = r"""
module: etcd
short_description: Run a member of an etcd cluster by its files
description:
  - V(start) starts the member, at each boot too, and does not wait for it, since the first members
    of a cluster wait for each other. Where the other members have a cluster already, it joins that
    one, also in the place of a member of its address whose data is gone, or of one that O(members)
    has no more. A member that the others have taken out begins anew, without its data.
  - V(settle) waits until the member belongs to a majority, and restarts it where what runs is older
    than its files. To be done by one member after the other. What the cluster has besides
    O(members) is taken out of it; etcd refuses that where no majority would be left.
  - V(remove) takes the member out of the cluster, as far as others have a majority without it, and
    stops it, unless a Patroni of the same server needs it yet. Its data goes. All that it needs to
    know is in the member's own settings.
  - The files of the role etcd come first, see there.
author: [Carafe (@carafe)]
options:
  stage:
    description: What to do.
    type: str
    choices: [start, settle, remove]
    default: start
  name:
    description: Name of the member. All stages but V(remove) need this and the others.
    type: str
  address:
    description: IP address by which the others reach it.
    type: str
  members:
    description: Addresses of all members.
    type: list
    elements: str
  certificate:
    description: File with the certificate and the key of the server.
    type: path
  trusted:
    description: File with the authorities that are trusted.
    type: path
  data_dir:
    description: Where the member's data is.
    type: path
    default: /var/lib/etcd/carafe
attributes:
  check_mode:
    description: Looks, changes nothing, and says what it would change.
    support: full
  diff_mode:
    description: Lists what is done, a sentence for each.
    support: full
"""

EXAMPLES = r"""
- name: Start the member
  carafe.stack.etcd:
    name: one
    address: 10.0.0.11
    members: [10.0.0.11, 10.0.0.12, 10.0.0.13]
    certificate: /etc/internal-tls/shop/server.pem
    trusted: /etc/internal-tls/shop/ca.pem
"""

RETURN = r"""
changes:
  description: What was done, or is to be done in check mode, a sentence for each.
  type: list
  elements: str
  returned: success
  sample: [start etcd]
settles:
  description: Whether V(settle) has something to do.
  type: bool
  returned: with V(start)
"""

import contextlib
import time
from pathlib import Path

from ansible_collections.carafe.stack.plugins.module_utils.module import (
    Module,
    choice,
    without_default,
)

from ..module_utils import adopted, etcd, files, processes, services
from ..module_utils.commands import Failure, ask, run, show
from ..module_utils.peer_https import Peer, Unanswered
from ..module_utils.postgresql_server import report

UNIT = "etcd.service"
HELPER = "etcd-sandbox.service"
PROGRAM = Path("/usr/bin/etcd")
# Whose configuration goes when it is removed itself.
NEEDS = Path("/etc/patroni/config.yml")
UNITS = Path("/etc/systemd/system")
# What the unit reads after its settings, at the first start of a member that joins.
JOINS = Path("/run/etcd-joins")
SENTENCES = {"enable": "enable etcd at boot", "start": "start etcd", "restart": "restart etcd"}
PATIENCE = 60  # seconds for members that start to find each other


def cluster(given: dict, others: bool = False) -> etcd.Etcd:
    """Return the cluster, as this member asks it, or as the others have it."""
    own = etcd.place(given["address"])
    places = [etcd.place(x) for x in given["members"]]
    # Itself first, for an answer without the network.
    places = [x for x in places if x != own] if others else sorted(places, key=lambda x: x != own)
    return etcd.Etcd(Peer(given["certificate"], given["trusted"]), places)


def peer_url(given: dict, address: str = "") -> str:
    return f"https://{etcd.place(address or given['address'], etcd.PEER_PORT)}"


def members_of(there: etcd.Etcd) -> list[dict]:
    """Return the members, none where nobody answers: the first ones of all, or no majority."""
    try:
        return there.members()
    except Unanswered:
        return []


def surplus(given: dict, members: list[dict]) -> list[dict]:
    """Return the members that are not to be any."""
    return [
        x for x in members if not {peer_url(given, y) for y in given["members"]} & {*x["peerURLs"]}
    ]


def is_taken_out(given: dict, state: dict) -> bool:
    """Tell whether the others go on without this one, which has data of when it was a member."""
    if state["ActiveState"] == "active" or not Path(given["certificate"]).exists():
        return False
    members = members_of(cluster(given, others=True))
    return bool(members) and not any(peer_url(given) in x["peerURLs"] for x in members)


def take_out(there: etcd.Etcd, members: list[dict], changes: list[str], dry: bool) -> None:
    for member in members:
        changes.append(f"take {member.get('name') or member['peerURLs'][0]} out of the cluster")
        if not dry:
            there.remove_member(member["ID"])


def join(given: dict, changes: list[str], dry: bool) -> None:
    """Where the others have a cluster, be one of its members before the first start."""
    there, url = cluster(given, others=True), peer_url(given)
    members = members_of(there)
    if not members:  # etcd itself finds out
        return
    # First: with one that is dead among them, etcd adds none.
    more = surplus(given, members)
    take_out(there, more, changes, dry)
    members = [x for x in members if x not in more]
    mine = [x for x in members if url in x["peerURLs"]]
    # One that has never started has no name there, or no address for clients.
    lost = [x for x in mine if x.get("clientURLs")]
    if mine and not lost and mine[0].get("name"):  # it is waited for, by the others' settings
        return
    changes += [f"take {x['name']}, whose data is gone, out of the cluster" for x in lost]
    changes += [f"add {given['name']} to the cluster"] * (not mine or bool(lost))
    if dry:
        return
    for member in lost:
        there.remove_member(member["ID"])
    if lost or not mine:
        members = add(there, url)
    words = etcd.initial_cluster(members, given["name"], url)
    files.write(JOINS, f"ETCD_INITIAL_CLUSTER={words}\nETCD_INITIAL_CLUSTER_STATE=existing\n")


def add(there: etcd.Etcd, url: str) -> list[dict]:
    """Add a member once all others have been up for some seconds, as etcd wants it."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return there.add_member(url)
        except Unanswered as reason:
            if time.monotonic() > until:
                raise Failure(
                    f"etcd adds no member as long as one that it has is away: {reason}. See"
                    " systemctl status etcd on each of etcd_members, and run the playbook again."
                    " One that does not come back is taken out by"
                    " ansible-playbook carafe.stack.remove_server."
                ) from None
        time.sleep(0.5)


def is_stale(given: dict) -> bool:
    """Tell whether what runs is older than its files, whoever has written them."""
    (shown,) = show("MainPID", UNIT)
    folder = UNITS / f"{UNIT}.d"
    # Its certificate it reads for each connection, those whom it trusts at its start only.
    files_of_start = [etcd.SETTINGS, Path(given["trusted"]), *folder.glob("*.conf")]
    return processes.is_older(shown["MainPID"], files_of_start)


def start(given: dict, dry: bool) -> dict:
    changes: list[str] = []
    if not PROGRAM.exists():
        if dry:
            return {**report([SENTENCES["enable"], SENTENCES["start"]]), "settles": True}
        raise Failure(
            f"{PROGRAM} is not there. Set etcd_manage_packages to true in group_vars, or install"
            " what etcd_packages has, and run the playbook again."
        )
    state = services.state(UNIT, HELPER)
    data = Path(given["data_dir"]) / "member"
    is_out = data.exists() and is_taken_out(given, state)
    is_new = is_out or not data.exists()
    if is_out:
        changes.append(f"remove {data}, of when it was a member before")
        if not dry:
            files.remove(data)
    # What was started by something else has data of its own.
    verbs = services.due(state, "restart" if is_new else "")
    if state["ActiveState"] == "activating" and not is_out:  # it waits for the others
        verbs = [x for x in verbs if x != "start"]
    begins = [x for x in verbs if x in ("start", "restart")]
    stale = not begins and (is_stale(given) or state["NeedDaemonReload"] == "yes")
    more = [] if begins else surplus(given, members_of(cluster(given)))
    # Of a bare server in a dry run there is no certificate to ask with.
    if begins and is_new and Path(given["certificate"]).exists():
        join(given, changes, dry)
    changes += [SENTENCES[x] for x in verbs if x in SENTENCES]
    changes += ["restart etcd, whose files have changed"] * stale
    if dry:
        take_out(cluster(given), more, changes, dry)
    else:
        services.act(UNIT, [x for x in verbs if x not in begins])
        for verb in begins:
            # It is up once a majority is: to wait here would keep the others from starting.
            run("systemctl", verb, "--no-block", UNIT)
    settles = bool(changes) or bool(more) or state["ActiveState"] != "active"
    return {**report(changes), "settles": settles}


def settle(given: dict, dry: bool) -> dict:
    changes: list[str] = []
    if dry:
        return report(changes)
    if is_stale(given) and services.state(UNIT)["ActiveState"] == "active":
        changes.append("restart etcd")
        # Whether that came to something is asked of it.
        ask("systemctl", "restart", UNIT)
    await_majority(given)
    JOINS.unlink(missing_ok=True)
    there = cluster(given)
    take_out(there, surplus(given, there.members()), changes, dry)
    return report(changes)


def await_majority(given: dict) -> None:
    there, own = cluster(given), etcd.place(given["address"])
    until = time.monotonic() + PATIENCE
    while not there.is_healthy(own):
        if time.monotonic() > until:
            said = ask("journalctl", f"--unit={UNIT}", "--lines=5", "--output=cat").stdout
            raise Failure(
                f"etcd at {own} has found no majority of {', '.join(given['members'])} within"
                f" {PATIENCE} s. They reach each other at the ports 2379 and 2380: look at"
                f" etcd_members in group_vars, at each one's firewall, and at systemctl status etcd"
                f" there; then run the playbook again. Its journal ends with: {said.strip()}"
            )
        time.sleep(0.2)


def remove(given: dict, dry: bool) -> dict:
    changes: list[str] = []
    said = files.read(etcd.SETTINGS) or ""
    # One that somebody has set up is his.
    if not adopted.is_managed(said) or NEEDS.exists():
        return report(changes)
    given = etcd.noted(said)
    state, data = services.state(UNIT), Path(given["data_dir"])
    if state["ActiveState"] in ("active", "activating"):
        changes.append("stop etcd")
        if not dry:
            leave(given)
    if data.exists():
        changes.append(f"remove {data}")
    if state["UnitFileState"] == "enabled":
        changes.append("start etcd at no boot any more")
    if changes and not dry:
        run("systemctl", "disable", "--now", "--quiet", UNIT)
        # It fails where some stays: a member that comes back would be taken for the former one.
        files.remove(data)
    return report(changes)


def leave(given: dict) -> None:
    """Say so to the others, who would wait for it in each vote; where they go too, no matter."""
    with contextlib.suppress(Failure):
        there = cluster(given, others=True)
        for member in there.members():
            if peer_url(given) in member["peerURLs"]:
                there.remove_member(member["ID"])


NEEDED = ("name", "address", "members", "certificate", "trusted")
STAGES = {"start": start, "settle": settle, "remove": remove}


def main() -> None:
    module = Module(
        {
            "stage": choice(*STAGES, default="start"),
            **without_default("name", "address"),
            "members": {"type": "list", "elements": "str"},
            **without_default("certificate", "trusted", type="path"),
            "data_dir": {"type": "path", "default": "/var/lib/etcd/carafe"},
        },
        required_if=[("stage", stage, NEEDED) for stage in ("start", "settle")],
    )
    module.answer(STAGES[module.params["stage"]], module.params, module.check_mode)


if __name__ == "__main__":
    main()
