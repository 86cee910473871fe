"""What the role sshd makes of sshd's configuration, without an sshd."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.carafe.stack.plugins.module_utils import (
    commands,
    programs,
    ssh_peer,
    sshd,
    sshd_settings,
    takeback,
)
from ansible_collections.carafe.stack.plugins.modules import sshd as module
from conftest import Role

ME = pwd.getpwuid(os.getuid()).pw_name
CANDIDATE = "/tmp/candidate"
PEER = ssh_peer.Peer(ME, "192.0.2.7", "192.0.2.1", 22)


def arguments(**params: Any) -> dict[str, Any]:
    """Return the arguments as the module has them: checked, and with those that are left out."""
    checked = ArgumentSpecValidator(module.ARGUMENTS).validate(params)
    assert not checked.error_messages
    return checked.validated_parameters


def render(monkeypatch: pytest.MonkeyPatch, **params: Any) -> str:
    """Return the text of the settings where sshd is not installed."""
    monkeypatch.setattr(sshd, "SSHD", Path("/nowhere"))
    claim = sshd_settings.claim(arguments(**params))
    return sshd_settings.render(sshd_settings.composed([claim]), None)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in for /etc/ssh, with two files of others in sshd_config.d."""
    monkeypatch.setattr(sshd, "MAIN", tmp_path / "sshd_config")
    monkeypatch.setattr(sshd, "DROP_IN", tmp_path / "sshd_config.d/00-carafe.conf")
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
    text, found = sshd_settings.included(f"UsePAM yes\n{line.format(folder)}\nPort 22\n", CANDIDATE)
    d = folder / "sshd_config.d"
    lines = ["UsePAM yes", *(f"Include {x}" for x in (d / "00-a.conf", CANDIDATE, d / "50-b.conf"))]
    assert found
    assert text.splitlines() == [*lines, "Port 22"]


@pytest.mark.parametrize("line", ["#Include sshd_config.d/*.conf", "Include sshd_config.d/50*"])
def test_a_file_that_sshd_would_not_read_is_noticed(folder: Path, line: str) -> None:
    text, found = sshd_settings.included(f"{line}\n", CANDIDATE)
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
    assert sshd_settings.matches(pattern, "deploy", "192.0.2.7") is matches


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
    monkeypatch.setattr(sshd_settings, "key_files", lambda *_: [tmp_path / "keys"])
    problems = " ".join(sshd_settings.locked_out(OPEN | settings, PEER))
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
    monkeypatch.setattr(sshd, "SSHD", Path("/"))
    monkeypatch.setattr(sshd_settings, "effective", lambda _: {"permitrootlogin": {before}})
    peer = ssh_peer.Peer(user, "192.0.2.7", "192.0.2.1", 22) if user else None
    assert sshd_settings.root_login(wanted, peer) == expected


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
def test_settings_come_first_and_as_sshd_writes_them(
    monkeypatch: pytest.MonkeyPatch, value: Any, lines: list[str]
) -> None:
    text = render(monkeypatch, settings={"Word": value})
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
    monkeypatch.setattr(
        sshd, "CHANGE", takeback.TakeBack("sshd", tmp_path / "pending", tmp_path, "")
    )
    for name in ("DROP_IN", "MODULI", "RSA_KEY", "ED25519_KEY"):
        monkeypatch.setattr(sshd, name, tmp_path / name)
        if name not in lacks:
            (tmp_path / name).write_text("text")
            (tmp_path / name).chmod(0o600)
    monkeypatch.setattr(sshd, "bits", lambda path: 4096 if path.exists() else 0)
    found = list(sshd_settings.due("text", 4096, RUNNING | service, socket))
    if os.getuid():
        # On a server it is root's.
        found = [x for x in found if not x.endswith("is another")]
    assert len(found) == (told is not None)
    assert (told or "") in " ".join(found)


