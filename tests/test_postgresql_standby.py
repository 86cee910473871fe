"""What becomes of data on a server that is to follow another one, and who may be the primary."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import commands, postgresql_guard
from ansible_collections.carafe.stack.plugins.module_utils import postgresql_standby as standby
from ansible_collections.carafe.stack.plugins.module_utils.postgresql_standby import Place, Primary

SEGMENT = 16 * 1024**2
GIVEN = {
    "primary": "10.0.0.10",
    "primary_port": 5432,
    "standby_name": "Two-b.example",
    "replication_user": "shop-replicator",
    "replication_trusted": "/etc/internal-tls/shop/ca.pem",
    "replication_password": "hush",
    "replace": False,
    "standbys": [{"name": "one", "address": "10.0.0.10"}],
    "former": "",
    "anyway": False,
}


def primary(**more: Any) -> Primary:
    given = {"system": "7", "timeline": 2, "position": 900 * SEGMENT, "ends": {1: 500 * SEGMENT}}
    return Primary(**{"kept": 300 * SEGMENT, **given, **more})


def there(timeline: int = 2, last: int = 600 * SEGMENT, system: str = "7") -> Place:
    return Place(system, timeline, last, last + 50)


@pytest.mark.parametrize(
    ("place", "is_standby", "databases", "act"),
    [
        (None, False, False, "replace"),
        (there(system="8"), False, False, "replace"),
        (there(system="8"), False, True, "stranger"),
        (there(system="8"), True, True, "stranger"),
        (there(), True, True, "nothing"),
        (there(1, 499 * SEGMENT), False, True, "follow"),
        (there(1, 500 * SEGMENT - 120), False, True, "follow"),
        # Its last record begins where the timeline was left: nobody else has it.
        (there(1, 500 * SEGMENT), False, True, "aside"),
        (there(1, 501 * SEGMENT), True, True, "aside"),
        (there(3, 600 * SEGMENT), False, True, "aside"),
        (there(2, 901 * SEGMENT), True, True, "aside"),
        (there(1, 1 << 64), False, True, "aside"),
        (there(1, 299 * SEGMENT), True, True, "replace"),
    ],
    ids=str,
)
def test_only_what_the_primary_has_is_replaced(
    place: Place | None, is_standby: bool, databases: bool, act: str
) -> None:
    assert standby.plan(place, is_standby, databases, primary(), SEGMENT).act == act


def test_a_primary_that_keeps_nothing_for_it_is_copied_anew() -> None:
    found = standby.plan(there(), True, True, primary(kept=None), SEGMENT)
    assert found.act == "replace"
    assert "no longer kept" in found.why


def test_whole_segments_are_kept() -> None:
    kept = primary(kept=300 * SEGMENT + 5000)
    assert kept.keeps(Place("7", 2, 0, 300 * SEGMENT + 10), SEGMENT)
    assert not kept.keeps(Place("7", 2, 0, 300 * SEGMENT - 10), SEGMENT)


@pytest.mark.parametrize(
    ("said", "last", "end"),
    [
        (
            "pg_waldump: error: error in WAL record at 0/15A8F70: invalid record length at"
            " 0/15A8FA8: expected at least 24, got 0\n",
            0x15A8F70,
            0x15A8FA8,
        ),
        (
            "pg_waldump: error: error in WAL record at 2/1C39DF8: invalid record length at"
            " 2/1C39E30: wanted 24, got 0\n",
            0x201C39DF8,
            0x201C39E30,
        ),
        (
            'pg_waldump: error: could not find file "000000010000000200000004": No such file\n',
            0x204000000 - 1,
            0x204000000,
        ),
        ("pg_waldump: error: could not open directory\n", 0, 0),
    ],
)
def test_a_log_ends_where_pg_waldump_says(said: str, last: int, end: int) -> None:
    assert standby.last_record(said, SEGMENT) == (last, end)


CONTROL = {
    "Database system identifier": "7",
    "Latest checkpoint's TimeLineID": "1",
    "Latest checkpoint location": "0/3000060",
    "Latest checkpoint's REDO location": "0/3000028",
    "Min recovery ending loc's timeline": "0",
    "Minimum recovery ending location": "0/0",
    "Database cluster state": "shut down",
    "Bytes per WAL segment": str(SEGMENT),
}


def server(folder: Path) -> Any:
    return SimpleNamespace(
        data=folder / "main",
        config=Path("/etc/postgresql/17/main"),
        program=Path("/usr/lib/postgresql/17/bin/postgres"),
        unit="postgresql@17-main.service",
        version="17",
        name="main",
        journal=lambda: "Its unit says nothing.",
        look=lambda: {"runs": False, "is_fenced": False},
    )


@pytest.mark.parametrize(
    ("more", "asked", "place"),
    [
        ({}, ("0/3000028", 1), Place("7", 1, 0x3000060, 0x3000060)),
        ({"Database cluster state": "in production"}, ("0/3000028", 1), Place("7", 1, 1 << 64, 0)),
        (
            {
                "Database cluster state": "in archive recovery",
                "Min recovery ending loc's timeline": "2",
                "Minimum recovery ending location": "0/5000000",
            },
            ("0/5000000", 2),
            Place("7", 2, 0x5000000, 0x5000000),
        ),
    ],
    ids=["ended", "killed", "a standby"],
)
def test_how_far_data_go_that_nobody_can_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, more: Any, asked: Any, place: Place
) -> None:
    words: list[Any] = []

    def ask(*command: Any) -> Any:
        words.extend(command)
        return SimpleNamespace(stderr="pg_waldump: error: could not open directory")

    monkeypatch.setattr(standby, "ask", ask)
    assert standby.place(server(tmp_path), CONTROL | more) == place
    assert f"--start={asked[0]}" in words
    assert f"--timeline={asked[1]}" in words


def test_timelines_end_where_their_history_says() -> None:
    said = "00000003.history\t1\t0/3000148\tno recovery target specified\n\n2\t1/A0\tno\n"
    assert standby.timeline_ends(said) == {1: 0x3000148, 2: 0x1000000A0}
    assert standby.timeline_ends("") == {}


# --- how one comes to the other ---------------------------------------------------------------


def test_a_standby_comes_by_a_certificate_and_without_a_password_in_its_words(
    tmp_path: Path,
) -> None:
    found = standby.settings(server(tmp_path), GIVEN)
    assert found["primary_slot_name"] == "standby_two_b_example"
    words = found["primary_conninfo"].split()
    assert {"host=10.0.0.10", "user=shop-replicator", "sslmode=verify-full"} <= {*words}
    assert "application_name=standby_two_b_example" in words
    assert "hush" not in found["primary_conninfo"]
    assert standby.settings(server(tmp_path), GIVEN | {"primary": ""}) == {}
    found = standby.conninfo(server(tmp_path), GIVEN | {"replication_trusted": ""})
    assert "channel_binding=require" in found


def test_a_password_may_have_what_separates() -> None:
    assert standby.password_text("a:b", "c\\d:") == "*:*:*:a\\:b:c\\\\d\\:\n"


def test_a_standby_has_no_less_than_its_primary() -> None:
    least = {"max_connections": 150, "max_worker_processes": 16}
    found = standby.raised({"max_connections": "100", "jit": "off"}, least)
    assert found == {"max_connections": "150", "jit": "off", "max_worker_processes": "16"}
    assert standby.raised({"max_connections": "200"}, {"max_connections": 150}) == {
        "max_connections": "200"
    }


# --- what a run does ---------------------------------------------------------------------------


@pytest.fixture
def acts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Have copied() decide by what a test says, and note what it does."""
    state = SimpleNamespace(
        server=server(tmp_path), done=[], place=there(), primary=primary(), databases=True
    )
    state.server.data.mkdir()
    password = tmp_path / "replication.pgpass"
    password.touch()
    monkeypatch.setattr(standby, "password_file", lambda _: password)
    monkeypatch.setattr(standby, "streams", lambda _: False)
    monkeypatch.setattr(standby, "ask_primary", lambda *_: state.primary)
    monkeypatch.setattr(standby, "control", lambda _: CONTROL if state.place else {})
    monkeypatch.setattr(standby, "place", lambda *_: state.place)
    monkeypatch.setattr(standby.found, "has_databases", lambda _: state.databases)
    for name in ("copy", "signal", "stop"):
        monkeypatch.setattr(standby, name, lambda *_, name=name: state.done.append(name))
    return state


