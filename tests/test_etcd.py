"""etcd's members: what is asked of them, and what a member does before its first start."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.carafe.stack.plugins.module_utils import etcd as client
from ansible_collections.carafe.stack.plugins.module_utils.commands import Failure
from ansible_collections.carafe.stack.plugins.module_utils.peer_https import (
    Peer,
    Refusal,
    Unanswered,
)
from ansible_collections.carafe.stack.plugins.modules import etcd
from ansible_collections.carafe.stack.plugins.plugin_utils.options import checks_of
from ansible_collections.carafe.stack.plugins.plugin_utils.problems import Server
from conftest import Role

ROLE = checks_of("roles.etcd")
ADDRESSES = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]


def coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class Members:
    """What members answer, by place; None is one that is gone."""

    def __init__(self, **answers: Any) -> None:
        self.answers, self.asked = answers, []

    def ask(self, place: str, path: str, body: object = None, **_: Any) -> tuple[int, Any]:
        self.asked.append((place, path, body))
        answer = self.answers.get(place)
        if answer is None:
            raise Unanswered(f"{place} does not answer")
        return answer if isinstance(answer, tuple) else (200, answer)


def cluster(**answers: Any) -> client.Etcd:
    return client.Etcd(Members(**answers), sorted(answers))


def test_the_first_member_that_answers_is_asked() -> None:
    there = cluster(a=None, b=(503, {"error": "no leader"}), c={"kvs": []})
    assert there.below("/service/main/") == {}
    assert [place for place, *_ in there.peer.asked] == ["a", "b", "c"]


def test_without_any_each_says_why() -> None:
    with pytest.raises(Unanswered, match=r"a does not answer; b answers .* with 503: no leader"):
        cluster(a=None, b=(503, {"error": "no leader"})).below("/x/")


def test_who_is_refused_is_told_so_at_once() -> None:
    there = cluster(a=(400, {"error": "unhealthy cluster"}), b={})
    with pytest.raises(Refusal, match="unhealthy cluster"):
        there.remove_member("1")
    assert len(there.peer.asked) == 1


def test_keys_are_named_by_what_follows_the_prefix() -> None:
    kept = [{"key": coded("/s/m/leader"), "value": coded("one"), "mod_revision": "7"}]
    there = cluster(a={"kvs": [*kept, {"key": coded("/s/m/initialize"), "mod_revision": "8"}]})
    entries = there.below("/s/m/")
    assert entries == {"leader": client.Entry("one", 7), "initialize": client.Entry("", 8)}
    ((_, _, body),) = there.peer.asked
    assert (body["key"], body["range_end"]) == (coded("/s/m/"), coded("/s/m0"))


@pytest.mark.parametrize(("former", "revision"), [(None, "0"), (client.Entry("x", 5), "5")])
def test_what_somebody_else_has_changed_stays(former: client.Entry | None, revision: str) -> None:
    there = cluster(a={"succeeded": False})
    assert there.put("/k", "v", former) is False
    ((_, path, body),) = there.peer.asked
    assert path == "/v3/kv/txn"
    assert body["compare"][0] | {"key": ""} == {
        **{"key": "", "target": "MOD", "result": "EQUAL", "mod_revision": revision}
    }


@pytest.mark.parametrize(
    ("answer", "healthy"),
    [
        ({"health": "true"}, True),
        ({"health": "false"}, False),
        ((503, {"health": "false"}), False),
        (None, False),
    ],
)
def test_a_member_without_a_majority_is_not_healthy(answer: Any, healthy: bool) -> None:
    assert cluster(a=answer).is_healthy("a") is healthy


def test_a_certificate_that_is_not_there_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="role internal_tls makes"):
        Peer(str(tmp_path / "server.pem"), str(tmp_path / "ca.pem"))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A server with etcd's package, on which systemd is asked for nothing."""
    seen = SimpleNamespace(asked=[], folder=tmp_path, stale=False)
    seen.state = {"ActiveState": "inactive", "UnitFileState": "enabled", "NeedDaemonReload": "no"}
    seen.given = {"name": "one", "address": ADDRESSES[0], "members": ADDRESSES}
    seen.given |= {"certificate": str(tmp_path / "pem"), "trusted": "", "data_dir": str(tmp_path)}
    (tmp_path / "pem").touch()
    monkeypatch.setattr(etcd, "PROGRAM", tmp_path)
    monkeypatch.setattr(etcd, "JOINS", tmp_path / "joins")
    monkeypatch.setattr(etcd, "Peer", lambda *_: seen.members)
    monkeypatch.setattr(etcd, "is_stale", lambda _: seen.stale)
    monkeypatch.setattr(etcd.services, "state", lambda *_: seen.state)
    monkeypatch.setattr(etcd.services, "act", lambda unit, verbs: seen.asked.extend(verbs))
    monkeypatch.setattr(etcd, "run", lambda *words: seen.asked.append(" ".join(words)))
    seen.members = Members()
    return seen


