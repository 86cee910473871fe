"""A web app whose responses the request's query shapes: upstream.py PORT.

``status``, ``header`` (``Name:value``, repeatable), ``size`` and ``policy`` (bytes of one header)
say what the response is, and ``delay`` how many seconds it takes. With ``events`` it sends so many,
one every half second. Otherwise the body
is JSON: what the app saw of the request, and how many requests it has had. With ``stream`` it
sends ``first``, waits until another request asks for ``/go``, and sends ``last``, or ``too late``
after ten seconds.
"""

import http.server
import json
import sys
import threading
import time
import urllib.parse

requests = 0
go = threading.Event()


class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        global requests
        requests += 1
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urllib.parse.urlsplit(self.path)
        wish = urllib.parse.parse_qs(url.query)
        time.sleep(int(wish.get("delay", [0])[0]))
        self.send_response(int(wish.get("status", [200])[0]))
        for name, _, value in (header.partition(":") for header in wish.get("header", [])):
            self.send_header(name, value)
        if "policy" in wish:
            self.send_header("X-Policy", "a" * int(wish["policy"][0]))
        if "events" in wish:
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            for number in range(int(wish["events"][0])):
                self.wfile.write(f"data: {number}\n\n".encode())
                time.sleep(0.5)
            self.close_connection = True
            return
        if url.path == "/go":
            go.set()
        if "stream" in wish:
            go.clear()
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(b"first\n")
            self.wfile.write(b"last\n" if go.wait(10) else b"too late\n")
            self.close_connection = True
            return
        seen = {
            "port": self.server.server_port,
            "requests": requests,
            "method": self.command,
            "path": self.path,
            "headers": self.headers.items(),
            "body": body.decode(),
        }
        text = json.dumps(seen).encode() + b" " * int(wish.get("size", [0])[0])
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, *arguments):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), App).serve_forever()
