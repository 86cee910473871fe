"""Installing Debian packages: what is missing, what interrupted runs left, what went wrong."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import packages
from ansible_collections.carafe.stack.plugins.module_utils.packages import Package
from ansible_collections.carafe.stack.plugins.modules import packages as module

KNOWN = {
    "nginx": Package("installed", "1.26.3-3", ("httpd", "nginx-abi-1")),
    "chrony": Package("installed", "4.6", ("time-daemon",)),
    "certbot": Package("config-files", "4.0", ()),
    "postgresql": Package("half-configured", "17", ()),
}


@pytest.mark.parametrize(
    ("wanted", "missing"),
    [
        (["nginx", "fail2ban"], ["fail2ban"]),
        (["fail2ban", "fail2ban"], ["fail2ban"]),
        (["httpd"], []),
        (["nginx:amd64", "nginx/stable"], []),
        (["nginx=1.26*"], []),
        (["nginx=1.27*", "acl=1*"], ["nginx=1.27*", "acl=1*"]),
        (["systemd-timesyncd | time-daemon"], []),
        (["systemd-timesyncd|ntpsec"], ["systemd-timesyncd"]),
        # Removed, with its configuration left; and cut off in the midst.
        (["certbot", "postgresql"], ["certbot", "postgresql"]),
    ],
)
def test_only_what_is_not_there_is_missing(wanted: list[str], missing: list[str]) -> None:
    assert packages.missing(wanted, KNOWN) == missing


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server's folders, as far as they matter here."""
    for name in ("lists", "updates", "bin"):
        (tmp_path / name).mkdir()
    lock, policy, saved = (tmp_path / name for name in ("lock", "policy-rc.d", "saved"))
    text = packages.POLICY_TEXT.replace(str(packages.LOCK), str(lock))
    text = text.replace(str(packages.ADMINISTRATORS), str(saved))
    text = text.replace(str(packages.HELD), str(tmp_path / "held"))
    for name, value in {
        "LISTS": tmp_path / "lists",
        "JOURNAL": tmp_path / "updates",
        "LOCKS": (tmp_path / "dpkg-lock",),
        "LOCK": lock,
        "POLICY": policy,
        "ADMINISTRATORS": saved,
        "HELD": tmp_path / "held",
        "POLICY_TEXT": text,
    }.items():
        monkeypatch.setattr(packages, name, value)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path


@pytest.fixture
def command(root: Path):
    """Put a shell script in the place of a command; it notes each call."""

    def put(name: str, script: str) -> Path:
        calls = root / f"{name}.calls"
        path = root / "bin" / name
        path.write_text(f'#!/bin/sh\necho "$@" >>{calls}\n{script}\n')
        path.chmod(0o755)
        return calls

    return put


def may_start() -> bool:
    """Tell whether a package may start its service, as invoke-rc.d asks."""
    if not packages.POLICY.exists():
        return True
    status = subprocess.run([packages.POLICY, "nginx", "start"]).returncode
    assert status in (0, 101)
    return status == 0


def test_services_are_held_while_it_lasts_and_no_longer() -> None:
    with packages.alone(1, start_services=False):
        assert not may_start()
    assert may_start()
    assert not packages.POLICY.exists()
    with packages.alone(1, start_services=True):
        assert may_start()


def die_in_the_midst() -> None:
    """Have a process killed while it installs packages."""
    pid = os.fork()
    if not pid:
        with packages.alone(1, start_services=False):
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL


@pytest.mark.parametrize("own", [None, 0, 101], ids=["none", "allows", "forbids"])
def test_a_killed_run_holds_no_service_and_the_next_one_clears_up(
    root: Path, own: int | None
) -> None:
    if own is not None:
        packages.POLICY.write_text(f"#!/bin/sh\nexit {own}\n")
        packages.POLICY.chmod(0o755)
    assert not packages.is_left()
    die_in_the_midst()
    assert packages.is_ours(packages.POLICY)
    assert packages.is_left()
    assert may_start() == (own != 101)
    with packages.alone(1, start_services=False):
        assert not may_start()
        assert not packages.is_left()
    assert packages.POLICY.exists() == (own is not None)
    assert not packages.ADMINISTRATORS.exists()
    assert may_start() == (own != 101)


