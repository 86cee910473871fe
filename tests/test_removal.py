"""What goes with an app, and what of the server's other apps and people stays."""

from __future__ import annotations

import json
import os
import pwd
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.carafe.stack.plugins.module_utils import (
    archive,
    certificates,
    claims,
    nginx,
    postgresql_config,
    postgresql_removal,
    removal,
)
from ansible_collections.carafe.stack.plugins.module_utils.commands import Failure, Refused
from ansible_collections.carafe.stack.plugins.modules import nginx_info
from conftest import ROLES, ROOT, load_yaml

WIRING = {
    **load_yaml(ROOT / "playbooks/group_vars/all/stack.yml"),
    **{"stack_has_backup": True, "stack_alerts": True, "stack_metrics": True},
}


class Supervisord:
    """Answers as it does with two apps, one of which begins with the other's name."""

    def __init__(self) -> None:
        self.running = ["shop", "shop.jobs", "shopper", "shopper.jobs"]
        self.stopped: list[str] = []

    def getAllProcessInfo(self) -> list[dict[str, str]]:
        return [{"group": name} for name in self.running]


@pytest.fixture
def supervisord(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Supervisord:
    found = Supervisord()
    for name in ("PROGRAMS", "LOGS", "UNITS", "STAMPS"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(removal, name, tmp_path / name)
    for name in ("shop", "shop.workers", "shopper", "shopper.workers", "shop_two"):
        (tmp_path / "PROGRAMS" / f"{name}.conf").touch()
    for name in ("shop_0.log", "shop_0.log.1", "shop.log_0.log", "shopper_0.log", "shop_two_0.log"):
        (tmp_path / "LOGS" / name).touch()
    (tmp_path / "LOGS/supervisord.log").touch()
    (tmp_path / "socket").touch()
    monkeypatch.setattr(removal.supervisord, "SOCKET", str(tmp_path / "socket"))
    monkeypatch.setattr(removal.supervisord, "connect", lambda: found)

    def update(rpc: Supervisord, mine: Any) -> None:
        rpc.stopped += [name for name in rpc.running if mine(name)]

    monkeypatch.setattr(removal.supervisord, "update", update)
    return found


def names(folder: Path) -> set[str]:
    return {x.name for x in folder.iterdir()}


@pytest.mark.usefixtures("supervisord")
@pytest.mark.parametrize(
    ("patterns", "stopped", "gone"),
    [
        (["shop"], ["shop"], {"shop.conf", "shop_0.log", "shop_0.log.1"}),
        (["shop.*"], ["shop.jobs"], {"shop.workers.conf", "shop.log_0.log"}),
        (["shop_two"], [], {"shop_two.conf", "shop_two_0.log"}),
        (["sho"], [], set()),
        ([], [], set()),
    ],
)
def test_an_app_s_programs_go_and_those_of_the_like_stay(
    tmp_path: Path,
    supervisord: Supervisord,
    patterns: list[str],
    stopped: list[str],
    gone: set[str],
) -> None:
    before = names(removal.PROGRAMS) | names(removal.LOGS)
    dry = removal.Removal(check=True)
    dry.programs(patterns)
    assert names(removal.PROGRAMS) | names(removal.LOGS) == before
    assert supervisord.stopped == []
    real = removal.Removal(check=False)
    real.programs(patterns)
    assert supervisord.stopped == stopped
    assert before - (names(removal.PROGRAMS) | names(removal.LOGS)) == gone
    assert dry.changes == real.changes
    assert len(real.changes) == len(gone) + len(stopped)


def test_what_a_run_that_was_cut_short_left_running_is_stopped(supervisord: Supervisord) -> None:
    for path in removal.PROGRAMS.iterdir():
        path.unlink()
    removal.Removal(check=False).programs(["shop"])
    assert supervisord.stopped == ["shop"]


def test_files_go_by_pattern_and_a_link_where_it_leads_there(tmp_path: Path) -> None:
    for name in ("shop/a", "shopper/b"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.symlink_to(tmp_path / "shop/a")
    theirs.symlink_to(tmp_path / "shopper/b")
    found = removal.Removal(check=False)
    found.link(ours, str(tmp_path / "shop/a"))
    found.link(theirs, str(tmp_path / "shop/a"))
    found.paths([str(tmp_path / "sho[p]"), str(tmp_path / "none*")])
    assert names(tmp_path) == {"shopper", "theirs"}
    assert found.changes == [f"remove {ours}", f"remove {tmp_path / 'shop'}"]


@pytest.mark.parametrize("path", ["/", "/srv", "srv", "/srv/"])
def test_a_folder_of_everybody_s_stays(path: str) -> None:
    with pytest.raises(Refused, match="is not one app's alone"):
        removal.Removal(check=True).paths([path])


def test_a_user_who_was_not_made_for_the_app_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "run", lambda *words: pytest.fail(f"ran {words}"))
    found = removal.Removal(check=False)
    there = SimpleNamespace(pw_uid=33, pw_dir="/var/www", pw_shell=removal.NOLOGIN)
    monkeypatch.setattr(removal.pwd, "getpwnam", lambda name: there)
    (said,) = found.users(["www-data"], "/srv/shop")
    assert said.startswith("The user www-data stays: its home is /var/www and its shell ")
    person = SimpleNamespace(pw_uid=1000, pw_dir="/srv/shop", pw_shell="/bin/bash")
    monkeypatch.setattr(removal.pwd, "getpwnam", lambda name: person)
    assert len(list(found.users(["anna"], "/srv/shop"))) == 1
    root = SimpleNamespace(pw_uid=0, pw_dir="/srv/shop", pw_shell=removal.NOLOGIN)
    monkeypatch.setattr(removal.pwd, "getpwnam", lambda name: root)
    assert len(list(found.users(["root"], "/srv/shop"))) == 1
    assert found.changes == []


def test_a_user_of_the_app_goes_with_what_the_system_keeps_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, ...]] = []
    user = SimpleNamespace(
        pw_name="shop-deploy", pw_uid=999, pw_dir="/srv/shop", pw_shell=removal.NOLOGIN
    )
    there = {"shop-deploy": user}
    monkeypatch.setattr(removal.pwd, "getpwnam", there.__getitem__)
    monkeypatch.setattr(removal, "run", lambda *words: done.append(words))
    monkeypatch.setattr(removal, "ask", lambda *words: SimpleNamespace(returncode=1))
    monkeypatch.setattr(removal, "OF_A_USER", (str(tmp_path / "crontabs/{}"),))
    monkeypatch.setattr(removal, "UNITS", tmp_path)
    (tmp_path / r"carafe-shop\x2ddeploy.slice").touch()
    (tmp_path / "crontabs").mkdir()
    for name in there:
        (tmp_path / "crontabs" / name).touch()
    assert list(removal.Removal(check=False).users(there, "/srv/shop")) == []
    assert ("userdel", "shop-deploy") in done
    assert names(tmp_path) == {"crontabs"}
    assert names(tmp_path / "crontabs") == set()


