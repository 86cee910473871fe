"""What is seen of a server and its apps: the level of each thing, and the command that is next."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import (
    backup_state,
    commands,
    levels,
    postgresql_server,
    status,
    status_app,
    status_database,
    status_server,
)
from ansible_collections.carafe.stack.plugins.module_utils.levels import DAY, HOUR, Row

NOW = 1_800_000_000.0


def told(rows: Any) -> dict[str, tuple[str, str]]:
    """Return level and words by what they are of."""
    return {row.what: (row.level, row.says) for row in rows}


def answer(text: str, code: int = 0) -> Any:
    return lambda *_, **__: SimpleNamespace(stdout=text, stderr="", returncode=code)


# --- levels -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "level"), [(84.9, "green"), (85, "yellow"), (95, "red")])
def test_more_is_worse(value: float, level: str) -> None:
    assert levels.above(value, 85, 95) == level


@pytest.mark.parametrize(("value", "level"), [(0.2, "green"), (0.1, "yellow"), (0.04, "red")])
def test_less_is_worse(value: float, level: str) -> None:
    assert levels.below(value, 0.10, 0.04) == level


def test_the_worst_of_nothing_is_green() -> None:
    assert levels.worst([]) == "green"
    assert levels.worst(["yellow", "red", "green"]) == "red"


# --- disks ------------------------------------------------------------------------------------


def grown(per_day: float, hours: int, start: float = 50.0) -> list[tuple[float, float]]:
    return [(NOW + h * HOUR, start + per_day * h / 24) for h in range(hours + 1)]


def test_a_line_through_the_history_says_when_a_disk_is_full() -> None:
    assert status_server.days_left(grown(per_day=10, hours=24), room=100) == pytest.approx(4)


@pytest.mark.parametrize(
    "points",
    [grown(10, hours=3), grown(10, hours=48)[:2], grown(0.01, 48), grown(-10, 48), []],
    ids=["a few hours", "two points", "noise", "shrinks", "nothing"],
)
def test_where_it_says_nothing_no_day_is_named(points: list[tuple[float, float]]) -> None:
    assert status_server.days_left(points, room=100) is None


def filesystem(percent: float, inodes: float = 1, files: int = 1000) -> Any:
    blocks = 1_000_000
    free = round(blocks * (1 - percent / 100))
    return SimpleNamespace(
        f_blocks=blocks,
        f_bfree=free,
        f_bavail=free,
        f_frsize=4096,
        f_files=files,
        f_ffree=files - round(files * inodes / 100),
    )


@pytest.mark.parametrize(
    ("percent", "level"), [(20, "green"), (84, "green"), (86, "yellow"), (96, "red")]
)
def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, percent: float, level: str) -> None:
    monkeypatch.setattr(status_server, "filesystems", lambda: {"/srv": filesystem(percent)})
    (row,) = status_server.disks()
    assert (row.what, row.level) == ("disk /srv", level)
    assert bool(row.next) is (level != "green")


def test_a_disk_that_grows_is_told_of_before_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_server, "filesystems", lambda: {"/": filesystem(60)})
    room = 1_000_000 * 4096
    history = [{"at": NOW - h * HOUR, "disks": {"/": room * (0.6 - 0.01 * h)}} for h in (30, 20, 9)]
    (row,) = status_server.disks(history, NOW)
    assert row.level == "red"
    assert "full in 2 days" in row.says


def test_inodes_are_shown_where_they_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_server, "filesystems", lambda: {"/": filesystem(20, inodes=97)})
    assert told(status_server.disks())["inodes /"] == ("red", "97 % of them used")
    # btrfs has no such number.
    monkeypatch.setattr(status_server, "filesystems", lambda: {"/": filesystem(20, files=0)})
    assert list(told(status_server.disks())) == ["disk /"]


def test_a_file_system_is_looked_at_once() -> None:
    assert "/" in status_server.filesystems()
    devices = [Path(x).stat().st_dev for x in status_server.filesystems()]
    assert len(devices) == len(set(devices))


def test_an_app_on_a_disk_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    app = status_app.App("shop", Path("/dev/shm"), Path("/dev/shm/serving/slots.json"))
    assert "/dev/shm" not in status_server.filesystems()
    monkeypatch.setattr(status_app, "apps", lambda: [app])
    assert "/dev/shm" in status_server.filesystems()


# --- memory -----------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(status_server, "ROOT", tmp_path)
    monkeypatch.setattr(status_app, "FACTS", tmp_path / "etc/carafe")
    (tmp_path / "etc/carafe").mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    return tmp_path


def meminfo(root: Path, free: int, swap: tuple[int, int] = (0, 0)) -> None:
    names = ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
    numbers = (2048, free, *swap)
    lines = [f"{x}:  {y * 1024} kB\n" for x, y in zip(names, numbers, strict=True)]
    (root / "proc/meminfo").write_text("".join(lines))


@pytest.mark.parametrize(("free", "level"), [(1000, "green"), (150, "yellow"), (50, "red")])
def test_memory_that_is_to_be_had_still(root: Path, free: int, level: str) -> None:
    meminfo(root, free)
    assert told(status_server.memory())["memory"] == (level, f"{2048 - free} of 2048 MiB used")


def test_more_memory_is_promised_than_there_is(root: Path) -> None:
    meminfo(root, 1500)
    for name, size in (("shop", 1500), ("blog", 700)):
        (root / f"etc/carafe/{name}.fact").write_text(json.dumps({"memory_mb": size}))
    level, says = told(status_server.memory())["memory"]
    assert level == "yellow"
    assert "2200 MiB promised to" in says


def test_swap_is_shown_where_there_is_one(root: Path) -> None:
    meminfo(root, 1000, (1000, 100))
    assert told(status_server.memory())["swap"] == ("yellow", "900 of 1000 MiB used")


# --- units, upgrades --------------------------------------------------------------------------

SHOWN = """Id=nginx.service
LoadState=loaded
ActiveState={nginx}
UnitFileState=enabled

