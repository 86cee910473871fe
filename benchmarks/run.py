"""Measure Carafe, and write what was measured: `make bench`.

Two bare servers, made alike, take the sample app in turn: one from benchmarks/baseline.sh over ssh,
one from site.yml. Then come the runs with nothing to do, the memory of the idle stack, and the load
on the server that site.yml made. At the end both take a second app, which is released under load.
All figures are of one run on one machine; what carries over to another machine is their ratios.

    scripts/bench               all blocks, in about a quarter of an hour
    scripts/bench --go-on       those that a run which was cut short has not come to
    scripts/bench --keep BLOCK… some of them, anew; the servers stay, for the next time
    scripts/bench --down        remove the servers

Writes benchmarks/results.json (raw numbers, block by block), docs/explanation/benchmarks.md and its
plots.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import plots
import releases
import serving
import venvs
from servers import FOLDER, RELEASE, ROOT, Server, gunicorn_version, playbook, run, say

RESULTS = ROOT / "benchmarks/results.json"
PAGE = ROOT / "docs/explanation/benchmarks.md"
BARE_ROUNDS = 3  # the median counts, because these machines are noisy
HOSTS = (1, 10, 20)

VARIABLES = {
    "app_path": str(ROOT / "sample_app"),
    "app_domains": ["localhost"],
    # Whatever the inventory's folder is called.
    "app_environment_name": "bench",
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


def bare() -> dict:
    """Bring bare servers to a live page, by the script and by site.yml in turns."""
    found: dict[str, list[float]] = {"shell_seconds": [], "site_seconds": []}
    for _ in range(BARE_ROUNDS):
        down()
        shell, carafe = Server("shell"), Server("carafe")
        found["shell_seconds"].append(baseline(shell))
        found["site_seconds"].append(playbook(carafe, "site.yml", VARIABLES).seconds)
        say("{:.1f} s by the script, {:.1f} s by site.yml".format(*(x[-1] for x in found.values())))
    return found


def by_script() -> Server:
    """Return the server that the script made, or make it."""
    server = Server("shell")
    if not server.has("/etc/supervisor/conf.d/guestbook.conf"):
        baseline(server)
    return server


def by_site() -> Server:
    """Return the server that site.yml made, or make it."""
    server = Server("carafe")
    if not server.has("/srv/guestbook/serving"):
        playbook(server, "site.yml", VARIABLES)
    return server


def noop() -> dict:
    server = by_site()
    done = playbook(server, "site.yml", VARIABLES)
    quick = playbook(server, "site.yml", VARIABLES, **mitogen())
    return {
        "seconds": done.seconds,
        "mitogen_seconds": quick.seconds,
        "changed": done.changed,
        "trips": done.trips,
    }


def whole() -> dict:
    """Bring a bare server to all that inventory/lab has, and run that again."""
    server = Server("whole")
    first = playbook(server, "site.yml", WHOLE)
    done = sorted((playbook(server, "site.yml", WHOLE) for _ in range(3)), key=lambda x: x.seconds)[
        1
    ]
    return {
        "seconds": first.seconds,
        "noop_seconds": done.seconds,
        "noop_cpu_seconds": done.cpu_seconds,
        "noop_changed": done.changed,
        "noop_trips": done.trips,
        "noop_trips_by_role": done.trips_by_role,
    }


def hosts() -> dict:
    """Run site.yml with nothing to do for several hosts at a time, all of which are one server."""
    server, found = by_site(), {}
    for count in HOSTS:
        done = playbook(server, "site.yml", VARIABLES, count)
        found[str(count)] = {"seconds": done.seconds, "cpu_seconds": done.cpu_seconds}
        say(f"{count} hosts: {done.seconds:.1f} s, {done.cpu_seconds:.1f} s of the processor")
    return found


def memory() -> dict:
    server = by_site()
    time.sleep(10)
    command = ["docker", "exec", "-i", server.container, "python3", "-"]
    return json.loads(run(*command, input=MEMORY))


BLOCKS: dict[str, Callable[[], dict]] = {
    "bare": bare,
    "noop": noop,
    "whole": whole,
    "hosts": hosts,
    "memory": memory,
    "requests": lambda: serving.rates(by_site()),
    "overload": lambda: serving.overload(by_site()),
    "releases": lambda: releases.measure(by_site(), by_script()),
    "venvs": lambda: venvs.measure(Server("venvs")),
}


def down() -> None:
    run(ROOT / "scripts/server", "down", "bench")
    if FOLDER.exists():
        shutil.rmtree(FOLDER)


def mitogen() -> dict[str, str]:
    """Return the environment that makes Ansible use Mitogen."""
    plugins = Path(find_spec("ansible_mitogen").origin).parent / "plugins/strategy"
    return {
        "ANSIBLE_STRATEGY": "mitogen_linear",
        "ANSIBLE_STRATEGY_PLUGINS": str(plugins),
        # It brings an ssh of its own, which does not read ansible_ssh_common_args.
        "ANSIBLE_HOST_KEY_CHECKING": "false",
    }


Row = tuple[str, str, str]


def table(results: dict) -> list[Row]:
    """Return rows of what was measured, the figure, and the bar that it is held to."""
    return [row for name, rows in ROWS.items() if name in results for row in rows(results)]


def bare_rows(results: dict) -> list[Row]:
    pairs = [results["bare"][x] for x in ("shell_seconds", "site_seconds")]
    ratios = [b / a for a, b in zip(*pairs, strict=True)]
    shell, site = map(statistics.median, pairs)
    return [
        ("plain shell script, bare server to live page", f"{shell:.1f} s", ""),
        ("site.yml, bare server to live page", f"{site:.1f} s", ""),
        ("… ratio to the script", f"{statistics.median(ratios):.2f}", "≤ 1.25"),
        ("… … least and greatest of the rounds", f"{min(ratios):.2f} to {max(ratios):.2f}", ""),
    ]


def to_script(results: dict, seconds: float, bar: str) -> list[Row]:
    """Return the row with the ratio to the script, where that was measured."""
    if "bare" not in results:
        return []
    shell = statistics.median(results["bare"]["shell_seconds"])
    return [("… ratio to the script", f"{seconds / shell:.2f}", bar)]


def noop_rows(results: dict) -> list[Row]:
    found = results["noop"]
    return [
        ("site.yml, nothing to do", f"{found['seconds']:.1f} s", ""),
        *to_script(results, found["seconds"], ""),
        ("… with Mitogen", f"{found['mitogen_seconds']:.1f} s", ""),
        ("… trips to the server", f"{found['trips']}", ""),
        ("… changed", f"{found['changed']}", "0"),
    ]


def whole_rows(results: dict) -> list[Row]:
    found = results["whole"]
    return [
        ("site.yml with TLS, firewall and the rest", f"{found['seconds']:.1f} s", ""),
        ("the same, nothing to do", f"{found['noop_seconds']:.1f} s", ""),
        *to_script(results, found["noop_seconds"], "≤ 0.45"),
        ("… trips to the server", f"{found['noop_trips']}", "≤ 24"),
        ("… changed", f"{found['noop_changed']}", "0"),
        ("… of the control machine's processor", f"{found['noop_cpu_seconds']:.1f} s", ""),
    ]


def hosts_rows(results: dict) -> list[Row]:
    return [
        (
            f"site.yml, nothing to do, {count} host{'' if count == '1' else 's'}",
            f"{x['seconds']:.1f} s; {x['cpu_seconds']:.1f} s of the processor",
            "",
        )
        for count, x in results["hosts"].items()
    ]


def memory_rows(results: dict) -> list[Row]:
    pss, rss = (sum(results["memory"][x].values()) / 1024 for x in ("pss_kb", "rss_kb"))
    return [
        ("memory of the idle stack, shared pages counted once (PSS)", f"{pss:.0f} MB", "≤ 350 MB"),
        ("memory of the idle stack, as ps shows it (RSS)", f"{rss:.0f} MB", ""),
    ]


def requests_rows(results: dict) -> list[Row]:
    rate = results["requests"]
    pairs = [
        ("nginx to app", "gunicorn direct", "≥ 0.9"),
        ("nginx to app", "gunicorn direct, a connection each", ""),
        ("static file", "return 200, as long as the file", "≥ 0.9"),
        ("static file", "return 200, three bytes", ""),
        ("cache hit", "static file, plain server", "≥ 0.85"),
    ]
    return [(f"requests/s: {a} ÷ {b}", f"{rate[a] / rate[b]:.2f}", bar) for a, b, bar in pairs]


def overload_rows(results: dict) -> list[Row]:
    found = results["overload"]
    p50, p99 = found["p50_ms"], found["p99_ms"]
    return [
        ("at 70 % of what the app can serve: latency, median", f"{p50:.1f} ms", ""),
        ("… 99 % within", f"{p99:.1f} ms", ""),
        ("… ratio of the two", f"{p99 / p50:.1f}", "≤ 5"),
        (
            "at 200 % of it for 30 s: served, of what it can",
            f"{found['served_of_capacity']:.2f}",
            "≥ 0.9",
        ),
        ("… 99 % of these within", f"{found['served_p99_ms']:.0f} ms", "≤ 1 s"),
        ("… refused with 503 or 429", f"{found['refused']:,} of {found['asked']:,}", ""),
        ("… 99 % of these within", f"{found['refused_p99_ms']:.0f} ms", "≤ 1 s"),
        ("… with any other answer, or none", f"{found['other']:,}", "0"),
        ("… that took longer than a second", f"{found['slow']:,}", "0"),
        ("… seconds until the median is as before", f"{found['recovered_seconds']}", "≤ 5"),
    ]


def releases_rows(results: dict) -> list[Row]:
    """Return the rows on releases by deploy.yml, and by the script beside it."""
    measured = results["releases"]
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
        *to_script(results, seconds, "≤ 0.35"),
        ("… of which the switch and the slots' start", f"{slots:.1f} s", ""),
        ("… tasks on the server", f"{measured['deploy_tasks']}", "≤ 12"),
        ("… trips to the server", f"{sum(measured['deploy_trips'].values())}", ""),
        (*lost(ours), "0"),
        ("… latency that they added at most", f"{ours['added_ms']:.0f} ms", "< 250 ms"),
        (
            "git pull, pip install and supervisorctl restart",
            f"{measured['script_seconds']:.1f} s",
            "",
        ),
        (*lost(theirs), ""),
    ]


def venvs_rows(results: dict) -> list[Row]:
    found = results["venvs"]
    return [
        (
            f"virtual environment of {found[size]['packages']} packages: uv ÷ pip, {how}",
            f"{found[size]['uv'][how]:.1f} s ÷ {found[size]['pip'][how]:.1f} s"
            f" = {found[size]['uv'][how] / found[size]['pip'][how]:.2f}",
            "< 1",
        )
        for size in venvs.SETS
        for how in venvs.WAYS[size]
    ]


ROWS: dict[str, Callable[[dict], list[Row]]] = {
    "bare": bare_rows,
    "noop": noop_rows,
    "whole": whole_rows,
    "hosts": hosts_rows,
    "releases": releases_rows,
    "memory": memory_rows,
    "requests": requests_rows,
    "overload": overload_rows,
    "venvs": venvs_rows,
}


NOTES = """\
A trip is what has to go to the server and come back: a command, or a file. A callback,
[trips](../../benchmarks/callbacks/trips.py), counts them.

