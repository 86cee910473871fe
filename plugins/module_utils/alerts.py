"""Tell people of problems on this server, and of their end.

    alerts check    look, and tell what has changed; a timer of systemd's runs it. A number after it
                    is how many seconds a problem has to last, 20 by default
    alerts test     send a message by each way of each receiver, and say how that went

What is looked at is what the module status shows. An owner, an app for instance, has its receivers
in /etc/carafe/alerts.d/OWNER.json, and is told of its own problems and of the server's. Each way,
mail for instance, keeps what it could not bring, and tries again at the next run; that it fails is
a problem too, which the other ways tell and the status shows.
"""

from __future__ import annotations

import contextlib
import email.message
import email.policy
import email.utils
import fcntl
import http.client
import json
import os
import pwd
import smtplib
import socket
import ssl
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import claims, files, processes, status, status_database, status_server
from .commands import Failure
from .levels import GREEN, HOUR, LEVELS, MINUTE, RED, YELLOW, Row, clock, span, worst
from .words import escaped, one_line

CLAIMS = Path("/etc/carafe/alerts.d")
FOLDER = Path("/var/lib/carafe/alerts")
PLACES = [FOLDER, Path("/run/carafe-alerts")]  # for the state
LOCK = Path("/run/alerts.lock")
TIMER, SERVICE = "alerts.timer", "alerts.service"
TEST = "python3 /usr/local/lib/carafe/alerts test"
DEFAULTS = {"interval_minutes": 5}
UNITS = Path("/etc/systemd/system")
PROGRAM = Path("/usr/local/lib/carafe/alerts")
TIMER_TEXT = """# Managed by Ansible, role alerts.
[Unit]
Description=When this server is looked at

[Timer]
OnBootSec=2min
OnUnitActiveSec={minutes}min
# Not all servers at once.
RandomizedDelaySec=15s
AccuracySec=1s

[Install]
WantedBy=timers.target
"""
# What a problem has to last: a slot that is being restarted is none.
CONFIRM = 20
TIMEOUT = 20  # seconds for a mail server, a web server or a command to take a message
KEEP = 200  # messages that wait for a way that fails
SAMPLES = 14 * 24  # one each hour
WAYS = ("mail", "webhook", "command")
HEARTBEAT = "heartbeat"
Event = dict[str, Any]


# --- what is known ------------------------------------------------------------------------------


def read(path: Path, empty: Any) -> Any:
    """Return what a file holds; one that is gone or damaged is begun anew."""
    try:
        found = json.loads(files.read(path) or "null")
    except (OSError, ValueError):
        found = None
    return found if isinstance(found, type(empty)) else empty


def write(path: Path, data: Any) -> None:
    files.write(path, json.dumps(data, indent=1) + "\n", 0o600)


def known() -> dict[str, Any]:
    """Return what the last run has left, where it could."""
    # The last place has nothing, but where the one before it took nothing.
    places = [read(x / "state.json", {}) for x in reversed(PLACES)]
    return max(places, key=lambda x: x.get("checked", 0))


def remember(state: Mapping[str, Any]) -> None:
    """Write what the next run has to know, in memory where the disk takes nothing."""
    for folder in PLACES:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write(folder / "state.json", state)
        except OSError as error:
            print(f"{folder}: {error}", flush=True)
            continue
        for other in PLACES[PLACES.index(folder) + 1 :]:
            (other / "state.json").unlink(missing_ok=True)
        return


def receivers() -> dict[str, dict[str, Any]]:
    return claims.read(CLAIMS, "", None)


def note(now: float) -> list[dict[str, Any]]:
    """Add this moment to the history, once an hour, and return all of it."""
    history = status.history()
    if not history or now - history[-1]["at"] >= HOUR:
        history = [*history, status_server.sample(now)][-SAMPLES:]
        # A disk that is full, or read-only, is what somebody is to be told of.
        with contextlib.suppress(OSError):
            write(status.HISTORY, history)
    return history


def key(row: Row) -> str:
    return f"{row.app}: {row.what}"


