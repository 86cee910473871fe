"""What a further release changes, and what a bad one leaves alone."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from testinfra.host import Host

SCENARIO = Path(__file__).parents[1]


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A copy of the tiny app that a test may change."""
    return Path(shutil.copytree(SCENARIO / "files/tiny", tmp_path / "tiny"))


@pytest.fixture
def deploy(docker_name: str) -> Callable[..., subprocess.CompletedProcess]:
    """Deploy the tiny app to this server with other variables; returns the finished run."""
    inventory = Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent

    def run(**variables: object) -> subprocess.CompletedProcess:
        limit = "app-12" if "app-12" in docker_name else "app-13"
        return subprocess.run(
            [
                "ansible-playbook",
                f"--inventory={inventory}",
                f"--limit={limit}",
                f"--extra-vars={json.dumps(variables, default=str)}",
                "tiny.yml",
            ],
            cwd=SCENARIO,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )

    return run


@pytest.fixture
def serving(host: Host) -> Callable[[], str]:
    """The release that serves now."""
    return lambda: host.check_output("basename $(readlink /srv/tiny/serving)")


def test_changed_code_is_a_new_release_and_old_ones_go(
    host: Host, code: Path, deploy: Callable, serving: Callable[[], str]
) -> None:
    before = serving()
    venv = host.check_output("readlink /srv/tiny/current/.venv")
    for text in ("one", "two"):
        (code / "wsgi.py").write_text((code / "wsgi.py").read_text() + f"# {text}\n")
        assert deploy(tiny_path=code).returncode == 0
    assert serving() != before
    releases = host.check_output("ls /srv/tiny/releases").split()
    assert len(releases) == 2, "app_keep_releases is 2"
    assert serving() in releases
    assert host.check_output("readlink /srv/tiny/current/.venv") == venv, "same dependencies"
    assert host.file("/srv/tiny/current/data/x").exists, "what is shared stays"


# But for lib, of all of them there are newer ones.
LOCKED = {"flask": "3.1.2", "click": "8.1.8", "asgiref": "3.13.0", "lib": "0.7"}
VERSIONS = """
import importlib.metadata, json
print(json.dumps({x.name.lower(): x.version for x in importlib.metadata.distributions()}))
"""


@pytest.fixture
def lock(code: Path) -> Callable[[str], None]:
    """Let the app have a lock, and the package beside its code that each of the locks has."""

    def bring(name: str) -> None:
        locks = SCENARIO / "files/locks"
        shutil.copytree(SCENARIO / "files/locked/lib", code / "lib")
        shutil.copy(locks / "pyproject.toml", code)
        if name != "pylock.toml":
            shutil.copy(locks / name, code)
            return
        # It names the index that it was made from, which is not the same everywhere.
        export = ["uv", "export", "--project", code, "--no-default-groups", "--no-emit-project"]
        subprocess.run([*export, "--quiet", "--output-file", code / name], check=True)
        (code / "uv.lock").unlink()

    return bring


@pytest.mark.each_release
@pytest.mark.parametrize("name", ["poetry.lock", "Pipfile.lock", "pylock.toml"])
def test_what_a_lock_says_is_installed_and_nothing_else(
    host: Host, code: Path, deploy: Callable, lock: Callable[[str], None], name: str
) -> None:
    """An extra of a dependency, a marker, a group, and a link to a package of the app's own."""
    venv = host.check_output("readlink /srv/tiny/current/.venv")
    lock(name)
    (code / "requirements.txt").write_text("flask==3.1.1\n")
    # Too much for one trip to the server.
    (code / "large.bin").write_bytes(os.urandom(5_000_000))
    run = deploy(tiny_path=code)
    assert run.returncode == 0, run.stdout
    assert f"Of {name}, requirements.txt in the app's folder, the first" in run.stdout + run.stderr
    assert host.check_output("readlink /srv/tiny/current/.venv") != venv
    assert host.file("/srv/tiny/current/large.bin").size == 5_000_000
    there = json.loads(host.check_output("tiny python -c %s", VERSIONS))
    assert there.items() >= {**LOCKED, "gunicorn": "27.0.1"}.items()
    assert not there.keys() & {"colorama", "iniconfig", "toolz"}
    old = host.check_output("python3 -c 'import sys; print(sys.version_info < (3, 13))'")
    assert there.get("humanize") == ("4.12.3" if old == "True" else None)
    # By a link, other releases would have the code that this one brings.
    where = host.check_output("tiny python -c 'import lib; print(lib.__file__)'")
    assert "/.venv/lib/python3" in where


