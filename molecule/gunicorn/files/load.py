"""Run a command while eight clients ask an app without a pause: load.py SOCKET COMMAND ...

SOCKET is a path or host:port. Prints JSON: the command's ``status`` and ``output``, the number of
``requests``, the ``failures``, and the ``slots`` and ``releases`` that answered, a second more
after the command's end.
"""

import http.client
import json
import socket
import subprocess
import sys
import threading
import time

address, *command = sys.argv[1:]
answers, failures = [], []
stop = threading.Event()


class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(address)


def ask(method):
    connection = (
        Connection("localhost", timeout=30)
        if address.startswith("/")
        else http.client.HTTPConnection(address, timeout=30)
    )
    connection.request(method, "/", body="x" * 1000 if method == "POST" else None)
    answer = connection.getresponse()
    text = answer.read()
    if answer.status != 200:
        raise http.client.HTTPException(f"status {answer.status}")
    answers.append(json.loads(text))
    connection.close()


def client(method):
    while not stop.is_set():
        try:
            ask(method)
        except (OSError, http.client.HTTPException) as error:
            failures.append(repr(error))
            time.sleep(0.01)


clients = [
    threading.Thread(target=client, args=["POST" if i % 4 == 0 else "GET"]) for i in range(8)
]
for thread in clients:
    thread.start()
run = subprocess.run(command, capture_output=True, text=True)
time.sleep(1)
stop.set()
for thread in clients:
    thread.join()
print(
    json.dumps(
        {
            "status": run.returncode,
            "output": run.stdout + run.stderr,
            "requests": len(answers),
            "failures": failures,
            "slots": sorted({answer["slot"] for answer in answers}),
            "releases": sorted({answer["release"] for answer in answers}),
        }
    )
)
