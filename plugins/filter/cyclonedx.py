"""A bill of materials of an app and of what put it on its servers, in the form of CycloneDX."""

from __future__ import annotations

DOCUMENTATION = """
name: cyclonedx
short_description: Make a bill of materials from what servers say is on them
description:
  - Returns an object of CycloneDX 1.6, of the app, its servers' packages, and Carafe itself.
  - It holds no time and no random number, so the same software gives the same file.
positional: name
options:
  _input:
    description: What M(carafe.stack.sbom_info) has returned, of each server.
    type: list
    elements: dict
    required: true
  name:
    description: The app's name.
    type: str
    required: true
author: [Carafe (@carafe)]
"""

EXAMPLES = """
- name: Write it
  ansible.builtin.copy:
    content: "{{ [result] | carafe.stack.cyclonedx('shop') | to_nice_json }}"
    dest: shop.cdx.json
    mode: "0644"
  delegate_to: localhost
"""

RETURN = """
_value:
  description: The bill of materials.
  type: dict
"""

import json
import re
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from ansible.release import __version__ as ansible_version

COLLECTION = Path(__file__).parents[2]
# Where the bill's number comes from, so that no other program makes the same one.
NAMESPACE = uuid.UUID("0f3cf1a4-37a0-4cf4-9e0e-6f0f8a8f4c0e")


def collection_version() -> str:
    """Return the version of this collection, as it was installed or as a clone has it."""
    try:
        manifest = json.loads((COLLECTION / "MANIFEST.json").read_text())
        return manifest["collection_info"]["version"]
    except OSError:
        return yaml.safe_load((COLLECTION / "galaxy.yml").read_text())["version"]


def component(kind: str, name: str, version: str, purl: str, **more: Any) -> dict[str, Any]:
    return {
        **{"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl},
        **{key: value for key, value in more.items() if value},
    }


def pypi(package: dict[str, Any]) -> dict[str, Any]:
    name, licence = canonical(package["name"]), package.get("licence")
    # An expression of SPDX and a name that somebody chose are told apart by those who read them.
    licences = [{"license": {"name": licence}}] if licence else []
    purl = f"pkg:pypi/{name}@{quote(package['version'], safe='')}"
    return component("library", package["name"], package["version"], purl, licenses=licences)


def canonical(name: str) -> str:
    """Return a package's name as the index has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def deb(package: dict[str, Any], distribution: str) -> dict[str, Any]:
    vendor, version = distribution.partition("-")[0], quote(package["version"], safe="")
    purl = (
        f"pkg:deb/{vendor}/{quote(package['name'], safe='')}@{version}"
        f"?arch={package['architecture']}&distro={distribution}"
    )
    # Advisories go by the source.
    if package["source"] != package["name"]:
        purl += f"&upstream={quote(package['source'], safe='')}"
    return component("library", package["name"], package["version"], purl)


def cyclonedx(servers: Iterable[dict[str, Any]], name: str) -> dict[str, Any]:
    servers = list(servers)
    serving = next((x for x in servers if x["release"]), {"release": "", "revision": ""})
    found: dict[str, dict[str, Any]] = {}
    needs: dict[str, set[str]] = {}
    app = f"pkg:generic/{quote(name, safe='')}@{serving['release'] or 'none'}"
    needs[app] = set()
    for server in servers:
        refs = {}
        for package in server["python"]:
            entry = pypi(package)
            found[entry["bom-ref"]] = entry
            refs[canonical(package["name"])] = entry["bom-ref"]
        for package in server["python"]:
            ref = refs[canonical(package["name"])]
            named = (refs.get(canonical(x)) for x in package.get("needs", []))
            needs.setdefault(ref, set()).update(x for x in named if x and x != ref)
            if package.get("requested"):
                needs[app].add(ref)
        for package in server["debian"]:
            entry = deb(package, server["distribution"])
            found[entry["bom-ref"]] = entry
    version = collection_version()
    collection = component(
        "application", "carafe.stack", version, f"pkg:generic/carafe.stack@{version}"
    )
    core = pypi({"name": "ansible-core", "version": ansible_version})
    # An app may have the same package.
    found |= {core["bom-ref"]: core} if core["bom-ref"] not in found else {}
    found[collection["bom-ref"]] = collection
    needs[collection["bom-ref"]] = {core["bom-ref"]}
    root = component(
        "application",
        name,
        serving["release"] or "none",
        app,
        description=f"revision {serving['revision']}" if serving["revision"] else "",
    )
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": root,
            "tools": {"components": [collection | {"bom-ref": "tool"}]},
        },
        "components": [found[ref] for ref in sorted(found)],
        "dependencies": [
            {"ref": ref, **({"dependsOn": sorted(needs[ref])} if needs[ref] else {})}
            for ref in sorted(needs)
        ],
    }
    number = uuid.uuid5(NAMESPACE, json.dumps(bill, sort_keys=True))
    return {**bill, "serialNumber": f"urn:uuid:{number}"}


class FilterModule:
    """Ansible asks it for the filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"cyclonedx": cyclonedx}
