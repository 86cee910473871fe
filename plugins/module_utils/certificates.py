"""Bring the certificates of this server to what is wanted of them.

A module of Ansible does it in two stages, since a web server does not start without its
certificates, and none is issued before it answers. A timer renews, without Ansible: the same code
is its program.

- prepare: make what a web server needs to start: the private CA, the certificates that it signs,
  and a stand-in, signed by nobody, for each certificate that is to come from an ACME directory.
- issue: order what is missing, runs out, or has other names, from the ACME directory, whose
  challenges the web server answers from the webroot. One order that fails does not keep the others.
- renew: both, for all lists in /etc/carafe/certificates.d, as the timer does it: an order that
  failed is not repeated before its time.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import http.client
import ipaddress
import json
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from . import commands, files, services
from .commands import Failure, ask

CONFIGURATIONS = Path("/etc/carafe/certificates.d")
LOCK = Path("/run/certificates.lock")
FOLDER = Path("/var/lib/certificates")
LOGS = Path("/var/log/certificates")
CHALLENGES = ".well-known/acme-challenge"
# Let's Encrypt allows five failed validations of a name in an hour.
FIRST_PAUSE = datetime.timedelta(minutes=15)
LONGEST_PAUSE = datetime.timedelta(days=1)
# Browsers refuse long lives, some of a private CA's certificates too: 200 days since March 2026.
CA_DAYS = 90
ROOT_DAYS = 3650
STAND_IN = "stand-in"
ATTEMPTS = 5
ACCOUNT_GONE = re.compile(r"accountDoesNotExist|account[^.]*(deactivated|revoked)", re.IGNORECASE)
TIMER = "certificates.timer"
SERVICE = "certificates.service"

Item = Mapping[str, Any]
openssl = functools.partial(commands.run, "openssl")


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


class Certificate:
    """What a PEM file holds: names, issuer, and the two ends of its life."""

    def __init__(self, path: Path) -> None:
        text = openssl(
            *("x509", "-in", path, "-noout", "-issuer", "-subject", "-dates", "-ext"),
            "subjectAltName",
        )
        names = re.findall(r"(?:DNS|IP Address):([^,\s]+)", text)
        self.names = {plain(name) for name in names}
        self.issuer = re.search(r"^issuer=\s*(.*)$", text, re.M)[1]
        self.subject = re.search(r"^subject=\s*(.*)$", text, re.M)[1]
        self.start, self.end = (
            datetime.datetime.strptime(
                re.search(rf"^{name}=(.*)$", text, re.M)[1], "%b %d %H:%M:%S %Y %Z"
            ).replace(tzinfo=datetime.UTC)
            for name in ("notBefore", "notAfter")
        )

    @property
    def stands_in(self) -> bool:
        return STAND_IN in self.subject

    @property
    def runs_out(self) -> bool:
        """Whether less than a third of its life is left."""
        return now() > self.end - (self.end - self.start) / 3


def read_certificate(path: Path) -> Certificate | None:
    """Return the certificate that a file holds, or None where it holds none."""
    if not path.exists():
        return None
    try:
        return Certificate(path)
    except Failure:
        return None


class Keeper:
    """The certificates of one server."""

    def __init__(
        self, wanted: Mapping[str, Any], check: bool, tell: Callable[[str], Any] = print
    ) -> None:
        self.wanted = wanted
        self.check = check
        self.tell = tell
        self.patient = False
        self.changed: set[str] = set()
        self.attempts_file = FOLDER / "attempts.json"
        try:
            self.attempts = json.loads(files.read(self.attempts_file) or "{}")
        except ValueError:
            # At worst, something is tried once more before its time.
            self.attempts = {}

    def path(self, item: Item) -> Path:
        return FOLDER / f"{item['name']}.pem"

    def change(self, item: Item, what: str) -> bool:
        """Note a change; return whether it is to be made."""
        self.tell(f"{item['name']}: {what}")
        self.changed.add(item["name"])
        return not self.check

    def of(self, source: str) -> list[Item]:
        return [item for item in self.wanted["certificates"] if item["source"] == source]

    def prepare(self) -> None:
        if not FOLDER.exists():
            self.tell(f"{FOLDER}: made")
            if not self.check:
                FOLDER.mkdir(mode=0o755, parents=True)
        self.keep_renewing()
        for item in self.of("ca"):
            self.sign(item)
        for item in self.of("acme"):
            if read_certificate(self.path(item)) is None and self.change(
                item, "a stand-in until it is issued"
            ):
                self.make(item, f"/CN={STAND_IN}")
        self.bring()

    def bring(self) -> None:
        """Put files of one's own into place; the timer, which has none, leaves them as they are."""
        wrong = []
        for item in self.of("files"):
            if "pair" not in item:
                continue
            if item["pair"] is None or not is_pair(item["pair"]):
                wrong.append(item["name"])
            elif files.read(self.path(item)) != item["pair"] and self.change(item, "brought"):
                files.write(self.path(item), item["pair"], 0o600)
        if wrong:
            raise Failure(
                f"certificates_wanted: the files of {' and '.join(wrong)} do not go together, or"
                " cannot be read. certificate_file is to hold the certificate and those of its"
                " authorities, key_file its private key without a passphrase, both in PEM;"
                " ansible-vault may have encrypted them. What was there is still in place."
            )

    def keep_renewing(self) -> None:
        """Start the timer, now and at boot, unless systemd runs it as its file says."""
        state = services.state(TIMER, SERVICE)
        verbs = services.due(state, "restart" if state["NeedDaemonReload"] == "yes" else "")
        if verbs:
            self.tell(f"{TIMER}: started")
            if not self.check:
                services.act(TIMER, verbs)

    def make(self, item: Item, subject: str, *options: str | Path) -> None:
        """Make a key and a certificate, both in one file so that they are replaced at once."""
        names = ",".join(f"{kind(name)}:{plain(name)}" for name in item["names"])
        extensions = [f"subjectAltName={names}", "basicConstraints=critical,CA:FALSE"]
        extensions += ["keyUsage=critical,digitalSignature", "extendedKeyUsage=serverAuth"]
        certificate, key = new_pair(subject, CA_DAYS, extensions, *options)
        files.write(self.path(item), certificate + key, 0o600)

    def sign(self, item: Item) -> None:
        """Have the private CA sign a certificate, where it has not or the certificate runs out."""
        root, key = FOLDER / "ca.crt", FOLDER / "ca.key"
        has, authority = read_certificate(self.path(item)), read_certificate(root)
        fits = has and authority and has.issuer == authority.subject
        if (
            fits
            and has.names == set(map(plain, item["names"]))
            and not has.runs_out
            and not authority.runs_out
        ):
            return
        if not self.change(item, "signed by the private CA"):
            return
        if authority is None or authority.runs_out or not key.exists():
            # The name is told from that of any other server's, and of the one before it.
            subject = f"/O=Private CA of {socket.gethostname()}/CN=Root {secrets.token_hex(4)}"
            extensions = ["basicConstraints=critical,CA:TRUE,pathlen:0"]
            extensions += ["keyUsage=critical,keyCertSign,cRLSign"]
            new_root, new_key = new_pair(subject, ROOT_DAYS, extensions)
            files.write(key, new_key, 0o600)
            files.write(root, new_root)
        self.make(item, f"/CN={item['names'][0][:64]}", "-CA", root, "-CAkey", key)

    def issue(self) -> None:
        """Order what is due, and raise what went wrong when all have been tried."""
        failures = []
        for item in self.of("acme"):
            has = read_certificate(self.path(item))
            if has is None or has.stands_in:
                due = "issued"
            elif has.names != set(map(plain, item["names"])):
                due = "issued for other names"
            elif has.runs_out:
                due = "renewed"
            elif self.wanted["directory"] != self.directory_of(item):
                due = "issued by another directory"
            else:
                continue
            try:
                if self.may_try(item) and self.change(item, due):
                    self.order(item)
            except Failure as failure:
                failures.append(f"{item['name']}: {failure}")
        if failures:
            raise Failure(" ".join(failures))

    def directory_of(self, item: Item) -> str | None:
        """Return the URL of the directory that certbot has the certificate from."""
        path = FOLDER / "acme/renewal" / f"{item['name']}.conf"
        found = re.search(r"^server = (.*)$", path.read_text(), re.M) if path.exists() else None
        return found and found[1]

    def may_try(self, item: Item) -> bool:
        """Whether the pause after a failed attempt is over."""
        attempt = self.attempts.get(item["name"], {})
        until = datetime.datetime.fromisoformat(attempt.get("not_before", "2000-01-01T00:00+00:00"))
        if self.wanted.get("retry") or now() >= until or attempt.get("names") != item["names"]:
            return True
        if self.patient or self.check:
            return False
        raise Failure(
            f"the last of {attempt['failures']} failed attempts said: {attempt['said']} To stay"
            f" clear of the directory's limits, the next is due at {until:%Y-%m-%d %H:%M} UTC. When"
            " what it says is mended, -e certificates_retry=true tries at once."
        )

    def order(self, item: Item) -> None:
        """Order one certificate, note how it went, and put it in place."""
        before = self.attempts.get(item["name"], {})
        try:
            if self.wanted["check_names"]:
                self.reach(item)
            if self.wanted["staging_directory"]:
                self.certbot(item, self.wanted["staging_directory"], "staging", "--dry-run")
            self.certbot(item, self.wanted["directory"], "acme")
        except Failure as failure:
            count = before.get("failures", 0) + 1
            pause = min(FIRST_PAUSE * 2 ** (count - 1), LONGEST_PAUSE)
            note = {"failures": count, "not_before": (now() + pause).isoformat()}
            self.note(item, note | {"names": item["names"], "said": str(failure)})
            # It has changed nothing, after all.
            self.changed.discard(item["name"])
            raise
        if before:
            self.note(item, None)
        live = FOLDER / "acme/live" / item["name"]
        pair = "".join((live / name).read_text() for name in ("fullchain.pem", "privkey.pem"))
        files.write(self.path(item), pair, 0o600)

    def note(self, item: Item, attempt: dict[str, Any] | None) -> None:
        self.attempts.pop(item["name"], None)
        if attempt:
            self.attempts[item["name"]] = attempt
        files.write(self.attempts_file, json.dumps(self.attempts, indent=2), 0o600)

    def reach(self, item: Item) -> None:
        """Ask for a file of the webroot by each name, as the directory will."""
        token = secrets.token_hex(16)
        file = Path(self.wanted["webroot"], CHALLENGES, token)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(token)
        try:
            for name in item["names"]:
                self.reach_name(name, token)
        finally:
            file.unlink()

    def reach_name(self, name: str, token: str) -> None:
        try:
            found = socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)
        except OSError:
            raise Failure(
                f"there is no address for {name}. Make a DNS record that points it here, and run"
                " this again."
            ) from None
        addresses = sorted({address[4][0] for address in found})
        for address in addresses:
            said = "no answer"
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection(address, timeout=10)
                connection.request("GET", f"/{CHALLENGES}/{token}", headers={"Host": name})
                answer = connection.getresponse()
                if answer.status == 200 and answer.read(100).decode(errors="replace") == token:
                    continue
                said = f"another answer ({answer.status}) than this server was to give"
            raise Failure(
                f"{name} points to {' and '.join(addresses)}, and port 80 of {address} gave {said}."
                " It has to point to this server, with port 80 open to all. Mend the DNS record or"
                " the firewall, and run this again. Where a server cannot reach itself by its name,"
                " certificates_check_names: false leaves this out."
            )

    def certbot(self, item: Item, directory: str, folder: str, *options: str) -> None:
        """Order a certificate, with another account where the directory does not know this one."""
        names = [word for name in item["names"] for word in ("--domain", name)]
        email = self.wanted["email"]
        command = [
            *("certbot", "certonly", "--non-interactive", "--agree-tos", "--force-renewal"),
            *("--renew-with-new-domains", "--cert-name", item["name"], *names, *options),
            *("--server", directory, "--key-type", self.wanted["key_type"]),
            *("--webroot", "--webroot-path", self.wanted["webroot"]),
            *(
                ["--email", email, "--no-eff-email"]
                if email
                else ["--register-unsafely-without-email"]
            ),
            *("--config-dir", FOLDER / folder, "--work-dir", FOLDER / folder / "work"),
            *("--logs-dir", LOGS),
            # One for each run: its reason is read from there.
            *("--max-log-backups", "12"),
        ]
        bundle = self.wanted["ca_bundle"]
        environment = {"REQUESTS_CA_BUNDLE": bundle} if bundle else {}
        Path(self.wanted["webroot"]).mkdir(parents=True, exist_ok=True)
        known = True
        for _ in range(ATTEMPTS):
            # Its logs are for root. What the web server reads, it makes readable by itself.
            with umask(0o027):
                done = ask(*command, **environment)
            if done.returncode == 0:
                return
            said = " ".join(reason(done.stderr))
            if known and ACCOUNT_GONE.search(said):
                self.tell("The directory does not know the account; another is made.")
                files.remove(FOLDER / folder / "accounts")
                known = False
            # A busy directory may refuse a nonce. certbot tries once more, which may be too few.
            elif "nonce" not in said:
                break
        raise Failure(f"{said} All of it: {LOGS}/letsencrypt.log.")

    def reload(self) -> None:
        """Have those who use the certificates load them, where any changed and they run."""
        if self.check or not self.changed:
            return
        for unit in self.wanted["reload"]:
            if ask("systemctl", "is-active", unit).returncode:
                continue
            if ask("systemctl", "reload-or-restart", unit).returncode:
                raise Failure(f"{unit} did not load the new certificates: systemctl status {unit}")


