"""Sign on the control machine what a server's key is known by. The module documents it."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.carafe.stack.plugins.plugin_utils.authority import Authority, certificates

ADVICE = (
    "It is to be the certificate and the key of the stack's own CA, in PEM, as"
    " playbooks/vault.yml writes them into the vault."
)


class ActionModule(ActionBase):
    """The CA's key never leaves the control machine, nor a server's key the server."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        sent = dict(self._task.args)
        try:
            authority = Authority.load(sent.pop("ca_key"))
        except (KeyError, TypeError, ValueError) as error:
            raise AnsibleActionFail(f"internal_tls_ca_key {error}. {ADVICE}") from None
        # Of what is trusted no key travels either.
        own, *_ = certificates(authority.text())
        trusted = [text for given in sent.get("trusted") or [] for text in certificates(given)]
        sent |= {"authority": own, "trusted": list(dict.fromkeys([own, *trusted]))}
        sent.pop("certificate", None)
        done = self.ask(sent, task_vars)
        if "request" in done:
            try:
                certificate = authority.sign(done["request"], sent["names"])
            except Exception as error:
                raise AnsibleActionFail(f"The server's request cannot be signed: {error}") from None
            first, done = done, self.ask({**sent, "certificate": certificate}, task_vars)
            done["changes"] = [*first.get("changes", []), *done.get("changes", [])]
            done["diff"] = [*first.get("diff", []), *done.get("diff", [])]
            done["changed"] = True
        result.update(done)
        result.pop("invocation", None)
        return result

    def ask(self, sent: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        return self._execute_module(
            module_name="carafe.stack.internal_tls", module_args=sent, task_vars=task_vars
        )
