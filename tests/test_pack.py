"""The same code makes the same archive; other code, or other dependencies, another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT


def attempt(folder: Path | None, **more: Any) -> subprocess.CompletedProcess[str]:
    wanted = {"folder": folder and str(folder), "exclude": [], "files": [], "packages": []}
    wanted |= {"requirements": "", "cache": str((folder or Path()) / "../cache"), **more}
    command = [sys.executable, str(ROOT / "roles/app/files/pack.py")]
    return subprocess.run(command, input=json.dumps(wanted), capture_output=True, text=True)


def pack(folder: Path | None, **more: Any) -> dict[str, str]:
    result = attempt(folder, **more)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def names(packed: dict[str, str]) -> set[str]:
    with tarfile.open(packed["archive"]) as tar:
        return set(tar.getnames())


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    (folder / "shop/static").mkdir(parents=True)
    (folder / "requirements.txt").write_text("flask==3.1.0\n")
    (folder / "wsgi.py").write_text("app = None\n")
    (folder / "shop/static/ünï côde.css").write_text("a{}")
    return folder


def test_the_same_content_is_the_same_release(app: Path, tmp_path: Path) -> None:
    first = pack(app)
    archive = Path(first["archive"])
    before = archive.read_bytes()
    archive.unlink()
    os.utime(app / "wsgi.py", (0, 0))
    again = pack(app)
    assert again == first
    # The time in the header of gzip.
    assert before[4:8] == bytes(4)
    assert archive.read_bytes() == before


def test_it_does_not_matter_where_the_code_lies(app: Path, tmp_path: Path) -> None:
    revision = pack(app)["revision"]
    moved = app.rename(tmp_path / "elsewhere")
    assert pack(moved)["revision"] == revision


@pytest.mark.parametrize("change", ["content", "mode", "name", "link", "more"])
def test_another_content_is_another_release(app: Path, change: str) -> None:
    before, wsgi = pack(app), app / "wsgi.py"
    match change:
        case "content":
            wsgi.write_text("app = 1\n")
        case "mode":
            wsgi.chmod(0o755)
        case "name":
            wsgi.rename(app / "main.py")
        case "link":
            (app / "link").symlink_to("wsgi.py")
        case "more":
            (app / "empty").touch()
    after = pack(app)
    assert after["revision"] != before["revision"]
    assert after["dependencies"] == before["dependencies"]


def test_the_archive_holds_the_files_as_they_are(app: Path) -> None:
    (app / "run").write_text("#!/bin/sh\n")
    (app / "run").chmod(0o755)
    (app / "link").symlink_to("shop/static")
    with tarfile.open(pack(app)["archive"]) as tar:
        assert tar.getmember("run").mode == 0o755
        assert tar.getmember("wsgi.py").mode == 0o644
        assert tar.getmember("link").linkname == "shop/static"
        assert tar.extractfile("shop/static/ünï côde.css").read() == b"a{}"
        assert {member.uid for member in tar} == {0}


@pytest.mark.parametrize("pattern", [".git", "*.pyc", "shop/static", "node_modules"])
def test_what_is_excluded_does_not_travel(app: Path, pattern: str) -> None:
    for path in (".git/config", "shop/x.pyc", "shop/static/y.css", "node_modules/a/b.js"):
        (app / path).parent.mkdir(parents=True, exist_ok=True)
        (app / path).touch()
    travelled = names(pack(app, exclude=[pattern]))
    left_out = {x for x in names(pack(app)) if x not in travelled}
    assert left_out
    assert all(pattern.strip("*") in x for x in left_out)


def test_dependencies_are_those_of_the_requirements_file_and_what_it_includes(app: Path) -> None:
    (app / "requirements.txt").write_text("-r base/all.txt\n")
    (app / "base").mkdir()
    (app / "base/all.txt").write_text("--constraint pins.txt\nflask\n")
    (app / "base/pins.txt").write_text("flask==3.1.0\n")
    before = pack(app)
    (app / "base/pins.txt").write_text("flask==3.1.1\n")
    assert pack(app)["dependencies"] != before["dependencies"]
    assert before["requirements"] == "requirements.txt"


def test_dependencies_come_from_pyproject_where_there_is_no_requirements_file(app: Path) -> None:
    (app / "requirements.txt").unlink()
    project = '[project]\nname = "shop"\nversion = "{}"\ndependencies = ["flask>=3", "x[y]"]\n'
    (app / "pyproject.toml").write_text(project.format("1"))
    first = pack(app)
    with tarfile.open(first["archive"]) as tar:
        listed = tar.extractfile(first["requirements"]).read().decode()
    assert listed.split() == ["flask>=3", "x[y]"]
    # A new version of the app itself needs no new virtual environment.
    (app / "pyproject.toml").write_text(project.format("2"))
    assert pack(app)["dependencies"] == first["dependencies"]


def test_small_files_are_added(app: Path) -> None:
    extra = [{"path": "instance/conf.py", "content": "DEBUG = False\n"}]
    packed = pack(app, files=extra)
    assert "instance/conf.py" in names(packed)
    assert packed["revision"] != pack(app)["revision"]


def test_the_order_of_files_does_not_matter(app: Path) -> None:
    extra = [{"path": "z", "content": "1"}, {"path": "0", "content": "2"}]
    assert pack(app, files=extra) == pack(app, files=extra[::-1])


def test_a_package_needs_no_folder(tmp_path: Path) -> None:
    packed = pack(None, packages=["isso==0.13.0"], cache=str(tmp_path))
    with tarfile.open(packed["archive"]) as tar:
        assert tar.extractfile(packed["requirements"]).read() == b"isso==0.13.0\n"


def test_an_unknown_folder_names_the_variable(tmp_path: Path) -> None:
    result = attempt(tmp_path / "nowhere")
    assert result.returncode == 1
    assert "Correct app_path" in result.stderr


def test_a_missing_requirements_file_names_the_variable(app: Path) -> None:
    (app / "requirements.txt").unlink()
    assert "app_requirements" in attempt(app).stderr
    assert "req.txt" in attempt(app, requirements="req.txt").stderr


def test_nothing_half_written_is_left_in_the_cache(app: Path, tmp_path: Path) -> None:
    packed = pack(app)
    assert [x.name for x in (tmp_path / "cache").iterdir()] == [Path(packed["archive"]).name]
