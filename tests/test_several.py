"""A stack of several servers: who is away, who joins, who leaves, and what all of them serve."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible import context
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import lookup_loader
from ansible.utils.context_objects import CLIArgs
from ansible_collections.carafe.stack.plugins.module_utils import release_steps
from conftest import FACTS, ROOT
from inventories import SECRETS, Looked

HOSTS = {
    name: {"ansible_host": f"192.0.2.{x}", "private_address": f"10.0.0.{x}"}
    for x, name in ((10, "data"), (11, "one"), (12, "two"), (13, "front"), (14, "back"))
}
GROUPS = {"db": ["data"], "app": ["one", "two"], "web": ["front"]}


class Stack:
    """An inventory of several servers, and what the playbooks make of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, folder

    def write(
        self, groups: dict[str, list[str]] = GROUPS, absent: str = "", **variables: Any
    ) -> None:
        # Each in a folder of its own: what Ansible has read of a file it does not read again.
        self.place = self.folder / f"{len([*self.folder.iterdir()])}/inventory/prod"
        (self.place / "group_vars/prod").mkdir(parents=True)
        (self.place / "group_vars/guestbook").symlink_to(ROOT / "group_vars/guestbook")
        names = dict.fromkeys(x for members in groups.values() for x in members)
        hosts = {
            x: HOSTS[x] | ({"stack_state": "absent"} if x in absent.split() else {}) for x in names
        }
        inventory = {"prod": {"hosts": hosts, "vars": {"ansible_group_priority": 10}}}
        inventory |= {k: {"hosts": dict.fromkeys(v)} for k, v in groups.items()}
        inventory["guestbook"] = {"children": {"prod": {}}}
        (self.place / "hosts.yml").write_text(yaml.safe_dump(inventory))
        values = {"app_domains": ["example.com"], "certificates_source": "ca"}
        (self.place / "group_vars/prod/main.yml").write_text(
            yaml.safe_dump(values | SECRETS | variables)
        )

    def look(
        self,
        limit: str | None = None,
        playbook: str = "",
        extra: tuple[str, ...] = (),
        pool: list[str] | None = None,
        **given: Any,
    ) -> Looked:
        """Ask the preflight, which finds whom nginx sends requests to."""
        self.write(**given)
        pools = {} if pool is None else {"guestbook": [f"{x}:8443" for x in pool]}
        path = ROOT / (f"playbooks/{playbook}.yml" if playbook else "playbooks/preflight.yml")
        facts = {**FACTS, "found": {"nginx": {"pools": pools}}}
        return Looked(self.place, *extra, playbook=path, limit=limit, facts=facts)


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(tmp_path)


def pattern(
    stack: Stack, *terms: str, limit: str | None = None, last: str = "", **variables: Any
) -> str:
    """Return the pattern of the first play."""
    names = yaml.safe_load((stack.place / "hosts.yml").read_text())
    groups = {k: [*v.get("hosts", {})] for k, v in names.items()}
    groups["all"] = [*names["prod"]["hosts"]]
    known = {"groups": groups, "ansible_inventory_sources": [str(stack.place)], **variables}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "CLIARGS", CLIArgs({"subset": limit}))
        (found,) = lookup_loader.get("carafe.stack.servers", loader=DataLoader()).run(
            [*terms], variables=known, last=last
        )
    return found


def test_no_play_is_for_a_server_that_is_away(stack: Stack) -> None:
    stack.write(absent="two front", groups=GROUPS | {"web": ["front", "back"]})
    assert pattern(stack, "db", "app", "web") == "db,app,web,!two,!front"
    assert pattern(stack, "app") == "app,!two"
    stack.write()
    assert pattern(stack, "app", "web") == "app,web"


def test_who_the_others_need_is_asked_last(stack: Stack) -> None:
    stack.write(absent="two")
    facts = {x: {"roll_leads": x == "one", "stack_state": "present"} for x in HOSTS}
    facts["two"]["stack_state"] = "absent"
    found = pattern(stack, "app", "web", "db", hostvars=facts, last="roll_leads")
    assert found == "front,data,one"
    assert pattern(stack, "app", hostvars=facts | {"one": facts["data"]}, last="roll_leads") == (
        "app,!two"
    )


def test_later_plays_go_by_what_ansible_knows(stack: Stack) -> None:
    looked = stack.look(absent="two")
    assert pattern(stack, "app", hostvars=looked.variables["hostvars"]) == "app,!two"


def test_a_server_that_leaves_is_in_no_play_of_its_stack_and_others_are_in_none(
    stack: Stack,
) -> None:
    stack.write(stack_name="prod")
    found = pattern(stack, "db", "app", remove_server="two")
    assert found == "db,app,&prod,!two"