def test_interrupted_build_is_made_up_for(
    host: Host, code: Path, deploy: Callable, serving: Callable[[], str]
) -> None:
    (code / "wsgi.py").write_text((code / "wsgi.py").read_text() + "# interrupted\n")
    assert deploy(tiny_path=code, tiny_migrate="false").returncode != 0
    unfinished = host.check_output("ls -1t /srv/tiny/releases | head -n 1")
    host.check_output(
        "rm /srv/tiny/state/built/%s /srv/tiny/releases/%s/wsgi.py", unfinished, unfinished
    )
    assert deploy(tiny_path=code).returncode == 0
    assert serving() == unfinished
    assert host.file("/srv/tiny/current/wsgi.py").exists


def broken_import(code: Path) -> None:
    (code / "wsgi.py").write_text("import no_such_module\n")


def broken_dependency(code: Path) -> None:
    text = (code / "pyproject.toml").read_text()
    (code / "pyproject.toml").write_text(text.replace("flask==3.1.3", "flask==0.0.0.1"))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(broken_import, "no_such_module"), (broken_dependency, "flask==0.0.0.1")],
)
def test_release_that_cannot_start_changes_nothing(
    code: Path, deploy: Callable, serving: Callable[[], str], spoil: Callable, reason: str
) -> None:
    before = serving()
    spoil(code)
    run = deploy(tiny_path=code)
    assert run.returncode != 0
    assert reason in run.stdout
    assert serving() == before


def test_failed_migration_keeps_the_old_release(
    code: Path, deploy: Callable, serving: Callable[[], str]
) -> None:
    before = serving()
    (code / "wsgi.py").write_text((code / "wsgi.py").read_text() + "# needs a table\n")
    assert deploy(tiny_path=code, tiny_migrate="echo no such table; false").returncode != 0
    assert serving() == before


POINTS = [
    f"{when}_{what}"
    for what in ("build", "migrate", "switch", "finish")
    for when in ("before", "after")
]
# Tells which release it is told of, and fails where it is asked to.
TASKS = """
- name: Tell where it is
  ansible.builtin.shell:
    cmd: test -d {{ app_hook_path }} && echo "{{ app_hook_point }} file" >>/srv/tiny/cache/hooks
- name: Keep a secret
  ansible.builtin.fail:
    msg: the secret
  no_log: true
  when: fails | default(false)
"""


@pytest.fixture
def hooks(tmp_path: Path, host: Host) -> dict[str, list[object]]:
    """At each point a command, then a task file; on the server, where they write, nothing."""
    (tmp_path / "hook.yml").write_text(TASKS)
    host.run("rm -f /srv/tiny/cache/hooks")
    return {
        point: [f"echo {point} command >>/srv/tiny/cache/hooks", {"tasks": f"{tmp_path}/hook.yml"}]
        for point in POINTS
    }


def test_hooks_run_in_the_listed_order(
    host: Host, code: Path, deploy: Callable, hooks: dict[str, list[object]]
) -> None:
    (code / "wsgi.py").write_text((code / "wsgi.py").read_text() + f"# hooked {code}\n")
    run = deploy(tiny_path=code, app_hooks=hooks)
    assert run.returncode == 0, run.stdout
    told = host.check_output("cat /srv/tiny/cache/hooks").splitlines()
    assert told == [f"{point} {kind}" for point in POINTS for kind in ("command", "file")]


