"""Measure Carafe, and write what was measured: `make bench`.

Two bare servers, made alike, take the sample app in turn: one from benchmarks/baseline.sh over ssh,
one from site.yml. Then come the runs with nothing to do, the memory of the idle stack, and the load
on the server that site.yml made. At the end both take a second app, which is released under load.
All figures are of one run on one machine; what carries over to another machine is their ratios.

Writes benchmarks/results.json (raw numbers), docs/explanation/benchmarks.md and its plots.
"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import plots
import releases
from servers import RELEASE, ROOT, Server, gunicorn_version, playbook, run, say, tasks_on_server

RESULTS = ROOT / "benchmarks/results.json"
PAGE = ROOT / "docs/explanation/benchmarks.md"
LOAD_SECONDS = 4  # of each load; bounded, and only ever within the server's own loopback
# The median counts, because these machines are noisy.
BARE_ROUNDS = 3
LOAD_ROUNDS = 5

VARIABLES = {
    "app_path": str(ROOT / "sample_app"),
    "app_domains": ["localhost"],
    "app_secret_key": "only-for-this-measurement-0123456789",
    "app_config": {"READYZ_ALLOW_NEWER_SCHEMA": True, "SESSION_COOKIE_SECURE": False},
    # The script has no TLS either, and leaves the server as it is.
    "stack_https": False,
    "stack_server_roles": [],
    "postgres_memory_mb": 512,
    "postgres_cores": 2,
    "gunicorn_memory_mb": 256,
    "gunicorn_cores": 2,
    "nginx_worker_processes": "2",
}
# What inventory/lab has: TLS, firewall and all else that the script does without.
WHOLE = {
    **{key: value for key, value in VARIABLES.items() if not key.startswith("stack_")},
    "certificates_source": "ca",
    "certificates_ca_download": "",
}


def baseline(server: Server) -> float:
    """Run the plain shell script; the seconds from the upload to the first page."""
    began = time.monotonic()
    with tempfile.TemporaryFile() as archive:
        subprocess.run(
            [
                "tar",
                "-cz",
                "--exclude=dist",
                "--exclude=__pycache__",
                "-C",
                ROOT / "sample_app",
                ".",
            ],
            stdout=archive,
            check=True,
        )
        archive.seek(0)
        server.ssh("mkdir -p /srv/guestbook && tar -xz -C /srv/guestbook", archive.read())
    server.ssh(f"echo gunicorn=={gunicorn_version()} > /srv/guestbook/.server")
    server.ssh("cat > /root/baseline.sh", (ROOT / "benchmarks/baseline.sh").read_bytes())
    server.ssh("sh /root/baseline.sh")
    seconds = time.monotonic() - began
    server.inside(
        "for i in $(seq 50); do python3 -c 'import urllib.request as r; r.urlopen(\"http://localhost/readyz\")'"
        " 2>/dev/null && exit; sleep 0.2; done; exit 1"
    )
    return seconds


MEMORY = """
import pathlib
parts = {"postgres": 0, "gunicorn": 0, "supervisord": 0, "nginx": 0}
resident = dict(parts)
for process in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        command = (process / "cmdline").read_bytes().replace(b"\\0", b" ").decode()
        rollup = (process / "smaps_rollup").read_text().splitlines()[1:]
        fields = dict(x.split(":", 1) for x in rollup)
        status = dict(x.split(":", 1) for x in (process / "status").read_text().splitlines())
    except (OSError, ValueError):
        continue
    part = next((x for x in parts if x in command), None)
    if part:
        parts[part] += int(fields["Pss"].split()[0])
        resident[part] += int(status["VmRSS"].split()[0])
