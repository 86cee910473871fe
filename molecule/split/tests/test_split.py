"""A stack on four servers: a database, two for the app, one for the web."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import requests
import testinfra
from conftest import CONTAINERS, REPOSITORY, Visitors, address, left
from testinfra.host import Host

BOOT = "cat /proc/sys/kernel/random/boot_id"


def test_row_goes_to_the_database_and_back(url: str) -> None:
    visit = subprocess.run(
        [sys.executable, REPOSITORY / "scripts/visit", url],
        capture_output=True,
        text=True,
        check=False,
    )
    assert visit.returncode == 0, visit.stdout + visit.stderr


def test_static_file_comes_from_the_app_where_nginx_has_none(url: str) -> None:
    assert requests.get(f"{url}/static/app.css", timeout=30).status_code == 200


def test_requests_are_spread(
    url: str, server: Callable[[str], Host], eventually: Callable[..., None]
) -> None:
    apps = [address(server(role)) for role in ("app-1", "app-2")]
    for _ in range(40):
        assert requests.get(f"{url}/healthz", timeout=30).status_code == 200
    log = "tail -n 40 /var/log/nginx/access.log"
    eventually(lambda: all(app in server("web").check_output(log) for app in apps))


@pytest.fixture
def start_again(release: str) -> Iterator[Callable[[], None]]:
    """Stop the stack's first app server; gives what starts it again."""
    container = CONTAINERS[f"split-{release}-app-1"]
    run = partial(subprocess.run, check=True, capture_output=True)
    run(["docker", "stop", "--time", "60", container])
    yield lambda: run(["docker", "start", container])
    run(["docker", "start", container])


def test_requests_go_to_the_other_while_an_app_server_is_stopped(
    server: Callable[[str], Host],
    visitors: list[Visitors],
    start_again: Callable[[], None],
    eventually: Callable[..., None],
) -> None:
    before = sum(visitor.count for visitor in visitors)
    eventually(lambda: sum(visitor.count for visitor in visitors) > before + 100)
    start_again()
    back = address(server("app-1"))
    eventually(lambda: server("web").run(CONNECT.format(back, 8443)).rc == 0)
    # A comma follows a server that did not answer.
    log = "tail -n 50 /var/log/nginx/access.log"
    eventually(lambda: f" {back}:8443 " in server("web").check_output(log))
    assert [visitor.failures for visitor in visitors] == [{"GET": [], "POST": []}] * 4


def test_no_request_is_lost_while_supervisord_starts_again(
    server: Callable[[str], Host], visitors: list[Visitors], eventually: Callable[..., None]
) -> None:
    """As an update of its package has it: nginx is sent to the other server before."""
    eventually(lambda: all(visitor.count > 20 for visitor in visitors))
    server("app-1").check_output("systemctl restart supervisor")
    back = address(server("app-1"))
    log = "tail -n 20 /var/log/nginx/access.log"
    eventually(lambda: f" {back}:8443 " in server("web").check_output(log))
    assert [visitor.failures for visitor in visitors] == [{"GET": [], "POST": []}] * 4


def test_no_request_is_lost_while_the_app_servers_boot_one_after_the_other(
    server: Callable[[str], Host],
    visitors: list[Visitors],
    playbook: Callable[..., tuple[int, str]],
    release: str,
) -> None:
    boots = {x: server(x).check_output(BOOT) for x in ("app-1", "app-2", "web")}
    only = f"--limit=split-{release}-app-*"
    status, output = playbook("roll_servers", only, roll_reboot="always", roll_upgrade=False)
    assert status == 0, output
    again = {x for x, boot in boots.items() if server(x).check_output(BOOT) != boot}
    assert again == {"app-1", "app-2"}
    assert [visitor.failures for visitor in visitors] == [{"GET": [], "POST": []}] * 4


def test_database_takes_no_password_in_the_clear(server: Callable[[str], Host]) -> None:
    answer = server("app-1").run(
        '/srv/guestbook/bin/run python -c "import os, psycopg; '
        "psycopg.connect(os.environ['DATABASE_URL'].replace('verify-full', 'disable'))\""
    )
    assert answer.rc != 0
    assert "no encryption" in answer.stderr


