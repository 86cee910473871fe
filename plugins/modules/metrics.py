#!/usr/bin/python
"""Have Prometheus find numbers of this server, and say who may ask."""

from __future__ import annotations

DOCUMENTATION = r"""
module: metrics
short_description: Have Prometheus find numbers of this server, and say who may ask
description:
  - >-
    Runs Debian's exporters where O(address) says, and a program that writes every five minutes what
    M(carafe.stack.status) shows, in numbers, which node's exporter hands on. Their sandboxes are
    files of the role metrics, see there.
  - What an owner wants, an app for instance, is kept in C(/etc/carafe/metrics.d/). An exporter runs
    for as long as somebody wants it.
author: [Carafe (@carafe)]
options:
  state:
    description: Whether this owner wants metrics.
    type: str
    choices: [present, absent]
    default: present
  owner:
    description: Who wants them.
    type: str
    default: default
  address:
    description: >-
      Address of the server at which the exporters listen. The server has it once. When empty, this
      owner wants none.
    type: str
    default: ""
  allowed_addresses:
    description: Addresses and networks that may ask, besides the server itself.
    type: list
    elements: str
    default: []
  postgres:
    description: >-
      How the exporter of PostgreSQL connects, in libpq's words. When empty, this owner wants none.
    type: str
    default: ""
  nginx:
    description: >-
      Place of nginx's stub_status for its exporter. The server has it once. When empty, this owner
      wants none.
    type: str
    default: ""
attributes:
  check_mode:
    description: Looks, changes nothing, and says what it would change.
    support: full
  diff_mode:
    description: Shows what systemd is told of the exporters, and names what is done.
    support: full
"""

EXAMPLES = r"""
- name: Let Prometheus ask
  carafe.stack.metrics:
    owner: shop
    address: 10.0.0.5
    allowed_addresses: [10.0.0.2]
"""

RETURN = r"""
changes:
  description: What was done, or is due in check mode.
  type: list
  elements: str
  returned: success
"""

import socket
import time
from pathlib import Path

from ansible_collections.carafe.stack.plugins.module_utils.module import Module, choice, options

from ..module_utils import (
    alerts,
    claims,
    commands,
    exporters,
    files,
    metrics,
    processes,
    programs,
    services,
    status_program,
)
from ..module_utils.commands import Refused, show

# Of this module's own text, so that they travel with it.
PROGRAM = programs.names(metrics, alerts, exporters, *status_program.PARTS)
CLAIMS = Path("/etc/carafe/metrics.d")
UNITS = Path("/etc/systemd/system")
TIMER = "metrics.timer"
SERVICE = "metrics.service"
DROP_IN = "listen.conf"
SANDBOX = "carafe.conf"
PATIENCE = 15  # seconds for an exporter to listen


def claim(wanted: dict) -> dict | None:
    """Return what an owner claims; None where it wants nothing."""
    if wanted["state"] == "absent" or not wanted["address"]:
        return None
    for variable, says in exporters.problems(wanted["address"], wanted["allowed_addresses"]):
        raise Refused(f"{variable} {says}. Correct it in group_vars, and run the playbook again.")
    names = ("address", "allowed_addresses", exporters.POSTGRES, exporters.NGINX)
    return {name: wanted[name] for name in names}


def once(claim: dict) -> dict:
    """Return what a claim states of what the server has once."""
    stated = {"metrics_address": claim["address"]}
    return stated | ({"metrics_nginx": claim["nginx"]} if claim["nginx"] else {})


def bring_about(wanted: dict, dry: bool) -> dict:
    """Write what follows from all claims, and have systemd run that."""
    owner, mine = wanted["owner"], claim(wanted)
    if mine is None and not (CLAIMS / f"{owner}.json").exists():
        return result([], [])
    with claims.locked(CLAIMS, dry):
        everybody = claims.agreed(CLAIMS, owner, mine, once)
        done = ["the program metrics: written"] * bool(
            everybody and programs.install("metrics", PROGRAM, dry)
        )
        if everybody and not Path(exporters.TEXTFILES).is_dir():
            done.append(f"{exporters.TEXTFILES}: made")
            if not dry:
                Path(exporters.TEXTFILES).mkdir(parents=True)
                # Whatever the umask is: an exporter reads it.
                for folder in (Path(exporters.TEXTFILES), Path(exporters.TEXTFILES).parent):
                    folder.chmod(0o755)
        diff = []
        running = exporters.wanted(everybody)
        for kind, exporter in exporters.EXPORTERS.items():
            if kind not in running:
                done += stop(exporter.unit, dry)
                continue
            verbs = keep(exporter, text(kind, running, everybody), diff, dry)
            if verbs and not dry:
                await_answer(exporter, address_of(everybody))
            done += verbs
        done += keep_looking(bool(everybody), dry)
        # Last, so that a run that was cut short is gone on with.
        if claims.claim(CLAIMS, owner, mine, dry):
            done.append(f"{CLAIMS / owner}.json: {'written' if mine else 'removed'}")
    return result(done, diff)