import json; print(json.dumps({"pss_kb": parts, "rss_kb": resident}))
"""


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


def serving(server: Server) -> dict[str, float]:
    """Measure pairs of ways to answer, in turns, so that a noisy neighbour hits both."""
    size = server.inside("stat -c %s /srv/guestbook/current/guestbook/static/app.css")
    server.inside("apt-get install -qq -y --no-install-recommends wrk >/dev/null 2>&1")
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
        "nginx to app": "http://localhost/archive",
        "return 200, three bytes": "http://127.0.0.1:8081/nothing",
        "return 200, as long as the file": "http://127.0.0.1:8081/same-size",
        "static file": f"http://localhost{page}",
        "static file, plain server": f"http://127.0.0.1:8081{page}",
        "cache hit": "http://127.0.0.1:8081/cached",
    }
    rounds = [{name: load(server, url) for name, url in pairs.items()} for _ in range(LOAD_ROUNDS)]
    server.inside("systemctl stop bench-direct")
    return {name: statistics.median(one[name] for one in rounds) for name in pairs}


def measure() -> dict:
    """Measure everything, from two bare servers on."""
    results: dict = {"debian": RELEASE}
    with tempfile.TemporaryDirectory() as folder:
        run(ROOT / "scripts/engine")
        run(ROOT / "scripts/image", RELEASE)
        results |= {"shell_seconds": [], "site_seconds": []}
        for _ in range(BARE_ROUNDS):
            run(ROOT / "scripts/server", "down", "bench")
            say("two bare servers; the shell script on one")
            shell, carafe = (Server(name, Path(folder)) for name in ("shell", "carafe"))
            results["shell_seconds"].append(baseline(shell))
            say(f"{results['shell_seconds'][-1]:.1f} s; site.yml on the other")
            results["site_seconds"].append(playbook(carafe, "site.yml", VARIABLES)[0])
            say(f"{results['site_seconds'][-1]:.1f} s")
        say("again, with nothing to do")
        results["noop_seconds"], report = playbook(carafe, "site.yml", VARIABLES)
        results["noop_changed"] = sum(x["changed"] for x in report["stats"].values())
        results["noop_tasks"] = tasks_on_server(report)
        results["noop_mitogen_seconds"], _ = playbook(carafe, "site.yml", VARIABLES, **mitogen())
        say("memory")
        time.sleep(10)
        results["memory"] = json.loads(
            run("docker", "exec", "-i", carafe.container, "python3", "-", input=MEMORY)
        )
        say("load")
        results["requests_a_second"] = serving(carafe)
        results["releases"] = releases.measure(carafe, shell)
        say("site.yml with TLS and all that the server gets, on a third")
        whole = Server("whole", Path(folder))
        results["whole_seconds"], _ = playbook(whole, "site.yml", WHOLE)
        results["whole_noop_seconds"], report = playbook(whole, "site.yml", WHOLE)
        results["whole_noop_changed"] = sum(x["changed"] for x in report["stats"].values())
        results["whole_noop_tasks"] = tasks_on_server(report)
    return results


def mitogen() -> dict[str, str]:
    """Return the environment that makes Ansible use Mitogen."""
    plugins = Path(find_spec("ansible_mitogen").origin).parent / "plugins/strategy"
    return {
        "ANSIBLE_STRATEGY": "mitogen_linear",
        "ANSIBLE_STRATEGY_PLUGINS": str(plugins),
        # It brings an ssh of its own, which does not read ansible_ssh_common_args.
        "ANSIBLE_HOST_KEY_CHECKING": "false",
    }


def table(results: dict) -> list[tuple[str, str, str]]:
    """Return rows of what was measured, the figure, and the bar that it is held to."""
    rate, pss = results["requests_a_second"], sum(results["memory"]["pss_kb"].values()) / 1024
    rss = sum(results["memory"]["rss_kb"].values()) / 1024
    shell, site = (statistics.median(results[f"{x}_seconds"]) for x in ("shell", "site"))
    ratios = [b / a for a, b in zip(results["shell_seconds"], results["site_seconds"], strict=True)]
    served = {
        "nginx to app ÷ gunicorn direct": rate["nginx to app"] / rate["gunicorn direct"],
        "nginx to app ÷ gunicorn direct, a connection each": rate["nginx to app"]
        / rate["gunicorn direct, a connection each"],
        "static file ÷ return 200 of the same bytes": rate["static file"]
        / rate["return 200, as long as the file"],
        "static file ÷ return 200 of three bytes": rate["static file"]
        / rate["return 200, three bytes"],
        "cache hit ÷ static file": rate["cache hit"] / rate["static file, plain server"],
    }
    bars = ("≥ 0.9", "", "≥ 0.9", "", "≥ 0.85")
    return [
        ("plain shell script, bare server to live page", f"{shell:.1f} s", ""),
        ("site.yml, bare server to live page", f"{site:.1f} s", ""),
        ("… ratio to the script", f"{statistics.median(ratios):.2f}", "≤ 1.5"),
        (
            "… … least and greatest of the rounds",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
            "",
        ),
        ("site.yml, nothing to do", f"{results['noop_seconds']:.1f} s", ""),
        ("… ratio to the script", f"{results['noop_seconds'] / shell:.2f}", ""),
        ("… with Mitogen", f"{results['noop_mitogen_seconds']:.1f} s", ""),
        ("… tasks on the server", f"{results['noop_tasks']}", "≤ 40"),
        ("… changed", f"{results['noop_changed']}", "0"),
        ("site.yml with TLS, firewall and the rest", f"{results['whole_seconds']:.1f} s", ""),
        ("… nothing to do", f"{results['whole_noop_seconds']:.1f} s", ""),
        ("… … tasks on the server", f"{results['whole_noop_tasks']}", "≤ 55"),
        ("… … changed", f"{results['whole_noop_changed']}", "0"),
        *release_rows(results["releases"]),
        ("memory of the idle stack, shared pages counted once (PSS)", f"{pss:.0f} MB", "≤ 350 MB"),
        ("memory of the idle stack, as ps shows it (RSS)", f"{rss:.0f} MB", ""),
        *(
            (f"requests/s: {k}", f"{v:.2f}", bar)
            for (k, v), bar in zip(served.items(), bars, strict=True)
        ),
    ]


RELEASES_TEXT = """\
## Releases under load