def by_key(rows: Iterable[Row]) -> dict[str, Row]:
    """Return what is to be seen of each thing: the worst, where several rows are of one."""
    found: dict[str, Row] = {}
    for row in rows:
        if key(row) not in found or worst((row.level, found[key(row)].level)) == row.level:
            found[key(row)] = row
    return found


def hidden(what: str, app: str, rows: Iterable[Row]) -> bool:
    """Tell whether a thing may still be as it was, since what would show it is itself not well."""
    return any(
        (row.says.startswith(status.UNSEEN) and (row.app == app or row.what == "apps"))
        or (row.app == app and row.what == "slots" and what.startswith("slot "))
        or (row.what.startswith("postgresql") and status_database.is_asked(what))
        for row in rows
        if row.level != GREEN
    )


def problems(rows: Sequence[Row], owner: str, apps: set[str], least: str) -> dict[str, Row]:
    """Return what an owner is told of: what is the server's, its own, and what nobody else has."""
    mine = {"", owner}
    return by_key(
        row
        for row in rows
        if LEVELS.index(row.level) >= LEVELS.index(least)
        # An owner that is no app has the server by itself.
        and (row.app in mine or owner not in apps)
    )


def changes(
    told: Mapping[str, Mapping[str, Any]],
    found: Mapping[str, Row],
    rows: Sequence[Row],
    now: float,
    remind: float,
) -> Iterator[Event]:
    """Yield what is new, what has become better or worse, what is gone, and what is still there.

    ``found`` is what somebody wants to be told of, ``rows`` all that was seen.
    """
    seen = by_key(rows)
    for name, row in found.items():
        before = told.get(name)
        if before is None or before["level"] != row.level:
            yield {"kind": "problem", "at": now, **row.to_dict()}
        elif now - before["at"] >= remind:
            yield {"kind": "reminder", "at": now, **row.to_dict()}
    for name, before in told.items():
        if name in found:
            continue
        row = seen.get(name)
        if row and row.level != GREEN:
            # Not bad enough any more to be told of by itself, and not well.
            if row.level != before["level"]:
                yield {"kind": "problem", "at": now, **row.to_dict()}
        elif row or not hidden(before["what"], before["app"], rows):
            row = Row(before["what"], GREEN, "it is well again", "", before["app"])
            yield {"kind": "gone", "at": now, **row.to_dict()}


def learn(told: dict[str, Any], events: Sequence[Event]) -> None:
    """Note what the events say, as what the next ones are compared with."""
    for event in events:
        name = key(Row(event["what"], event["level"], "", "", event["app"]))
        if event["kind"] == "gone":
            told.pop(name, None)
        else:
            told[name] = {x: event[x] for x in ("what", "app", "level", "at")}


# --- messages -----------------------------------------------------------------------------------


def subject(events: Sequence[Event], owner: str, host: str) -> str:
    """Return a line that says the most: what is worst, and how much there is besides."""
    kinds = {event["kind"] for event in events}
    first = max(events, key=lambda x: LEVELS.index(x["level"]))
    level = "well again" if kinds == {"gone"} else first["level"].upper()
    still = ", still" if kinds == {"reminder"} else ""
    more = f", and {len(events) - 1} more" if len(events) > 1 else ""
    of = f"{first['app']} " if first["app"] and first["app"] != owner else ""
    return one_line(f"[{owner} on {host}] {level}{still}: {of}{first['what']}{more}")


def text(events: Sequence[Event], host: str) -> str:
    lines = []
    words = {"gone": "well again", "reminder": "still {level}", "problem": "{level}"}
    for event in sorted(events, key=lambda x: -LEVELS.index(x["level"])):
        state = words[event["kind"]].format(level=event["level"])
        of = f"{event['app']}: " if event["app"] else ""
        lines.append(f"{state}: {of}{event['what']}: {event['says']}  ({clock(event['at'])})")
        if event["next"]:
            here = event["next"].startswith("ansible-playbook ")
            lines.append(f"    {'' if here else f'on {host}: '}{event['next']}")
    return escaped("\n".join([*lines, "", "All of it: ansible-playbook carafe.stack.status", ""]))


