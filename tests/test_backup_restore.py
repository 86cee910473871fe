"""How one app's data come back: what is refused, noted and kept on the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible_collections.carafe.stack.plugins.module_utils import (
    backup_files,
    backup_jobs,
    backup_repository,
    backup_restore,
    backup_scratch,
    backup_state,
)
from ansible_collections.carafe.stack.plugins.module_utils.commands import Failure
from ansible_collections.carafe.stack.plugins.modules import backup_restore as module
from conftest import ROOT, load_yaml

NOW = "20261122t101500"
SETUP = {
    **{"repository": "/mnt/backup", "host": "web1", "database": True, "version": "17"},
    **{"cluster": "main", "port": 5432, "data": "/var/lib/postgresql/17/main"},
}
SNAPSHOT = {"id": "abcdef0123", "at": 1.0, "hostname": "web1", "tagged": {}}


class Cluster:
    """PostgreSQL, as far as databases have names and let anybody in."""

    def __init__(self) -> None:
        self.databases = {"shop": True, "shop_restoring": True}
        self.roles: set[str] = set()
        self.killed_at = ""

    def psql(self, _: Any, query: str, *__: str) -> str:
        if query.startswith("SELECT datname"):
            return "\n".join(sorted(self.databases))
        for line in query.splitlines():
            if self.killed_at and line.startswith(self.killed_at):
                raise KeyboardInterrupt
            words = line.replace('"', "").rstrip(";").split()
            if words[:2] == ["ALTER", "DATABASE"] and words[3] == "ALLOW_CONNECTIONS":
                self.databases[words[2]] = words[4] == "true"
            elif words[:2] == ["ALTER", "DATABASE"] and words[3] == "RENAME":
                self.databases[words[5]] = self.databases.pop(words[2])
            elif words[:2] == ["DROP", "DATABASE"]:
                self.databases.pop(words[4 if words[2] == "IF" else 2], None)
            elif words[:2] == ["DROP", "ROLE"]:
                self.roles.discard(words[4])
        return ""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    found = Cluster()
    monkeypatch.setattr(backup_restore, "psql", found.psql)
    return found


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    path = tmp_path / "srv/shared"
    path.mkdir(parents=True)
    (path / "photo").write_text("live")
    return path


@pytest.fixture
def app(
    tmp_path: Path, shared: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """An app with a database and files; return what is known of it, to be changed."""
    told = {"paths": [str(shared)], "more_paths": [], "databases": [{"name": "shop"}]}
    setup = SETUP | {"data": str(tmp_path / "postgresql/main")}
    monkeypatch.setattr(backup_state, "STATE", tmp_path)
    monkeypatch.setattr(backup_jobs, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(backup_repository, "setup", lambda: setup)
    monkeypatch.setattr(backup_files, "app_of", lambda _: told)
    return told


@pytest.fixture
def beside(app: dict[str, Any], shared: Path) -> backup_restore.Restore:
    """A restore with all of it beside what is live."""
    restore = backup_restore.Restore("shop")
    restore.save(
        **{"id": NOW, "to": "latest", "began": 1.0, "done": ["dumped", "loaded", "files"]},
        **{"databases": app["databases"], "paths": app["paths"], "snapshot": SNAPSHOT},
        target={"kind": "latest", "at": 1.0, "name": ""},
    )
    place = backup_restore.place_beside(shared) / str(shared).lstrip("/")
    place.mkdir(parents=True)
    (place / "photo").write_text("then")
    return restore


@pytest.fixture
def out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a store that is down."""

    def down(*_: Any, **__: Any) -> None:
        raise Failure("The store is down.")

    for name in ("restic", "pgbackrest", "info", "as_postgres"):
        monkeypatch.setattr(backup_repository, name, down)
    monkeypatch.setattr(backup_files, "restic", down)


@pytest.mark.parametrize(("free", "fits"), [(21, False), (24, True)])
def test_there_is_room_for_the_copy_and_for_what_is_loaded_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, fits: bool
) -> None:
    """However little is live: it was emptied, or why would one restore it."""
    spare = backup_scratch.SPARE
    usage = SimpleNamespace(free=spare + (free << 30))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    scratch = backup_scratch.Scratch("x", SETUP)
    backup = {"info": {"size": 10 << 30}}
    scratch.room(backup)
    if fits:
        scratch.room(backup, times=2)
        return
    with pytest.raises(Failure, match="no room for a copy"):
        scratch.room(backup, times=2)


