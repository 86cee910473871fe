"""Build a virtual environment with uv, as pip is set up to do it on this server.

pip itself builds it where it is asked to, where uv cannot be had, where pip has a setting that uv
has no counterpart of, and where uv fails: then pip's message is the one that people know.
"""

from __future__ import annotations

import configparser
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"  # which Debian's pip trusts
# Debian's pip as an archive that runs: to have one installed takes longer than all that uv does.
WHEELS = "/usr/share/python-wheels/pip-*.whl"
OF_THE_SERVER = [Path("/etc/xdg/pip/pip.conf"), Path("/etc/pip.conf")]
# What changes nothing of what is installed, and from where.
WITHOUT_EFFECT = {
    *("break-system-packages", "cache-dir", "config-file", "default-timeout"),
    *("disable-pip-version-check", "exists-action", "log", "no-cache-dir", "no-color"),
    *("no-compile", "no-input", "no-python-version-warning", "no-warn-script-location"),
    *("progress-bar", "quiet", "retries", "root-user-action", "timeout", "verbose"),
}


class NoCounterpart(Exception):
    """pip is told something that uv cannot be told."""


def packages(switch: str, names: str) -> Callable[[str], dict[str, str]]:
    """Return how to say of some packages, or of all, that they are built, or are not."""

    def convert(value: str) -> dict[str, str]:
        words = value.replace(",", " ").split()
        if words == [":none:"]:
            return {}
        return {switch: "1"} if words == [":all:"] else {names: " ".join(words)}

    return convert


def switched(**variables: str) -> Callable[[str], dict[str, str]]:
    """Return how to say what is either so or not."""
    return lambda value: variables if value.lower() in ("1", "y", "yes", "t", "true", "on") else {}


COUNTERPARTS: dict[str, Callable[[str], dict[str, str]]] = {
    "cert": lambda value: {"SSL_CERT_FILE": value},
    "client-cert": lambda value: {"SSL_CLIENT_CERT": value},
    "constraint": lambda value: {"UV_CONSTRAINT": value},
    # pip takes the best of all indexes, uv by itself that of the first one that knows the package.
    "extra-index-url": lambda value: {
        "UV_INDEX": " ".join(value.split()),
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    },
    "find-links": lambda value: {"UV_FIND_LINKS": ",".join(value.split())},
    "index-url": lambda value: {"UV_DEFAULT_INDEX": value},
    "no-binary": packages("UV_NO_BINARY", "UV_NO_BINARY_PACKAGE"),
    "no-index": switched(UV_NO_INDEX="1"),
    "only-binary": packages("UV_NO_BUILD", "UV_NO_BUILD_PACKAGE"),
    "pre": switched(UV_PRERELEASE="allow"),
    "proxy": lambda value: dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), value),
    "require-hashes": switched(UV_REQUIRE_HASHES="1"),
    "trusted-host": lambda value: {"UV_INSECURE_HOST": " ".join(value.split())},
}


def settings_of_pip(environment: Mapping[str, str], home: Path) -> Iterator[tuple[str, str]]:
    """Yield what pip is told by its files and by the environment, the stronger ones later."""
    places = [*OF_THE_SERVER, home / ".pip/pip.conf", home / ".config/pip/pip.conf"]
    if "PIP_CONFIG_FILE" in environment:
        places.append(Path(environment["PIP_CONFIG_FILE"]))
    for section in ("global", "install"):
        for place in places:
            parser = configparser.RawConfigParser()
            try:
                parser.read(place, encoding="utf-8")
            except (configparser.Error, UnicodeDecodeError):
                raise NoCounterpart(f"file {place}") from None
            if parser.has_section(section):
                yield from parser.items(section)
    for name, value in environment.items():
        if name.startswith("PIP_"):
            yield name.removeprefix("PIP_"), value


