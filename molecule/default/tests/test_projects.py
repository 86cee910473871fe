"""A third app from a project of its own, which has the built collection and nothing of the clone.

Its people and those of the first two apps know nothing of each other, and run at the same time.
"""

import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
import yaml
from testinfra.host import Host

# How runs and people meet does not depend on the release; what runs leave on each, others test.
pytestmark = pytest.mark.newest_release

REPOSITORY = Path(__file__).parents[3]
SCENARIO = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
# Ten lines at most.
SHOP = """
app_name: shop
app_domains: [shop.test]
app_path: app
app_static: {/static/: tiny/static}
certificates_source: ca
stack_database: postgresql
gunicorn_workers: 1
app_workers: [{name: jobs, command: sleep infinity}]
app_schedules: [{name: tick, command: echo tick, when: yearly}]
"""
# What the server has, a line for each. Of the other apps, of logs and of what a service keeps for
# itself only what is named after this one; of processes who has any, but for who asks; of timers
# not whether it is their moment. Packages and Carafe's own programs are the server's.
SEE = r"""
cd /
find . -xdev \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./tmp -o -path ./var/tmp \
    -o -path './root/.ansible*' -o -path ./home/deploy/.ansible \) -prune \
    -o -printf '%p %M %u %g\n' |
    grep -vE '^\./(srv/(guestbook|neighbour)|usr/local/lib/carafe|var/(log|cache))/' |
    grep -vE '^\./var/lib/(postgresql|systemd)/' |
    sed 's/^/file /'
find var run ! -path 'var/lib/postgresql/*' -name '*shop*' | sed 's/^/named /'
sed 's/^/user /' /etc/passwd /etc/group
systemctl list-unit-files --no-legend | grep -v ' transient ' | sed 's/^/unit /'
systemctl list-units --all --plain --no-legend '*shop*' '*.timer' |
    sed '/\.timer /s/ running / waiting /' | sed 's/^/runs /'
supervisorctl status | awk '{ print "program", $1, $2 }'
cd /var/lib/postgresql
for query in 'SELECT datname, datacl FROM pg_database' 'SELECT rolname, rolconfig FROM pg_roles' \
    'SELECT * FROM pg_auth_members' 'SELECT * FROM pg_hba_file_rules' \
    'SELECT name, setting FROM pg_settings'; do
    runuser -u postgres -- psql -XAtc "$query ORDER BY 1" | sed "s/^/${query##* } /"
done
ss -Hltun | awk '{ print "listens", $1, $5 }'
nft --stateless --terse list table inet carafe
grep -r '' /etc/carafe /etc/fail2ban/jail.d /etc/sysctl.d /etc/ssh/sshd_config.d
cat /etc/nginx/nginx.conf
ps -eo user= | grep -xv deploy | sort -u | sed 's/^/processes of /'
"""


