"""It says which server answers."""

import json
import socket


def app(environ, start_response):
    body = json.dumps({"server": socket.gethostname()}).encode()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [body]
