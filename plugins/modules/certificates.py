#!/usr/bin/python
"""Have TLS certificates, in the two stages between which a web server starts."""

from __future__ import annotations

DOCUMENTATION = r"""
module: certificates
short_description: Have TLS certificates, and have them renewed
description:
  - V(prepare) writes what renews certificates, makes the private CA and what it signs, brings files
    of one's own, and puts a stand-in where a certificate has yet to be issued, so that a web server
    can start.
  - V(issue) orders what is due from an ACME directory, which the web server answers.
  - V(remove) removes an owner's certificates and keys, and its list, so that none is renewed.
  - Whoever uses certificates loads those that changed.
  - Each owner's list is kept in C(/etc/carafe/certificates.d), where the timer finds it. Where two
    owners want different certificates by one name, nothing is changed, and the failure names both.
author: [Carafe (@carafe)]
options:
  stage:
    description: What to do.
    type: str
    choices: [prepare, issue, remove]
    required: true
  owner:
    description: Whose certificates these are, an app for instance.
    type: str
    default: default
  certificates:
    description: Certificates that are wanted, needed but for V(remove).
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the certificate, and of its file in C(/var/lib/certificates).
        type: str
        required: true
      names:
        description: Host names that it is for, one at least.
        type: list
        elements: str
      source:
        description: Where it comes from.
        type: str
        choices: [acme, ca, files]
        required: true
      certificate_file:
        description: File on the control machine that O(certificate_texts) has the text of.
        type: str
      key_file:
        description: File on the control machine that O(key_texts) has the text of.
        type: str
  certificate_texts:
    description: Certificates of one's own, in the order of those whose source is V(files).
    type: list
    elements: str
    default: []
  key_texts:
    description: Their private keys.
    type: list
    elements: str
    default: []
  units:
    description: Files of systemd that let the timer renew, by path.
    type: dict
    default: {}
  directory:
    description: URL of the ACME directory, needed but for V(remove).
    type: str
    default: ""
  staging_directory:
    description: URL of a directory that each order is rehearsed with. Empty is no rehearsal.
    type: str
    default: ""
  email:
    description: Address that the directory may write to.
    type: str
    default: ""
  ca_bundle:
    description: File with the authorities by which the directory is trusted.
    type: str
    default: ""
  key_type:
    description: Kind of the private keys of what is ordered.
    type: str
    choices: [ecdsa, rsa]
    default: ecdsa
  webroot:
    description: Folder from which the web server answers challenges.
    type: path
    default: /var/lib/certificates/webroot
  check_names:
    description: Whether the server first asks itself for a file by each name.
    type: bool
    default: true
  reload:
    description: Units that load certificates that changed.
    type: list
    elements: str
    default: []
  retry:
    description: Whether to order at once after a failed order.
    type: bool
    default: false
attributes:
  check_mode:
    description: Looks, changes nothing, and says what it would change.
    support: full
  diff_mode:
    description: Shows what the timer is told, and which certificates are made.
    support: full
"""

EXAMPLES = r"""
- name: Have a certificate of a private CA
  carafe.stack.certificates:
    stage: prepare
    certificates:
      - name: internal
        names: [internal.example.com]
        source: ca
    directory: https://acme-v02.api.letsencrypt.org/directory
"""

RETURN = r"""
changes:
  description: The same as RV(done).
  type: list
  elements: str
  returned: with V(remove)
done:
  description: A line for each thing that was done, or is due in check mode.
  type: list
  elements: str
  returned: success
"""

import contextlib
from pathlib import Path

from ansible_collections.carafe.stack.plugins.module_utils.module import (
    Module,
    choice,
    entries,
    options,
    without_default,
)

from ..module_utils import certificates, claims, file_set, files, programs
from ..module_utils.commands import Failure
from ..module_utils.file_set import File

ITEM = {
    "name": {"type": "str", "required": True},
    "names": {"type": "list", "elements": "str"},
    "source": choice("acme", "ca", "files", required=True),
    **without_default("certificate_file"),
    **without_default("key_file", no_log=False),
}
ARGUMENTS = {
    "stage": choice("prepare", "issue", "remove", required=True),
    "certificates": entries(ITEM),
    "key_texts": {"type": "list", "elements": "str", "default": [], "no_log": True},
    "key_type": choice("ecdsa", "rsa", default="ecdsa", no_log=False),
    "webroot": {"type": "path", "default": "/var/lib/certificates/webroot"},
    **options(owner="default", certificate_texts=[], units={}, reload=[], retry=False),
    **options(directory="", staging_directory="", email="", ca_bundle="", check_names=True),
}
# What the timer is to know.
LISTED = (
    *("certificates", "directory", "staging_directory", "email", "ca_bundle", "key_type"),
    *("webroot", "check_names", "reload"),
)
# Of the program that renews.
PROGRAM = ["certificates", "commands", "files", "services"]


