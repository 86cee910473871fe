"""Who is let in during maintenance, and what keeps it from being switched."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT, load_module


@pytest.fixture
def maintenance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, on a server with the sites shop, and old, which knows no maintenance."""
    module = load_module(ROOT / "roles/nginx/files/maintenance.py", "maintenance")
    monkeypatch.setattr(module, "PROC", tmp_path / "proc")
    monkeypatch.setattr(module, "SITES", tmp_path)
    (tmp_path / "shop.conf").write_text("if (-f /var/lib/nginx/maintenance-shop/on) {")
    (tmp_path / "old.conf").write_text("server {}")
    return module


def processes(proc: Path, *environs: str) -> None:
    """Write what /proc says of this process and of those that started it, the nearest first."""
    for number, environ in enumerate(environs):
        folder = proc / (str(100 - number) if number else "self")
        folder.mkdir(parents=True)
        (folder / "environ").write_bytes(environ.encode())
        parent = 100 - number - 1 if number < len(environs) - 1 else 0
        (folder / "status").write_text(f"Name:\tx\nPid:\t1\nPPid:\t{parent}\n")


def found(maintenance: ModuleType, monkeypatch: pytest.MonkeyPatch, **wanted: Any) -> Any:
    """Run the module as the role does."""
    output = io.StringIO()
    text = json.dumps({"sites": ["shop"], "allow": "[]"} | wanted)
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    monkeypatch.setattr(sys, "stdout", output)
    maintenance.main()
    return json.loads(output.getvalue())


SSH = "SSH_CLIENT=203.0.113.7 40022 22"


@pytest.mark.parametrize(
    ("environs", "way"),
    [
        ([f"A=b\0{SSH}\0C=d"], ["203.0.113.7"]),
        # sudo has dropped it.
        (["SUDO_USER=deploy", "SUDO_USER=deploy", f"A=b\0{SSH}", "A=b"], ["203.0.113.7"]),
        # From one server on to the next: the nearest is how this one was reached.
        (["A=b", "SSH_CLIENT=198.51.100.1 1 22", SSH], ["198.51.100.1"]),
        (["SSH_CLIENT=2001:db8::9 1 22"], ["2001:db8::9"]),
        (["SSH_CLIENT=fe80::9%eth0 1 22"], ["fe80::9"]),
        # A tunnel, or no ssh at all.
        (["SSH_CLIENT=127.0.0.1 1 22"], []),
        (["MY_SSH_CLIENT=203.0.113.7 1 22"], []),
        ([], []),
    ],
)
def test_the_operator_is_let_in_by_the_address_of_the_ssh(
    maintenance: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environs: list[str],
    way: list[str],
) -> None:
    processes(tmp_path / "proc", *environs)
    assert found(maintenance, monkeypatch) == {"ways": way, "problems": []}


@pytest.mark.parametrize(
    ("allow", "ways"),
    [
        ("['203.0.113.7']", ["203.0.113.7"]),
        ('["203.0.113.7", "198.51.100.1"]', ["198.51.100.1", "203.0.113.7"]),
        ("203.0.113.7,198.51.100.1, 203.0.113.7", ["198.51.100.1", "203.0.113.7"]),
        ("['2001:DB8:0:0:1::7']", ["2001:db8::1:0:0:7"]),
        ("[2001:db8::7]", ["2001:db8::7"]),
        ("::ffff:203.0.113.7", ["203.0.113.7"]),
    ],
)
def test_an_address_is_let_in_as_nginx_writes_it(
    maintenance: ModuleType, monkeypatch: pytest.MonkeyPatch, allow: str, ways: list[str]
) -> None:
    assert found(maintenance, monkeypatch, allow=allow) == {"ways": ways, "problems": []}


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ({"allow": "203.0.113.0/24"}, "nginx_maintenance_allow has 203.0.113.0/24"),
        ({"allow": "office.example.com"}, "nginx_maintenance_allow has office.example.com"),
        # A proxy on the server would bring everybody from there.
        ({"allow": "127.0.0.1"}, "nginx_maintenance_allow has 127.0.0.1"),
        ({"allow": "::1"}, "nginx_maintenance_allow has ::1"),
        ({"allow": "../on"}, "nginx_maintenance_allow has ../on"),
        ({"sites": []}, "nginx_sites has no site"),
        ({"sites": ["shop", "shpo"]}, "This server has no site shpo"),
        ({"sites": ["old"]}, "Run this first: ansible-playbook site.yml --tags nginx"),
    ],
)
def test_what_cannot_be_is_told(
    maintenance: ModuleType, monkeypatch: pytest.MonkeyPatch, wanted: dict[str, Any], problem: str
) -> None:
    (told,) = found(maintenance, monkeypatch, **wanted)["problems"]
    assert problem in told
