"""Build virtual environments with uv, as the role app does, and with pip."""

import importlib.util
import re
import time
from pathlib import Path

from servers import ROOT, Server, run, say

SETS = {
    "small": ROOT / "sample_app/requirements.txt",
    "large": ROOT / "benchmarks/large-requirements.txt",
}
NOTHING, CACHE = "with nothing there", "with a cache"
WAYS = {"small": (NOTHING, CACHE), "large": (NOTHING,)}
PLACE = Path("/srv/venvs")
PIP = """
python3 -m venv {venv}
pip="{venv}/bin/pip --quiet --no-input --disable-pip-version-check --cache-dir {cache}/pip"
$pip install --requirement r.txt
"""


def role() -> object:
    """Return the role's own code that runs uv."""
    path = ROOT / "plugins/module_utils/venvs.py"
    spec = importlib.util.spec_from_file_location("role_venvs", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scripts(requirements: str) -> dict[str, str]:
    """Return what builds a virtual environment, by what does it."""
    version = re.search(
        r"^app_uv_version: (\S+)", (ROOT / "roles/app/defaults/main.yml").read_text(), re.MULTILINE
    )[1]
    wanted = {"version": version, "path": str(PLACE / "venv"), "requirements": "r.txt", "extra": []}
    # A measured server trusts what its host does; the role takes it from pip's settings.
    own = f"export SSL_CERT_FILE={role().CERTIFICATES}\n"
    return {
        "uv": own + role().script(wanted, PLACE, requirements),
        "pip": PIP.format(venv=PLACE / "venv", cache=PLACE / "cache"),
    }


def measure(server: Server) -> dict:
    """Build each set with each of both, from nothing and again."""
    server.inside("apt-get update -qq && apt-get install -qq -y python3-venv >/dev/null 2>&1")
    found = {}
    for size, path in SETS.items():
        requirements = path.read_text()
        found[size] = {"packages": len(re.findall(r"^\w", requirements, re.MULTILINE))}
        for tool, script in scripts(requirements).items():
            server.inside(f"rm -rf {PLACE}; mkdir -p {PLACE}/cache")
            run(
                "docker", "exec", "-i", server.container, "tee", PLACE / "r.txt", input=requirements
            )
            found[size][tool] = {}
            for way in WAYS[size]:
                server.inside(f"rm -rf {PLACE}/venv")
                began = time.monotonic()
                run("docker", "exec", server.container, "sh", "-euc", f"cd {PLACE}\n{script}")
                found[size][tool][way] = time.monotonic() - began
            say(
                f"{size} with {tool}: "
                + ", ".join(f"{x:.1f} s" for x in found[size][tool].values())
            )
    return found
