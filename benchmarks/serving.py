"""Ask what serves for all that it can give, and for more.

wrk asks as fast as it is answered, which tells the capacity. h2load asks at a rate of its own,
whatever becomes of the answers: what is left unanswered shows as latency, and does not slow the
questions down.
"""

import re
import statistics
import sys
import time
from dataclasses import dataclass

from servers import Server, run, say

LOAD_SECONDS = 3  # of each load by wrk; bounded, and only ever within the server's own loopback
LOAD_ROUNDS = 3  # the median counts, because these machines are noisy
PAGE = "http://localhost/archive"


def load(server: Server, url: str) -> float:
    """Requests a second that wrk gets from a URL (and options) on the server's own loopback."""
    report = server.inside(f"wrk -t1 -c16 -d{LOAD_SECONDS}s {url}")
    if "Non-2xx" in report:
        sys.exit(f"{url} did not answer with 2xx under load:\n{report}")
    return float(re.search(r"Requests/sec:\s+([\d.]+)", report)[1])


LOAD_SITE = """
proxy_cache_path /var/lib/nginx/cache-bench keys_zone=bench:1m;
server {
    listen 127.0.0.1:8081;
    location = /nothing { default_type text/plain; return 200 "ok\\n"; }
    # As many bytes as the static file has, so that what is compared is the way they come.
    location = /same-size { default_type text/css; set $kib "KIB"; return 200 "BODY"; }
    location /static/ { alias /srv/guestbook/current/guestbook/static/; }
    location = /cached {
        proxy_pass http://127.0.0.1:8081/static/app.css;
        proxy_cache bench;
        proxy_cache_valid 1h;
    }
}
"""


# A guestbook in use: the archive's page is full, and has a year of months to count.
POSTS = """
INSERT INTO users (name, name_key, password_hash) VALUES ('bench', 'bench', '-');
INSERT INTO posts (user_id, body, created_at)
  SELECT (SELECT id FROM users WHERE name = 'bench'), repeat('A few words. ', 10),
    now() - n * interval '1 day'
  FROM generate_series(1, 365) AS n;
"""


