"""The same code makes the same archive; other code, or other dependencies, another."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.carafe.stack.plugins.modules import pack as module
from ansible_collections.carafe.stack.plugins.plugin_utils import pack as packing
from ansible_collections.carafe.stack.plugins.plugin_utils.secret_files import (
    folder_looks_secret as secret_folder,
)

APP = {
    **{"source": "local", "path": None, "repository": None, "package": None, "version": None},
    **{"subdirectory": ".", "exclude": [], "include": [], "files": [], "requirements": ""},
    **{"installer": "uv", "override": []},
}


def pack(folder: Path | None, cache: Path | None = None, **more: Any) -> dict[str, str]:
    app = APP | {"path": folder and str(folder)} | more
    return packing.pack(app, cache or (folder or Path()) / "../cache")


def refusal(folder: Path | None, **more: Any) -> str:
    with pytest.raises(packing.Failure) as caught:
        pack(folder, **more)
    return str(caught.value)


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


@pytest.mark.parametrize("pattern", ["e2e", "*.pyc", "shop/static", "node_modules"])
def test_what_is_excluded_does_not_travel(app: Path, pattern: str) -> None:
    for path in ("e2e/config", "shop/x.pyc", "shop/static/y.css", "node_modules/a/b.js"):
        (app / path).parent.mkdir(parents=True, exist_ok=True)
        (app / path).touch()
    travelled = names(pack(app, exclude=[pattern]))
    left_out = {x for x in names(pack(app)) if x not in travelled}
    assert left_out
    assert all(pattern.strip("*") in x for x in left_out)


PEM = "-----BEGIN {}PRIVATE KEY-----\nMC4CAQ\n-----END {}PRIVATE KEY-----\n"
SECRETS = {
    ".env": "",
    ".env.production": "A=1",
    ".env.local.bak": "A=1",
    ".env-prod": "A=1",
    ".envrc": "export A=1",
    "config/prod.env": "A=1",
    "deploy.pem": "Bag Attributes\n" + PEM.format("", ""),
    "tls/site.key": PEM.format("RSA ", "RSA "),
    "tls/both.crt": "-----BEGIN CERTIFICATE-----\n\n" + PEM.format("EC ", "EC "),
    "deploy_key": PEM.format("OPENSSH ", "OPENSSH "),
    "a.key.old": PEM.format("ENCRYPTED ", "ENCRYPTED "),
    "backup.gpg.asc": "-----BEGIN PGP PRIVATE KEY BLOCK-----\n",
    "k8s/tls.yaml": f"data:\n  tls.key: |\n{PEM.format('', '')}",
    "id_rsa": "x",
    "keys/id_ed25519": "x",
    "id_ed25519~": "x",
    "putty.ppk": "x",
    "age.txt": "# created\nAGE-SECRET-KEY-1QQ",
    ".netrc": "machine x",
    ".pgpass": "x",
    ".pypirc": "[pypi]",
    ".npmrc": "//registry.test/:_authToken=hush",
    ".yarnrc.yml": "npmAuthToken: hush",
    "pip.conf": "[global]\nindex-url = https://ann:hush@index.test/simple",
    ".docker/config.json": "{}",
    ".aws/credentials": "[default]",
    "ops/.aws/config": "[default]",
    ".ssh/known": "x",
    "boto.ini": f"[x]\naws_secret_access_key = {'a1b2' * 10}",
    "passwords.kdbx": "x",
    "store.p12": "x",
    "firebase.json": '{"type": "service_account", "private_key": "-----BEGIN PRIVATE KEY-----"}',
    "client.json": '{"installed": {"client_secret": "GOCSPX-0123456789abcdef"}}',
    ".vault-password": "x",
    "vault_pass.txt": "x",
    "group_vars/prod/vault.yml": "$ANSIBLE_VAULT;1.1;AES256\n61",
    "infra/terraform.tfstate": "{}",
    "secrets.yml": "a: b",
    ".svn/entries": "x",
    "vendor/.hg/store": "x",
    ".git/config": "[remote]",
    "worktree/.git": "gitdir: /home/ann/shop/.git",
    "CVS/Root": "x",
}
NO_SECRETS = {
    ".env.example": "A=",
    ".env.sample": "A=",
    "prod.env.template": "A=",
    "example.env": "A=",
    ".flaskenv": "FLASK_APP=shop",
    "environment.py": "x",
    "tls/ca.pem": "-----BEGIN CERTIFICATE-----\n",
    "public.pem": "-----BEGIN PUBLIC KEY-----\n",
    "id_rsa.pub": "ssh-rsa AAAA",
    "tests/test_keys.py": f'KEY = """{PEM.format("", "")}"""',
    "docs/keys.md": f"# Keys\n\n{PEM.format('', '')}",
    ".npmrc": "//registry.test/:_authToken=${NPM_TOKEN}\nfund=false",
    "pip.conf": "[global]\nindex-url = https://${USER}:${TOKEN}@index.test/simple",
    "translations/en.json": '{"client_secret": "The secret of a client", "private_key": "Key"}',
    "settings.py": "aws_secret_access_key = os.environ['AWS_SECRET_ACCESS_KEY']",
    "secrets.py": "import secrets",
    "shop/vault.py": "x",
    "shop/netrc.py": "x",
    "environments/README": "x",
}


def put(folder: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


@pytest.mark.parametrize("path", SECRETS)
def test_what_looks_like_a_secret_stays_at_home_and_the_run_says_so(app: Path, path: str) -> None:
    before = pack(app)
    assert before["warnings"] == []
    put(app, {path: SECRETS[path]})
    after = pack(app)
    assert {**after, "warnings": []} == before
    (warning,) = after["warnings"]
    assert any(part in warning for part in Path(path).parts)
    assert "app_include" in warning
    # Named, it travels: as a whole folder, too.
    named = next((x for x in Path(path).parts if secret_folder(x)), Path(path).name)
    assert path in names(pack(app, include=[named, Path(path).name]))
    assert pack(app, exclude=[named])["warnings"] == []


def test_what_looks_like_none_travels(app: Path) -> None:
    put(app, NO_SECRETS)
    packed = pack(app)
    assert names(packed) >= NO_SECRETS.keys()
    assert packed["warnings"] == []


def test_a_warning_names_many_files_in_a_line(app: Path) -> None:
    put(app, {f"{number:02}\x1b[2J\n.env": "" for number in range(30)})
    (warning,) = pack(app)["warnings"]
    assert warning.isprintable()
    assert "and 20 more" in warning


LINKS = ["/etc/passwd", "../secret", "shop/../../secret", "/", "..", "shop/up/../secret"]


@pytest.mark.parametrize("target", LINKS)
@pytest.mark.parametrize("place", ["out", "shop/static/out"])
def test_a_link_that_leads_out_is_left_out_and_said(app: Path, target: str, place: str) -> None:
    (app.parent / "secret").write_text("hush")
    if "up" in target:
        (app / "shop/up").symlink_to("..")
    before = pack(app)["revision"]
    depth = "" if target.startswith("/") else "../" * place.count("/")
    (app / place).symlink_to(f"{depth}{target}")
    packed = pack(app)
    assert packed["revision"] == before
    assert f"{place} -> " in packed["warnings"][0]


def test_a_link_to_the_inside_travels(app: Path) -> None:
    (app / "shop/up").symlink_to("..")
    (app / "shop/static/main.css").symlink_to("../../wsgi.py")
    (app / "later").symlink_to("made/by/the/build")
    packed = pack(app)
    assert names(packed) >= {"shop/up", "shop/static/main.css", "later"}
    assert packed["warnings"] == []


def test_what_is_no_file_is_left_out_and_nothing_waits_for_it(app: Path) -> None:
    before = pack(app)["revision"]
    os.mkfifo(app / "pipe")
    with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(app):
        listener.bind("sock")
        packed = pack(app)
    assert packed["revision"] == before
    assert "no files: pipe, sock" in packed["warnings"][0]


def test_the_cache_is_its_users_alone_also_where_it_is_there(app: Path, tmp_path: Path) -> None:
    cache = tmp_path / "caches/carafe"
    packed = pack(app, cache)
    assert cache.stat().st_mode & 0o777 == 0o700
    assert Path(packed["archive"]).stat().st_mode & 0o077 == 0
    cache.chmod(0o755)
    pack(app, cache)
    assert cache.stat().st_mode & 0o777 == 0o700


def test_dependencies_are_those_of_the_requirements_file_and_what_it_includes(app: Path) -> None:
    (app / "requirements.txt").write_text("-r base/all.txt\n")
    (app / "base").mkdir()
    (app / "base/all.txt").write_text("--constraint pins.txt\nflask\n")
    (app / "base/pins.txt").write_text("flask==3.1.0\n")
    before = pack(app)
    (app / "base/pins.txt").write_text("flask==3.1.1\n")
    assert pack(app)["dependencies"] != before["dependencies"]
    assert before["requirements"] == "requirements.txt"


def test_a_password_among_the_requirements_is_said_and_not_shown(app: Path) -> None:
    (app / "requirements.txt").write_text("-r base.txt\nflask\n")
    (app / "base.txt").write_text("--index-url https://ann:hush@index.test/simple\n")
    (warning,) = pack(app)["warnings"]
    assert "requirements.txt has a password in its URL" in warning
    assert "hush" not in warning
    (app / "base.txt").write_text("--index-url https://ann:${PASSWORD}@index.test/simple\n")
    assert pack(app)["warnings"] == []


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


@pytest.mark.parametrize(
    ("package", "version", "wanted"),
    [
        ("isso", "0.13.0", "isso==0.13.0"),
        ("isso==0.13.0", None, "isso==0.13.0"),
        ("isso[x]~=0.13", None, "isso[x]~=0.13"),
        ("isso @ https://example.com/isso.whl", None, "isso @ https://example.com/isso.whl"),
    ],
)
def test_a_package_needs_no_folder(
    tmp_path: Path, package: str, version: str | None, wanted: str
) -> None:
    packed = pack(None, tmp_path, source="package", package=package, version=version)
    with tarfile.open(packed["archive"]) as tar:
        assert tar.extractfile(packed["requirements"]).read().decode() == f"{wanted}\n"


def test_a_package_without_a_version_is_refused(tmp_path: Path) -> None:
    assert "app_package: isso==1.2.3" in refusal(None, source="package", package="isso")


def test_an_unknown_folder_names_the_variable(app: Path, tmp_path: Path) -> None:
    assert "Correct app_path" in refusal(tmp_path / "nowhere")
    assert "Set app_path" in refusal(None)
    assert "Correct app_subdirectory" in refusal(app, subdirectory="nowhere")


PROJECT = '[project]\nname = "shop"\nversion = "1"\ndependencies = ["flask"]\n'
UV_LOCK = """\
version = 1
[[package]]
name = "shop"
source = { virtual = "." }
[[package]]
name = "flask"
version = "3.1.0"
source = { registry = "https://own.test/simple" }
"""
POETRY_LOCK = '[[package]]\nname = "flask"\nversion = "3.1.0"\nfiles = []\n[metadata]\n'
PYLOCK = 'lock-version = "1.0"\n[[packages]]\nname = "flask"\nversion = "3.1.0"\n'
PIPFILE = {"default": {"flask": {"version": "==3.1.0", "hashes": ["sha256:aa", "sha256:bb"]}}}
LOCKS = {
    "pylock.toml": PYLOCK,
    "uv.lock": UV_LOCK,
    "poetry.lock": POETRY_LOCK,
    "Pipfile.lock": json.dumps(PIPFILE),
}


def test_of_several_files_a_lock_is_installed_and_the_order_is_said(app: Path) -> None:
    (app / "pyproject.toml").write_text(PROJECT)
    there = ["requirements.txt"]
    for name in reversed(LOCKS):
        (app / name).write_text(LOCKS[name])
        there.insert(0, name)
        packed = pack(app)
        assert packed["lock"] == ("" if name == "Pipfile.lock" else name)
        (said,) = packed["warnings"]
        assert said.startswith(f"Of {', '.join(there)} in the app's folder, the first")
        assert "app_requirements" in said
    chosen = pack(app, requirements="requirements.txt")
    assert (chosen["lock"], chosen["warnings"]) == ("", [])


@pytest.mark.parametrize("name", LOCKS)
def test_another_lock_is_another_virtual_environment(app: Path, name: str) -> None:
    (app / "pyproject.toml").write_text(PROJECT)
    (app / name).write_text(LOCKS[name])
    before = pack(app)["dependencies"]
    (app / name).write_text(LOCKS[name].replace("3.1.0", "3.1.1"))
    assert pack(app)["dependencies"] != before


@pytest.mark.parametrize(
    ("by", "version"), [("2.2.1", "2.2.1"), ("1.8.5", ""), ("2.6.0.dev0", ""), ("2 ; x", "")]
)
def test_which_poetry_has_made_a_lock(app: Path, by: str, version: str) -> None:
    (app / "pyproject.toml").write_text(PROJECT)
    head = f"# This file is automatically @generated by Poetry {by} and should not be changed\n"
    (app / "poetry.lock").write_text(head + POETRY_LOCK)
    assert pack(app, requirements="poetry.lock")["lock_version"] == version


@pytest.mark.parametrize("name", ["uv.lock", "poetry.lock", "deploy/uv.lock"])
def test_a_lock_without_its_project_is_refused(app: Path, name: str) -> None:
    (app / "deploy").mkdir()
    (app / name).write_text(LOCKS[Path(name).name])
    beside = "deploy/pyproject.toml" if "/" in name else "pyproject.toml"
    assert f"{name} is in the app's folder without {beside}" in refusal(app, requirements=name)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("uv.lock", b"[a", "is not TOML"),
        ("poetry.lock", b"\xff", "is not UTF-8"),
        ("pylock.toml", b"{", "is not TOML"),
        ("Pipfile.lock", b"{", "is not JSON"),
        ("Pipfile.lock", b"[]", "is no lock"),
        ("Pipfile.lock", b"{}", "no section default"),
    ],
)
def test_a_lock_that_is_none_is_refused(app: Path, name: str, text: bytes, told: str) -> None:
    (app / "pyproject.toml").write_text(PROJECT)
    (app / name).write_bytes(text)
    said = refusal(app)
    assert name in said
    assert told in said


@pytest.mark.parametrize("name", ["pylock.toml", "pylock.prod.toml", "uv.lock", "poetry.lock"])
def test_pip_reads_no_lock(app: Path, name: str) -> None:
    (app / "pyproject.toml").write_text(PROJECT)
    (app / name).write_text(LOCKS.get(name, PYLOCK))
    assert f"pip cannot install from {name}" in refusal(app, requirements=name, installer="pip")
    assert pack(app, requirements=name)["lock"] == name.replace(".prod", "")


@pytest.mark.parametrize("name", [None, *LOCKS])
def test_a_pack_returns_what_is_documented(app: Path, name: str | None) -> None:
    (app / "pyproject.toml").write_text(PROJECT)
    if name:
        (app / name).write_text(LOCKS[name])
    documented = yaml.safe_load(module.RETURN)
    # Which Ansible shows, and returns of any module.
    assert pack(app).keys() - {"warnings"} == documented.keys()


def test_a_lock_of_pipenv_s_is_a_requirements_file_for_uv_and_pip(app: Path) -> None:
    lock = {
        "_meta": {
            "sources": [{"name": "pypi", "url": "x"}, {"name": "own", "url": "https://own.test/x"}]
        },
        "default": {
            "flask": {"version": "==3.1.0", "index": "pypi"},
            "psycopg": {
                "version": "==3.2",
                "extras": ["binary", "pool"],
                "markers": "python_version >= '3.8'",
            },
            "own": {"git": "https://x.test/own.git", "ref": "abc", "subdirectory": "a"},
            "here": {"path": "./here"},
        },
        "develop": {"pytest": {"version": "==8"}},
    }
    (app / "Pipfile.lock").write_text(json.dumps(lock))
    packed = pack(app, requirements="Pipfile.lock", installer="pip")
    with tarfile.open(packed["archive"]) as tar:
        lines = tar.extractfile(packed["requirements"]).read().decode().splitlines()
    assert lines == [
        "--extra-index-url https://own.test/x",
        "flask==3.1.0",
        "./here",
        "own @ git+https://x.test/own.git@abc#subdirectory=a",
        "psycopg[binary,pool]==3.2 ; python_version >= '3.8'",
    ]
    lock["default"]["flask"] = {}
    (app / "Pipfile.lock").write_text(json.dumps(lock))
    assert "no version of flask" in refusal(app, requirements="Pipfile.lock")


@pytest.mark.parametrize(
    ("markers", "fine"),
    [
        (None, False),
        ("sys_platform == 'linux'", False),
        ("platform_system == 'Linux' and python_version >= '3.9'", False),
        ("python_version < '3.12'", False),
        ("no marker", False),
        ("sys_platform == 'win32'", True),
        ("os_name == 'nt' and python_version >= '3.9'", True),
        ("platform_system == 'Darwin'", True),
    ],
)
def test_a_lock_of_pipenv_s_has_a_version_of_all_that_a_server_installs(
    app: Path, markers: str | None, fine: bool
) -> None:
    entry = {"version": "*"} | ({"markers": markers} if markers else {})
    (app / "Pipfile.lock").write_text(json.dumps({"default": {"here": entry}}))
    if fine:
        assert pack(app, requirements="Pipfile.lock")["requirements"]
        return
    said = refusal(app, requirements="Pipfile.lock")
    assert "has no version of here" in said
    assert "pipenv lock" in said


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        ({"path": "./here", "editable": True}, "./here"),
        (
            {"version": "*", "markers": "sys_platform == 'win32'"},
            "here ; sys_platform == 'win32'",
        ),
    ],
)
def test_what_pipenv_gives_no_hash_is_for_uv_alone(
    app: Path, entry: dict[str, object], line: str
) -> None:
    (app / "Pipfile.lock").write_text(json.dumps({"default": {**PIPFILE["default"]}}))
    assert pack(app, requirements="Pipfile.lock")["hashed"]
    (app / "Pipfile.lock").write_text(
        json.dumps({"default": {**PIPFILE["default"], "here": entry}})
    )
    assert not pack(app, requirements="Pipfile.lock")["hashed"]
    said = refusal(app, requirements="Pipfile.lock", installer="pip")
    assert f"Pipfile.lock, where {line} has no hash" in said
    # And where nothing has one, pip has no objection.
    (app / "Pipfile.lock").write_text(json.dumps({"default": {"here": entry}}))
    assert not pack(app, requirements="Pipfile.lock", installer="pip")["hashed"]


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("uv.lock", '[[package]]\nname = "own"\nsource = { git = "https://x.test/own?rev=a#b" }\n'),
        ("uv.lock", '[[package]]\nname = "own"\nsource = { directory = "own" }\n'),
        ("uv.lock", '[[package]]\nname = "own"\nsource = { editable = "own" }\n'),
        ("poetry.lock", '[[package]]\nname = "own"\n[package.source]\ntype = "git"\n'),
        ("pylock.toml", '[[packages]]\nname = "own"\nvcs = { type = "git" }\n'),
    ],
)
def test_what_a_lock_has_that_is_built(app: Path, name: str, entry: str) -> None:
    (app / "pyproject.toml").write_text(PROJECT)
    (app / name).write_text(LOCKS[name])
    assert pack(app, requirements=name)["built"] == ""
    (app / name).write_text(LOCKS[name] + entry)
    assert pack(app, requirements=name)["built"] == "own"


def test_a_missing_requirements_file_names_the_variable(app: Path) -> None:
    (app / "requirements.txt").unlink()
    assert "app_requirements" in refusal(app)
    assert "req.txt" in refusal(app, requirements="req.txt")
    (app / "Pipfile").touch()
    assert "Run: pipenv lock" in refusal(app)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[project]\nname = "shop"\n', "no dependencies in [project]"),
        ('[tool.poetry]\nname = "shop"\n', "no dependencies in [project]"),
        ('[tool.poetry.dependencies]\nflask = "*"\n', "Run: poetry lock"),
        ("[project", "is not TOML"),
        (b"# \xff", "is not UTF-8"),
    ],
)
def test_a_pyproject_that_installs_nothing_is_refused(
    app: Path, text: str | bytes, told: str
) -> None:
    (app / "requirements.txt").unlink()
    (app / "pyproject.toml").write_bytes(text.encode() if isinstance(text, str) else text)
    assert told in refusal(app)


def test_nothing_half_written_is_left_in_the_cache(app: Path, tmp_path: Path) -> None:
    packed = pack(app)
    assert {x.name for x in (tmp_path / "cache/archives").iterdir()} == {
        Path(packed["archive"]).name,
        f"{packed['code']}.json",
    }


def test_what_no_run_asks_for_leaves_the_cache(app: Path, tmp_path: Path) -> None:
    old = Path(pack(app)["archive"])
    os.utime(old, (0, time.time() - packing.KEPT - 60))
    (app / "wsgi.py").write_text("app = 1\n")
    pack(app)
    assert not old.exists()


class Repository:
    """A repository with a tag, a branch and a submodule."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        self.git("init", "--quiet", "--initial-branch=trunk")
        self.commit("one")
        self.git("tag", "v1")
        self.commit("two")

    @property
    def url(self) -> str:
        return f"file://{self.folder}"

    def git(self, *words: str) -> str:
        mine = ("-c", "user.name=x", "-c", "user.email=x@example.com")
        allowed = ("-c", "protocol.file.allow=always")
        words = ("git", *mine, *allowed, "-C", str(self.folder), *words)
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, text: str) -> str:
        (self.folder / "requirements.txt").write_text("flask\n")
        (self.folder / "wsgi.py").write_text(text)
        self.git("add", ".")
        self.git("commit", "--quiet", "--message", text)
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


