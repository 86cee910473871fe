"""What fail2ban is to watch: jails of several owners, waiting logs, and what is not loaded."""

from __future__ import annotations

import configparser
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import (
    claims,
    commands,
    fail2ban,
    file_set,
    services,
)
from conftest import Role

ROLE = Role("fail2ban")
WANTED = {
    **fail2ban.DEFAULTS,
    "default_jails": ROLE.value("fail2ban_default_jails"),
    "jails": [],
    "ignore": [],
}


def stated(**owners: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: fail2ban.claim({**WANTED, **wanted}) for name, wanted in owners.items()}


def conflicts(claimed: dict[str, dict[str, Any]]) -> list[str]:
    once = {owner: fail2ban.once(claim) for owner, claim in claimed.items()}
    return list(claims.conflicts(once, Path("/claims")))


def jails(claimed: dict[str, dict[str, Any]], owner: str = "shop") -> dict[str, dict[str, Any]]:
    return {jail["name"]: jail for jail in fail2ban.composed(claimed, owner)["jails"]}


@pytest.fixture
def parse(tmp_path: Path):
    """Return the jails' file as fail2ban reads it; the log of nginx-429 is there, if wanted."""

    def read(log: bool = True, **wanted: Any) -> configparser.ConfigParser:
        path = tmp_path / "access.log"
        if log:
            path.touch()
        wanted = {**WANTED, **wanted}
        wanted["default_jails"] = [
            {**jail, "log": str(path)} if "log" in jail else jail
            for jail in wanted["default_jails"]
        ]
        settings = fail2ban.composed({"shop": fail2ban.claim(wanted)}, "shop")
        parser = configparser.ConfigParser(interpolation=None)
        parser.read_string(fail2ban.jail_file(settings))
        return parser

    return read


def test_what_states_nothing_is_what_the_role_does_by_itself() -> None:
    assert {k: ROLE.value(f"fail2ban_{k}") for k in WANTED} == WANTED
    assert not fail2ban.once(stated(shop={})["shop"])


def test_an_entry_changes_the_jail_of_its_name_and_leaves_the_others() -> None:
    found = jails(stated(shop={"jails": [{"name": "sshd", "retries": 3, "filter": None}]}))
    assert found["sshd"] == {
        "name": "sshd",
        "journal": "_SYSTEMD_UNIT=ssh.service + _SYSTEMD_SLICE=system-ssh.slice",
        "ports": [],
        "retries": 3,
        "within_seconds": 600,
    }
    assert found["nginx-429"]["retries"] == 100


def test_an_option_that_is_empty_is_one_that_is_left_out(parse) -> None:
    found = parse(jails=[{"name": "own", "filter": "", "log": "", "journal": ""}])["own"]
    assert (found["filter"], found["backend"]) == ("own", "systemd")
    assert "journalmatch" not in found


def test_jails_and_addresses_of_all_owners_add_up() -> None:
    said = stated(
        shop={"ignore": ["192.0.2.1"], "seconds": 300},
        blog={"ignore": ["192.0.2.2", "192.0.2.1"], "jails": [{"name": "blog", "log": "/l"}]},
    )
    assert not conflicts(said)
    settings = fail2ban.composed(said, "shop")
    assert settings["ignore"] == ["127.0.0.0/8", "::1", "192.0.2.1", "192.0.2.2"]
    assert settings["seconds"] == 300
    assert [jail["name"] for jail in settings["jails"]] == [
        "sshd",
        "nginx-429",
        "nginx-401",
        "blog",
    ]


@pytest.mark.parametrize(
    ("one", "other", "ports"),
    [
        ([80, 443], [8443, 443], [80, 443, 8443]),
        ([8080], [8080], [8080]),
        # None means all of them.
        ([80], [], []),
        ([], [80], []),
    ],
)
def test_a_ban_covers_the_ports_of_all_owners_sites(
    one: list[int], other: list[int], ports: list[int]
) -> None:
    def wanted(own: list[int]) -> dict[str, Any]:
        return {"default_jails": ROLE.value("fail2ban_default_jails", fail2ban_nginx_ports=own)}

    said = stated(shop=wanted(one), blog=wanted(other))
    for owner in ("shop", "blog"):
        assert jails(said, owner)["nginx-429"]["ports"] == ports
        assert jails(said, owner)["sshd"]["ports"] == []
    # What somebody states is neither added to nor contradicted by what is as by default.
    said = stated(shop=wanted(one) | {"jails": [{"name": "nginx-429", "ports": [9000]}]}, blog={})
    assert jails(said)["nginx-429"]["ports"] == [9000]


