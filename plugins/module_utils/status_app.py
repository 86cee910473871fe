"""What is to be seen of an app: its release, slots, background workers, schedules, maintenance."""

from __future__ import annotations

import contextlib
import json
import re
import time
import xmlrpc.client  # nosec B411 # of supervisord, by its own socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import files, processes, restarts, schedule_runs, slots, supervisord
from .commands import Failure, show
from .levels import GREEN, HOUR, RED, YELLOW, Row, clock, span
from .release_state import State
from .words import one_line

FACTS = Path("/etc/carafe")
PROGRAMS = restarts.PROGRAMS
NGINX_DATA = Path("/var/lib/nginx")
ROLL = "python3 /usr/local/lib/carafe/gunicorn-slots roll"
LONG_LOCK = 2 * HOUR  # for longer no release takes
DEPLOY, RELEASES = (f"ansible-playbook carafe.stack.{x}" for x in ("deploy", "releases"))


@dataclass(frozen=True)
class App:
    """An app of this server; ``config`` is the slots.json of what serves."""

    name: str
    root: Path
    config: Path

    @property
    def state(self) -> State:
        return State({"name": self.name, "root": str(self.root)})


def apps() -> list[App]:
    """Return the apps that Carafe has put here, whether or not they serve."""
    configs = {name: Path(x) for name, x in restarts.slot_files(PROGRAMS).items()}
    # One whose database another server has taken over has left its files here, and no program.
    stopped = {x.stem for x in FACTS.glob("*.stopped")}
    names = {*configs, *(x.stem for x in FACTS.glob("*.fact") if x.stem not in stopped)}
    default = {name: Path("/srv", name, "serving/slots.json") for name in names}
    return [App(x, y.parent.parent, y) for x, y in sorted({**default, **configs}.items())]


def release(app: App) -> Iterator[Row]:
    """Yield what serves, since when and by whom; how the last run went; who is at work."""
    state, name = app.state, app.name
    serving = state.serving
    if not serving:
        yield Row("release", RED, "no release serves", DEPLOY, name)
    else:
        entry = state.releases.get(serving, {})
        when, broken = entry.get("deployed"), entry.get("broken")
        words = [serving, *([f"of {entry['revision']}"] if entry.get("revision") else [])]
        words += [f"since {clock(when)}"] if when else []
        words += [f"by {entry['by']}"] if entry.get("by") else []
        says = one_line(" ".join(words))
        numbers = {"carafe_release_deployed_timestamp_seconds": when} if when else {}
        labels = {"release": serving}
        if broken:
            says = one_line(f"{says}; broken, at {broken}")
            yield Row("release", RED, says, RELEASES, name, numbers, labels)
        else:
            yield Row("release", GREEN, says, "", name, numbers, labels)
    yield from last_run(app)
    lock = state.read_lock()
    if lock:
        age = time.time() - lock.get("since", 0)
        says = one_line(f"{lock.get('by')} is at work for {span(age)}: {lock.get('what')}")
        level, then = (YELLOW, RELEASES) if age > LONG_LOCK else (GREEN, "")
        yield Row("lock", level, says, then, name)


def last_run(app: App) -> Iterator[Row]:
    """Yield how the last deployment or rollback ended, as the audit log has it."""
    lines = (files.read(app.root / "state/releases.log") or "").splitlines()
    for line in reversed(lines):
        fields = line.split("  ")
        # when, by whom, what, how it ended, how long it took
        if len(fields) >= 5:
            when, by, what, *result, took = fields
            ended = " ".join(result)
            says = one_line(f"{what} by {by}, {when}, {took}: {ended}")
            level = GREEN if ended == "ok" else YELLOW
            yield Row("last run", level, says, "" if level == GREEN else RELEASES, app.name)
            return


def slot_rows(app: App, rpc: Any) -> Iterator[Row]:
    """Yield the state and the health of each slot."""
    if not app.config.exists():
        return
    config, name, heal = slots.load(app.config), app.name, f"{ROLL} {app.config}"
    wanted = slots.fingerprint(config)
    found = [slots.Slot(rpc, config, x["name"]) for x in supervisord.processes(rpc, name)]
    if not found:
        yield Row("slots", RED, "supervisord has no such program", DEPLOY, name)
    for slot in found:
        level, says = slot_health(slot, wanted)
        yield Row(f"slot {slot.number}", level, says, "" if level == GREEN else heal, name)


