#!/usr/bin/python
"""Install Debian packages; heals what an interrupted run of apt has left."""

from __future__ import annotations

DOCUMENTATION = r"""
module: packages
short_description: Install Debian packages in one transaction
description:
  - Installs what is missing of a list of Debian packages, without what they only recommend.
  - The package lists are updated when they are older than an hour, or do not know a package.
  - Waits for whoever else holds the locks of dpkg and apt, and says who that is if it takes too
    long.
  - Where the server was cut off while dpkg worked, C(dpkg --configure -a) comes first.
  - In check mode it lists what it would install, on a server that never updated its lists too.
author: [Carafe (@carafe)]
options:
  name:
    description:
      - Names of packages, each also with a version, as C(nginx=1.26*), or with alternatives, as
        C(systemd-timesyncd | time-daemon), of which the first is installed where none is there. A
        package that provides a name counts as it.
    type: list
    elements: str
    required: true
  start_services:
    description:
      - Whether packages start their services, as Debian has it. V(false) is for who starts them
        later, with the configuration that they are to have. It lasts no longer than this module
        runs, however that ends. Timers start all the same.
    type: bool
    default: true
  own:
    description:
      - Packages whose services, and those of what they need, the playbook starts by itself.
      - Given with O(start_services=false), what else was kept from starting is noted. The next call
        with O(start_services=true) and this option starts it, as its packages would have done, for
        instance once there is a firewall. A reboot starts it too.
    type: list
    elements: str
  wait_seconds:
    description: Seconds to wait, all in all, for whoever holds the locks of dpkg and apt.
    type: int
    default: 600
attributes:
  check_mode:
    description: Looks, changes nothing, and says what it would change.
    support: full
  diff_mode:
    description: Lists the packages.
    support: full
"""

EXAMPLES = r"""
- name: Install nginx, which starts later with a configuration of its own
  carafe.stack.packages:
    name: [nginx, openssl]
    start_services: false

- name: Install nginx, and redis, which starts only when the firewall is there
  carafe.stack.packages:
    name: [nginx, redis-server]
    start_services: false
    own: [nginx]

- name: Load the firewall
  carafe.stack.firewall:

- name: Start redis
  carafe.stack.packages:
    name: [nginx, redis-server]
    own: [nginx]
"""

RETURN = r"""
installed:
  description: Names of the packages that were installed, with those that they need.
  type: list
  elements: str
  returned: success
started:
  description: Names of the services that an earlier call had kept from starting, and this one
    started.
  type: list
  elements: str
  returned: success
due:
  description: Whether there was anything to do, or is, in check mode.
  type: bool
  returned: success
repaired:
  description: Whether dpkg had been cut off, and was brought to its end first.
  type: bool
  returned: success
"""

from ansible_collections.carafe.stack.plugins.module_utils.module import (
    Module,
    options,
    without_default,
)

from ..module_utils import packages

ARGUMENTS = {
    "name": {"type": "list", "elements": "str", "required": True},
    **without_default("own", type="list", elements="str"),
    **options(start_services=True, wait_seconds=600),
}


def install(
    name: list[str],
    start_services: bool,
    wait_seconds: int,
    check: bool,
    own: list[str] | None = None,
) -> dict:
    before, missing, repair = look(name)
    left = packages.is_left()
    waiting = packages.held(own) if own is not None and start_services else []
    due = bool(missing or repair or left or waiting)
    wrong: list[str] = []
    if check:
        new = packages.simulate(missing) if missing else []
        after = before | dict.fromkeys(new, "")
    else:
        if due:
            with packages.alone(wait_seconds, start_services) as apt:
                # Another run may have been at it, for whose end this one has waited.
                _, missing, repair = look(name)
                if missing or repair:
                    apt.install(missing, repair)
                    if not start_services:
                        packages.start_timers(
                            packages.installed(packages.look()).keys() - before.keys()
                        )
                if own is not None:
                    waiting = packages.held(own)
                    if start_services:
                        wrong = packages.start(waiting)
                    packages.keep_held([] if start_services else waiting)
        after = packages.installed(packages.look())
        new = sorted(after.keys() - before.keys())
    started = [x.service for x in waiting] if start_services else []
    return {
        **({"warnings": wrong} if wrong else {}),
        "changed": before != after or repair or left or bool(started),
        "installed": new,
        "started": started,
        "repaired": repair,
        "due": due,
        "diff": {"before": listing(before, after), "after": listing(after, before)},
    }


def look(name: list[str]) -> tuple[dict[str, str], list[str], bool]:
    """Return what is there, what is missing, and whether dpkg is to be brought to an end first."""
    known = packages.look()
    missing = packages.missing(name, known)
    # With a journal dpkg does nothing; what else is broken may be somebody else's work.
    repair = packages.has_journal() or bool(missing and packages.is_interrupted(known))
    return packages.installed(known), missing, repair


def listing(one: dict[str, str], other: dict[str, str]) -> str:
    """Return a line for each package that another list has not, or not so."""
    return "".join(
        f"{name} {version}".strip() + "\n"
        for name, version in sorted(one.items())
        if other.get(name) != version
    )


def main() -> None:
    module = Module(ARGUMENTS)
    module.answer(lambda: install(**module.params, check=module.check_mode))


if __name__ == "__main__":
    main()
