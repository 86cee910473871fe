"""The real playbooks on several servers that are none: what is done in which order."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import FACTS, ROOT, Role
from inventories import SECRETS

ADDRESSES = {"data": "10.0.0.10", "one": "10.0.0.11", "two": "10.0.0.12", "three": "10.0.0.13"}
ADDRESSES["front"] = "10.0.0.20"
GROUPS = {"db": ["data"], "app": ["one", "two", "three"], "web": ["front"]}
SERVES = {"release": "x-1", "live": True, "plan": [], "place": [], "venv": True, "built": True}
NEW = {
    **{"changed": True, "release": "x-1", "live": False, "place": [], "venv": False},
    **{"built": False, "plan": [{"steps": [x], "point": ""} for x in ("build", "probe", "switch")]},
}
NGINX = {
    **{"settings": Role("nginx").defaults, "absent": [], "addresses": [], "claim": {}},
    **{"ipv6": True, "http2_on": True, "over_tls": False, "nameless": {}, "post_quantum": True},
    "default_ports": [],
}


def facts(pool: list[str]) -> dict[str, Any]:
    known = {
        **FACTS,
        "clock": 0,
        "local": {"guestbook": {"environment": "prod"}},
        "found": {"nginx": {"pools": {"guestbook": [f"{ADDRESSES[x]}:8443" for x in pool]}}},
    }
    return {"ansible_facts": {f"ansible_{k}": v for k, v in known.items()}}


def write(folder: Path, groups: dict[str, list[str]] = GROUPS) -> Path:
    place = folder / "inventory/prod"
    (place / "group_vars/prod").mkdir(parents=True)
    (place / "group_vars/guestbook").symlink_to(ROOT / "group_vars/guestbook")
    names = dict.fromkeys(x for members in groups.values() for x in members)
    hosts = {k: {"ansible_host": k, "private_address": ADDRESSES[k]} for k in names}
    said = {"ansible_connection": "answering", "ansible_become": False}
    inventory = {"prod": {"hosts": hosts, "vars": said | {"ansible_group_priority": 10}}}
    inventory |= {k: {"hosts": dict.fromkeys(v)} for k, v in groups.items()}
    inventory["guestbook"] = {"children": {"prod": {}}}
    (place / "hosts.yml").write_text(yaml.safe_dump(inventory, sort_keys=False))
    app = {"app_domains": ["x.test"], "certificates_source": "ca", "app_path": str(folder / "app")}
    app["stack_server_roles"] = []
    (place / "group_vars/prod/main.yml").write_text(yaml.safe_dump(SECRETS | app))
    (folder / "app").mkdir()
    (folder / "app/requirements.txt").write_text("flask\n")
    return place


class Run:
    """A playbook on those servers, with the answers that a test has for them."""

    def __init__(
        self, folder: Path, environment: dict[str, str], groups: dict[str, list[str]] = GROUPS
    ) -> None:
        self.place = write(folder, groups)
        self.answers, self.calls = folder / "answers", folder / "calls"
        self.environment = {
            **environment,
            **{"ANSIBLE_CONNECTION_PLUGINS": str(ROOT / "tests/connection_plugins")},
            **{"XDG_CACHE_HOME": str(folder / "cache"), "CALLS": str(self.calls)},
            "ANSWERS": str(self.answers),
        }

    def __call__(self, playbook: str, answers: dict[str, Any], *words: str) -> tuple[int, str]:
        """Return the exit status, and what it has written, in one line."""
        self.answers.write_text(json.dumps(answers))
        self.calls.write_text("")
        done = subprocess.run(
            ["ansible-playbook", f"playbooks/{playbook}.yml", "-i", self.place, *words],
            **{"cwd": ROOT, "env": self.environment, "capture_output": True, "text": True},
            check=False,
        )
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    def done(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Return what was asked of which server, in order: a module, and its arguments."""
        return [tuple(json.loads(line)) for line in self.calls.read_text().splitlines()]


@pytest.fixture
def run(tmp_path: Path, ansible_environment: dict[str, str]) -> Run:
    return Run(tmp_path, ansible_environment)


ALL = {
    "nginx_info": NGINX,
    "release begin": SERVES,
    "release finish": {"took": ["1 s"]},
    "release revert": {"serves": True},
    "release report_failure": {"says": "given up"},
    "packages": {"due": False},
}


