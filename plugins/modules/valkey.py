#!/usr/bin/python
"""Run a user's instance of Valkey by its files."""

from __future__ import annotations

DOCUMENTATION = r"""
module: valkey
short_description: Run a user's instance of Valkey by its files
description:
  - Starts the instance, at each boot too, or restarts it where what runs is older than its files.
    It asks the server, so that what an interrupted run has left undone is made up for.
  - >-
    Keeps the service from running that Debian's package brings, which listens on TCP and lets in
    everybody on the server. One that runs is somebody's, and is left alone.
  - The files of the role valkey come first, see there.
author: [Carafe (@carafe)]
options:
  user:
    description: Unix user whose instance it is.
    type: str
    required: true
  package_service:
    description: Service that the package brings.
    type: str
    default: valkey-server.service
attributes:
  check_mode:
    description: Looks, changes nothing, and says what it would change.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
"""

EXAMPLES = r"""
- name: Run what the role has written
  carafe.stack.valkey:
    user: shop
"""

RETURN = r"""
done:
  description: What systemd was asked to do, for instance C(restart), or is to do in check mode.
  type: list
  elements: str
  returned: success
"""

import pwd
from pathlib import Path

from ansible_collections.carafe.stack.plugins.module_utils.module import Module, options

from ..module_utils import services
from ..module_utils.commands import Failure, run

SETTINGS = Path("/etc/valkey-instances")
UNITS = Path("/etc/systemd/system")
RUN = Path("/run")
PROGRAMS = Path("/usr/bin")


def check_needs(user: str, package_service: str) -> None:
    """Refuse what systemd would only try over and over."""
    program = PROGRAMS / package_service.removesuffix(".service")
    if not program.exists():
        raise Failure(
            f"{program} is not there. Set valkey_manage_packages to true in the inventory's"
            " group_vars, or install what valkey_packages has, and run the playbook again."
        )
    try:
        pwd.getpwnam(user)
    except KeyError:
        raise Failure(
            f"valkey_user is {user!r}, and the server has no such user. The role app makes that of"
            " an app: run site without --tags; or make the user, and run the playbook again."
        ) from None


def unused(package_service: str) -> bool:
    """Tell whether the package's own service does nothing yet, and would at the next boot."""
    state = services.state(package_service)
    return state["ActiveState"] in ("inactive", "failed") and state["UnitFileState"] == "enabled"


def serve(wanted: dict, dry: bool) -> dict:
    user, package_service = wanted["user"], wanted["package_service"]
    unit = f"valkey@{user}.service"
    if not dry:
        check_needs(user, package_service)
    disable = unused(package_service)
    # It makes its socket when it starts, after it has read its settings.
    files = [SETTINGS / f"{user}.conf", UNITS / "valkey@.service", UNITS / "valkey@.service.d"]
    stale = services.is_newer(files, RUN / f"valkey-{user}/valkey.sock")
    helper = f"valkey-sandbox@{user}.service"
    verbs = services.due(services.state(unit, helper), "restart" if stale else "")
    if not dry:
        if disable:
            run("systemctl", "disable", "--quiet", package_service)
        services.act(unit, verbs)
    done = [f"disable {package_service}"] * disable + verbs
    return {"changed": bool(done), "done": done}


def main() -> None:
    arguments = {"user": {"type": "str", "required": True}}
    module = Module({**arguments, **options(package_service="valkey-server.service")})
    module.answer(serve, module.params, module.check_mode)


if __name__ == "__main__":
    main()