def test_who_leaves_alone_leaves_the_server_as_it_is(tmp_path: Path) -> None:
    assert claims.left(tmp_path / "none", "shop") == {"changed": False, "changes": []}
    assert not (tmp_path / "none").exists()
    claims.claim(tmp_path, "shop", {"a": 1})
    path = tmp_path / "shop.json"
    assert claims.left(tmp_path, "blog") == {"changed": False, "changes": []}
    assert claims.left(tmp_path, "shop", check=True) == {
        "changed": True,
        "changes": [f"remove {path}"],
    }
    assert path.exists()
    claims.claim(tmp_path, "blog", {"a": 1})
    assert claims.left(tmp_path, "shop") is None
    (tmp_path / "blog.json").unlink()
    claims.left(tmp_path, "shop")
    assert not path.exists()


@pytest.mark.parametrize(("others", "stops"), [(True, False), (False, True)])
def test_certificates_go_with_what_would_renew_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: bool, stops: bool
) -> None:
    monkeypatch.setattr(certificates, "FOLDER", tmp_path)
    done: list[tuple[str, ...]] = []
    monkeypatch.setattr(certificates, "ask", lambda *words: done.append(words))
    for name in ("shop", "shop2"):
        for folder in ("acme/live", "acme/archive"):
            (tmp_path / folder / name).mkdir(parents=True)
        (tmp_path / "acme/renewal").mkdir(exist_ok=True)
        (tmp_path / f"acme/renewal/{name}.conf").touch()
        (tmp_path / f"{name}.pem").touch()
    (tmp_path / "attempts.json").write_text('{"shop": {}, "shop2": {"failures": 1}}')
    said = certificates.remove(["shop"], others, check=True)
    assert (tmp_path / "shop.pem").exists()
    assert done == []
    assert certificates.remove(["shop"], others, check=False) == said
    left = sorted(x.name for x in tmp_path.rglob("shop*"))
    assert left == ["shop2", "shop2", "shop2.conf", "shop2.pem"]
    assert bool(done) == stops


