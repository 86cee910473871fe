#!/usr/bin/env python3
"""A server that stands where another one should: it writes down all that it is told.

    between.py postgresql|http ADDRESS PORT CERTIFICATE FOLDER

It takes any client. What is no handshake of TLS lands in FOLDER/heard; FOLDER/came has a line for
each connection. Without a CERTIFICATE ("-") it does without TLS.
"""

import contextlib
import socket
import ssl
import struct
import sys
import threading
from pathlib import Path

kind, address, port, certificate, folder = sys.argv[1:]
heard, came = Path(folder, "heard"), Path(folder, "came")
CLEARTEXT_PASSWORD = b"R" + struct.pack("!ii", 8, 3)


def note(file: Path, data: bytes) -> None:
    with file.open("ab") as open_file:
        open_file.write(data)


def encrypted(connection: socket.socket) -> socket.socket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context.wrap_socket(connection, server_side=True)


def converse(connection: socket.socket) -> None:
    note(came, b"came\n")
    connection.settimeout(10)
    with contextlib.suppress(OSError), connection:
        if kind == "postgresql":
            connection.recv(8)  # SSLRequest
            connection.sendall(b"N" if certificate == "-" else b"S")
        if certificate != "-":
            connection = encrypted(connection)
        if kind == "postgresql":
            note(heard, connection.recv(4096))
            connection.sendall(CLEARTEXT_PASSWORD)
        while data := connection.recv(4096):
            note(heard, data)
            if kind == "http":
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")


with socket.create_server((address, int(port))) as server:
    Path(folder, "ready").touch()
    while True:
        threading.Thread(target=converse, args=(server.accept()[0],), daemon=True).start()
