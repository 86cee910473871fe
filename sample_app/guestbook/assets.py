"""Static files with a hash of their content in the name, so that browsers keep them for good.

`flask assets build` runs once per release. Without it the plain names are used.
"""

import hashlib
import json
import re
from pathlib import Path

import click
from flask import Flask, current_app, url_for
from flask.cli import AppGroup

DIST = "dist"
"""The folder, below the static one, that holds what `flask assets build` makes."""

MANIFEST = "manifest.json"
HASHED = {".css", ".js", ".svg", ".png", ".webp", ".ico", ".woff2"}
HASH_LENGTH = 12
"""Hexadecimal digits of SHA-256 in a name."""

commands = AppGroup("assets", help="Static files with content-hashed names.")


def init_app(app: Flask) -> None:
    """Add `asset_url` to templates and `flask assets` to the command line."""
    manifest = read_manifest(Path(app.static_folder or ""))
    app.jinja_env.globals["asset_url"] = lambda name: asset_url(name, manifest)
    app.cli.add_command(commands)


@commands.command("build")
def build_command() -> None:
    """Write the hashed copies, the front page that refers to them, and the manifest."""
    folder = Path(current_app.static_folder or "")
    written = build(folder)
    click.echo(f"{folder / DIST}: {len(written)} hashed files")


def asset_url(name: str, manifest: dict[str, str]) -> str:
    """Return the URL of a static file, hashed if this release has been built."""
    return url_for("static", filename=manifest.get(name, name))


def read_manifest(folder: Path) -> dict[str, str]:
    """Return plain names and their hashed ones, both below `folder`; empty before a build."""
    path = folder / DIST / MANIFEST
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def build(folder: Path) -> dict[str, str]:
    """Fill the dist folder below `folder` and return its manifest.

    The same files always give the same result, and what is not part of it is removed.
    """
    dist = folder / DIST
    contents: dict[str, bytes] = {}
    manifest: dict[str, str] = {}
    for source in sorted(path for path in folder.iterdir() if path.suffix in HASHED):
        data = source.read_bytes()
        digest = hashlib.sha256(data).hexdigest()[:HASH_LENGTH]
        name = f"{source.stem}.{digest}{source.suffix}"
        contents[name] = data
        manifest[source.name] = f"{DIST}/{name}"
    page = (folder / "index.html").read_text("utf-8")
    contents["index.html"] = rewrite(page, manifest).encode()
    contents[MANIFEST] = (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode()
    dist.mkdir(exist_ok=True)
    for name, data in contents.items():
        path = dist / name
        # An unchanged file keeps its time, and with it the ETag that browsers hold.
        if not path.is_file() or path.read_bytes() != data:
            path.write_bytes(data)
    for stale in set(dist.iterdir()) - {dist / name for name in contents}:
        stale.unlink()
    return manifest


def rewrite(page: str, manifest: dict[str, str]) -> str:
    """Point each `/static/name` in the page to its hashed copy.

    Raises:
        KeyError: the page refers to a static file that does not exist.

    """
    return re.sub(
        r'(?<=["\'])/static/([^"\'?#]+)', lambda match: f"/static/{manifest[match[1]]}", page
    )