def remove(names: Iterable[str], others: bool, check: bool) -> list[str]:
    """Remove certificates with their keys, and what certbot would renew; return what went.

    Without ``others`` to renew, the timer stops. The private CA stays: browsers trust it.
    """
    done, attempts_file = [], FOLDER / "attempts.json"
    for name in names:
        paths = [FOLDER / f"{name}.pem"]
        for folder in (FOLDER / "acme", FOLDER / "staging"):
            paths += [folder / "renewal" / f"{name}.conf"]
            paths += [folder / kind / name for kind in ("live", "archive")]
        for path in paths:
            if os.path.lexists(path):
                done.append(f"{path}: removed")
                if not check:
                    files.remove(path)
        attempts = json.loads(files.read(attempts_file) or "{}")
        if attempts.pop(name, None) and not check:
            files.write(attempts_file, json.dumps(attempts, indent=2), 0o600)
    if done and not others:
        done.append(f"{TIMER}: stopped")
        if not check:
            ask("systemctl", "disable", "--quiet", "--now", TIMER)
    return done


def new_pair(
    subject: str, days: int, extensions: list[str], *options: str | Path
) -> tuple[str, str]:
    """Return a certificate and its key. It signs itself, unless the options name who does."""
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        key, certificate = Path(folder, "key"), Path(folder, "certificate")
        openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", subject, "-days", str(days), "-keyout", key, "-out", certificate),
            *(word for extension in extensions for word in ("-addext", extension)),
            *options,
        )
        return certificate.read_text(), key.read_text()