START = "systemctl start --no-block etcd.service"


def test_the_first_members_start_without_waiting(server: SimpleNamespace) -> None:
    done = etcd.start(server.given, dry=False)
    assert (done["changes"], done["settles"]) == (["start etcd"], True)
    assert server.asked == ["daemon-reload", START]
    # It asks the others, and not itself, whether they have a cluster.
    assert [place for place, *_ in server.members.asked] == ["10.0.0.2:2379", "10.0.0.3:2379"]
    assert not etcd.JOINS.exists()


def member(number: int, **more: Any) -> dict[str, Any]:
    url = f"https://10.0.0.{number}:2380"
    known = {"name": f"n{number}", "clientURLs": [f"https://10.0.0.{number}:2379"]}
    return {"ID": str(number), "peerURLs": [url], **known, **more}


def others_have(server: SimpleNamespace, *members: dict[str, Any]) -> None:
    """Have the others answer, with a member that is added among them."""
    new = {"ID": "9", "peerURLs": ["https://10.0.0.1:2380"]}

    def ask(place: str, path: str, body: object = None, **_: Any) -> tuple[int, Any]:
        server.members.asked.append((place, path, body))
        more = [new] if path.endswith("add") else []
        return 200, {"members": [*(x for x in members if x["ID"] != "1" or not more), *more]}

    server.members.ask = ask


JOINING = (
    "ETCD_INITIAL_CLUSTER=one=https://10.0.0.1:2380,n2=https://10.0.0.2:2380\n"
    "ETCD_INITIAL_CLUSTER_STATE=existing\n"
)


@pytest.mark.parametrize(
    ("mine", "paths"),
    [
        ([], ["list", "add"]),
        # One whose data is gone, which was started before.
        ([member(1, name="one")], ["list", "remove", "add"]),
        # One that was added, and never started.
        ([member(1, name="", clientURLs=[])], ["list"]),
    ],
)
def test_a_member_without_data_joins_the_cluster_of_the_others(
    server: SimpleNamespace, mine: list[dict[str, Any]], paths: list[str]
) -> None:
    others_have(server, *mine, member(2))
    etcd.start(server.given, dry=True)
    assert not etcd.JOINS.exists()
    server.members.asked.clear()
    etcd.start(server.given, dry=False)
    assert [path.rpartition("/")[2] for _, path, _ in server.members.asked] == paths
    assert sorted(etcd.JOINS.read_text().split("=", 1)[1].splitlines()[0].split(",")) == sorted(
        JOINING.split("=", 1)[1].splitlines()[0].split(",")
    )
    assert "STATE=existing" in etcd.JOINS.read_text()


def test_a_member_that_the_others_wait_for_is_not_added_twice(server: SimpleNamespace) -> None:
    others_have(server, member(1, name="one", clientURLs=[]), member(2))
    etcd.start(server.given, dry=False)
    assert [path.rpartition("/")[2] for _, path, _ in server.members.asked] == ["list"]
    assert not etcd.JOINS.exists()


@pytest.fixture
def running(server: SimpleNamespace) -> SimpleNamespace:
    """A member that has been at work for a while."""
    server.state["ActiveState"] = "active"
    (server.folder / "member").mkdir()
    return server


def test_what_runs_by_its_files_is_left_alone(running: SimpleNamespace) -> None:
    others_have(running, *(member(x) for x in (1, 2, 3)))
    done = etcd.start(running.given, dry=False)
    assert (done["changed"], done["settles"], running.asked) == (False, False, [])
    # Itself, without the network.
    assert [place for place, *_ in running.members.asked] == ["10.0.0.1:2379"]


