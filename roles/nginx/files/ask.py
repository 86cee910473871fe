"""Ask nginx on this server for a site until it is, or is not, in maintenance.

Standard input is a JSON object: ``name``, a host name of the site, ``port``, ``tls`` and ``on``.
Exits with 1 when the answer is another one for 15 seconds, longer than any worker remembers.
"""

import contextlib
import http.client
import json
import socket
import ssl
import sys
import time


def maintained(name, port, tls):
    """Return whether the site is in maintenance, or None where there is no answer."""
    connection = http.client.HTTPConnection(name, timeout=10)
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection.sock = socket.create_connection(("127.0.0.1", port), timeout=10)
        if tls:
            # Which certificate it is does not matter here: it is this very server.
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            connection.sock = context.wrap_socket(connection.sock, server_hostname=name)
        connection.request("HEAD", "/")
        return connection.getresponse().getheader("X-Maintenance") is not None
    return None


def main():
    wanted = json.load(sys.stdin)
    deadline = time.monotonic() + 15
    while maintained(wanted["name"], wanted["port"], wanted["tls"]) is not wanted["on"]:
        if time.monotonic() > deadline:
            sys.exit(1)
        time.sleep(0.2)


if __name__ == "__main__":
    main()
