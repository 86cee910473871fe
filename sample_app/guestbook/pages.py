"""The front page: static HTML, which talks to the API from there."""

from pathlib import Path

from flask import Blueprint, Response, current_app, send_from_directory

from .assets import DIST

blueprint = Blueprint("pages", __name__)


@blueprint.get("/")
def index() -> Response:
    """Send the page with hashed references if this release has built it, else the plain one."""
    folder = Path(current_app.static_folder or "")
    built = folder / DIST
    response = send_from_directory(
        built if (built / "index.html").is_file() else folder, "index.html"
    )
    # It names this release's files: a browser may keep it but must ask whether it still holds.
    response.headers["Cache-Control"] = "no-cache"
    return response
