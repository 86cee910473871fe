"""What the role sshd makes of sshd's configuration, without an sshd."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
from pathlib import Path
from typing import Any

import pytest
from conftest import Role, load_module

ROLE = Role("sshd")
ssh = load_module(ROLE.path / "files/root/usr/local/lib/carafe-sshd.py", "carafe_sshd")
ME = pwd.getpwuid(os.getuid()).pw_name
CANDIDATE = "/tmp/candidate"
TEMPLATE = "etc/ssh/sshd_config.d/00-carafe.conf.j2"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in for /etc/ssh, with two files of others in sshd_config.d."""
    monkeypatch.setattr(ssh, "MAIN", tmp_path / "sshd_config")
    monkeypatch.setattr(ssh, "DROP_IN", tmp_path / "sshd_config.d/00-carafe.conf")
    (tmp_path / "sshd_config.d").mkdir()
    for name in ("00-a.conf", "50-b.conf", "other"):
        (tmp_path / "sshd_config.d" / name).touch()
    return tmp_path


@pytest.mark.parametrize("there", [True, False], ids=["there", "new"])
@pytest.mark.parametrize(
    "line",
    [
        "Include {}/sshd_config.d/*.conf",
        "Include sshd_config.d/*.conf",
        'include="{}/sshd_config.d/*.conf"',
        "  INCLUDE sshd_config.d/0*.conf sshd_config.d/5*.conf",
    ],
)
def test_the_new_file_is_read_where_sshd_will_read_it(folder: Path, line: str, there: bool) -> None:
    if there:
        (folder / "sshd_config.d/00-carafe.conf").touch()
    text, found = ssh.included(f"UsePAM yes\n{line.format(folder)}\nPort 22\n", CANDIDATE)
    d = folder / "sshd_config.d"
    lines = ["UsePAM yes", *(f"Include {x}" for x in (d / "00-a.conf", CANDIDATE, d / "50-b.conf"))]
    assert found
    assert text.splitlines() == [*lines, "Port 22"]


@pytest.mark.parametrize("line", ["#Include sshd_config.d/*.conf", "Include sshd_config.d/50*"])
def test_a_file_that_sshd_would_not_read_is_noticed(folder: Path, line: str) -> None:
    text, found = ssh.included(f"{line}\n", CANDIDATE)
    assert not found
    assert CANDIDATE not in text


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("deploy", True),
        ("dep*", True),
        ("d?ploy", True),
        ("root", False),
        ("deploy@192.0.2.7", True),
        ("deploy@192.0.2.0/24", True),
        ("deploy@192.0.2.*", True),
        ("deploy@192.0.2.8", False),
        ("deploy@198.51.100.0/24", False),
        ("deploy@2001:db8::/32", False),
        ("root@192.0.2.7", False),
        ("[d]eploy", False),
    ],
)
def test_a_pattern_means_whom_sshd_takes_it_for(pattern: str, matches: bool) -> None:
    assert ssh.matches(pattern, "deploy", "192.0.2.7") is matches


OPEN: dict[str, Any] = {
    "port": {"22"},
    "permitrootlogin": {"yes"},
    "passwordauthentication": {"no"},
    "authorizedkeysfile": {"keys/%u"},
}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "has no key in"),
        ({"passwordauthentication": {"yes"}}, None),
        ({"authorizedkeyscommand": {"/usr/bin/keys"}}, None),
        ({"authorizedkeyscommand": {"none"}}, "has no key in"),
        ({"trustedusercakeys": {"/etc/ssh/ca.pub"}}, None),
        ({"port": {"2222", "2022"}, "passwordauthentication": {"yes"}}, "port 22"),
        ({"port": {"2222", "22"}, "passwordauthentication": {"yes"}}, None),
        ({"denyusers": {ME}, "passwordauthentication": {"yes"}}, "denyusers"),
        ({"allowusers": {"x", ME}, "passwordauthentication": {"yes"}}, None),
        ({"allowusers": {"x", "y"}, "passwordauthentication": {"yes"}}, "sshd_allow_users"),
        ({"allowgroups": {"x"}, "passwordauthentication": {"yes"}}, "sshd_allow_groups"),
        ({"allowgroups": {"*"}, "passwordauthentication": {"yes"}}, None),
    ],
)
def test_who_could_not_come_back_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: dict[str, Any], told: str | None
) -> None:
    who = {"user": ME, "client": "192.0.2.7", "server": "192.0.2.1", "port": "22"}
    monkeypatch.setattr(ssh, "key_files", lambda *_: [tmp_path / "keys"])
    problems = " ".join(ssh.locked_out(OPEN | settings, who))
    assert (told in problems) if told else not problems