def payload(events: Sequence[Event], owner: str, host: str) -> dict[str, Any]:
    """Return what a webhook gets; chats take ``text``, and leave the rest alone."""
    return {
        "text": f"{subject(events, owner, host)}\n{text(events, host)}",
        "host": host,
        "owner": owner,
        "level": worst(event["level"] for event in events),
        "events": list(events),
    }


# --- ways ---------------------------------------------------------------------------------------


def trust(wanted: Mapping[str, Any]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=wanted.get("ca_bundle") or None)


def mail(wanted: Mapping[str, Any], events: Sequence[Event], owner: str, host: str) -> None:
    """Give a mail to the server, which takes it for all receivers or for none."""
    message = email.message.EmailMessage()
    message["Subject"] = subject(events, owner, host)
    message["From"] = sender = wanted.get("mail_from") or f"carafe@{host}"
    message["To"] = ", ".join(wanted["mail_to"])
    message["Date"] = email.utils.formatdate(localtime=False)
    message["Message-ID"] = email.utils.make_msgid(domain=host)
    # So that nobody's holiday answers it.
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(text(events, host))
    security, place = wanted["smtp_security"], (wanted["smtp_host"], wanted["smtp_port"])
    if security == "tls":
        server = smtplib.SMTP_SSL(*place, timeout=TIMEOUT, context=trust(wanted))
    else:
        server = smtplib.SMTP(*place, timeout=TIMEOUT)
    with server:
        if security == "starttls":
            server.starttls(context=trust(wanted))
        if wanted.get("smtp_user"):
            server.login(wanted["smtp_user"], wanted["smtp_password"])
        hand_over(server, message, sender, wanted["mail_to"])


def hand_over(
    server: smtplib.SMTP, message: email.message.EmailMessage, sender: str, to: Sequence[str]
) -> None:
    """Name all receivers before the mail is sent: who has it already would get it at each try."""
    server.ehlo_or_helo_if_needed()
    plain = "".join((sender, *to)).isascii()
    code, said = server.mail(sender, () if plain else ("SMTPUTF8", "BODY=8BITMIME"))
    if code != 250:
        raise smtplib.SMTPSenderRefused(code, said, sender)
    answers = {x: server.rcpt(x) for x in to}
    refused = [f"{x} ({code} {escaped(said)})" for x, (code, said) in answers.items() if code > 251]
    if refused:
        server.rset()
        raise Failure(f"nobody gets it, for the mail server refuses {', '.join(refused)}")
    policy = email.policy.SMTP if plain else email.policy.SMTPUTF8
    code, said = server.data(message.as_bytes(policy=policy))
    if code != 250:
        raise smtplib.SMTPDataError(code, said)


def request(url: str, body: bytes | None, wanted: Mapping[str, Any]) -> None:
    """Ask a web server; what it answers has to be a success, and not another place."""
    parts = urllib.parse.urlsplit(url)
    tls = parts.scheme == "https"
    kind: Any = http.client.HTTPSConnection if tls else http.client.HTTPConnection
    more = {"context": trust(wanted)} if tls else {}
    connection = kind(parts.hostname, parts.port, timeout=TIMEOUT, **more)
    path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
    headers = {"User-Agent": "Carafe"}
    if body is not None:
        headers |= {"Content-Type": "application/json", **(wanted.get("webhook_headers") or {})}
    try:
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        answer.read(65536)
    finally:
        connection.close()
    if not 200 <= answer.status < 300:
        # Not its place: that is a secret with many services.
        raise Failure(f"{parts.hostname} answered {answer.status}")


def webhook(wanted: Mapping[str, Any], events: Sequence[Event], owner: str, host: str) -> None:
    body = json.dumps(payload(events, owner, host)).encode()
    request(wanted["webhook_url"], body, wanted)


