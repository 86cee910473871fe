"""An app's own Valkey: what it is asked for by, what is refused, and that it costs nobody else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.carafe.stack.playbooks.meta import preflight as stack
from ansible_collections.carafe.stack.plugins.module_utils import commands, services
from ansible_collections.carafe.stack.plugins.modules import valkey
from ansible_collections.carafe.stack.plugins.plugin_utils.options import checks_of
from ansible_collections.carafe.stack.plugins.plugin_utils.problems import Server
from conftest import ROOT, Role
from inventories import SECRETS, Looked

ROLE = checks_of("roles.valkey")
APP = {"app_name": "shop", "app_domains": ["example.com"], "app_path": str(ROOT / "sample_app")}
APP |= {"app_wsgi": "wsgi:app"}


def looked(folder: Path, servers: tuple[str, ...] = ("one",), **variables: Any) -> Looked:
    place = folder / "inventory/prod"
    place.mkdir(parents=True, exist_ok=True)
    hosts = {x: {"private_address": f"192.0.2.{n}"} for n, x in enumerate(servers, 1)}
    groups = {x: {"hosts": hosts} for x in ("prod", "app")}
    groups |= {x: {"hosts": {servers[0]: None}} for x in ("db", "web")}
    (place / "hosts.yml").write_text(json.dumps(groups))
    (place / "group_vars").mkdir(exist_ok=True)
    (place / "group_vars/prod.yml").write_text(yaml.safe_dump({**APP, **SECRETS, **variables}))
    return Looked(place)


def test_one_variable_brings_it(tmp_path: Path) -> None:
    seen = looked(tmp_path, stack_cache=True, app_environment={"REDIS_URL": "redis://mine"})
    assert seen.said == ""
    assert "valkey" in seen.value("stack_host_roles")
    assert "valkey-server" in seen.value("stack_packages")
    environment = seen.value("__app_environment")
    assert environment["CACHE_URL"] == "unix:///run/valkey-shop/valkey.sock?db=0"
    assert environment["REDIS_URL"] == "redis://mine"
    assert seen.value("app_claims.memory_mb") - seen.value("stack_workers_memory_mb") == 64


def test_without_there_is_nothing_of_it(tmp_path: Path) -> None:
    seen = looked(tmp_path)
    assert seen.said == ""
    assert "valkey" not in seen.value("stack_host_roles") + seen.value("stack_packages")
    assert not {"CACHE_URL", "REDIS_URL"} & seen.value("__app_environment").keys()
    assert seen.value("app_claims.memory_mb") == seen.value("stack_workers_memory_mb")


def test_several_app_servers_would_have_several(tmp_path: Path) -> None:
    said = looked(tmp_path, ("one", "two"), stack_cache=True).said
    assert "stack_cache is true, and each of one, two would have a cache of its own" in said
    assert "REDIS_URL in app_environment" in said, said


def test_its_memory_is_counted() -> None:
    values = {"gunicorn_workers": 1, "gunicorn_slots": 1, "gunicorn_worker_memory_mb": 100}
    values |= {"valkey_memory_mb": 300, "stack_host_roles": ["app", "valkey"]}
    server = Server("a", values=values, facts={"memtotal_mb": 527})
    (problem,) = stack.check_memory(server)
    assert "1 workers x 1 slots x 100 + 300 for Valkey + 128 for the system" in problem.what
    values["stack_host_roles"] = ["app"]
    assert list(stack.check_memory(server)) == []


@pytest.mark.parametrize(
    "name",
    [
        *("port", "bind", "unixsocketperm", "user", "aclfile", "requirepass", "include", "dir"),
        *("PORT", "maxmemory", "save\nport", "a b", "enable-debug-command", "loadmodule"),
    ],
)
def test_no_setting_opens_it_to_others(name: str) -> None:
    assert list(ROLE.check_settings(Server("a", values={"valkey_settings": {name: "1"}})))


@pytest.mark.parametrize("value", ["", "Ex\nport 6379", "\0"])
def test_no_setting_is_more_than_one_line(value: str) -> None:
    settings = {"notify-keyspace-events": value}
    assert list(ROLE.check_settings(Server("a", values={"valkey_settings": settings})))


@pytest.mark.parametrize(("name", "value"), [("notify-keyspace-events", "Ex"), ("timeout", 0)])
def test_other_settings_are_let_through(name: str, value: object) -> None:
    assert not list(ROLE.check_settings(Server("a", values={"valkey_settings": {name: value}})))


def test_everybody_has_all_of_the_data_and_nothing_of_the_server() -> None:
    text = (Role("valkey").path / "templates/etc/valkey-instances/instance.conf.j2").read_text()
    (rule,) = (line.split() for line in text.splitlines() if line.startswith("user "))
    assert rule[1:6] == ["default", "on", "nopass", "~*", "&*"]
    assert rule[6:8] == ["+@all", "-@admin"]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A server with the files of the role, on which systemd is asked for nothing."""
    state = {"ActiveState": "active", "UnitFileState": "enabled", "NeedDaemonReload": "no"}
    states = {"valkey@root.service": state, "valkey-server.service": {**state}}
    states["valkey-server.service"]["UnitFileState"] = "disabled"
    asked: list[str] = []
    for name in ("SETTINGS", "UNITS", "RUN", "PROGRAMS"):
        monkeypatch.setattr(valkey, name, tmp_path / name)
        (tmp_path / name).mkdir()
    (tmp_path / "SETTINGS/root.conf").touch()
    (tmp_path / "UNITS/valkey@.service").touch()
    (tmp_path / "UNITS/valkey@.service.d").mkdir()
    (tmp_path / "PROGRAMS/valkey-server").touch()
    (tmp_path / "RUN/valkey-root").mkdir()
    (tmp_path / "RUN/valkey-root/valkey.sock").touch()
    monkeypatch.setattr(services, "state", lambda unit, *_: states[unit])
    monkeypatch.setattr(services, "act", lambda unit, verbs: asked.extend(verbs))
    monkeypatch.setattr(valkey, "run", lambda *words: asked.append(" ".join(words)))
    return {"states": states, "asked": asked, "folder": tmp_path}