def test_an_administrators_policy_survives_the_moment_without_any(root: Path) -> None:
    packages.ADMINISTRATORS.write_text("#!/bin/sh\nexit 101\n")
    assert packages.is_left()
    with packages.alone(1, start_services=True):
        assert packages.POLICY.read_text() == "#!/bin/sh\nexit 101\n"


HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
getattr(fcntl, sys.argv[2])(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(params=[("dpkg-lock", "lockf"), ("lock", "flock")], ids=["dpkg", "carafe"])
def held(request: pytest.FixtureRequest, root: Path) -> Iterator[tuple[Path, subprocess.Popen]]:
    """A lock that somebody else holds."""
    path = root / request.param[0]
    command = [sys.executable, "-c", HOLD, path, request.param[1]]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield path, process
        process.kill()


def test_who_holds_a_lock_is_named(held: tuple[Path, subprocess.Popen], command) -> None:
    path, process = held
    command("apt-get", "")
    with (
        pytest.raises(packages.Failure) as failure,
        packages.alone(0.3, start_services=False) as apt,
    ):
        apt.install(["nginx"], False)
    assert f"(process {process.pid}) has held {path}" in str(failure.value)
    assert may_start()


def test_a_lock_that_is_given_back_is_no_failure(
    held: tuple[Path, subprocess.Popen], command
) -> None:
    held[1].kill()
    calls = command("apt-get", "")
    with packages.alone(5, start_services=False) as apt:
        apt.install(["nginx"], False)
    assert "install nginx" in calls.read_text()


def old(seconds: float) -> None:
    then = time.time() - seconds
    os.utime(packages.LISTS, (then, then))


def verbs(calls: Path) -> list[str]:
    return re.findall(r"\b(?:update|install)\b(?!-)", calls.read_text())


@pytest.mark.parametrize(
    ("age", "script", "expected"),
    [
        (60, "", ["install"]),
        (7200, "", ["update", "install"]),
        # An image whose lists are empty, though its folder is young.
        (
            60,
            'case "$*" in *update*) touch $0.updated;; *) test -e $0.updated ||'
            ' { echo "E: Unable to locate package nginx"; exit 100; };; esac',
            ["install", "update", "install"],
        ),
    ],
    ids=["young", "old", "empty"],
)
def test_lists_are_updated_when_old_or_too_small(
    command, age: float, script: str, expected: list[str]
) -> None:
    old(age)
    calls = command("apt-get", script)
    with packages.alone(1, start_services=False) as apt:
        apt.install(["nginx"], False)
    assert verbs(calls) == expected


def test_what_dpkg_was_cut_off_from_comes_first(command) -> None:
    dpkg = command("dpkg", "exit 1")
    calls = command("apt-get", f"test -e {packages.LOCK.parent}/dpkg.calls")
    assert not packages.is_interrupted({})
    (packages.JOURNAL / "0001").touch()
    assert packages.is_interrupted({})
    assert packages.is_interrupted({"x": Package("unpacked", "1", ())})
    with packages.alone(1, start_services=False) as apt:
        apt.install(["nginx"], True)
    assert "--configure -a" in dpkg.read_text()
    assert "--fix-broken --no-remove install nginx" in calls.read_text()


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (
            "Setting up bad (1.0) ...\ndpkg: error processing package bad (--configure):\n"
            " installed bad package post-installation script subprocess returned error exit"
            " status 3\n"
            "Errors were encountered while processing:\n bad\n"
            "E: Sub-process /usr/bin/dpkg returned an error code (1)\n",
            "The package bad could not be installed: installed bad package post-installation script"
            " subprocess returned error exit status 3.",
        ),
        (
            "dpkg: error processing archive /tmp/apt-dpkg-install-x/07-nginx_1.26_amd64.deb"
            " (--unpack):\n"
            " cannot copy extracted data: failed to write (No space left on device)\n",
            "The package nginx could not be installed: cannot copy extracted data: failed to write"
            " (No space left on device).",
        ),
        (
            "E: Unable to locate package nosuch\n",
            "apt could not install nginx, nosuch: Unable to locate package nosuch.",
        ),
        (
            "The following packages have unmet dependencies:\n nginx : Depends: libc9 but it is not"
            " installable\nE: Unable to correct problems, you have held broken packages.\n",
            "apt could not install nginx, nosuch: nginx : Depends: libc9 but it is not installable."
            " Unable to correct problems, you have held broken packages.",
        ),
    ],
)
def test_a_failure_names_package_and_reason_in_one_line(output: str, said: str) -> None:
    text = packages.reason(output, ["nginx", "nosuch"], [])
    assert text.startswith(said)
    assert text.endswith("run the playbook again.")
    assert "\n" not in text


