"""The module that configures and runs PostgreSQL, where there is none, or one that refuses."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import types
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.carafe.stack.plugins.module_utils import claims as claims_of
from ansible_collections.carafe.stack.plugins.module_utils import postgresql_config as config
from ansible_collections.carafe.stack.plugins.module_utils import postgresql_contents as contents
from ansible_collections.carafe.stack.plugins.module_utils import postgresql_server as server_of
from ansible_collections.carafe.stack.plugins.module_utils import services
from ansible_collections.carafe.stack.plugins.modules import postgresql

MEASURED = {"memory_mb": 1024, "cores": 2}
SHOP = [{"name": "shop", "owner": "shop-owner", "writers": ["shop"]}]
GIVEN = {"version": "99", "measured": MEASURED, **MEASURED, "databases": SHOP}
EVERYTHING = {
    **GIVEN,
    "connections": 0,
    "max_connections": 100,
    "settings": {},
    "listen_addresses": [],
    "hba": [],
    "default_hba": [],
    "client_addresses": [],
}
CONTENTS = {"roles": [{"name": "shop"}], "databases": [{"name": "shop", "owner": "shop"}]}


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Keep the claims in a folder of the test's."""
    monkeypatch.setattr(config, "FOLDER", tmp_path / "postgres.d")
    return tmp_path / "postgres.d"


def run(
    capsys: pytest.CaptureFixture[str], stage: str, check: bool = False, **arguments: Any
) -> dict[str, Any]:
    """Run a stage of the module as Ansible does, and return what it says."""
    given = {**arguments, "stage": stage, "_ansible_check_mode": check}
    with patch_module_args(given), pytest.raises(SystemExit):
        postgresql.main()
    return json.loads(capsys.readouterr().out)