def command(wanted: Mapping[str, Any], events: Sequence[Event], owner: str, host: str) -> None:
    """Run a command with the message as JSON on its standard input."""
    user: dict[str, Any] = {}
    if os.geteuid() == 0:
        who = pwd.getpwnam(wanted["command_user"])
        user = {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []}
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", wanted["command"]],
            input=json.dumps(payload(events, owner, host)).encode(),
            capture_output=True,
            cwd="/",
            timeout=TIMEOUT,
            check=False,
            **user,
        )
    except subprocess.TimeoutExpired:
        raise Failure(f"it took longer than {TIMEOUT} s") from None
    if done.returncode:
        said = one_line(escaped(done.stderr or done.stdout))
        raise Failure(f"it ended with {done.returncode}: {said}")


SEND = {"mail": mail, "webhook": webhook, "command": command}


def ways(wanted: Mapping[str, Any]) -> list[str]:
    """Return the ways that a receiver has."""
    has = {"mail": "mail_to", "webhook": "webhook_url", "command": "command"}
    return [way for way in WAYS if wanted.get(has[way])]


def send(
    way: str, wanted: Mapping[str, Any], events: Sequence[Event], owner: str, host: str
) -> str:
    """Bring messages by one way; return '' or why that fails."""
    return attempt(way, lambda: SEND[way](wanted, events, owner, host))


def ping(wanted: Mapping[str, Any]) -> str:
    return attempt(HEARTBEAT, lambda: request(wanted["heartbeat_url"], None, wanted))


def attempt(way: str, work: Callable[[], None]) -> str:
    """Return '' where a way works, or why not, without a secret in it."""
    try:
        work()
    except smtplib.SMTPAuthenticationError as error:
        # Some servers answer with what they were given.
        return f"{way}: the mail server refuses user and password ({error.smtp_code})"
    except smtplib.SMTPResponseException as error:
        return one_line(f"{way}: {error.smtp_code} {escaped(error.smtp_error)}")
    except (OSError, http.client.HTTPException, smtplib.SMTPException, Failure, KeyError) as error:
        return one_line(f"{way}: {error or type(error).__name__}")
    except ValueError:
        # Its words have the value in them, which may be a secret.
        return f"{way}: a value has letters that cannot be sent: user, password or header"
    return ""


# --- a run --------------------------------------------------------------------------------------


@contextlib.contextmanager
def alone() -> Iterator[None]:
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def confirmed(
    look: Callable[[], list[Row]], known: Mapping[str, str], wait: Callable[[float], Any]
) -> list[Row]:
    """Look, and look again where there is something new, which may be gone by then."""
    rows = [*by_key(look()).values()]
    new = {key(x) for x in rows if x.level != GREEN and known.get(key(x), GREEN) != x.level}
    if not new:
        return rows
    wait(CONFIRM)
    again = by_key(look())
    # What has come up meanwhile has its turn at the next run, and hides nothing before.
    return [x for x in again.values() if x.level == GREEN or key(x) in new or key(x) in known] + [
        x for x in rows if key(x) not in again and hidden(x.what, x.app, again.values())
    ]


def check(now: float | None = None, wait: Callable[[float], Any] = time.sleep) -> None:
    """Look once, tell each owner what has changed, and ping while all is well."""
    now = time.time() if now is None else now
    with contextlib.suppress(OSError):
        FOLDER.mkdir(mode=0o700, parents=True, exist_ok=True)
    state, host = known(), socket.getfqdn()
    history = note(now)
    rows = confirmed(lambda: status.look(history, now), state.get("seen", {}), wait)
    # Before the owners' own rows come: a way of one that is no app makes it none.
    apps = {row.app for row in rows} - {""}
    rows = [*rows, *failing(state)]
    everybody, before = receivers(), state.get("owners", {})
    owners = {x: before.get(x, {}) for x in everybody}
    seen = {name: row.level for name, row in by_key(rows).items() if row.level != GREEN}
    after = {"checked": now, "seen": seen, "owners": owners}
    for owner, wanted in everybody.items():
        owners[owner] = tell(owner, wanted, owners[owner], rows, apps, now, host)
        # Whatever ends this run at the next one, these were told.
        remember(after)
    if not everybody:
        remember(after)


