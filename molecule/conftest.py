"""What the tests of every scenario share."""

import inspect
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
import testinfra.backend
import yaml
from testinfra.host import Host
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

REPOSITORY = Path(__file__).parent.parent
# Fixtures that run a playbook. What a test does with one is Carafe's own logic, which the releases
# share: what differs between them is how things are after converge, a kill and a restart.
PLAYBOOKS = {"apply", "converge", "deploy", "playbook", "role", "rotate", "switch"}
RECAP = re.compile(
    r"^(\S+)\s+: ok=\d+\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE
)


def pytest_configure(config: pytest.Config) -> None:
    """Point testinfra at the scenario's containers.

    Its docker backend is many times faster than the ansible one that molecule asks for.
    """
    for marker in (
        "either_release: does not depend on the release, so that each case is run on one of them",
        "newest_release: does not depend on the release either, and is run on the newest",
        "each_release: runs a playbook with other variables, and on each release all the same",
    ):
        config.addinivalue_line("markers", marker)
    testinfra.backend.BACKENDS["docker"] = "backend.DockerBackend"
    if config.option.hosts is not None:
        return
    instances = Path(os.environ.get("MOLECULE_INSTANCE_CONFIG", ""))
    if not instances.is_file():
        raise pytest.UsageError(
            "no servers to test: run `molecule verify -s SCENARIO`, "
            "or name them with --hosts=docker://CONTAINER (docker ps --filter label=carafe)"
        )
    config.option.hosts = ",".join(
        f"docker://{instance['container']}" for instance in yaml.safe_load(instances.read_text())
    )


class ReleaseScheduling(LoadScopeScheduling):
    """The tests of one release in one process, in their order."""

    # Not xdist's own loadgroup: of pytest 9.2's node ids it loses the groups.
    def _split_scope(self, nodeid: str) -> str:
        # Either a parameter, or in the container's name: [docker://carafe-…-nginx-12-…].
        found = re.search(r"[-[](12|13)[]-]", nodeid)
        # What needs no server of the scenario's has none.
        return found[1] if found else ""


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ReleaseScheduling:
    """Run the tests of the two releases side by side: their servers know nothing of each other."""
    return ReleaseScheduling(config, log)


def release_of(item: pytest.Item) -> str:
    """Return the release of Debian that a test is for, from its name."""
    found = re.search(r"[-[](12|13)[]-]", item.nodeid)
    return found[1] if found else ""


