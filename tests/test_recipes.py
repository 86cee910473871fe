"""Recipes of docs/how-to/an-app-of-your-own.md, as they are written there, with a real gunicorn."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible_collections.carafe.stack.plugins.module_utils.unix_http import UnixConnection
from conftest import ROOT, Role, load_yaml

NGINX = Role("nginx")
TEXT = (ROOT / "docs/how-to/an-app-of-your-own.md").read_text()
# It tells where it is, and keeps sessions in its memory, as Socket.IO's long polling does.
APP = """
import secrets, time
sessions = set()
def app(environ, start):
    time.sleep(0.02)
    path, known = environ["PATH_INFO"], environ["QUERY_STRING"].removeprefix("sid=")
    if path == "/socket.io/" and not known:
        sessions.add(text := secrets.token_hex(8))
    elif path == "/socket.io/":
        text = "known" if known in sessions else "unknown"
    else:
        text = f"{environ['SCRIPT_NAME']}|{path}"
    start("200 OK", [("Content-Length", str(len(text)))])
    return [text.encode()]
"""

# One that ProxyFix tells where it is, or gunicorn, and with a session.
FLASK = """
import os, time
from flask import Flask, redirect, session, url_for
from werkzeug.middleware.proxy_fix import ProxyFix
app = Flask(__name__)
app.config.from_prefixed_env()
app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=1, x_prefix=1)
@app.get("/page")
def page():
    session["seen"] = True
    static = url_for("static", filename="a")
    return " ".join([url_for("page"), url_for("page", _external=True), static])
@app.get("/away")
def away():
    return redirect(url_for("page"))
@app.get("/folder/")
def folder():
    return "folder"
@app.get("/export")
def export():
    time.sleep(7)
    return "exported"
"""


def recipe(name: str) -> dict[str, Any]:
    return yaml.safe_load(
        re.search(rf"<!-- variables: {name} -->\n```yaml\n(.*?)```", TEXT, re.S)[1]
    )


def visit(socket: Path, path: str, **headers: str) -> tuple[http.client.HTTPResponse, str]:
    connection = UnixConnection(socket, 60)
    connection.request("GET", path, headers={x.replace("_", "-"): y for x, y in headers.items()})
    answer = connection.getresponse()
    return answer, answer.read().decode()


def ask(socket: Path, path: str) -> tuple[int, str]:
    answer, text = visit(socket, path)
    return answer.status, text


def locations(written: dict[str, Any], **more: Any) -> dict[str, str]:
    """Return what nginx is told of each path of a recipe's site, and of all of it as ``""``."""
    default = [{"name": "shop", "server_names": ["shop.example.com"], "upstreams": ["unix:/a"]}]
    values = {"nginx_default_sites": default, **written, **more}
    values["__nginx_found"] = {"settings": NGINX.defaults, "ipv6": True, "http2_on": True}
    values["__nginx_site"] = NGINX.value("__nginx_sites", **values)[0]
    text = NGINX.render("etc/nginx/sites-enabled/site.conf.j2", **values)
    inner = re.compile(r"\n    location ([^\n]+) \{\n(.*?)\n    \}", re.S)
    return {"": inner.sub("", text), **dict(inner.findall(text))}


def listens(socket: Path) -> bool:
    """Tell whether connections are taken: for a moment, the socket is there and nobody listens."""
    connection = UnixConnection(socket, 10)
    try:
        connection.connect()
    except OSError:
        return False
    connection.close()
    return True