class Project:
    """A folder with an inventory, in which somebody else has installed the collection."""

    def __init__(self, folder: Path, host: dict[str, object]):
        self.folder = folder
        inventory = folder / "inventory/prod"
        (inventory / "group_vars/prod").mkdir(parents=True)
        servers = {"prod": {"hosts": {"server": host}, "vars": {"ansible_group_priority": 10}}}
        servers |= {group: {"hosts": {"server": {}}} for group in ("db", "app", "web")}
        (inventory / "hosts.yml").write_text(yaml.safe_dump(servers))
        (inventory / "group_vars/prod/main.yml").write_text(SHOP)
        code = REPOSITORY / "molecule/app/files/tiny"
        subprocess.run(["cp", "-r", code, folder / "app"], check=True)
        # Nothing of the clone's settings.
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "MOLECULE"))},
            "ANSIBLE_HOME": str(folder / "home"),
            "PWD": str(folder),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_HOST_KEY_CHECKING": "false",
        }
        self.do("ansible-galaxy", "collection", "build", "--output-path", folder, REPOSITORY)
        (archive,) = folder.glob("carafe-stack-*.tar.gz")
        self.do("ansible-galaxy", "collection", "install", "--offline", archive)

    def do(self, program: str, *words: str | Path) -> str:
        done = subprocess.run(
            [BIN / program, *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, playbook: str, *options: str) -> str:
        return self.do(*self.words(playbook, *options))

    def words(self, playbook: str, *options: str) -> list[str]:
        return ["ansible-playbook", f"carafe.stack.{playbook}", "-i", "inventory/prod", *options]

    def begin(self, playbook: str, *options: str) -> subprocess.Popen[str]:
        program, *words = self.words(playbook, *options)
        return subprocess.Popen(
            [BIN / program, *words],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


@pytest.fixture(scope="module")
def project(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Project:
    name = host.check_output("hostname")
    instances = yaml.safe_load(Path(os.environ["MOLECULE_INSTANCE_CONFIG"]).read_text())
    (mine,) = (x for x in instances if x["instance"] == name)
    return Project(
        tmp_path_factory.mktemp("project"),
        {
            "ansible_host": mine["address"],
            "ansible_port": mine["port"],
            "ansible_user": mine["user"],
            "ansible_ssh_private_key_file": mine["identity_file"],
            "ansible_become_password": mine["become_pass"],
        },
    )


@pytest.fixture
def clone(host: Host) -> Callable[..., subprocess.Popen[str]]:
    """Begin a run of the clone's playbook for one of its own apps."""
    plays = {x["vars"].get("app_name", "guestbook"): x["vars"] for x in yaml.safe_load(CONVERGE)}

    def begin(app: str, playbook: str, **variables: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                *(BIN / "ansible-playbook", REPOSITORY / playbook),
                *("--inventory", Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent),
                *("--limit", host.check_output("hostname")),
                *(
                    "--extra-vars",
                    yaml.safe_dump(plays[app] | variables, default_flow_style=True, width=9999),
                ),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"},
        )

    return begin


CONVERGE = (SCENARIO / "converge.yml").read_text()


class Visitors:
    """Visitors of the first two apps, who count what is no whole, good answer."""

    def __init__(self, site: Callable[..., requests.Response]):
        self.site, self.done = site, threading.Event()
        self.answers = 0
        self.failures: list[str] = []
        names = ("localhost", "neighbour.test") * 2
        self.threads = [threading.Thread(target=self.visit, args=[name]) for name in names]

    def visit(self, name: str) -> None:
        # Enough to meet whatever happens, and no more than leaves the runs their time.
        while not self.done.wait(0.1):
            try:
                answer = self.site("/", host=name)
                if answer.status_code != 200:
                    self.failures.append(f"{name}: {answer.status_code}")
            except requests.RequestException as error:
                self.failures.append(f"{name}: {error!r}")
            self.answers += 1

    def __enter__(self) -> "Visitors":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        for thread in self.threads:
            thread.join()


def changed(output: str) -> list[str]:
    """Return the tasks of a run that changed something."""
    task, found = "", []
    for line in output.splitlines():
        if line.startswith("TASK ["):
            task = line
        elif line.startswith("changed: "):
            found.append(task)
    return found


def rules(host: Host) -> str:
    return host.check_output("nft --stateless --terse list table inet carafe")


def began(host: Host, unit: str) -> str:
    return host.check_output("systemctl show --value --property=ActiveEnterTimestamp %s", unit)


def seen(host: Host) -> set[str]:
    return set(host.check_output(SEE).splitlines())


@pytest.fixture(scope="module")
def before(host: Host) -> set[str]:
    """What the server has before the third app comes."""
    return seen(host)


def test_three_apps_from_two_projects(
    host: Host,
    before: set[str],
    project: Project,
    clone: Callable[..., subprocess.Popen[str]],
    site: Callable[..., requests.Response],
) -> None:
    """The third comes while the second is released, and no request of the first two is lost."""
    postgresql = host.check_output(
        "systemctl list-units --plain --no-legend 'postgresql@*' | cut -d' ' -f1"
    )
    assert not [x for x in before if "shop" in x]
    start, ports = began(host, postgresql), rules(host)
    project.run("vault")
    with Visitors(site) as visitors:
        other = clone("neighbour", "playbooks/deploy.yml", app_environment={"WORD": "another"})
        project.run("site")
        said, _ = other.communicate()
    assert other.returncode == 0, said
    assert visitors.failures == []
    assert visitors.answers > 100
    assert site("/", host="shop.test").status_code == 200
    assert site("/static/style.0123456789.css", host="shop.test").status_code == 200
    assert began(host, postgresql) == start
    assert rules(host) == ports
    assert len(seen(host) - before) > 100


def test_second_runs_change_nothing(
    project: Project, clone: Callable[..., subprocess.Popen[str]]
) -> None:
    assert changed(project.run("site")) == []
    run = clone("neighbour", "site.yml", app_environment={"WORD": "another"})
    said, _ = run.communicate()
    assert run.returncode == 0, said
    assert changed(said) == []


def test_the_collection_releases_and_goes_back(
    project: Project, site: Callable[..., requests.Response]
) -> None:
    code = project.folder / "app/wsgi.py"
    code.write_text(code.read_text() + "\n# another release\n")
    project.run("deploy")
    assert site("/", host="shop.test").status_code == 200
    project.run("rollback")
    assert site("/", host="shop.test").status_code == 200
    assert "serves" in project.run("releases")


def test_the_collection_rotates_a_secret(
    project: Project, site: Callable[..., requests.Response]
) -> None:
    def vault() -> dict[str, str]:
        path = "inventory/prod/group_vars/prod/vault.yml"
        return yaml.safe_load(project.do("ansible-vault", "view", path))

    before = vault()
    project.run("rotate", "-e", "secret=app_secret_key")
    after = vault()
    assert after["vault_app_secret_key"] != before["vault_app_secret_key"]
    assert after["vault_app_secret_key_old"] == before["vault_app_secret_key"]
    assert site("/", host="shop.test").status_code == 200


def test_one_of_them_goes_and_leaves_nothing(
    host: Host,
    before: set[str],
    project: Project,
    site: Callable[..., requests.Response],
) -> None:
    """Killed on the way, the same command goes on; no request of the other two is lost."""
    host.check_output("echo sent by a visitor >/srv/shop/shared/letter")
    there = seen(host)
    unconfirmed = project.begin("remove", "-e", "app_confirm=shops")
    said, _ = unconfirmed.communicate()
    assert unconfirmed.returncode == 2, said
    assert "Nothing was touched. app_confirm is shops" in said
    assert "drop database shop" in said
    assert "pack /srv/shop/shared: 1 file, 18.00 Bytes" in said
    assert seen(host) == there
    assert site("/", host="shop.test").status_code == 200
    with Visitors(site) as visitors:
        run = project.begin("remove", "-e", "app_confirm=shop")
        said = ""
        for line in run.stdout:
            said += line
            if "postgres : remove | Drop" in line:
                break
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
        assert "postgres : remove | Drop" in said, said
        project.run("remove", "-e", "app_confirm=shop")
    assert visitors.failures == []
    assert seen(host) == before
    # What was in its database and its folders is here, for those who removed it.
    dumps = project.folder / "shop-prod-dump"
    assert {x.read_bytes()[:5] for x in dumps.glob("*.dump")} == {b"PGDMP"}
    (shared,) = dumps.glob("*-shared.tar")
    with tarfile.open(shared) as tar:
        assert tar.extractfile("./letter").read() == b"sent by a visitor\n"
    assert dumps.stat().st_mode & 0o77 == 0
    again = project.run("remove", "-e", "app_confirm=shop")
    assert changed(again) == []
    assert "There is nothing of shop on" in again