@pytest.mark.parametrize(
    ("role", "programs", "timers"),
    [
        ("app-1", {"guestbook.beat", "guestbook.worker"}, {"guestbook.nightly.timer"}),
        ("app-2", {"guestbook.worker"}, set()),
    ],
)
def test_what_is_to_be_there_once_is_on_the_first_app_server(
    server: Callable[[str], Host], role: str, programs: set[str], timers: set[str]
) -> None:
    host = server(role)
    status = host.check_output("supervisorctl status | grep '^guestbook[.]'").splitlines()
    assert {line.partition(":")[0] for line in status if "RUNNING" in line} == programs
    listed = host.check_output("systemctl list-timers --all --plain --no-legend 'guestbook.*'")
    assert {x for x in listed.split() if x.endswith(".timer")} == timers


def test_the_migration_has_a_way_back_where_the_database_is(server: Callable[[str], Host]) -> None:
    """Which the books of the app name, on the server that migrates."""
    books = json.loads(server("app-1").check_output("cat /srv/guestbook/state/releases.json"))
    made = json.loads(server("db").check_output("cat /var/lib/carafe/backup/points.json"))
    points = {x["name"]: x["at"] for x in made}
    # A release that has failed on another server has one, too.
    assert all(x["point"].startswith(f"before-{name}-") for name, x in books.items())
    assert all(points[x["point"]] <= x["before"] for x in books.values())


@pytest.mark.parametrize("role", ["web", "db"])
def test_code_is_only_where_it_runs(server: Callable[[str], Host], role: str) -> None:
    assert not server(role).file("/srv/guestbook").exists


@pytest.mark.parametrize(
    ("role", "ports"), [("db", {"22", "5432"}), ("app-2", {"22", "8443"}), ("web", {"22", "80"})]
)
def test_server_listens_only_for_what_it_is_for(
    server: Callable[[str], Host], role: str, ports: set[str]
) -> None:
    listening = server(role).check_output("ss -Hltn | awk '{print $4}'").split()
    outside = {x.rpartition(":")[2] for x in listening if not x.startswith(("127.", "[::1]"))}
    assert outside == ports


CONNECT = "timeout 5 python3 -c 'import socket, sys; socket.create_connection(sys.argv[1:])' {} {}"


@pytest.mark.parametrize(
    ("who", "whom", "port", "reaches"),
    [
        ("web", "app-1", 8443, True),
        ("app-1", "db", 5432, True),
        ("web", "db", 5432, False),
        ("db", "app-1", 8443, False),
        ("app-1", "app-2", 8443, False),
        ("app-1", "web", 80, True),
        ("web", "db", 22, True),
    ],
)
def test_servers_reach_only_what_they_need(
    server: Callable[[str], Host], who: str, whom: str, port: int, reaches: bool
) -> None:
    # 124 is timeout's own: the firewall drops, and refuses nothing.
    assert server(who).run(CONNECT.format(address(server(whom)), port)).rc == (
        0 if reaches else 124
    )


# On a server where such a file lies, this release does not start: for the probe, or in the slots.
AILING = """
import os, pathlib
for place, sign in (("probe", "PROBE_SOCKET"), ("slots", "SUPERVISOR_ENABLED")):
    if sign in os.environ and pathlib.Path("/srv/guestbook/ails-in-" + place).exists():
        raise RuntimeError(f"this server ails in the {place}")
"""
HOOK = """
- name: Tell which release is well
  ansible.builtin.copy:
    content: "{{ app_hook_release }}"
    dest: /srv/guestbook/cache/well
    mode: "0644"
"""
STATE = """
test ! -e /srv/guestbook/state/lock.json && echo free
basename $(readlink /srv/guestbook/serving)
for slot in 0 1; do
  tr '\\0' '\\n' </proc/$(supervisorctl pid guestbook:guestbook_$slot)/environ \\
    | sed -n 's/^APP_RELEASE=//p'
done
"""
# In clock ticks, which all containers share. A program's name may have spaces.
BEGAN = """
for slot in 0 1; do
  awk '{print $(NF - 30)}' /proc/$(supervisorctl pid guestbook:guestbook_$slot)/stat
done
"""


