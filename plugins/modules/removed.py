#!/usr/bin/python
"""Stop and remove what was one app's."""

from __future__ import annotations

DOCUMENTATION = r"""
module: removed
short_description: Take from a server what was one app's
description:
  - Stops units of systemd and programs of supervisord, and removes them with their logs, and
    users, files and folders. Others go on meanwhile, and no service is restarted.
  - What is there is asked of the server, so that a removal that was cut short is gone on with.
author: [Carafe (@carafe)]
options:
  units:
    description:
      - Names of files in C(/etc/systemd/system), with C(*) for any letters. A unit that is made of
        a template is there as a link, in C(multi-user.target.wants).
    type: list
    elements: str
    default: []
  programs:
    description: Names of supervisord's programs, with C(*) for any letters.
    type: list
    elements: str
    default: []
  links:
    description: Links, and where each leads. One that leads elsewhere is somebody else's.
    type: dict
    default: {}
  users:
    description:
      - Users. One whose home is not O(home) stays, since the app has only borrowed it. What still
        runs as one that goes is ended.
    type: list
    elements: str
    default: []
  home:
    description: Home of the users that were made for the app.
    type: str
    default: ""
  paths:
    description: Files and folders, with C(*) for any letters.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Says what would go; nothing does.
    support: full
  diff_mode:
    description: Shows a line for each thing that goes.
    support: full
"""

EXAMPLES = r"""
- name: Remove what runs of an app, and its user
  carafe.stack.removed:
    units: [shop.*.timer, shop.*.service]
    programs: [shop, shop.*]
    users: [shop]
    home: /srv/shop
    paths: [/srv/shop]
  become: true
"""

RETURN = r"""
changes:
  description: What went, or would go, a sentence for each.
  type: list
  elements: str
  returned: success
  sample: [stop the program shop, remove /srv/shop]
"""

from ansible_collections.carafe.stack.plugins.module_utils.module import Module, options

from ..module_utils import removal

ARGUMENTS = options(units=[], programs=[], links={}, users=[], home="", paths=[])


def work(module: Module) -> dict:
    found = removal.remove(module.params, module.check_mode)
    for warning in found.pop("warnings"):
        module.warn(warning)
    return found


def main() -> None:
    module = Module(ARGUMENTS)
    module.answer(work, module)


if __name__ == "__main__":
    main()
