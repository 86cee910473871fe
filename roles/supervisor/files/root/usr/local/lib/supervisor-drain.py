"""Let supervisord's TCP sockets take no new connection, and wait until their queues are empty.

    supervisor-drain.py PID         the process id of supervisord; systemd runs this before a stop

A connection that waits in the queue of a socket is reset when the socket closes, with the request
that it may hold already. A client whose connection is not taken goes elsewhere instead: nginx
repeats no POST that it has sent, and any request that it could not send.
"""

import ctypes
import os
import pathlib
import socket
import struct
import sys
import time

PIDFD_GETFD = 438  # pidfd_getfd(2); the same number on all architectures that Debian has
SO_ATTACH_FILTER = 26  # socket(7)
# Drop what has the flag SYN, byte 13 of a TCP header (RFC 9293). Each line is a struct sock_filter:
# code, jump if true, jump if false, operand (linux/bpf_common.h).
NO_SYN = (
    (0x30, 0, 0, 13),  # load byte 13
    (0x45, 0, 1, 2),  # is bit 2 set?
    (0x06, 0, 0, 0),  # then keep nothing of the packet
    (0x06, 0, 0, 0xFFFFFFFF),  # else all of it
)
HANDSHAKE = 0.3  # seconds for a connection that has begun to reach the queue
PATIENCE = 10  # seconds for the programs to empty the queue


def listeners(pid):
    """Return copies of the TCP sockets on which the process listens."""
    process, found = os.pidfd_open(pid), []
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    for fd in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        if not str(fd.readlink()).startswith("socket:"):
            continue
        copy = syscall(PIDFD_GETFD, process, int(fd.name), 0)
        if copy < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
        sock = socket.socket(fileno=copy)
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if listening and sock.family in (socket.AF_INET, socket.AF_INET6):
            found.append(sock)
    return found


def refuse(sock):
    """Leave every new connection to this socket unanswered."""
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in NO_SYN))
    filter_ = struct.pack("HP", len(NO_SYN), ctypes.addressof(program))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filter_)


def waiting(sock):
    """Return the number of connections in the socket's queue: tcpi_unacked, when it listens."""
    return struct.unpack_from("I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28), 24)[0]


def main():
    sockets = listeners(int(sys.argv[1]))
    if not sockets:
        return
    for sock in sockets:
        refuse(sock)
    time.sleep(HANDSHAKE)
    deadline = time.monotonic() + PATIENCE
    while any(map(waiting, sockets)) and time.monotonic() < deadline:
        time.sleep(0.05)


if __name__ == "__main__":
    main()