def serve(dry: bool = False, user: str = "root") -> dict[str, Any]:
    return valkey.serve({"user": user, "package_service": "valkey-server.service"}, dry)


def test_what_runs_by_its_files_is_left_alone(server: dict[str, Any]) -> None:
    assert serve() == {"changed": False, "done": []}
    assert server["asked"] == []


@pytest.mark.parametrize("file", ["SETTINGS/root.conf", "UNITS/valkey@.service"])
def test_what_is_older_than_its_files_is_restarted(server: dict[str, Any], file: str) -> None:
    os.utime(server["folder"] / file, (2**32, 2**32))
    assert "restart" in serve(dry=True)["done"]
    assert server["asked"] == []
    assert serve()["changed"]
    assert "restart" in server["asked"]


@pytest.mark.parametrize(
    ("active", "enabled", "disabled"),
    [("inactive", "enabled", True), ("active", "enabled", False), ("inactive", "disabled", False)],
)
def test_the_service_of_the_package_is_off_unless_somebody_runs_it(
    server: dict[str, Any], active: str, enabled: str, disabled: bool
) -> None:
    state = {"ActiveState": active, "UnitFileState": enabled}
    server["states"]["valkey-server.service"].update(state)
    assert serve()["changed"] is disabled
    assert ("systemctl disable --quiet valkey-server.service" in server["asked"]) is disabled


def test_a_user_that_is_not_there_is_told_in_words(server: dict[str, Any]) -> None:
    with pytest.raises(commands.Failure, match="valkey_user is 'no-such', and the server has no"):
        serve(user="no-such")


def test_a_package_that_is_not_there_is_told_in_words(server: dict[str, Any]) -> None:
    (server["folder"] / "PROGRAMS/valkey-server").unlink()
    with pytest.raises(commands.Failure, match="Set valkey_manage_packages to true"):
        serve()
