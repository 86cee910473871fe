"""Servers that share an address: what is refused, what is written, and what is done about it."""

from __future__ import annotations

import json
import os
import socket
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.template import trust_as_template
from ansible_collections.carafe.stack.playbooks.meta import preflight as stack
from ansible_collections.carafe.stack.plugins.module_utils import commands, services
from ansible_collections.carafe.stack.plugins.modules import keepalived
from ansible_collections.carafe.stack.plugins.plugin_utils.options import checks_of
from ansible_collections.carafe.stack.plugins.plugin_utils.problems import Server
from conftest import FACTS, ROOT, Role
from inventories import SECRETS, Looked

CHECKS = checks_of("roles.keepalived").CHECKS
WELL: dict[str, Any] = {
    **{"keepalived_addresses": ["198.51.100.100/24"], "keepalived_source": "10.0.0.11"},
    **{"keepalived_peers": ["10.0.0.12"], "keepalived_owner": "shop"},
    **{"keepalived_interface": "eth0", "keepalived_check_url": "http://127.0.0.1/"},
    **{"keepalived_takeover_command": ""},
}


def said(found: dict[str, Any] | None = None, **values: Any) -> list[str]:
    server = Server("one", values=WELL | values, facts={"found": found or {}})
    return [f"{x.variable} {x.what}" for check in CHECKS for x in check(server)]


def test_what_is_right_is_let_through() -> None:
    assert said() == []
    assert said(keepalived_addresses=["198.51.100.100/24", "2001:db8::100/64"]) == []
    assert said(keepalived_takeover_command="/usr/local/bin/take fip-1 --to me") == []
    six = {"keepalived_source": "fd00::1", "keepalived_peers": ["fd00::2"]}
    assert said(**six, keepalived_addresses=["2001:db8::100/64"]) == []


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"keepalived_addresses": []}, "is empty"),
        ({"keepalived_addresses": ["198.51.100.100"]}, "the length of its network"),
        ({"keepalived_addresses": ["198.51.100.100/33"]}, "the length of its network"),
        ({"keepalived_addresses": ["shop.example/24"]}, "the length of its network"),
        ({"keepalived_addresses": ["2001:db8::100/64"]}, "has none of IPv4"),
        ({"keepalived_source": "one.example"}, "this server's IP address"),
        ({"keepalived_peers": ["fd00::2"]}, "needs IPv4 addresses"),
        ({"keepalived_peers": ["10.0.0.11"]}, "which is one itself"),
        ({"keepalived_owner": "a b"}, "letters, digits"),
        ({"keepalived_owner": "../x"}, "letters, digits"),
        ({"keepalived_interface": ""}, "the name of an interface"),
        ({"keepalived_interface": "eth0 {"}, "the name of an interface"),
        ({"keepalived_check_url": 'http://x/"\n'}, "a URL such as"),
        ({"keepalived_check_url": "file:///etc/shadow"}, "a URL such as"),
        ({"keepalived_takeover_command": "take it"}, "absolute path"),
        ({"keepalived_takeover_command": '/bin/sh -c "x"'}, "absolute path"),
    ],
)
def test_what_would_move_nothing_is_refused(values: dict[str, Any], reason: str) -> None:
    assert any(reason in x for x in said(**values)), said(**values)


def test_what_somebody_has_set_up_by_hand_is_not_taken_over() -> None:
    (why,) = said(found={"keepalived": "/etc/keepalived/keepalived.conf"})
    assert "which somebody has written by hand" in why


@pytest.mark.parametrize(
    ("address", "number"),
    [("198.51.100.100/24", 101), ("198.51.100.255/32", 1), ("2001:db8::ff01/64", 2)],
)
def test_servers_know_each_other_by_the_end_of_the_address(address: str, number: int) -> None:
    role = Role("keepalived")
    assert int(role.value("keepalived_router_id", keepalived_addresses=[address])) == number


def text(**values: Any) -> str:
    role = Role("keepalived")
    known = {**WELL, "ansible_facts": FACTS, "ansible_managed": "Managed by Ansible"}
    path = role.path / "templates/etc/keepalived/conf.d/addresses.conf.j2"
    return role.templar(known | values).template(trust_as_template(path.read_text()))