def load_site(size: int) -> str:
    """Return the site for the load; size is that of the static file, in bytes."""
    body = "${kib}" * (size // 1024) + "x" * (size % 1024)
    return LOAD_SITE.replace("KIB", "x" * 1024).replace("BODY", body)


def rates(server: Server) -> dict[str, float]:
    """Measure pairs of ways to answer, in turns, so that a noisy neighbour hits both."""
    size = server.inside("stat -c %s /srv/guestbook/current/guestbook/static/app.css")
    install(server)
    run(
        "docker",
        "exec",
        "-i",
        server.container,
        "tee",
        "/etc/nginx/sites-enabled/bench.conf",
        input=load_site(int(size)),
    )
    server.inside("systemctl reload nginx")
    psql = ["runuser", "-u", "guestbook", "--", "psql", "-q", "guestbook"]
    run("docker", "exec", "-i", server.container, *psql, input=POSTS)
    # The same workers and threads as the two slots together, asked without nginx.
    server.inside(
        "systemd-run --quiet --unit bench-direct --uid guestbook /srv/guestbook/bin/run python"
        " -m gunicorn --config /srv/guestbook/serving/gunicorn.conf.py --workers 2"
        " --bind 127.0.0.1:8001"
    )
    time.sleep(3)
    page = "/static/app.css"
    pairs = {
        "gunicorn direct": "http://localhost:8001/archive",
        "gunicorn direct, a connection each": "-H 'Connection: close' http://localhost:8001/archive",
        "nginx to app": PAGE,
        "return 200, three bytes": "http://127.0.0.1:8081/nothing",
        "return 200, as long as the file": "http://127.0.0.1:8081/same-size",
        "static file": f"http://localhost{page}",
        "static file, plain server": f"http://127.0.0.1:8081{page}",
        "cache hit": "http://127.0.0.1:8081/cached",
    }
    rounds = [{name: load(server, url) for name, url in pairs.items()} for _ in range(LOAD_ROUNDS)]
    server.inside("systemctl stop bench-direct")
    return {name: statistics.median(one[name] for one in rounds) for name in pairs}


def install(server: Server) -> None:
    packages = "wrk nghttp2-client"  # the latter for h2load
    server.inside(f"apt-get install -qq -y --no-install-recommends {packages} >/dev/null 2>&1")


# Open loop.

USUAL, STEADY_SECONDS = 0.7, 20  # of the capacity
TOO_MUCH, OVERLOAD_SECONDS = 2, 30
AFTER_SECONDS = 10
# Each connection asks once in a second. An answer that takes longer would hold up the next
# question: that is what "quick" means here.
QUICK = 1


@dataclass
class Asked:
    """A request: when it was sent, in seconds since the first, its status, and how long it took."""

    at: float
    status: int
    seconds: float


def parse(log: str) -> list[Asked]:
    """Read h2load's log: microseconds since the epoch, status (-1 for none), microseconds."""
    rows = sorted(tuple(map(int, line.split())) for line in log.splitlines())
    began = rows[0][0]
    return [Asked((at - began) / 1e6, status, micro / 1e6) for at, status, micro in rows]


def periods(rate: float) -> list[int]:
    """Share a rate out, into hundreds: return the milliseconds between two questions of each."""
    found: list[int] = []
    for left in range(max(round(rate / 100), 1), 0, -1):
        found.append(max(round(1000 * left / rate), 1))
        rate -= 1000 / found[-1]
    return found


def ask(server: Server, rate: float, seconds: int) -> list[Asked]:
    """Ask so many times a second, each connection once in a second.

    h2load opens connections whole milliseconds apart, and several at once for more than that. So
    there are several of it, which know nothing of each other, as visitors do not.
    """
    commands: list[str] = []
    for number, period in enumerate(periods(rate)):
        clients = 1000 // period
        commands.append(
            f"h2load --h1 --rps=1 -c {clients} -n {clients * seconds} -r 1 --rate-period={period}ms"
            f" --log-file=/tmp/asked.{number} {PAGE} >/dev/null 2>&1 &"
        )
    every = " sleep 0.013\n".join(commands)
    server.inside(f"ulimit -n 20000; rm -f /tmp/asked.*\n{every}\nwait")
    return parse(server.inside("cat /tmp/asked.*"))


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def overload(server: Server) -> dict:
    """Ask for what is usual, then for twice of all it can give, and see how soon it recovers."""
    install(server)
    capacity = statistics.median(load(server, PAGE) for _ in range(LOAD_ROUNDS))
    say(f"{capacity:.0f} requests/s at most; {USUAL:.0%} of it")
    usual = ask(server, USUAL * capacity, STEADY_SECONDS)
    say(f"{TOO_MUCH:.0%} of it")
    much = ask(server, TOO_MUCH * capacity, OVERLOAD_SECONDS)
    after = ask(server, USUAL * capacity, AFTER_SECONDS)
    return {
        "capacity": capacity,
        **steady(usual),
        **flooded(much, capacity),
        **recovery(usual, after),
    }


def steady(usual: list[Asked]) -> dict:
    """Tell the latency at the usual load, in ms, once all connections are open."""
    times = [x.seconds * 1000 for x in usual if x.at >= 2]
    return {
        "p50_ms": percentile(times, 0.5),
        "p99_ms": percentile(times, 0.99),
        "failed": sum(x.status != 200 for x in usual),
    }


def flooded(much: list[Asked], capacity: float) -> dict:
    """Tell what became of the requests that were too many."""
    served = [x for x in much if x.status == 200]
    refused = [x for x in much if x.status in (429, 503)]
    span = max(x.at for x in much)
    return {
        "asked": len(much),
        "served_of_capacity": len(served) / span / capacity,
        "refused": len(refused),
        "other": len(much) - len(served) - len(refused),
        "slow": sum(x.seconds > QUICK for x in much),
        "served_p99_ms": percentile([x.seconds * 1000 for x in served], 0.99),
        "refused_p99_ms": percentile([x.seconds * 1000 for x in refused] or [0], 0.99),
    }


def recovery(usual: list[Asked], after: list[Asked]) -> dict:
    """Tell after how many seconds the median is as it was, within a half, and stays so."""
    normal = 1.5 * percentile([x.seconds for x in usual if x.at >= 2], 0.5)
    # Not the last one, where few are left.
    seconds = range(round(max(x.at for x in after)))
    medians = [[x.seconds for x in after if s <= x.at < s + 1] for s in seconds]
    unwell = [
        second
        for second, times in zip(seconds, medians, strict=True)
        if not times or percentile(times, 0.5) > normal
    ]
    return {"recovered_seconds": unwell[-1] + 1 if unwell else 0}
