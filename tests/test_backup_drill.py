"""What the drill of a server's backups looks at."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import backup_drill, backup_repository


@pytest.mark.parametrize(
    ("database", "apps", "looked"),
    [
        (True, {"shop": ["/srv/shop/shared"]}, ["database", "shop"]),
        # An app that keeps all in the database is no failure.
        (True, {"shop": []}, ["database"]),
        (False, {"blog": ["/srv/blog/shared"], "shop": []}, ["blog"]),
        (False, {}, []),
    ],
)
def test_the_drill_looks_at_what_there_is(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    database: bool,
    apps: dict[str, list[str]],
    looked: list[str],
) -> None:
    (tmp_path / "apps").mkdir()
    for name, paths in apps.items():
        text = json.dumps({"paths": paths, "more_paths": []})
        (tmp_path / "apps" / f"{name}.json").write_text(text)
    monkeypatch.setattr(backup_repository, "FOLDER", tmp_path)
    monkeypatch.setattr(backup_repository, "setup", lambda: {"database": database})
    monkeypatch.setattr(backup_repository, "check_place", lambda setup: None)
    monkeypatch.setattr(backup_drill, "alone", lambda name: contextlib.nullcontext())
    monkeypatch.setattr(backup_drill, "database", lambda setup: {"said": "database"})
    monkeypatch.setattr(backup_drill, "sample", lambda setup, name: {"said": name})
    said, parts = backup_drill.run()
    assert list(parts) == looked
    assert said == ("; ".join(looked) or "there is nothing to restore")
