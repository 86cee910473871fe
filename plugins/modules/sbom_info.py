#!/usr/bin/python
"""Ask a server what software is on it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sbom_info
short_description: Ask a server what software is on it
description:
  - >-
    Returns Debian's packages, and the Python packages of the release that serves, as
    P(carafe.stack.cyclonedx#filter) takes them.
  - >-
    The latter are asked of the release's own pip, as the user that runs the app, and in the sandbox
    that the app has.
options:
  name:
    description: The app's name.
    type: str
    required: true
  root:
    description: Folder of the app. A server without it has no release.
    type: path
    required: true
  run_command:
    description: Command that runs another one in the serving release.
    type: path
    required: true
  user:
    description: The user that runs the app.
    type: str
    required: true
  timeout:
    description: Seconds that pip may take.
    type: int
    default: 120
author: [Carafe (@carafe)]
attributes:
  check_mode:
    support: full
    description: It changes nothing.
"""

EXAMPLES = r"""
- name: See what is installed
  carafe.stack.sbom_info:
    name: shop
    root: /srv/shop
    run_command: /srv/shop/bin/run
    user: shop
"""

RETURN = r"""
release:
  description: Id of the release that serves, or an empty text.
  type: str
  returned: success
revision:
  description: What the release was made from.
  type: str
  returned: success
distribution:
  description: The distribution and its version.
  type: str
  returned: success
  sample: debian-13
debian:
  description: Name, version, architecture and source of each package of Debian's.
  type: list
  elements: dict
  returned: success
python:
  description: >-
    Name, version, licence and needs of each Python package, with V(requested) where the app asked
    for it by name.
  type: list
  elements: dict
  returned: success
"""

import json
import os
import platform
import re
import subprocess
from typing import Any

from ansible_collections.carafe.stack.plugins.module_utils import release_settings, sandbox
from ansible_collections.carafe.stack.plugins.module_utils.commands import Failure, run
from ansible_collections.carafe.stack.plugins.module_utils.module import Module
from ansible_collections.carafe.stack.plugins.module_utils.release_state import State

FORMAT = (
    "${binary:Package}\\t${Version}\\t${Architecture}\\t${source:Package}\\t${db:Status-Status}\\n"
)


def debian() -> list[dict[str, str]]:
    rows = (line.split("\t") for line in run("dpkg-query", "--show", f"-f={FORMAT}").splitlines())
    return [
        {"name": name.partition(":")[0], "version": version, "architecture": kind, "source": source}
        for name, version, kind, source, state in rows
        if state == "installed"
    ]


def licence(metadata: dict[str, Any]) -> str:
    """Return a licence as a package states it; of a whole text nothing."""
    stated = str(metadata.get("license_expression") or metadata.get("license") or "")
    if stated and "\n" not in stated and len(stated) < 100:
        return stated
    kinds = (x for x in metadata.get("classifier", []) if x.startswith("License :: OSI Approved"))
    return next((x.rpartition(" :: ")[2] for x in kinds), "")


def python(said: str) -> list[dict[str, Any]]:
    """Return the packages of which ``pip inspect`` tells."""
    found = []
    for entry in json.loads(said)["installed"]:
        metadata = entry["metadata"]
        # What only an extra asks for may be there for another reason, or not be there.
        needs = (x for x in metadata.get("requires_dist", []) if "extra ==" not in x)
        found.append(
            {
                # What is no text is no package: an error, as all that the app may have made up.
                "name": "" + metadata["name"],
                "version": "" + metadata["version"],
                "licence": licence(metadata),
                "needs": sorted({re.match(r"[\w.-]*", x)[0] for x in needs}),
                "requested": bool(entry.get("requested")),
            }
        )
    return found


def look(params: dict[str, Any]) -> dict[str, Any]:
    app = State({"name": params["name"], "root": params["root"]})
    release = platform.freedesktop_os_release()
    found = {
        **{"release": app.serving, "revision": "", "python": [], "debian": debian()},
        "distribution": f"{release['ID']}-{release.get('VERSION_ID', 'testing')}",
    }
    if not app.serving:
        return found
    found["revision"] = app.releases.get(app.serving, {}).get("revision") or ""
    words = [params["run_command"], "python", "-m", "pip", "--no-input", "inspect", "--local"]
    where, lines = release_settings.slice_of(params["user"]), sandbox.for_app()
    unit = sandbox.Unit(params["name"], params["user"], where, lines, params["timeout"])
    try:
        with unit.command(words, os.environ) as argv:
            said = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=True,
                timeout=params["timeout"],
            )
        return {**found, "python": python(said.stdout.decode())}
    except subprocess.TimeoutExpired:
        unit.kill("SIGKILL")
        unit.failed()
        why = f"it took longer than {params['timeout']} s"
    except subprocess.CalledProcessError as error:
        unit.failed()
        why = " ".join(error.stderr.decode(errors="replace").split())[-500:]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
    raise Failure(
        f"pip does not say what is installed in the release {app.serving}: {why}. Try it:"
        f" {params['name']} python -m pip inspect"
    )


def main() -> None:
    module = Module(
        {
            "name": {"type": "str", "required": True},
            "root": {"type": "path", "required": True},
            "run_command": {"type": "path", "required": True},
            "user": {"type": "str", "required": True},
            "timeout": {"type": "int", "default": 120},
        }
    )
    module.answer(lambda: {"changed": False, **look(module.params)})


if __name__ == "__main__":
    main()