The ledger of [molecule/deploy](../../molecule/deploy/files/ledger) is released three times and
then taken back, while [a client with no mercy](../../molecule/load.py) asks it 200 times a second
through nginx. Above by `deploy.yml` and `rollback.yml`, below by what people type:

    ssh server '{script}'

Both servers run two workers of four threads. A quarter of the requests are POSTs that write a row.
One in a hundred is for a page that takes 1.5 seconds: it may get lost like any other, but its
latency is left out. A line's steps are one second wide.

![Latency over time, and the requests lost](../images/releases.svg)
"""


def release_rows(measured: dict) -> list[tuple[str, str, str]]:
    """Return the rows on releases by deploy.yml, and by the script beside it."""
    seconds, slots = measured["deploy_seconds"], measured["deploy_slots_seconds"]
    ours, theirs = (measured["under_load"][x] for x in ("deploy.yml", "script"))

    def lost(load: dict) -> tuple[str, str]:
        count = len(load["deployments"])
        return (
            f"… requests lost in {count} releases under load",
            f"{load['lost']:,} of {load['requests']:,}",
        )

    return [
        ("deploy.yml, unchanged dependencies", f"{seconds:.1f} s", ""),
        ("… of which the switch and the slots' start", f"{slots:.1f} s", ""),
        ("… without these", f"{seconds - slots:.1f} s", "≤ 15 s"),
        ("… tasks on the server", f"{measured['deploy_tasks']}", "≤ 20"),
        (*lost(ours), "0"),
        ("… latency that they added at most", f"{ours['added_ms']:.0f} ms", "< 250 ms"),
        (
            "git pull, pip install and supervisorctl restart",
            f"{measured['script_seconds']:.1f} s",
            "",
        ),
        (*lost(theirs), ""),
    ]


def main() -> None:
    try:
        results = measure()
    finally:
        run(ROOT / "scripts/server", "down", "bench")
    # What is measured second by second takes one line, and not one for each.
    text = re.sub(r"\[[^][{}]*\]", lambda x: " ".join(x[0].split()), json.dumps(results, indent=2))
    RESULTS.write_text(text + "\n")
    rows = table(results)
    lines = [
        "| what | measured | bar |",
        "| --- | --- | --- |",
        *(f"| {a} | {b} | {c} |" for a, b, c in rows),
    ]
    PAGE.parent.mkdir(exist_ok=True)
    (ROOT / "docs/images").mkdir(exist_ok=True)
    PAGE.write_text(
        "# Benchmarks\n\n"
        "Made by `make bench`, on one machine in one run: read the ratios, not the seconds.\n"
        f"Debian {results['debian']}. Raw numbers: `benchmarks/results.json`.\n\n"
        + "\n".join(lines)
        + "\n\n![Times and loads](../images/bench.svg)\n\n"
        + RELEASES_TEXT.format(**results["releases"])
    )
    plots.times(results)
    plots.under_load(results["releases"])
    width = max(len(row[0]) for row in rows)
    for what, measured, bar in rows:
        print(f"{what:{width}}  {measured:>8}  {bar}")


if __name__ == "__main__":
    main()
