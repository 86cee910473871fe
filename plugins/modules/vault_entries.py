"""Documentation of an action of the control machine: plugins/action/vault_entries.py."""

DOCUMENTATION = r"""
module: vault_entries
short_description: Read and change entries of an encrypted vault on the control machine
description:
  - Reads a file that is encrypted as a whole by C(ansible-vault), and replaces some of its entries
    by others. It is written as a whole or not at all, and encrypted with the secret that it had.
  - Comments in it are lost where an entry is replaced, and stay where entries are added.
options:
  path:
    description: The file, a mapping in YAML.
    type: path
    required: true
  entries:
    description: Entries that it is to have. The others stay as they are.
    type: dict
    default: {}
  only_missing:
    description: Whether an entry that is there stays as it is.
    type: bool
    default: false
author: [Carafe (@carafe)]
attributes:
  check_mode:
    description: Nothing is written.
    support: full
  diff_mode:
    description: What is encrypted is not shown.
    support: none
"""

EXAMPLES = r"""
- name: Change a password
  carafe.stack.vault_entries:
    path: "{{ inventory_dir }}/group_vars/prod/vault.yml"
    entries: {vault_database_password: "{{ new_password }}"}
  no_log: true
  run_once: true
"""

RETURN = r"""
entries:
  description: All entries of the vault, as they are now.
  type: dict
  returned: success
"""