@pytest.mark.parametrize(("limit", "absent"), [(None, "one two"), ("two", "two")])
def test_a_run_that_would_do_nothing_says_so(stack: Stack, limit: str | None, absent: str) -> None:
    stack.write(absent=absent)
    with pytest.raises(AnsibleError, match=r"No server is left to work on: .*two (is|are) said"):
        pattern(stack, "app", limit=limit)


def test_every_play_for_servers_leaves_out_those_that_are_away() -> None:
    plays = [
        (path.name, play["hosts"])
        for path in sorted((ROOT / "playbooks").glob("*.yml"))
        for play in yaml.safe_load(path.read_text())
        if "hosts" in play and not re.match("localhost|{{ remove_server", play["hosts"])
    ]
    assert len(plays) > 10
    assert [x for x in plays if "lookup('carafe.stack.servers', " not in x[1]] == []


def test_nothing_counts_on_a_server_that_is_away(stack: Stack) -> None:
    looked = stack.look(absent="one", stack_database="postgresql")
    assert looked.said == ""
    assert looked.value("stack_app") == ["two"]
    assert looked.value("stack_firewall_db[0].sources") == ["10.0.0.12"]
    assert looked.value("postgres_client_addresses") == ["10.0.0.12"]
    assert looked.value("stack_upstreams") == ["10.0.0.12:8443"]
    both = stack.look(stack_database="postgresql").value("postgres_connections")
    assert looked.value("postgres_connections") - 10 == (both - 10) // 2
    # Who is asked here is neither; of the app servers, the one that is left is the first.
    for name in ("app_migrate_enabled", "app_schedules_enabled"):
        assert looked.value(f"{name} | string") == "False"
        looked.variables["inventory_hostname"] = "two"
        assert looked.value(f"{name} | string") == "True"
        looked.variables["inventory_hostname"] = "data"


def test_a_web_server_that_is_away_reaches_no_app(stack: Stack) -> None:
    groups = GROUPS | {"web": ["front", "back"]}
    looked = stack.look(groups=groups, absent="front")
    assert looked.value("stack_firewall_app[0].sources") == ["10.0.0.14"]


def test_of_two_servers_the_one_that_is_left_is_no_stack_of_one(stack: Stack) -> None:
    groups = {"db": ["data"], "app": ["data", "two"], "web": ["data"]}
    looked = stack.look(groups=groups, absent="two")
    assert looked.said == ""
    assert looked.value("stack_is_one_server") is False
    assert looked.value("stack_upstreams") == ["10.0.0.10:8443"]


@pytest.mark.parametrize(
    ("absent", "groups", "says"),
    [
        ("data", GROUPS, "stack_state is absent for data, where the database is"),
        ("one two", GROUPS, "stack_state is absent for one and two, and no other app server"),
        ("front", GROUPS, "stack_state is absent for front, and no other web server is there"),
    ],
)
def test_what_no_other_server_has_is_not_away(
    stack: Stack, absent: str, groups: dict[str, list[str]], says: str
) -> None:
    said = stack.look(absent=absent, groups=groups).said
    assert says in said
    assert "cannot be made out" not in said


def test_a_misspelt_state_is_refused(stack: Stack) -> None:
    stack.write()
    path = stack.place / "hosts.yml"
    path.write_text(path.read_text().replace("192.0.2.12", "192.0.2.12\n      stack_state: abesnt"))
    said = Looked(stack.place).said
    assert "stack_state is 'abesnt', which is none of present, absent. (two)" in said
    assert f"Edit {path}, line" in said


def test_a_template_may_say_it(stack: Stack) -> None:
    stack.write(stack_name="{{ inventory_dir | basename }}")
    path = stack.place / "hosts.yml"
    word = '192.0.2.12\n      stack_state: \'{{ "absent" if inventory_hostname == "two" }}\''
    path.write_text(path.read_text().replace("192.0.2.12", word))
    assert pattern(stack, "app") == "app,!two"
    assert pattern(stack, "db", "app", remove_server="one") == "db,app,&prod,!one,!two"
    looked = Looked(stack.place)
    assert looked.said == ""
    assert pattern(stack, "app", hostvars=looked.variables["hostvars"]) == "app,!two"


@pytest.mark.parametrize("playbook", ["site", "deploy", "rollback"])
def test_no_release_leaves_a_server_behind_that_gets_requests(stack: Stack, playbook: str) -> None:
    said = stack.look(limit="!two", playbook=playbook).said
    assert "stack_state is not absent for two, which --limit leaves out" in said
    assert "where it is down, say so beside its ansible_host: stack_state: absent" in said
    assert stack.look(limit="front", playbook=playbook).said == ""
    assert stack.look(limit="!two", playbook=playbook, absent="two").said == ""
    # What asks what is wrong releases nothing.
    assert stack.look(limit="!two").said == ""


@pytest.mark.parametrize(
    ("tags", "refused"), [(["hardening"], False), (["deploy"], True), (["app"], True)]
)
def test_what_releases_nothing_may_leave_out_whom_it_likes(
    stack: Stack, tags: list[str], refused: bool
) -> None:
    stack.write()
    looked = Looked(stack.place, playbook=ROOT / "site.yml", limit="!two", tags=tags)
    assert ("--limit leaves out" in looked.said) is refused


