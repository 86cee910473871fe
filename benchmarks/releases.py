"""Release an app again and again, by deploy.yml and by a plain script, and count what is lost.

The app is the ledger of molecule/deploy, since it answers what the load asks for. Its releases
differ by a word, which each answer tells, so that it is seen from outside when one takes over.
"""

import json
import math
import os
import re
import shutil
import statistics
import sys
import time
from pathlib import Path

import yaml
from servers import ROOT, Run, Server, gunicorn_version, playbook, run, say

sys.path.insert(0, str(ROOT / "molecule"))
from load import Answer, Load

SCENARIO = ROOT / "molecule/deploy"
# As people write it, and run it by ssh.
SCRIPT = (
    "cd /srv/ledger && git pull && .venv/bin/pip install -r requirements.txt"
    " && supervisorctl restart ledger"
)
HOST = "ledger"
QUIET_ROUNDS = 3  # the median counts
REST = 4  # seconds before, between and after deployments under load
BUCKET = 1  # seconds; 200 requests, so that a percentile says something


def version(word: str, folder: Path, requirement: str = "") -> Path:
    """Write a version of the ledger that says WORD in each answer."""
    target = folder / word
    if not target.exists():
        shutil.copytree(SCENARIO / "files/ledger", target)
        with (
            (target / "wsgi.py").open("a") as wsgi,
            (target / "requirements.txt").open("a") as pins,
        ):
            wsgi.write(f'RELEASE = "{word}"\n')
            pins.write(requirement)
    return target


class Carafe:
    """The ledger on a server that site.yml made."""

    def __init__(self, server: Server) -> None:
        self.server, self.folder = server, server.folder / "ledger-carafe"
        self.variables = yaml.safe_load((SCENARIO / "converge.yml").read_text())[0]["vars"] | {
            "stack_name": "all",
            "app_environment_name": "bench",
            "app_domains": [HOST],
        }
        self.play("site", f"first{time.time_ns()}")

    def play(self, name: str, word: str) -> Run:
        code = version(word, self.folder)
        variables = self.variables | {"ledger_path": str(code)}
        return playbook(self.server, f"{name}.yml", variables, app="ledger")

    def deploy(self, word: str) -> Run:
        return self.play("playbooks/deploy", word)

    def back(self, word: str) -> None:
        self.play("playbooks/rollback", word)


class Plain:
    """The ledger on a server that a shell script made, with a git repository to pull from."""

    def __init__(self, server: Server) -> None:
        self.server, self.folder = server, server.folder / "ledger-plain"
        self.tree = self.folder / "tree"
        if self.tree.exists():  # from an earlier measurement of this block
            return
        server.ssh("apt-get install -qq -y --no-install-recommends git >/dev/null")
        server.ssh("git init --quiet --bare --initial-branch main /srv/ledger.git")
        self.git("init", "--quiet", "--initial-branch", "main", self.tree, cwd=None)
        self.push("first")
        server.ssh((ROOT / "benchmarks/ledger.sh").read_text())

    def git(self, *words: object, **options) -> None:
        identity = "-c user.name=bench -c user.email=bench@localhost -c commit.gpgsign=false"
        environment = {**os.environ, "GIT_SSH_COMMAND": self.server.ssh_words}
        run("git", *identity.split(), *words, **{"cwd": self.tree, "env": environment} | options)

    def push(self, word: str) -> None:
        requirement = f"gunicorn=={gunicorn_version()}\n"
        shutil.copytree(version(word, self.folder, requirement), self.tree, dirs_exist_ok=True)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", word)
        self.git("push", "--quiet", "root@127.0.0.1:/srv/ledger.git", "main")

    def deploy(self, word: str) -> float:
        """Run the script; the seconds it took. The push before it is the developer's own time."""
        self.push(word)
        began = time.monotonic()
        self.server.ssh(SCRIPT)
        return time.monotonic() - began

    def back(self, word: str) -> None:
        self.deploy(word)


def slots_seconds(report: dict) -> float:
    """Return the duration that the last step of a deployment tells of the switch and the slots."""
    found = re.search(r"switch and slots ([\d.]+) s", json.dumps(report))
    if not found:
        sys.exit("deploy.yml did not say how long the slots took")
    return float(found[1])