The hosts of the runs with several are one server under several names, each with a connection of its
own: what grows with them is the control machine's work, of which the second figure tells.

The load comes from inside of the server, which has two cores. What the app can serve is what wrk
gets of `/archive`, a page with a query, over 16 connections. h2load asks in an open loop: once a
second over each of as many connections, whatever becomes of the answers. What an app is asked
beyond what it can serve is answered with 503, once as many requests wait as `max_conns` of
[the site](../../roles/nginx/README.md) says.

The virtual environments are built by the commands of the role `app`, once with nothing there, not
even uv, and once with a cache of all packages (the small one alone, since pip takes minutes).
"""

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


def trips_text(results: dict) -> str:
    """Return how many trips each role takes, in a run with nothing to do and in a release."""
    found = {
        "site.yml, nothing to do": results.get("whole", {}).get("noop_trips_by_role"),
        "deploy.yml": results.get("releases", {}).get("deploy_trips"),
    }
    lines = [
        f"- {name}: {', '.join(f'{role} {count}' for role, count in roles.items())}"
        for name, roles in found.items()
        if roles
    ]
    return "Trips to the server, by role:\n\n" + "\n".join(lines) + "\n" if lines else ""


def keep(results: dict) -> None:
    """Write what was measured so far, with one line for what is measured second by second."""
    text = re.sub(r"\[[^][{}]*\]", lambda x: " ".join(x[0].split()), json.dumps(results, indent=2))
    RESULTS.write_text(text + "\n")


def page(results: dict) -> str:
    lines = [
        "| what | measured | bar |",
        "| --- | --- | --- |",
        *(f"| {' | '.join(row)} |" for row in table(results)),
    ]
    parts = [
        "# Benchmarks\n\n"
        "Made by `make bench`, on one machine in one run: read the ratios, not the seconds.\n"
        f"Debian {results['debian']}. Raw numbers: `benchmarks/results.json`.\n",
        "\n".join(lines) + "\n",
        "![Times and loads](../images/bench.svg)\n",
        trips_text(results),
        NOTES,
    ]
    if "releases" in results:
        parts.append(RELEASES_TEXT.format(**results["releases"]))
    return "\n".join(x for x in parts if x)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure Carafe.")
    parser.add_argument("blocks", nargs="*", metavar="BLOCK", help=", ".join(BLOCKS))
    parser.add_argument("--go-on", action="store_true", help="only what is not measured yet")
    parser.add_argument("--keep", action="store_true", help="let the servers be, for the next time")
    parser.add_argument(
        "--down", action="store_true", help="remove the servers, and measure nothing"
    )
    chosen = parser.parse_args()
    if unknown := set(chosen.blocks) - set(BLOCKS):
        parser.error(
            f"there is no block {', '.join(sorted(unknown))}; there are {', '.join(BLOCKS)}"
        )
    if chosen.down:
        down()
        return
    results = {"debian": RELEASE}
    if chosen.go_on or chosen.blocks:
        results |= {k: v for k, v in json.loads(RESULTS.read_text()).items() if k in BLOCKS}
    keep(results)
    wanted = chosen.blocks or [x for x in BLOCKS if x not in results]
    run(ROOT / "scripts/engine")
    run(ROOT / "scripts/image", RELEASE)
    FOLDER.mkdir(exist_ok=True)
    try:
        for name in wanted:
            began = time.monotonic()
            say(name)
            results[name] = BLOCKS[name]()
            keep(results)
            say(f"{name} took {time.monotonic() - began:.0f} s")
    finally:
        if not chosen.keep:
            down()
    (ROOT / "docs/images").mkdir(exist_ok=True)
    PAGE.write_text(page(results))
    if {"bare", "noop", "requests"} <= results.keys():
        plots.times(results)
    if "releases" in results:
        plots.under_load(results["releases"])
    rows = table(results)
    width = max(len(row[0]) for row in rows)
    for what, measured, bar in rows:
        print(f"{what:{width}}  {measured:>8}  {bar}")


if __name__ == "__main__":
    main()
