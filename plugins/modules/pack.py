"""Documentation of an action that runs on the control machine alone: plugins/action/pack.py."""

DOCUMENTATION = r"""
module: pack
short_description: Pack an app's code into one archive on the control machine
description:
  - Collects the code of an app from a folder or a git repository, or the name of a package, and
    packs it into an archive in the cache of the control machine, C($XDG_CACHE_HOME/carafe), which
    is for its user alone. The same content gives the same archive.
  - Several runs may pack at the same time, other versions of one repository too.
  - Nothing goes to the server, so it never reports a change, and a dry run does the same.
options:
  source:
    description: Where the code comes from.
    type: str
    choices: [local, git, package]
    required: true
  path:
    description: Folder on the control machine, for the source V(local).
    type: str
  repository:
    description: URL of the git repository, for the source V(git). Its submodules come along.
    type: str
  package:
    description: Requirement of a Python package, for the source V(package).
    type: str
  version:
    description:
      - Branch, tag or commit of the repository, the default branch when left out.
      - Version of the package, where its requirement has none.
    type: str
  subdirectory:
    description: Folder in the code that holds the app.
    type: str
    default: .
  exclude:
    description: Names and patterns of files and folders that are left out.
    type: list
    elements: str
    default: []
  include:
    description:
      - Names and patterns of files and folders that come along although they look like secrets, or
        are links that lead out of the folder. What else does is left at home, and named in a
        warning; what is committed comes along in any case, but for the history.
    type: list
    elements: str
    default: []
  files:
    description: Files that are added, each with C(path) and C(content).
    type: list
    elements: dict
    default: []
  requirements:
    description:
      - File that says which Python packages are installed. When empty, the first that is there of
        pylock.toml, uv.lock, poetry.lock, Pipfile.lock, requirements.txt and pyproject.toml.
    type: str
    default: ""
  override:
    description:
      - Requirements, with name, that take the place of whatever O(requirements) says of these
        packages, or are added. One without extras has those that are asked for there.
    type: list
    elements: str
    default: []
  installer:
    description: What installs them. V(pip) reads no lock, but one of pipenv's.
    type: str
    choices: [uv, pip]
    default: uv
  serving:
    description:
      - A release that serves, with its C(label) and its C(code), as M(carafe.stack.release) tells
        them at the step C(serving). Its code is packed once more, whatever O(path) and O(version)
        have by now. It fails where it cannot be had any more.
    type: dict
    default: {}
author: [Carafe (@carafe)]
"""

EXAMPLES = r"""
- name: Pack the code
  carafe.stack.pack:
    source: git
    repository: https://git.example.com/you/shop.git
    version: v1.4.0
  register: packed
"""

RETURN = r"""
archive:
  description: Path of the archive on the control machine.
  type: str
  returned: success
size:
  description: Size of the archive in bytes.
  type: int
  returned: success
revision:
  description: SHA-256 of all that is in it, in hexadecimal.
  type: str
  returned: success
code:
  description: SHA-256 of all that a release is made of by this, in hexadecimal.
  type: str
  returned: success
dependencies:
  description: SHA-256 of what pip is asked for, in hexadecimal.
  type: str
  returned: success
requirements:
  description: Path in the archive of the file that pip reads.
  type: str
  returned: success
lock:
  description: Which tool's lock it is, such as V(uv.lock), or nothing.
  type: str
  returned: success
lock_version:
  description: Version of poetry that has made its lock, where that says so.
  type: str
  returned: success
hashed:
  description: Whether a requirement has a hash.
  type: bool
  returned: success
python_path:
  description: Folders in the archive with the app's code, and what says its name, for PYTHONPATH.
  type: list
  elements: str
  returned: success
override:
  description: Path in the archive of the requirements file of O(override), or nothing.
  type: str
  returned: success
override_hashed:
  description: Whether each of those requirements has a hash.
  type: bool
  returned: success
built:
  description: A requirement that is built even where only wheels are wanted, or nothing.
  type: str
  returned: success
label:
  description: What people call this version, such as V(v1.4.0 46b2c12fc9).
  type: str
  returned: success
"""
