"""What a Prometheus finds, who else may ask, and that who answers can do nothing else."""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

HOW_TO = Path(__file__).parents[3] / "docs/how-to/metrics.md"
KINDS = ("node", "postgres", "nginx")
PORTS = {"node": 9100, "postgres": 9187, "nginx": 9113}


def unit(kind: str) -> str:
    return f"prometheus-{kind}-exporter"


def asked(host: Host, url: str) -> str:
    program = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode())"
    return host.check_output("python3 -c %s %s", program, url)


def answer(host: Host, kind: str) -> str:
    return asked(host, f"http://127.0.0.1:{PORTS[kind]}/metrics")


@pytest.fixture(scope="module")
def prometheus(host: Host) -> Callable[[str], Any]:
    """A Prometheus as the how-to has it, but that it does not wait: it is asked by a path."""
    found = re.search(r"```yaml\n(# prometheus\.yml\n.*?)```", HOW_TO.read_text(), re.DOTALL)
    assert found
    text = found[1].replace("10.0.0.5", "127.0.0.1").replace("30s", "1s")
    host.check_output("printf %%s %s >/etc/prometheus/prometheus.yml", text)
    host.check_output("promtool check config /etc/prometheus/prometheus.yml")
    host.check_output("systemctl restart prometheus")

    def ask(path: str) -> Any:
        return json.loads(asked(host, f"http://127.0.0.1:9090/api/v1/{path}"))["data"]

    return ask


def test_a_prometheus_that_is_set_up_as_the_how_to_says_finds_all_of_it(
    host: Host, prometheus: Callable[[str], Any], eventually: Callable
) -> None:
    host.check_output("systemctl start metrics.service")

    def values(query: str) -> dict[str, str]:
        found = prometheus(f"query?query={urllib.parse.quote(query)}")["result"]
        return {x["metric"]["job"]: x["value"][1] for x in found}

    up = {f"carafe-{kind}": "1" for kind in KINDS}
    # Whom Debian's own configuration has asked before is known for some minutes.
    eventually(lambda: values('up{job=~"carafe-.+"}') == up)
    eventually(lambda: values("pg_up") == {"carafe-postgres": "1"})
    eventually(lambda: values("nginx_up") == {"carafe-nginx": "1"})
    eventually(lambda: "carafe-node" in values("carafe_look_timestamp_seconds"))
    (group,) = prometheus("rules")["groups"]
    assert len(group["rules"]) > 10
    eventually(lambda: {x["health"] for x in prometheus("rules")["groups"][0]["rules"]} == {"ok"})


def test_the_rules_tell_what_they_are_to_tell(host: Host) -> None:
    host.check_output("promtool check rules /etc/prometheus/carafe.rules.yml")
    host.check_output("promtool test rules /etc/prometheus/carafe.rules.test.yml")


def test_what_the_status_shows_is_there_in_numbers(host: Host) -> None:
    host.run("systemd-run --quiet --wait --unit=broken false")
    try:
        host.check_output("systemctl start metrics.service")
    finally:
        host.check_output("systemctl reset-failed broken")
    text = answer(host, "node")
    assert 'carafe_status{app="",what="unit broken.service"} 1\n' in text
    assert 'carafe_status{app="",what="disk /"} ' in text
    assert "node_textfile_scrape_error 0\n" in text
    host.check_output("promtool check metrics </var/lib/carafe/metrics/carafe.prom")


def test_nobody_but_root_says_what_there_is(host: Host) -> None:
    folder = host.file("/var/lib/carafe/metrics")
    assert (folder.user, folder.mode) == ("root", 0o755)
    denied = host.run("runuser -u prometheus -- touch /var/lib/carafe/metrics/other.prom")
    assert "Permission denied" in denied.stderr


def test_they_listen_where_they_are_told_to_alone(host: Host) -> None:
    places = {line.split()[3] for line in host.check_output("ss -Hltn").splitlines()}
    ports = {str(x) for x in PORTS.values()}
    found = {x for x in places if x.rpartition(":")[2] in ports}
    assert found == {f"127.0.0.1:{port}" for port in PORTS.values()}


def test_a_word_of_debian_s_file_opens_nothing(host: Host, eventually: Callable) -> None:
    path = "/etc/default/prometheus-node-exporter"
    host.check_output("echo 'ARGS=--web.listen-address=0.0.0.0:9999' >>%s", path)
    host.check_output("systemctl restart %s", unit("node"))
    # To systemd it is up once it is forked, which is before it listens or has its sandbox.
    eventually(lambda: re.search(r":(9100|9999)\s", host.check_output("ss -Hltn")))
    assert ":9999" not in host.check_output("ss -Hltn")


def test_the_exporter_reads_no_table(host: Host) -> None:
    host.check_output(
        "runuser -u postgres -- psql -qc 'CREATE TABLE IF NOT EXISTS secrets (what text)'"
    )
    denied = host.run("runuser -u prometheus -- psql -d postgres -c 'TABLE secrets'")
    assert "permission denied" in denied.stderr


@pytest.mark.parametrize("service", [*map(unit, KINDS), "metrics"])
def test_its_exposure_is_low(host: Host, service: str) -> None:
    threshold = 30 if service == "metrics" else 20
    host.check_output(f"systemd-analyze security --no-pager --threshold={threshold} {service}")


@pytest.mark.parametrize("kind", KINDS)
def test_the_sandbox_holds(host: Host, kind: str) -> None:
    assert answer(host, kind)
    pid = host.check_output(f"systemctl show --value --property=MainPID {unit(kind)}")
    enter = f"nsenter --target {pid} --mount"
    for path in ("/usr", "/etc", "/var/lib/carafe/metrics", "/var/lib/prometheus"):
        assert "Read-only" in host.run(f"{enter} touch {path}/probe").stderr, path
    status = host.check_output(f"cat /proc/{pid}/status")
    assert "NoNewPrivs:\t1" in status
    assert "CapBnd:\t0000000000000000" in status
    assert "Seccomp:\t2" in status
    user = host.check_output("id -u prometheus")
    assert f"Uid:\t{user}\t" in status


def test_a_run_makes_up_for_one_that_was_cut_short(
    host: Host, converge: Callable[..., tuple[int, str]]
) -> None:
    host.check_output("systemctl disable --now metrics.timer prometheus-nginx-exporter")
    host.check_output(
        "touch /etc/systemd/system/prometheus-postgres-exporter.service.d/listen.conf"
    )
    before = host.check_output("systemctl show -P MainPID prometheus-node-exporter")
    changed, output = converge()
    assert changed == 1, output
    for name in ("metrics.timer", "prometheus-nginx-exporter"):
        assert host.service(name).is_running
        assert host.service(name).is_enabled
    assert host.check_output("systemctl show -P MainPID prometheus-node-exporter") == before


def test_without_an_address_nothing_is_left_to_ask(
    host: Host, converge: Callable[..., tuple[int, str]]
) -> None:
    try:
        changed, output = converge("--diff", address="")
        assert changed == 1, output
        for name in (*map(unit, KINDS), "metrics.timer"):
            assert not host.service(name).is_running
            assert not host.service(name).is_enabled
        assert not host.file("/var/lib/carafe/metrics/carafe.prom").exists
    finally:
        changed, output = converge()
    assert changed == 2, output
    assert host.service(unit("node")).is_running
