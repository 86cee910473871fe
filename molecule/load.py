"""Ask a site at a constant rate, and count everything that is not a whole, good answer.

    python molecule/load.py URL SECONDS [REQUESTS A SECOND]

A client with no mercy: it keeps its connections, repeats nothing, and takes a status that is not
2xx, a refused or reset connection and a short answer for a failure. A quarter of the requests are
POSTs with a body, one in a hundred asks for a page that takes 1.5 seconds. A request's latency
counts from when it was due, so that waiting for a free connection is not hidden.
"""

from __future__ import annotations

import http.client
import itertools
import json
import statistics
import sys
import threading
import time
import urllib.parse
import uuid
from dataclasses import dataclass, field

CONNECTIONS = 48  # enough for the slow pages: two slow ones a second are three at a time
TIMEOUT = 30  # seconds without a byte


@dataclass
class Answer:
    """One request: when it was due (seconds since the start), what it was, and how it ended."""

    due: float
    method: str
    path: str
    seconds: float
    release: str = ""
    failure: str = ""


@dataclass
class Load:
    """Load on a site; use it as a context, and read ``answers`` when it has ended."""

    url: str
    rate: float = 200  # requests a second
    host: str = ""  # the Host header; by default the URL's
    answers: list[Answer] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)  # ids of the rows in POSTs that got 2xx

    def __enter__(self) -> Load:
        self.numbers, self.done = itertools.count(), threading.Event()
        self.began = time.monotonic()
        self.threads = [threading.Thread(target=self.client) for _ in range(CONNECTIONS)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        for thread in self.threads:
            thread.join()

    @property
    def now(self) -> float:
        """Seconds since the start, as in an answer's ``due``."""
        return time.monotonic() - self.began

    def go_on(self, count: int, after: float = 0) -> None:
        """Wait until so many more requests have ended, well or not, of those due after a moment.

        On a busy machine, what ends now may have been due long ago.
        """
        wanted = self.ended(after) + count
        while self.ended(after) < wanted:
            time.sleep(0.05)

    def ended(self, after: float) -> int:
        return sum(answer.due > after for answer in list(self.answers))

    def stall(self) -> float:
        """Return the longest time in seconds in which no quick request ended."""
        ends = sorted(x.due + x.seconds for x in self.answers if x.path != "/slow")
        return max((after - before for before, after in itertools.pairwise(ends)), default=0)

    @property
    def failures(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.failure]

    def client(self) -> None:
        """Take the next number, wait until it is due, ask; over one connection."""
        place = urllib.parse.urlsplit(self.url)
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=TIMEOUT)
        while not self.done.is_set():
            number = next(self.numbers)
            due = number / self.rate
            if self.done.wait(max(0, self.began + due - time.monotonic())):
                break
            self.answers.append(self.ask(connection, number, due))
        connection.close()

    def ask(self, connection: http.client.HTTPConnection, number: int, due: float) -> Answer:
        """Send request NUMBER: each fourth is a POST, each hundredth is slow."""
        method = "POST" if number % 4 == 0 else "GET"
        path = "/rows" if method == "POST" else "/slow" if number % 100 == 1 else "/"
        row = str(uuid.uuid4())
        headers = {"Content-Type": "application/json"} | ({"Host": self.host} if self.host else {})
        body = json.dumps({"id": row, "text": "x" * 1000}) if method == "POST" else None
        answer = Answer(due, method, path, 0)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            response.read()
            answer.release = response.headers.get("X-Release", "")
            if not 200 <= response.status < 300:
                answer.failure = f"status {response.status}"
            elif method == "POST":
                self.acknowledged.append(row)
        except (OSError, http.client.HTTPException) as error:
            answer.failure = repr(error)
            connection.close()
        answer.seconds = time.monotonic() - self.began - due
        return answer

    def latency(self, quantile: float) -> float:
        """Return the latency in seconds that this share of the quick requests stays below."""
        quick = sorted(x.seconds for x in self.answers if x.path != "/slow")
        return quick[min(int(quantile * len(quick)), len(quick) - 1)]


def main() -> None:
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    with Load(sys.argv[1], float(sys.argv[3]) if len(sys.argv) > 3 else 200) as load:
        time.sleep(float(sys.argv[2]))
    median = statistics.median(answer.seconds for answer in load.answers)
    print(
        f"{len(load.answers)} requests, {len(load.failures)} failed;"
        f" median {median * 1000:.0f} ms, 99 % within {load.latency(0.99) * 1000:.0f} ms"
    )
    for answer in load.failures[:20]:
        print(f"at {answer.due:.2f} s  {answer.method} {answer.path}  {answer.failure}")
    sys.exit(bool(load.failures))


if __name__ == "__main__":
    main()