SHOP = {
    "databases": [
        {"name": "shop", "roles": ["shop-owner", "shop", "report"]},
        {"name": "common", "roles": ["common-owner", "shop"]},
    ],
    "roles": ["shop-owner", "shop-deploy", "shop", "report"],
}
BLOG = {"databases": [{"name": "common", "roles": ["common-owner", "blog", "report"]}]}


@pytest.mark.parametrize(
    ("shop", "blog", "databases", "roles"),
    [
        (SHOP, {}, ["shop", "common"], ["shop-owner", "shop", "report"]),
        (SHOP, BLOG, ["shop"], ["shop-owner", "shop"]),
        (SHOP, {"roles": ["shop"]}, ["shop", "common"], ["shop-owner", "report"]),
        ({"databases": SHOP["databases"]}, BLOG, ["shop"], ["shop-owner", "shop"]),
        ({"roles": ["postgres", "x"]}, {}, [], ["x"]),
        ({}, BLOG, [], []),
    ],
)
def test_what_another_owner_claims_as_well_is_not_dropped(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shop: dict,
    blog: dict,
    databases: list[str],
    roles: list[str],
) -> None:
    monkeypatch.setattr(postgresql_config, "FOLDER", tmp_path)
    claims.claim(tmp_path, "shop", shop)
    claims.claim(tmp_path, "blog", blog)
    owned = postgresql_removal.owned("shop")
    assert owned.databases == databases
    assert [x for x in owned.roles if x != "shop-deploy"] == roles
    assert ("shop-deploy" in owned.roles) == ("shop-deploy" in shop.get("roles", []))


def test_a_server_that_lets_nobody_in_is_not_taken_for_empty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(postgresql_removal, "session_now", lambda *_: None)
    gone = SimpleNamespace(is_installed=lambda: False, unit="postgresql@17-main.service")
    assert postgresql_removal.session(gone, "shop") is None
    there = SimpleNamespace(is_installed=lambda: True, unit="postgresql@17-main.service")
    with pytest.raises(Failure, match=r"may have data of shop\. .*postgresql@17-main"):
        postgresql_removal.session(there, "shop")