def test_a_release_waits_until_nginx_knows_who_is_away(stack: Stack) -> None:
    pool = ["10.0.0.11", "10.0.0.12"]
    for playbook in ("deploy", "rollback", "rotate"):
        said = stack.look(playbook=playbook, absent="two", pool=pool).said
        assert "for the server at 10.0.0.12, to which nginx sends requests all the same" in said
        assert "let nginx know by site.yml" in said
    assert stack.look(playbook="site", absent="two", pool=pool).said == ""
    assert stack.look(playbook="deploy", absent="two", pool=["10.0.0.11"]).said == ""
    said = stack.look(playbook="site", absent="two", limit="!front").said
    assert "is absent for two, and --limit leaves out front" in said


def test_one_that_joins_waits_for_the_release(stack: Stack) -> None:
    looked = stack.look(pool=["10.0.0.11"], playbook="site")
    assert looked.said == ""
    assert looked.value("stack_joining") == ["two"]
    assert looked.value("stack_upstreams") == ["10.0.0.11:8443"]
    assert looked.value("stack_keeps_release") is True
    looked.variables["stack_waiting"] = []
    assert looked.value("stack_upstreams") == ["10.0.0.11:8443", "10.0.0.12:8443"]


@pytest.mark.parametrize("pool", [None, [], ["10.0.0.11", "10.0.0.12"], ["10.9.9.9"]])
def test_nobody_joins_a_stack_that_is_new_or_whole(stack: Stack, pool: list[str] | None) -> None:
    looked = stack.look(pool=pool)
    assert looked.value("stack_joining") == []
    assert looked.value("stack_upstreams") == ["10.0.0.11:8443", "10.0.0.12:8443"]
    assert looked.value("stack_keeps_release") is False


def test_one_that_joins_is_not_the_one_that_migrates(stack: Stack) -> None:
    """It does not know that the app is set up, for one thing."""
    looked = stack.look(pool=["10.0.0.12"])
    looked.variables["inventory_hostname"] = "one"
    assert looked.value("app_migrate_enabled") is False
    assert looked.value("app_schedules_enabled") is True


def test_who_leaves_is_known_by_the_address(stack: Stack) -> None:
    pool = ["10.0.0.11", "10.0.0.12", "10.0.0.15"]
    assert stack.look(pool=pool).value("stack_leaving") == ["10.0.0.15"]
    looked = stack.look(pool=pool[:2], absent="two")
    assert looked.value("stack_leaving") == ["10.0.0.12"]
    # The user's own beside them is none.
    site = {"name": "guestbook", "upstreams": ["10.0.0.15:8443 backup"]}
    assert stack.look(pool=pool, nginx_sites=[site]).value("stack_leaving") == []


# Two web servers, one name.

WEBS = GROUPS | {"web": ["front", "back"]}


def test_web_servers_order_each_and_ask_each_other(stack: Stack) -> None:
    looked = stack.look(groups=WEBS, certificates_source="acme")
    assert looked.said == ""
    looked.variables["inventory_hostname"] = "front"
    assert looked.value("nginx_challenge_peers") == ["10.0.0.14"]
    # Everybody may come by.
    assert looked.value("nginx_sources") == looked.value("stack_firewall_web[0].sources") == []
    looked.variables["stack_web_sources"] = ["192.0.2.0/24"]
    both = ["192.0.2.0/24", "10.0.0.14"]
    assert looked.value("nginx_sources") == looked.value("stack_firewall_web[0].sources") == both


def test_one_that_is_away_is_not_asked(stack: Stack) -> None:
    looked = stack.look(groups=WEBS, absent="back", certificates_source="acme")
    looked.variables["inventory_hostname"] = "front"
    assert looked.value("nginx_challenge_peers") == []


def test_behind_proxy_headers_they_could_not_ask(stack: Stack) -> None:
    given = {"certificates_source": "acme", "nginx_proxy_protocol_from": ["192.0.2.0/24"]}
    said = stack.look(groups=WEBS, **given).said
    assert "back and front hear only a load balancer that sends PROXY headers" in said
    assert stack.look(**given).said == ""


def test_the_books_tell_what_serves(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    books = {
        "new": {"revision": "main 2", "code": "b", "began": 2},
        "old": {"revision": "main 1", "code": "a", "began": 1, "deployed": 1.0},
    }
    (tmp_path / "state/releases.json").write_text(json.dumps(books))
    release = release_steps.Release({"name": "shop", "root": str(tmp_path)})
    release_steps.serving(release)
    assert release.output["serving"] == {}
    for name, told in (("old", {"release": "old", "label": "main 1", "code": "a"}), ("new", {})):
        release.point(name)
        release_steps.serving(release)
        assert release.output["serving"] == told
