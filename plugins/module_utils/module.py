"""What each module is made of: its options, and how it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule

from .commands import Failure
from .words import escaped

KINDS = {bool: "bool", int: "int", str: "str", dict: "dict"}


def options(**defaults: Any) -> dict[str, dict[str, Any]]:
    """Return options of which the default says all; lists are of texts, unless it is of numbers."""
    return {name: option(default) for name, default in defaults.items()}


def option(default: Any) -> dict[str, Any]:
    if isinstance(default, list):
        elements = KINDS[type(default[0])] if default else "str"
        return {"type": "list", "elements": elements, "default": default}
    return {"type": KINDS[type(default)], "default": default}


def without_default(*names: str, **more: Any) -> dict[str, dict[str, Any]]:
    """Return options with no default, texts where ``more`` has no other type."""
    return {name: {"type": "str", **more} for name in names}


def choice(*choices: str, **more: Any) -> dict[str, Any]:
    return {"type": "str", "choices": list(choices), **more}


def entries(options: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Return an option that is a list of such dictionaries, empty by default."""
    more = more or {"default": []}
    return {"type": "list", "elements": "dict", "options": dict(options), **more}


class Module(AnsibleModule):
    """A module with check mode, whose arguments are kept out of the server's journal.

    They are files and settings, with secrets among them. ``no_log`` is not for that: what the
    task says of it takes the place of what the module says.
    """

    def __init__(self, options: Mapping[str, Any], **more: Any) -> None:
        super().__init__(dict(options), supports_check_mode=True, **more)

    def _log_invocation(self) -> None:
        self.log("Invoked")

    def fail_json(self, msg: str, **result: Any) -> NoReturn:
        """Fail; what a message has from others' output does nothing to the terminal it is on."""
        super().fail_json(escaped(str(msg)), **result)

    def answer(self, work: Callable[..., dict[str, Any]], *arguments: Any) -> None:
        """End with what the work returns, or with the sentences in which it fails."""
        try:
            result = work(*arguments)
        except Failure as failure:
            self.fail_json(msg=str(failure))
        except OSError as error:
            # Such as what is refused in a folder of somebody else's; see files.py.
            where = f": {error.filename}" if error.filename else ""
            self.fail_json(msg=f"{error.strerror or error}{where}")
        self.exit_json(**result)
