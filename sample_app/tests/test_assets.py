"""Static files with hashed names."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from flask import Flask

from guestbook import assets
from tests.conftest import new_app
from tests.test_health import DOWN

PROJECT = Path(assets.__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of the static folder, without what a build has left."""
    source = PROJECT / "guestbook" / "static"
    return shutil.copytree(source, tmp_path / "static", ignore=lambda *_: {assets.DIST})


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return each built file's content and modification time in nanoseconds."""
    return {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in (folder / assets.DIST).iterdir()
    }


def serve_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make new apps take this folder for their static one."""
    fixed = property(lambda _: str(folder), lambda *_: None)
    monkeypatch.setattr(Flask, "static_folder", fixed)


@pytest.fixture
def built_app(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Flask:
    """Return an app whose release has been built."""
    assets.build(folder)
    serve_from(folder, monkeypatch)
    return new_app(DOWN)


def test_names_hold_a_hash_of_the_content(folder: Path) -> None:
    manifest = assets.build(folder)
    assert set(manifest) == {"app.css", "app.js", "favicon.svg"}
    for plain, hashed in manifest.items():
        stem, suffix = plain.split(".")
        assert re.fullmatch(rf"dist/{stem}\.[0-9a-f]{{8,}}\.{suffix}", hashed)
        assert (folder / hashed).read_bytes() == (folder / plain).read_bytes()
    assert json.loads((folder / "dist" / "manifest.json").read_text("utf-8")) == manifest


def test_second_build_changes_nothing(folder: Path) -> None:
    assets.build(folder)
    before = state(folder)
    assets.build(folder)
    assert state(folder) == before


def test_changed_file_gets_a_new_name_and_the_old_one_goes(folder: Path) -> None:
    before = assets.build(folder)
    (folder / "app.css").write_text("body { color: red }")
    after = assets.build(folder)
    assert after["app.css"] != before["app.css"]
    assert after["app.js"] == before["app.js"]
    assert not (folder / before["app.css"]).exists()


def test_reference_to_a_file_that_is_not_there_fails(folder: Path) -> None:
    (folder / "app.css").unlink()
    with pytest.raises(KeyError, match=r"app\.css"):
        assets.build(folder)


@pytest.mark.parametrize("path", ["/", "/nothing"])
def test_pages_of_a_built_release_use_hashed_names(built_app: Flask, path: str) -> None:
    client = built_app.test_client()
    html = client.get(path).get_data(as_text=True)
    references = re.findall(r'"(/static/[^"]+)"', html)
    assert references
    for reference in references:
        assert re.fullmatch(r"/static/dist/\w+\.[0-9a-f]{12}\.\w+", reference)
        assert client.get(reference).status_code == 200


def test_pages_without_a_build_use_plain_names(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_from(folder, monkeypatch)
    html = new_app(DOWN).test_client().get("/").get_data(as_text=True)
    assert 'href="/static/app.css"' in html


def test_build_command_needs_no_settings_and_no_database(tmp_path: Path, folder: Path) -> None:
    release = tmp_path / "release"
    shutil.copytree(PROJECT, release, ignore=shutil.ignore_patterns("dist", "tests", ".*"))
    environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    subprocess.run(
        [sys.executable, "-m", "flask", "assets", "build"],
        cwd=release,
        env=environment,
        check=True,
        timeout=30,
    )
    assert (release / "guestbook" / "static" / "dist" / "manifest.json").is_file()
