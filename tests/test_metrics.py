"""What Prometheus finds of a server, and who may ask: text, claims, units, and what is refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import (
    exporters,
    levels,
    metrics,
    programs,
    status,
)
from ansible_collections.carafe.stack.plugins.modules import metrics as module
from ansible_collections.carafe.stack.plugins.plugin_utils.problems import Server
from conftest import ROOT, Role, load_module
from inventories import of_one_server

PREFLIGHT = load_module(ROOT / "roles/metrics/meta/preflight.py", "metrics_preflight")
STACK = load_module(ROOT / "playbooks/meta/preflight.py", "metrics_stack_preflight")
Row = levels.Row
FULL = "carafe_backup_last_success_timestamp_seconds"


# --- the text -----------------------------------------------------------------------------------


def test_each_thing_has_its_level_and_its_numbers() -> None:
    rows = [
        Row("slot 0", "red", "it is down", "x", "shop"),
        Row("backup database-full", "green", "well", numbers={FULL: 1795790206.063}),
        Row("release", "green", "r", "", "shop", {FULL: 2}, {"release": "46b2c12fc937"}),
    ]
    assert metrics.text(metrics.samples(rows)).splitlines() == [
        f"# HELP {FULL} {metrics.WHAT[FULL]}",
        f"# TYPE {FULL} gauge",
        f'{FULL}{{app="",what="backup database-full"}} 1795790206.063',
        f'{FULL}{{app="shop",release="46b2c12fc937",what="release"}} 2',
        f"# HELP carafe_status {metrics.WHAT['carafe_status']}",
        "# TYPE carafe_status gauge",
        'carafe_status{app="shop",what="slot 0"} 2',
        'carafe_status{app="",what="backup database-full"} 0',
        'carafe_status{app="shop",what="release"} 0',
    ]


def test_no_two_samples_have_one_name_and_labels() -> None:
    """Node's exporter would refuse all of the file."""
    rows = [
        Row("archive", "green", "", numbers={FULL: 1}),
        Row("archive", "red", "", numbers={FULL: 2}),
        Row("archive", "yellow", ""),
    ]
    assert [(x, y) for x, _, y in metrics.samples(rows)] == [("carafe_status", 2), (FULL, 2.0)]


@pytest.mark.parametrize(
    ("what", "shown"),
    [
        ('a "quoted" one', r"a \"quoted\" one"),
        ("back\\slash", r"back\\slash"),
        ("two\nlines", r"two\nlines"),
        ("no UTF-8: \udcff", "no UTF-8: ?"),
        ("Bücher", "Bücher"),
    ],
)
def test_a_name_spoils_nothing(what: str, shown: str) -> None:
    text = metrics.text(metrics.samples([Row(what, "green", "")]))
    assert text.splitlines()[2:] == [f'carafe_status{{app="",what="{shown}"}} 0']


def test_every_number_of_the_status_is_explained() -> None:
    """Whatever has no explanation would end the program."""
    found = set()
    for path in (ROOT / "plugins/module_utils").glob("status*.py"):
        found |= set(re.findall(r'"(carafe_[a-z_]+)"', path.read_text()))
    assert found >= {"carafe_disk_full_days", "carafe_security_updates_waiting"}
    assert found <= set(metrics.WHAT)


def test_people_are_shown_no_numbers() -> None:
    row = Row("x", "green", "y", "z", "a", {FULL: 1}, {"b": "c"})
    shown = {"what": "x", "level": "green", "says": "y", "next": "z", "app": "a"}
    assert row.to_dict() == shown


def test_it_is_written_whole_and_for_everybody_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "FILE", tmp_path / "carafe.prom")
    monkeypatch.setattr(status, "look", lambda *_: [Row("disk /", "yellow", "")])
    monkeypatch.setattr(sys, "argv", ["metrics", "write"])
    assert metrics.main() is None
    text = (tmp_path / "carafe.prom").read_text()
    assert 'carafe_status{app="",what="disk /"} 1\n' in text
    assert re.search(r"^carafe_look_timestamp_seconds \d+\.\d+$", text, re.M)
    assert (tmp_path / "carafe.prom").stat().st_mode & 0o777 == 0o644
    assert [x.name for x in tmp_path.iterdir()] == ["carafe.prom"]