def plain(name: str) -> str:
    """Return a name as a certificate has it: an address of IPv6 without the brackets of a URL."""
    try:
        return str(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        return name.lower()


def kind(name: str) -> str:
    return "IP" if re.fullmatch(r"[0-9.]+|.*:.*", name) else "DNS"


def reason(said: str) -> list[str]:
    """Return what was wrong, of all that certbot says.

    Debian 12's certbot loses what a directory answers on the way to its last line ("can't set
    attribute"), and has it in its log.
    """
    log = files.read(LOGS / "letsencrypt.log") or ""
    answers = re.findall(r"^acme\.messages\.Error: (.*)$", log, re.MULTILINE)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    noise = ("Saving debug log", "Ask for help", "See the logfile")
    return [line for line in lines if not line.startswith(noise)] + answers[-1:]


def is_pair(text: str) -> bool:
    """Tell whether a certificate and a private key belong together."""
    if not shutil.which("openssl"):  # a dry run on a bare server
        return True
    try:
        return openssl("pkey", "-pubout", text=text) == openssl(
            "x509", "-noout", "-pubkey", text=text
        )
    except Failure:
        return False


def problems(certificates: Iterable[Item]) -> Iterator[str]:
    """Yield what no server could be given."""
    for item in certificates:
        name, names, source = item["name"], item.get("names") or [], item["source"]
        if not names:
            yield f"{name} has no names."
        if source == "files" and not (item.get("certificate_file") and item.get("key_file")):
            yield f"{name} is of your own files: it needs certificate_file and key_file."
        for host in names if source == "acme" else ():
            if "*" in host or kind(host) == "IP":
                yield (
                    f"{host} cannot be had by HTTP-01: take a source of ca or files, or name each"
                    " host."
                )


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Keep the timer and a run of the role from ordering the same twice."""
    # The web server reads the challenges; what is secret is made for root alone.
    with umask(0o022), files.locked(LOCK):
        yield


def run(keeper: Keeper, *steps: Callable[[], None]) -> list[str]:
    """Take all steps, and return what went wrong: what was had is loaded, whatever failed."""
    failures = []
    for step in (*steps, keeper.reload):
        try:
            step()
        except Failure as failure:
            failures.append(str(failure))
    return failures


def main() -> str | None:
    """Renew, as the timer does."""
    if sys.argv[1:] != ["renew"]:
        return __doc__
    failures = []
    with alone():
        for path in sorted(CONFIGURATIONS.glob("*.json")):
            try:
                wanted = json.loads(path.read_text())
            except ValueError:
                failures.append(f"{path} cannot be read. Run the playbook of {path.stem} again.")
                continue
            keeper = Keeper(wanted, check=False)
            keeper.patient = True
            failures += run(keeper, keeper.prepare, keeper.issue)
    return "\n".join(failures) or None