def test_who_is_no_member_any_more_is_taken_out_once(running: SimpleNamespace) -> None:
    """By one that is up again, one after the other."""
    there = [member(x) for x in (1, 2, 3, 4)]

    def ask(place: str, path: str, body: Any = None, **_: Any) -> tuple[int, Any]:
        if path.endswith("remove"):
            there[:] = [x for x in there if x["ID"] != body["ID"]]
        return 200, {"members": there, "health": "true"}

    running.members.ask = ask
    assert etcd.start(running.given, dry=True)["changes"] == ["take n4 out of the cluster"]
    done = etcd.start(running.given, dry=False)
    assert (done["changes"], done["settles"], len(there)) == ([], True, 4)
    assert etcd.settle(running.given, dry=False)["changes"] == ["take n4 out of the cluster"]
    assert [x["name"] for x in there] == ["n1", "n2", "n3"]
    assert etcd.settle(running.given, dry=False)["changes"] == []


def test_one_that_comes_in_the_place_of_a_dead_one_has_it_taken_out_before(
    server: SimpleNamespace,
) -> None:
    """etcd adds none to those of which too many are gone."""
    others_have(server, *(member(x) for x in (2, 3, 4)))
    done = etcd.start(server.given, dry=False)
    assert done["changes"][:2] == ["take n4 out of the cluster", "add one to the cluster"]
    calls = [(path.rpartition("/")[2], body) for _, path, body in server.members.asked]
    assert [x for x, _ in calls] == ["list", "remove", "add"]
    assert calls[1][1] == {"ID": "4"}