# --- who may ask --------------------------------------------------------------------------------


def directives(text: str) -> dict[str, str]:
    """Return what a unit's last word on each directive is."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


@pytest.mark.parametrize(
    ("kind", "asked", "address", "words"),
    [
        (
            *("node", [], "10.0.0.5"),
            "/usr/bin/prometheus-node-exporter --web.listen-address=10.0.0.5:9100"
            " --collector.textfile.directory=/var/lib/carafe/metrics",
        ),
        (
            *("postgres", ["host=/run/postgresql user=prometheus"], "fd00::5"),
            "/usr/bin/prometheus-postgres-exporter --web.listen-address=[fd00::5]:9187",
        ),
        (
            *("nginx", ["http://127.0.0.1:8099/a%20$b"], "127.0.0.1"),
            "/usr/bin/prometheus-nginx-exporter --web.listen-address=127.0.0.1:9113"
            " --nginx.scrape-uri=http://127.0.0.1:8099/a%%20$$b",
        ),
    ],
)
def test_an_exporter_listens_at_one_address_alone(
    kind: str, asked: list[str], address: str, words: str
) -> None:
    found = directives(exporters.drop_in(kind, asked, address, []))
    assert found["ExecStart"] == words
    assert found["EnvironmentFile"] == ""
    here = [] if address == "127.0.0.1" else [address]
    assert found["IPAddressDeny"] == "any"
    assert found["IPAddressAllow"].split() == ["localhost", *here]


def test_who_may_ask_follows_from_all_claims() -> None:
    text = exporters.drop_in("node", [], "::", ["10.0.0.9", "10.0.0.2", "10.0.0.9"])
    assert directives(text)["IPAddressAllow"] == "localhost 10.0.0.2 10.0.0.9"


def test_systemd_takes_how_postgresql_is_reached_as_one_word() -> None:
    dsn = "host=/run/postgresql user='it''s \"100 %\\'"
    text = exporters.drop_in("postgres", [dsn], "127.0.0.1", [])
    (line,) = [x for x in text.splitlines() if x.startswith("Environment=")]
    assert line == (
        r"""Environment="DATA_SOURCE_NAME=host=/run/postgresql user='it''s \"100 %%\\'" """.strip()
    )


@pytest.mark.parametrize(
    ("address", "allowed", "variable", "why"),
    [
        ("web1.example.com", [], "metrics_address", "needs an IPv4 or IPv6 address"),
        ("10.0.0.5:9100", ["10.0.0.2"], "metrics_address", "needs an IPv4 or IPv6 address"),
        ("10.0.0.5", [], "metrics_allowed_addresses", "is empty"),
        ("0.0.0.0", [], "metrics_allowed_addresses", "is empty"),
        ("10.0.0.5", ["prom"], "metrics_allowed_addresses", "has 'prom'"),
        ("10.0.0.5", ["10.0.0.1/24"], "metrics_allowed_addresses", "has host bits set"),
        ("127.0.0.1", ["10.0.0.2"], "metrics_allowed_addresses", "only this server"),
    ],
)
def test_what_nobody_could_reach_is_refused(
    address: str, allowed: list[str], variable: str, why: str
) -> None:
    ((name, says),) = exporters.problems(address, allowed)
    assert name == variable
    assert why in says


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("127.0.0.1", []),
        ("::1", []),
        ("10.0.0.5", ["10.0.0.2", "fd00::/64"]),
        ("198.51.100.7", ["192.0.2.1"]),
    ],
)
def test_what_somebody_can_reach_is_not(address: str, allowed: list[str]) -> None:
    assert list(exporters.problems(address, allowed)) == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        *(("127.0.0.1", False), ("10.0.0.5", False), ("fd00::5", False), ("100.64.0.1", False)),
        *(("8.8.8.8", True), ("2a01:4f8::1", True), ("0.0.0.0", True), ("::", True)),
    ],
)
def test_an_address_of_the_internet_is_told_from_others(address: str, public: bool) -> None:
    assert exporters.is_public(address) == public


@pytest.mark.parametrize(
    ("address", "allowed", "roles", "variables"),
    [
        ("", [], [], []),
        ("127.0.0.1", [], [], []),
        ("10.0.0.5", ["10.0.0.2"], [], []),
        ("10.0.0.5", [], ["firewall"], ["metrics_allowed_addresses"]),
        ("8.8.8.8", ["10.0.0.2"], ["firewall"], []),
        ("8.8.8.8", ["10.0.0.2"], [], ["metrics_address"]),
        ("::", ["10.0.0.2"], [], ["metrics_address"]),
        ("web1", [], [], ["metrics_address"]),
    ],
)
def test_the_preflight_refuses_what_the_internet_would_reach(
    address: str, allowed: list[str], roles: list[str], variables: list[str]
) -> None:
    values = {"metrics_address": address, "metrics_allowed_addresses": allowed}
    server = Server("web1", values={**values, "stack_host_roles": roles})
    found = [*PREFLIGHT.check_addresses(server), *STACK.check_metrics(server)]
    assert [x.variable for x in found] == variables


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        *(("", False), ("http://127.0.0.1:8099/status", False)),
        *(("127.0.0.1:8099", True), ("unix:/run/nginx.sock", True), ("http://a/ --x", True)),
    ],
)
def test_where_nginx_has_its_counters_is_a_url(url: str, wrong: bool) -> None:
    server = Server("web1", values={"metrics_nginx": url})
    assert [x.variable for x in PREFLIGHT.check_status(server)] == ["metrics_nginx"] * wrong


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        *(("", False), ("host=/run/postgresql user=prometheus", False)),
        *(("postgresql:///postgres?host=/run/postgresql", False), ("password = x", True)),
        *(("user=a password=x", True), ("postgresql://prometheus:x@127.0.0.1/postgres", True)),
    ],
)
def test_how_the_database_is_reached_is_no_secret(words: str, wrong: bool) -> None:
    server = Server("web1", values={"metrics_postgres": words})
    assert [x.variable for x in PREFLIGHT.check_password(server)] == ["metrics_postgres"] * wrong


# --- the module ---------------------------------------------------------------------------------


def wanted(**more: Any) -> dict[str, Any]:
    known = {"owner": "shop", "address": "127.0.0.1", "allowed_addresses": []}
    return {"state": "present", **known, "postgres": "", "nginx": "", **more}


class Host:
    """Files of a server, and what systemd was asked to do."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, []
        self.units = folder / "units"
        self.running: set[str] = set()
        self.connected: list[tuple[str, int]] = []
        self.deaf = False

    def state(self, unit: str, *_: str) -> dict[str, str]:
        on = unit in self.running
        return {
            "ActiveState": "active" if on else "inactive",
            "UnitFileState": "enabled" if on else "disabled",
            "NeedDaemonReload": "no",
        }

    def act(self, unit: str, verbs: list[str]) -> None:
        self.asked += [f"{verb} {unit}" for verb in verbs]
        if "start" in verbs or "restart" in verbs:
            self.running.add(unit)
        if "stop" in verbs:
            self.running.discard(unit)

    def connect(self, place: tuple[str, int], timeout: float) -> Any:
        self.connected.append(place)
        if self.deaf:
            raise ConnectionRefusedError("Connection refused")
        return SimpleNamespace(close=lambda: None)

    def brings(self, dry: bool = False, **more: Any) -> list[str]:
        found = module.bring_about(wanted(**more), dry)
        assert found["changed"] == bool(found["changes"])
        return found["changes"]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    server = Host(tmp_path)
    monkeypatch.setattr(module, "CLAIMS", tmp_path / "metrics.d")
    monkeypatch.setattr(module, "UNITS", server.units)
    monkeypatch.setattr(programs, "FOLDER", tmp_path / "lib")
    monkeypatch.setattr(exporters, "TEXTFILES", str(tmp_path / "textfiles"))
    monkeypatch.setattr(metrics, "FILE", tmp_path / "textfiles/carafe.prom")
    monkeypatch.setattr(exporters.Exporter, "program", sys.executable)
    monkeypatch.setattr(module.services, "state", server.state)
    monkeypatch.setattr(module.services, "act", server.act)
    monkeypatch.setattr(module, "show", lambda *_: [{"MainPID": "0"}])
    monkeypatch.setattr(module.socket, "create_connection", server.connect)
    for folder in (server.units, tmp_path / "lib"):
        folder.mkdir()
    return server


