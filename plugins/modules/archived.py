#!/usr/bin/python
"""Pack a folder of an app that is about to go, for the control machine to fetch."""

from __future__ import annotations

DOCUMENTATION = r"""
module: archived
short_description: Pack a folder that is about to go, for the control machine to fetch
description:
  - Makes a tar archive of a folder with all that is in it, which root and one other user can read.
  - Links are packed as links. A folder without any file makes no archive.
  - Refuses where the file system has no room for it, and leaves none that is not whole.
author: [Carafe (@carafe)]
options:
  folder:
    description: Folder that is packed. One that is not there makes no archive.
    type: path
    required: true
  dest:
    description: Archive. Its folder is made, so that nobody can list it.
    type: path
    required: true
  user:
    description: User who fetches it, and may read it.
    type: str
    required: true
  otherwise:
    description: What somebody may do who does without, for the message where there is no room.
    type: str
    default: ""
attributes:
  check_mode:
    description: Says how much it would pack, and packs nothing.
    support: full
  diff_mode:
    description: Shows nothing.
    support: none
"""

EXAMPLES = r"""
- name: Pack what visitors have sent
  carafe.stack.archived:
    folder: /srv/shop/shared
    dest: /srv/shop/leaving/shared.tar
    user: deploy
  become: true
"""

RETURN = r"""
archives:
  description: The archive, or none.
  type: list
  elements: str
  returned: success
  sample: [/srv/shop/leaving/shared.tar]
changes:
  description: What is packed, with its size.
  type: list
  elements: str
  returned: success
  sample: ["pack /srv/shop/shared: 12 files, 3.40 MB"]
"""

from ansible_collections.carafe.stack.plugins.module_utils.module import (
    Module,
    options,
    without_default,
)

from ..module_utils import archive

ARGUMENTS = {
    **without_default("folder", "dest", type="path", required=True),
    **without_default("user", required=True),
    **options(otherwise=""),
}


def main() -> None:
    module = Module(ARGUMENTS)
    module.answer(archive.make, module.params, module.check_mode)


if __name__ == "__main__":
    main()
