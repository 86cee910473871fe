"""Who is told of what: each change once, whatever a way does, and no secret on the way."""

from __future__ import annotations

import base64
import http.server
import json
import os
import pwd
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from email import message_from_string, policy
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import alerts, levels, programs, status
from ansible_collections.carafe.stack.plugins.module_utils.levels import HOUR, Row
from ansible_collections.carafe.stack.plugins.modules import alerts as module
from conftest import ROOT, Role, load_module

NOW = 1_800_000_000.0
DOWN = Row("slot 1", "red", "it is STOPPED", "roll", "shop")
OLD = Row("updates", "yellow", "3 wait", "apt-get update")
WELL = Row("disk /", "green", "30 % used")
BLOG = Row("slot 0", "red", "it is FATAL", "roll", "blog")


# --- what is told -----------------------------------------------------------------------------


def kinds(told: dict[str, Any], rows: list[Row], now: float) -> list[tuple[str, str, str]]:
    """Return the events of a look, and learn them."""
    found = {alerts.key(row): row for row in rows}
    events = list(alerts.changes(told, found, rows, now, 24 * HOUR))
    alerts.learn(told, events)
    return [(x["kind"], x["what"], x["level"]) for x in events]


def test_each_change_is_told_once() -> None:
    told: dict[str, Any] = {}
    assert kinds(told, [DOWN], NOW) == [("problem", "slot 1", "red")]
    assert kinds(told, [DOWN], NOW + 300) == []
    other_words = Row("slot 1", "red", "it is FATAL", "", "shop")
    assert kinds(told, [other_words], NOW + 600) == []
    better = Row("slot 1", "yellow", "it is starting", "", "shop")
    assert kinds(told, [better], NOW + 900) == [("problem", "slot 1", "yellow")]
    assert kinds(told, [], NOW + 1200) == [("gone", "slot 1", "green")]
    assert kinds(told, [], NOW + 1500) == []


def test_what_lasts_is_told_again_once_a_day() -> None:
    told: dict[str, Any] = {}
    kinds(told, [OLD], NOW)
    assert kinds(told, [OLD], NOW + 23 * HOUR) == []
    assert kinds(told, [OLD], NOW + 24 * HOUR) == [("reminder", "updates", "yellow")]
    assert kinds(told, [OLD], NOW + 25 * HOUR) == []


@pytest.mark.parametrize(
    ("owner", "least", "names"),
    [
        ("shop", "yellow", [": updates", "shop: slot 1"]),
        ("blog", "yellow", [": updates", "blog: slot 0"]),
        ("shop", "red", ["shop: slot 1"]),
        # Who is no app looks after the server.
        ("ops", "yellow", [": updates", "blog: slot 0", "shop: slot 1"]),
    ],
)
def test_an_owner_is_told_of_its_app_and_of_the_server(
    owner: str, least: str, names: list[str]
) -> None:
    found = alerts.problems([DOWN, OLD, WELL, BLOG], owner, {"shop", "blog"}, least)
    assert sorted(found) == names


def test_a_slot_that_is_being_restarted_is_no_problem() -> None:
    looks = iter([[DOWN, OLD, WELL], [OLD, WELL, BLOG]])
    waited: list[float] = []
    rows = alerts.confirmed(lambda: next(looks), {}, waited.append)
    # What came up meanwhile has its turn at the next look.
    assert [row.what for row in rows if row.level != "green"] == ["updates"]
    assert waited == [alerts.CONFIRM]


def test_what_is_known_is_not_looked_at_twice() -> None:
    looks = iter([[DOWN, WELL]])
    known = {alerts.key(DOWN): "red"}
    assert alerts.confirmed(lambda: next(looks), known, pytest.fail) == [DOWN, WELL]


# --- a run ------------------------------------------------------------------------------------