def test_data_of_others_are_refused_and_kept_aside_where_that_is_meant(acts: Any) -> None:
    acts.place = there(system="8")
    (acts.server.data / "precious").touch()
    with pytest.raises(commands.Failure, match=r"databases of its own.*stack_convert=true"):
        standby.copied(acts.server, GIVEN, check=False)
    assert acts.done == []
    said = standby.copied(acts.server, GIVEN | {"replace": True}, check=True)
    assert acts.done == []
    assert (acts.server.data / "precious").exists()
    assert [x.split(" as ")[0] for x in said] == [
        f"keep {acts.server.data} aside",
        "copy the data of 10.0.0.10",
    ]
    standby.copied(acts.server, GIVEN | {"replace": True}, check=False)
    assert acts.done == ["copy"]
    (kept,) = standby.kept_aside(acts.server)
    assert (kept / "precious").exists()


def test_what_only_the_former_primary_has_is_kept_aside_without_a_word(acts: Any) -> None:
    acts.place = there(1, 501 * SEGMENT)
    said = standby.copied(acts.server, GIVEN, check=False)
    assert "they have what the primary does not have" in said[0]
    assert acts.done == ["copy"]


def test_a_former_primary_that_has_no_more_follows_without_a_copy(acts: Any) -> None:
    acts.place = there(1, 400 * SEGMENT)
    assert standby.copied(acts.server, GIVEN, check=False) == ["follow 10.0.0.10"]
    assert acts.done == ["signal"]