def test_settings_that_nobody_has_confirmed_are_due(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    change = takeback.TakeBack("sshd", tmp_path / "pending", tmp_path, "")
    change.record.write_text('{"former": null}')
    monkeypatch.setattr(sshd, "CHANGE", change)
    found = list(sshd_settings.due("", 1, RUNNING, set()))
    assert "settings wait for their confirmation" in found


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """A server whose sshd takes all settings. Returns what is run there."""
    for name in ("CLAIMS", "DROP_IN", "MODULI", "RSA_KEY", "ED25519_KEY", "SSHD", "BOOT_UNIT"):
        monkeypatch.setattr(sshd, name, tmp_path / name)
        if name in ("MODULI", "RSA_KEY", "ED25519_KEY", "SSHD"):
            (tmp_path / name).touch()
    change = takeback.TakeBack(
        "sshd", tmp_path / "run/pending.json", sshd.CLAIMS, "sshd_confirm_seconds"
    )
    monkeypatch.setattr(sshd, "CHANGE", change)
    monkeypatch.setattr(programs, "FOLDER", tmp_path / "programs")
    commands: list[tuple[str, ...]] = []

    def run(*words: str, **_: Any) -> str:
        commands.append(words)
        return "curve25519-sha256\n"

    for code in (sshd, sshd_settings, takeback):
        monkeypatch.setattr(code, "run", run)
        monkeypatch.setattr(code, "ask", run, raising=False)
    monkeypatch.setattr(sshd, "units", lambda: (RUNNING | {"MainPID": "1"}, set()))
    monkeypatch.setattr(sshd, "bits", lambda path: 4096)
    monkeypatch.setattr(sshd_settings, "problems", lambda *_: [])
    monkeypatch.setattr(module, "problems", lambda *_: [])
    monkeypatch.setattr(ssh_peer, "peer", lambda: PEER)
    return commands


@pytest.mark.skipif(os.getuid() != 0, reason="on a server the file is root's")
def test_what_is_applied_stays_once_it_is_confirmed(server: list[tuple[str, ...]]) -> None:
    found = module.present(arguments(owner="shop", max_auth_tries=5), check=False)
    assert found["changed"]
    assert found["unconfirmed"]
    assert "MaxAuthTries 5\n" in sshd.DROP_IN.read_text()
    assert sshd.DROP_IN.stat().st_mode & 0o777 == 0o600
    timer = next(n for n, x in enumerate(server) if x[0] == "systemd-run")
    assert timer < server.index(("systemctl", "restart", "ssh.service"))
    assert not list(sshd.CLAIMS.glob("*.json"))
    module.confirmed(arguments(owner="shop"))
    assert json.loads((sshd.CLAIMS / "shop.json").read_text()) == {"sshd_max_auth_tries": 5}
    again = module.present(arguments(owner="shop", max_auth_tries=5), check=False)
    nothing = {"changed": False, "due": [], "changes": [], "unconfirmed": False, "diff": []}
    assert again == nothing
    # An owner that states nothing leaves it as the other one has it.
    found = module.present(arguments(owner="blog"), check=False)
    assert not found["unconfirmed"]


def test_what_is_taken_back_leaves_neither_settings_nor_a_claim(
    server: list[tuple[str, ...]],
) -> None:
    module.present(arguments(max_auth_tries=5), check=False)
    assert module.reverted(arguments())
    assert not sshd.DROP_IN.exists()
    assert not list(sshd.CLAIMS.glob("*.json"))
    assert not module.reverted(arguments())


@pytest.mark.parametrize(
    ("one", "other", "name"),
    [
        ({"ports": [22, 2222]}, {"ports": [22, 2223]}, "sshd_ports"),
        ({"settings": {"MaxSessions": 4}}, {"settings": {"MaxSessions": 5}}, "MaxSessions"),
        ({"permit_root_login": "keys"}, {"permit_root_login": "never"}, "sshd_permit_root_login"),
    ],
)
def test_two_owners_cannot_state_settings_differently(
    server: list[tuple[str, ...]], one: dict[str, Any], other: dict[str, Any], name: str
) -> None:
    module.present(arguments(owner="shop", **one), check=False)
    module.confirmed(arguments(owner="shop", same_connection=True))
    before = sshd.DROP_IN.read_text()
    with pytest.raises(commands.Refused, match=f"{name} .* blog .* shop"):
        module.present(arguments(owner="blog", **other), check=False)
    assert sshd.DROP_IN.read_text() == before


def test_a_dry_run_shows_the_settings_where_sshd_is_not_installed(
    server: list[tuple[str, ...]], tmp_path: Path
) -> None:
    sshd.SSHD.unlink()
    before = sorted(tmp_path.rglob("*"))
    found = module.present(arguments(), check=True)
    assert found["due"][0] == "sshd is not installed"
    assert "PasswordAuthentication no" in found["diff"][0]["after"]
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(commands.Refused, match="sshd_manage_packages"):
        module.present(arguments(), check=False)


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
    server: list[tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
    armed: str | None,
    now: str | None,
    same: bool,
    confirmed: bool,
) -> None:
    sshd.CHANGE.arm("default", 60, None, claim={}, session=armed)
    monkeypatch.setattr(sshd, "session", lambda: now)
    refused = pytest.raises(takeback.NotConfirmed, match="old conn")
    with contextlib.nullcontext() if confirmed else refused:
        module.confirmed(arguments(same_connection=same))
    assert sshd.CHANGE.record.exists() is not confirmed


@pytest.mark.parametrize("name", ["RSA_KEY", "ED25519_KEY", "MODULI"])
def test_the_files_that_are_made_are_those_in_use(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert f" {getattr(sshd, name)}\n" in render(monkeypatch)


def test_the_module_has_the_defaults_of_the_role() -> None:
    defaults = Role("sshd").defaults
    for name, spec in module.ARGUMENTS.items():
        if name not in ("state", "same_connection"):
            assert spec["default"] == defaults[f"sshd_{name}"], name
    for name, value in sshd_settings.DEFAULTS.items():
        assert module.ARGUMENTS[name]["default"] == value
