"""A way back from each migration, where there are backups."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import programs, release_steps
from ansible_collections.carafe.stack.plugins.module_utils.commands import Failure
from ansible_collections.carafe.stack.plugins.modules import backup


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A release of an app whose server has the program of the backups."""
    monkeypatch.setattr(programs, "FOLDER", tmp_path)
    (tmp_path / "backup").mkdir()
    program = "import sys\nfrom pathlib import Path\n"
    program += "Path(__file__).with_name('said').write_text(repr(sys.argv[1:]))\n"
    (tmp_path / "backup/__main__.py").write_text(program)
    return SimpleNamespace(id="46b2c12fc937-a1b2c3", app={"database": "shop"})


def test_a_point_is_made_and_named_after_the_release(app: SimpleNamespace, tmp_path: Path) -> None:
    name = release_steps.Release.restore_point(app)
    assert name.startswith("before-46b2c12fc937-a1b2c3-")
    assert (tmp_path / "backup/said").read_text() == f"['point', '{name}']"


@pytest.mark.parametrize("without", ["program", "database"])
def test_there_is_none_without_backups_or_a_database(
    app: SimpleNamespace, tmp_path: Path, without: str
) -> None:
    if without == "program":
        (tmp_path / "backup/__main__.py").unlink()
    else:
        app.app["database"] = ""
    assert release_steps.Release.restore_point(app) == ""


def test_no_migration_is_begun_without_its_point(app: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "backup/__main__.py").write_text("import sys\nsys.exit('the server is down')")
    with pytest.raises(Failure, match=r"no way back from the migration.*the server is down"):
        release_steps.Release.restore_point(app)


def test_a_rollback_that_is_refused_names_the_point() -> None:
    assert "-e restore_to=before-x" in release_steps.way_back({"point": "before-x"})
    assert release_steps.way_back({}) == ""


def test_a_point_that_cannot_be_made_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what a run of another server is told."""

    def fails(_: str) -> None:
        raise Failure("the server is down")

    monkeypatch.setattr(backup.backup_jobs, "point", fails)
    monkeypatch.setattr(backup.backup_repository, "setup", lambda: {"database": True})
    asked = SimpleNamespace(params={"point": "before-x"}, check_mode=False)
    with pytest.raises(Failure, match="point before-x could not be made: the server is down"):
        backup.point(asked)