def test_a_copy_that_was_cut_short_is_begun_anew(acts: Any) -> None:
    standby.copying(acts.server).touch()
    (acts.server.data / "standby.signal").touch()
    assert standby.copied(acts.server, GIVEN, check=False) == ["copy the data of 10.0.0.10"]
    assert acts.done == ["copy"]


def test_a_primary_that_runs_is_not_stopped_for_it(acts: Any) -> None:
    acts.server.look = lambda: {"runs": True, "is_fenced": False}
    with pytest.raises(commands.Failure, match=r"runs as a primary.*carafe\.stack\.promote"):
        standby.copied(acts.server, GIVEN, check=False)
    assert acts.done == []


def test_a_standby_that_streams_asks_nobody(acts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (acts.server.data / "standby.signal").touch()
    monkeypatch.setattr(standby, "streams", lambda _: True)
    monkeypatch.setattr(standby, "ask_primary", lambda *_: pytest.fail("it was asked"))
    assert standby.copied(acts.server, GIVEN, check=False) == []


# --- slots -------------------------------------------------------------------------------------


class Catalog:
    """A session that answers with these slots, and notes what is changed."""

    def __init__(self, *slots: tuple[str, int | None, bool]) -> None:
        self.slots, self.check, self.changes = slots, False, []

    def rows(self, query: str, *_: Any) -> list[Any]:
        return [*self.slots] if "pg_replication_slots" in query else [(True,)]

    def change(self, sentence: str, *_: Any, **__: Any) -> None:
        self.changes.append(sentence)


def test_each_standby_has_one_slot_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby, "sql", SimpleNamespace(Literal=str))
    session = Catalog(("standby_one", 7, False), ("standby_old", None, False))
    standby.ensure_slots(session, ["one", "two"])
    assert session.changes == ["drop the slot standby_old", "make the slot standby_two"]
    session = Catalog(("standby_one", None, True))
    standby.ensure_slots(session, ["one"])
    assert session.changes[0].startswith("drop the slot standby_one, of which too much is gone")
    assert session.changes[1:] == ["make the slot standby_one"]


# --- in the other's place ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("former", "received", "said"),
    [
        ("0/3000060", "0/30000D8", "nothing is missing"),
        ("0/3000060", "0/3000060", "0 bytes are missing"),
        ("1/0", "0/FFFFFF00", "256 bytes are missing"),
        ("", "0/3000060", "the last transaction that came is of 2027-01-15 08:00:00 UTC"),
    ],
)
def test_it_says_how_much_is_missing(former: str, received: str, said: str) -> None:
    now = standby.Standing(True, received, received, 1_800_000_000.0, False)
    assert said in standby.missing(former, now)