def main() -> None:
    module = Module(ARGUMENTS)
    wanted, dry, done, diff = module.params, module.check_mode, [], []
    if wanted["stage"] == "remove":
        module.answer(leave, wanted["owner"], dry)
    items = wanted["certificates"]
    if problems := list(certificates.problems(items)):
        module.fail_json(msg=f"certificates_wanted: {' '.join(problems)}")
    listed = {name: wanted[name] for name in LISTED}
    listed["certificates"] = [{x: item[x] for x in ("name", "names", "source")} for item in items]
    pairs = with_pairs(listed["certificates"], wanted["certificate_texts"], wanted["key_texts"])
    keeper = certificates.Keeper(
        {**listed, "retry": wanted["retry"], "certificates": pairs}, dry, done.append
    )
    prepare = wanted["stage"] == "prepare"
    try:
        with contextlib.nullcontext() if dry else certificates.alone():
            if prepare:
                write(wanted, listed, dry, done, diff)
            step = keeper.prepare if prepare else keeper.issue
            failures = certificates.run(keeper, step) if items else []
    except Failure as failure:
        failures = [str(failure)]
    if failures:
        module.fail_json(msg=" ".join(failures), done=done)
    diff.append({"before": "", "after": "".join(f"{line}\n" for line in done)})
    module.exit_json(changed=bool(done), done=done, diff=diff)


def leave(owner: str, dry: bool) -> dict:
    """Remove the certificates that an owner has, and that no other has too."""
    folder = certificates.CONFIGURATIONS
    with contextlib.nullcontext() if dry else certificates.alone():
        mine = claims.stored(folder, owner)
        with claims.locked(folder, dry or mine is None):
            others = claims.read(folder, owner, None)
            theirs = {x["name"] for claim in others.values() for x in claim["certificates"]}
            names = [x["name"] for x in mine["certificates"]] if mine else []
            done = certificates.remove([x for x in names if x not in theirs], bool(others), dry)
            # Last, so that a removal that was cut short is gone on with.
            if claims.claim(folder, owner, None, dry):
                done.append(f"{folder / owner}.json: removed")
    diff = [{"prepared": "".join(f"{line}\n" for line in done)}] if done else []
    return {"changed": bool(done), "done": done, "changes": done, "diff": diff}


def with_pairs(items: list[dict], texts: list[str], keys: list[str]) -> list[dict]:
    """Add to certificates of one's own what their files hold, or None where one was not read."""
    own = [item["name"] for item in items if item["source"] == "files"]
    pairs = dict.fromkeys(own)
    if len(own) == len(texts) == len(keys):
        read = zip(own, texts, keys, strict=True)
        pairs = {name: f"{text.strip()}\n{key.strip()}\n" for name, text, key in read}
    return [x | ({"pair": pairs[x["name"]]} if x["name"] in pairs else {}) for x in items]


def names(claim: dict) -> dict[str, list[str]]:
    """Return the names of the certificates that an owner claims, each of which is there once."""
    return {f"certificates_wanted.{x['name']}": x["names"] for x in claim["certificates"]}


def write(wanted: dict, listed: dict, dry: bool, done: list[str], diff: list[dict]) -> None:
    """Write the list, and what renews by it; where none is wanted any more, the list goes."""
    folder, owner = certificates.CONFIGURATIONS, wanted["owner"]
    mine = listed if listed["certificates"] else None
    with claims.locked(folder, dry):
        claims.agreed(folder, owner, mine, names)
        path = folder / f"{owner}.json"
        before = files.read(path)
        if claims.claim(folder, owner, mine, dry):
            done.append(f"{path}: {'written' if mine else 'removed'}")
            diff.append(files.diff(path, before, claims.text(mine)))
    if mine is None:
        return
    if programs.install("certificates", PROGRAM, dry):
        done.append(f"{programs.FOLDER / 'certificates'}: written")
    units = [
        File(Path(path), None, None, content=x.encode()) for path, x in wanted["units"].items()
    ]
    written = file_set.write(units, dry)
    done += [f"{path}: written" for path in written.paths]
    diff += written.diff


if __name__ == "__main__":
    main()
