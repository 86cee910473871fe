"""The credentials of an index and of a git repository are in no command line, cache or package."""

from __future__ import annotations

import base64
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import wheels
from ansible_collections.carafe.stack.plugins.module_utils import venvs
from conftest import ROOT, load_module

UV = ROOT / ".venv/bin/uv"
INDEX = load_module(ROOT / "molecule/app/files/private-index.py", "private_index")
TOKEN = base64.b64encode(b"ann:hush-hush").decode()
# As docs/how-to/an-app-of-your-own.md has it.
GIT = {
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "http.{url}/.extraHeader",
    "GIT_CONFIG_VALUE_0": f"Authorization: Basic {TOKEN}",
}
PROJECT = """\
[project]
name = "lib"
version = "0.7"
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""
SPY = """\
#!/bin/sh
printf '%s ' "$@" >>{log}
exec {git} "$@"
"""


@pytest.fixture
def serve() -> Iterator[Callable[[type], str]]:
    servers = []

    def run(handler: type) -> str:
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield run
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def install(tmp_path: Path) -> Callable[..., str]:
    """Install what is asked for as a build does; return the names of what is there then."""
    release, root = tmp_path / "release", tmp_path / "root"
    release.mkdir()
    (tmp_path / "none").mkdir()
    wheels.make(tmp_path / "public", "pip", "26")

    def run(text: str, **variables: str) -> str:
        (release / "requirements.txt").write_text(text)
        if root.exists():
            shutil.rmtree(root)
        wanted = {"version": "x", "path": str(root / "venv"), "requirements": "requirements.txt"}
        uv = venvs.uv(wanted, root)
        uv.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(UV, uv)
        keep = {x: y for x, y in os.environ.items() if not x.startswith(("PIP_", "UV_", "GIT_"))}
        told = {"UV_FIND_LINKS": str(tmp_path / "public"), "UV_NO_CONFIG": "1"}
        told |= {"UV_DEFAULT_INDEX": f"file://{tmp_path}/none"} | variables
        script = venvs.script(wanted | {"extra": [], "python": sys.executable}, root)
        done = subprocess.run(
            ["sh", "-euc", script.replace(" --compile-bytecode", "")],
            cwd=release,
            env=keep | told,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        (tmp_path / "output").write_text(done.stdout + done.stderr)
        found = (root / "venv").glob("lib/python*/site-packages/*.dist-info")
        return " ".join(sorted(x.name.removesuffix(".dist-info") for x in found))

    return run


def with_word(folder: Path, *words: str) -> list[str]:
    return [
        str(x)
        for x in folder.rglob("*")
        if x.is_file() and any(word.encode() in x.read_bytes() for word in words)
    ]


@pytest.mark.parametrize("way", ["in the environment", "in the requirements"])
def test_the_password_of_an_index_stays_with_the_build(
    tmp_path: Path, serve: Callable, install: Callable, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(INDEX, "SEEN", tmp_path / "seen")
    url = serve(INDEX.Index).replace("//", "//ann:{}@") + "/simple"
    if way == "in the environment":
        there = install("house==2.1\n", UV_DEFAULT_INDEX=url.format(INDEX.PASSWORD))
    else:
        text = f"--extra-index-url {url.format('${HOUSE_PASSWORD}')}\nhouse==2.1\n"
        there = install(text, HOUSE_PASSWORD=INDEX.PASSWORD)
    assert there == "house-2.1 pip-26"
    assert with_word(tmp_path, INDEX.PASSWORD) == []
    assert not (tmp_path / "seen").exists()


def test_the_password_of_a_repository_stays_with_the_build(
    tmp_path: Path, serve: Callable, install: Callable
) -> None:
    work, bare = tmp_path / "work", tmp_path / "web/lib.git"
    shutil.copytree(ROOT / "molecule/app/files/locked/lib", work)
    run = ["git", "-c", "user.name=a", "-c", "user.email=a@a.test", "-C", str(work)]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"], ["tag", "v1"]):
        subprocess.run([*run, *words], check=True)
    subprocess.run(["git", "clone", "-q", "--bare", str(work), str(bare)], check=True)
    subprocess.run(["git", "-C", str(bare), "update-server-info"], check=True)

    class Repository(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(bare.parent))

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if self.headers.get("Authorization") == f"Basic {TOKEN}":
                super().do_GET()
            else:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="lib"')
                self.end_headers()

    url, spy = serve(Repository), tmp_path / "bin/git"
    spy.parent.mkdir()
    spy.write_text(SPY.format(log=tmp_path / "words", git=shutil.which("git")))
    spy.chmod(0o755)
    path = f"{spy.parent}{os.pathsep}{os.environ['PATH']}"
    text = f"lib @ git+{url}/lib.git@v1\n"
    with pytest.raises(AssertionError, match=r"401|Authentication|could not read"):
        install(text, PATH=path, GIT_TERMINAL_PROMPT="0")
    told = {x: y.format(url=url) for x, y in GIT.items()}
    assert install(text, PATH=path, **told) == "lib-0.7 pip-26"
    assert "fetch" in (tmp_path / "words").read_text()
    assert with_word(tmp_path, TOKEN, "hush-hush") == []
