"""Ask a service of the stack over TLS, with the server's own certificate on this side, too.

Used by modules, and by programs that run without Ansible.
"""

from __future__ import annotations

import http.client
import json
import ssl
from typing import Any

from .commands import Failure

SECONDS = 5  # for a service that is there, and says nothing


class Unanswered(Failure):
    """Nobody is there, or it is nobody whom the stack's CA knows."""


class Refusal(Failure):
    """The service has answered that it will not, with a status of HTTP."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Peer:
    """Who asks: a certificate with its key in one file of PEM, and the CA that it trusts."""

    def __init__(self, certificate: str, trusted: str) -> None:
        try:
            self.context = ssl.create_default_context(cafile=trusted)
            self.context.load_cert_chain(certificate)
        except OSError as error:
            raise Failure(
                f"The certificate {certificate} and the CA {trusted} cannot be used: {error}. They"
                " are what the role internal_tls makes; run it before this one."
            ) from None

    def ask(
        self,
        place: str,
        path: str,
        body: object = None,
        method: str = "",
        seconds: float = SECONDS,
    ) -> tuple[int, Any]:
        """Return the status and what JSON was answered by a place, which is host:port."""
        host, _, port = place.rpartition(":")
        connection = http.client.HTTPSConnection(
            host.strip("[]"), int(port), timeout=seconds, context=self.context
        )
        text = None if body is None else json.dumps(body)
        try:
            connection.request(method or ("GET" if text is None else "POST"), path, text)
            answer = connection.getresponse()
            said = answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise Unanswered(f"{place} does not answer: {error}") from None
        finally:
            connection.close()
        try:
            return answer.status, json.loads(said)
        except ValueError:
            return answer.status, said