def test_a_restore_asks_for_that_room(
    app: dict[str, Any], beside: backup_restore.Restore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def room(_: Any, backup: dict, times: int = 1) -> None:
        asked.append((backup, times))
        raise Failure("full")

    newest = {"label": "newest"}
    monkeypatch.setattr(backup_repository, "info", lambda _: {"backup": [newest]})
    monkeypatch.setattr(backup_scratch.Scratch, "make", lambda _: None)
    monkeypatch.setattr(backup_scratch.Scratch, "room", room)
    user = SimpleNamespace(pw_uid=-1)
    monkeypatch.setattr(backup_restore.pwd, "getpwnam", lambda _: user)
    setup = backup_repository.setup()
    Path(setup["data"]).parent.mkdir()
    beside.save(done=[])
    with pytest.raises(Failure, match="full"):
        backup_restore.dump(setup, beside)
    assert asked == [(newest, 2)]


def test_files_that_nobody_has_stored_are_told_before_anything_is_touched(
    app: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    app["databases"] = []
    monkeypatch.setattr(backup_files, "snapshots", lambda *_: [])
    with pytest.raises(Failure, match=r"by web1.*playbook backup"):
        backup_restore.begin("shop", "latest")
    assert backup_restore.Restore("shop").progress == {}


@pytest.mark.usefixtures("out_of_reach")
def test_a_server_that_keeps_nothing_of_the_app_has_nothing_to_do(app: dict[str, Any]) -> None:
    app |= {"databases": [], "paths": []}
    given = {"owner": "shop", "to": "before 46b2c12fc937", "moment": NOW, "place": ""}
    for check in (False, True):
        assert "target" not in module.plan(given, check)["plan"]
    assert not module.prepare(given, False)["changed"]
    assert backup_restore.Restore("shop").progress == {}


@pytest.mark.parametrize("stage", ["undo", "drop"])
def test_a_server_that_keeps_nothing_of_the_app_has_nothing_to_take_back(
    app: dict[str, Any], stage: str
) -> None:
    """The restore of an app takes in all of its servers."""
    app |= {"databases": [], "paths": []}
    given = {"owner": "shop", "stage": stage, "moment": NOW}
    assert not module.back(given, False)["changed"]
    assert backup_state.read("restore-shop") is None


def test_an_undo_that_was_cut_short_on_another_server_goes_on(
    app: dict[str, Any], cluster: Cluster, shared: Path
) -> None:
    app["databases"] = []
    backup_restore.place_before(shared, NOW).mkdir()
    assert backup_restore.undo("shop", NOW)
    live = sorted(x.name for x in shared.parent.iterdir())
    assert backup_restore.undo("shop", NOW) == []
    assert sorted(x.name for x in shared.parent.iterdir()) == live
    with pytest.raises(Failure, match="Nothing is kept of"):
        backup_restore.undo("shop", "20261123t101500")


def test_all_servers_keep_what_is_replaced_by_the_same_moment(
    app: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    app["databases"] = []
    monkeypatch.setattr(backup_files, "snapshots", lambda *_: [SNAPSHOT])
    assert backup_restore.begin("shop", "latest", NOW)["id"] == NOW
    # What is gone on with has its own already.
    assert backup_restore.begin("shop", "latest", "20270101t000000")["id"] == NOW


def renamed(cluster: Cluster) -> None:
    pairs = [("shop", f"shop_before_{NOW}", "shop_restoring")]
    backup_restore.rename(SETUP, pairs)


def test_a_switch_that_is_killed_after_its_commit_lets_everybody_in(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(setup: Any, query: str, *more: str) -> str:
        cluster.psql(setup, query, *more)
        if "COMMIT" in query:
            cluster.killed_at = "ALTER"
        return cluster.psql(setup, query) if query.startswith("SELECT datname") else ""

    monkeypatch.setattr(backup_restore, "psql", killed)
    # In the finally, too, as one that is killed.
    with pytest.raises(KeyboardInterrupt):
        renamed(cluster)
    assert cluster.databases == {"shop": True, f"shop_before_{NOW}": True}


def test_a_switch_that_fails_leaves_what_is_live_open(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(setup: Any, query: str, *more: str) -> str:
        if "COMMIT" in query:
            raise Failure("no")
        return cluster.psql(setup, query, *more)

    monkeypatch.setattr(backup_restore, "psql", failing)
    with pytest.raises(Failure):
        renamed(cluster)
    assert cluster.databases == {"shop": True, "shop_restoring": True}


def test_the_same_command_goes_on_until_the_app_has_connected_anew(
    app: dict[str, Any], beside: backup_restore.Restore, shared: Path
) -> None:
    """One that fails between the two would begin all over, and lose what is written since."""
    given = {"owner": "shop", "to": "latest", "moment": "20270101t000000", "place": ""}
    assert f"shop_before_{NOW}" in backup_restore.switch("shop")
    assert (shared / "photo").read_text() == "then"
    again = module.prepare(given, False)
    assert (again["changed"], again["moment"]) == (False, NOW)
    assert backup_restore.switch("shop") == []
    backup_restore.finish("shop")
    assert backup_restore.Restore("shop").progress == {}


def test_what_is_not_switched_to_is_not_done(
    app: dict[str, Any], beside: backup_restore.Restore
) -> None:
    backup_restore.finish("shop")
    assert backup_restore.Restore("shop").progress["id"] == NOW


@pytest.mark.parametrize(("step", "what"), [("loaded", "database"), ("files", "files")])
def test_nothing_is_switched_to_before_all_of_it_is_there(
    app: dict[str, Any], beside: backup_restore.Restore, cluster: Cluster, step: str, what: str
) -> None:
    beside.save(done=[x for x in beside.progress["done"] if x != step])
    with pytest.raises(Failure, match=f"The {what} of shop is not beside yet"):
        backup_restore.switch("shop")
    assert set(cluster.databases) == {"shop", "shop_restoring"}


def test_a_switch_that_has_begun_is_not_given_up(
    app: dict[str, Any], beside: backup_restore.Restore, cluster: Cluster, shared: Path
) -> None:
    """The database is switched, and the files are not yet: they lie where cancel removes."""
    cluster.killed_at = "COMMIT"
    with pytest.raises(KeyboardInterrupt):
        backup_restore.switch("shop")
    cluster.killed_at = ""
    with pytest.raises(Failure, match=f"restore_to='latest'.*restore_undo={NOW}"):
        backup_restore.cancel("shop")
    assert backup_restore.place_beside(shared).is_dir()
    backup_restore.switch("shop")
    assert (shared / "photo").read_text() == "then"


def test_what_is_given_up_leaves_no_login(
    app: dict[str, Any], beside: backup_restore.Restore, cluster: Cluster, shared: Path
) -> None:
    cluster.roles = {"shop", "shop-restoring", "analyst"}
    beside.save(stand_ins=["analyst"])
    assert backup_restore.cancel("shop")
    assert cluster.roles == {"shop"}
    assert cluster.databases == {"shop": True}
    assert not backup_restore.place_beside(shared).exists()


@pytest.mark.usefixtures("out_of_reach")
@pytest.mark.parametrize("act", [backup_restore.undo, backup_restore.drop])
def test_the_ways_back_need_no_repository(
    app: dict[str, Any], cluster: Cluster, act: Callable[[str, str], list[str]]
) -> None:
    cluster.databases[f"shop_before_{NOW}"] = True
    said = module.left({"owner": "shop"}, False)["lines"]
    assert said == [f"kept of the restore {NOW}: shop_before_{NOW}"]
    assert act("shop", NOW)
    assert f"shop_before_{NOW}" not in cluster.databases


def test_who_asks_for_snapshots_locks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple] = []

    def ran(*words: Any) -> Any:
        seen.append(words)
        return SimpleNamespace(stdout=json.dumps([]))

    monkeypatch.setattr(backup_files, "restic", ran)
    assert backup_files.snapshots(SETUP, "shop") == []
    assert "--no-lock" in seen[0]


# The playbook.


def of_playbook(name: str, **known: Any) -> Any:
    """Return a variable of the playbook, as it is on a server."""
    (play,) = load_yaml(ROOT / "playbooks/restore.yml")
    usual = {"app_name": "shop", "ansible_play_hosts_all": ["web", "db"], "hostvars": {}}
    templar = Templar(DataLoader(), {**usual, **play["vars"], **known})
    return templar.template(play["vars"][name])


def planned(**restoring: str) -> dict[str, Any]:
    """Return what all servers know of a restore that was begun on the one with the database."""
    plan = {"plan": {"restoring": restoring}}
    return {"web": {}, "db": {"__backup_plan": plan}}


@pytest.mark.parametrize(("restoring", "known"), [({}, []), ({"id": NOW}, [NOW])])
def test_what_was_begun_on_any_server_gives_its_moment_to_all(
    restoring: dict[str, str], known: list[str]
) -> None:
    assert of_playbook("restore_begun", hostvars=planned(**restoring)) == known


@pytest.mark.parametrize(
    ("was_on", "restoring", "stays"),
    [
        (True, {}, True),
        # It was this playbook, which was cut short.
        (True, {"id": NOW}, False),
        (False, {}, False),
    ],
)
def test_a_page_that_somebody_had_on_stays_on(
    was_on: bool, restoring: dict[str, str], stays: bool
) -> None:
    known = {"__nginx_switched": {"changed": not was_on}, "hostvars": planned(**restoring)}
    assert of_playbook("restore_page_stays", **known) is stays


@pytest.mark.parametrize(
    ("asked", "is_back", "moment"),
    [
        ({"restore_to": "latest"}, False, ""),
        ({"restore_to": "latest", "restore_moment": NOW}, False, NOW),
        ({"restore_undo": NOW}, True, NOW),
        ({"restore_drop": NOW}, True, NOW),
        ({"restore_cancel": "shop"}, True, ""),
        ({"restore_cancel": "blog"}, False, ""),
    ],
)
def test_the_moment_of_a_restore_is_no_way_back(
    asked: dict[str, str], is_back: bool, moment: str
) -> None:
    assert of_playbook("restore_is_back", **asked) is is_back
    assert of_playbook("backup_restore_moment", **asked) == moment


@pytest.mark.parametrize(
    ("asked", "release", "moment", "to"),
    [
        ("latest", "", "", "latest"),
        ("before 46b2c12fc937", "46b2c12fc937", "before-46b2c12fc937-x", "before-46b2c12fc937-x"),
        # The points may still have what the books have not.
        ("before 46b2c12fc937", "46b2c12fc937", "", "before 46b2c12fc937"),
        ("before-46b2c12fc937-x", "", "", "before-46b2c12fc937-x"),
    ],
)
def test_a_release_is_told_to_all_servers_by_the_books_of_the_app(
    asked: str, release: str, moment: str, to: str
) -> None:
    known = {"restore_to": asked, "stack_app": ["web"], "hostvars": {"web": {}}}
    assert of_playbook("restore_release", **known) == release
    known["hostvars"] = {"web": {"__app_moment": {"moment": moment}}} if moment else {"web": {}}
    assert of_playbook("backup_restore_to", **known) == to
    assert of_playbook("backup_restore_to", stack_app=[]) == ""


def test_the_ways_back_do_not_ask_the_repository() -> None:
    (play,) = load_yaml(ROOT / "playbooks/restore.yml")
    roles = [x for x in play["tasks"] if "ansible.builtin.include_role" in x]
    asks = {x["ansible.builtin.include_role"]["tasks_from"]: x["when"] for x in roles}
    assert "not restore_is_back" in asks["restore_plan"]


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A copy that ends before now; return what is asked of the live cluster."""
    monkeypatch.setattr(
        backup_repository, "reading", lambda setup, place: setup | {"repository": place}
    )
    stop = {"timestamp": {"stop": 100.0}, "type": "full", "label": "20261122-101500F"}
    monkeypatch.setattr(backup_repository, "info", lambda _: {"backup": [stop]})
    monkeypatch.setattr(backup_jobs, "inspect", lambda *_, **__: {"newest": 2000.0})
    monkeypatch.setattr(backup_files, "snapshots", lambda *_: [SNAPSHOT])
    asked: dict[str, Any] = {}
    for name in ("mark", "switch"):
        monkeypatch.setattr(backup_jobs, name, lambda *_, name=name: asked.update({name: True}))
    return asked


TO = "1970-01-01 00:10:00+00"


def test_out_of_a_copy_nothing_is_awaited_of_the_live_cluster(
    app: dict[str, Any], copied: dict[str, Any]
) -> None:
    assert backup_restore.begin("shop", TO, NOW, "copy")["place"] == "copy"
    assert copied == {}


def test_out_of_a_copy_comes_what_it_has(app: dict[str, Any], copied: dict[str, Any]) -> None:
    with pytest.raises(Failure, match=r"copy ends before now.* 1970-01-01 00:33:21"):
        backup_restore.begin("shop", "latest", NOW, "copy")
    with pytest.raises(Failure, match=r"after the newest moment.* 1970-01-01 00:33:21"):
        backup_restore.begin("shop", "1970-01-01 00:40:00+00", NOW, "copy")


def test_a_restore_goes_on_out_of_where_it_was_begun(
    app: dict[str, Any], copied: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    backup_restore.begin("shop", TO, NOW, "copy")
    with pytest.raises(Failure, match="-e restore_place=copy; or give it up"):
        backup_restore.begin("shop", TO, NOW)
    monkeypatch.setattr(backup_repository, "check_place", lambda _: None)
    seen: dict[str, str] = {}
    for name in ("dump", "load", "bring_files"):
        monkeypatch.setattr(
            backup_restore,
            name,
            lambda setup, _, name=name: seen.update({name: setup["repository"]}),
        )
    backup_restore.prepare("shop")
    assert seen == {"dump": "copy", "load": "/mnt/backup", "bring_files": "copy"}