def text(kind: str, running: dict, everybody: dict) -> str:
    allowed = [x for data in everybody.values() for x in data["allowed_addresses"]]
    return exporters.drop_in(kind, running[kind], address_of(everybody), allowed)


def address_of(everybody: dict) -> str:
    return next(iter(everybody.values()))["address"]


def keep(exporter: exporters.Exporter, wanted: str, diff: list, dry: bool) -> list[str]:
    """Run an exporter by its files, at each boot too."""
    folder = UNITS / f"{exporter.unit}.d"
    path, done = folder / DROP_IN, []
    before = files.read(path) or ""
    if before != wanted:
        done.append(f"{path}: written")
        diff.append({"before": before, "after": wanted, "before_header": str(path)})
        if not dry:
            folder.mkdir(exist_ok=True)
            files.write(path, wanted)
    if not dry and not Path(exporter.program).exists():
        raise commands.Failure(
            f"{exporter.program} is not there. Set metrics_manage_packages to true in the"
            " inventory's group_vars, or install what metrics_packages has, and run the playbook"
            " again."
        )
    (shown,) = show("MainPID", exporter.unit)
    parts = [exporter.program, *(folder.glob("*.conf") if folder.is_dir() else ())]
    stale = bool(done) or processes.is_older(shown["MainPID"], parts)
    verbs = services.due(services.state(exporter.unit), "restart" if stale else "")
    return done + act(exporter.unit, verbs, dry)


def await_answer(exporter: exporters.Exporter, address: str) -> None:
    """Fail where an exporter does not get to listen: it would be started over and over."""
    until = time.monotonic() + PATIENCE
    place = (exporters.reached_at(address), exporter.port)
    while True:
        try:
            socket.create_connection(place, timeout=1).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise commands.Failure(
                    f"{exporter.unit} does not listen at {address}, port {exporter.port}: {error}."
                    f" Its words are in journalctl -u {exporter.unit} -n 20. metrics_address needs"
                    " an address of the server itself; correct it in group_vars, or stop what has"
                    " the port, and run the playbook again."
                ) from None
        time.sleep(0.1)


def stop(unit: str, dry: bool) -> list[str]:
    """Stop what nobody wants any more, and leave one alone that somebody runs by himself."""
    folder = UNITS / f"{unit}.d"
    if not (folder / DROP_IN).exists():
        return []
    state = services.state(unit)
    verbs = ["disable"] * (state["UnitFileState"] == "enabled")
    verbs += ["stop"] * (state["ActiveState"] not in ("inactive", "failed"))
    done = act(unit, verbs, dry)
    # Last the one that says that it is to be stopped.
    for path in (folder / SANDBOX, folder / DROP_IN):
        if path.exists():
            done.append(f"{path}: removed")
            if not dry:
                path.unlink()
    return done


def keep_looking(wanted: bool, dry: bool) -> list[str]:
    """Have the timer run the program, or take away what it has written last."""
    state = services.state(TIMER, SERVICE)
    if wanted:
        return act(TIMER, services.due(state), dry)
    verbs = ["disable"] * (state["UnitFileState"] == "enabled")
    verbs += ["stop"] * (state["ActiveState"] == "active")
    done = act(TIMER, verbs, dry)
    if metrics.FILE.exists():
        done.append(f"{metrics.FILE}: removed")
        if not dry:
            metrics.FILE.unlink()
    return done


def act(unit: str, verbs: list[str], dry: bool) -> list[str]:
    if not dry:
        services.act(unit, verbs)
    return [f"{unit}: {verb}" for verb in verbs if verb != "daemon-reload"]


def result(done: list[str], diff: list[dict]) -> dict:
    prepared = [{"prepared": "".join(f"{line}\n" for line in done)}] if done else []
    return {"changed": bool(done), "changes": done, "diff": [*diff, *prepared]}


def main() -> None:
    module = Module(
        {
            "state": choice("present", "absent", default="present"),
            **options(owner="default", address="", allowed_addresses=[], postgres="", nginx=""),
        }
    )
    module.answer(bring_about, module.params, module.check_mode)


if __name__ == "__main__":
    main()