def tell(
    owner: str,
    wanted: Mapping[str, Any],
    entry: Mapping[str, Any],
    rows: Sequence[Row],
    apps: set[str],
    now: float,
    host: str,
) -> dict[str, Any]:
    """Tell one owner by all of its ways; return what is to be known of it at the next run."""
    told, before = dict(entry.get("told", {})), entry.get("ways", {})
    found = problems(rows, owner, apps, wanted["level"])
    events = list(changes(told, found, rows, now, wanted["reminder_hours"] * HOUR))
    learn(told, events)
    after = {}
    for way in ways(wanted):
        was = before.get(way, {})
        due = [*was.get("due", []), *events][-KEEP:]
        why = send(way, wanted, due, owner, host) if due else ""
        if due:
            print(f"{owner}: {why or f'{way}: told of {len(due)}'}", flush=True)
        # A way that had nothing to bring is what it was.
        if why or (was.get("since") and not due):
            why, due = why or was["why"], due if why else []
            after[way] = {"due": due, "why": why, "since": was.get("since", now)}
    # That it was not taken the last time is no reason not to try.
    if wanted.get("heartbeat_url") and not {*found} - {f"{owner}: alerts by {HEARTBEAT}"}:
        if why := ping(wanted):
            print(f"{owner}: {why}", flush=True)
            since = before.get(HEARTBEAT, {}).get("since", now)
            after[HEARTBEAT] = {"due": [], "why": why, "since": since}
    elif HEARTBEAT in before and wanted.get("heartbeat_url"):
        after[HEARTBEAT] = before[HEARTBEAT]
    return {"told": told, "ways": after}


def failing(state: Mapping[str, Any]) -> Iterator[Row]:
    """Yield each way that did not bring a message, as a problem of its owner's."""
    for owner, entry in state.get("owners", {}).items():
        for way, x in entry.get("ways", {}).items():
            says = one_line(f"alerts fail since {clock(x['since'])}: {x['why']}")
            yield Row(f"alerts by {way}", YELLOW, says, TEST, owner)


def rows(now: float) -> Iterator[Row]:
    """Yield for the status whether somebody is told, and whether the timer still looks."""
    state, names = known(), sorted(receivers())
    if not names:
        return
    yield from failing(state)
    checked = state.get("checked")
    # Before the first run, and after a boot, it has not had its turn.
    running = processes.age(1)
    idle = min(now - (checked or 0), now if running is None else running)
    interval = max(interval_of(receivers()), 1) * MINUTE
    if idle > 3 * interval + 2 * MINUTE:
        said = f"nobody has looked for {span(idle)}, and nobody would be told"
        yield Row("alerts", RED, said, f"systemctl status {TIMER} {SERVICE}")
    elif checked:
        says = f"{', '.join(names)} would be told; looked {span(now - checked)} ago"
        yield Row("alerts", GREEN, says)


def interval_of(everybody: Mapping[str, Mapping[str, Any]]) -> int:
    stated = claims.merged(map(once, everybody.values()))
    return stated.get("alerts_interval_minutes", DEFAULTS["interval_minutes"])


def once(claim: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a claim states of what the server has once."""
    return {k: v for k, v in claim.items() if k == "alerts_interval_minutes"}


def try_all(only: str = "") -> Iterator[tuple[str, str, str]]:
    """Send a message by each way; yield whose it is, the way, and why it fails or ''."""
    host = socket.getfqdn()
    row = Row("test", GREEN, "This is a test: what is to be told arrives.")
    event = {"kind": "problem", "at": time.time(), **row.to_dict()}
    for owner, wanted in receivers().items():
        if only not in ("", owner):
            continue
        for way in ways(wanted):
            yield owner, way, send(way, wanted, [event], owner, host)
        if wanted.get("heartbeat_url"):
            yield owner, HEARTBEAT, ping(wanted)


def main() -> str | int | None:
    if sys.argv[1:2] == ["check"]:
        seconds = float(sys.argv[2]) if sys.argv[2:] else CONFIRM
        with alone():
            check(wait=lambda _: time.sleep(seconds))
        return None
    if sys.argv[1:2] == ["test"]:
        failed = 0
        for owner, way, why in try_all(*sys.argv[2:3]):
            print(f"{owner}: {why or f'{way}: sent'}", flush=True)
            failed |= bool(why)
        return failed
    return __doc__
