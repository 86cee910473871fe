"""An app's code, name and commands are found as if it were installed, wherever it has them.

What is packed is unpacked here, and asked for by a Python with the path that it would have.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from ansible_collections.carafe.stack.plugins.plugin_utils import pins
from test_pack import pack, put

PROJECT = '[project]\nname = "my-shop"\nversion = "1.2"\ndependencies = []\n'
SCRIPTS = '[project.scripts]\nshopctl = "shop.cli:group.main"\n'
SHOP = {"shop/__init__.py": "", "shop/cli.py": "class group:\n    main = lambda: print('hi')\n"}
ASK = "import shop.cli, importlib.metadata as m; print(shop.__file__, m.version('my-shop'))"


def below(folder: str) -> dict[str, str]:
    return {f"{folder}/{path}": text for path, text in SHOP.items()}


def run(tmp_path: Path, files: dict[str, str], *words: str) -> tuple[str, list[str]]:
    """Pack an app, and run a command in its release as bin/run does; return what that says."""
    put(tmp_path / "app", {"requirements.txt": "", **files})
    packed = pack(tmp_path / "app")
    release = tmp_path / "release"
    with tarfile.open(packed["archive"]) as tar:
        tar.extractall(release, filter="data")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    done = subprocess.run(
        words,
        cwd=release,
        env={
            "PATH": f"{tmp_path}/bin:{release}/.carafe/bin:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(f"{release}/{x}" for x in packed["python_path"]),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().replace(f"{release}/", ""), packed["python_path"]


LAYOUTS = {
    "by itself": ("src", PROJECT),
    "setuptools": ("lib", PROJECT + '[tool.setuptools.packages.find]\nwhere = ["lib"]\n'),
    "package-dir": ("a/b", PROJECT + '[tool.setuptools.package-dir]\n"" = "a/b"\n'),
    "hatch": ("code", PROJECT + '[tool.hatch.build.targets.wheel]\npackages = ["code/shop"]\n'),
    "hatch sources": ("code", PROJECT + '[tool.hatch.build]\nsources = ["code"]\n'),
    "pdm": ("python", PROJECT + '[tool.pdm.build]\npackage-dir = "python"\n'),
    "uv": ("house", PROJECT + '[tool.uv.build-backend]\nmodule-root = "house"\n'),
    "poetry": (
        "lib",
        '[tool.poetry]\nname = "my-shop"\nversion = "1.2"\n'
        'packages = [{include = "shop", from = "lib"}]\n',
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_code_is_found_where_the_project_has_it(tmp_path: Path, layout: str) -> None:
    folder, text = LAYOUTS[layout]
    files = {"pyproject.toml": text, **below(folder)}
    said, path = run(tmp_path, files, "python", "-c", ASK)
    assert said == f"{folder}/shop/__init__.py 1.2"
    assert path == [folder, ".carafe"]


def test_code_is_found_where_setup_cfg_has_it(tmp_path: Path) -> None:
    text = "[metadata]\nname = my-shop\nversion = 3\n[options]\npackage_dir =\n    = lib\n"
    text += "[options.entry_points]\nconsole_scripts =\n    shopctl = shop.cli:group.main\n"
    files = {"setup.cfg": text, **below("lib")}
    assert run(tmp_path, files, "shopctl") == ("hi", ["lib", ".carafe"])


@pytest.mark.parametrize("folder", ["src", "."])
def test_a_command_of_the_app_s_runs_from_anywhere(tmp_path: Path, folder: str) -> None:
    files = {"pyproject.toml": PROJECT + SCRIPTS, **below(folder)}
    said, path = run(tmp_path, files, "sh", "-c", "cd / && exec shopctl")
    assert (said, path) == ("hi", [folder, ".carafe"])


def test_a_command_may_be_poetry_s(tmp_path: Path) -> None:
    text = '[tool.poetry]\nname = "x"\nversion = "1"\n[tool.poetry.scripts]\n'
    text += 'a = "shop.cli:group.main"\nb = {reference = "shop.cli:group.main", type = "console"}\n'
    files = {"pyproject.toml": text, **below("src")}
    assert run(tmp_path, files, "sh", "-c", "a; b")[0] == "hi\nhi"


def test_entry_points_of_other_groups_are_found_too(tmp_path: Path) -> None:
    text = PROJECT + '[project.entry-points."flask.commands"]\nshop = "shop.cli:group"\n'
    ask = "import importlib.metadata as m\n"
    ask += "[x] = m.entry_points(group='flask.commands')\nprint(x.load())"
    files = {"pyproject.toml": text, **below("src")}
    assert run(tmp_path, files, "python", "-c", ask)[0] == "<class 'shop.cli.group'>"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("src/my_shop/__init__.py", '__version__ = "7"'),
        ("src/my_shop/__about__.py", "__version__: str = '7'"),
        ("src/else/v.py", "__version__ = '7'"),
        ("src/none.py", ""),
    ],
)
def test_a_version_that_a_tool_works_out_is_the_code_s_or_0(
    tmp_path: Path, file: str, text: str
) -> None:
    project = '[project]\nname = "my-shop"\ndynamic = ["version"]\ndependencies = []\n'
    project += '[tool.hatch.version]\npath = "src/else/v.py"\n'
    files = {"pyproject.toml": project, file: text, "src/shop/__init__.py": ""}
    ask = "import importlib.metadata as m; print(m.version('my-shop'))"
    assert run(tmp_path, files, "python", "-c", ask)[0] == ("7" if text else "0")


@pytest.mark.parametrize(
    "files",
    [
        {"src/shop/__init__.py": ""},  # without a project
        {"pyproject.toml": "[tool.ruff]\n", "src/__init__.py": "", "src/app.py": ""},
        {"pyproject.toml": "[tool.ruff]\n", "src/main.py": "", "src/types.py": ""},
        {"pyproject.toml": "[tool.ruff]\n", "src/app.js": ""},
        {"pyproject.toml": "[project", "wsgi.py": ""},
        {"pyproject.toml": '[tool.uv.build-backend]\nmodule-root = "../x"\n', "wsgi.py": ""},
    ],
)
def test_what_is_no_root_is_not_on_the_path(tmp_path: Path, files: dict[str, str]) -> None:
    put(tmp_path / "app", {"requirements.txt": "", **files})
    packed = pack(tmp_path / "app")
    assert packed["python_path"] == []
    with tarfile.open(packed["archive"]) as tar:
        assert not any(x.startswith(".carafe") for x in tar.getnames())


def test_modules_at_the_top_that_python_has_too_do_not_hide_its_own(tmp_path: Path) -> None:
    files = {"pyproject.toml": PROJECT + SCRIPTS, "secrets.py": "", **below(".")}
    put(tmp_path / "app", {"requirements.txt": "", **files})
    assert pack(tmp_path / "app")["python_path"] == [".carafe"]


PATHS = {
    **{".": ".", "./": ".", "-e .": ".", "-e ./lib[a]": "lib", "--editable=lib/x": "lib/x"},
    **{"./lib ; os_name == 'posix'": "lib", "x @ ./lib": "lib", "x@file:lib": "lib"},
    **{"-e ./lib#egg=x": "lib", "vendor/x-1.0-py3-none-any.whl": "vendor/x-1.0-py3-none-any.whl"},
    **dict.fromkeys(["lib", "x==1", "/opt/x", "file:///opt/x", "x @ file:///opt/x", "-r ./x"], ""),
    **dict.fromkeys(
        ["https://a.test/x", "git+https://a.test/x", "x @ git+ssh://g@a.test/x", ""], ""
    ),
    **dict.fromkeys(["-e git+https://a.test/x#egg=x", "# ./lib", "--find-links ./wheels"], ""),
}


@pytest.mark.parametrize("line", PATHS)
def test_what_is_asked_for_of_the_app_s_own_folder(line: str) -> None:
    assert pins.local(f"{line}\n") == PATHS[line]


@pytest.mark.parametrize("line", ["-e .", ".", "x @ ./lib", "-r more/all.txt"])
def test_code_that_is_installed_is_installed_anew_when_it_changes(
    tmp_path: Path, line: str
) -> None:
    app, found = tmp_path / "app", []
    more = {"more/all.txt": "-e ./lib\n", "requirements.txt": f"flask\n{line}\n", "lib/x.py": ""}
    put(app, {"pyproject.toml": PROJECT, **more})
    for text in ("a = 1", "a = 2", "a = 2"):
        (app / "lib/x.py").write_text(text)
        packed = pack(app)
        found.append(packed["dependencies"])
    assert [len([*x]) for _, x in itertools.groupby(found)] == [1, 2]
    # Not by a link to the folder of one release.
    with tarfile.open(packed["archive"]) as tar:
        asked = tar.extractfile("requirements.txt").read().decode()
        more = tar.extractfile("more/all.txt").read().decode()
    assert asked == f"flask\n{line.removeprefix('-e ')}\n"
    assert more == ("./lib\n" if "more" in line else "-e ./lib\n")


@pytest.mark.parametrize("source", ['editable = "lib"', 'directory = "lib"', 'path = "x.whl"'])
def test_a_lock_with_packages_of_the_app_s_own_folder_too(tmp_path: Path, source: str) -> None:
    app, found = tmp_path / "app", []
    lock = f'[[package]]\nname = "lib"\nsource = {{ {source} }}\n'
    for text in ("a = 1", "a = 2"):
        put(app, {"pyproject.toml": PROJECT, "uv.lock": lock, "lib/x.py": text})
        found.append(pack(app)["dependencies"])
    assert found[0] != found[1]