@pytest.mark.parametrize("point", ["after_switch", "after_finish"])
def test_task_file_that_fails(
    host: Host,
    code: Path,
    deploy: Callable,
    serving: Callable[[], str],
    hooks: dict[str, list[object]],
    point: str,
) -> None:
    before = serving()
    (code / "wsgi.py").write_text((code / "wsgi.py").read_text() + f"# fails {point} {code}\n")
    run = deploy(tiny_path=code, app_hooks={point: hooks[point]}, fails=True)
    assert run.returncode != 0
    assert f"{point}: Keep a secret" in run.stdout
    assert "its output is hidden by no_log" in run.stdout
    assert not host.file("/srv/tiny/state/lock.json").exists
    books = json.loads(host.file("/srv/tiny/state/releases.json").content_string)
    broken = [entry.get("broken", "") for entry in books.values()]
    if point == "after_finish":
        assert serving() != before
        assert "all the same" in run.stdout
    else:
        assert serving() == before
        assert f"failed at the step {point}: Keep a secret" in run.stdout
        assert f"{point}: Keep a secret" in broken


# What a dependency could do while a release is built, and whoever has the deploy user at any time:
# where the sandbox of a build lets it.
HOSTILE = """
app=/srv/tiny release=/srv/tiny/releases/$APP_RELEASE served=$(readlink -f /srv/tiny/current)
ln -sf /etc/nologin $release/.built
ln -sfn /etc $app/releases/etc; ln -sfn /root $app/venvs/root; ln -sfn nowhere $app/cache/link
for place in releases venvs cache; do rm -f $app/$place/pipe; mkfifo $app/$place/pipe; done
touch $app/releases/stray
rm -f $served/.static && mkfifo $served/.static
true
"""


def test_what_the_deploy_user_plants_leads_root_nowhere(
    host: Host, code: Path, deploy: Callable, serving: Callable[[], str]
) -> None:
    before = serving()
    watched = "stat -c '%n %a %u %g %Z' /etc /root /etc/passwd /etc/shadow; ls -A /etc /root"
    as_it_was = host.check_output(watched)
    host.check_output("runuser -u tiny-deploy -- env APP_RELEASE=%s sh -c %s", before, HOSTILE)
    (code / "wsgi.py").write_text((code / "wsgi.py").read_text() + f"# hostile {code}\n")
    run = deploy(tiny_path=code, app_build_commands=[HOSTILE])
    assert run.returncode == 0, run.stdout
    assert serving() != before
    assert host.check_output(watched) == as_it_was
    assert not host.file("/etc/nologin").exists
    assert not host.file("/srv/tiny/state/lock.json").exists
    # Nobody's releases are not Carafe's to remove.
    assert host.file("/srv/tiny/releases/etc").is_symlink
    host.check_output("cd /srv/tiny && rm -f */etc */root */link */pipe */stray")


# Clears the screen, names the window, and forges a line of the audit log: in parts, so that what is
# printed is told from the command that prints it.
PRINT = (
    r"""printf '\033[2J\033]0;%s\007\n2026-01-01 00:00:00 UTC  ann  %sed\n' printed forg"""
    "; exit 3"
)
PRINTING = {
    "a step": {"tiny_migrate": PRINT},
    "a task file": {"app_hooks": {"after_switch": [{"tasks": "print.yml"}]}},
}