Id=fail2ban.service
LoadState=not-found
ActiveState=inactive
UnitFileState=
"""


@pytest.fixture
def systemctl(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have systemctl say which units have failed, how nginx is, and whether it can say so."""

    def says(failed: str, nginx: str, code: int = 0) -> None:
        def ask(*words: str, **_: Any) -> Any:
            return answer(failed if "list-units" in words else SHOWN.format(nginx=nginx), code)()

        monkeypatch.setattr(commands, "ask", ask)

    return says


def test_a_service_of_the_stack_that_is_down(systemctl: Any) -> None:
    systemctl("", "active")
    assert list(status_server.units()) == []
    systemctl("nginx.service loaded failed\n", "failed")
    (row,) = status_server.units()
    assert (row.what, row.level) == ("unit nginx.service", "red")
    assert row.next == "systemctl status nginx.service"


def test_a_valkey_that_is_down(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "valkey@shop.service").touch()

    def show(names: str, *units: str) -> list[dict[str, str]]:
        properties = {"LoadState": "loaded", "UnitFileState": "enabled", "ActiveState": "inactive"}
        return [{"Id": x, **properties} for x in units if x.startswith("valkey")]

    monkeypatch.setattr(status_server, "run", lambda *_: "")
    monkeypatch.setattr(status_server, "show", show)
    assert told(status_server.units()) == {"unit valkey@shop.service": ("red", "it is inactive")}


def test_systemd_that_does_not_answer_is_not_well(systemctl: Any) -> None:
    systemctl("", "active", 1)
    with pytest.raises(commands.CommandFailed, match="systemctl list-units"):
        list(status_server.units())


def test_what_else_has_failed_but_no_schedule(systemctl: Any) -> None:
    failed = "shop.cleanup.service loaded failed failed x\nraid.service loaded failed failed y\n"
    systemctl(failed, "active")
    assert told(status_server.units(["shop"])) == {"unit raid.service": ("yellow", "it has failed")}
    assert len(list(status_server.units([]))) == 2


