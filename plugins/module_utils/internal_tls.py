"""What a server has to be known by to the others: its key, its certificate, whom it trusts."""

from __future__ import annotations

import re
from pathlib import Path

from .certificates import is_pair, openssl, read_certificate
from .commands import Failure, ask
from .files import read
from .services import state

FOLDER = Path("/etc/internal-tls")
UNITS = Path("/etc/systemd/system")
RUN = Path("/run")
PACKAGE = "haproxy.service"
ADDRESS = re.compile(r"[\d.]+|.*:.*")


def units(names: list[str]) -> list[str]:
    """Return what the subject says of a server, for programs that know a client by that alone."""
    return [x for x in names[1:] if not ADDRESS.fullmatch(x) and len(x) <= 64]


def why_due(pair: Path, authority: str, names: list[str]) -> str:
    """Return why the server needs another certificate, nothing where it needs none."""
    has = read_certificate(pair)
    if has is None or not is_pair(read(pair) or ""):
        return "there is none"
    told = re.findall(r"\bOU ?= ?([^,\s]+)", has.subject)
    if has.names != {name.lower() for name in names} or told != units(names):
        return "its names are others"
    signed = ask("openssl", "verify", "-no-CApath", "-CAfile", "/dev/stdin", pair, text=authority)
    if signed.returncode:
        return "the CA is another"
    return "less than a third of its life is left" if has.runs_out else ""


def is_key(text: str | None) -> bool:
    return bool(text) and ask("openssl", "pkey", "-noout", text=text or "").returncode == 0


def new_key() -> str:
    return openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")


def request(key: Path) -> str:
    """Return what asks the CA for a certificate. The names in it are the CA's to say."""
    return openssl("req", "-new", "-key", key, "-subj", "/CN=server")


def pair_of(certificate: str, key: str) -> str:
    """Return a certificate and its key as one text, so that they are replaced at once."""
    text = certificate + key
    if not is_pair(text):
        raise Failure("The certificate that was signed is not for this server's key. Run it again.")
    return text


def quiet_package() -> None:
    """Keep Debian's own service, which would do nothing, from starting at boot.

    One that runs is somebody's own.
    """
    if state(PACKAGE)["ActiveState"] == "inactive":
        ask("systemctl", "disable", "--quiet", PACKAGE)
