#!/usr/bin/python
"""Have a key, and a certificate of the stack's own CA, by which servers know each other."""

from __future__ import annotations

DOCUMENTATION = r"""
module: internal_tls
short_description: Have a certificate by which the servers of a stack know each other
description:
  - Makes a key on the server, which never leaves it, and has a private CA on the control machine
    sign a certificate for it, whose key never leaves that one.
  - C(/etc/internal-tls/<owner>/server.pem) has the certificate and then the key,
    C(/etc/internal-tls/<owner>/ca.pem) the certificates of the authorities that are trusted.
  - Another certificate is signed where there is none, where its names or the CA are others, and
    once less than a third of its life is left, which is five years. It takes a second trip to the
    server. A run with nothing to do takes one.
options:
  owner:
    description: Whose these are, an app for instance. It names the folder.
    type: str
    default: default
  names:
    description: Names and IP addresses that the server is known by, one at least.
    type: list
    elements: str
    required: true
  group:
    description: Group that may read C(server.pem). Nobody but root and this group can.
    type: str
    default: root
  ca_key:
    description:
      - The CA, its certificate and its key in PEM. It is used on the control machine only, and no
        part of what the server gets.
    type: str
  trusted:
    description:
      - Further authorities that are trusted, in PEM, while one takes the place of another. Keys in
        these texts are left out.
    type: list
    elements: str
    default: []
  program:
    description:
      - Configuration of HAProxy, which passes on to local services what comes over TLS. It is
        loaded anew when it, or what it shows and trusts, is younger than what it has loaded.
    type: str
    default: ""
  unit:
    description: Unit of systemd that runs it. Without one, it is stopped and removed.
    type: str
    default: ""
  authority:
    description: The CA's certificate, which this action takes out of O(ca_key) by itself.
    type: str
  certificate:
    description: What the CA has signed, which this action fills in by itself.
    type: str
attributes:
  check_mode:
    description: Says what would be made and signed; nothing is.
    support: full
  diff_mode:
    description: Shows whom the server trusts. A key is not shown.
    support: full
author: [Carafe (@carafe)]
"""

EXAMPLES = r"""
- name: Be known to the other servers
  carafe.stack.internal_tls:
    owner: shop
    names: [data, 10.0.0.10]
    group: postgres
    ca_key: "{{ vault_internal_ca_key }}"
  become: true
"""

RETURN = r"""
changes:
  description: What was changed, or would be, a sentence for each.
  type: list
  elements: str
  returned: success
  sample: ["make a key", "have a certificate signed: there is none"]
"""

from pathlib import Path

from ansible_collections.carafe.stack.plugins.module_utils.module import (
    Module,
    options,
    without_default,
)

from ..module_utils import internal_tls, services
from ..module_utils.commands import run
from ..module_utils.file_set import Absent, File, FileSet, Folder
from ..module_utils.files import read

ARGUMENTS = {
    **options(owner="default", group="root", program="", unit=""),
    "names": {"type": "list", "elements": "str", "required": True},
    **without_default("ca_key", no_log=True),
    # Certificates, which are no secret.
    "trusted": {"type": "list", "elements": "str", "default": []},
    **without_default("authority", "certificate"),
}


def keep(given: dict, check: bool) -> dict:
    folder = internal_tls.FOLDER / given["owner"]
    key, pair, trusted = (folder / name for name in ("key.pem", "server.pem", "ca.pem"))
    changes = []
    wanted = [Folder(internal_tls.FOLDER), Folder(folder)]
    due = internal_tls.why_due(pair, given["authority"], given["names"])
    trusts = "".join(given["trusted"])
    # Patroni reads anew whom it trusts where its own certificate is another one, and only then.
    if not due and (given["certificate"] or read(trusted) not in (None, trusts)):
        due = "whom it trusts has changed"
    if check or given["certificate"] or not due:
        # At once with the certificate, so that a run that was cut short is gone on with.
        wanted.append(File(trusted, content=trusts.encode()))
    if due:
        text = read(key)
        if not internal_tls.is_key(text):
            changes.append("make a key")
            text = text if check else internal_tls.new_key()
        if text:
            wanted.append(File(key, content=text.encode(), mode=0o600, sensitive=True))
        if given["certificate"]:
            text = internal_tls.pair_of(given["certificate"], text)
    else:
        text = read(pair)
    if text and (given["certificate"] or not due):
        content = text.encode()
        wanted.append(File(pair, group=given["group"], mode=0o640, content=content, sensitive=True))
    files = FileSet(wanted, check)
    changes += [f"write {x.path}" for x in files.due if isinstance(x, File) and x.path != key]
    files.write()
    result = {"changed": bool(changes or files.due), "changes": changes, "diff": files.diff}
    if due and not given["certificate"]:
        changes.append(f"have a certificate signed: {due}")
        result["changed"] = True
        if not check:
            result["request"] = internal_tls.request(key)
    return result


def serve(given: dict, check: bool) -> dict:
    """Have what passes on to local services run, with what lies there now."""
    owner = given["owner"]
    folder, unit = internal_tls.FOLDER / owner, internal_tls.UNITS / f"internal-tls-{owner}.service"
    configuration, loaded = (
        folder / "haproxy.cfg",
        internal_tls.RUN / f"internal-tls-{owner}.loaded",
    )
    if not given["unit"]:
        return stop(unit, configuration, check)
    validate = "/usr/sbin/haproxy -c -q -f %s" if (folder / "server.pem").exists() else None
    files = FileSet(
        [
            File(configuration, content=given["program"].encode(), validate=validate),
            File(unit, content=given["unit"].encode()),
        ],
        check,
    )
    changes = [f"write {x.path}" for x in files.due]
    files.write()
    newer = services.is_newer([configuration, folder / "server.pem", folder / "ca.pem"], loaded)
    restart = any(x.path == unit for x in files.due)
    state = services.state(unit.name)
    verbs = services.due(state, "restart" if restart else "reload" if newer else "")
    changes += [f"{verb} {unit.name}" for verb in verbs if verb != "daemon-reload"]
    if verbs and not check:
        if "start" in verbs:
            internal_tls.quiet_package()
        services.act(unit.name, verbs)
    return {"changed": bool(changes), "changes": changes, "diff": files.diff}


def stop(unit: Path, configuration: Path, check: bool) -> dict:
    if not (unit.exists() or configuration.exists()):
        return {"changed": False, "changes": [], "diff": []}
    files = FileSet([Absent(unit), Absent(configuration)], check)
    if unit.exists() and not check:
        run("systemctl", "disable", "--now", unit.name)
    files.write()
    if not check:
        run("systemctl", "daemon-reload")
    return {"changed": True, "changes": [f"stop {unit.name}"], "diff": files.diff}


def work(given: dict, check: bool) -> dict:
    kept = keep(given, check)
    if "request" in kept:
        return kept
    served = serve(given, check)
    return {
        "changed": kept["changed"] or served["changed"],
        **{name: kept[name] + served[name] for name in ("changes", "diff")},
    }


def main() -> None:
    module = Module(ARGUMENTS)
    module.answer(work, module.params, module.check_mode)


if __name__ == "__main__":
    main()
