"""Who is let in during maintenance, what keeps it from being switched, and what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import nginx_maintenance as maintenance
from ansible_collections.carafe.stack.plugins.module_utils.ssh_peer import Peer


@pytest.fixture(autouse=True)
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server with the site shop; nobody is on ssh."""
    monkeypatch.setattr(maintenance, "SITES", tmp_path)
    monkeypatch.setattr(maintenance, "DATA", tmp_path)
    monkeypatch.setattr(maintenance, "peer", lambda: None)
    (tmp_path / "shop.conf").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("client", "ways"),
    [
        ("203.0.113.7", ["203.0.113.7"]),
        ("2001:db8::9", ["2001:db8::9"]),
        # A tunnel.
        ("127.0.0.1", []),
    ],
)
def test_the_operator_is_let_in_by_the_address_of_the_ssh(
    monkeypatch: pytest.MonkeyPatch, client: str, ways: list[str]
) -> None:
    monkeypatch.setattr(maintenance, "peer", lambda: Peer("deploy", client, "192.0.2.1", 22))
    assert maintenance.let_in([]) == ways


@pytest.mark.parametrize(
    ("allow", "ways"),
    [
        (["203.0.113.7"], ["203.0.113.7"]),
        ("['203.0.113.7']", ["203.0.113.7"]),
        ('["203.0.113.7", "198.51.100.1"]', ["198.51.100.1", "203.0.113.7"]),
        ("203.0.113.7,198.51.100.1, 203.0.113.7", ["198.51.100.1", "203.0.113.7"]),
        ("['2001:DB8:0:0:1::7']", ["2001:db8::1:0:0:7"]),
        ("[2001:db8::7]", ["2001:db8::7"]),
        ("::ffff:203.0.113.7", ["203.0.113.7"]),
    ],
)
def test_an_address_is_let_in_as_nginx_writes_it(allow: Any, ways: list[str]) -> None:
    words = maintenance.words(allow)
    assert maintenance.let_in(words) == ways
    assert not list(maintenance.problems(["shop"], words))


@pytest.mark.parametrize(
    ("names", "allow", "problem"),
    [
        (["shop"], "203.0.113.0/24", "nginx_maintenance_allow has 203.0.113.0/24"),
        (["shop"], "office.example.com", "nginx_maintenance_allow has office.example.com"),
        # A proxy on the server would bring everybody from there.
        (["shop"], "127.0.0.1", "nginx_maintenance_allow has 127.0.0.1"),
        (["shop"], "::1", "nginx_maintenance_allow has ::1"),
        (["shop"], "../on", "nginx_maintenance_allow has ../on"),
        ([], "", "nginx_sites has no site"),
        (["shop", "shpo"], "", "This server has no site shpo"),
    ],
)
def test_what_cannot_be_is_told(names: list[str], allow: str, problem: str) -> None:
    (told,) = maintenance.problems(names, maintenance.words(allow))
    assert problem in told


def switch(on: bool, page: str = "page", ways: tuple[str, ...] = ("203.0.113.7",)) -> list[str]:
    changes = maintenance.due("shop", on, page, list(ways))
    maintenance.switch(on, changes)
    return [path.name for path in changes]


def test_on_and_off_and_nothing_twice(server: Path) -> None:
    # The page comes last: who is let in is never shut out.
    assert switch(True) == ["allow-203.0.113.7", "on"]
    assert (server / "maintenance-shop/on").read_text() == "page"
    assert switch(True) == []
    assert switch(True, page="another") == ["on"]
    # Who was let in stays so until it is off.
    assert switch(True, page="another", ways=("198.51.100.1",)) == ["allow-198.51.100.1"]
    assert switch(False) == ["maintenance-shop"]
    assert not (server / "maintenance-shop").exists()
    assert switch(False) == []
