#!/usr/bin/python
"""Switch the maintenance page of sites on or off, with no reload of nginx."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nginx_maintenance
short_description: Switch the maintenance page of sites on or off, with no reload of nginx
description:
  - >-
    While it is on, each request to the site gets a 503 and a page, except from the addresses that
    are let in. The role nginx must have configured the site before.
  - Asks nginx afterwards, until it answers so.
author: [Carafe (@carafe)]
options:
  state:
    description: Whether the page is to be shown.
    type: bool
    required: true
  sites:
    description: >-
      The sites that nginx has, with C(name), C(server_names), C(listen), C(listen_tls) and
      C(certificate) of each.
    type: list
    elements: dict
    required: true
  only:
    description: Names of the sites that it is switched for. Empty means all.
    type: list
    elements: str
    default: []
  allow:
    description: >-
      Addresses of visitors that see the site all the same, besides the one that ssh comes from.
    type: raw
    default: []
  page:
    description: What all others get to see, in HTML.
    type: str
    default: ""
attributes:
  check_mode:
    support: full
    description: Says which files it would write or remove, and asks nginx nothing.
"""

EXAMPLES = r"""
- name: Show the page
  carafe.stack.nginx_maintenance:
    state: true
    page: "{{ lookup('ansible.builtin.file', 'maintenance.html', rstrip=false) }}"
    allow: [203.0.113.7]
    sites:
      - name: shop
        server_names: [shop.example.com]
        listen: 80
        listen_tls: 443
        certificate: ""
"""

RETURN = r"""
switched:
  description: Names of the sites.
  type: list
  elements: str
  returned: success
let_in:
  description: Addresses that see the sites.
  type: list
  elements: str
  returned: success
changed_paths:
  description: What was written or removed.
  type: list
  elements: str
  returned: success
"""

from ansible_collections.carafe.stack.plugins.module_utils.module import Module, options

from ..module_utils import nginx_maintenance as maintenance
from ..module_utils.commands import Failure
from ..module_utils.files import diff

ARGUMENTS = {
    "state": {"type": "bool", "required": True},
    "sites": {"type": "list", "elements": "dict", "required": True},
    "allow": {"type": "raw", "default": []},
    **options(only=[], page=""),
}


def switch(wanted, check_mode):
    on, only = wanted["state"], wanted["only"]
    sites = [x for x in wanted["sites"] if not only or x["name"] in only]
    names = only or [x["name"] for x in sites]
    allow = maintenance.words(wanted["allow"])
    if problems := list(maintenance.problems(names, allow)):
        raise Failure(" ".join(problems))
    ways = maintenance.let_in(allow)
    changes = {}
    for name in names:
        changes |= maintenance.due(name, on, wanted["page"], ways)
    if not check_mode:
        maintenance.switch(on, changes)
        silent = [x["name"] for x in sites if not maintenance.answers(x, on)]
        if silent:
            raise Failure(
                f"Maintenance is {'on' if on else 'off'} by its files in {maintenance.DATA},"
                f" but nginx does not answer so for {', '.join(silent)}. Does it run (systemctl"
                " status nginx), and has it loaded its sites? This starts it, or lets it load what"
                " it has not: ansible-playbook site.yml --tags nginx"
            )
    before, after = ({"state": x} for x in (("absent", "there") if on else ("there", "absent")))
    return {
        "changed": bool(changes),
        "switched": names,
        "let_in": ways,
        "changed_paths": [str(path) for path in changes],
        "diff": [diff(path, before, after) for path in changes],
    }


def main():
    module = Module(ARGUMENTS)
    module.answer(switch, module.params, module.check_mode)


if __name__ == "__main__":
    main()