def state(host: Host) -> list[str]:
    """Whether the lock is free, what `current` points to, and what the slots run."""
    return host.check_output(STATE).split()


@pytest.fixture(scope="module")
def deploy(
    tmp_path_factory: pytest.TempPathFactory, playbook: Callable[..., tuple[int, str]]
) -> Callable[[], tuple[int, str]]:
    """Deploy a further release to the stack; returns the exit status, and the output."""
    folder = tmp_path_factory.mktemp("deploy")
    code = Path(shutil.copytree(REPOSITORY / "sample_app", folder / "code"))
    # A folder of its own makes it a release of its own, each time that the tests run.
    (code / "wsgi.py").write_text((code / "wsgi.py").read_text() + AILING + f"# {folder}\n")
    (folder / "hook.yml").write_text(HOOK)
    hooks = {"before_finish": [{"tasks": str(folder / "hook.yml")}]}
    return lambda: playbook("deploy", app_path=str(code), app_hooks=hooks, app_batch=1)


@pytest.fixture
def apps(release: str) -> dict[str, Host]:
    """The stack's servers for the app."""
    return {
        name: testinfra.get_host(f"docker://{CONTAINERS[name]}")
        for name in (f"split-{release}-app-1", f"split-{release}-app-2")
    }


@pytest.mark.parametrize(("place", "number"), [("probe", 2), ("slots", 1)])
def test_release_that_fails_on_one_server_is_taken_back_on_all(
    deploy: Callable[[], tuple[int, str]],
    apps: dict[str, Host],
    release: str,
    place: str,
    number: int,
) -> None:
    name = f"split-{release}-app-{number}"
    before = {server: state(host) for server, host in apps.items()}
    ails = f"/srv/guestbook/ails-in-{place}"
    apps[name].check_output("touch %s", ails)
    try:
        status, said = deploy()
    finally:
        apps[name].check_output("rm %s", ails)
    assert status != 0
    assert f"this server ails in the {place}" in said
    # What stands last is the reason, whichever server was asked last.
    last = said.rpartition("fatal: [")[2]
    assert last.startswith(f"{name}]")
    assert f"this server ails in the {place}" in last
    assert "The other servers give it up, too." in last
    for server, host in apps.items():
        assert state(host) == before[server]
        books = json.loads(host.file("/srv/guestbook/state/releases.json").content_string)
        last = max(books.values(), key=lambda entry: entry["began"])
        assert last["broken"].startswith(f"{place}: " if server == name else f"{name}: ")


def test_release_that_failed_serves_once_the_server_is_well(
    deploy: Callable[[], tuple[int, str]], apps: dict[str, Host]
) -> None:
    before = {server: state(host) for server, host in apps.items()}
    status, said = deploy()
    assert status == 0, said
    for server, host in apps.items():
        free, *releases = state(host)
        assert free == "free"
        assert len(set(releases)) == 1
        assert releases[0] != before[server][1]
        assert host.file("/srv/guestbook/cache/well").content_string == releases[0]
    # One batch after the other.
    (_, one), (two, _) = sorted(
        sorted(map(int, x.check_output(BEGAN).split())) for x in apps.values()
    )
    assert one < two


def code_of(host: Host) -> str:
    """What the release was made of that serves, as the books have it."""
    books = json.loads(host.file("/srv/guestbook/state/releases.json").content_string)
    return books[state(host)[1]]["code"]