NODE = "prometheus-node-exporter.service"
POSTGRES = "prometheus-postgres-exporter.service"
DSN = "host=/run/postgresql"


def test_it_runs_what_is_wanted_and_a_second_run_finds_nothing(server: Host) -> None:
    before = server.brings(dry=True, postgres=DSN)
    assert server.running == set()
    assert not (server.folder / "metrics.d").exists()
    assert server.brings(postgres=DSN) == before
    assert server.running == {NODE, POSTGRES, "metrics.timer"}
    assert server.brings(postgres=DSN) == []


def test_what_somebody_else_wants_goes_on(server: Host) -> None:
    server.brings(postgres=DSN)
    server.brings(owner="blog")
    assert server.brings(state="absent") == [
        f"{POSTGRES}: disable",
        f"{POSTGRES}: stop",
        f"{server.units}/{POSTGRES}.d/listen.conf: removed",
        f"{server.folder}/metrics.d/shop.json: removed",
    ]
    assert server.running == {NODE, "metrics.timer"}
    assert server.brings(owner="blog") == []


def test_the_last_one_that_leaves_takes_all_along(server: Host) -> None:
    server.brings()
    metrics.FILE.write_text("carafe_status 0\n")
    before = server.brings(dry=True, address="")
    assert metrics.FILE.exists()
    assert server.brings(address="") == before
    assert server.running == set()
    assert not metrics.FILE.exists()
    assert server.brings(address="") == server.brings(state="absent") == []


