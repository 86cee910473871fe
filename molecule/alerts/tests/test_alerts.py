"""What people are told, by a real mail server and a real web server: once, and never not."""

from __future__ import annotations

import email
import email.policy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from testinfra.host import Host

SECRETS = ("a-password-of-a-mailbox", "a-token-of-a-chat", "/hook")


def kept(host: Host, name: str) -> list[dict[str, Any]]:
    text = host.run(f"cat /var/lib/receiver/{name}").stdout
    return [json.loads(line) for line in text.splitlines()]


def mails(host: Host) -> list[Any]:
    return [
        email.message_from_string(x["text"], policy=email.policy.default)
        for x in kept(host, "mails")
    ]


@pytest.fixture
def look(host: Host) -> Iterator[Callable[[], None]]:
    """Look as the timer does, with nothing told yet."""
    host.check_output("rm -rf /var/lib/receiver/* /var/lib/carafe/alerts/state.json")
    yield lambda: host.check_output("systemctl start alerts.service")
    host.run("systemctl stop broken; systemctl reset-failed broken")


@pytest.fixture
def breaks(host: Host) -> Callable[[], None]:
    return lambda: host.run("systemd-run --quiet --wait --unit=broken false")


def test_while_all_is_well_only_the_heartbeat_is_sent(host: Host, look: Any) -> None:
    look()
    look()
    assert [x["path"] for x in kept(host, "pings")] == ["/ping", "/ping"]
    assert kept(host, "mails") == kept(host, "hooks") == []


def test_a_problem_is_told_once_by_each_way_and_so_is_its_end(
    host: Host, look: Any, breaks: Any
) -> None:
    breaks()
    look()
    look()
    (mail,) = mails(host)
    name = host.check_output("hostname -f")
    assert mail["subject"] == f"[ops on {name}] YELLOW: unit broken.service"
    assert mail["to"] == "ada@example.com, bob@example.com"
    assert "yellow: unit broken.service: it has failed" in mail.get_content()
    assert "systemctl status broken.service" in mail.get_content()
    assert kept(host, "mails")[0]["tls"]
    (hook,) = kept(host, "hooks")
    assert hook["authorization"] == "Bearer a-token-of-a-chat"
    assert (hook["level"], hook["events"][0]["what"]) == ("yellow", "unit broken.service")
    told = host.check_output("journalctl -t told -o cat | grep -c broken.service")
    assert int(told) >= 1
    assert kept(host, "pings") == []

    host.check_output("systemctl reset-failed broken")
    look()
    assert [x["subject"].partition("] ")[2] for x in mails(host)] == [
        "YELLOW: unit broken.service",
        "well again: unit broken.service",
    ]
    assert len(kept(host, "hooks")) == 2
    assert len(kept(host, "pings")) == 1


def test_a_message_outlasts_a_way_that_fails(host: Host, look: Any, breaks: Any) -> None:
    host.check_output("echo 503 >/var/lib/receiver/answer")
    breaks()
    look()
    assert len(mails(host)) == 1
    # That a way fails is told by the others.
    host.check_output("systemctl reset-failed broken")
    look()
    last = mails(host)[-1].get_content()
    assert "ops: alerts by webhook" in last
    assert "receiver.test answered 503" in last
    host.check_output("echo 200 >/var/lib/receiver/answer")
    look()
    (hook,) = kept(host, "hooks")
    assert [(x["kind"], x["what"]) for x in hook["events"]][:2] == [
        ("problem", "unit broken.service"),
        ("problem", "alerts by webhook"),
    ]
    assert ("gone", "unit broken.service") in [(x["kind"], x["what"]) for x in hook["events"]]
    look()
    assert "well again: ops: alerts by webhook" in mails(host)[-1].get_content()


def test_a_test_message_goes_by_each_way(host: Host, look: Any) -> None:
    said = host.check_output("python3 /usr/local/lib/carafe/alerts test")
    ways = ["mail: sent", "webhook: sent", "command: sent", "heartbeat: sent"]
    assert said.splitlines() == [f"ops: {x}" for x in ways]
    assert len(mails(host)) == len(kept(host, "hooks")) == len(kept(host, "pings")) == 1


@pytest.mark.each_release
def test_a_wrong_password_is_said_and_never_shown(
    host: Host, look: Any, converge: Callable[..., tuple[int, str]]
) -> None:
    changed, output = converge("--diff", password="another-password")
    said = host.run("python3 /usr/local/lib/carafe/alerts test")
    assert converge()[0] == changed == 1
    assert said.rc == 1
    assert "ops: mail: the mail server refuses user and password" in said.stdout
    assert "another-password" not in output + said.stdout


def test_nobody_but_root_reads_a_secret(host: Host, look: Any, breaks: Any) -> None:
    breaks()
    look()
    assert host.file("/etc/carafe/alerts.d/ops.json").mode == 0o600
    assert host.file("/var/lib/carafe/alerts").mode == 0o700
    journal = host.check_output("journalctl -b -o cat")
    assert not [x for x in SECRETS if x in journal]
    readable = host.check_output(
        "runuser -u nobody -- grep -rlsF a-password-of-a-mailbox /etc /var/lib /run || true"
    )
    # The receiver's own program knows it as well.
    assert set(readable.split()) <= {"/etc/systemd/system/receiver.py"}


def test_the_timer_looks_after_a_boot_too(host: Host) -> None:
    timer = host.service("alerts.timer")
    assert (timer.is_running, timer.is_enabled) == (True, True)
    shown = host.check_output("systemctl show -p TimersMonotonic alerts.timer")
    assert "OnUnitActiveUSec=1h" in shown


def test_what_looks_has_a_sandbox(host: Host) -> None:
    said = host.check_output("systemd-analyze security --no-pager alerts.service | tail -n 1")
    assert float(said.partition(": ")[2].split()[0]) < 5