@pytest.fixture
def promoting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A standby that has all, whose primary says what a test has it say."""
    known = SimpleNamespace(
        server=server(tmp_path), says="", now=standby.Standing(True, "0/30", "0/30", 0, False)
    )
    session = Catalog()
    session.rows = lambda query, *_: (
        [("host=10.0.0.10 port=5433 user=x",)] if "primary_conninfo" in query else [(True,)]
    )
    monkeypatch.setattr(standby, "session_now", lambda _: session)
    monkeypatch.setattr(standby, "standing", lambda _: known.now)
    monkeypatch.setattr(standby, "alive", lambda _, given: known.says and given["primary"])
    monkeypatch.setattr(standby, "ensure_slots", lambda _, names: session.changes.append(names))
    return known


def test_it_takes_no_place_of_a_primary_that_answers(promoting: Any) -> None:
    promoting.says = "yes"
    with pytest.raises(commands.Failure, match=r"10\.0\.0\.10 still answers.*promote_unfenced"):
        standby.promoted(promoting.server, GIVEN, check=False)
    changes, _ = standby.promoted(promoting.server, GIVEN | {"anyway": True}, check=False)
    assert changes[0].startswith("promote 17/main")


def test_before_it_writes_it_keeps_the_log_for_the_others(promoting: Any) -> None:
    changes, missing = standby.promoted(promoting.server, GIVEN, check=False)
    assert changes == [f"promote 17/main: {missing}", ["one"]]
    changes, _ = standby.promoted(promoting.server, GIVEN, check=True)
    assert len(changes) == 1


def test_one_that_is_the_primary_already_stays_it(promoting: Any) -> None:
    promoting.now = standby.Standing(False, "", "0/30", 0, False)
    assert standby.promoted(promoting.server, GIVEN, check=False) == ([], "")


def test_what_is_fenced_ends_by_itself_and_starts_no_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known, asked = server(tmp_path), []
    known.look = lambda: {"runs": True, "is_fenced": False}
    known.is_installed = lambda: True
    monkeypatch.setattr(standby, "run", lambda *words: asked.append(words[1]))
    monkeypatch.setattr(standby, "stop", lambda _: asked.append("stop"))
    monkeypatch.setattr(standby, "control", lambda _: CONTROL)
    assert standby.fence(known, check=True)[1] == ""
    assert asked == []
    changes, position = standby.fence(known, check=False)
    # The other way round, what sends the log to a standby is ended with the rest.
    assert (asked, position, len(changes)) == (["stop", "mask"], "0/3000060", 2)
    # Of one that was killed nobody knows how far it went.
    monkeypatch.setattr(
        standby, "control", lambda _: CONTROL | {"Database cluster state": "in production"}
    )
    assert standby.fence(known, check=False)[1] == ""


# --- the guard ---------------------------------------------------------------------------------


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A primary on timeline 1 with a standby, which answers as a test says."""
    data = tmp_path / "data"
    (data / "pg_wal").mkdir(parents=True)
    config = tmp_path / "etc/postgresql/17/main"
    config.mkdir(parents=True)
    told = {"data": str(data), "standbys": [{"name": "two", "connection": "host=10.0.0.11"}]}
    (config / "standbys.json").write_text(json.dumps(told))
    known = SimpleNamespace(data=data, config=config, answer=(0, "7 1 0/3000148", ""))

    def run(program: Path, *_: Any) -> Any:
        if program.name == "pg_controldata":
            return SimpleNamespace(stdout="Latest checkpoint's TimeLineID:       1\n")
        if known.answer is None:
            raise subprocess.TimeoutExpired("psql", 10)
        code, out, err = known.answer
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)

    monkeypatch.setattr(postgresql_guard, "ROOT", tmp_path)
    monkeypatch.setattr(postgresql_guard, "run", run)
    return known


@pytest.mark.parametrize(
    "answer",
    [
        (0, "7 1 0/3000148 ", ""),
        (2, "", "could not connect to server: Connection refused"),
        (2, "", "FATAL:  the database system is starting up"),
        None,
    ],
    ids=["it follows", "down", "starts", "silent"],
)
def test_a_primary_starts_where_nobody_has_taken_its_place(guard: Any, answer: Any) -> None:
    guard.answer = answer
    assert postgresql_guard.look("17-main") == ""


def test_a_primary_whose_standby_is_the_primary_does_not_start(
    guard: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guard.answer = (0, "7 2 0/3000148 ", "")
    monkeypatch.setattr(postgresql_guard.sys, "argv", ["postgres-standbys", "17-main"])
    assert postgresql_guard.main() == postgresql_guard.REPLACED
    assert "two is the primary since, on timeline 2" in capsys.readouterr().out
    guard.answer = (2, "", 'FATAL:  no pg_hba.conf entry for replication connection from "x"')
    assert "does not let this server in any more" in postgresql_guard.look("17-main")


def test_one_that_was_promoted_and_killed_at_once_starts(guard: Any) -> None:
    guard.answer = (0, "7 2 0/3000148 ", "")
    (guard.data / "pg_wal/00000002.history").touch()
    assert postgresql_guard.look("17-main") == ""


def test_a_standby_and_a_server_without_one_ask_nobody(guard: Any) -> None:
    guard.answer = (0, "7 2 0/3000148 ", "")
    assert postgresql_guard.look("17-other") == ""
    (guard.data / "standby.signal").touch()
    assert postgresql_guard.look("17-main") == ""
