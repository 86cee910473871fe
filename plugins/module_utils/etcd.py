"""Ask etcd, in the JSON that it speaks besides gRPC, what it keeps and who its members are."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .peer_https import Peer, Refusal, Unanswered

CLIENT_PORT, PEER_PORT = 2379, 2380
SETTINGS = Path("/etc/default/etcd")


def place(address: str, port: int = CLIENT_PORT) -> str:
    """Return host:port, as a URL has it."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def decoded(text: str | None) -> str:
    return base64.b64decode(text or "").decode(errors="replace")


@dataclass(frozen=True)
class Entry:
    """What is kept under a key, and the revision by which a change by somebody else is seen."""

    value: str
    revision: int


class Etcd:
    """All members of a cluster, of which the first one that answers is asked."""

    def __init__(self, peer: Peer, places: Iterable[str]) -> None:
        self.peer = peer
        self.places = list(places)

    def ask(self, path: str, **body: object) -> dict[str, Any]:
        """Ask a member that answers; Unanswered where none does, as without a majority."""
        reasons = []
        for at in self.places:
            try:
                status, said = self.peer.ask(at, path, body)
            except Unanswered as reason:
                reasons.append(str(reason))
                continue
            if status == 200 and isinstance(said, dict):
                return said
            text = said.get("error") or said.get("message") if isinstance(said, dict) else said
            # Without a leader it says so, and another member may have one.
            if status < 500:
                raise Refusal(status, f"etcd at {at} refuses {path}: {text}")
            reasons.append(f"{at} answers {path} with {status}: {text}")
        raise Unanswered("; ".join(reasons) or "etcd has no members")

    def is_healthy(self, at: str) -> bool:
        """Tell whether a member takes what is to be kept: it then belongs to a majority."""
        try:
            status, said = self.peer.ask(at, "/health")
        except Unanswered:
            return False
        return status == 200 and isinstance(said, dict) and str(said.get("health")) == "true"

    def below(self, prefix: str) -> dict[str, Entry]:
        """Return what is kept under keys with this prefix, by what follows it."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        said = self.ask("/v3/kv/range", key=encoded(prefix), range_end=encoded(end))
        return {
            decoded(x["key"]).removeprefix(prefix): Entry(
                decoded(x.get("value")), int(x["mod_revision"])
            )
            for x in said.get("kvs", [])
        }

    def put(self, key: str, value: str, former: Entry | None) -> bool:
        """Keep a value, unless somebody else has changed the key since; tell whether it is kept."""
        return self.change(
            key, former, {"requestPut": {"key": encoded(key), "value": encoded(value)}}
        )

    def remove(self, key: str, former: Entry) -> bool:
        """Remove a key, unless somebody else has changed it since; tell whether it is gone."""
        return self.change(key, former, {"requestDeleteRange": {"key": encoded(key)}})

    def change(self, key: str, former: Entry | None, request: Mapping[str, Any]) -> bool:
        compared = {
            "key": encoded(key),
            "target": "MOD",
            "result": "EQUAL",
            "mod_revision": str(former.revision if former else 0),
        }
        said = self.ask("/v3/kv/txn", compare=[compared], success=[request])
        return bool(said.get("succeeded"))

    def members(self) -> list[dict[str, Any]]:
        return self.ask("/v3/cluster/member/list").get("members", [])

    def add_member(self, url: str) -> list[dict[str, Any]]:
        """Announce a member before it starts; return all that there are then."""
        return self.ask("/v3/cluster/member/add", peerURLs=[url]).get("members", [])

    def remove_member(self, identifier: str) -> None:
        self.ask("/v3/cluster/member/remove", ID=identifier)


def initial_cluster(members: Iterable[Mapping[str, Any]], name: str, url: str) -> str:
    """Return what a joining member is told of all: of the others, etcd compares addresses alone."""
    return ",".join(
        f"{name if address == url else member.get('name') or member['ID']}={address}"
        for member in members
        for address in member["peerURLs"]
    )


def address_in(url: str) -> str:
    return url.partition("//")[2].rpartition(":")[0].strip("[]")


def noted(text: str) -> dict:
    """Return what the member's own settings say of it, as the other stages are given it."""
    said = dict(x.split("=", 1) for x in text.splitlines() if x.startswith("ETCD_"))
    urls = [x.partition("=")[2] for x in said["ETCD_INITIAL_CLUSTER"].split(",")]

    return {
        "address": address_in(said["ETCD_LISTEN_PEER_URLS"]),
        "members": [address_in(x) for x in urls],
        "certificate": said["ETCD_CERT_FILE"],
        "trusted": said["ETCD_TRUSTED_CA_FILE"],
        "data_dir": said["ETCD_DATA_DIR"],
    }
