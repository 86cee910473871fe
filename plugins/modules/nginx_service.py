#!/usr/bin/python
"""Start nginx, or let it load what it has not loaded yet."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nginx_service
short_description: Start nginx, or let it load what it has not loaded yet
description:
  - >-
    Asks the server rather than the run: nginx loads what is newer than what it has loaded. So a
    reload that was lost with a run that was cut short is made up for.
  - >-
    Tests the whole configuration before, and fails with what nginx says of it, while nginx goes on
    with the old one. It is restarted only where its package has started it and nobody is connected,
    so that it gets its sandbox.
author: [Carafe (@carafe)]
options:
  owner:
    description: Who configures nginx, as in M(carafe.stack.nginx_info).
    type: str
    default: default
  certificates:
    description: Files with certificates. nginx loads them anew when they are younger.
    type: list
    elements: path
    default: []
attributes:
  check_mode:
    support: full
    description: Says what is due by the files that are on the server.
"""

EXAMPLES = r"""
- name: Serve what is configured
  carafe.stack.nginx_service:
    certificates: [/etc/ssl/shop.pem]
"""

RETURN = r"""
done:
  description: What was due. One or more of C(daemon-reload), C(enable), C(start), C(restart) and
    C(reload).
  type: list
  elements: str
  returned: success
"""

from ansible_collections.carafe.stack.plugins.module_utils.module import Module, options

from ..module_utils import claims, nginx
from ..module_utils.commands import Refused

ARGUMENTS = {
    **options(owner="default"),
    "certificates": {"type": "list", "elements": "path", "default": []},
}


def serve(owner, certificates, check_mode):
    # Two owners may have written their files at the same time.
    with claims.locked(nginx.CLAIMS, check_mode):
        everybody = claims.read(nginx.CLAIMS, owner, nginx.recorded(owner))
        for problem in nginx.conflicts(everybody, owner):
            raise Refused(problem)
        due = nginx.due(certificates)
        if due and not check_mode:
            nginx.act(due)
    return {"changed": bool(due), "done": due}


def main():
    module = Module(ARGUMENTS)
    module.answer(lambda: serve(**module.params, check_mode=module.check_mode))


if __name__ == "__main__":
    main()