APT = """Inst libc6 [2.41-12] (2.41-12+deb13u1 Debian-Security:13/stable-security [amd64])
Inst linux-image-6.12.9-amd64 (6.12.9-1 Debian-Security:13/stable-security [amd64])
Inst vim [1] (2 Debian:13.2/stable [amd64])
Conf libc6 (2.41-12+deb13u1 Debian-Security:13/stable-security [amd64])
"""


def stamp(root: Path, name: str, age: float) -> None:
    path = root / status_server.STAMPS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (NOW - age, NOW - age))


NEW = "--with-new-pkgs"  # by which apt tells of a kernel too


def test_an_update_waits_for_the_night(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_server, "run", lambda *words: APT if NEW in words else "")
    stamp(root, "unattended-upgrades-stamp", 20 * HOUR)
    stamp(root, "update-success-stamp", 20 * HOUR)
    level, says = told(status_server.updates(NOW))["updates"]
    assert level == "green"
    assert says == "2 security updates wait; looked for 20 h ago: libc6 linux-image-6.12.9-amd64"


@pytest.mark.parametrize("late", ["unattended-upgrades-stamp", "update-success-stamp"])
def test_nobody_brings_updates(root: Path, monkeypatch: pytest.MonkeyPatch, late: str) -> None:
    monkeypatch.setattr(status_server, "run", lambda *_: "")
    for name in ("unattended-upgrades-stamp", "update-success-stamp"):
        stamp(root, name, 4 * DAY if name == late else HOUR)
    (row,) = status_server.updates(NOW)
    assert row.level == "yellow"
    assert "unattended-upgrade" in row.next


def test_apt_that_fails_does_not_say_that_none_waits(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "ask", answer("E: The list of sources could not be read", 100))
    with pytest.raises(commands.CommandFailed, match="list of sources"):
        list(status_server.updates(NOW))


def test_a_reboot_that_is_due_names_why(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_server, "units_upgraded", dict)
    assert list(status_server.upgraded()) == []
    (root / "run").mkdir()
    # As the kernel's package leaves it.
    (root / "run/reboot-required").touch()
    assert told(status_server.upgraded()) == {"reboot": ("yellow", "a reboot is due")}
    (root / "run/reboot-required.pkgs").write_text("linux-image-amd64\nlinux-image-amd64\n")
    expected = {"reboot": ("yellow", "a reboot is due, for linux-image-amd64")}
    assert told(status_server.upgraded()) == expected


def test_what_runs_as_before_an_upgrade(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ["nginx.service", "session-3.scope", "init.scope", "carafe-supervised-shop.scope"]
    monkeypatch.setattr(status_server, "units_upgraded", lambda: dict.fromkeys(found, "/usr/lib/x"))
    (row,) = status_server.upgraded()
    assert (row.what, row.level, row.next) == ("restarts", "yellow", status_server.RESTART)
    assert row.says.startswith("nginx.service, carafe-supervised-shop.scope: ")


@pytest.mark.parametrize(
    ("said", "count"),
    [("[]", 0), ("[{'sshd': []}]", 0), ("[{'sshd': ['192.0.2.1', '2001:db8::1']}]", 2)],
)
def test_bans(root: Path, monkeypatch: pytest.MonkeyPatch, said: str, count: int) -> None:
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/fail2ban-client").touch()
    monkeypatch.setattr(status_server, "ask", answer(said))
    assert told(status_server.bans()) == {"bans": ("green", f"{count} addresses banned")}
    monkeypatch.setattr(status_server, "ask", answer("", 255))
    assert told(status_server.bans())["bans"][0] == "yellow"


# --- certificates, backups --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "life", "level"),
    [
        (60, 90, "green"),
        (29, 90, "green"),
        (20, 90, "yellow"),
        (6, 90, "red"),
        (-1, 90, "red"),
        (5, 6, "green"),
        (1, 6, "yellow"),
        (0.5, 6, "red"),
    ],
)
def test_the_end_of_a_certificate(
    root: Path, monkeypatch: pytest.MonkeyPatch, left: float, life: float, level: str
) -> None:
    site = root / "etc/nginx/sites-enabled/shop.conf"
    site.parent.mkdir(parents=True)
    site.write_text("  ssl_certificate /c/shop.pem;\n  ssl_certificate_key /c/shop.pem;\n")
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=left, minutes=5)
    start = end - datetime.timedelta(days=life)
    found = SimpleNamespace(start=start, end=end, stands_in=False)
    monkeypatch.setattr(status_server, "read_certificate", lambda path: found)
    (row,) = status_server.certificates()
    assert (row.what, row.level) == ("certificate shop", level)


