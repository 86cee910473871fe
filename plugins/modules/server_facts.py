#!/usr/bin/python
"""Ask a server for the few facts that the roles go by."""

from __future__ import annotations

DOCUMENTATION = r"""
module: server_facts
short_description: Ask a server for the few facts that the roles go by
description:
  - >-
    Returns facts by the names and with the values of M(ansible.builtin.setup), whose subset
    C(hardware) also asks for disks, mounts and firmware, which takes twice as long.
  - >-
    Tells as well what the server has that Carafe did not bring, so that nothing of somebody else's
    is taken for the app's: users, groups, folders, units, ports, and what was configured by hand of
    nginx, supervisord and PostgreSQL; and whom the nginx of the role sends requests to.
author: [Carafe (@carafe)]
attributes:
  check_mode:
    support: full
    description: It changes nothing.
"""

EXAMPLES = r"""
- name: Learn what the server is
  carafe.stack.server_facts:
"""

RETURN = r"""
ansible_facts:
  description: >-
    The distribution's name, major version and release, the memory in MiB, the processors, under
    C(ansible_local) what each app has in C(/etc/carafe), by its name, under C(ansible_found)
    what others have on the server, and under C(ansible_clock) what time it has, in seconds since
    1970.
  type: dict
  returned: success
  sample:
    ansible_distribution: Debian
    ansible_distribution_major_version: "13"
    ansible_distribution_release: trixie
    ansible_memtotal_mb: 2048
    ansible_processor_vcpus: 2
    ansible_local: {shop: {environment: prod, memory_mb: 512, connections: 42}}
    ansible_found:
      listeners: [{host: 0.0.0.0, port: 80, name: apache2, pid: 612, unit: apache2.service}]
"""

import json
import os
import platform
import re
import time
from pathlib import Path

from ansible_collections.carafe.stack.plugins.module_utils.module import Module

from ..module_utils import found

APPS = Path("/etc/carafe")
PROC = Path("/proc")


def kept(path: Path) -> object:
    """Return what an app keeps, or why that is not to be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        return f"{path} cannot be read: {error}"


def look() -> dict:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {"ID": "unknown"}
    memory = re.search(r"^MemTotal: +(\d+)", (PROC / "meminfo").read_text(), re.M)
    cpus = (PROC / "cpuinfo").read_text()
    return {
        "ansible_distribution": release["ID"].capitalize(),
        "ansible_distribution_major_version": release.get("VERSION_ID", "").partition(".")[0],
        "ansible_distribution_release": release.get("VERSION_CODENAME", ""),
        # In a container it is these files that know its share.
        "ansible_memtotal_mb": int(memory[1]) // 1024,
        "ansible_processor_vcpus": len(re.findall(r"^processor\s*:", cpus, re.M)) or os.cpu_count(),
        "ansible_local": {x.stem: kept(x) for x in sorted(APPS.glob("*.fact"))},
        "ansible_found": found.look(),
        "ansible_clock": time.time(),
    }


def main() -> None:
    module = Module({})
    module.exit_json(changed=False, ansible_facts=look())


if __name__ == "__main__":
    main()