def test_addresses_of_the_other_family_go_along() -> None:
    both = ["2001:db8::100/64", "198.51.100.100/24"]
    main, _, excluded = text(keepalived_addresses=both).partition("virtual_ipaddress_excluded")
    assert "198.51.100.100/24 dev eth0" in main
    assert "2001:db8::100/64 dev eth0" in excluded
    assert "virtual_ipaddress_excluded" not in text()
    assert "notify_master" not in text()
    assert '"/usr/bin/take it" root root' in text(keepalived_takeover_command="/usr/bin/take it")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A server with the files of the role, on which systemd is asked for nothing."""
    state = {"ActiveState": "active", "UnitFileState": "enabled", "NeedDaemonReload": "no"}
    asked: list[str] = []
    for name in ("OWNERS", "DROP_INS"):
        monkeypatch.setattr(keepalived, name, tmp_path / name)
        (tmp_path / name).mkdir()
    for name in ("PROGRAM", "SETTINGS", "SANDBOX"):
        monkeypatch.setattr(keepalived, name, tmp_path / name)
        (tmp_path / name).touch()
    for name in ("shop", "blog"):
        (tmp_path / f"OWNERS/{name}.conf").touch()
    for name in ("carafe.conf", "fit-sandbox", "override.conf"):
        (tmp_path / "DROP_INS" / name).touch()
    monkeypatch.setattr(keepalived, "LOADED", tmp_path / "LOADED")
    (tmp_path / "LOADED").touch()
    monkeypatch.setattr(services, "state", lambda *_: state)
    monkeypatch.setattr(services, "act", lambda _, verbs: asked.extend(verbs))
    monkeypatch.setattr(keepalived, "run", lambda *words: asked.append(" ".join(words)))
    tried = types.SimpleNamespace(returncode=0, stdout="", stderr="")
    monkeypatch.setattr(keepalived, "ask", lambda *_: tried)
    monkeypatch.setattr(keepalived, "is_held", lambda _: True)
    return types.SimpleNamespace(state=state, asked=asked, folder=tmp_path, tried=tried)


def later(path: Path) -> None:
    at = path.stat().st_mtime + 60
    os.utime(path, (at, at))


def test_what_runs_by_its_files_is_left_alone(server: types.SimpleNamespace) -> None:
    assert keepalived.serve(["198.51.100.100/24"], False) == {"changed": False, "done": []}
    assert server.asked == []


@pytest.mark.parametrize(
    ("path", "verb"),
    [("OWNERS/shop.conf", "reload"), ("SETTINGS", "reload"), ("DROP_INS/carafe.conf", "restart")],
)
def test_what_is_newer_is_read(server: types.SimpleNamespace, path: str, verb: str) -> None:
    later(server.folder / path)
    assert keepalived.serve([], True)["done"] == ["daemon-reload", verb]
    assert server.asked == []
    assert keepalived.serve([], False)["changed"]
    assert server.asked == ["daemon-reload", verb]


def test_what_keepalived_does_not_take_stops_nothing(server: types.SimpleNamespace) -> None:
    later(server.folder / "SETTINGS")
    # As it is in each test, in which scripts are not looked at.
    server.tried.returncode, server.tried.stderr = 6, f"{keepalived.UNSAFE}\n"
    assert keepalived.serve([], False)["done"] == ["daemon-reload", "reload"]
    server.asked.clear()
    server.tried.stderr += "Unknown keyword 'x'\n"
    with pytest.raises(commands.Failure, match="Unknown keyword 'x' What runs goes on"):
        keepalived.serve([], False)
    assert server.asked == []


def test_where_nobody_takes_the_address_the_run_says_so(
    server: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.state["ActiveState"] = "inactive"
    monkeypatch.setattr(keepalived, "PATIENCE", 0)
    monkeypatch.setattr(keepalived, "is_held", lambda _: False)
    with pytest.raises(commands.Failure, match=r"Nobody has 198\.51\.100\.100, .*check_url"):
        keepalived.serve(["198.51.100.100/24"], False)


@pytest.mark.parametrize(
    ("raises", "held"),
    [(None, True), (ConnectionRefusedError, True), (TimeoutError, False), (OSError, False)],
)
def test_who_answers_or_refuses_is_there(
    monkeypatch: pytest.MonkeyPatch, raises: type[OSError] | None, held: bool
) -> None:
    def connect(*_: Any, **__: Any) -> Any:
        if raises:
            raise raises
        return types.SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(socket, "create_connection", connect)
    assert keepalived.is_held("198.51.100.100") is held


def test_one_owner_s_addresses_go_and_the_others_stay(server: types.SimpleNamespace) -> None:
    promised = keepalived.remove("shop", True)["changes"]
    assert keepalived.remove("shop", False)["changes"] == promised
    assert server.asked == ["reload"]
    assert (server.folder / "OWNERS/blog.conf").exists()
    assert (server.folder / "SETTINGS").exists()
    assert keepalived.remove("shop", False)["changes"] == []


def test_with_the_last_one_all_of_it_goes_but_what_is_the_user_s(
    server: types.SimpleNamespace,
) -> None:
    (server.folder / "OWNERS/blog.conf").unlink()
    keepalived.remove("shop", False)
    assert server.asked[0].startswith("systemctl disable --now")
    left = {x.name for x in server.folder.rglob("*") if x.is_file()}
    assert left == {"PROGRAM", "LOADED", "override.conf"}
    server.state["ActiveState"] = "inactive"
    assert keepalived.remove("shop", False)["changes"] == []


# --- the stack ---------------------------------------------------------------------------------

APP = {"app_name": "shop", "app_domains": ["example.com"], "app_path": str(ROOT / "sample_app")}
APP |= {"app_wsgi": "wsgi:app"}


@pytest.fixture
def looked(tmp_path: Path) -> Callable[..., Looked]:
    def look(webs: tuple[str, ...] = ("one", "two"), **variables: Any) -> Looked:
        place = tmp_path / "inventory/prod"
        (place / "group_vars").mkdir(parents=True)
        names = {"one": 1, "two": 2}
        hosts = {x: {"private_address": f"10.0.0.{n}"} for x, n in names.items()}
        groups = {"prod": {"hosts": hosts}, "app": {"hosts": dict.fromkeys(names)}}
        groups["web"] = {"hosts": dict.fromkeys(webs)}
        (place / "hosts.yml").write_text(json.dumps(groups))
        values = {k: v for k, v in SECRETS.items() if "database" not in k}
        (place / "group_vars/prod.yml").write_text(yaml.safe_dump(APP | values | variables))
        return Looked(place, facts=FACTS)

    return look


def test_two_web_servers_share_an_address_by_one_variable(looked: Callable[..., Looked]) -> None:
    seen = looked(stack_web_addresses=["198.51.100.100/24"])
    # Without a database, nobody needs its passwords.
    assert seen.said == ""
    assert "keepalived" in seen.value("stack_host_roles", "one")
    assert "keepalived" in seen.value("stack_packages", "one")
    for host, other, priority in (("one", "10.0.0.2", 200), ("two", "10.0.0.1", 199)):
        assert seen.value("keepalived_peers", host) == [other]
        assert int(seen.value("keepalived_priority", host)) == priority
        rules = [x for x in seen.value("firewall_default_allow", host) if not x.get("ports")]
        assert [(x["protocol"], x["sources"]) for x in rules] == [("vrrp", [other])]


@pytest.mark.parametrize(
    "given", [{}, {"webs": ("one",), "stack_web_addresses": ["198.51.100.100/24"]}]
)
def test_without_it_nothing_of_it_is_there(
    looked: Callable[..., Looked], given: dict[str, Any]
) -> None:
    # With nobody to share them with, too.
    seen = looked(**given)
    assert seen.said == ""
    assert "keepalived" not in seen.value("stack_host_roles", "one")
    assert not [x for x in seen.value("firewall_default_allow", "one") if not x.get("ports")]


@pytest.mark.parametrize(("webs", "told"), [(["one"], True), (["one", "two"], False)])
def test_who_has_nobody_to_share_with_is_told(webs: list[str], told: bool) -> None:
    values = {"stack_web": webs, "stack_web_addresses": ["198.51.100.100/24"]}
    notes = list(stack.note_alone(Server("one", values=values)))
    assert bool(notes) is told
    assert list(stack.note_alone(Server("one", values={"stack_web": webs}))) == []