@contextmanager
def serving(folder: Path, *options: str, app: str = APP, **environment: str) -> Iterator[Path]:
    """Run gunicorn, until it answers; yield its socket."""
    (folder / "wsgi.py").write_text(app)
    socket = folder / "app.sock"
    words = [sys.executable, "-m", "gunicorn", "--bind", f"unix:{socket}", "--no-control-socket"]
    with subprocess.Popen(
        [*words, *options, "wsgi:app"], cwd=folder, env={**os.environ, **environment}
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while not listens(socket) and time.monotonic() < deadline:
                time.sleep(0.1)
            yield socket
        finally:
            process.terminate()


@pytest.mark.parametrize(
    ("path", "answer"),
    [("/shop/", (200, "/shop|/")), ("/shop/a/b", (200, "/shop|/a/b")), ("/shop", (200, "/shop|"))],
)
def test_an_app_below_a_path_is_told_so(tmp_path: Path, path: str, answer: tuple[int, str]) -> None:
    written = recipe("below a path")
    with serving(tmp_path, **written["app_environment"]) as socket:
        assert ask(socket, path) == answer
        assert ask(socket, written["app_health_path"]) == (200, "/shop|/health")


def flask_settings(written: dict[str, Any]) -> dict[str, str]:
    """Return the environment that the role app makes of app_config."""
    return {f"FLASK_{x}": json.dumps(y) for x, y in written.get("app_config", {}).items()}


def test_flask_below_a_path_makes_its_urls_redirects_and_cookies_for_it(tmp_path: Path) -> None:
    written = recipe("below a path")
    environment = written["app_environment"] | flask_settings(written)
    visitor = {"Host": "shop.example:8443", "X_Forwarded_Host": "shop.example:8443"}
    visitor |= {"X_Forwarded_Proto": "https", "X_Forwarded_For": "192.0.2.1"}
    with serving(tmp_path, app=FLASK, FLASK_SECRET_KEY="x" * 32, **environment) as socket:
        answer, text = visit(socket, "/shop/page", **visitor)
        assert text == "/shop/page https://shop.example:8443/shop/page /shop/static/a"
        assert "Path=/shop" in answer.headers["Set-Cookie"].split("; ")
        assert visit(socket, "/shop/away", **visitor)[0].headers["Location"] == "/shop/page"
        slash = visit(socket, "/shop/folder", **visitor)[0].headers["Location"]
        assert slash.removeprefix("https://shop.example:8443") == "/shop/folder/"


def test_a_slow_request_outlives_the_timeout_of_its_worker(tmp_path: Path) -> None:
    written = recipe("what takes long")
    assert written["gunicorn_graceful_timeout"] > 180
    # A worker that has only just begun is busy with importing, and a machine with other work.
    with serving(tmp_path, "--preload", "--threads", "2", "--timeout", "5", app=FLASK) as socket:
        assert ask(socket, "/export") == (200, "exported")
    told = locations(written)
    assert "proxy_read_timeout 200;" in told["/export"]
    assert "proxy_buffering on;" in told["/export"]
    for path, buffering in (("/events", "off"), ("/socket", "on")):
        assert "proxy_read_timeout 3600;" in told[path]
        assert "proxy_send_timeout 3600;" in told[path]
        assert f"proxy_buffering {buffering};" in told[path]
    assert "proxy_read_timeout 60;" in told["/"]


def test_what_a_path_takes_is_what_the_app_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    written = recipe("larger uploads")
    told = locations(written)
    assert "client_max_body_size 2m;" in told[""]
    assert "client_max_body_size 500m;" in told["/upload"]
    wiring = load_yaml(ROOT / "playbooks/group_vars/all/nginx.yml")
    limit = Role("app").value("stack_max_body_size", **wiring, app_name="shop", **written)
    line = re.search(r"^app\.config\[\"MAX_CONTENT_LENGTH\"\] = .*$", TEXT, re.M)[0]
    for environment, expected in ({"APP_MAX_BODY_SIZE": str(limit)}, 500 * 2**20), ({}, 10 * 2**20):
        monkeypatch.setattr(os, "environ", environment)
        app = SimpleNamespace(config={})
        exec(line, {"app": app, "os": os})
        assert expected == app.config["MAX_CONTENT_LENGTH"]


def test_a_password_is_asked_of_all_but_a_monitor() -> None:
    told = locations(recipe("a password"))
    assert "auth_basic_user_file sites-enabled/shop.htpasswd;" in told[""]
    assert "auth_basic off;" in told["= /healthz"]
    assert "/.maintenance" not in told["= /healthz"]
    assert "auth_basic" not in told["/"]
    assert "/.maintenance" in told["/"]


def polls(socket: Path) -> list[str]:
    """Begin sessions, and go on with each by another connection."""
    with ThreadPoolExecutor(8) as visitors:
        begun = list(visitors.map(lambda _: ask(socket, "/socket.io/")[1], range(40)))
        paths = [f"/socket.io/?sid={sid}" for sid in begun]
        return [text for _, text in visitors.map(lambda path: ask(socket, path), paths)]


def test_socket_io_meets_its_session_with_one_process_and_not_with_several(tmp_path: Path) -> None:
    written = recipe("socket.io")
    assert written["gunicorn_slots"] == 1
    count, threads = written["gunicorn_workers"], written["gunicorn_threads"]
    options = ["--threads", str(threads), "--workers"]
    with serving(tmp_path, *options, str(count)) as socket:
        assert polls(socket) == ["known"] * 40
    with serving(tmp_path, "--workers", "4") as socket:
        assert "unknown" in polls(socket)
