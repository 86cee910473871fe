"""The logs of all servers: read whoever writes them, merged by time, and followed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.carafe.stack.plugins.action import logs_shown
from ansible_collections.carafe.stack.plugins.module_utils import logs
from ansible_collections.carafe.stack.plugins.module_utils.commands import Failure
from conftest import ROOT

AT = 1_795_772_773.0  # 2026-11-27 09:46:13 UTC
SLOTS = """[fcgi-program:shop]
command=/usr/bin/python3 /usr/local/lib/carafe/gunicorn-slots start /srv/shop/serving/slots.json 0
"""
LINES = {
    "supervisor/shop_0.log": "[2026-11-27 09:46:13 +0000] [7] [INFO] Booting worker\n"
    "2026-11-27 09:46:20,250 ERROR no such cart\nTraceback:\n  line 7\n",
    "supervisor/shop.mail_0.log": "printed without a time\n",
    "supervisor/blog_0.log": "[2026-11-27 09:46:14 +0000] [9] [INFO] of another app\n",
    "supervisor/supervisord.log": "2026-11-27 09:46:12,500 INFO spawned\n",
    "nginx/access.log": '::1 - - [27/Nov/2026:10:46:15 +0100] "GET / HTTP/1.1" 200 5 4b1f\n',
    "nginx/error.log": "2026/11/27 09:46:16 [error] 5#5: *1 upstream 4b1f\n",
    "postgresql/postgresql-17-main.log": "2026-11-27 09:46:17.100 UTC [5] LOG:  checkpoint\n",
}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(logs, "ROOT", tmp_path)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    (tmp_path / "etc/supervisor/conf.d").mkdir(parents=True)
    (tmp_path / "etc/supervisor/conf.d/shop.conf").write_text(SLOTS)
    for name, text in LINES.items():
        path = tmp_path / "var/log" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (AT + 9, AT + 9))
    return tmp_path


def asked(**more: Any) -> dict[str, Any]:
    texts = dict.fromkeys(("since", "until", "grep", "request", "release"), "")
    known = {"app": "shop", "root": "/srv/shop", "sources": [], "lines": 200, "cursor": {}}
    return logs.run({**texts, **known, "wait": 0, **more})


def sources(**more: Any) -> list[str]:
    return [x["source"] for x in asked(**more)["entries"]]


@pytest.mark.parametrize(
    ("line", "at"),
    [
        ("[2026-11-27 09:46:13 +0000] [1] [INFO] x", AT),
        ("[2026-11-27 11:46:13 +0200] [1] [INFO] x", AT),
        ("2026-11-27T04:46:13.5-05:00 x", AT + 0.5),
        ('{"timestamp": "2026-11-27T09:46:13.123456789Z"}', AT + 0.123456),
        ("2026-11-27 09:46:13.250 UTC [9] LOG:  x", AT + 0.25),
        ('1.2.3.4 - - [27/Nov/2026:09:46:13 +0000] "GET /"', AT),
        ("[2026-13-27 09:46:13 +0000] no such month", None),
        ("[27/Foo/2026:09:46:13 +0000]", None),
        ("no time at all", None),
        ("x" * 400 + " 2026-11-27 09:46:13 UTC", None),
    ],
)
def test_the_time_of_a_line(line: str, at: float | None) -> None:
    assert logs.moment(line) == (pytest.approx(at) if at else None)


def test_all_that_serves_an_app_is_merged_by_time(server: Path) -> None:
    assert sources() == [
        *("supervisord", "shop/0", "nginx access", "nginx error", "postgresql", "shop/0"),
        "shop.mail/0",
    ]
    assert sources(sources=["worker", "nginx"]) == ["nginx access", "nginx error", "shop.mail/0"]
    assert "blog/0" in sources(app="")


def test_a_traceback_is_one_entry(server: Path) -> None:
    (entry,) = asked(grep="line 7")["entries"]
    assert entry["text"] == "2026-11-27 09:46:20,250 ERROR no such cart\nTraceback:\n  line 7"
    assert entry["at"] == pytest.approx(AT + 7.25)


def test_what_is_asked_for(server: Path) -> None:
    assert sources(request="4b1f") == ["nginx access", "nginx error"]
    assert sources(since="2026-11-27 09:46:17 UTC", until="2026-11-27 09:46:18 UTC") == [
        "postgresql"
    ]
    assert sources(lines=2) == ["shop/0", "shop.mail/0"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"since": "some day"}, "since: some day is no time"), ({"grep": "("}, "grep: ( is no")],
)
def test_what_cannot_be_asked_for(server: Path, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(Failure, match=re.escape(says)):
        asked(**wrong)


def test_what_was_written_while_a_release_served(server: Path, tmp_path: Path) -> None:
    root = tmp_path / "shop"
    (root / "state").mkdir(parents=True)
    known = '{"r1": {"deployed": 1}, "r2": {"deployed": %s}, "r3": {"deployed": %s}, "r4": {}}'
    (root / "state/releases.json").write_text(known % (AT + 2, AT + 3.5))
    assert sources(root=str(root), release="r2") == ["nginx access", "nginx error"]
    with pytest.raises(Failure, match=r"r9 has not served here\. There is: r3, r2, r1"):
        asked(root=str(root), release="r9")


def test_what_was_rotated_last_is_read_where_it_is_asked_for(server: Path) -> None:
    old = server / "var/log/nginx/access.log.1"
    old.write_text('::1 - - [27/Nov/2026:09:40:00 +0000] "GET /old HTTP/1.1" 200\n')
    os.utime(old, (AT - 60, AT - 60))
    assert len(asked(grep="/old", since="2026-11-27 09:39:00 UTC")["entries"]) == 1
    assert asked(grep="/old", since="2026-11-27 09:46:00 UTC")["entries"] == []


def test_no_link_or_pipe_is_followed(server: Path) -> None:
    (server / "secret").write_text("2026-11-27 09:46:13 UTC secret\n")
    (server / "var/log/supervisor/shop_1.log").symlink_to(server / "secret")
    os.mkfifo(server / "var/log/supervisor/shop_2.log")
    assert asked(grep="secret")["entries"] == []


def test_the_end_of_a_long_log_is_read_from_a_whole_line_on(
    server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "LIMIT", 75)
    path = server / "var/log/nginx/error.log"
    path.write_text("".join(f"2026/11/27 09:46:1{n} [error] {n}\n" for n in range(9)))
    found = [x["text"][-1] for x in asked(sources=["nginx"])["entries"] if "[error]" in x["text"]]
    assert found == ["7", "8"]


def test_a_log_is_followed_from_where_it_was_read_to(server: Path) -> None:
    path = server / "var/log/nginx/access.log"
    cursor = asked()["cursor"]
    assert asked(cursor=cursor)["entries"] == []
    with path.open("a") as file:
        file.write('::1 - - [27/Nov/2026:09:47:00 +0000] "GET /a"\n::1 - - [27/Nov/2026:09:')
    (entry,), cursor = (asked(cursor=cursor)[x] for x in ("entries", "cursor"))
    assert "/a" in entry["text"]
    # The rest of the last line comes with its begin.
    with path.open("a") as file:
        file.write('47:01 +0000] "GET /b"\n')
    (entry,), cursor = (asked(cursor=cursor)[x] for x in ("entries", "cursor"))
    assert entry["at"] == AT + 48
    # A log that is rotated is gone on with.
    path.rename(path.with_name("access.log.1"))
    path.write_text('::1 - - [27/Nov/2026:09:48:00 +0000] "GET /c"\n')
    (entry,) = asked(cursor=cursor)["entries"]
    assert "/c" in entry["text"]


def test_a_server_is_waited_for_until_it_has_something(
    server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cursor = asked()["cursor"]

    def write(seconds: float) -> None:
        with (server / "var/log/nginx/error.log").open("a") as file:
            file.write("2026/11/27 09:47:16 [error] late\n")

    monkeypatch.setattr(logs.time, "sleep", write)
    assert [x["source"] for x in asked(cursor=cursor, wait=30)["entries"]] == ["nginx error"]


def test_servers_are_merged_and_lines_below_their_first() -> None:
    one = [{"at": AT, "source": "a/0", "text": "x"}, {"at": AT + 2, "source": "a/0", "text": "z"}]
    two = [{"at": AT + 1, "source": "nginx", "text": "y\n\x1b[2Jmore"}]
    shown = [
        line
        for host, entry in logs_shown.merged({"one": one, "two": two})
        for line in logs_shown.lines(host, entry)
    ]
    assert shown == [
        "2026-11-27 09:46:13 one a/0 | x",
        "2026-11-27 09:46:14 two nginx | y",
        "                              | \\x1b[2Jmore",
        "2026-11-27 09:46:15 one a/0 | z",
    ]


# --- what is in the journal -------------------------------------------------------------------


@pytest.fixture
def journal(server: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What etcd and Patroni have written, as journalctl has it from some moment on."""
    records: list[dict[str, Any]] = []

    def ask(*words: str) -> SimpleNamespace:
        (since,) = [float(x.partition("@")[2]) for x in words if x.startswith("--since=")]
        asked = [x.partition("=")[2] for x in words if x.startswith("--unit=")]
        found = [x for x in records if int(x["__REALTIME_TIMESTAMP"]) / 10**6 >= since]
        lines = [json.dumps(x) for x in found if x["_SYSTEMD_UNIT"] in asked]
        return SimpleNamespace(stdout="\n".join(lines), returncode=0)

    monkeypatch.setattr(logs, "ask", ask)
    for path, _ in logs.UNITS.values():
        (server / path).parent.mkdir(parents=True, exist_ok=True)
        (server / path).touch()
    return records


