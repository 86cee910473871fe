"""Hold many slow connections to a site, and ask it meanwhile how it is.

    python3 molecule/slow.py headers|body URL [CONNECTIONS] [SECONDS]

slowhttptest sends headers that never end, or bodies that never do. A healthy client asks for URL
every 50 ms, over a new connection each time, as somebody does who has just come. What is not a
whole answer with a 2xx is a failure, and what takes longer than ten seconds. A request's latency
counts from when it was due, so that waiting for the one before it is not hidden.

Prints a JSON object: ``requests`` and ``failures`` of the healthy client, ``p99_ms`` and ``max_ms``
in milliseconds, ``slow``, the most slow clients there were at a time, and ``reasons``, the failures
counted by their kind. ``worst_ms`` is the longest that a request takes in a second, as the median
of the seconds: a burst of work elsewhere on the machine is in a few of them, and what slow clients
do is in all. ``worst_without_ms`` is the same of the seconds before and after, without slow
clients. Certificates are checked; SSL_CERT_FILE names a private CA's.

Linux, slowhttptest and Python alone are needed, so it runs on the server as well as beside it. Only
ever for servers of one's own.
"""

import collections
import http.client
import json
import math
import statistics
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

EVERY = 0.05  # seconds
A_SECOND = 20  # requests
WITHOUT = 3  # seconds without slow clients, before and after
TIMEOUT = 10  # seconds
RATE = 500  # new slow connections a second
SPARE = 1.05  # more slow connections than are wanted, since some break off on a busy machine
PATIENCE = 180  # seconds for all of them to be there
MODES = {"headers": "-H", "body": "-B"}
ESTABLISHED = "01"


def connections(port):
    """Count the connections from this machine, or container, to a port."""
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        if (table := Path("/proc/net", name)).exists()
        for line in table.read_text().splitlines()[1:]
    ]
    return sum(row[2].endswith(f":{port:04X}") and row[3] == ESTABLISHED for row in rows)


def ask(url):
    """Ask once; return why it failed, or an empty text."""
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.hostname, url.port, timeout=TIMEOUT)
    try:
        connection.request("GET", url.path or "/")
        answer = connection.getresponse()
        answer.read()
        return "" if answer.status // 100 == 2 else str(answer.status)
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()


def probe(url, seconds, port, slow=0):
    """Be the healthy client: latencies in seconds, in their order, failures, the most connections.

    For ``seconds``, and longer where the ``slow`` connections are not all there by then.
    """
    latencies, reasons, most = [], collections.Counter(), 0
    began = due = time.monotonic()
    while due < began + seconds or (most < slow and due < began + PATIENCE):
        time.sleep(max(0, due - time.monotonic()))
        reason = ask(url)
        latencies.append(time.monotonic() - due)
        if reason:
            reasons[reason] += 1
        if len(latencies) % 10 == 0:
            most = max(most, connections(port))
        due += EVERY
    return latencies, reasons, most


def milliseconds(latencies, share):
    """Return the latency that this share of them does not exceed."""
    return round(1000 * sorted(latencies)[math.ceil(share * len(latencies)) - 1], 1)


def worst(latencies):
    """Return the longest of a second, in milliseconds, as the median of the seconds."""
    starts = range(0, len(latencies), A_SECOND)
    return round(1000 * statistics.median(max(latencies[x : x + A_SECOND]) for x in starts), 1)


def measure(mode, url, count=1000, seconds=12):
    """Hold ``count`` slow connections for some seconds; return what the healthy client met.

    Of slow headers, nginx bears each as long as nginx_client_timeout says, and no longer.
    """
    parts = urllib.parse.urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    before, *_ = probe(parts, WITHOUT, port)
    slow = subprocess.Popen(
        [
            *("slowhttptest", MODES[mode], "-u", url),
            *("-c", str(int(SPARE * count)), "-r", str(RATE)),
            # Something every five seconds, so that none of them is idle.
            *("-i", "5", "-l", str(seconds + PATIENCE), "-p", str(TIMEOUT)),
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        latencies, reasons, most = probe(parts, seconds, port, count)
    finally:
        slow.terminate()
        slow.wait()
    after, *_ = probe(parts, WITHOUT, port)
    return {
        "requests": len(latencies),
        "failures": reasons.total(),
        "p99_ms": milliseconds(latencies, 0.99),
        "max_ms": milliseconds(latencies, 1),
        "worst_ms": worst(latencies),
        "worst_without_ms": worst(before + after),
        "slow": most,
        "reasons": reasons,
    }


if __name__ == "__main__":
    kind, site, *numbers = sys.argv[1:]
    print(json.dumps(measure(kind, site, *map(int, numbers))))