@pytest.mark.parametrize("printing", PRINTING.values(), ids=PRINTING)
def test_what_an_app_prints_is_shown_to_who_deploys_and_kept_from_others(
    host: Host,
    code: Path,
    deploy: Callable,
    tmp_path: Path,
    printing: dict[str, object],
    request: pytest.FixtureRequest,
) -> None:
    task = [{"name": "Ask the app", "ansible.builtin.shell": {"cmd": PRINT}}]
    (tmp_path / "print.yml").write_text(json.dumps(task))
    (code / "wsgi.py").write_text((code / "wsgi.py").read_text() + f"# {request.node.name}\n")
    run = deploy(tiny_path=code, app_hooks_path=tmp_path, **printing)
    assert run.returncode != 0
    said = run.stdout + run.stderr
    assert "]0;printed" in said
    assert "\x1b]0;" not in said
    assert "\x1b[2J" not in said
    log = host.check_output("cat /srv/tiny/state/releases.log")
    assert "forged" not in log
    as_nobody = "setpriv --reuid=nobody --regid=nogroup --clear-groups"
    folders = "/srv /var/log /var/lib /etc /run /tmp /var/tmp /home"
    search = f"find {folders} -xdev -type f -exec grep -lE '0;printed|  forged' {{}} +"
    everywhere = host.run(search).stdout.splitlines()
    if "task file" not in request.node.name:
        assert any(path.startswith("/srv/tiny/logs/") for path in everywhere)
    assert host.run(f"{as_nobody} {search}").stdout == ""
    assert not [x for x in everywhere if not x.startswith("/srv/tiny/logs/")]


LISTENER = """
import os, socket
os.makedirs("/run/postgresql", exist_ok=True)
server = socket.socket(socket.AF_UNIX)
server.bind("/run/postgresql/.s.PGSQL.5432")
os.chmod("/run/postgresql/.s.PGSQL.5432", 0o777)
server.listen(100)
import time; time.sleep(900)
"""


@pytest.fixture
def neighbours(host: Host) -> Iterator[None]:
    """What is on a server beside the build: a database, and a migration with its environment."""
    run = "systemd-run --collect --quiet"
    host.check_output(f"{run} --unit=listener python3 -c %s", LISTENER)
    as_user = "-p User=tiny-deploy -p Environment=WORD=planted"
    host.check_output(f"{run} --unit=neighbour {as_user} sleep 900")
    host.check_output("runuser -u tiny touch /srv/tiny/shared/data/x")
    yield
    host.check_output("systemctl stop listener neighbour")
    host.check_output("rm -rf /run/postgresql")


def attack(code: Path) -> dict[str, object]:
    """Have a dependency that attacks while it is built; return what the role is told."""
    shutil.copytree(SCENARIO / "files/hostile", code / "hostile")
    (code / "requirements.txt").write_text("flask==3.1.3\n./hostile\n")
    return {"tiny_path": code, "app_requirements": "requirements.txt"}


@pytest.mark.each_release
@pytest.mark.parametrize("installer", ["uv", "pip"])
def test_a_dependency_that_attacks_while_it_is_built_gets_nothing(
    host: Host, code: Path, deploy: Callable, neighbours: None, installer: str
) -> None:
    (code / "wsgi.py").write_text((code / "wsgi.py").read_text() + f"# {code}\n")
    host.run("rm -f /srv/tiny/cache/attacks.json")
    more = {"app_default_extra_requirements": [f"click!=0.{time.time_ns()}"]}
    secret, word = "only-for-this-test-0123456789abcdef", "a secret's secret"
    run = deploy(**attack(code), **more, app_installer=installer, app_secrets=[word])
    assert run.returncode == 0, run.stdout
    got = json.loads(host.file("/srv/tiny/cache/attacks.json").content_string)
    assert [x for x in got["read"] if secret in x or word in x or "shadow" in x] == []
    assert [x for x in got["read"] if "/shared/" in x or "/logs/" in x or "/run/" in x] == []
    del got["read"]
    assert not any(got.values()), got
    # In brackets, so that the shell which runs this is not found.
    assert host.run("pgrep --full 'sleep 7331[0]'").rc != 0, "it lives on"
    left = host.run("find /tmp /var/tmp /dev/shm -name hostile").stdout
    assert left == ""
    assert host.run("systemctl list-units --all --no-legend 'carafe-tiny-*'").stdout == ""