def slot_health(slot: slots.Slot, wanted: str) -> tuple[str, str]:
    info = slot.info()
    state, pid = info["statename"], info["pid"]
    if state not in supervisord.RUNNING or not pid:
        return RED, one_line(f"it is {state}: {info['spawnerr'] or info['description']}")
    age, patience = processes.age(pid) or 0, slot.config["health"]["timeout"]
    if trouble := slot.ask():
        starting = state == "STARTING" or age < patience
        return (YELLOW, f"it is starting: {trouble}") if starting else (RED, trouble)
    if processes.environment(pid).get(slots.FINGERPRINT, "") != wanted:
        return YELLOW, "it runs something else than the release that serves"
    return GREEN, f"healthy, up for {span(age)}"


def workers(app: App, rpc: Any) -> Iterator[Row]:
    """Yield the state of each background worker, whose programs are named after the app."""
    found = [x for x in rpc.getAllProcessInfo() if x["group"].startswith(f"{app.name}.")]
    for info in found:
        process = f"{info['group']}:{info['name']}"
        # supervisord numbers the processes of a program.
        several = sum(x["group"] == info["group"] for x in found) > 1
        shown = info["name"] if several else info["group"]
        what = f"worker {shown.removeprefix(f'{app.name}.')}"
        state = info["statename"]
        if state == "RUNNING":
            says = f"up for {span(info['now'] - info['start'])}"
            yield Row(what, GREEN, says, "", app.name)
        else:
            said = one_line(f"it is {state}: {info['spawnerr'] or info['description']}")
            level = YELLOW if state == "STARTING" else RED
            log = f"supervisorctl tail {process}" if state == "BACKOFF" else ""
            yield Row(what, level, said, log or f"supervisorctl start {process}", app.name)


def schedules(app: App) -> Iterator[Row]:
    """Yield how the last run of each schedule went, and whether its timer still runs."""
    names = schedule_runs.scheduled(app.name, app.root)
    folder, next_ = schedule_runs.history(app.root), "ansible-playbook carafe.stack.schedules"
    timers = [f"{app.name}.{x}.timer" for x in names]
    states = show("ActiveState", *timers) if timers else []
    failed = {line.partition(":")[0]: line for line in schedule_runs.failing(folder, names)}
    for name, state in zip(names, states, strict=True):
        what, runs = f"schedule {name}", schedule_runs.read(folder / f"{name}.json")
        metric = "carafe_schedule_last_end_timestamp_seconds"
        numbers = {metric: runs[-1]["ended"]} if runs else {}
        if state["ActiveState"] != "active":
            says = f"its timer is {state['ActiveState']}, so that it does not run"
            start = f"systemctl start {app.name}.{name}.timer"
            yield Row(what, RED, says, start, app.name, numbers)
        elif line := failed.get(f"the schedule {name}"):
            says = line.partition(": ")[2].partition(". See:")[0]
            yield Row(what, YELLOW, says, f"{next_} -e app_schedule={name}", app.name, numbers)
        elif runs:
            says = f"{schedule_runs.how(runs[-1])}, {schedule_runs.clock(runs[-1]['ended'])}"
            yield Row(what, GREEN, says, "", app.name, numbers)
        else:
            yield Row(what, GREEN, "no run yet", "", app.name)


def maintenance(app: App) -> Iterator[Row]:
    """Yield that visitors get the maintenance page."""
    flag = NGINX_DATA / f"maintenance-{app.name}/on"
    with contextlib.suppress(FileNotFoundError):
        since = clock(flag.stat().st_mtime)
        yield Row(
            "maintenance",
            YELLOW,
            f"visitors get the maintenance page, since {since}",
            "ansible-playbook carafe.stack.maintenance -e state=off",
            app.name,
        )


def promised() -> dict[str, int]:
    """Return the memory in MiB that each app is promised."""
    found = {}
    for path in FACTS.glob("*.fact"):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            found[path.stem] = int(json.loads(path.read_text())["memory_mb"])
    return found


def rows(app: App) -> Iterator[tuple[str, Any]]:
    """Yield what looks after an app, each under a name that a failure of it is told by."""
    yield "release", lambda: release(app)
    yield "slots", lambda: supervised(slot_rows, app)
    yield "workers", lambda: supervised(workers, app)
    yield "schedules", lambda: schedules(app)
    yield "maintenance", lambda: maintenance(app)


def supervised(look: Any, app: App) -> Iterator[Row]:
    try:
        yield from look(app, supervisord.connect())
    except (OSError, xmlrpc.client.Error) as error:
        raise Failure(f"supervisord does not answer: {error}") from None
    except slots.SlotError as error:
        raise Failure(re.sub(r"\s+", " ", str(error))) from None