def test_a_certificate_that_is_none_or_stands_in(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = root / "etc/nginx/sites-enabled/shop.conf"
    site.parent.mkdir(parents=True)
    site.write_text("ssl_certificate /c/shop.pem;\n")
    assert told(status_server.certificates())["certificate shop"][0] == "red"
    now = datetime.datetime.now(datetime.UTC)
    found = SimpleNamespace(start=now, end=now + datetime.timedelta(days=90), stands_in=True)
    monkeypatch.setattr(status_server, "read_certificate", lambda path: found)
    level, says = told(status_server.certificates())["certificate shop"]
    assert (level, says.startswith("a stand-in")) == ("yellow", True)


@pytest.fixture
def backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Expect backups, and note what became of them."""
    monkeypatch.setattr(backup_state, "STATE", tmp_path / "backup")
    monkeypatch.setattr(backup_state, "EXPECTED", tmp_path / "expected.json")
    monkeypatch.setattr(backup_state, "ask", lambda *words, **_: "active\n" * (len(words) - 2))
    (tmp_path / "backup").mkdir()
    jobs: dict[str, Any] = {}

    def expect(name: str, age: float, result: str = "ok", **details: Any) -> None:
        jobs[name] = {"timer": f"carafe-{name}.timer", "seconds": 26 * HOUR, "since": NOW}
        (tmp_path / "expected.json").write_text(json.dumps({"jobs": jobs}))
        times = {"began": NOW - age, "ended": NOW - age, "last_ok": NOW - age}
        entry = {"result": result, "message": "all 7 files", **times, "details": details}
        (tmp_path / f"backup/{name}.json").write_text(json.dumps(entry))

    return expect


def test_what_is_kept_without_a_backup(backup: Any) -> None:
    assert told(status_server.backups(NOW, keeps=True))["backup"][0] == "yellow"
    assert list(status_server.backups(NOW, keeps=False)) == []


def test_backups_that_are_well(backup: Any) -> None:
    backup("files-shop", HOUR * 3)
    backup("drill", 12 * HOUR)
    files, drill = status_server.backups(NOW, keeps=True)
    assert (files.what, files.level, files.app) == ("backup of files", "green", "shop")
    assert files.says == "well 3 h ago; all 7 files"
    assert (drill.what, drill.level, drill.app) == ("drill", "green", "")


@pytest.mark.parametrize("follows", [True, False])
def test_what_the_cluster_has_is_told_where_it_leads(
    backup: Any, monkeypatch: pytest.MonkeyPatch, follows: bool
) -> None:
    backup("drill-database", HOUR, database={"seconds": {"restore": 66.0, "replay": 84.0}})
    backup("database-full", HOUR, "failed", oldest=NOW - DAY)
    backup("files-shop", HOUR)
    seen = {"mode": "on", "follows": follows, "archived": NOW, "failed": None, "since": NOW}
    asked = backup_state.ask

    def ask(*words: str, **more: Any) -> str:
        return json.dumps(seen | {"data": "/x"}) if words[0] == "psql" else asked(*words, **more)

    monkeypatch.setattr(backup_state, "ask", ask)
    said = told(status_server.backups(NOW, keeps=True))
    theirs = {"backup database-full": "red", "drill-database": "green", "restore window": "green"}
    mine = {"backup": "green"} if follows else theirs
    assert {what: x[0] for what, x in said.items()} == {"backup of files": "green", **mine}


def test_how_far_back_the_database_goes_is_what_the_newest_look_says(backup: Any) -> None:
    backup("database-full", 20 * HOUR, oldest=NOW - 30 * DAY, holes=[])
    backup("database-diff", 2 * HOUR, oldest=NOW - 14 * DAY, holes=[])
    backup("database-incr", HOUR, result="failed")
    row = next(x for x in status_server.backups(NOW, keeps=True) if x.what == "restore window")
    assert row.says.startswith("the database from 2027-01-01 08:00 UTC to")


@pytest.mark.parametrize(
    ("archived", "failed", "to"),
    [
        (NOW - 60, None, "to now; to 2027-01-15 07:59 UTC should the server be gone"),
        (NOW - 60, NOW - HOUR, "to now; to 2027-01-15 07:59 UTC should the server be gone"),
        # Then no later moment can be reached here either.
        (NOW - HOUR, NOW - 60, "to 2027-01-15 07:00 UTC"),
        (None, None, "to what was archived last"),
    ],
)
def test_up_to_when_one_can_go_back(
    backup: Any, monkeypatch: pytest.MonkeyPatch, archived: float | None, failed: Any, to: str
) -> None:
    backup("database-full", HOUR, oldest=NOW - 14 * DAY, holes=[])
    seen = {"mode": "on", "archived": archived, "failed": failed, "ready": 0}
    monkeypatch.setattr(backup_state, "archiving", lambda: seen)
    row = next(x for x in status_server.backups(NOW, keeps=True) if x.what == "restore window")
    assert row.says == f"the database from 2027-01-01 08:00 UTC {to}"


def test_a_drill_says_how_long_a_restore_takes(backup: Any) -> None:
    backup("drill", HOUR, database={"seconds": {"restore": 66.0, "replay": 84.0, "look": 99.0}})
    assert told(status_server.backups(NOW, keeps=True))["drill"][1].endswith("back in 2 min")


@pytest.mark.parametrize(
    ("age", "result", "says"), [(HOUR, "failed", "all 7 files"), (30 * HOUR, "ok", "30 hours old")]
)
def test_a_backup_that_is_old_or_failed(backup: Any, age: float, result: str, says: str) -> None:
    backup("files-shop", age, result)
    (row,) = status_server.backups(NOW, keeps=True)
    # However old it gets, it is the same problem.
    assert (row.what, row.level, row.app) == ("backup of files", "red", "shop")
    assert row.says.endswith(says)
    assert row.next


def test_a_restore_that_failed(backup: Any, tmp_path: Path) -> None:
    entry = {"ended": NOW, "result": "failed", "message": "no such backup"}
    (tmp_path / "backup/restore-shop.json").write_text(json.dumps(entry))
    (row,) = status_server.backups(NOW, keeps=False)
    assert (row.what, row.level, row.app) == ("restore", "red", "shop")


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ("drill: the last good one is 3 days old", "drill"),
        ("carafe-drill.timer does not run, so nothing begins this backup", "carafe-drill.timer"),
        ("archiving of WAL is behind: 9 segments", "archiving"),
    ],
)
def test_a_problem_of_a_backup_is_known_again(said: str, what: str) -> None:
    assert status_server.kind_of(said, {"drill": {}})[0] == what


# --- an app -----------------------------------------------------------------------------------


@pytest.fixture
def app(tmp_path: Path) -> status_app.App:
    root = tmp_path / "shop"
    (root / "settings/r1/schedules").mkdir(parents=True)
    (root / "state").mkdir()
    (root / "logs/schedules").mkdir(parents=True)
    (root / "serving").symlink_to("settings/r1")
    entry = {"revision": "v1.4", "by": "ada", "began": NOW, "deployed": NOW}
    (root / "state/releases.json").write_text(json.dumps({"r1": entry}))
    return status_app.App("shop", root, root / "serving/slots.json")


def test_what_serves_since_when_and_by_whom(app: status_app.App) -> None:
    level, says = told(status_app.release(app))["release"]
    assert (level, says) == ("green", "r1 of v1.4 since 2027-01-15 08:00 UTC by ada")


def test_nothing_serves(app: status_app.App) -> None:
    (app.root / "serving").unlink()
    (row,) = status_app.release(app)
    assert (row.level, row.next) == ("red", status_app.DEPLOY)


@pytest.mark.parametrize(
    ("ended", "level"), [("ok", "green"), ("failed at migrate: no such table", "yellow")]
)
def test_how_the_last_run_ended(app: status_app.App, ended: str, level: str) -> None:
    state = app.state
    state.audit("ada", "deployment of r0", "failed at build: x", "1.0 s")
    state.audit("bob", "deployment of r1", ended, "12.5 s")
    state.audit("bob", "broke the lock of ada")
    found, says = told(status_app.release(app))["last run"]
    assert found == level
    assert says.startswith("deployment of r1 by bob, ")
    assert says.endswith(f"12.5 s: {ended}")


def test_a_lock_that_is_forgotten(app: status_app.App) -> None:
    lock = {"by": "ada", "what": "deployment of r2", "since": time.time() - 60}
    (app.root / "state/lock.json").write_text(json.dumps(lock))
    assert told(status_app.release(app))["lock"][0] == "green"
    lock["since"] = time.time() - 3 * HOUR
    (app.root / "state/lock.json").write_text(json.dumps(lock))
    assert told(status_app.release(app))["lock"][0] == "yellow"


class Rpc:
    """supervisord, as far as it is asked."""

    def __init__(self, **state: Any) -> None:
        self.info = {
            **{"group": "shop", "name": "shop_0", "statename": "RUNNING", "pid": os.getpid()},
            **{"spawnerr": "", "description": "Not started", "now": 100, "start": 40, **state},
        }

    def getProcessInfo(self, name: str) -> dict[str, Any]:
        return self.info

    def getAllProcessInfo(self) -> list[dict[str, Any]]:
        return [self.info]


@pytest.mark.parametrize(
    ("state", "trouble", "age", "finger", "level"),
    [
        ({}, "", 500, "wanted", "green"),
        ({}, "", 500, "other", "yellow"),
        ({}, "/health answered 500", 500, "wanted", "red"),
        ({}, "no answer", 3, "wanted", "yellow"),
        ({"statename": "STOPPED", "pid": 0}, "", 500, "wanted", "red"),
        ({"statename": "BACKOFF", "pid": 0}, "", 500, "wanted", "red"),
        ({"statename": "FATAL", "pid": 0}, "", 500, "wanted", "red"),
    ],
)
def test_a_slot(
    monkeypatch: pytest.MonkeyPatch,
    state: dict[str, Any],
    trouble: str,
    age: float,
    finger: str,
    level: str,
) -> None:
    config = {"program": "shop", "private_directory": "/run/x", "health": {"timeout": 30}}
    slot = status_app.slots.Slot(Rpc(**state), config, "shop_0")
    monkeypatch.setattr(slot, "ask", lambda: trouble)
    monkeypatch.setattr(status_app.processes, "age", lambda pid: age)
    found = {status_app.slots.FINGERPRINT: finger}
    monkeypatch.setattr(status_app.processes, "environment", lambda pid: found)
    assert status_app.slot_health(slot, "wanted")[0] == level


@pytest.mark.parametrize(
    ("state", "level"), [("RUNNING", "green"), ("STARTING", "yellow"), ("FATAL", "red")]
)
def test_a_worker(app: status_app.App, state: str, level: str) -> None:
    rpc = Rpc(group="shop.mail", name="shop.mail_0", statename=state)
    (row,) = status_app.workers(app, rpc)
    assert (row.what, row.level, row.app) == ("worker mail", level, "shop")
    # One of an app whose name begins alike is not the shop's.
    assert list(status_app.workers(app, Rpc(group="shopping.mail"))) == []


@pytest.mark.parametrize(
    ("timer", "result", "level"),
    [
        ("active", "success", "green"),
        ("active", "exit-code", "yellow"),
        ("active", "", "green"),
        ("inactive", "success", "red"),
    ],
)
def test_a_schedule(
    app: status_app.App, monkeypatch: pytest.MonkeyPatch, timer: str, result: str, level: str
) -> None:
    (app.root / "serving/schedules/shop.cleanup.timer").touch()
    monkeypatch.setattr(status_app, "show", lambda *_: [{"ActiveState": timer}])
    if result:
        run = {"began": 1, "ended": 2, "result": result, "status": "3", "output": ""}
        (app.root / "logs/schedules/cleanup.json").write_text(json.dumps([run]))
    (row,) = status_app.schedules(app)
    assert (row.what, row.level) == ("schedule cleanup", level)
    assert ("app_schedule=cleanup" in row.next) is (level == "yellow")


def test_an_app_in_maintenance(
    app: status_app.App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_app, "NGINX_DATA", tmp_path)
    assert list(status_app.maintenance(app)) == []
    (tmp_path / "maintenance-shop").mkdir()
    (tmp_path / "maintenance-shop/on").touch()
    (row,) = status_app.maintenance(app)
    assert (row.level, row.next.split()[-1]) == ("yellow", "state=off")


# --- PostgreSQL -------------------------------------------------------------------------------


class Session:
    """A session that gives the same answer to each question."""

    def __init__(self, *rows: tuple) -> None:
        self.answer = list(rows)

    def rows(self, *_: Any) -> list[tuple]:
        return self.answer


@pytest.mark.parametrize(("there", "level"), [(10, "green"), (80, "yellow"), (96, "red")])
def test_connections(there: int, level: str) -> None:
    found = told(status_database.connections(Session((100, there))))
    assert found == {"connections": (level, f"{there} of 100")}


@pytest.mark.parametrize(("seconds", "level"), [(HOUR, "yellow"), (13 * HOUR, "red")])
def test_a_long_transaction_is_of_the_app_whose_database_it_is_in(
    seconds: float, level: str
) -> None:
    session = Session((7, "shop", "shop", "idle in transaction", seconds))
    claims = {"blog": {"databases": ["blog"]}, "shop": {"databases": ["shop"]}}
    (row,) = status_database.longest(session, claims)
    assert (row.level, row.app) == (level, "shop")
    assert "pg_terminate_backend(7)" in row.next


def test_a_short_transaction_is_nothing() -> None:
    assert list(status_database.longest(Session((7, "shop", "shop", "active", 59.0)), {})) == []


@pytest.mark.parametrize(
    ("seconds", "failing", "level"),
    [
        (None, False, "green"),
        (60, False, "green"),
        (200, False, "yellow"),
        (700, True, "red"),
        (60, True, "yellow"),
    ],
)
def test_what_waits_for_the_archive(seconds: float | None, failing: bool, level: str) -> None:
    row = ("on", 2, seconds, 2.0**26, "000000010000000000000003", failing)
    found, says = told(status_database.archive(Session(row)))["archive"]
    assert found == level
    assert "pg_wal has 64 MiB" in says
    assert list(status_database.archive(Session(("off", *row[1:])))) == []


@pytest.mark.parametrize(
    ("row", "level", "word"),
    [
        (("on", 0, None), "green", "on; no page"),
        (("on", 2, "shop"), "red", "2 pages were found that the disk has changed, in shop"),
        # In what is of no database.
        (("on", 1, None), "red", "in what all databases share"),
        (("off", 0, None), "green", "off; "),
    ],
)
def test_pages_that_a_disk_has_changed(row: tuple, level: str, word: str) -> None:
    found, says = told(status_database.checksums(Session(row)))["checksums"]
    assert found == level
    assert word in says


def test_of_several_clusters_each_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [Row("postgresql 17/shop", "green", "it answers"), Row("connections", "red", "97")]
    monkeypatch.setattr(status_database, "rows_of", lambda _: seen)
    cluster = {"version": "17", "name": "shop"}
    assert [x.what for x in status_database.rows(cluster)] == [x.what for x in seen]
    several = [x.what for x in status_database.rows(cluster, several=True)]
    assert several == ["postgresql 17/shop", "connections of 17/shop"]
    assert status_database.is_asked(several[1])
    assert not status_database.is_asked("restarts")


def test_a_cluster_of_the_release_before_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_database.found, "ROOT", tmp_path)
    (tmp_path / "etc/postgresql/15/main").mkdir(parents=True)
    (tmp_path / "etc/postgresql/15/main/postgresql.conf").touch()
    (tmp_path / "etc/os-release").write_text('VERSION_ID="13"\n')
    (tmp_path / "etc/carafe/postgres.d").mkdir(parents=True)
    (tmp_path / "etc/carafe/postgres.d/shop.json").write_text('{"databases": [{"name": "shop"}]}')
    (cluster,) = status_database.clusters()
    assert (cluster["version"], list(cluster["claims"])) == ("15", ["shop"])


# --- all of it --------------------------------------------------------------------------------


def test_what_cannot_be_looked_at_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise RuntimeError("no\nsuch thing")

    probes = [("shop", "slots", broken), ("", "disks", lambda: [Row("disk /", "green", "fine")])]
    monkeypatch.setattr(status, "probes", lambda *_: probes)
    one, two = status.look()
    assert (one.what, one.app, one.level) == ("slots", "shop", "yellow")
    assert "no such thing" in one.says
    assert two.what == "disk /"


def hangs(*_: Any) -> Any:
    time.sleep(60)


def test_what_hangs_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "PATIENCE", 0.2)

    def slots() -> Any:
        yield Row("slot 0", "red", "no answer", "", "shop")
        subprocess.run(["sleep", "60"], check=True)

    probes = [("shop", "slots", slots), ("", "disks", lambda: [Row("disk /", "green", "fine")])]
    monkeypatch.setattr(status, "probes", lambda *_: probes)
    one, two, three = status.look()
    assert (one.what, one.level) == ("slot 0", "red")
    assert two.says == f"{status.UNSEEN}: TimeoutError: it does not answer in time"
    assert three.what == "disk /"


@pytest.mark.parametrize(
    ("module", "name", "what"),
    [(status_app, "apps", "apps"), (status_database, "clusters", "postgresql")],
)
def test_what_is_there_cannot_be_found(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, what: str
) -> None:
    monkeypatch.setattr(status, "PATIENCE", 0.2)
    monkeypatch.setattr(module, name, hangs)
    monkeypatch.setattr(status, "probes", lambda *_: [])
    (row,) = status.look()
    assert (row.what, row.level) == (what, "yellow")
    assert row.says == f"{status.UNSEEN}: TimeoutError: it does not answer in time"


def test_a_postgresql_that_says_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("psycopg2")
    monkeypatch.setattr(status, "PATIENCE", 0.5)
    place = {"host": str(tmp_path), "port": 5432}
    monkeypatch.setattr(status_database.Server, "place", lambda _: place)
    monkeypatch.setattr(postgresql_server, "as_postgres", contextlib.nullcontext)
    monkeypatch.setattr(status_database, "clusters", lambda: [])
    cluster = {"version": "17", "name": "main", "claims": {}}
    probes = [("", "postgresql", lambda: status_database.rows(cluster))]
    monkeypatch.setattr(status, "probes", lambda *_: probes)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / ".s.PGSQL.5432"))
        silent.listen()
        (row,) = status.look()
    assert row.says == f"{status.UNSEEN}: TimeoutError: it does not answer in time"


@pytest.mark.parametrize("damage", ["", "{", "[1]", "null", '[{"at": "x"}]', '{"at": 1}'])
def test_a_damaged_history_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    (tmp_path / "history.json").write_text(damage)
    monkeypatch.setattr(status, "HISTORY", tmp_path / "history.json")
    assert status.history() == []


def test_a_bare_server_can_be_looked_at(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Nothing of Carafe is there, and none of the programs that are asked."""
    monkeypatch.setattr(status_app, "PROGRAMS", root / "etc/supervisor/conf.d")

    def gone(*words: str, **_: Any) -> Any:
        raise FileNotFoundError(2, "No such file or directory", words[0])

    monkeypatch.setattr(subprocess, "run", gone)
    found = told(status.look())
    assert "release" not in found
    assert found["disk /"][0] in levels.LEVELS
    assert "cannot be looked at" in found["units"][1]
