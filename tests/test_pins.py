"""A pin of the inventory's takes the place of whatever is said of its package, and of nothing else.

uv itself installs here, from wheels that are made for it.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import wheels
from ansible_collections.carafe.stack.plugins.module_utils import venvs
from ansible_collections.carafe.stack.plugins.plugin_utils import pins
from packaging.utils import canonicalize_name
from test_pack import pack

UV = Path(__file__).parents[1] / ".venv/bin/uv"
SPELLINGS = ("psy-copg.x", "Psy_Copg-X", "PSY.COPG_x", "psy--copg.-x")
HASH = "--hash=sha256:" + "0" * 64


@pytest.mark.parametrize(
    "line",
    [
        *(
            "{}",
            "{}==1",
            "{} == 1",
            "{}>=1,<2",
            "{}~=1.0",
            "{}!=1",
            "{}===1",
            "{} (==1)",
            "{};python_version>'3'",
        ),
        *(
            "{}[a]==1",
            "{}[a, b]>=1 ; python_version > '3'",
            "{} [a]",
            "  {}==1  # why",
            "{}==1 " + HASH,
        ),
        *("{} @ https://a.test/x.whl", "{}@git+https://a.test/x@v1", "{}[a]@file:///x.whl"),
        *(
            "git+https://a.test/y@v1#egg={}",
            "-e git+https://a.test/y#subdirectory=z&egg={}",
            "-e ./y#egg={}",
        ),
        *("{}==1 \\\n    " + HASH + " \\\n    " + HASH, "{} \\\n  ==1"),
    ],
)
@pytest.mark.parametrize("name", SPELLINGS)
def test_a_line_is_about_a_package_in_whatever_way_it_says_so(line: str, name: str) -> None:
    assert pins.asked_for(line.format(name))[0] == "psy-copg-x"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        *(("https://a.test/Psy_copg.x-1.0-py3-none-any.whl#sha256=00", "psy-copg-x"),),
        *(("./vendor/psy_copg-1.0.tar.gz", "psy-copg"), ("vendor/a-1.whl ; os_name=='x'", "a")),
        *(("./vendor", ""), (".", ""), ("-e .", ""), ("../a", ""), ("vendor/psycopg", "")),
        *(("--index-url https://a.test/simple", ""), ("-r psycopg.txt", ""), ("# psycopg==1", "")),
        *(("", ""), ("   ", ""), ("git+https://a.test/psycopg", ""), ("-f https://a.test", "")),
    ],
)
def test_what_a_file_or_an_option_is_about(line: str, name: str) -> None:
    assert pins.asked_for(line)[0] == name


@pytest.mark.parametrize("seed", range(60))
def test_pins_take_the_place_of_their_packages_and_of_no_other(tmp_path: Path, seed: int) -> None:
    """Of files made by chance that include each other, each other line stays as it is, in order."""
    chance = random.Random(seed)
    names = ["flask", "psycopg", "psycopg2", "psycopg-binary", "a.b_c", "Zope.Interface", "x"]
    forms = [
        *(
            "{}==1",
            "{}[p, q]>=1",
            "{} ; python_version < '3.13'",
            f"{{}}==1 \\\n  {HASH} \\\n  {HASH}",
        ),
        *("{} @ https://a.test/{}-1.0-py3-none-any.whl", "{}==1  # {}"),
    ]
    others = ["# psycopg==1\n", "--extra-index-url https://a.test/psycopg\n", "\n", "./vendor\n"]
    files: dict[str, list[tuple[str, str]]] = {}
    for path in ("requirements.txt", "sub/more.txt", "sub/pins.txt"):
        files[path] = [("", chance.choice(others)) for _ in range(3)]
        for name in chance.sample(names, 4):
            spelt = chance.choice([name, name.upper(), name.replace("-", "_").replace(".", "-")])
            files[path].append((name, chance.choice(forms).format(spelt, name) + "\n"))
        chance.shuffle(files[path])
    files["requirements.txt"].append(("", "-r sub/more.txt\n"))
    files["sub/more.txt"].append(("", "--constraint pins.txt\n"))
    for path, lines in files.items():
        (tmp_path / "app" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "app" / path).write_text("".join(line for _, line in lines))
    replaced = chance.sample(names, 2)
    packed = pack(tmp_path / "app", override=[f"{x.swapcase()}==9" for x in replaced])
    gone = {canonicalize_name(x) for x in replaced}
    with tarfile.open(packed["archive"]) as tar:
        for path, lines in files.items():
            kept = "".join(line for name, line in lines if canonicalize_name(name) not in gone)
            assert tar.extractfile(path).read().decode() == kept
        text = tar.extractfile(packed["override"]).read().decode()
    assert [pins.asked_for(x)[0] for x in text.splitlines()] == [
        canonicalize_name(x) for x in replaced
    ]


@pytest.fixture
def index(tmp_path: Path) -> Path:
    folder = tmp_path / "index"
    for version in ("1", "2"):
        wheels.make(folder, "drv", version, extras={"fast": "drv-fast"})
        wheels.make(folder, "drv-fast", version)
        wheels.make(folder, "low", version)
    wheels.make(folder, "shop", "1", ["drv==1", "low", "gunicorn<22"])
    wheels.make(folder, "gunicorn", "20", ["packaging"])
    wheels.make(folder, "gunicorn", "27", ["packaging"])
    wheels.make(folder, "packaging", "24")
    wheels.make(folder, "wants-old", "1", ["drv==1", "gunicorn"])
    wheels.make(folder, "pip", "26")
    return folder


def hash_of(index: Path, name: str, version: str) -> str:
    return wheels.make(index, name, version, extras={"fast": "drv-fast"} if name == "drv" else {})


@pytest.fixture
def install(tmp_path: Path, index: Path):
    """Pack an app, and install what it asks for as a server does; return what is there then."""
    app = tmp_path / "app"
    app.mkdir()
    number = itertools.count()

    def run(
        files: dict[str, str], override: list[str], extra: tuple[str, ...] = (), **more: Any
    ) -> dict[str, str]:
        for path, text in files.items():
            (app / path).parent.mkdir(exist_ok=True)
            (app / path).write_text(text)
        packed = pack(app if files else None, tmp_path / "cache", override=override, **more)
        root = tmp_path / f"root{next(number)}"
        root.joinpath("release").mkdir(parents=True)
        # As the role does: with the time of now, which some builds need.
        unpack = ["tar", "-xzmf", packed["archive"], "-C", root / "release"]
        subprocess.run(unpack, check=True)
        server = ["gunicorn==27"]
        wanted = {x: packed[x] for x in ("requirements", "lock", "hashed", "override")}
        wanted |= {"override_hashed": packed["override_hashed"], "server": server}
        wanted |= {"version": "x", "path": str(root / "venvs/x"), "extra": [*server, *extra]}
        wanted |= {"python": sys.executable}
        root.joinpath("venvs").mkdir()
        uv = venvs.uv(wanted, root)
        uv.parent.mkdir(parents=True)
        uv.symlink_to(UV)
        make = venvs.pip_script if more.get("installer") == "pip" else venvs.script
        # To compile takes longer than all else.
        script = make(wanted, root).replace(" --compile-bytecode", "")
        clean = {x: y for x, y in os.environ.items() if not x.startswith(("PIP_", "UV_"))}
        told = {"UV_NO_INDEX": "1", "UV_FIND_LINKS": str(index), "UV_NO_CONFIG": "1"}
        told |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_NO_COMPILE": "1"}
        done = subprocess.run(
            ["sh", "-euc", script],
            cwd=root / "release",
            env=clean | told | {"PIP_CONFIG_FILE": "/dev/null"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        found = (root / "venvs/x").glob("lib/python*/site-packages/*.dist-info")
        if (root / "cache").exists():
            shutil.rmtree(root / "cache")
        there = dict(x.name.removesuffix(".dist-info").rsplit("-", 1) for x in found)
        assert {"gunicorn", "packaging", "pip"} <= there.keys()
        assert there["gunicorn"] == "27"
        # Python 3.11 puts setuptools into each virtual environment.
        brought = ("gunicorn", "packaging", "pip", "setuptools")
        return {x: y for x, y in there.items() if x not in brought}

    return run


def test_a_pin_wins_over_what_a_package_itself_asks_for(install) -> None:
    app = {"source": "package", "package": "shop==1"}
    assert install({}, [], **app) == {"shop": "1", "drv": "1", "low": "2"}
    assert install({}, ["drv==2", "drv-fast==1"], **app) == {
        **{"shop": "1", "drv": "2", "low": "2", "drv_fast": "1"}
    }


def test_a_pin_is_added_or_replaces_one_with_its_extras(install) -> None:
    files = {"requirements.txt": "DRV[fast]==1\n"}
    assert install(files, ["low==1"]) == {"drv": "1", "drv_fast": "2", "low": "1"}
    assert install(files, ["drv==2"]) == {"drv": "2", "drv_fast": "2"}


def test_a_pin_may_be_a_url(install, index: Path) -> None:
    url = f"drv @ file://{index}/drv-2-py3-none-any.whl"
    assert install({"requirements.txt": "drv==1\n"}, [url]) == {"drv": "2"}


def test_a_pin_with_a_marker_holds_where_the_marker_does(install) -> None:
    files = {"requirements.txt": "drv==1\nlow==1\n"}
    both = ["drv==2 ; python_version >= '3'", "drv==1 ; python_version < '3'"]
    assert install(files, both) == {"drv": "2", "low": "1"}
    assert install(files, ["drv ; python_version < '3'"]) == {"low": "1"}


def test_hashes_are_kept_for_all_that_has_one(install, index: Path) -> None:
    locked = f"drv==1 \\\n  --hash={hash_of(index, 'drv', '1')}\n"
    files = {"requirements.txt": f"{locked}low==1 --hash={hash_of(index, 'low', '1')}\n"}
    assert install(files, ["drv==2"]) == {"drv": "2", "low": "1"}
    right = [f"drv==2 --hash={hash_of(index, 'drv', '2')}"]
    assert install(files, right) == {"drv": "2", "low": "1"}
    with pytest.raises(AssertionError, match="Hash mismatch"):
        install(files, [f"drv==2 --hash={hash_of(index, 'drv', '1')}"])
    files["requirements.txt"] = files["requirements.txt"].replace("low==1", "low==2")
    with pytest.raises(AssertionError, match="Hash mismatch"):
        install(files, ["drv==2"])


@pytest.mark.parametrize("installer", ["uv", "pip"])
def test_what_has_hashes_goes_on_without_its_pin(install, index: Path, installer: str) -> None:
    """shop asks for drv, which is not among what has a hash any more."""
    locked = [("shop", "1"), ("drv", "1"), ("low", "2"), ("gunicorn", "20"), ("packaging", "24")]
    hashes = {line.rpartition("/")[2]: line for line in map(str, index.iterdir())}
    text = ""
    for name, version in locked:
        wheel = Path(hashes[f"{name}-{version}-py3-none-any.whl"]).read_bytes()
        text += f"{name}=={version} --hash=sha256:{hashlib.sha256(wheel).hexdigest()}\n"
    files = {"requirements.txt": text}
    there = install(files, ["drv[fast]==2"], installer=installer)
    assert there == {"shop": "1", "drv": "2", "low": "2", "drv_fast": "2"}


def test_the_server_is_there_whatever_a_pin_says(install) -> None:
    files = {"requirements.txt": "gunicorn==20\ndrv==1\n"}
    assert install(files, ["packaging ; python_version < '3'", "drv==2"]) == {"drv": "2"}
    # And a pin stays, whatever comes after it asks for.
    assert install(files, ["drv==2"], ("wants-old",)) == {"drv": "2", "wants_old": "1"}


def test_with_pip_a_pin_wins_too_over_what_comes_before_and_after_it(install) -> None:
    app = {"source": "package", "package": "shop==1", "installer": "pip"}
    assert install({}, ["drv==2"], ("wants-old",), **app) == {
        **{"shop": "1", "drv": "2", "low": "2", "wants_old": "1"}
    }


def test_what_a_lock_links_to_in_the_app_s_folder_is_copied(install, index: Path) -> None:
    """By a link, each later release would have the code that this one has brought."""
    there = Path(__file__).parents[1] / "molecule/app/files/locked/lib"
    lock = OF_PYTHON.format(name="drv", index=index, hash=hash_of(index, "drv", "1")[7:])
    lock += '[[packages]]\nname = "lib"\ndirectory = { path = "lib", editable = true }\n'
    files = {f"lib/{x.name}": x.read_text() for x in there.iterdir() if x.is_file()}
    files["pylock.toml"] = 'lock-version = "1.0"\ncreated-by = "test"\n' + lock
    assert install(files, []) == {"drv": "1", "lib": "0.7"}


UV_LOCK = """\
version = 1
requires-python = ">=3.9"
[[package]]
name = "site"
source = {{ virtual = "." }}
dependencies = [{{ name = "drv" }}, {{ name = "low" }}]
[package.metadata]
requires-dist = [{{ name = "drv" }}, {{ name = "low" }}]
"""
OF_UV = """
[[package]]
name = "{name}"
version = "1"
source = {{ registry = "{index}" }}
wheels = [{{ path = "{name}-1-py3-none-any.whl", hash = "{hash}" }}]
"""
OF_PYTHON = """
[[packages]]
name = "{name}"
version = "1"
[[packages.wheels]]
url = "file://{index}/{name}-1-py3-none-any.whl"
hashes = {{ sha256 = "{hash}" }}
"""


def locks(index: Path) -> dict[str, dict[str, str]]:
    uv, python = UV_LOCK.format(), 'lock-version = "1.0"\ncreated-by = "test"\n'
    for name in ("drv", "low"):
        known = hash_of(index, name, "1")
        uv += OF_UV.format(name=name, index=index, hash=known)
        python += OF_PYTHON.format(name=name, index=index, hash=known.removeprefix("sha256:"))
    project = '[project]\nname = "site"\nversion = "1"\ndependencies = ["drv", "low"]\n'
    python += '\n[tool.test]\nname = "drv"\n'
    return {
        "uv.lock": {"uv.lock": uv, "pyproject.toml": project + 'requires-python = ">=3.9"\n'},
        "pylock.toml": {"pylock.toml": python},
    }


@pytest.mark.parametrize("lock", ["uv.lock", "pylock.toml"])
def test_what_a_lock_says_is_installed_and_a_pin_wins_over_it(
    install, index: Path, lock: str
) -> None:
    files = locks(index)[lock]
    assert install(files, []) == {"drv": "1", "low": "1"}
    assert install(files, ["Drv==2"]) == {"drv": "2", "low": "1"}
    assert install(files, ["drv-fast==1"]) == {"drv": "1", "low": "1", "drv_fast": "1"}


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        (["./vendor/x.whl"], "no requirement with a name"),
        (["https://ann:hush@a.test/x-1.whl"], "NAME @ URL"),
        (["-r more.txt"], "no requirement"),
        (["drv=1"], "no requirement"),
        (["drv==1", "DRV==2"], "drv twice"),
        ([""], "no requirement"),
    ],
)
def test_what_is_no_pin_is_refused(tmp_path: Path, entries: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        pins.parsed(entries)
    assert "hush" not in str(caught.value)


def test_another_pin_is_another_virtual_environment(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app/requirements.txt").write_text("drv==1\n")
    found = [
        pack(tmp_path / "app", override=x)["dependencies"]
        for x in ([], ["drv==1"], ["drv==2"], ["drv[fast]==2"], ["drv==2", "low==1"])
    ]
    assert len({*found}) == len(found)
