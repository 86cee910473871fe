"""What the role refuses besides what its argument_specs.yml says."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterator

from ansible_collections.carafe.stack.plugins.plugin_utils.problems import PORT, Problem, Server

RANGES = {
    "alerts_interval_minutes": (1, 60),
    "alerts_reminder_hours": (1, None),
    "alerts_smtp_port": PORT,
}
ADDRESS = re.compile(r"[^\s@,<>]+@[^\s@,<>]+")
NAME, VALUE = re.compile(r"[A-Za-z0-9-]+"), re.compile(r"[^\r\n\0\u0100-\U0010ffff]+")


def check_mail(server: Server) -> Iterator[Problem]:
    """What a mail server would refuse at each run, when nobody looks."""
    values = server.values
    to, sender = values.get("alerts_mail_to") or [], values.get("alerts_mail_from")
    user, password = (values.get(f"alerts_smtp_{x}") for x in ("user", "password"))
    for name, addresses in (("alerts_mail_to", to), ("alerts_mail_from", [sender or "a@b"])):
        for address in addresses:
            if not ADDRESS.fullmatch(str(address)):
                yield Problem(name, f"has {address}, and needs addresses such as ada@example.com")
    if to and not values.get("alerts_smtp_host"):
        yield Problem("alerts_smtp_host", "is empty, and alerts_mail_to needs a mail server")
    if bool(user) != bool(password):
        lacks, has = ("password", "user") if user else ("user", "password")
        yield Problem(
            f"alerts_smtp_{lacks}",
            f"is empty, and alerts_smtp_{has} is not",
            "make vault, with vault_alerts_smtp_password in it" if user else "",
        )
    for name in ("user", "password"):
        if not str(values.get(f"alerts_smtp_{name}") or "").isascii():
            yield Problem(
                f"alerts_smtp_{name}", "has letters beyond ASCII, which no login can send"
            )
    if password and values.get("alerts_smtp_security") == "none":
        yield Problem(
            "alerts_smtp_security", "is none, by which the password would go through the net openly"
        )


def check_urls(server: Server) -> Iterator[Problem]:
    """Messages say what is broken on a server, and headers let somebody in."""
    for name in ("alerts_webhook_url", "alerts_heartbeat_url"):
        url = str(server.values.get(name) or "")
        try:
            parts = urllib.parse.urlsplit(url)
            well = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            well = False
        # Not the value: whoever knows it may write to it.
        if url and (not well or not url.isascii() or not url.isprintable() or " " in url):
            yield Problem(name, "is no URL that begins with https:// or http://")
    for name, value in (server.values.get("alerts_webhook_headers") or {}).items():
        if not NAME.fullmatch(str(name)) or not VALUE.fullmatch(str(value)):
            yield Problem(
                "alerts_webhook_headers", f"has {name}, whose name or value is none of a header"
            )


CHECKS = (check_mail, check_urls)