def environment_of_uv(environment: Mapping[str, str], home: Path) -> dict[str, str]:
    """Return the variables that tell uv what pip is told; those that are for uv already win."""
    wanted: dict[str, str] = {}
    for name, value in settings_of_pip(environment, home):
        wanted[name.lower().replace("_", "-")] = value
    found = {"UV_PYTHON_DOWNLOADS": "never", "UV_NO_CONFIG": "1", "UV_NO_SOURCES": "1"}
    found["SSL_CERT_FILE"] = environment.get("REQUESTS_CA_BUNDLE") or CERTIFICATES
    for name, value in wanted.items():
        if name in COUNTERPARTS:
            found |= COUNTERPARTS[name](value) if value else {}
        elif name not in WITHOUT_EFFECT:
            raise NoCounterpart(name)
    own = {name for name in environment if name.startswith("UV_")}
    return {name: value for name, value in found.items() if name not in own}


def folder_of_uv(root: Path) -> Path:
    """Return where uv is: not in the cache, which every build writes."""
    return root / "uv"


def uv(wanted: Mapping[str, Any], root: Path) -> Path:
    return folder_of_uv(root) / wanted["version"] / "bin/uv"


def get_uv(wanted: Mapping[str, Any], root: Path) -> str:
    """Return what the deploy user runs to have uv."""
    folder = shlex.quote(str(uv(wanted, root).parent.parent))
    return f"""\
umask 022
export HOME={root}
for pip in {WHEELS}; do :; done
rm -rf {folder_of_uv(root)}/*
python3 "$pip/pip" install --quiet --no-input --disable-pip-version-check --no-cache-dir \\
  --no-compile --no-deps --target {folder}.part uv=={wanted["version"]}
rm {folder}.part/bin/uvx
mv {folder}.part {folder}
"""


def folder_of_pythons(root: Path) -> Path:
    """Return where those of uv's are: no build writes there either."""
    return root / "python"


def python(asked: str, root: Path) -> str:
    """Return the Python of a version, or of a path; '' where it is still to be had."""
    if not asked or asked.startswith("/"):
        return asked or "/usr/bin/python3"
    debian = Path(f"/usr/bin/python{asked}")
    if debian.exists():
        return str(debian)
    found = folder_of_pythons(root).glob(f"cpython-{asked}[.-]*/bin/python3")
    # Of two, the later: uv names them by all three numbers.
    return max(map(str, found), key=numbers, default="")


def numbers(text: str) -> list[int]:
    return [int(x) for x in re.findall(r"\d+", text)]


def get_python(wanted: Mapping[str, Any], asked: str, root: Path) -> str:
    """Return what the deploy user runs to have a Python of uv's.

    When it is quiet, uv does not say why there is none.
    """
    return f"""\
umask 022
export HOME={root} UV_PYTHON_DOWNLOADS=automatic
{shlex.quote(str(uv(wanted, root)))} --no-progress --no-cache python install --no-bin \\
  --install-dir {folder_of_pythons(root)} {shlex.quote(asked)}
"""


# For a lock of an older one, which this one knows as well.
POETRY = "2.5.1"
# How to have a lock as a requirements file, from who made it. uv reads pylock.toml itself.
EXPORTS = {
    "uv.lock": """\
exported=$(mktemp --suffix .txt)
(unset UV_NO_SOURCES UV_NO_CONFIG; {uv} export --project {folder} --python {python} \\
  --frozen --no-default-groups --no-emit-project --no-editable --emit-index-url \\
  --output-file "$exported") >/dev/null
""",
    "poetry.lock": """\
exported=$(mktemp --suffix .txt)
# Both would write into the home of all of the app, which is root's.
export UV_TOOL_DIR={cache}/tools POETRY_CONFIG_DIR={cache}/poetry POETRY_CACHE_DIR={cache}/poetry
{uv} tool run --python /usr/bin/python3 --with 'poetry-plugin-export==1.*' \\
  --from poetry=={poetry} \\
  poetry --no-interaction --project {folder} export --only main --output "$exported"
""",
}


