"""A neighbour of the server: what it can reach there, and what it finds when it tries.

neighbour.py serve                       run on the server: answer on some ports
neighbour.py tcp|udp FROM TO PORT        print open, refused or dropped
neighbour.py burst FROM TO PORT COUNT    print how many connections open out of so many at once
neighbour.py ping FROM TO COUNT          print how many of so many echo requests are answered
neighbour.py steady FROM TO              print whether open ssh goes on when no new one opens
"""

import ipaddress
import os
import select
import socket
import struct
import sys
import threading

PORTS = [53, *range(8001, 8013)]
PATIENCE = 1.5  # seconds; the neighbour is in the same kernel


def serve():
    waiting = []
    for port in PORTS:
        waiting.append(
            socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        )
        datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        datagrams.bind(("::", port))
        waiting.append(datagrams)
    while True:
        for sock in select.select(waiting, [], [])[0]:
            if sock.type == socket.SOCK_DGRAM:
                sock.sendto(*sock.recvfrom(9))
            else:
                sock.accept()[0].close()


def connect(here, there, port):
    return socket.create_connection((there, port), timeout=PATIENCE, source_address=(here, 0))


def tcp(here, there, port):
    try:
        connect(here, there, int(port)).close()
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "dropped"
    return "open"


def family(address):
    return socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET


def udp(here, there, port):
    sock = socket.socket(family(there), socket.SOCK_DGRAM)
    sock.settimeout(PATIENCE)
    sock.bind((here, 0))
    sock.connect((there, int(port)))
    sock.send(b"x")
    try:
        sock.recv(9)
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "dropped"
    return "open"


def burst(here, there, port, count):
    """Open all at the same time, and keep them: a retry of the kernel's comes after a second."""
    opened = []

    def one():
        sock = socket.socket(family(there))
        sock.settimeout(0.8)
        sock.bind((here, 0))
        try:
            sock.connect((there, int(port)))
        except TimeoutError:
            return
        opened.append(sock)

    threads = [threading.Thread(target=one) for _ in range(int(count))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(opened)


def steady(here, there):
    """Open ssh connections until no more opens, then go on with the first one."""
    first = connect(here, there, 22)
    banner = first.recv(99)
    while burst(here, there, 22, 10):
        pass
    first.sendall(b"SSH-2.0-neighbour\r\n")
    # What follows the greeting is the list of sshd's algorithms.
    return banner.startswith(b"SSH-2.0") and len(first.recv(9)) > 0


def ping(here, there, count):
    six = family(there) == socket.AF_INET6
    sock = socket.socket(family(there), socket.SOCK_RAW, 58 if six else 1)
    sock.settimeout(PATIENCE)
    sock.bind((here, 0))
    head = struct.pack("!BBHHH", 128 if six else 8, 0, 0, os.getpid() & 0xFFFF, 1)
    total = sum(struct.unpack("!4H", head))
    total = (total & 0xFFFF) + (total >> 16)
    for _ in range(int(count)):
        # Of ICMPv6, the kernel makes the checksum.
        sock.sendto(
            head[:2] + struct.pack("!H", 0 if six else ~total & 0xFFFF) + head[4:], (there, 0)
        )
    answers = 0
    try:
        while answers < int(count):
            packet = sock.recv(99)
            answers += packet[0 if six else 20] == (129 if six else 0)
    except TimeoutError:
        pass
    return answers


if __name__ == "__main__":
    command, *words = sys.argv[1:]
    print(globals()[command](*words))
