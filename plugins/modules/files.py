#!/usr/bin/python
"""Write all of a role's files in one trip to the server."""

from __future__ import annotations

DOCUMENTATION = r"""
module: files
short_description: Write many files in one trip to the server
description:
  - >-
    Renders templates on the control machine and then, in one call of a module, makes folders,
    checks all files that change, writes them atomically and removes what is to be absent.
  - Where a check refuses one of them, none of the whole call lands.
author: [Carafe (@carafe)]
options:
  folders:
    description: Folders, each after the one that it lies in.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where it is.
        type: path
        required: true
      owner:
        description: User that it belongs to.
        type: str
        default: root
      group:
        description: Group that it belongs to.
        type: str
        default: root
      mode:
        description: Its permissions, in octal digits and quotes.
        type: str
        default: "0755"
      only_new:
        description: Whether to leave a folder that is there as it is.
        type: bool
        default: false
  files:
    description: Files. Each has one of O(files[].src), O(files[].content) and O(files[].copy).
    type: list
    elements: dict
    default: []
    suboptions:
      dest:
        description: Where it is.
        type: path
        required: true
      src:
        description: Template that makes it, relative to the role's folder C(templates).
        type: str
      vars:
        description: Variables that this template has on top of all others.
        type: dict
      content:
        description: Its text.
        type: str
      copy:
        description: >-
          File on the control machine that it is a copy of, relative to the role's folder C(files).
          C(collection:NAME) is a file that several roles of this collection share.
        type: str
      encoding:
        description: How O(files[].content) is written.
        type: str
        choices: [text, base64]
        default: text
      owner:
        description: User that it belongs to.
        type: str
        default: root
      group:
        description: Group that it belongs to.
        type: str
        default: root
      mode:
        description: Its permissions, in octal digits and quotes.
        type: str
        default: "0644"
      validate:
        description: Command that checks it before it lands. V(%s) in it is a copy of the file.
        type: str
      adopt:
        description: >-
          Whose configuration it is. Where it replaces one that somebody has changed by hand, what
          others need of that, such as programs, sites and what these refer to, goes on in files of
          its own beside it, named C(adopted).
        type: str
        choices: [nginx, supervisor]
      sensitive:
        description: Whether its text is never shown.
        type: bool
        default: false
  backup:
    description: >-
      Whether a copy of each file that is replaced goes to C(/var/backups/carafe), unless it is as
      its package has brought it, or says that Ansible has written it.
    type: bool
    default: false
  trees:
    description: >-
      Folders on the control machine that are copied with all that is in them. Everybody may read
      it; folders that are there stay as they are.
    type: list
    elements: dict
    default: []
    suboptions:
      src:
        description: The folder, relative to the role's folder C(files).
        type: str
        required: true
      dest:
        description: Where its files are to be.
        type: path
        required: true
  absent:
    description: Files and folders that are removed, with all that is in them.
    type: list
    elements: path
    default: []
  checks:
    description: >-
      Commands that check a whole folder before anything lands, each with a copy of the folder as
      it will be. One is run where a file below its folder changes.
    type: list
    elements: dict
    default: []
    suboptions:
      folder:
        description: The folder.
        type: path
        required: true
      command:
        description: The command. V(%s) in it is the copy.
        type: str
        required: true
      needs:
        description:
          - Files that it cannot do without. Only in check mode may one be missing, and then nothing
            is checked, since a package that is yet to come will bring it.
        type: list
        elements: path
        default: []
attributes:
  check_mode:
    support: full
    description: Shows what would be written, also where owners or checkers are yet to come.
  diff_mode:
    support: full
    description: Shows each file that changes, and changed permissions. Never what is sensitive.
"""

EXAMPLES = r"""
- name: Write the configuration
  carafe.stack.files:
    folders:
      - path: /etc/shop
        mode: "0750"
        group: shop
    files:
      - src: etc/shop/shop.conf.j2
        dest: /etc/shop/shop.conf
        validate: /usr/bin/shop --check %s
      - content: "{{ shop_key }}"
        dest: /etc/shop/key
        mode: "0640"
        group: shop
        sensitive: true
    trees:
      - src: systemd
        dest: /etc/systemd/system
    absent:
      - /etc/shop/old.conf
"""

RETURN = r"""
changed_paths:
  description: What was made, written or removed, in this order.
  type: list
  elements: str
  returned: success
changes:
  description: The same, a sentence for each.
  type: list
  elements: str
  returned: success
  sample: [write /etc/shop.conf, remove /etc/old.conf]
"""

import os
from pathlib import Path

from ansible_collections.carafe.stack.plugins.module_utils.module import (
    Module,
    entries,
    options,
    without_default,
)

from ..module_utils import found
from ..module_utils.file_set import File, FileSet, alone, items_of

OWNED = options(owner="root", group="root")
FOLDER = {
    "path": {"type": "path", "required": True},
    **options(mode="0755", only_new=False),
    **OWNED,
}
FILE = {
    "dest": {"type": "path", "required": True},
    **without_default("src", "content", "copy", "validate"),
    "vars": {"type": "dict"},
    "encoding": {"type": "str", "choices": ["text", "base64"], "default": "text"},
    **options(mode="0644", sensitive=False),
    "adopt": {"type": "str", "choices": ["nginx", "supervisor"]},
    **OWNED,
}
TREE = {
    "src": {"type": "str", "required": True},
    "dest": {"type": "path", "required": True},
}
CHECK = {
    "folder": {"type": "path", "required": True},
    "command": {"type": "str", "required": True},
    "needs": {"type": "list", "elements": "path", "default": []},
}
ARGUMENTS = {
    **{"folders": entries(FOLDER), "files": entries(FILE), "trees": entries(TREE)},
    "absent": {"type": "list", "elements": "path", "default": []},
    **options(backup=False),
    "checks": entries(CHECK),
}


def adopted_by(entries):
    """Return the files in which what somebody has configured goes on, where they are not there."""
    return [
        File(path, content=text.encode())
        for entry in entries
        if entry["adopt"]
        for path, text in found.goes_on(entry["adopt"], Path(entry["dest"])).items()
        if not os.path.lexists(path)
    ]


def write(module):
    with alone():
        given = module.params
        items = [*items_of(given), *adopted_by(given["files"])]
        files = FileSet(
            items, module.check_mode, given["checks"], found.is_by_hand if given["backup"] else None
        )
        files.write()
    for note in files.notes:
        module.warn(note)
    if files.paths and not module.check_mode:
        module.log(f"wrote {', '.join(files.paths)}")
    return {
        "changed": bool(files.paths),
        "changed_paths": files.paths,
        "changes": files.changes,
        "diff": files.diff if module._diff else [],
        # It has the texts of all files.
        "invocation": {},
    }


def main():
    module = Module(ARGUMENTS)
    module.answer(write, module)


if __name__ == "__main__":
    main()
