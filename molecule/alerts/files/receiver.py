"""Take mails by SMTP and messages by HTTP, both over TLS, and keep them in /var/lib/receiver.

What lies in ``answer`` is the status that the web server answers a message with.
"""

import http.server
import json
import pathlib
import ssl
import subprocess

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

FOLDER = pathlib.Path("/var/lib/receiver")
TLS = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
TLS.load_cert_chain("/etc/receiver.crt", "/etc/receiver.key")


def keep(name: str, entry: dict) -> None:
    with (FOLDER / name).open("a") as file:
        file.write(json.dumps(entry) + "\n")


class Mails:
    """What aiosmtpd gives its mails to."""

    async def handle_DATA(self, server, session, envelope):
        entry = {
            "to": envelope.rcpt_tos,
            "from": envelope.mail_from,
            "tls": session.ssl is not None,
        }
        keep("mails", {**entry, "text": envelope.content.decode()})
        return "250 OK"


def authenticate(server, session, envelope, mechanism, data):
    well = (data.login, data.password) == (b"server", b"a-password-of-a-mailbox")
    return AuthResult(success=well, handled=well)


class Hooks(http.server.BaseHTTPRequestHandler):
    """What takes messages, and is asked while all is well."""

    def do_GET(self):
        keep("pings", {"path": self.path})
        self.answer(200)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status = int((FOLDER / "answer").read_text()) if (FOLDER / "answer").exists() else 200
        if status == 200:
            keep("hooks", {"authorization": self.headers["Authorization"], **body})
        self.answer(status)

    def log_message(self, *_):
        """Say nothing: the journal is to have no secret."""

    def answer(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


mails = Controller(
    Mails(),
    hostname="127.0.0.1",
    port=2587,
    tls_context=TLS,
    require_starttls=True,
    authenticator=authenticate,
    auth_required=True,
)
mails.start()
hooks = http.server.ThreadingHTTPServer(("127.0.0.1", 8443), Hooks)
hooks.socket = TLS.wrap_socket(hooks.socket, server_side=True)
subprocess.run(["systemd-notify", "--ready"], check=True)
hooks.serve_forever()