def test_a_dry_run_on_a_bare_server_shows_both_files_and_makes_nothing(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    units = {str(folder / "unit.conf"): "[Unit]\n", str(folder / "program"): "#!/bin/sh\nexit\n"}
    said = run(capsys, "configure", check=True, **GIVEN, unit_files=units, owner="shop")
    assert said["changed"]
    shown = {x["before_header"]: x["after"] for x in said["diff"] if "after" in x}
    assert "shared_buffers = '262144kB'" in shown["/etc/postgresql/99/main/conf.d/carafe.conf"]
    assert (
        'local "shop" +"shop-owner",+"shop" peer\n' in shown["/etc/postgresql/99/main/pg_hba.conf"]
    )
    assert shown[str(folder / "unit.conf")] == "[Unit]\n"
    assert "exit" not in json.dumps(said["diff"])
    assert f"note what shop claims in {folder}" in said["changes"]
    assert not folder.exists()


def test_who_has_a_claim_of_an_older_carafe_is_named(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(postgresql.Module, "warn", lambda _, text: said.append(text))
    run(capsys, "configure", check=True, **GIVEN, owner="shop")
    assert said == []
    folder.mkdir()
    older = config.claim({**EVERYTHING, "databases": SHOP})
    del older["databases"], older["client_addresses"]
    claims_of.claim(folder, "blog", older)
    run(capsys, "configure", check=True, **GIVEN, owner="shop")
    (text,) = said
    assert text.startswith("An older Carafe has written what blog claims of this server, ")


def test_where_postgresql_is_not_installed_it_says_what_comes_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = run(capsys, "configure", **GIVEN)
    assert said["failed"]
    assert "PostgreSQL 99 is not installed" in said["msg"]
    assert "entry point install" in said["msg"]


@pytest.mark.parametrize("check", [True, False])
def test_a_conflict_is_refused_in_a_dry_run_too_and_nothing_is_changed(
    capsys: pytest.CaptureFixture[str], folder: Path, check: bool
) -> None:
    folder.mkdir()
    other = config.claim({**EVERYTHING, "cores": 8})
    claims_of.claim(folder, "blog", other)
    said = run(capsys, "configure", check=check, **GIVEN | {"cores": 4}, owner="shop")
    assert said["msg"].startswith("postgres_cores is 8 for blog and 4 for shop, ")
    assert [path.name for path in folder.iterdir()] == ["blog.json"]


def test_a_claim_that_cannot_be_read_is_named(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    folder.mkdir()
    (folder / "blog.json").write_text("{")
    said = run(capsys, "configure", check=True, **GIVEN, owner="shop")
    assert said["msg"].startswith(f"{folder}/blog.json ")


def test_a_dry_run_on_a_bare_server_lists_what_it_would_make(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = run(capsys, "activate", check=True, version="99", **CONTENTS)
    assert said["changes"] == [
        "enable PostgreSQL at boot",
        "start PostgreSQL",
        "create role shop",
        "create database shop",
    ]


def test_a_dry_run_promises_nothing_that_another_server_may_make(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = run(capsys, "activate", check=True, version="99", managed_by="patroni", **CONTENTS)
    assert said["changes"] == []


@pytest.mark.parametrize("follows", [True, False])
def test_under_patroni_nothing_is_started_and_who_follows_makes_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, follows: bool
) -> None:
    session = types.SimpleNamespace(rows=lambda *_: [], is_standby=lambda: follows)
    made: list[Any] = []
    restarts: list[bool] = []
    monkeypatch.setattr(postgresql, "need_psycopg2", lambda: None)
    monkeypatch.setattr(postgresql, "session_now", lambda *_: session)
    monkeypatch.setattr(postgresql, "start", None)  # its own unit is masked

    def apply(*given: Any) -> tuple[list, list, Any]:
        restarts.append(given[3])
        return [], ["shared_buffers"], session

    monkeypatch.setattr(postgresql, "apply", apply)
    monkeypatch.setattr(contents, "ensure", lambda *given: made.append(given))
    said = run(capsys, "activate", version="99", managed_by="patroni", **CONTENTS)
    assert (bool(made), restarts) == (not follows, [False])
    assert said["restart_due"] == ["shared_buffers"]
    assert "warnings" not in said


def test_under_patroni_a_server_that_is_down_is_patronis(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "need_psycopg2", lambda: None)
    monkeypatch.setattr(postgresql, "session_now", lambda *_: None)
    said = run(capsys, "activate", version="99", managed_by="patroni", **CONTENTS)
    assert "See systemctl status patroni" in said["msg"]


@pytest.mark.parametrize(("stage", "more"), [("activate", {"version": "99"}), ("contents", {})])
def test_without_psycopg2_it_says_what_to_install(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    more: dict[str, str],
) -> None:
    monkeypatch.setattr(server_of, "psycopg2", None)
    said = run(capsys, stage, **more, **CONTENTS)
    assert "Install python3-psycopg2" in said["msg"]


@pytest.mark.parametrize("stage", ["configure", "activate"])
def test_a_stage_says_what_it_needs(capsys: pytest.CaptureFixture[str], stage: str) -> None:
    said = run(capsys, stage)
    assert f"stage is {stage} but all of the following are missing: version" in said["msg"]


def test_a_database_without_an_owner_is_named() -> None:
    databases = [{"name": "shop", "owner": None}]
    with pytest.raises(server_of.Failure, match=r"'shop' has no owner.* postgres_databases in "):
        contents.ensure(None, [], databases)


@pytest.mark.parametrize(("stage", "more"), [("activate", {"version": "99"}), ("contents", {})])
def test_one_run_at_a_time_makes_roles(
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    more: dict[str, str],
) -> None:
    session = types.SimpleNamespace(rows=lambda *_: [], is_standby=lambda: False)
    monkeypatch.setattr(server_of.Server, "beaten", lambda *_: [])
    monkeypatch.setattr(postgresql, "need_psycopg2", lambda: None)
    monkeypatch.setattr(postgresql, "session_now", lambda *_: session)
    monkeypatch.setattr(postgresql, "start", lambda *_: ([], session))
    monkeypatch.setattr(postgresql, "apply", lambda *_: ([], [], session))

    def ensure(*_: Any) -> None:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise server_of.Failure("nobody else gets in") from None

    monkeypatch.setattr(contents, "ensure", ensure)
    assert run(capsys, stage, **more)["msg"] == "nobody else gets in"


class FakeServer:
    """A server that starts only without the address 192.0.2.1."""

    def __init__(self, folder: Path, never: bool = False):
        self.settings_file = folder / "carafe.conf"
        self.settings_file.write_text(
            config.settings_text(
                {"jit": "off", "listen_addresses": "192.0.2.1", "shared_buffers": "9TB"}
            )
        )
        self.never, self.unit = never, "postgresql@99-main.service"

    def systemctl(self, *_: str) -> None:
        if self.never or "192.0.2.1" in self.settings_file.read_text():
            raise server_of.Failure("the job failed")

    def wait(self) -> None:
        pass

    def journal(self) -> str:
        return "Its unit says: could not bind"


@pytest.mark.parametrize(
    ("never", "outcome"),
    [(False, "runs with the former ones again"), (True, "does not start with the former ones")],
)
def test_a_restart_that_fails_goes_back_to_the_former_values(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, never: bool, outcome: str
) -> None:
    monkeypatch.setattr(postgresql, "write", lambda path, text, *rest: path.write_text(text))
    monkeypatch.setattr(postgresql, "run", lambda *words: server.systemctl(*words))
    folder.mkdir()
    former = {"settings": {"Shared_Buffers": "64MB"}}
    claims_of.claim(folder, "shop", {"settings": {"shared_buffers": "9TB"}, "former": former})
    server = FakeServer(tmp_path, never)
    with pytest.raises(server_of.Failure) as failure:
        postgresql.restart(server, {"listen_addresses": "", "shared_buffers": "65536kB"})
    said = str(failure.value)
    assert said.startswith("PostgreSQL did not start with the new values of listen_addresses, ")
    assert outcome in said
    assert "postgres_listen_addresses in group_vars" in said
    assert said.endswith("could not bind")
    has = config.parse_settings(server.settings_file.read_text())
    assert has == {"jit": "off", "listen_addresses": "", "shared_buffers": "64MB"}
    assert claims_of.stored(folder, "shop") == former


class DownServer(FakeServer):
    """A server that does not start at all."""

    def wait(self) -> None:
        raise server_of.Failure("PostgreSQL does not run.")


def test_a_claim_with_which_a_server_does_not_start_is_not_left_for_others(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"NeedDaemonReload": "no", "UnitFileState": "enabled", "ActiveState": "failed"}
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(services, "show", lambda *_: [state])
    monkeypatch.setattr(
        services, "ask", lambda *words: subprocess.CompletedProcess(asked.append(words), 0)
    )
    monkeypatch.setattr(postgresql, "run", lambda *words: asked.append(words))
    folder.mkdir()
    claims_of.claim(folder, "shop", {"a": 2, "former": {"a": 1}})
    with pytest.raises(server_of.Failure, match="does not run"):
        postgresql.start(DownServer(tmp_path), check=False)
    assert claims_of.stored(folder, "shop") == {"a": 1}
    assert [words[1:3] for words in asked] == [("daemon-reload",), ("start", "--no-block")]