@pytest.fixture
def sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(nginx, "ETC", tmp_path / "nginx")
    monkeypatch.setattr(nginx, "DATA", tmp_path / "data")
    monkeypatch.setattr(nginx, "CLAIMS", tmp_path / "claims")
    monkeypatch.setattr(nginx, "abilities", lambda check_mode: {"ipv6": True})
    for name in ("nginx/sites-enabled", "data/cache-shop", "data/cache-blog", "claims"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("shop", "blog"):
        (tmp_path / f"nginx/sites-enabled/{name}.conf").touch()
        settings = {"nginx_extra_http": name, f"nginx_{name}": 1}
        claim = {"settings": settings, "sites": {name: {}}, "streams": []}
        (tmp_path / f"claims/{name}.json").write_text(json.dumps(claim))
    return tmp_path


def test_nginx_has_the_sites_and_settings_of_those_who_stay(sites: Path) -> None:
    found = nginx_info.look("shop", [], [], {}, {"nginx_gzip": True}, True, state="absent")
    assert [os.path.relpath(x, sites) for x in found["absent"]] == [
        "data/cache-shop",
        "nginx/sites-enabled/shop.conf",
        "claims/shop.json",
    ]
    settings = {"nginx_gzip": True, "nginx_extra_http": "blog", "nginx_blog": 1}
    assert found["settings"] == settings
    nothing = nginx_info.look("other", [], [], {}, {}, True, state="absent")
    assert nothing == {"changed": False, "absent": []}


REMOVAL = load_yaml(ROOT / "playbooks/vars/remove.yml")
SERVERS = {"stack_etcd": ["a", "b", "c"]}
SWITCHES = (
    *("stack_has_database", "stack_has_certificates", "stack_has_backup"),
    *("stack_cache", "stack_alerts", "stack_metrics"),
)


def order(**variables: Any) -> list[str]:
    known = dict.fromkeys(SWITCHES, True) | SERVERS
    templar = Templar(DataLoader(), {**WIRING, **known, **REMOVAL, **variables})
    return templar.template(templar.available_variables["remove_roles"])


@pytest.mark.parametrize(
    "less", ["", "has_certificates", "has_database", "cache", "alerts", "metrics"]
)
def test_roles_let_go_from_what_visitors_reach_to_what_it_builds_on(less: str) -> None:
    found = order(**{f"stack_{less}": False})
    # Whatever the inventory says now, it may have had once.
    assert sorted(found) == sorted(ROLES)
    # What might lock somebody out refuses before anything is gone.
    first = WIRING["stack_roles"]["all"]
    assert found[: len(first)] == first
    served = [found.index(x) for x in ("nginx", "certificates", "app")]
    of_several = ("patroni", "etcd")
    kept = [found.index(x) for x in ("app", "postgres", *of_several, "internal_tls")]
    assert served == sorted(served)
    assert less or kept == sorted(kept)


@pytest.mark.parametrize("role", ROLES)
def test_each_role_lets_go_and_says_of_what(role: str) -> None:
    """A role that is added to the stack says so in its tasks/remove.yml, and nowhere else."""
    tasks = load_yaml(ROOT / "roles" / role / "tasks/remove.yml")
    assert f"__{role}_removed" in [task.get("register") for task in tasks]


@pytest.mark.parametrize(
    ("local", "roles", "environment"),
    [
        ({}, {"nginx"}, "prod"),
        ({"shop": {"environment": "prod"}}, {"nginx", "valkey"}, "prod"),
        ({"shop": {"environment": "staging"}}, {"app"}, "staging"),
    ],
)
def test_what_has_the_app_s_name_alone_goes_only_where_carafe_has_put_the_app(
    local: dict, roles: set[str], environment: str
) -> None:
    tasks = {x["name"]: x for x in load_yaml(ROOT / "playbooks/tasks/remove.yml")}
    known = {"app_name": "shop", "app_environment_name": "prod", "stack_cache": True}
    facts = {"ansible_facts": {"ansible_local": local}}
    more = dict.fromkeys(SWITCHES, True) | SERVERS
    templar = Templar(DataLoader(), {**WIRING, **REMOVAL, **known, **facts, **more})
    loop = next(x["loop"] for x in tasks.values() if "loop" in x)
    found = set(templar.template(trust_as_template(loop)))
    assert roles <= found
    by_name = {"app", "valkey"}
    assert found & by_name == (by_name if local else set())
    assert "internal_tls" in found
    assert templar.template(templar.available_variables["remove_environment"]) == environment


@pytest.mark.parametrize(("noted", "environment"), [({"shop": "staging"}, "staging"), ({}, "prod")])
def test_another_environment_s_database_is_told_from_ours(noted: dict, environment: str) -> None:
    """Where no app is, there is no fact of one: the first run of its stack has left a note."""
    known = {"app_name": "shop", "app_environment_name": "prod"}
    facts = {"ansible_facts": {"ansible_local": {}, "found": {"environments": noted}}}
    templar = Templar(DataLoader(), {**WIRING, **REMOVAL, **known, **facts})
    assert templar.template(templar.available_variables["remove_environment"]) == environment


def test_what_all_roles_have_kept_and_removed_is_said_once() -> None:
    registered = {
        "__app_stopped": {"changes": ["stop x"]},
        "__app_kept": {"changes": ["pack y"]},
        "__app_removed": {"changes": ["stop x", "remove z"]},
        "__postgres_kept": {"skipped": True},
    }
    known = {"app_name": "shop", "stack_has_database": True, "stack_has_certificates": True}
    variables = {**WIRING, **REMOVAL, **known, "stack_cache": True, **registered, **SERVERS}
    templar = Templar(DataLoader(), variables)
    found = templar.template(templar.available_variables["remove_changes"])
    assert found == ["stop x", "pack y", "remove z"]


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    folder = tmp_path / "shared/media/a"
    folder.mkdir(parents=True)
    (folder / "picture").write_bytes(b"x" * 2000)
    (folder / "link").symlink_to("/etc/passwd")
    (folder / "older").symlink_to("/etc")
    os.mkfifo(folder / "pipe")
    return tmp_path / "shared"


def archive_of(folder: Path, check: bool = False) -> dict[str, Any]:
    dest = folder.parent / "leaving/shared.tar"
    user = pwd.getpwuid(os.geteuid()).pw_name
    wanted = {"folder": folder, "dest": dest, "user": user, "otherwise": "do without"}
    return archive.make(wanted, check)


def test_what_visitors_have_sent_is_packed_and_none_of_what_a_link_leads_to(shared: Path) -> None:
    found = archive_of(shared)
    (path,) = found["archives"]
    assert re.fullmatch(r"pack .*/shared: 4 files, [\d.]+ KB", found["changes"][0])
    with tarfile.open(path) as tar:
        names = {x.name: x for x in tar.getmembers()}
        assert tar.extractfile("./media/a/picture").read() == b"x" * 2000
    assert names["./media/a/link"].issym()
    assert names["./media/a/older"].issym()
    assert "./media/a/older/passwd" not in names
    assert Path(path).stat().st_mode & 0o777 == 0o400
    # Again, after a run that was cut short.
    assert archive_of(shared)["archives"] == [path]


def test_a_dry_run_says_how_much_would_be_packed(shared: Path) -> None:
    found = archive_of(shared, check=True)
    assert "4 files" in found["changes"][0]
    assert not (shared.parent / "leaving").exists()


def test_a_folder_with_nothing_in_it_makes_no_archive(tmp_path: Path) -> None:
    (tmp_path / "shared/media").mkdir(parents=True)
    assert archive_of(tmp_path / "shared")["archives"] == []
    assert archive_of(tmp_path / "none") == {"changed": False, "changes": [], "archives": []}


def test_a_folder_with_links_to_folders_alone_is_packed(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/media").symlink_to("/mnt")
    found = archive_of(tmp_path / "shared")
    assert "1 file," in found["changes"][0]
    with tarfile.open(*found["archives"]) as tar:
        assert tar.getmember("./media").linkname == "/mnt"


def test_what_does_not_fit_is_refused_before_anything_goes(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(free=archive.ROOM + 4000)
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(Failure, match=r"no room to pack .* do without$"):
        archive_of(shared)
    assert not (shared.parent / "leaving").exists()


def test_an_archive_that_is_not_whole_does_not_stay(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "defpath", str(shared.parent))
    (shared.parent / "tar").write_text("#!/bin/sh\necho disk full >&2; exit 2\n")
    (shared.parent / "tar").chmod(0o755)
    monkeypatch.setenv("PATH", str(shared.parent))
    with pytest.raises(Failure, match=r"could not be packed, and stays: disk full"):
        archive_of(shared)
    assert list((shared.parent / "leaving").iterdir()) == []
