"""A program on the server is made of what its module was sent with, however that travelled."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import (
    backup_server,
    hardening,
    programs,
)
from ansible_collections.carafe.stack.plugins.modules import (
    alerts,
    firewall,
    gunicorn_slots,
    metrics,
    postgresql,
    sshd,
)
from conftest import ROOT

MODULE = """
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.carafe.stack.plugins.module_utils import files, programs, {name}
from pathlib import Path

module = AnsibleModule(dict(folder=dict(required=True)))
programs.FOLDER = Path(module.params["folder"])
module.exit_json(changed=bool(programs.install("tried", ["{name}", "files", "programs"])))
"""
# Stands in for a program that a module brings along.
PROGRAM = """
from .files import write
from . import programs

def main():
    import sys
    print(write.__name__, programs.__name__, *sys.argv[1:])
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(programs, "FOLDER", tmp_path / "carafe")
    return tmp_path / "carafe/tried"


def test_a_program_is_made_once(folder: Path) -> None:
    would = programs.install("tried", ["programs", "files"], check=True)
    assert not folder.exists()
    changed = programs.install("tried", ["programs", "files"])
    assert changed == would
    assert set(changed) == {
        str(folder / x)
        for x in ("__main__.py", "carafe/__init__.py", "carafe/programs.py", "carafe/files.py")
    }
    assert programs.install("tried", ["programs", "files"]) == []
    text = (folder / "carafe/files.py").read_text()
    assert text == (ROOT / "plugins/module_utils/files.py").read_text()


def test_what_is_not_wanted_any_more_goes_and_what_was_changed_comes_back(folder: Path) -> None:
    programs.install("tried", ["programs", "files"])
    (folder / "carafe/old.py").touch()
    (folder / "carafe/files.py").write_text("")
    (folder / "carafe/__pycache__").mkdir()
    changed = programs.install("tried", ["programs", "files"])
    assert changed == [str(folder / "carafe/files.py"), str(folder / "carafe/old.py")]
    assert sorted(x.name for x in folder.rglob("*.py")) == [
        "__init__.py",
        "__main__.py",
        "files.py",
        "programs.py",
    ]
    # Python would take what it has compiled for new, where size and second are the same.
    assert not (folder / "carafe/__pycache__").exists()


def test_what_root_has_run_is_no_change(folder: Path) -> None:
    programs.install("tried", ["files"])
    # No package has a function main here; what matters is that Python has compiled it.
    subprocess.run(
        [sys.executable, str(folder)],
        env={"PYTHONDONTWRITEBYTECODE": ""},
        capture_output=True,
        check=False,
    )
    assert {x.parent.parent for x in folder.rglob("*.pyc")} == {folder, folder / "carafe"}
    assert programs.install("tried", ["files"]) == []


@pytest.fixture
def project(tmp_path: Path, ansible_environment: dict[str, str]) -> dict[str, str]:
    """A collection like ours, with a module that brings a program along."""
    stack = tmp_path / "collections/ansible_collections/carafe/stack/plugins"
    (stack / "module_utils").mkdir(parents=True)
    (stack / "modules").mkdir()
    for name in ("files", "programs"):
        text = (ROOT / f"plugins/module_utils/{name}.py").read_text()
        (stack / f"module_utils/{name}.py").write_text(text)
    (stack / "module_utils/tried.py").write_text(PROGRAM)
    (stack / "modules/tried.py").write_text(MODULE.format(name="tried"))
    return {**ansible_environment, "ANSIBLE_COLLECTIONS_PATH": str(tmp_path / "collections")}


@pytest.mark.parametrize(
    "way",
    [
        {"ANSIBLE_PIPELINING": "true"},
        {"ANSIBLE_PIPELINING": "false"},
        {"ANSIBLE_STRATEGY": "mitogen_linear"},
    ],
    ids=["pipelining", "copied", "mitogen"],
)
def test_a_program_is_made_however_its_module_travels(
    tmp_path: Path, project: dict[str, str], way: dict[str, str]
) -> None:
    playbook = tmp_path / "play.yml"
    task = f"{{carafe.stack.tried: {{folder: {tmp_path}/made}}}}"
    playbook.write_text(
        f"[{{hosts: localhost, connection: local, gather_facts: false, tasks: [{task}, {task}]}}]"
    )
    (tmp_path / "made").mkdir()
    done = subprocess.run(
        ["ansible-playbook", playbook],
        env={**project, **way},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "changed=1 " in done.stdout, done.stdout + done.stderr
    said = subprocess.check_output([sys.executable, tmp_path / "made/tried", "a", "b"], text=True)
    assert said == "write carafe.programs a b\n"


MADE_OF = {
    "alerts": alerts.PROGRAM,
    "firewall": firewall.PROGRAM,
    "gunicorn-slots": gunicorn_slots.PROGRAM,
    "metrics": metrics.PROGRAM,
    "postgres-standbys": postgresql.PROGRAM,
    "sshd": sshd.PROGRAM,
    "backup": programs.names(*backup_server.LIBRARY),
    "restart-upgraded": hardening.RESTARTS,
}


def imported(name: str) -> set[str]:
    """Return what one of the module_utils imports of the others, wherever it does so."""
    nodes = ast.walk(ast.parse((ROOT / f"plugins/module_utils/{name}.py").read_text()))
    here = [x for x in nodes if isinstance(x, ast.ImportFrom) and x.level == 1]
    return {x.module for x in here if x.module} | {
        one.name for x in here if not x.module for one in x.names
    }


@pytest.mark.parametrize("name", MADE_OF)
def test_a_program_has_all_that_it_imports_and_nothing_else(folder: Path, name: str) -> None:
    main = MADE_OF[name][0]
    needed, due = {main}, [main]
    while due:
        more = imported(due.pop()) - needed
        needed |= more
        due += more
    assert set(MADE_OF[name]) == needed
    assert len(MADE_OF[name]) == len(needed)
    programs.install("tried", MADE_OF[name])
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import carafe.{main}"
    # Isolated, as on a server that has no Ansible.
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)