@pytest.mark.any_python
def test_one_leaves_without_an_answer_while_another_joins(run: Run, tmp_path: Path) -> None:
    serving = {"release": "x-1", "label": "", "code": ""}
    answers: dict[str, Any] = {
        "all": {**ALL, "server_facts": facts(["one", "two"])},
        **{x: {} for x in ADDRESSES if x != "one"},
        "two": {"release serving": {"serving": serving}},
        "three": {"release begin": NEW},
    }
    words = ("-e", "remove_server=one", "-e", "remove_confirm=one")
    # What has no name by which it could be packed once more ends it before anything is touched.
    status, said = run("remove_server", answers, *words)
    assert status == 2, said
    assert "join and leave with the release, which serves, and that cannot be packed once" in said
    assert {name for _, name, _ in run.done()} == {"server_facts", "release"}
    code = next((tmp_path / "cache/carafe/archives").glob("*.json")).stem
    # By now the folder has another one.
    (tmp_path / "app/wsgi.py").write_text("app = None\n")
    serving |= {"label": "as it was", "code": code}

    status, said = run("remove_server", answers, *words)
    assert status == 0, said
    assert "one cannot be reached, and has all of guestbook still" in said
    steps = []
    for host, name, arguments in run.done():
        if name == "files":
            for file in arguments["files"]:
                if file.get("dest", "").endswith("sites-enabled/guestbook.conf"):
                    pool = set(re.findall(r"^    server (\S+):8443", file["content"], re.M))
                    steps.append(("pool", *(k for k, v in ADDRESSES.items() if v in pool)))
        elif name == "postgresql" and arguments["stage"] == "configure":
            assert arguments["client_addresses"] == [ADDRESSES[x] for x in ("two", "three")]
            steps.append(("database",))
        elif name == "release" and arguments["step"] in ("begin", "gate", "finish"):
            assert arguments["app"].get("code", code) == code
            assert arguments["app"]["migrate_enabled"] is (host == "two")
            steps.append((host, arguments["step"]))
    begin = sorted(x for x in steps if x[1:] == ("begin",))
    assert begin == [("three", "begin"), ("two", "begin")]
    assert [x for x in steps if x not in begin] == [
        ("pool", "two"),
        ("database",),
        ("pool", "two"),
        *[("three", "gate")] * 3,
        ("three", "finish"),
        ("pool", "two", "three"),
    ]


@pytest.mark.any_python
@pytest.mark.parametrize(
    "dies_at",
    ["release begin", "files", "release gate", "supervisor", "gunicorn_slots", "release finish"],
)
def test_a_release_is_taken_back_on_the_others_where_a_server_dies(run: Run, dies_at: str) -> None:
    pool = {"server_facts": facts(["one", "two", "three"])}
    answers = {"all": {**ALL, **pool, "release begin": NEW}, **{x: {} for x in ADDRESSES}}
    status, said = run("deploy", {**answers, "two": {dies_at: None}})
    assert status in (2, 4), said
    asked = [
        (host, f"{name} {arguments['step']}" if name == "release" else name)
        for host, name, arguments in run.done()
    ]
    last = asked.index(("two", dies_at))
    assert [x for x in asked[last + 1 :] if x[0] == "two"] == []
    for host in ("one", "three"):
        after = [name for x, name in asked if x == host]
        back = after[after.index("release revert") :]
        assert back == [
            *("release revert", "supervisor", "gunicorn_slots", "release workers"),
            "release report_failure",
        ]
    reverts = [x for _, name, x in run.done() if name == "release" and x["step"] == "revert"]
    assert {x["app"]["failed_on"] for x in reverts} == {"another server"}
    assert {x["app"]["failure"] for x in reverts} == {"it cannot be reached any more"}


THREE = ["one", "two", "three"]
CLUSTER = {"db": THREE, "etcd": THREE, "app": THREE[:2], "web": THREE[:1]}


def of_cluster(host: str, leader: str) -> dict[str, Any]:
    """Return what a server of a database that fails over says of itself."""
    known = facts([])
    there = {
        **{"version": "17", "name": "main", "port": 5432, "runs": True, "patroni": True},
        **{"is_standby": host != leader, "is_fenced": False, "has_databases": True},
        **{"claims": {"guestbook": {"databases": [], "roles": []}}, "databases": {}, "confs": []},
        **{"hba": False, "hba_file": "/etc/postgresql/17/main/pg_hba.conf", "reads_conf_d": True},
        **{"socket": "/var/run/postgresql", "addresses": "", "data": ""},
    }
    known["ansible_facts"]["ansible_found"]["postgresql"] = {"clusters": [there]}
    return known