def code(repository: Repository, cache: Path, version: str | None = None) -> str:
    """Return what the packed wsgi.py holds."""
    packed = pack(
        None, cache, source="git", repository=repository.url, version=version, exclude=[".git"]
    )
    with tarfile.open(packed["archive"]) as tar:
        assert not [name for name in tar.getnames() if name.startswith(".git/")]
        return tar.extractfile("wsgi.py").read().decode()


@pytest.fixture(autouse=True)
def git_takes_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Git refuses submodules that are folders of the same machine."""
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "protocol.file.allow")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "always")


def test_a_version_is_a_branch_a_tag_a_commit_or_the_default(
    repository: Repository, tmp_path: Path
) -> None:
    cache, first = tmp_path / "cache", repository.git("rev-parse", "v1")
    assert code(repository, cache) == "two"
    assert code(repository, cache, "trunk") == "two"
    assert code(repository, cache, "v1") == "one"
    assert code(repository, cache, first[:8]) == "one"
    repository.commit("three")
    assert code(repository, cache) == "three"
    # What was there goes, too, and a branch may be forced to another history.
    repository.git("reset", "--quiet", "--hard", "v1")
    assert code(repository, cache) == "one"


def test_a_commit_that_no_branch_leads_to_is_found(repository: Repository, tmp_path: Path) -> None:
    lost = repository.commit("lost")
    repository.git("reset", "--quiet", "--hard", "HEAD^")
    repository.git("config", "uploadpack.allowAnySHA1InWant", "true")
    assert code(repository, tmp_path / "cache", lost) == "lost"


def test_submodules_come_along(repository: Repository, tmp_path: Path) -> None:
    other = Repository(tmp_path / "other")
    repository.git("submodule", "--quiet", "add", "../other", "vendor")
    repository.commit("with it")
    packed = pack(None, tmp_path / "cache", source="git", repository=repository.url)
    assert other.folder.exists()
    assert "vendor/wsgi.py" in names(packed)


def test_a_version_that_is_not_there_names_the_variable(
    repository: Repository, tmp_path: Path
) -> None:
    told = {"source": "git", "repository": repository.url, "cache": tmp_path / "cache"}
    assert "Did you mean v1?" in refusal(None, version="v11", **told)
    told["repository"] = "https://127.0.0.1:9/x.git"
    assert "git could not get https://127.0.0.1:9/x.git" in refusal(None, **told)


@pytest.mark.parametrize(
    "url",
    [
        "https://me:hush@127.0.0.1:9/x",
        "https://127.0.0.1:9/x?token=hush",
        "ssh://a:hush@127.0.0.1/",
    ],
)
def test_a_url_with_a_password_is_not_given_to_git(tmp_path: Path, url: str) -> None:
    said = refusal(None, source="git", repository=url, cache=tmp_path / "cache")
    assert said.startswith("app_repository has a ")
    assert "hush" not in said
    assert not (tmp_path / "cache/git").exists()


def test_what_is_committed_comes_along_and_the_run_says_so(
    repository: Repository, tmp_path: Path
) -> None:
    put(repository.folder, {"tests/key.pem": PEM.format("", ""), ".env": "A=1"})
    (repository.folder / "logs").symlink_to("/var/log")
    repository.commit("with keys")
    packed = pack(None, tmp_path / "cache", source="git", repository=repository.url)
    assert names(packed) == {"tests/key.pem", ".env", "requirements.txt", "wsgi.py"}
    committed, outside = packed["warnings"]
    assert "app_repository: committed" in committed
    assert ".env (settings with secrets), tests/key.pem (a private key)" in committed
    assert "logs -> /var/log" in outside
    told = {"exclude": ["logs"], "include": ["*.pem", ".env"]}
    again = pack(None, tmp_path / "cache", source="git", repository=repository.url, **told)
    assert again["warnings"] == []


def test_a_repository_has_one_place_in_the_cache_and_shares_it_with_none(
    repository: Repository, tmp_path: Path
) -> None:
    cache, other = tmp_path / "cache", Repository(tmp_path / "other")
    for url in (repository.url, other.url, repository.url):
        pack(None, cache, source="git", repository=url)
    mirrors = [x for x in (cache / "git").iterdir() if x.is_dir()]
    assert len(mirrors) == 2
    assert all(x.lstat().st_mode & 0o077 == 0 for x in (cache, cache / "git"))


def test_a_cache_that_is_half_there_is_made_anew(repository: Repository, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    code(repository, cache)
    (mirror,) = (x for x in (cache / "git").iterdir() if x.is_dir())
    (mirror / "HEAD").unlink()
    assert code(repository, cache) == "two"


def test_two_runs_at_once_pack_what_each_wants(repository: Repository, tmp_path: Path) -> None:
    """Both share what was fetched; each has files of its own."""
    cache, found = tmp_path / "cache", []
    wanted = {"v1": "one", "trunk": "two"}

    def run(version: str) -> None:
        for _ in range(5):
            found.append((version, code(repository, cache, version)))

    runs = [threading.Thread(target=run, args=[version]) for version in wanted]
    for run_ in runs:
        run_.start()
    for run_ in runs:
        run_.join()
    assert len(found) == 10
    assert set(found) == set(wanted.items())


@pytest.mark.parametrize(
    "line",
    [
        *("./house", "../house", "/opt/house.tar.gz", ".", "-e .", "-e ./house", "--editable ."),
        *("git+https://git.test/house", "house @ git+ssh://git@git.test/house"),
        *("https://index.test/house-1.tar.gz", "house@file:///opt/house", "file:///opt/house"),
        *("house @ https://index.test/house-1.zip#sha256=00", "house[more] @ ./house"),
        *("house/", "sub/house.zip", "house.tar.gz", "./whl", "-e ./house.whl/source"),
    ],
)
def test_what_pip_builds_although_told_of_wheels_is_seen(line: str) -> None:
    assert packing.built_anyway(f"flask==3 # see https://flask.test\n{line}\n") == line


@pytest.mark.parametrize(
    "line",
    [
        *("flask==3.1", "flask>=3,<4 ; python_version>'3'", "# ./house", "flask # see https://x"),
        *("--index-url https://index.test/simple", "-i https://index.test", "-r other.txt", ""),
        *("https://index.test/house-1-py3-none-any.whl", "./house-1-py3-none-any.whl"),
        "house @ https://index.test/house-1-py3-none-any.whl#sha256=00",
        "    --hash=sha256:00",
    ],
)
def test_what_comes_as_a_wheel_is_not(line: str) -> None:
    assert packing.built_anyway(f"{line}\n") == ""


@pytest.mark.parametrize(
    ("include", "hashed"), [("", False), ("-r sub/locked.txt", True), ("-rsub/locked.txt", True)]
)
def test_a_hash_in_an_included_file_is_seen(app: Path, include: str, hashed: bool) -> None:
    (app / "sub").mkdir()
    # It includes itself, too.
    (app / "sub/locked.txt").write_text("-r locked.txt\nclick==8 --hash=sha256:00\n")
    (app / "requirements.txt").write_text(f"flask\n{include}\n")
    assert pack(app)["hashed"] is hashed


# What is packed for a server that joins.


def pack_anew(folder: Path | None, first: dict[str, str], cache: Path, **more: Any) -> Any:
    app = APP | {"path": folder and str(folder)} | more
    app["serving"] = {"label": first["label"], "code": first["code"]}
    return packing.pack_anew(app, cache)


def test_what_serves_is_packed_whatever_the_folder_has_by_now(app: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = pack(app, cache)
    (app / "wsgi.py").write_text("app = 1\n")
    assert pack(app, cache)["code"] != first["code"]
    first.pop("warnings")
    assert pack_anew(app, first, cache) == first


@pytest.mark.parametrize("more", [{"requirements": "other.txt"}, {"override": ["flask==3.1.1"]}])
def test_what_is_installed_belongs_to_it(app: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    (app / "other.txt").write_text("flask==3.0.0\n")
    cache = tmp_path / "cache"
    first, other = pack(app, cache), pack(app, cache, **more)
    assert first["code"] != other["code"]
    found = pack_anew(app, first, cache, **more)
    assert found["dependencies"] == first["dependencies"]


def test_without_the_cache_the_folder_is_taken_as_long_as_it_is_as_it_was(
    app: Path, tmp_path: Path
) -> None:
    first = pack(app, tmp_path / "cache")
    for noted in (first["code"], ""):
        found = pack_anew(app, first | {"code": noted}, tmp_path / "another")
        assert found["code"] == first["code"]
    (app / "wsgi.py").write_text("app = 1\n")
    with pytest.raises(packing.Failure) as caught:
        pack_anew(app, first, tmp_path / "third")
    said = str(caught.value)
    assert f"Servers join and leave with {first['label']}, which serves, and that cannot" in said
    assert "what app_path says by now is " in said
    assert said.endswith("on all of them: -e app_path=FOLDER.")


def test_of_git_the_commit_that_serves_is_packed(repository: Repository, tmp_path: Path) -> None:
    git = {"source": "git", "repository": repository.url, "exclude": [".git"]}
    first = pack(None, tmp_path / "cache", **git)
    repository.commit("three")
    for version in (None, "trunk"):
        found = pack_anew(None, first, tmp_path / "another", **git, version=version)
        assert {k: found[k] for k in ("code", "label")} == {k: first[k] for k in ("code", "label")}
    repository.git("reset", "--quiet", "--hard", "v1")
    repository.git("reflog", "expire", "--expire=now", "--all")
    repository.git("gc", "--quiet", "--prune=now")
    with pytest.raises(packing.Failure) as caught:
        pack_anew(None, first, tmp_path / "third", **git)
    assert "has no branch, tag or commit of that name" in str(caught.value)
    assert str(caught.value).endswith("on all of them: -e app_version=BRANCH.")
