"""What is to be seen of servers that agree on which of them leads the database."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from . import adopted
from .commands import Failure
from .etcd import SETTINGS, Etcd, noted, place
from .files import read
from .levels import GREEN, RED, YELLOW, Row
from .peer_https import Peer, Unanswered

try:
    import yaml  # which comes with Patroni
except ImportError:
    yaml = None

CONFIG = Path("/etc/patroni/config.yml")
LIST = f"patronictl -c {CONFIG} list"
RUNNING = ("running", "streaming")  # by Patroni 3 and 4
# Bytes that a standby may lack: Patroni lets none lead that lacks more (maximum_lag_on_failover).
FAR_BEHIND = 2**20


def rows() -> Iterator[Row]:
    """Yield how the cluster is, as this server's Patroni has it; nothing where there is none."""
    if yaml is None or not CONFIG.exists():
        yield from of_a_vote()
        return
    config = yaml.safe_load(CONFIG.read_text())
    own, there = config["restapi"], config["etcd3"]
    try:
        peer = Peer(own["certfile"], own["cafile"])
    except Failure as failure:
        yield Row("cluster", RED, str(failure), "ansible-playbook carafe.stack.site")
        return
    try:
        _, said = peer.ask(own["connect_address"], "/cluster")
        yield of_members(said["members"])
    except (Unanswered, TypeError, KeyError):
        yield Row("cluster", RED, "Patroni does not answer", "systemctl status patroni")
    yield of_voters(Etcd(peer, there["hosts"]))


def of_a_vote() -> Iterator[Row]:
    """Yield how etcd is on a server that has a vote, and no database."""
    said = read(SETTINGS) or ""
    if not adopted.is_managed(said):
        return
    own = noted(said)
    try:
        peer = Peer(own["certificate"], own["trusted"])
    except Failure as failure:
        yield Row("etcd", RED, str(failure), "ansible-playbook carafe.stack.site")
        return
    yield of_voters(Etcd(peer, [place(x) for x in own["members"]]))


def of_members(members: list[Mapping[str, Any]]) -> Row:
    """Return who leads, and how far the others are with it."""
    leaders = [x["name"] for x in members if x["role"] in ("leader", "standby_leader")]
    others = [x for x in members if x["name"] not in leaders]
    down = [x["name"] for x in others if x.get("state") not in RUNNING]
    follow = [x for x in others if x["name"] not in down]
    in_step = [x["name"] for x in follow if x["role"] in ("sync_standby", "quorum_standby")]
    lags = {x["name"]: x["lag"] for x in follow if isinstance(x.get("lag"), int)}
    far = [name for name, lag in lags.items() if lag > FAR_BEHIND]
    parts = [f"{' and '.join(leaders) or 'nobody'} leads"]
    parts += [f"{' and '.join(in_step)} in step"] * bool(in_step)
    parts += [f"{name} {lag} bytes behind" for name, lag in lags.items() if name not in in_step]
    parts += [f"{name} is {state_of(members, name)}" for name in down]
    if not in_step:
        parts.append("none in step")
    level = RED if not leaders else GREEN if in_step and not down and not far else YELLOW
    numbers = {
        "carafe_cluster_members_following": len(follow),
        "carafe_cluster_leads": len(leaders),
    }
    return Row("cluster", level, ", ".join(parts), "" if level == GREEN else LIST, numbers=numbers)


def state_of(members: list[Mapping[str, Any]], name: str) -> str:
    return next(str(x.get("state") or "unknown") for x in members if x["name"] == name)


def of_voters(etcd: Etcd) -> Row:
    """Return whether a majority agrees, and how many more may be lost."""
    well = [x for x in etcd.places if etcd.is_healthy(x)]
    gone = [x for x in etcd.places if x not in well]
    says = f"{len(well)} of {len(etcd.places)} answer"
    if gone:
        says += f", not {' and '.join(gone)}"
    if not gone:
        return Row("etcd", GREEN, says)
    # A member that answers belongs to a majority: without one, none is well.
    return Row("etcd", YELLOW if well else RED, says, "systemctl status etcd")