def record(seconds: float, message: object, comm: str = "patroni") -> dict[str, Any]:
    unit = "etcd.service" if comm == "etcd" else "patroni.service"
    stamp = str(round((AT + seconds) * 10**6))
    said = {"__REALTIME_TIMESTAMP": stamp, "_COMM": comm, "_SYSTEMD_UNIT": unit}
    return said | {"MESSAGE": message}


def test_what_agrees_on_who_leads_is_merged_with_the_rest(journal: list[dict[str, Any]]) -> None:
    journal += [
        record(2.5, '{"level":"warn","msg":"slow"}', "etcd"),
        record(2.6, '{"level":"warn","msg":"slow again"}', "etcd"),
        record(3.5, "2026-11-27 09:46:16,500 INFO: no action. I am (one), the leader"),
        record(3.6, "2026-11-27 09:46:16,600 ERROR: failed"),
        record(3.7, "Traceback (most recent call last):"),
        record(3.8, "2026-11-27 09:46:16.800 UTC [9] LOG:  ready", "postgres"),
        record(3.9, [255, 0]),
    ]
    found = [
        (x["source"], x["text"]) for x in asked(sources=["etcd", "patroni", "database"])["entries"]
    ]
    assert [x for x, _ in found] == ["etcd", "etcd", "patroni", "postgresql", "postgresql"]
    assert found[2][1].endswith("ERROR: failed\nTraceback (most recent call last):")
    assert sources(sources=["etcd"]) == ["etcd", "etcd"]
    assert sources(sources=["database"], grep="ready") == ["postgresql"]
    assert "patroni" in sources()