def test_a_source_that_cannot_be_reached_is_told_where_it_matters(command) -> None:
    old(7200)
    command(
        "apt-get",
        'case "$*" in *update*) echo "E: The repository x is not signed."; exit 100;;'
        ' *) echo "E: Unable to locate package nginx"; exit 100;; esac',
    )
    with (
        pytest.raises(packages.Failure, match="The repository x is not signed"),
        packages.alone(1, start_services=False) as apt,
    ):
        apt.install(["nginx"], False)
    assert packages.LISTS.stat().st_mtime < time.time() - 7000


def test_apt_keeps_services_held_when_its_parent_is_gone(command) -> None:
    """The lock is the child's too."""
    command("apt-get", f"flock -n {packages.LOCK} true && exit 7\nexit 0")
    with packages.alone(1, start_services=False) as apt:
        lock = os.fdopen(os.dup(apt.lock))
        assert apt.run("apt-get").returncode == 0
    with packages.LOCK.open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lock.close()


def test_what_another_run_has_installed_meanwhile_is_not_installed_again(
    command, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, looked, there = command("apt-get", ""), threading.Event(), {}

    def look() -> dict[str, Package]:
        found = dict(there)
        looked.set()
        return found

    monkeypatch.setattr(packages, "look", look)
    answer: dict = {}
    with packages.LOCK.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiter = threading.Thread(
            target=lambda: answer.update(module.install(["nginx"], False, 60, check=False))
        )
        waiter.start()
        assert looked.wait(60)
        there["nginx"] = Package("installed", "1", ())
    waiter.join()
    assert answer["changed"]
    assert answer["installed"] == ["nginx"]
    assert not calls.exists()


def invoke(service: str, action: str, *more: str) -> bool:
    """Ask to start a service, as deb-systemd-invoke and invoke-rc.d do; tell whether it may."""
    return subprocess.run([packages.POLICY, *more, service, action]).returncode == 0


NEEDS = {
    "nginx": Package("installed", "1", ("httpd",), ("nginx-common (<< 1.1~)", " libc6 (>= 2)")),
    "nginx-common": Package("installed", "1", (), ()),
    "libc6": Package("installed", "2", (), ()),
    "certbot": Package("installed", "1", (), ("python3:any", " mta | mail-agent", "httpd")),
    "postfix": Package("installed", "1", ("mail-agent",), ()),
    "redis-server": Package("installed", "1", (), ("redis-tools", "libc6")),
    "redis-tools": Package("removed", "1", (), ()),
}


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["redis-server"], {"redis-server", "libc6"}),
        (["nosuch"], set()),
        (["certbot"], {"certbot", "postfix", "nginx", "nginx-common", "libc6"}),
        (["nginx=1*", "exim4 | postfix"], {"nginx", "nginx-common", "libc6", "postfix"}),
    ],
)
def test_what_a_package_needs_goes_with_it(names: list[str], found: set[str]) -> None:
    assert packages.with_dependencies(names, NEEDS) == found


