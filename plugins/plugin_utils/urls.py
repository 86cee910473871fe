"""Find a password or token in a URL, in any text that has URLs in it, without ever showing it.

A URL is kept and shown by whatever is given it: git, pip, the list of processes, logs, messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/{2,}", re.ASCII)
# git takes these for a host, a colon and a path; what comes before the colon is a user's name.
SCP = re.compile(r"\s*[\w.+-]+:(?!sha\d+:)[^\s/@]+@[\w.-]+:\S*")
WEB = re.compile(r"(?:\w+\+)?https?|(?:\w+\+)?ftps?", re.IGNORECASE)
# As the field writes it, where a program is to put it in at run time.
REFERENCE = re.compile(r"\$(\w+|\{\w+\})|%\w+%")
# What hosts of code and packages begin their tokens with.
TOKEN = re.compile(
    r"(?<![A-Za-z0-9])("
    r"gh[oprsu]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|gl[a-z]{2,6}-[\w-]{20,}|pypi-AgE[\w-]{16,}"
    r"|npm_[A-Za-z0-9]{30,}|xox[a-z]-[\w-]{10,}|ATBB\w{20,}|ATCTT\w{20,}|hf_[A-Za-z0-9]{30,}"
    r"|dop_v1_\w{20,}|(?:AKIA|ASIA)[0-9A-Z]{16})"
)
TOKEN_USERS = re.compile(r"x-(access|oauth)-\w+|oauth2|gitlab-ci-token|__token__", re.IGNORECASE)
SECRET_PARAMETER = re.compile(
    r"(.*(token|secret|passw(or)?d|passphrase|credentials?|signature|authorization|apikey"
    r"|accesskey|[_.-]key))|key|auth|pass|pwd|sig|jwt",
    re.IGNORECASE,
)


def urls(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield scheme, what comes before the last @ of the authority or '', and the rest of each."""
    for found in SCHEME.finditer(text):
        rest = re.split(r"\s", text[found.end() :], maxsplit=1)[0]
        authority = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
        user, at, _ = authority.rpartition("@")
        port = re.search(r":([^\]]*)$", authority)
        # A password with a slash in it: what stands in the place of a port is no number.
        if not at and port and not re.fullmatch(r"\d*", port[1]) and "@" in rest:
            user = rest.rpartition("@")[0]
        yield found[1], user, rest[len(user) + 1 if user or at else 0 :]


def reference(text: str) -> bool:
    return not text or bool(REFERENCE.fullmatch(text))


def credential(text: str) -> str:
    """Return which credential a text has in one of its URLs, as words for a message, or ''."""
    for scheme, before, rest in urls(text):
        user, _, password = before.partition(":")
        if not reference(password):
            return "a password in its URL"
        # git@ is what everybody writes: it says nothing. Nor does a name before ${PASSWORD}.
        if not (reference(user) or user == "git" or password) and (
            WEB.fullmatch(scheme) or TOKEN_USERS.fullmatch(user)
        ):
            return "a name or password in its URL"
        parameters = re.split(r"[?#]", rest, maxsplit=1)[1:]
        for parameter in re.split(r"[?#&;]", parameters[0]) if parameters else []:
            name, _, value = parameter.partition("=")
            if SECRET_PARAMETER.fullmatch(unquote(name)) and not reference(value):
                return f"a secret in its URL, as {unquote(name)}"
        if TOKEN.search(unquote(f"{user} {rest}")):
            return "a token in its URL"
    return "a password in its URL" if SCP.fullmatch(text) else ""


def without_credentials(text: str) -> str:
    """Return a text for a message, with nothing before the @ of a URL, and no secret parameter."""
    text = re.sub(r"(:/{2,})[^\s/?#@]*(?:@[^\s/?#@]*)*@", r"\1", text)
    text = re.sub(
        r"([?#&;])([^\s=?#&;]+)=([^\s&;#]+)",
        lambda m: f"{m[1]}{m[2]}=…" if SECRET_PARAMETER.fullmatch(unquote(m[2])) else m[0],
        text,
    )
    return TOKEN.sub("…", text)


def texts(value: Any) -> Iterator[str]:
    """Yield all texts of a value, whatever it is made of."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield str(key)
            yield from texts(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from texts(entry)


def credential_in(value: Any) -> str:
    """Return what credential() does for the first text of a value that has one."""
    return next((found for text in texts(value) if (found := credential(text))), "")