def test_the_journal_is_followed_from_where_it_was_read_to(journal: list[dict[str, Any]]) -> None:
    journal.append(record(1, "2026-11-27 09:46:14,000 INFO: promoted"))
    cursor = asked()["cursor"]
    assert asked(cursor=cursor)["entries"] == []
    # In the same second.
    journal.append(record(1.000001, "2026-11-27 09:46:14,000 INFO: leads"))
    found = asked(cursor=cursor)
    assert [x["text"][-5:] for x in found["entries"]] == ["leads"]
    assert asked(cursor=found["cursor"])["entries"] == []


def test_a_server_without_a_cluster_asks_no_journal(
    server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "ask", None)
    assert "patroni" not in sources()


# --- docs/how-to/logs.md ----------------------------------------------------------------------


def recipe(name: str) -> str:
    text = (ROOT / "docs/how-to/logs.md").read_text()
    return re.search(rf"<!-- recipe: {name} -->\n```python\n(.*?)```", text, re.S)[1]


def test_the_recipe_puts_a_request_s_id_into_each_line_of_the_app() -> None:
    program = f"""
{recipe("request id")}
def app(environ, start):
    logging.getLogger("shop").error("no such cart")
    return []
app = WithRequestId(app)
logging.error("before")
app({{"HTTP_X_REQUEST_ID": "4b1f"}}, None)
app({{}}, None)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    lines = [line.split(" ", 2)[2] for line in done.stderr.splitlines()]
    assert lines == [
        "ERROR [-] root: before",
        "ERROR [4b1f] shop: no such cart",
        "ERROR [-] shop: no such cart",
    ]
    # The playbook knows its time.
    assert logs.moment(done.stderr.splitlines()[0])


def test_the_recipe_names_the_request_to_postgresql(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for: list[Any] = []
    cursor = SimpleNamespace(execute=lambda *words: asked_for.append(words))
    connection = SimpleNamespace(cursor=lambda: contextlib.nullcontext(cursor))
    event = SimpleNamespace(listens_for=lambda engine, name: lambda function: function)
    monkeypatch.setitem(sys.modules, "sqlalchemy", SimpleNamespace(event=event))
    names = {"engine": None, "request_id": SimpleNamespace(get=lambda: "4b1f")}
    exec(recipe("application name"), names)
    names["name_the_request"](connection, None, None)
    assert asked_for == [("SELECT set_config('application_name', %s, false)", ["4b1f"])]
