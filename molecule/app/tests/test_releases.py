"""What a further release changes, and what a bad one leaves alone."""

import os
import shutil
import subprocess
from collections.abc import Callable
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
        extra = [f"--extra-vars={name}='{value}'" for name, value in variables.items()]
        limit = "app-12" if "app-12" in docker_name else "app-13"
        return subprocess.run(
            [
                "ansible-playbook",
                f"--inventory={inventory}",
                f"--limit={limit}",
                *extra,
                "tiny.yml",
            ],
            cwd=SCENARIO,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def serving(host: Host) -> Callable[[], str]:
    """The release that serves now."""
    return lambda: host.check_output("basename $(readlink /srv/tiny/current)")


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


def test_changed_dependencies_are_a_new_virtual_environment(
    host: Host, code: Path, deploy: Callable
) -> None:
    venv = host.check_output("readlink /srv/tiny/current/.venv")
    (code / "pyproject.toml").write_text(
        (code / "pyproject.toml").read_text().replace("flask==3.1.3", "flask==3.1.2")
    )
    assert deploy(tiny_path=code).returncode == 0
    assert host.check_output("readlink /srv/tiny/current/.venv") != venv


def test_interrupted_build_is_made_up_for(
    host: Host, code: Path, deploy: Callable, serving: Callable[[], str]
) -> None:
    (code / "wsgi.py").write_text((code / "wsgi.py").read_text() + "# interrupted\n")
    assert deploy(tiny_path=code, tiny_migrate="false").returncode != 0
    unfinished = host.check_output("ls -1t /srv/tiny/releases | head -n 1")
    host.check_output(
        "rm /srv/tiny/releases/%s/.built /srv/tiny/releases/%s/wsgi.py", unfinished, unfinished
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