def test_an_exporter_that_is_nobody_s_claim_is_left_alone(server: Host) -> None:
    server.running.add(POSTGRES)
    server.brings()
    assert POSTGRES in server.running
    server.brings(state="absent")
    assert POSTGRES in server.running


def test_a_server_has_one_address_of_them(server: Host) -> None:
    server.brings()
    with pytest.raises(module.Refused, match=r"metrics_address is '10\.0\.0\.5' for blog and"):
        server.brings(owner="blog", address="10.0.0.5", allowed_addresses=["10.0.0.2"])
    with pytest.raises(module.Refused, match="metrics_allowed_addresses is empty"):
        server.brings(owner="blog", address="10.0.0.5")


def test_what_runs_and_is_older_than_its_files_is_started_anew(
    server: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a run was cut short before the restart."""
    server.brings()
    monkeypatch.setattr(module.processes, "is_older", lambda pid, paths: pid == "7" and [*paths])
    monkeypatch.setattr(module, "show", lambda *_: [{"MainPID": "7"}])
    assert server.brings() == [f"{NODE}: restart"]


@pytest.mark.parametrize(("address", "place"), [("127.0.0.1", "127.0.0.1"), ("::", "::1")])
def test_an_exporter_that_cannot_listen_is_a_failure(
    server: Host, monkeypatch: pytest.MonkeyPatch, address: str, place: str
) -> None:
    allowed = [] if address == "127.0.0.1" else ["10.0.0.2"]
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    server.deaf = True
    with pytest.raises(module.commands.Failure, match=f"{NODE} does not listen at {address}"):
        server.brings(address=address, allowed_addresses=allowed)
    # It is started anew for ever, and so due at the next run.
    assert len(server.connected) > 1
    server.running.clear()
    server.deaf = False
    assert f"{NODE}: start" in server.brings(address=address, allowed_addresses=allowed)
    assert {*server.connected} == {(place, 9100)}


def test_an_exporter_may_read_whatever_the_umask_is(server: Host) -> None:
    before = os.umask(0o077)
    try:
        server.brings()
    finally:
        os.umask(before)
    assert metrics.FILE.parent.stat().st_mode & 0o777 == 0o755


def test_who_has_nothing_to_do_asks_no_exporter(server: Host) -> None:
    server.brings()
    server.connected.clear()
    assert server.brings() == []
    assert server.connected == []


def test_without_the_package_it_says_which_variable(
    server: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporters.Exporter, "program", "/usr/bin/no-exporter")
    assert server.brings(dry=True)
    with pytest.raises(module.commands.Failure, match="metrics_manage_packages"):
        server.brings()


def test_the_program_has_all_that_it_imports(server: Host) -> None:
    """Alone, as the timer runs it: nothing of Ansible or of the repository is there."""
    server.brings()
    program = [sys.executable, "-I", server.folder / "lib/metrics"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert "metrics write" in done.stderr, done.stderr


# --- the role -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "kinds"),
    [
        ({}, []),
        ({"metrics_postgres": DSN}, []),
        ({"metrics_address": "127.0.0.1"}, ["node"]),
        (
            {"metrics_address": "127.0.0.1", "metrics_postgres": DSN, "metrics_nginx": "http://a"},
            ["node", "postgres", "nginx"],
        ),
    ],
)
def test_the_role_installs_what_is_wanted_and_gives_it_a_sandbox(
    variables: dict[str, str], kinds: list[str]
) -> None:
    role = Role("metrics")
    packages = [f"prometheus-{x}-exporter" for x in kinds]
    assert role.value("metrics_packages", **variables) == packages
    files = [x["dest"] for x in role.value("__metrics_files", **variables)]
    assert files == [
        *(f"/etc/systemd/system/{x}.service.d/carafe.conf" for x in packages),
        "/etc/systemd/system/metrics-sandbox@.service.d/fit-sandbox",
    ]


# --- the wiring ---------------------------------------------------------------------------------

OF_METRICS = ("postgres_default_roles", "postgres_default_hba", "firewall_default_allow")


@pytest.mark.parametrize("more", [{}, {"stack_metrics": True}], ids=["never", "any more"])
def test_without_an_address_nothing_of_it_is_anywhere(tmp_path: Path, more: dict) -> None:
    """But for the role itself in the run that has the server forget it."""
    looked = of_one_server(tmp_path, stack_database="postgresql", **more)
    assert ("metrics" in looked.value("stack_host_roles")) == bool(more)
    assert looked.value("nginx_status_port") == 0
    for name in OF_METRICS:
        assert "prometheus" not in str(looked.value(name)).lower(), name
    assert not [x for x in looked.value("stack_packages") if "exporter" in x]


def test_with_an_address_each_role_has_its_part(tmp_path: Path) -> None:
    private = {"metrics_address": "10.0.0.5", "metrics_allowed_addresses": ["10.0.0.2"]}
    looked = of_one_server(tmp_path, stack_database="postgresql", **private)
    assert "metrics" in looked.value("stack_host_roles")
    packages = {f"prometheus-{kind}-exporter" for kind in exporters.EXPORTERS}
    assert packages <= {*looked.value("stack_packages")}
    rule = looked.value("firewall_default_allow")[-1]
    assert (rule["sources"], rule["ports"]) == (["10.0.0.2"], ["9100", "9113", "9187"])
    url = f"http://127.0.0.1:{looked.value('nginx_status_port')}/status"
    assert looked.value("metrics_nginx") == url
    role, line = (looked.value(name)[-1] for name in OF_METRICS[:2])
    assert role["name"] == line["user"] == "prometheus"
    assert f"user={role['name']} dbname={line['database']}" in looked.value("metrics_postgres")
    assert role["member_of"] == ["pg_monitor"]
    assert line["method"] == "peer"


def test_what_a_server_does_not_have_is_not_asked(tmp_path: Path) -> None:
    looked = of_one_server(tmp_path, metrics_address="127.0.0.1")
    assert looked.value("metrics_postgres") == ""
    # From nowhere else, and an empty list of sources would be everybody.
    assert "9100" not in str(looked.value("firewall_default_allow"))