class Server:
    """What is looked at, who is told, and by which ways that works."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[Row] = []
        self.sent: dict[str, list[list[str]]] = {"mail": [], "webhook": [], "command": []}
        self.broken: set[str] = set()
        self.pings = 0
        self.now = NOW
        self.claims = folder / "alerts.d"
        self.claims.mkdir()
        monkeypatch.setattr(alerts, "CLAIMS", self.claims)
        monkeypatch.setattr(alerts, "FOLDER", folder / "state")
        monkeypatch.setattr(alerts, "PLACES", [folder / "state", folder / "run"])
        monkeypatch.setattr(status, "HISTORY", folder / "state/history.json")
        monkeypatch.setattr(status, "look", lambda *_: self.rows)
        monkeypatch.setattr(alerts, "SEND", {x: self.way(x) for x in self.sent})
        monkeypatch.setattr(alerts, "request", self.ping)
        self.add("shop", mail_to=["a@b"], webhook_url="https://x", heartbeat_url="https://y")

    def add(self, owner: str, **wanted: Any) -> None:
        defaults = {"level": "yellow", "reminder_hours": 24}
        (self.claims / f"{owner}.json").write_text(json.dumps({**defaults, **wanted}))

    def way(self, name: str) -> Any:
        def send(wanted: Any, events: list[dict[str, Any]], owner: str, host: str) -> None:
            if name in self.broken:
                raise OSError("connection refused")
            self.sent[name].append([f"{x['kind']} {x['what']}" for x in events])

        return send

    def ping(self, *_: Any) -> None:
        if "heartbeat" in self.broken:
            raise OSError("timed out")
        self.pings += 1

    def look(self, *rows: Row) -> None:
        self.rows = list(rows)
        alerts.check(self.now, lambda seconds: None)
        self.now += 300


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(tmp_path, monkeypatch)


def test_the_heartbeat_is_sent_while_all_is_well(server: Server) -> None:
    server.look(WELL)
    server.look(WELL, OLD)
    server.look(WELL)
    assert server.pings == 2
    assert server.sent["mail"] == [["problem updates"], ["gone updates"]]


def test_a_way_that_fails_gets_all_of_it_later_and_the_other_one_none_twice(
    server: Server,
) -> None:
    server.broken = {"webhook"}
    server.look(OLD)
    server.look(WELL)
    assert server.sent["webhook"] == []
    server.broken = set()
    server.look(WELL)
    assert server.sent["webhook"] == [
        ["problem updates", "problem alerts by webhook", "gone updates"]
    ]
    server.look(WELL)
    assert server.sent["mail"] == [
        ["problem updates"],
        ["problem alerts by webhook", "gone updates"],
        ["gone alerts by webhook"],
    ]


def test_while_a_way_fails_the_status_says_so_and_nobody_pings(server: Server) -> None:
    server.broken = {"mail"}
    server.look(OLD)
    (row, _) = alerts.rows(server.now)
    assert (row.what, row.level, row.app) == ("alerts by mail", "yellow", "shop")
    assert "connection refused" in row.says
    server.look(WELL)
    assert server.pings == 0


def test_a_heartbeat_that_fails_is_a_problem_until_it_is_taken(server: Server) -> None:
    server.broken = {"heartbeat"}
    server.look(WELL)
    assert [row.what for row in alerts.rows(server.now)] == ["alerts by heartbeat", "alerts"]
    server.look(WELL)
    assert server.sent["mail"] == [["problem alerts by heartbeat"]]
    server.broken = set()
    server.look(WELL)
    server.look(WELL)
    assert server.sent["mail"][1:] == [["gone alerts by heartbeat"]]
    assert server.pings > 0


def test_what_waits_is_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "KEEP", 3)
    server.broken = {"mail"}
    for _ in range(4):
        server.look(OLD)
        server.look(WELL)
    state = json.loads((alerts.FOLDER / "state.json").read_text())
    assert len(state["owners"]["shop"]["ways"]["mail"]["due"]) == 3


def test_a_disk_that_takes_nothing_is_told_of_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.look(WELL)
    write = alerts.files.write

    def full(path: Path, *rest: Any) -> None:
        if path.parent == alerts.FOLDER:
            raise OSError(28, "No space left on device")
        write(path, *rest)

    monkeypatch.setattr(alerts.files, "write", full)
    server.now += HOUR
    full_disk = Row("disk /var", "red", "100 % used")
    server.look(full_disk)
    server.look(full_disk)
    monkeypatch.setattr(alerts.files, "write", write)
    server.look(WELL)
    server.look(WELL)
    assert server.sent["mail"] == [["problem disk /var"], ["gone disk /var"]]


def test_who_was_told_before_a_run_died_is_not_told_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("zoo", command="x")
    monkeypatch.setitem(alerts.SEND, "command", lambda *_: sys.exit("killed"))
    with pytest.raises(SystemExit):
        server.look(OLD)
    monkeypatch.setitem(alerts.SEND, "command", server.way("command"))
    server.look(OLD)
    assert server.sent["mail"] == server.sent["command"] == [["problem updates"]]


UNSEEN = Row("slots", "yellow", f"{status.UNSEEN}: Failure: supervisord is gone", "", "shop")


def test_what_is_better_and_not_well_is_told_so_by_whom_only_red_is_told_of(
    server: Server,
) -> None:
    server.add("shop", mail_to=["a@b"], level="red")
    server.look(DOWN)
    for _ in range(2):
        server.look(replace(DOWN, level="yellow"))
    state = json.loads((alerts.FOLDER / "state.json").read_text())
    assert state["owners"]["shop"]["told"]["shop: slot 1"]["level"] == "yellow"
    server.look(replace(DOWN, level="green"))
    assert server.sent["mail"] == [["problem slot 1"], ["problem slot 1"], ["gone slot 1"]]


@pytest.mark.parametrize(
    ("before", "hides"),
    [
        (DOWN, UNSEEN),
        (DOWN, Row("slots", "red", "supervisord has no such program", "", "shop")),
        (Row("connections", "red", "97 of 97"), Row("postgresql 17/main", "red", "nobody")),
        (Row("archive of 17/main", "red", "9 wait"), Row("postgresql 17/main", "yellow", "no")),
        (Row("disk /srv", "red", "97 %"), Row("disks", "yellow", status.UNSEEN)),
        (DOWN, Row("apps", "yellow", status.UNSEEN)),
    ],
)
def test_what_cannot_be_seen_is_not_well_again(server: Server, before: Row, hides: Row) -> None:
    server.look(before)
    server.look(hides)
    server.look(before)
    server.look(replace(before, level="green"))
    assert server.sent["mail"] == [
        *([f"{kind} {row.what}"] for kind, row in [("problem", before), ("problem", hides)]),
        [f"gone {hides.what}"],
        [f"gone {before.what}"],
    ]


@pytest.mark.parametrize(
    "other", [replace(UNSEEN, app="blog"), Row("postgresql 17/main", "red", "nobody")]
)
def test_what_another_thing_hides_is_gone(server: Server, other: Row) -> None:
    server.look(DOWN)
    server.look(other)
    assert "gone slot 1" in server.sent["mail"][1]


def test_what_is_hidden_at_the_second_look_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([[DOWN, OLD], [UNSEEN, OLD]])
    known = {alerts.key(DOWN): "red"}
    assert alerts.confirmed(lambda: next(looks), known, lambda _: None) == [OLD, DOWN]


@pytest.mark.parametrize("levels", [("red", "yellow"), ("yellow", "red"), ("red", "green")])
def test_the_worst_of_two_of_one_name_is_told(server: Server, levels: tuple[str, str]) -> None:
    rows = [Row("archiving", level, level) for level in levels]
    server.look(*rows)
    # They are known, and nothing of them is new.
    alerts.check(server.now, pytest.fail)
    told = json.loads((alerts.FOLDER / "state.json").read_text())["owners"]["shop"]["told"]
    assert told[": archiving"]["level"] == "red"
    assert server.sent["mail"] == [["problem archiving"]]


def test_owners_are_told_apart(server: Server) -> None:
    server.add("blog", command="x")
    server.look(DOWN, BLOG, OLD)
    assert server.sent["mail"] == [["problem slot 1", "problem updates"]]
    assert server.sent["command"] == [["problem slot 0", "problem updates"]] or server.sent[
        "command"
    ] == [["problem updates", "problem slot 0"]]


def test_who_is_no_app_is_none_while_a_way_fails(server: Server) -> None:
    server.add("ops", command="x", webhook_url="https://x")
    server.broken = {"webhook"}
    for _ in range(3):
        server.look(DOWN, WELL)
    assert server.sent["command"] == [["problem slot 1"], ["problem alerts by webhook"] * 2]


@pytest.mark.parametrize("damage", ["", "{", "[]", "null"])
def test_a_damaged_state_is_begun_anew(server: Server, damage: str) -> None:
    server.look(WELL)
    (alerts.FOLDER / "state.json").write_text(damage)
    server.look(OLD)
    assert server.sent["mail"] == [["problem updates"]]


def test_nobody_looks_any_more(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts.processes, "age", lambda pid: 10 * HOUR)
    server.look(WELL)
    assert [row.level for row in alerts.rows(server.now)] == ["green"]
    (row,) = alerts.rows(server.now + HOUR)
    assert (row.what, row.level) == ("alerts", "red")
    # After a boot it has not had its turn.
    monkeypatch.setattr(alerts.processes, "age", lambda pid: 60)
    assert [row.level for row in alerts.rows(server.now + HOUR)] == ["green"]


def test_where_nobody_is_told_nothing_is_said(server: Server) -> None:
    (server.claims / "shop.json").unlink()
    assert list(alerts.rows(NOW)) == []


def test_the_history_has_a_moment_an_hour(server: Server) -> None:
    for _ in range(14):  # an hour and ten minutes
        server.look(WELL)
    assert len(status.history()) == 2
    assert "/" in status.history()[0]["disks"]


# --- messages and ways ------------------------------------------------------------------------


def event(row: Row, kind: str = "problem") -> dict[str, Any]:
    return {"kind": kind, "at": NOW, **row.to_dict()}


@pytest.mark.parametrize(
    ("events", "says"),
    [
        ([event(DOWN)], "[shop on h] RED: slot 1"),
        ([event(OLD), event(DOWN)], "[shop on h] RED: slot 1, and 1 more"),
        ([event(BLOG)], "[shop on h] RED: blog slot 0"),
        ([event(OLD, "reminder")], "[shop on h] YELLOW, still: updates"),
        ([event(WELL, "gone")], "[shop on h] well again: disk /"),
        ([event(Row("a\nBcc: x@y", "red", ""))], "[shop on h] RED: a Bcc: x@y"),
    ],
)
def test_the_subject_says_the_most(events: list[dict[str, Any]], says: str) -> None:
    assert alerts.subject(events, "shop", "h") == says


def test_a_message_names_the_command_and_where_to_type_it() -> None:
    here = Row("schedule x", "yellow", "failed", "ansible-playbook carafe.stack.schedules", "shop")
    text = alerts.text([event(here), event(DOWN)], "h")
    assert text.splitlines()[:4] == [
        "red: shop: slot 1: it is STOPPED  (2027-01-15 08:00 UTC)",
        "    on h: roll",
        "yellow: shop: schedule x: failed  (2027-01-15 08:00 UTC)",
        "    ansible-playbook carafe.stack.schedules",
    ]


class Smtp(socketserver.StreamRequestHandler):
    """A mail server, as far as a client asks it."""

    def handle(self) -> None:
        server: Any = self.server
        self.say("220 test")
        while line := self.rfile.readline().decode().strip():
            word = line.split()[0].upper()
            if word == "EHLO":
                offers = ["250-test", "250-AUTH PLAIN"]
                tls = isinstance(self.connection, ssl.SSLSocket) or not server.context
                self.say(*offers, "250 8BITMIME" if tls else "250 STARTTLS")
            elif word == "STARTTLS":
                self.say("220 go on")
                self.connection = server.context.wrap_socket(self.connection, server_side=True)
                self.rfile, self.wfile = (self.connection.makefile(x) for x in ("rb", "wb"))
            elif word == "AUTH":
                well = base64.b64decode(line.split()[-1]) == b"\0ann\0secret"
                self.say("235 well" if well else "535 your password secret is wrong")
            elif word == "RCPT" and "gone@" in line:
                self.say("550 no such mailbox")
            elif word == "DATA":
                self.say("354 go on")
                lines = iter(lambda: self.rfile.readline().decode(), ".\r\n")
                server.mails.append("".join(lines))
                self.say("250 taken")
            else:
                self.say("221 bye" if word == "QUIT" else "250 fine")

    def say(self, *lines: str) -> None:
        self.wfile.write("".join(f"{x}\r\n" for x in lines).encode())
        self.wfile.flush()


class Web(http.server.BaseHTTPRequestHandler):
    """A web server that answers as it is told."""

    def do_POST(self) -> None:
        server: Any = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server.taken.append((self.path, dict(self.headers), json.loads(body)))
        self.send_response(server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the certificate of a server, which is its own authority, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    words = ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-days", "2"]
    words += ["-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=localhost"]
    words += ["-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", folder / "key", "-out", folder / "crt"]
    subprocess.run([*words, *files], check=True, capture_output=True)
    return folder / "crt", folder / "key"


@pytest.fixture
def context(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    return context


def serve(server: Any) -> Iterator[Any]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(params=["starttls", "tls", "none"])
def mailbox(request: pytest.FixtureRequest, context: ssl.SSLContext) -> Iterator[Any]:
    server: Any = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Smtp)
    server.daemon_threads = True
    server.mails, server.security = [], request.param
    server.context = None if request.param == "none" else context
    if request.param == "tls":
        server.socket = context.wrap_socket(server.socket, server_side=True)
    yield from serve(server)


def by_mail(server: Any, ca_bundle: str, **more: Any) -> str:
    wanted = {
        **{"mail_to": ["ada@example.com"], "mail_from": "", "ca_bundle": ca_bundle},
        **{"smtp_host": "localhost", "smtp_port": server.server_address[1]},
        **{"smtp_security": server.security, **more},
    }
    return alerts.send("mail", wanted, [event(DOWN)], "shop", "h.example.com")


def test_a_mail_arrives(mailbox: Any, certificate: tuple[Path, Path]) -> None:
    login = {"smtp_user": "ann", "smtp_password": "secret"}
    assert by_mail(mailbox, str(certificate[0]), **login) == ""
    (text,) = mailbox.mails
    mail = message_from_string(text, policy=policy.default)
    assert mail["Subject"] == "[shop on h.example.com] RED: slot 1"
    assert (mail["From"], mail["To"]) == ("carafe@h.example.com", "ada@example.com")
    assert mail["Auto-Submitted"] == "auto-generated"
    assert "it is STOPPED" in mail.get_content()


def test_where_one_is_refused_nobody_gets_it(mailbox: Any, certificate: tuple[Path, Path]) -> None:
    to = ["ada@example.com", "gone@example.com", "bob@example.com"]
    why = by_mail(mailbox, str(certificate[0]), mail_to=to)
    refused = "gone@example.com (550 no such mailbox)"
    assert why == f"mail: nobody gets it, for the mail server refuses {refused}"
    assert mailbox.mails == []


def test_a_mail_server_that_knows_ascii_alone_is_named(
    mailbox: Any, certificate: tuple[Path, Path]
) -> None:
    why = by_mail(mailbox, str(certificate[0]), mail_to=["ädä@example.com"])
    assert why == "mail: SMTPUTF8 not supported by server"


def test_a_wrong_password_is_told_without_it(mailbox: Any, certificate: tuple[Path, Path]) -> None:
    login = {"smtp_user": "ann", "smtp_password": "wrong"}
    why = by_mail(mailbox, str(certificate[0]), **login)
    # This server answers with what it expects.
    assert why == "mail: the mail server refuses user and password (535)"
    assert mailbox.mails == []


def test_a_password_that_cannot_be_sent_is_told_without_it(
    mailbox: Any, certificate: tuple[Path, Path]
) -> None:
    why = by_mail(mailbox, str(certificate[0]), smtp_user="ann", smtp_password="größe")
    assert why == "mail: a value has letters that cannot be sent: user, password or header"


def test_a_mail_server_that_nobody_knows_gets_no_password(mailbox: Any) -> None:
    if mailbox.security == "none":
        pytest.skip("it shows no certificate")
    why = by_mail(mailbox, "", smtp_user="ann", smtp_password="secret")
    assert "certificate verify failed" in why
    assert mailbox.mails == []


def test_a_mail_server_that_is_gone(mailbox: Any) -> None:
    assert by_mail(mailbox, "", smtp_port=1).startswith("mail: ")


@pytest.fixture
def web(context: ssl.SSLContext) -> Iterator[Any]:
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.taken, server.status = [], 204
    yield from serve(server)


def by_webhook(server: Any, ca_bundle: str) -> str:
    port = server.server_address[1]
    wanted = {"webhook_url": f"https://localhost:{port}/a-secret?b=1", "ca_bundle": ca_bundle}
    wanted |= {"webhook_headers": {"Authorization": "Bearer t"}}
    return alerts.send("webhook", wanted, [event(DOWN), event(OLD)], "shop", "h")


def test_a_webhook_gets_json_and_its_headers(web: Any, certificate: tuple[Path, Path]) -> None:
    assert by_webhook(web, str(certificate[0])) == ""
    ((path, headers, body),) = web.taken
    assert (path, headers["Authorization"]) == ("/a-secret?b=1", "Bearer t")
    assert headers["Content-Type"] == "application/json"
    assert (body["owner"], body["host"], body["level"]) == ("shop", "h", "red")
    assert [x["what"] for x in body["events"]] == ["slot 1", "updates"]
    assert body["text"].startswith("[shop on h] RED: slot 1, and 1 more\n")


@pytest.mark.parametrize("code", [302, 404, 500])
def test_a_webhook_that_takes_nothing_is_named_without_its_secret(
    web: Any, certificate: tuple[Path, Path], code: int
) -> None:
    web.status = code
    assert by_webhook(web, str(certificate[0])) == f"webhook: localhost answered {code}"


def test_a_web_server_that_nobody_knows_gets_nothing(web: Any) -> None:
    assert "certificate verify failed" in by_webhook(web, "")
    assert web.taken == []


def by_command(command: str) -> str:
    user = pwd.getpwuid(os.geteuid()).pw_name
    wanted = {"command": command, "command_user": user}
    return alerts.send("command", wanted, [event(DOWN)], "shop", "h")


def test_a_command_gets_the_message(tmp_path: Path) -> None:
    assert by_command(f"cat >{tmp_path}/got") == ""
    assert json.loads((tmp_path / "got").read_text())["events"][0]["what"] == "slot 1"


@pytest.mark.parametrize(
    ("command", "why"),
    [("echo no such chat >&2; exit 3", "it ended with 3: no such chat"), ("sleep 9", "0.2 s")],
)
def test_a_command_that_fails(monkeypatch: pytest.MonkeyPatch, command: str, why: str) -> None:
    monkeypatch.setattr(alerts, "TIMEOUT", 0.2)
    assert why in by_command(command)


# --- the module, the program, the role --------------------------------------------------------


def wanted(**more: Any) -> dict[str, Any]:
    secrets = base64.b64encode(json.dumps({"smtp_password": "secret"}).encode()).decode()
    receivers = {"mail_to": ["a@b"], "level": "yellow", "reminder_hours": 24}
    known = {"owner": "shop", "receivers": receivers, "secrets": secrets, "interval_minutes": 5}
    return {"state": "present", **known, **more}


@pytest.fixture
def brought(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(alerts, "UNITS", tmp_path / "units")
    monkeypatch.setattr(programs, "FOLDER", tmp_path / "lib")
    (tmp_path / "units").mkdir()
    (tmp_path / "lib").mkdir()
    states = {"ActiveState": "active", "UnitFileState": "enabled", "NeedDaemonReload": "no"}
    monkeypatch.setattr(module.services, "state", lambda *_: states)
    monkeypatch.setattr(module.services, "act", lambda *_: None)
    (server.claims / "shop.json").unlink()
    return tmp_path


def test_receivers_are_written_for_root_alone_and_once(brought: Path) -> None:
    assert module.bring_about(wanted(), True)["changed"]
    assert not (brought / "alerts.d/shop.json").exists()
    done = module.bring_about(wanted(), False)
    assert "secret" not in json.dumps(done)
    claim = brought / "alerts.d/shop.json"
    assert claim.stat().st_mode & 0o777 == 0o600
    assert json.loads(claim.read_text())["smtp_password"] == "secret"
    assert "OnUnitActiveSec=5min" in (brought / "units/alerts.timer").read_text()
    assert module.bring_about(wanted(), False)["changes"] == []


def test_without_a_way_nobody_is_told_any_more(brought: Path) -> None:
    module.bring_about(wanted(), False)
    done = module.bring_about(wanted(receivers={"mail_to": []}), False)["changes"]
    assert done == [
        f"{brought}/alerts.d/shop.json: removed",
        "alerts.timer: disable",
        "alerts.timer: stop",
    ]
    assert module.bring_about(wanted(state="absent"), False)["changes"] == []


def test_the_interval_is_the_server_s(brought: Path) -> None:
    module.bring_about(wanted(interval_minutes=10), False)
    module.bring_about(wanted(owner="blog"), False)
    assert "OnUnitActiveSec=10min" in (brought / "units/alerts.timer").read_text()
    with pytest.raises(
        module.Failure, match="alerts_interval_minutes is 3 for blog and 10 for shop"
    ):
        module.bring_about(wanted(owner="blog", interval_minutes=3), False)


def test_the_program_has_all_that_it_imports(brought: Path) -> None:
    """Alone, as the timer runs it: nothing of Ansible or of the repository is there."""
    module.bring_about(wanted(), False)
    program = [sys.executable, "-I", brought / "lib/alerts"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert "alerts check" in done.stderr, done.stderr


def problems(**values: Any) -> list[str]:
    checks = load_module(ROOT / "roles/alerts/meta/preflight.py", "alerts_preflight")
    known = Role("alerts").defaults | values
    found = [x for check in checks.CHECKS for x in check(checks.Server("one", values=known))]
    return [problem.variable for problem in found]


@pytest.mark.parametrize(
    ("values", "variable"),
    [
        ({"alerts_mail_to": ["ada"], "alerts_smtp_host": "m"}, "alerts_mail_to"),
        ({"alerts_mail_to": ["a@b"]}, "alerts_smtp_host"),
        ({"alerts_mail_from": "a b@c"}, "alerts_mail_from"),
        ({"alerts_smtp_user": "ann"}, "alerts_smtp_password"),
        ({"alerts_smtp_password": "x"}, "alerts_smtp_user"),
        ({"alerts_webhook_url": "ftp://x"}, "alerts_webhook_url"),
        ({"alerts_webhook_url": "https://x:y"}, "alerts_webhook_url"),
        ({"alerts_heartbeat_url": "https://"}, "alerts_heartbeat_url"),
        ({"alerts_webhook_headers": {"A": "b\nC: d"}}, "alerts_webhook_headers"),
        ({"alerts_webhook_headers": {"A": "5 €"}}, "alerts_webhook_headers"),
        ({"alerts_smtp_user": "ann", "alerts_smtp_password": "größe"}, "alerts_smtp_password"),
        ({"alerts_smtp_user": "änn", "alerts_smtp_password": "x"}, "alerts_smtp_user"),
        (
            {"alerts_smtp_user": "a", "alerts_smtp_password": "x", "alerts_smtp_security": "none"},
            "alerts_smtp_security",
        ),
    ],
)
def test_what_could_tell_nobody_is_refused(values: dict[str, Any], variable: str) -> None:
    assert problems(**values) == [variable]


def test_what_can_is_not() -> None:
    assert problems() == []
    login = {"alerts_smtp_user": "ann", "alerts_smtp_password": "x"}
    mail = {"alerts_mail_to": ["a@b.c"], "alerts_smtp_host": "m"}
    urls = {"alerts_webhook_url": "https://x:8443/a", "alerts_heartbeat_url": "http://127.0.0.1/p"}
    assert problems(**login, **mail, **urls, alerts_webhook_headers={"A": "Bearer x"}) == []
    assert levels.LEVELS == ("green", "yellow", "red")