def script(wanted: Mapping[str, Any], root: Path) -> str:
    """Return what the deploy user runs in the release to build it with uv."""
    cache, venv = root / "cache", shlex.quote(wanted["path"])
    command = f"{shlex.quote(str(uv(wanted, root)))} --quiet --cache-dir {cache}/packages"
    # Copies: a file that the cache shares with a virtual environment could be written from there,
    # and by a link to a package of the app's own folder other releases would have its code.
    install = (
        f"{command} pip install --link-mode copy --no-editable --compile-bytecode"
        f" --python {venv}/bin/python"
    )
    # As pip does it: where one has a hash, all must have one.
    hashes = "--require-hashes " if wanted.get("hashed") else ""
    wheels = "--only-binary :all: " if wanted.get("only_wheels") else ""
    interpreter = shlex.quote(wanted.get("python") or "/usr/bin/python3")
    requirements = shlex.quote(wanted["requirements"])
    folder = shlex.quote(str(PurePosixPath(wanted["requirements"]).parent))
    lock = wanted.get("lock", "")
    names = {"uv": command, "cache": cache, "folder": folder, "python": interpreter}
    names["poetry"] = wanted.get("lock_version") or POETRY
    export = EXPORTS.get(lock, "").format_map(names)
    if export:
        requirements = '"$exported"'
    # Commands of the app's may ask for pip.
    server = shlex.join(["pip", *wanted.get("server", [])])
    more = shlex.join(["pip", *wanted["extra"]])
    steps = [f"{wheels}{hashes}--requirement {requirements}"]
    if override := wanted.get("override"):
        pins = f"--requirement {override} --override {override}"
        if lock == "pylock.toml":
            steps.append(f"{wheels}{pins}")
        elif wanted.get("hashed") and not wanted["override_hashed"]:
            # All but the pins, each of which has its hash as before.
            steps = [f"{wheels}--no-deps {hashes}--requirement {requirements}", f"{wheels}{pins}"]
        else:
            steps = [f"{wheels}{hashes}--requirement {requirements} {pins}"]
        # The server, and what it needs, are there at last, whatever the pins say.
        steps += [f"{wheels}--override {override} {more}", f"{wheels}{server}"]
    else:
        steps.append(f"{wheels}{more}")
    installs = "".join(f"{install} {step}\n" for step in steps)
    if lock == "pylock.toml":
        # Beside what is exact, uv takes none of the server's.
        installs = f"env -u UV_CONSTRAINT {installs}"
    return f"""\
umask 022
export HOME={root}
# Of earlier versions of Carafe: uv itself, and what its virtual environments shared.
rm -rf {cache}/uv {cache}/uv-*
{command} venv --no-project --python {interpreter} {venv}
{export}{installs}"""


def pip_script(wanted: Mapping[str, Any], root: Path) -> str:
    """Return what the deploy user runs in the release to build it with pip."""
    venv, requirements = shlex.quote(wanted["path"]), shlex.quote(wanted["requirements"])
    interpreter = shlex.quote(wanted.get("python") or "/usr/bin/python3")
    wheels = " --only-binary :all:" if wanted.get("only_wheels") else ""
    override = wanted.get("override", "")
    pins = f"--requirement {override}"
    steps = [f"install --requirement {requirements}"]
    if override and wanted.get("hashed") and not wanted["override_hashed"]:
        # All but the pins, each of which has its hash as before.
        steps = [f"install --no-deps --requirement {requirements}", f"install {pins}"]
    elif override:
        steps = [f"install_with_pins --requirement {requirements}"]
    if more := shlex.join(wanted["extra"]):
        # Beside hashes, nothing may be without one.
        alone = not override or wanted["override_hashed"]
        steps.append(f"install {more}" if alone else f"install_with_pins {more}")
    if override and (server := shlex.join(wanted.get("server", []))):
        # It is there at last, whatever the pins say.
        steps.append(f"install {server}")
    # Where another package speaks against a pin, pip takes both only one after the other.
    with_pins = f"""\
install_with_pins() {{
  install "$@" {pins} || {{ install "$@" && install {pins}; }}
}}
"""
    installs = "".join(f"{step}\n" for step in steps)
    return f"""\
umask 022
export HOME={root}
{interpreter} -m venv {venv}
install() {{
  {venv}/bin/pip --no-input --disable-pip-version-check --cache-dir {root}/cache \\
    install{wheels} "$@"
}}
{with_pins if override else ""}{installs}"""