def test_a_name_with_a_dot_is_a_jail(parse) -> None:
    assert parse(jails=[{"name": "a.b", "retries": 2}])["a.b"]["maxretry"] == "2"


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({"seconds": 300}, {"seconds": 60}, "fail2ban_seconds is 300 for shop and 60 for blog"),
        (
            {"jails": [{"name": "sshd", "retries": 3}]},
            {"jails": [{"name": "sshd", "retries": 9}]},
            "fail2ban_jails.sshd.retries is 3 for shop and 9 for blog",
        ),
        (
            {"jails": [{"name": "x", "log": "/a"}]},
            {"jails": [{"name": "x", "log": "/b"}]},
            "fail2ban_jails.x.log is '/a' for shop and '/b' for blog",
        ),
    ],
)
def test_owners_that_contradict_each_other_are_both_named(
    one: dict[str, Any], other: dict[str, Any], said: str
) -> None:
    (problem,) = conflicts(stated(shop=one, blog=other))
    assert problem.startswith(said)


def test_the_file_is_what_fail2ban_takes(parse) -> None:
    found = parse(ignore=["10.0.0.0/8"], seconds=300)
    assert found["DEFAULT"]["ignoreip"] == "127.0.0.0/8 ::1 10.0.0.0/8"
    assert found["nginx-429"]["port"] == "80,443"
    assert found["nginx-429"]["bantime"] == "300"
    assert found["nginx-429"]["logpath"].endswith("access.log\n/dev/null")
    assert found["sshd"]["backend"] == "systemd"
    assert found["sshd"]["banaction"] == "%(banaction_allports)s"


def test_a_jail_without_its_log_waits(parse) -> None:
    assert parse(log=False).sections() == ["sshd"]


def test_debians_own_jail_is_off_where_none_is_wanted(parse) -> None:
    found = parse(default_jails=[])
    assert dict(found["sshd"])["enabled"] == "false"


def test_jails_that_fail2ban_refuses_never_get_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "try.py").write_text("import sys; sys.exit('jail sshd: nonsense\\nCorrect it.')")
    monkeypatch.setattr(fail2ban, "TRY", tmp_path / "try.py")
    monkeypatch.setattr(fail2ban, "JAILS", tmp_path / "jails")
    file = fail2ban.file(fail2ban.composed(stated(shop={}), "shop"))
    for dry in (True, False):
        with pytest.raises(commands.Refused, match="jail sshd: nonsense; Correct it"):
            file_set.write([file], dry)
    assert not (tmp_path / "jails").exists()


@pytest.mark.parametrize("started", [None, 0, 20], ids=["no mark", "older", "newer"])
def test_another_server_program_needs_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: int | None
) -> None:
    state = {"ActiveState": "active", "UnitFileState": "enabled", "NeedDaemonReload": "no"}
    monkeypatch.setattr(services, "show", lambda *_: [state])
    for name in ("CONFIGURATION", "DROP_IN", "LOADED", "SERVER", "STARTED"):
        monkeypatch.setattr(fail2ban, name, tmp_path / name)
        if name != "STARTED" or started is not None:
            (tmp_path / name).touch()
    os.utime(tmp_path / "SERVER", (10, 10))
    if started is not None:
        os.utime(tmp_path / "STARTED", (started, started))
    for name in ("CONFIGURATION", "DROP_IN"):
        os.utime(tmp_path / name, (0, 0))
    done = subprocess.CompletedProcess([], 0, "")
    monkeypatch.setattr(fail2ban, "ask", lambda *_: done)
    assert fail2ban.due(changed=False) == ([] if started == 20 else ["daemon-reload", "restart"])


@pytest.mark.parametrize(
    ("state", "table", "changed", "verbs"),
    [
        ("active enabled no", True, False, []),
        ("active enabled yes", True, False, ["daemon-reload"]),
        ("active enabled no", True, True, ["daemon-reload", "reload"]),
        ("active enabled no", False, True, ["daemon-reload", "restart"]),
        # Also where systemd has not noticed the drop-in.
        ("inactive disabled no", True, True, ["daemon-reload", "enable", "start"]),
        ("failed enabled yes", True, False, ["daemon-reload", "start"]),
    ],
)
def test_systemd_is_asked_for_what_is_due(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    table: bool,
    changed: bool,
    verbs: list[str],
) -> None:
    names = ("ActiveState", "UnitFileState", "NeedDaemonReload")
    monkeypatch.setattr(services, "show", lambda *_: [dict(zip(names, state.split(), strict=True))])

    def ask(*command: Any) -> subprocess.CompletedProcess[str]:
        # Somebody is banned, and the kernel's table may be gone.
        failed = command[0] == "nft" and not table
        return subprocess.CompletedProcess(command, int(failed), "[{'sshd': ['192.0.2.1']}]")

    monkeypatch.setattr(fail2ban, "ask", ask)
    for name in ("CONFIGURATION", "DROP_IN"):
        monkeypatch.setattr(fail2ban, name, tmp_path / name)
        (tmp_path / name).mkdir()
    (tmp_path / "loaded").touch()
    monkeypatch.setattr(fail2ban, "LOADED", tmp_path / "loaded")
    assert fail2ban.due(changed) == verbs