def test_a_build_ends_at_its_limit(code: Path, deploy: Callable) -> None:
    variables = attack(code)
    with (code / "hostile/setup.py").open("a") as setup:
        setup.write("import time; time.sleep(600)\n")
    run = deploy(**variables, app_installer="pip", app_build_timeout=8)
    assert run.returncode != 0
    assert "it did not end within 8 s, app_build_timeout" in run.stdout


@pytest.mark.parametrize("installer", ["uv", "pip"])
def test_a_wrong_hash_is_refused(code: Path, deploy: Callable, installer: str) -> None:
    # In a file of its own, as pip-compile and uv leave it to people.
    (code / "requirements.txt").write_text("-r locked.txt\n")
    (code / "locked.txt").write_text(f"flask==3.1.3 --hash=sha256:{'0' * 64}\n")
    (code / "wsgi.py").write_text((code / "wsgi.py").read_text() + f"# {installer}\n")
    run = deploy(tiny_path=code, app_requirements="requirements.txt", app_installer=installer)
    assert run.returncode != 0
    assert "hash" in run.stdout.lower()


def test_wheels_only_runs_nothing_of_a_dependency(host: Host, code: Path, deploy: Callable) -> None:
    host.run("rm -f /srv/tiny/cache/attacks.json")
    run = deploy(**attack(code), app_only_wheels=True)
    assert run.returncode != 0
    assert "app_only_wheels: ./hostile in the requirements" in run.stdout
    assert not host.file("/srv/tiny/cache/attacks.json").exists


@pytest.mark.each_release
def test_each_step_and_schedule_has_a_low_exposure(
    host: Host, code: Path, deploy: Callable
) -> None:
    """As systemd sees each of the units while it runs."""
    host.check_output(
        "systemd-run --collect --quiet --unit=looker sh -c %s",
        "while sleep 0.05; do for u in $(systemctl list-units --plain --no-legend 'carafe-tiny-*'"
        " | cut -d' ' -f1); do systemd-analyze security --no-pager $$u | tail -n 1"
        " >>/run/exposures; done; done",
    )
    (code / "wsgi.py").write_text((code / "wsgi.py").read_text() + "# exposed\n")
    stay = {point: ["sleep 2"] for point in ("after_build", "before_migrate")}
    night = {"name": "night", "command": "grep Seccomp: /proc/self/status", "when": "daily"}
    run = deploy(tiny_path=code, app_hooks=stay, app_schedules=[night])
    assert run.returncode == 0, run.stdout
    host.check_output("systemctl stop looker")
    found = re.findall(r"level for (\S+): ([0-9.]+)", host.check_output("cat /run/exposures"))
    # That of a build, and the one that all else has.
    assert len({unit for unit, _ in found}) >= 2, found
    print(sorted(set(found)))
    assert all(float(points) <= 4 for _, points in found), found
    host.check_output("systemd-analyze security --no-pager --threshold=40 tiny.night.service")
    host.check_output("systemctl start tiny.night.service")
    said = host.check_output("journalctl --unit=tiny.night.service --output=cat --lines=20")
    assert "Seccomp:\t2" in said


def test_missing_folder_is_said_before_the_server_is_touched(
    deploy: Callable, serving: Callable[[], str]
) -> None:
    before = serving()
    run = deploy(tiny_path="/no/such/folder")
    assert run.returncode != 0
    assert "Correct app_path" in run.stdout
    assert serving() == before


def test_the_first_release_can_be_had_again(
    host: Host, deploy: Callable, serving: Callable[[], str]
) -> None:
    """Leaves the server as converge made it, for whichever test comes next."""
    assert deploy().returncode == 0
    assert "NUMBERS" not in host.file("/srv/tiny/current/wsgi.py").content_string
    assert serving() in host.check_output("ls /srv/tiny/releases").split()