def answered(load: Load, since: float = 0, until: float = math.inf) -> list[Answer]:
    """Return the quick requests that were answered, of those due in a span of time."""
    return [
        x for x in load.answers if since <= x.due < until and x.path != "/slow" and not x.failure
    ]


def under_load(way: Carafe | Plain) -> dict:
    """Release three times and go back once under load, and tell second by second what it met."""
    stamp = time.time_ns()
    words = {"deploy 1": "one", "deploy 2": "two", "deploy 3": "three", "rollback": "two"}
    steps = {name: f"{word}{stamp}" for name, word in words.items()}
    spans: list[dict] = []
    with Load(f"http://127.0.0.1:{way.server.http_port}", host=HOST) as load:
        time.sleep(REST)
        for name, word in steps.items():
            before = answered(load)[-1].release
            began = time.monotonic() - load.began
            (way.back if name == "rollback" else way.deploy)(word)
            ended = time.monotonic() - load.began
            time.sleep(REST)
            after = answered(load, ended)
            if not after or after[-1].release != word:
                sys.exit(f"{name} of {type(way).__name__} did not bring {word} to serve")
            new = min(x.due for x in answered(load, began) if x.release == word)
            old = max(x.due for x in answered(load) if x.release == before)
            spans.append(
                {
                    "name": name,
                    "seconds": [round(began, 2), round(ended, 2)],
                    "first_of_new": round(new, 2),
                    "last_of_old": round(old, 2),
                    "lost": sum(x.due >= began for x in load.failures),
                }
            )
    return summary(load, spans)


def summary(load: Load, spans: list[dict]) -> dict:
    """Return what is drawn and told of a load; latencies in ms, of the quick requests."""
    quick = answered(load)
    during, outside = [], []
    for x in quick:
        deploying = any(began <= x.due < ended for began, ended in (y["seconds"] for y in spans))
        (during if deploying else outside).append(x.seconds)
    buckets = []
    for since in range(0, int(max(x.due for x in load.answers)), BUCKET):
        good = sorted(x.seconds * 1000 for x in answered(load, since, since + BUCKET))
        # In a bucket all of whose requests were lost there is no latency.
        figures = (statistics.median(good), good[int(0.99 * len(good))], good[-1]) if good else ()
        buckets.append([round(x, 1) for x in figures] or [None] * 3)
    return {
        "requests": len(load.answers),
        "lost": len(load.failures),
        "added_ms": round((max(during) - statistics.median(outside)) * 1000, 1),
        "deployments": spans,
        "bucket_seconds": BUCKET,
        **dict(zip(("median_ms", "p99_ms", "max_ms"), zip(*buckets, strict=True), strict=True)),
        # Where there are any, and not one by one, since they are many.
        "half_seconds_with_lost": sorted({x.due // 0.5 / 2 for x in load.failures}),
    }


def measure(carafe_server: Server, plain_server: Server) -> dict:
    """Put the ledger on both servers, and measure releases of it without load and with it."""
    say("a second app on both")
    carafe, plain = Carafe(carafe_server), Plain(plain_server)
    say("releases without load")
    runs, plain_seconds = [], []
    for _ in range(QUIET_ROUNDS):
        # A word that no earlier measurement on this server had.
        word = f"quiet{time.time_ns()}"
        runs.append(carafe.deploy(word))
        plain_seconds.append(plain.deploy(word))
        say(f"{runs[-1].seconds:.1f} s, {plain_seconds[-1]:.1f} s by the script")
    middle = sorted(runs, key=lambda x: x.seconds)[QUIET_ROUNDS // 2]
    say("releases under load")
    return {
        "deploy_seconds": middle.seconds,
        "deploy_slots_seconds": slots_seconds(middle.report),
        "deploy_tasks": middle.tasks_on_server,
        "deploy_trips": middle.trips_by_role,
        "script": SCRIPT,
        "script_seconds": statistics.median(plain_seconds),
        "under_load": {"deploy.yml": under_load(carafe), "script": under_load(plain)},
    }
