"""The options of the modules that make roles and databases."""


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  roles:
    description: Database roles. One that is not in the list is left alone.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the role.
        type: str
        required: true
      password:
        description: Password of the role. Without one it can come in by V(peer) or V(cert) only.
        type: str
      login:
        description: Whether the role may connect.
        type: bool
        default: true
      member_of:
        description: Roles that it is a member of. It is taken out of every other.
        type: list
        elements: str
        default: []
      settings:
        description: Settings that its sessions start with, and no others. Several names are a list.
        type: dict
        default: {}
  databases:
    description:
      - Databases. Nobody but the owner, its members and the writers can connect to one. A database
        that is not in the list is left alone.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the database.
        type: str
        required: true
      owner:
        description: Role that owns the database, and makes the tables in it. Each database has one.
        type: str
      writers:
        description: Roles that read and write the rows of every table that the owner makes.
        type: list
        elements: str
        default: []
      extensions:
        description: Extensions of the database.
        type: list
        elements: str
        default: []
      locale:
        description: Collation and character type. It is fixed when the database is made.
        type: str
        default: C.UTF-8
"""