def in_its_place(host: Host) -> set[str]:
    """What is to be on one app server only, of what is there."""
    found = host.run("supervisorctl status | grep -o '^guestbook[.]beat'").stdout
    found += host.run("ls /etc/systemd/system | grep '^guestbook.*timer$'").stdout
    return {*found.split()}


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Get a folder with other code than any that serves."""

    def copy(name: str) -> str:
        folder = Path(
            shutil.copytree(REPOSITORY / "sample_app", tmp_path_factory.mktemp(name) / "code")
        )
        (folder / "wsgi.py").write_text((folder / "wsgi.py").read_text() + f"# {folder}\n")
        return str(folder)

    return copy


@pytest.fixture
def saying(tmp_path: Path) -> Callable[..., str]:
    """Make the option for an inventory that says something of all servers, or of one."""

    def write(absent: str = "", **variables: object) -> str:
        hosts = {absent: {"stack_state": "absent"}} if absent else {}
        path = tmp_path / f"{len([*tmp_path.iterdir()])}.yml"
        path.write_text(json.dumps({"all": {"hosts": hosts, "vars": variables}}))
        return f"--inventory={path}"

    return write


ONCE = {"guestbook.beat", "guestbook.nightly.timer"}


def test_a_server_that_is_down_comes_back_with_the_release_that_serves(
    playbook: Callable[..., tuple[int, str]],
    apps: dict[str, Host],
    server: Callable[[str], Host],
    visitors: list[Visitors],
    code: Callable[[str], str],
    saying: Callable[..., str],
    start_again: Callable[[], None],
    eventually: Callable[..., None],
) -> None:
    one, two = apps
    database, web = server("db"), server("web")
    status, said = playbook("deploy", app_path=code("refused"))
    assert status == 2
    assert f"{one} cannot be reached" in " ".join(said.split())
    assert "say so beside its ansible_host: stack_state: absent" in " ".join(said.split())
    before = state(apps[two])
    status, said = playbook("site", saying(absent=one), app_path=code("without"))
    assert status == 0, said
    served, released = code_of(apps[two]), state(apps[two])
    assert before[1] not in released
    assert in_its_place(apps[two]) == ONCE

    marks = [len(visitor.releases) for visitor in visitors]
    start_again()
    back = address(apps[one])
    assert back not in web.check_output("cat /etc/nginx/sites-enabled/guestbook.conf")
    assert back not in database.check_output("cat /etc/postgresql/*/main/pg_hba.conf")
    # Both slots run what served there before.
    eventually(lambda: len(state(apps[one])) == 4)
    old = state(apps[one])[1]
    status, said = playbook("site", saying(app_path=code("joins")), app_path=None)
    assert status == 0, said
    assert {code_of(host) for host in apps.values()} == {served}
    assert state(apps[one])[0] == "free"
    log = "tail -n 50 /var/log/nginx/access.log"
    eventually(lambda: f" {back}:8443 " in web.check_output(log))
    assert (in_its_place(apps[one]), in_its_place(apps[two])) == (ONCE, set())
    seen = {
        x for visitor, mark in zip(visitors, marks, strict=True) for x in visitor.releases[mark:]
    }
    assert old not in seen
    assert seen == {released[1], state(apps[one])[1]}
    assert [visitor.failures for visitor in visitors] == [{"GET": [], "POST": []}] * 4


def test_a_server_leaves_and_another_joins_with_no_request_lost(
    playbook: Callable[..., tuple[int, str]],
    apps: dict[str, Host],
    server: Callable[[str], Host],
    visitors: list[Visitors],
    code: Callable[[str], str],
    saying: Callable[..., str],
) -> None:
    """The first, which has what is there once."""
    one, two = apps
    served, away, other = code_of(apps[two]), address(apps[one]), saying(app_path=code("later"))
    given = {"remove_server": one, "app_path": None, "app_dump": False}
    status, said = playbook("remove_server", other, **given)
    assert status == 2
    assert f"If it is to, add its name to the command: -e remove_confirm={one}" in " ".join(
        said.split()
    )
    status, said = playbook("remove_server", other, remove_confirm=one, **given)
    assert status == 0, said
    assert left(apps[one]) == set()
    for role, path in (
        ("web", "/etc/nginx/sites-enabled/*"),
        ("db", "/etc/postgresql/*/main/pg_hba.conf"),
    ):
        assert away not in server(role).check_output(f"cat {path}")
    assert away not in server("db").check_output("nft list ruleset")
    assert in_its_place(apps[two]) == ONCE
    assert code_of(apps[two]) == served

    status, said = playbook("site", other, app_path=None)
    assert status == 0, said
    assert code_of(apps[one]) == code_of(apps[two]) == served
    assert (in_its_place(apps[one]), in_its_place(apps[two])) == (ONCE, set())
    assert [visitor.failures for visitor in visitors] == [{"GET": [], "POST": []}] * 4
