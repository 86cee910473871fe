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
      sensitive:
        description: Whether its text is never shown.
        type: bool
        default: false
      backup:
        description: Whether to keep the file as it was beside itself, when its text changes.
        type: bool
        default: false
  trees:
    description: Folders on the control machine that are copied with all that is in them.
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
      mode:
        description: Permissions of the files.
        type: str
        default: "0644"
      directory_mode:
        description: Permissions of folders that are not there yet.
        type: str
        default: "0755"
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
backups:
  description: Names under which files were kept as they had been.
  type: list
  elements: str
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.carafe.stack.plugins.module_utils.file_set import (
    FileSet,
    Refused,
    locked,
)

OWNED = {
    "owner": {"type": "str", "default": "root"},
    "group": {"type": "str", "default": "root"},
}
FOLDER = {
    "path": {"type": "path", "required": True},
    **OWNED,
    "mode": {"type": "str", "default": "0755"},
    "only_new": {"type": "bool", "default": False},
}
FILE = {
    "dest": {"type": "path", "required": True},
    "src": {"type": "str"},
    "vars": {"type": "dict"},
    "content": {"type": "str"},
    "copy": {"type": "str"},
    "encoding": {"type": "str", "choices": ["text", "base64"], "default": "text"},
    **OWNED,
    "mode": {"type": "str", "default": "0644"},
    "validate": {"type": "str"},
    "sensitive": {"type": "bool", "default": False},
    "backup": {"type": "bool", "default": False},
}
TREE = {
    "src": {"type": "str", "required": True},
    "dest": {"type": "path", "required": True},
    "mode": {"type": "str", "default": "0644"},
    "directory_mode": {"type": "str", "default": "0755"},
}
CHECK = {
    "folder": {"type": "path", "required": True},
    "command": {"type": "str", "required": True},
}


def many(options):
    return {"type": "list", "elements": "dict", "default": [], "options": options}


def main():
    module = AnsibleModule(
        {
            "folders": many(FOLDER),
            "files": many(FILE),
            "trees": many(TREE),
            "absent": {"type": "list", "elements": "path", "default": []},
            "checks": many(CHECK),
        },
        supports_check_mode=True,
        # The arguments are the files, which are not for the server's journal.
        no_log=True,
    )
    wanted = module.params
    backups = []
    try:
        with locked():
            files = FileSet(wanted, module.check_mode)
            shown = [entry for item in files.due for entry in item.diff()]
            notes = files.check()
            if not module.check_mode:
                backups = files.land()
    except Refused as problem:
        module.fail_json(msg=str(problem), invocation={})
    for note in notes:
        module.warn(note)
    changed = [str(item.path) for item in files.due]
    if changed and not module.check_mode:
        module.log(f"wrote {', '.join(changed)}")
    module.exit_json(
        changed=bool(changed),
        changed_paths=changed,
        backups=backups,
        diff=shown if module._diff else [],
        invocation={},
    )


if __name__ == "__main__":
    main()
