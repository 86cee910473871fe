"""One server becomes two, one of them dies, the other takes its place, and back again.

The tests of a release go on from each other. On Debian 12 they are those of what its PostgreSQL
does by itself.
"""

import json
import re
import time

import pytest
from conftest import Writer

# What a standby that streams may be behind when its primary dies; there are tens of rows a second.
ROWS_LOST = 20
CHANGES = re.compile(r"(?m)^(\S+)\s+: ok=\d+\s+changed=(\d+)")


def changes(output: str) -> dict[str, str]:
    return dict(CHANGES.findall(output))


@pytest.mark.each_release
def test_one_server_becomes_two_while_it_serves(playbook, one, two, release, measured):
    if release == "12":  # it was made so
        assert two.follows() == "streaming"
        return
    status, output = playbook("site", one, two)
    assert status != 0
    assert "some 2 seconds" in output
    assert "stack_convert=true" in output
    with Writer(one.url) as writer:
        status, output = playbook("site", one, two, stack_convert=True)
    assert status == 0, output
    measured(
        f"one server to two: {writer.gap:.1f} s without a row, {len(writer.acknowledged)} rows"
    )
    assert writer.gap < 15
    assert one.rows() >= writer.acknowledged
    assert two.follows() == "streaming"


def test_a_run_again_and_a_dry_run_change_nothing(playbook, one, two):
    status, output = playbook("site", one, two, options=("--check",))
    assert (status, set(changes(output).values())) == (0, {"0"}), output
    status, output = playbook("site", one, two)
    assert (status, set(changes(output).values())) == (0, {"0"}), output


def test_the_app_has_its_unix_socket_and_the_standby_no_app(one, two):
    assert "/run/postgresql" in one.host.check_output("cat /srv/ledger/serving/environment")
    ways = one.sql(
        "SELECT string_agg(DISTINCT ssl::text || version, ' ') FROM pg_stat_ssl s JOIN"
        " pg_stat_replication r USING (pid)"
    )
    assert ways == "trueTLSv1.3"
    assert not two.host.file("/srv/ledger").exists
    assert not two.host.package("nginx").is_installed


def test_the_status_draws_both(playbook, one, two):
    _, output = playbook("status", one, two, status_format="json")
    line = next(x for x in output.splitlines() if x.startswith('{"at"'))
    hosts = json.loads(line)["hosts"]
    rows = {(host, x["what"]): x for host, found in hosts.items() for x in found}
    name = f"postgresql {one.version}/main"
    assert rows[one.name, name]["says"] == "it answers, as the primary"
    follower = rows[one.name, f"standby {two.name.replace('-', '_')}"]
    assert follower["level"] == "green"
    assert "it streams" in follower["says"]
    assert "it follows 10.77.0." in rows[two.name, name]["says"]
    # What it has is backed up where it comes from.
    assert (two.name, "backup") not in rows


def test_nothing_is_promoted_by_mistake(playbook, one, two):
    status, output = playbook("promote", two, one)
    assert status != 0
    assert f"promote {two.version}/main" in output
    assert "-e promote_confirm=ledger" in output
    # Whom nobody can stop would go on as a primary.
    status, output = playbook("promote", two, promote_confirm="ledger")
    assert status != 0
    assert "still answers" in output
    # And a run that takes the standby for a primary is led here.
    status, output = playbook("site", two, one)
    assert status != 0
    assert "carafe.stack.promote" in output
    assert two.follows() == "streaming"


@pytest.mark.each_release
def test_the_primary_dies_and_the_standby_takes_its_place(playbook, one, two, eventually, measured):
    with Writer(one.url) as writer:
        eventually(lambda: len(writer.acknowledged) > 50)
        one.kill()
    began = time.monotonic()
    options = ("--limit", f"!{one.name}")
    status, output = playbook("promote", two, one, options=options, promote_confirm="ledger")
    assert status == 0, output
    took = time.monotonic() - began
    lost = writer.acknowledged - two.rows()
    measured(
        f"a primary that died: {len(lost)} of {len(writer.acknowledged)} acknowledged rows are"
        f" missing; back after {took:.0f} s, by one command"
    )
    assert len(lost) <= ROWS_LOST
    assert "how much is missing cannot be known" in output
    with Writer(two.url) as writer:
        eventually(lambda: len(writer.acknowledged) > 10)
    assert two.rows() >= writer.acknowledged
    # From its first moment on it is archived.
    assert two.sql("SELECT pg_switch_wal() IS NOT NULL") == "t"
    eventually(lambda: two.sql("SELECT last_archived_wal IS NOT NULL FROM pg_stat_archiver") == "t")


def test_the_former_primary_is_none_after_a_reboot(one):
    one.boot()
    unit = f"postgresql@{one.version}-main"
    said = one.host.check_output("journalctl --boot --unit=%s --output=cat", unit)
    assert "is the primary since, on timeline 2" in said
    assert not one.host.service(unit).is_running


@pytest.mark.each_release
def test_it_comes_back_as_a_standby(playbook, one, two, eventually):
    status, output = playbook("site", two, one)
    assert status == 0, output
    assert one.follows() == "streaming"
    eventually(lambda: one.rows() == two.rows())
    # The app that it had would answer from a copy.
    assert "ledger" not in one.host.check_output("supervisorctl status; true")
    status, output = playbook("site", two, one)
    assert (status, set(changes(output).values())) == (0, {"0"}), output


def test_a_switch_loses_nothing(playbook, one, two, eventually, measured):
    with Writer(two.url) as writer:
        eventually(lambda: len(writer.acknowledged) > 50)
        status, output = playbook("promote", one, two, promote_confirm="ledger")
    assert status == 0, output
    measured(f"a switch: 0 of {len(writer.acknowledged)} acknowledged rows are missing")
    assert f"{one.name} is the primary: nothing is missing" in output
    assert one.rows() >= writer.acknowledged
    assert two.follows() == "streaming"
    # It had nothing of its own, and went on from where it was.
    assert two.host.run("ls -d /var/lib/postgresql/*/main.before-*").rc != 0