@pytest.mark.parametrize(
    ("wanted", "user", "before", "expected"),
    [
        ("never", "root", "yes", "no"),
        ("keys", "nobody", "no", "prohibit-password"),
        ("auto", "root", "no", "prohibit-password"),
        ("auto", "nobody", "yes", "no"),
        ("auto", None, "yes", "prohibit-password"),
        ("auto", None, "no", "no"),
    ],
)
def test_root_stays_out_only_where_another_way_is_proven(
    monkeypatch: pytest.MonkeyPatch, wanted: str, user: str | None, before: str, expected: str
) -> None:
    monkeypatch.setattr(ssh, "effective", lambda _: {"permitrootlogin": {before}})
    assert ssh.root_login(wanted, {"user": user} if user else None) == expected


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        (True, ["Word yes"]),
        (False, ["Word no"]),
        (7, ["Word 7"]),
        ("a b", ["Word a b"]),
        (["x", "y"], ["Word x", "Word y"]),
        ([], []),
    ],
)
def test_settings_come_first_and_as_sshd_writes_them(value: Any, lines: list[str]) -> None:
    text = ROLE.render(TEMPLATE, sshd_settings={"Word": value})
    written = [x for x in text.splitlines() if x and not x.startswith("#")]
    assert written[: len(lines)] == lines
    assert written[len(lines)] == "Port 22"


RUNNING = {
    "ActiveState": "active",
    "UnitFileState": "enabled",
    "StateChangeTimestamp": "Tue 2999-01-01 00:00:00.000000 UTC",
}


@pytest.mark.parametrize(
    ("service", "socket", "lacks", "told"),
    [
        ({}, set(), (), None),
        ({"StateChangeTimestamp": "Thu 1970-01-01 00:00:00.000000 UTC"}, set(), (), "loaded"),
        ({"StateChangeTimestamp": ""}, set(), (), "loaded"),
        ({"ActiveState": "inactive"}, set(), (), "ssh.service is inactive"),
        ({"UnitFileState": "disabled"}, set(), (), "and disabled"),
        ({"UnitFileState": "disabled"}, {"22"}, (), None),
        ({"ActiveState": "inactive", "StateChangeTimestamp": ""}, {"22"}, (), None),
        ({}, set(), ("DROP_IN",), "is not there"),
        ({}, set(), ("MODULI",), "is not there"),
        ({}, set(), ("RSA_KEY",), "host key"),
        ({}, set(), ("ED25519_KEY",), "host key"),
    ],
)
def test_what_is_not_as_it_should_be_is_due(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    service: dict[str, str],
    socket: set[str],
    lacks: tuple[str, ...],
    told: str | None,
) -> None:
    for name in ("DROP_IN", "MODULI", "RSA_KEY", "ED25519_KEY", "PENDING"):
        monkeypatch.setattr(ssh, name, tmp_path / name)
        if name not in ("PENDING", *lacks):
            (tmp_path / name).write_text("text")
            (tmp_path / name).chmod(0o600)
    monkeypatch.setattr(ssh, "bits", lambda path: 4096 if path.exists() else 0)
    found = list(ssh.due("text", {"rsa_bits": 4096}, RUNNING | service, socket))
    if os.getuid():
        # On a server it is root's.
        found = [x for x in found if not x.endswith("is another")]
    assert len(found) == (told is not None)
    assert (told or "") in " ".join(found)


def test_settings_that_nobody_has_confirmed_are_due(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ssh, "PENDING", tmp_path)
    found = list(ssh.due("", {"rsa_bits": 1}, RUNNING, set()))
    assert "settings wait for their confirmation" in found


@pytest.mark.parametrize(
    ("armed", "now", "same", "confirmed"),
    [
        ("7 100", "8 200", False, True),
        ("7 100", "7 200", False, True),
        ("7 100", "7 100", False, False),
        ("7 100", "7 100", True, True),
        (None, None, False, True),
    ],
    ids=["new", "number-again", "old", "local", "no-ssh"],
)
def test_only_a_new_connection_confirms(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    armed: str | None,
    now: str | None,
    same: bool,
    confirmed: bool,
) -> None:
    pending = tmp_path / "pending.json"
    pending.write_text(json.dumps({"former": None, "session": armed}))
    monkeypatch.setattr(ssh, "PENDING", pending)
    monkeypatch.setattr(ssh, "session", lambda: (now, None))
    monkeypatch.setattr(ssh, "disarm", lambda: None)
    with contextlib.nullcontext() if confirmed else pytest.raises(SystemExit, match="old conn"):
        ssh.confirm(same)
    assert pending.exists() is not confirmed


@pytest.mark.parametrize("check", [True, False])
def test_a_server_without_sshd_is_fine_in_a_dry_run_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, check: bool
) -> None:
    monkeypatch.setattr(ssh, "SSHD", tmp_path / "sshd")
    looked = ssh.look({"check": check})
    assert bool(looked["problems"]) is not check
    assert not looked["due"]


@pytest.mark.parametrize("name", ["RSA_KEY", "ED25519_KEY", "MODULI"])
def test_the_files_that_are_made_are_those_in_use(name: str) -> None:
    assert f" {getattr(ssh, name)}\n" in ROLE.render(TEMPLATE)
