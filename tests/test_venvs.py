"""uv is told what pip is told, and pip is there where uv is of no use."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import venvs


@pytest.fixture(autouse=True)
def without_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(venvs, "OF_THE_SERVER", [])


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"PIP_INDEX_URL": "https://a/simple"}, {"UV_DEFAULT_INDEX": "https://a/simple"}),
        (
            {"PIP_EXTRA_INDEX_URL": "https://a  https://b"},
            {"UV_INDEX": "https://a https://b", "UV_INDEX_STRATEGY": "unsafe-best-match"},
        ),
        ({"PIP_CERT": "/etc/house.pem"}, {"SSL_CERT_FILE": "/etc/house.pem"}),
        ({"REQUESTS_CA_BUNDLE": "/etc/house.pem"}, {"SSL_CERT_FILE": "/etc/house.pem"}),
        ({"PIP_FIND_LINKS": "/a /b"}, {"UV_FIND_LINKS": "/a,/b"}),
        ({"PIP_NO_INDEX": "1"}, {"UV_NO_INDEX": "1"}),
        ({"PIP_NO_BINARY": ":all:"}, {"UV_NO_BINARY": "1"}),
        ({"PIP_NO_BINARY": "lxml,pillow"}, {"UV_NO_BINARY_PACKAGE": "lxml pillow"}),
        ({"PIP_REQUIRE_HASHES": "true"}, {"UV_REQUIRE_HASHES": "1"}),
        ({"PIP_PROXY": "http://p:8080"}, {"HTTPS_PROXY": "http://p:8080"}),
    ],
)
def test_uv_is_told_what_pip_is_told(
    tmp_path: Path, environment: dict[str, str], told: dict[str, str]
) -> None:
    found = venvs.environment_of_uv({"PATH": "/bin", **environment}, tmp_path)
    assert {name: found.get(name) for name in told} == told


def test_what_is_off_is_not_told(tmp_path: Path) -> None:
    assert "UV_NO_INDEX" not in venvs.environment_of_uv({"PIP_NO_INDEX": "0"}, tmp_path)


def test_the_environment_wins_over_files_and_the_command_over_what_is_global(
    tmp_path: Path,
) -> None:
    (tmp_path / ".pip").mkdir()
    (tmp_path / ".pip/pip.conf").write_text(
        "[global]\nindex_url = https://global\nno-index = yes\n[install]\nindex-url = https://install\n"
    )
    assert venvs.environment_of_uv({}, tmp_path)["UV_DEFAULT_INDEX"] == "https://install"
    environment = {"PIP_INDEX_URL": "https://environment"}
    found = venvs.environment_of_uv(environment, tmp_path)
    assert (found["UV_DEFAULT_INDEX"], found["UV_NO_INDEX"]) == ("https://environment", "1")


def test_variables_of_uv_itself_win(tmp_path: Path) -> None:
    environment = {"PIP_INDEX_URL": "https://a", "UV_DEFAULT_INDEX": "https://b"}
    assert "UV_DEFAULT_INDEX" not in venvs.environment_of_uv(environment, tmp_path)


def test_what_uv_cannot_be_told_is_left_to_pip(tmp_path: Path) -> None:
    with pytest.raises(venvs.NoCounterpart, match="keyring-provider"):
        venvs.environment_of_uv({"PIP_KEYRING_PROVIDER": "subprocess"}, tmp_path)


def test_a_file_that_pip_could_not_read_either_is_left_to_pip(tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text("no section\n")
    with pytest.raises(venvs.NoCounterpart, match=r"pip\.conf"):
        venvs.environment_of_uv({"PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}, tmp_path)


WANTED = {
    "version": "1",
    "path": "/srv/a/venvs/k",
    "requirements": "deps/x y.txt",
    "extra": ["b==2"],
}


@pytest.mark.parametrize(("hashed", "option"), [(False, ""), (True, "--require-hashes ")])
def test_hashes_are_asked_of_all_where_one_has_them(hashed: bool, option: str) -> None:
    *_, app, more = venvs.script({**WANTED, "hashed": hashed}, Path("/srv/a")).splitlines()
    assert app.endswith(f"/bin/python {option}--requirement 'deps/x y.txt'")
    # Those that the playbook adds have none.
    assert more.endswith("/bin/python pip b==2")


def test_wheels_only_is_said_to_uv_of_all_that_it_installs() -> None:
    lines = venvs.script({**WANTED, "only_wheels": True}, Path("/srv")).splitlines()
    installs = [line for line in lines if " pip install " in line]
    assert len(installs) == 2
    assert all("--only-binary :all:" in line for line in installs)
    assert "--only-binary" not in venvs.script(WANTED, Path("/srv"))


@pytest.mark.parametrize(
    ("lock", "path", "export"),
    [
        ("uv.lock", "a b/uv.lock", "export --project 'a b' "),
        ("poetry.lock", "poetry.lock", "poetry --no-interaction --project . export "),
    ],
)
def test_a_lock_is_a_requirements_file_by_who_made_it(lock: str, path: str, export: str) -> None:
    script = venvs.script(WANTED | {"lock": lock, "requirements": path}, Path("/srv/a"))
    assert export in script
    assert "<" not in script
    assert '--output-file "$exported"' in script or '--output "$exported"' in script
    assert '--requirement "$exported"' in script
    assert "--require-hashes" not in script
    assert ("poetry==2.5.1" in script) == (lock == "poetry.lock")
    wanted = WANTED | {"lock": lock, "lock_version": "2.2.1", "requirements": path}
    older = venvs.script(wanted, Path("/srv/a"))
    assert ("poetry==2.2.1" in older) == (lock == "poetry.lock")
    subprocess.run(["sh", "-n"], input=script.encode(), check=True)


def test_uv_reads_a_lock_of_python_s_own_form_itself() -> None:
    wanted = WANTED | {"lock": "pylock.toml", "requirements": "pylock.toml"}
    script = venvs.script(wanted, Path("/srv/a"))
    assert "--requirement pylock.toml" in script
    assert "export " not in script.replace("export HOME", "")


def test_python_is_debian_s_a_path_or_the_latest_of_uv_s_that_is_there(tmp_path: Path) -> None:
    assert venvs.python("", tmp_path) == "/usr/bin/python3"
    assert venvs.python("/opt/py/bin/python", tmp_path) == "/opt/py/bin/python"
    assert venvs.python("3.99", tmp_path) == ""
    for version in ("3.99.2", "3.99.10", "3.9.1"):
        folder = tmp_path / f"python/cpython-{version}-linux-x86_64-gnu/bin"
        folder.mkdir(parents=True)
        (folder / "python3").touch()
    assert "3.99.10" in venvs.python("3.99", tmp_path)
    assert "3.99.2" in venvs.python("3.99.2", tmp_path)
    assert "3.9.1" in venvs.python("3.9", tmp_path)


def test_why_a_python_cannot_be_had_is_said(tmp_path: Path) -> None:
    wanted = {"version": "x"}
    place = venvs.uv(wanted, tmp_path)
    place.parent.mkdir(parents=True)
    place.symlink_to(Path(__file__).parents[1] / ".venv/bin/uv")
    # A mirror that does not have what its list names.
    machine, url = platform.machine(), f"file://{tmp_path}/none.tar.gz"
    entry = {"name": "cpython", "arch": {"family": machine, "variant": None}, "os": "linux"}
    entry |= {"libc": "gnu", "major": 3, "minor": 99, "patch": 1, "prerelease": "", "url": url}
    entry |= {"sha256": None, "variant": None, "build": None}
    listed = {f"cpython-3.99.1-linux-{machine}-gnu": entry}
    (tmp_path / "downloads.json").write_text(json.dumps(listed))
    told = {"PATH": "/usr/bin:/bin", "UV_PYTHON_DOWNLOADS_JSON_URL": f"{tmp_path}/downloads.json"}
    script = venvs.get_python(wanted, "3.99", tmp_path)
    done = subprocess.run(["sh", "-euc", script], env=told, capture_output=True, text=True)
    assert done.returncode != 0
    assert "none.tar.gz" in done.stderr


def test_a_virtual_environment_has_the_python_that_was_asked_for() -> None:
    script = venvs.script(WANTED | {"python": "/a b/python3"}, Path("/srv/a"))
    assert "venv --no-project --python '/a b/python3' /srv/a/venvs/k" in script
