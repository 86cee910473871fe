"""What fail2ban is to watch: jails of several owners, waiting logs, and what is not loaded."""

from __future__ import annotations

import configparser
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import claims, fail2ban
from conftest import Role

ROLE = Role("fail2ban")
WANTED = {
    **fail2ban.DEFAULTS,
    "default_jails": ROLE.defaults["fail2ban_default_jails"],
    "jails": [],
    "ignore": [],
}


def stated(**owners: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: fail2ban.stated({**WANTED, **wanted}) for name, wanted in owners.items()}


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
        settings = fail2ban.composed({"shop": fail2ban.stated(wanted)}, "shop")
        parser = configparser.ConfigParser(interpolation=None)
        parser.read_string(fail2ban.jail_file(settings))
        return parser

    return read


def test_what_states_nothing_is_what_the_role_does_by_itself() -> None:
    assert {k: ROLE.defaults[f"fail2ban_{k}"] for k in WANTED} == WANTED
    assert not fail2ban.single(stated(shop={}))


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


def test_jails_and_addresses_of_all_owners_add_up() -> None:
    said = stated(
        shop={"ignore": ["192.0.2.1"], "seconds": 300},
        blog={"ignore": ["192.0.2.2", "192.0.2.1"], "jails": [{"name": "blog", "log": "/l"}]},
    )
    assert not claims.conflicts(said, Path(), fail2ban.single(said))
    settings = fail2ban.composed(said, "shop")
    assert settings["ignore"] == ["127.0.0.0/8", "::1", "192.0.2.1", "192.0.2.2"]
    assert settings["seconds"] == 300
    assert [jail["name"] for jail in settings["jails"]] == ["sshd", "nginx-429", "blog"]


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
    claimed = stated(shop=one, blog=other)
    (problem,) = claims.conflicts(claimed, Path("/claims"), fail2ban.single(claimed))
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


def test_what_changed_after_the_load_is_seen(tmp_path: Path) -> None:
    folder, loaded = tmp_path / "etc", tmp_path / "loaded"
    folder.mkdir()
    (folder / "file").touch()
    folders = (folder, tmp_path / "none")
    assert fail2ban.is_newer(folders, loaded)
    loaded.touch()
    for path in (folder, folder / "file"):
        os.utime(path, ns=(0, 0))
    assert not fail2ban.is_newer(folders, loaded)
    (folder / "file").touch()
    os.utime(loaded, ns=(0, 1))
    assert fail2ban.is_newer(folders, loaded)
    (folder / "file").unlink()  # the folder tells
    os.utime(loaded, ns=(0, 1))
    assert fail2ban.is_newer(folders, loaded)


def test_jails_that_fail2ban_refuses_never_get_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "try.py").write_text("import sys; sys.exit('jail sshd: nonsense\\nCorrect it.')")
    monkeypatch.setattr(fail2ban, "TRY", tmp_path / "try.py")
    monkeypatch.setattr(fail2ban, "JAILS", tmp_path / "jails")
    for dry in (True, False):
        with pytest.raises(fail2ban.Failure, match="jail sshd: nonsense Correct it"):
            fail2ban.write("text", dry)
    assert not (tmp_path / "jails").exists()


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
    shown = "\n".join(map("=".join, zip(names, state.split(), strict=True)))

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        # Somebody is banned, and the kernel's table may be gone.
        text = shown if command[0] == "systemctl" else "[{'sshd': ['192.0.2.1']}]"
        return subprocess.CompletedProcess(command, int(command[0] == "nft" and not table), text)

    monkeypatch.setattr(fail2ban, "run", run)
    for name in ("CONFIGURATION", "DROP_IN"):
        monkeypatch.setattr(fail2ban, name, tmp_path / name)
    (tmp_path / "loaded").touch()
    monkeypatch.setattr(fail2ban, "LOADED", tmp_path / "loaded")
    assert fail2ban.due(changed) == verbs