def test_a_member_is_added_once_all_others_are_up(
    server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that join at once wait for each other so, too."""
    others_have(server, member(2), member(3))
    answer, refusals = server.members.ask, [*"12345"]

    def ask(place: str, path: str, body: Any = None, **more: Any) -> tuple[int, Any]:
        if path.endswith("add") and refusals:
            refusals.pop()
            return 503, {"error": "etcdserver: unhealthy cluster"}
        return answer(place, path, body, **more)

    server.members.ask = ask
    monkeypatch.setattr(etcd.time, "sleep", lambda _: None)
    assert "add one to the cluster" in etcd.start(server.given, dry=False)["changes"]
    assert etcd.JOINS.exists()
    etcd.JOINS.unlink()
    refusals += "1" * 1000
    monkeypatch.setattr(etcd, "PATIENCE", 0)
    with pytest.raises(Failure, match=r"away: .*unhealthy cluster.* taken out by .*remove_server"):
        etcd.start(server.given, dry=False)
    assert not etcd.JOINS.exists()


def test_one_that_was_taken_out_begins_anew(running: SimpleNamespace) -> None:
    """It has data of when it was a member, by which etcd would refuse to start."""
    running.state["ActiveState"] = "activating"
    others_have(running, member(2), member(3))
    data = running.folder / "member"
    etcd.start(running.given, dry=True)
    assert data.exists()
    done = etcd.start(running.given, dry=False)
    assert f"remove {data}, of when it was a member before" in done["changes"]
    assert not data.exists()
    assert "STATE=existing" in etcd.JOINS.read_text()


def test_one_that_is_no_member_of_those_that_do_not_answer_keeps_its_data(
    running: SimpleNamespace,
) -> None:
    running.state["ActiveState"] = "failed"
    etcd.start(running.given, dry=False)
    assert (running.folder / "member").exists()


def test_two_that_join_at_once_are_both_told() -> None:
    joining = [member(1), member(4, name=""), member(5, name="")]
    words = client.initial_cluster(joining, "four", "https://10.0.0.4:2380")
    assert words == ("n1=https://10.0.0.1:2380,four=https://10.0.0.4:2380,5=https://10.0.0.5:2380")


def test_what_is_older_than_its_files_restarts_one_after_the_other(
    running: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.stale = True
    there = [member(x) for x in (1, 2, 3)]
    running.members.answers = {"10.0.0.1:2379": {"health": "true", "members": there}}
    monkeypatch.setattr(etcd, "ask", lambda *words: running.asked.append(" ".join(words)))
    assert etcd.start(running.given, dry=False)["settles"]
    assert running.asked == []
    assert etcd.settle(running.given, dry=False)["changes"] == ["restart etcd"]
    assert running.asked == ["systemctl restart etcd.service"]


def test_what_the_package_has_started_is_restarted_with_the_others(
    server: SimpleNamespace,
) -> None:
    server.state["ActiveState"] = "active"
    assert etcd.start(server.given, dry=False)["changes"] == ["restart etcd"]
    assert "systemctl restart --no-block etcd.service" in server.asked


def test_one_that_waits_for_the_others_is_no_change(running: SimpleNamespace) -> None:
    running.state["ActiveState"] = "activating"
    done = etcd.start(running.given, dry=False)
    assert (done["changed"], done["settles"]) == (False, True)


def test_without_a_majority_it_says_where_to_look(
    running: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd, "PATIENCE", 0)
    monkeypatch.setattr(etcd, "ask", lambda *_: SimpleNamespace(stdout="no route to host"))
    monkeypatch.setattr(etcd.time, "sleep", lambda _: None)
    with pytest.raises(Failure, match=r"ports 2379 and 2380: .*etcd_members.* no route to host"):
        etcd.settle(running.given, dry=False)


def said(check: Callable[..., Any], **values: Any) -> list[str]:
    return [problem.what for problem in check(Server("one", values=values))]


def members(count: int) -> list[dict[str, str]]:
    return [{"name": f"n{x}", "address": f"10.0.0.{x}"} for x in range(1, count + 1)]


@pytest.mark.parametrize(
    ("count", "refused"), [(1, True), (2, True), (3, False), (4, True), (5, False)]
)
def test_an_even_number_of_voters_is_refused(count: int, refused: bool) -> None:
    values = {"etcd_name": "n1", "etcd_address": "10.0.0.1", "etcd_members": members(count)}
    assert bool(said(ROLE.check_members, **values)) is (count not in (3, 5))


def test_a_member_that_is_not_in_the_list_is_told() -> None:
    values = {"etcd_name": "x", "etcd_address": "10.0.0.9", "etcd_members": members(3)}
    assert said(ROLE.check_members, **values) == ["does not have this server, x with 10.0.0.9"]


@pytest.mark.parametrize("path", ["/srv/etcd", "/var/lib/etcd/", "/var/lib/etcd/../x"])
def test_data_stays_where_the_sandbox_lets_it(path: str) -> None:
    assert said(ROLE.check_data_dir, etcd_data_dir=path)
    assert not said(ROLE.check_data_dir, etcd_data_dir="/var/lib/etcd/carafe")


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"client-cert-auth": "false"}, True),
        ({"force-new-cluster": True}, True),
        ({"heartbeat-interval": "1\nETCD_NAME=x"}, True),
        ({"HEARTBEAT": 1}, True),
        ({"heartbeat-interval": 250}, False),
    ],
)
def test_no_setting_takes_the_locks_away(settings: dict[str, Any], refused: bool) -> None:
    assert bool(said(ROLE.check_settings, etcd_settings=settings)) is refused


def test_a_member_leaves_by_what_it_has_noted_itself() -> None:
    """Whoever removes an app may have no address of the server in the inventory any more."""
    template = Role("etcd").path / "templates/etc/default/etcd.j2"
    values = {"etcd_name": "one", "etcd_address": "fd00::1", "etcd_data_dir": "/var/lib/etcd/x"}
    values |= {"etcd_members": [{"name": "one", "address": "fd00::1"}, *members(3)[1:]]}
    values |= {"etcd_certificate": "/server.pem", "etcd_trusted": "/ca.pem", "etcd_settings": {}}
    values |= {"etcd_cluster_name": "carafe", "ansible_managed": "Ansible managed"}
    templar = Templar(DataLoader(), Role("etcd").vars | values)
    text = templar.template(trust_as_template(template.read_text()))
    assert client.noted(text) == {
        "address": "fd00::1",
        # By their names, as they stand in the file.
        "members": ["10.0.0.2", "10.0.0.3", "fd00::1"],
        "certificate": "/server.pem",
        "trusted": "/ca.pem",
        "data_dir": "/var/lib/etcd/x",
    }


def test_one_that_somebody_has_set_up_stays(
    server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = server.folder / "default"
    settings.write_text("ETCD_NAME=theirs\n")
    monkeypatch.setattr(client, "SETTINGS", settings)
    assert etcd.remove({}, dry=False)["changes"] == []
    assert server.asked == []