OWNERS = """case "$*" in
--search*nginx.service*) echo "nginx-common: /lib/systemd/system/nginx.service";;
--search*redis-server.service*) echo "redis-server: /usr/lib/systemd/system/redis-server.service";;
--search*stunnel4*) echo "stunnel4: /etc/init.d/stunnel4";;
--listfiles*redis*) printf '%s\\n' /usr/lib/systemd/system/redis-server.service
    printf '%s\\n' /usr/lib/systemd/system/redis.socket /usr/lib/systemd/system/redis@.service
    printf '%s\\n' /usr/lib/systemd/user/redis.service /usr/share/doc/redis.socket;;
esac"""


@pytest.fixture
def kept(command, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nginx and redis as packages that wanted to start; returns what is asked of systemd."""
    there = {
        name: NEEDS[name]._replace(depends=("nginx-common",) if name == "nginx" else ())
        for name in ("nginx", "nginx-common", "redis-server")
    }
    monkeypatch.setattr(packages, "look", lambda: there)
    command("dpkg-query", OWNERS)
    with packages.alone(1, start_services=False):
        assert not invoke("nginx", "start", "--quiet")
        assert not invoke("redis-server.service", "start")
        assert not invoke("stunnel4", "restart")
        assert not invoke("redis-server.service", "stop")
        assert invoke("logrotate.timer", "start")
    return command("deb-systemd-invoke", "")


def test_only_what_no_role_starts_is_started_later_with_its_other_units(kept: Path) -> None:
    names = ["nginx", "redis-server"]
    held = module.install(names, False, 1, check=False, own=["nginx"])
    assert not held["changed"]
    dry = module.install(names, True, 1, check=True, own=["nginx"])
    assert dry["due"]
    assert not kept.exists()
    done = module.install(names, True, 1, check=False, own=["nginx"])
    assert done["changed"]
    assert done["started"] == ["redis-server.service", "stunnel4"]
    assert kept.read_text().splitlines() == [
        "start redis-server.service",
        "start redis.socket",
        "restart stunnel4.service",
    ]
    again = module.install(names, True, 1, check=True, own=["nginx"])
    assert not again["due"]


def test_whoever_does_not_say_what_is_its_own_starts_nothing_held(kept: Path) -> None:
    assert not module.install(["nginx"], True, 1, check=False)["due"]
    assert not kept.exists()
    assert packages.HELD.exists()


def test_nothing_is_due_where_the_roles_start_all(kept: Path) -> None:
    own = ["nginx", "redis-server", "stunnel4"]
    packages.HELD.write_text("start nginx\n")
    assert not module.install(["nginx"], True, 1, check=True, own=own)["due"]


def test_a_service_that_does_not_start_is_a_warning(kept: Path, command) -> None:
    command("deb-systemd-invoke", "exit 1")
    done = module.install(["redis-server"], True, 1, check=False, own=["nginx"])
    assert "systemctl status redis-server.service" in done["warnings"][0]
    assert not packages.HELD.exists()


def test_timers_of_new_packages_start_though_their_services_do_not(
    command, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"tar": Package("installed", "1", ())}
    apt = command("apt-get", "")
    monkeypatch.setattr(
        packages,
        "look",
        lambda: there | ({"logrotate": KNOWN["nginx"]} if apt.exists() else {}),
    )
    listed = command(
        "dpkg-query",
        'printf "%s\\n" /lib/systemd/system/logrotate.timer /lib/systemd/system/logrotate.service'
        " /usr/lib/systemd/system/x@.timer /etc/cron.daily/logrotate",
    )
    started = command("deb-systemd-invoke", "")
    module.install(["logrotate"], False, 1, check=False)
    assert listed.read_text() == "--listfiles logrotate\n"
    assert started.read_text() == "start logrotate.timer\n"