def is_for_the_newest(item: pytest.Item) -> bool:
    """Tell whether one release is enough for a test."""
    if item.get_closest_marker("each_release"):
        return False
    runs_a_playbook = PLAYBOOKS & set(inspect.signature(item.function).parameters)
    return bool(runs_a_playbook or item.get_closest_marker("newest_release"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the other release tests as well; with servers of one release all is run.

    Cases that are marked ``either_release`` are run on one release, in turn. Tests that run a
    playbook, and those marked ``newest_release``, on the newest; unless marked ``each_release``.
    """
    releases = {release_of(item) for item in items} - {""}
    if len(releases) < 2:
        return
    turns: dict[str, dict[str, int]] = {}
    left_out = []
    for item in items:
        release = release_of(item)
        if item.get_closest_marker("either_release"):
            case = re.sub(r"(docker://[\w-]+?-|(?<=[-\[]))(12|13)(?=[]-])", "", item.nodeid)
            cases = turns.setdefault(item.nodeid.partition("::")[0], {})
            if cases.setdefault(case, len(cases)) % 2 != int(release == "13"):
                left_out.append(item)
        elif release != max(releases) and is_for_the_newest(item):
            left_out.append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def docker_name(host: Host) -> str:
    """Name of the container that stands for the server."""
    return host.backend.name


@pytest.fixture
def restart_server(docker_name: str) -> Callable[[], None]:
    """Reboot the server and wait until it is up."""

    def restart() -> None:
        subprocess.run([REPOSITORY / "scripts/server", "restart", docker_name], check=True)

    return restart


@pytest.fixture
def playbook_check() -> Callable[[str], tuple[dict[str, dict[str, int]], str]]:
    """Run the scenario's converge.yml with --check --diff on the servers of one release.

    Returns the count of changed, unreachable and failed tasks by host, and the output.
    """

    def check(release: str) -> tuple[dict[str, dict[str, int]], str]:
        run = subprocess.run(
            [
                "ansible-playbook",
                "--check",
                "--diff",
                f"--limit=*-{release},*-{release}-*",
                "--inventory",
                Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent,
                "--skip-tags=molecule-notest,notest,molecule-idempotence-notest",
                Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"]) / "converge.yml",
            ],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"},
        )
        counts = {
            name: {"changed": int(changed), "unreachable": int(unreachable), "failed": int(failed)}
            for name, changed, unreachable, failed in RECAP.findall(run.stdout)
        }
        return counts, run.stdout + run.stderr

    return check


@pytest.fixture(scope="module")
def converge(host: Host) -> Callable[..., tuple[int, str]]:
    """Run the scenario's converge.yml on this server alone, with other values of some variables.

    Returns the number of changed tasks, or -1 when the run failed, and the output.
    """

    def run(*options: str, **variables: object) -> tuple[int, str]:
        name = host.check_output("hostname")
        done = subprocess.run(
            [
                "ansible-playbook",
                *("--limit", name, "--extra-vars", json.dumps(variables), *options),
                *("--inventory", Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent),
                Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"]) / "converge.yml",
            ],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"},
        )
        output = done.stdout + done.stderr
        changed = {row[0]: int(row[1]) for row in RECAP.findall(output)}
        return (-1 if done.returncode else changed[name]), output

    return run


@pytest.fixture
def command(host: Host) -> Callable[..., list[str]]:
    """Return the words that run a playbook on this server: command("deploy", app_version=…).

    It has the variables of the first play of the scenario's converge.yml, and those that are given.
    """
    scenario = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"])
    own = yaml.safe_load((scenario / "converge.yml").read_text())[0]["vars"]

    def words(playbook: str, **variables: object) -> list[str]:
        return [
            "ansible-playbook",
            str(REPOSITORY / ("" if playbook == "site" else "playbooks") / f"{playbook}.yml"),
            f"--inventory={Path(os.environ['MOLECULE_INVENTORY_FILE']).parent}",
            f"--limit={host.check_output('hostname')}",
            f"--extra-vars={json.dumps(own | variables)}",
        ]

    return words


@pytest.fixture
def published(docker_name: str) -> Callable[[int], str | None]:
    """Get the address at which Docker publishes a port of the server, None where it does not.

    It is looked up each time, because a restart may change it.
    """

    def look(port: int) -> str | None:
        mapping = subprocess.run(
            ["docker", "port", docker_name, str(port)], capture_output=True, text=True, check=False
        ).stdout
        return f"127.0.0.1:{mapping.split()[0].rpartition(':')[2]}" if mapping else None

    return look


@pytest.fixture
def authority(host: Host) -> Path:
    """The root of the server's private CA, as the role has downloaded it."""
    name = host.check_output("hostname")
    return Path(os.environ["MOLECULE_INSTANCE_CONFIG"]).parent / f"{name}-ca.crt"


class NamedAdapter(requests.adapters.HTTPAdapter):
    """Asks for a site by its name, and wants its certificate, whatever address it is reached by."""

    def __init__(self, name: str):
        self.name = name
        super().__init__()

    def init_poolmanager(self, *args, **options) -> None:
        super().init_poolmanager(
            *args, server_hostname=self.name, assert_hostname=self.name, **options
        )


@pytest.fixture
def site(
    published: Callable[[int], str | None], authority: Path
) -> Callable[..., requests.Response]:
    """Ask for a site from outside, as a visitor does: site(path, host=..., method=...).

    Over TLS where its port is published, and trusting the private CA only; otherwise on port 80.
    """

    def ask(
        path: str, host: str = "localhost", method: str = "GET", **options
    ) -> requests.Response:
        options["headers"] = {"Host": host} | options.pop("headers", {})
        tls = published(443)
        url = f"https://{tls}" if tls else f"http://{published(80)}"
        with requests.Session() as session:
            session.mount("https://", NamedAdapter(host))
            # Here, since what the environment says would beat the session's.
            return session.request(method, url + path, timeout=30, verify=str(authority), **options)

    return ask


@pytest.fixture(scope="session")
def eventually() -> Callable[..., None]:
    """Wait until a check holds; what it raises after two minutes is the test's failure."""

    def wait(check: Callable[[], bool], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                assert check()
                return
            except (AssertionError, requests.RequestException):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    return wait


# What the sandbox of each service forbids to root, and what root may do outside.
FORBIDDEN = {
    "programs": "touch /usr/probe && rm /usr/probe",
    "settings": "touch /etc/probe && rm /etc/probe",
    "kernel settings": "echo 0 >/proc/sys/net/ipv4/conf/lo/log_martians",
    "kernel modules": "mkdir -p /usr/lib/modules/probe && test -e /usr/lib/modules/probe",
    "control groups": "mkdir /sys/fs/cgroup/probe && rmdir /sys/fs/cgroup/probe",
    "mounts": "mount -t tmpfs none /mnt && umount /mnt",
    "namespaces": "unshare --user true",
    "other root folders": "chroot / true",
    "other host names": 'hostname "$(hostname)"',
    "other processes": "head -c 1 /proc/1/environ",
    "devices": "mknod /tmp/probe c 1 3 && rm /tmp/probe",
    "packets": "python3 -c 'import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)'",
}


@pytest.fixture(scope="module")
def inside(host: Host, service_unit: str) -> Iterator[Callable[[str], tuple[bool, str]]]:
    """Run a shell script as root in the sandbox of the service: did it succeed, and its output.

    It takes the place of the service's reload meanwhile. The module says which `service_unit`.
    """
    drop_in = f"/run/systemd/system/{service_unit}.d"
    reload = "[Service]\nExecReload=\nExecReload=/bin/sh /run/inside\n"
    host.check_output("mkdir -p %s && printf %s >%s/inside.conf", drop_in, reload, drop_in)
    host.check_output("systemctl daemon-reload")

    def run(script: str) -> tuple[bool, str]:
        host.check_output("printf '%%s\n' 'exec >/run/inside.out 2>&1' %s >/run/inside", script)
        done = host.run("systemctl reload %s", service_unit)
        return done.rc == 0, host.check_output("cat /run/inside.out")

    yield run
    host.check_output("rm -r %s/inside.conf /run/inside* && systemctl daemon-reload", drop_in)


@pytest.fixture(params=FORBIDDEN)
def forbidden(request: pytest.FixtureRequest, host: Host) -> str:
    """A command that root may give outside the sandbox."""
    command = FORBIDDEN[request.param]
    host.check_output(command)
    return command


@pytest.fixture
def without_mounts(host: Host, service_unit: str) -> Iterator[None]:
    """The service started anew as where systemd may mount nothing."""
    name, at, instance = service_unit.removesuffix(".service").partition("@")
    helper = f"{name}-sandbox{at}{instance}.service"
    folder = f"/run/systemd/system/{helper}.d"

    def restart() -> None:
        host.check_output("systemctl daemon-reload && systemctl restart %s", helper)
        host.check_output("systemctl restart %s", service_unit)

    host.check_output("mkdir -p /opt/nothing %s && cp /usr/bin/false /opt/nothing/unshare", folder)
    path = "[Service]\nEnvironment=PATH=/opt/nothing:/usr/bin:/bin\n"
    host.check_output("printf %s >%s/path.conf", path, folder)
    restart()
    yield
    host.check_output("rm -r %s /opt/nothing", folder)
    restart()
