"""Send requests to nginx byte by byte as they are given, and record what it passes on to the app.

    hostile.py http|https|http2

Standard input is a JSON list of cases: ``name``, ``raw`` (bytes as Latin-1), ``answers`` (how many
are expected) and ``shut`` (whether to end the writing half of the connection after that); those of
HTTP/2 have ``fields`` (lists of a name and a value), ``data`` and ``trailers`` in place of the last
three. Standard output is a JSON object: for each name the ``answers`` that came back, whether nginx
``closed`` the connection, and the bytes of each connection that it made to the ``app``.

The app answers each request once, keeps its connection open, and never reads a second one in: what
nginx sends after the first is recorded as well.
"""

import json
import re
import socket
import socketserver
import ssl
import sys
import threading
import time

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded, StreamReset

PORTS = {"http": 80, "https": 443, "http2": 443}
NAME, CERTIFICATE = "hostile.test", "/etc/ssl/hostile.pem"
APP = ("127.0.0.1", 9400)
# After the last answer that is due, for what should not come: nginx takes microseconds for it.
GRACE = 0.15
PATIENCE = 10
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class App(socketserver.ThreadingTCPServer):
    """The app behind nginx."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self):
        super().__init__(APP, Recorder)
        self.seen = []
        self.busy = 0
        self.lock = threading.Condition()

    def take(self):
        """Wait until nginx has closed each connection; return what came over them."""
        with self.lock:
            self.lock.wait_for(lambda: not self.busy, PATIENCE)
            seen, self.seen = self.seen, []
        return [data.decode("latin-1") for data in seen]


class Recorder(socketserver.BaseRequestHandler):
    def setup(self):
        self.data = bytearray()
        with self.server.lock:
            self.server.busy += 1
            self.server.seen.append(self.data)

    def handle(self):
        answered = False
        self.request.settimeout(PATIENCE)
        try:
            while chunk := self.request.recv(65536):
                self.data += chunk
                head, end, body = self.data.partition(b"\r\n\r\n")
                length = LENGTH.search(head)
                if end and not answered and len(body) >= int(length[1] if length else 0):
                    answered = True
                    self.request.sendall(
                        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
                        b"Content-Length: 8\r\n\r\nanswered"
                    )
        except OSError:
            pass  # nginx went away; what it has sent is recorded

    def finish(self):
        with self.server.lock:
            self.server.busy -= 1
            self.server.lock.notify_all()


def answers(data):
    """Split the bytes from nginx into whole responses, and what is left."""
    found = []
    while data:
        head, end, rest = data.partition(b"\r\n\r\n")
        if not data.startswith(b"HTTP/1.1 "):
            # To a request of HTTP/0.9, the body is the whole response.
            return [*found, {"status": 0, "head": "", "body": data.decode("latin-1")}], b""
        length = LENGTH.search(head)
        size = int(length[1]) if length else 0
        if not end or len(rest) < size:
            break
        found.append(
            {
                "status": int(head[9:12]),
                "head": head.decode("latin-1"),
                "body": rest[:size].decode("latin-1"),
            }
        )
        data = rest[size:]
    return found, data


def connect(scheme):
    connection = socket.create_connection(("127.0.0.1", PORTS[scheme]), PATIENCE)
    if scheme == "http":
        return connection
    context = ssl.create_default_context(cafile=CERTIFICATE)
    if scheme == "http2":
        context.set_alpn_protocols(["h2"])
    return context.wrap_socket(connection, server_hostname=NAME)


def send(scheme, case):
    """Send one case; return the answers, and whether nginx closed the connection."""
    received, closed = b"", False
    deadline = time.monotonic() + PATIENCE
    with connect(scheme) as connection:
        try:
            connection.sendall(case["raw"].encode("latin-1"))
            if case["shut"]:
                # Not a TLS socket's own method: what it reads afterwards is encrypted.
                socket.socket.shutdown(connection, socket.SHUT_WR)
        except OSError:
            pass  # nginx had enough before the end
        while time.monotonic() < deadline:
            complete = len(answers(received)[0]) >= case["answers"]
            connection.settimeout(GRACE if complete else PATIENCE)
            try:
                chunk = connection.recv(65536)
            except TimeoutError:
                break
            except OSError:
                chunk = b""
            if not chunk:
                closed = True
                break
            received += chunk
    return {"answers": answers(received)[0], "closed": closed}


def in_bytes(fields):
    return [tuple(part.encode("latin-1") for part in field) for field in fields]


def send_over_http2(scheme, case):
    """Send one case as a stream of its own connection; a reset stream counts as closed."""
    # It would mend, or refuse to send, what is wrong.
    lenient = {"validate_outbound_headers": False, "normalize_outbound_headers": False}
    client = H2Connection(H2Configuration(header_encoding="latin-1", **lenient))
    answer, ended, closed = {"status": 0, "head": "", "body": ""}, False, False
    with connect(scheme) as connection:
        try:
            client.initiate_connection()
            client.send_headers(1, in_bytes(case["fields"]), not (case["data"] or case["trailers"]))
            for number, data in enumerate(case["data"], 1):
                last = number == len(case["data"]) and not case["trailers"]
                client.send_data(1, data.encode("latin-1"), end_stream=last)
            if case["trailers"]:
                client.send_headers(1, in_bytes(case["trailers"]), end_stream=True)
            connection.sendall(client.data_to_send())
            while not closed:
                connection.settimeout(GRACE if ended else PATIENCE)
                chunk = connection.recv(65536)
                closed = not chunk
                for event in client.receive_data(chunk):
                    closed |= isinstance(event, StreamReset | ConnectionTerminated)
                    ended |= isinstance(event, StreamEnded)
                    if isinstance(event, ResponseReceived):
                        fields = dict(event.headers)
                        answer["status"] = int(fields[":status"])
                        answer["head"] = "".join(f"\r\n{x}: {y}\r" for x, y in fields.items())
                    elif isinstance(event, DataReceived):
                        answer["body"] += event.data.decode("latin-1")
                connection.sendall(client.data_to_send())
        except TimeoutError:
            pass  # nothing comes after the answer
        except OSError:
            closed = True
    return {"answers": [answer] if answer["status"] else [], "closed": closed}


def main():
    cases = json.load(sys.stdin)
    results = {}
    way = send_over_http2 if sys.argv[1] == "http2" else send
    with App() as app:
        threading.Thread(target=app.serve_forever, daemon=True).start()
        for case in cases:
            results[case["name"]] = {**way(sys.argv[1], case), "app": app.take()}
        app.shutdown()
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