@pytest.mark.any_python
def test_those_who_follow_are_rolled_first_and_another_one_leads_before_who_led(
    tmp_path: Path, ansible_environment: dict[str, str]
) -> None:
    run = Run(tmp_path, ansible_environment, CLUSTER)
    well = {"what": "cluster", "level": "green", "says": "one leads"}
    waits = {"changed": True, "stdout": "Reading\nInst libc6 [1] (2 Debian)\n"}
    absent = {"stat": {"exists": False}}
    of_all = {"status": {"rows": [well]}, "apt": waits, "stat": absent}
    answers = {x: {"server_facts": of_cluster(x, "two")} for x in THREE}
    status, said = run("roll_servers", {"all": of_all, **answers})
    assert status == 0, said
    steps = [
        (host, arguments["stage"] if name == "patroni" else name)
        for host, name, arguments in run.done()
        if name in ("patroni", "systemd_service", "status")
        or (name == "apt" and "upgrade" in arguments and "force_apt_get" not in arguments)
    ]
    looks, rolled = steps[:3], [x for x in steps[3:] if x[1] != "status"]
    assert sorted(looks) == sorted((x, "status") for x in THREE)
    # Whoever leads by then: each is asked, and gives up the lead before anything restarts.
    assert [x for x, name in rolled if name == "switchover"] == ["one", "three", "two"]
    assert [x for x in rolled if x[0] == "two"] == [
        *(("two", "switchover"), ("two", "apt")),
        ("two", "systemd_service"),
    ]
    former = [x["former"] for _, name, x in run.done() if name == "patroni"]
    assert former == ["one", "three", "two"]

    # Nothing would change: nobody gives up anything.
    status, said = run(
        "roll_servers", {"all": of_all | {"apt": {"stdout": "0 upgraded"}}, **answers}
    )
    assert status == 0, said
    assert [x for x in run.done() if x[1] == "patroni"] == []

    # One is missing already.
    degraded = well | {"level": "yellow", "says": "none in step"}
    status, said = run(
        "roll_servers", {"all": of_all | {"status": {"rows": [degraded]}}, **answers}
    )
    assert status == 2, said
    assert "Not well on one: none in step. Nothing was touched." in said
    assert {name for _, name, _ in run.done()} == {"server_facts", "status"}


@pytest.mark.any_python
def test_another_one_leads_and_joins_as_a_server_of_the_database_leaves(
    tmp_path: Path, ansible_environment: dict[str, str]
) -> None:
    # The one that joins has no part in the database yet, wherever it stands.
    four = ["data", *THREE]
    run = Run(tmp_path, ansible_environment, CLUSTER | {"db": four, "etcd": four})
    ran = {"changed": False, "changes": []}
    agrees = {"etcd": ran | {"settles": False}, "patroni": ran | {"leads": 0, "restart_due": []}}
    answers = {x: {"server_facts": of_cluster(x, "three")} for x in four}
    bare = facts([])
    bare["ansible_facts"]["ansible_found"]["postgresql"] = {"clusters": []}
    answers["data"] = {"server_facts": bare}
    given = {"all": ALL | agrees, **answers}
    words = ("-e", "remove_server=three", "-e", "remove_confirm=three", "-e", '{"app_dump": false}')
    status, said = run("remove_server", given, *words)
    assert status == 0, said
    done = run.done()
    steps = [
        (host, name, arguments.get("stage"))
        for host, name, arguments in done
        if name in ("etcd", "patroni", "postgresql")
    ]
    # As long as it is one of them.
    assert steps[0] == ("one", "patroni", "switchover")
    assert next(x["former"] for _, name, x in done if name == "patroni") == "three"
    members = {tuple(x["members"]) for _, name, x in done if name == "etcd" and "members" in x}
    assert members == {tuple(ADDRESSES[x] for x in ("data", "one", "two"))}
    # Its copy is not made anew, and what the others have is not dropped.
    last = [x for x in steps if x[0] == "three"]
    assert last[0] == ("three", "patroni", "remove")
    removed = next(x for host, name, x in done if name == "postgresql" and host == "three")
    assert (removed["stage"], removed["primary"]) == ("remove", ADDRESSES["data"])
    assert not next(x for host, name, x in done if name == "patroni" and host == "three")["goes_on"]

    # Nobody would take its place.
    run = Run(tmp_path / "three", ansible_environment, CLUSTER)
    status, said = run("remove_server", given, *words)
    assert status == 2, said
    assert "Without three, 2 would have a vote, and 2 the database." in said
    assert run.done() == []
