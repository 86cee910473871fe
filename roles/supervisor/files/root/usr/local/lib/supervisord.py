# Managed by Ansible, role supervisor.
"""supervisord, which starts the programs of an app in the app's slice, where it has one.

The slice says how much memory and how many processes the app may have, systemd.slice(5). Each
process of a program is a scope in it, with all that it starts. That makes it no part of
supervisor.service any more, whose ExecStopPost= therefore ends what a killed supervisord leaves.
"""

import os
import pwd
import subprocess
import sys
import time
from pathlib import Path

from supervisor.process import Subprocess
from supervisor.supervisord import main

UNITS = Path("/etc/systemd/system")
GROUPS = Path("/proc/self/cgroup")
MANAGER = "org.freedesktop.systemd1"
START = ("/org/freedesktop/systemd1", f"{MANAGER}.Manager", "StartTransientUnit")
PATIENCE = 2  # seconds


def slice_of(uid):
    """Return the slice of a user, '' where there is none."""
    name = pwd.getpwuid(uid).pw_name.replace("-", r"\x2d")
    return f"carafe-{name}.slice" if (UNITS / f"carafe-{name}.slice").exists() else ""


def start_scope(name, where, more):
    """Have systemd put this process into a scope; return '' or why it does not."""
    properties = [
        ("PIDs", "au", "1", str(os.getpid())),
        ("Slice", "s", where),
        ("Description", "s", name),
        ("CollectMode", "s", "inactive-or-failed"),
        # When the server goes down, supervisord ends its programs before systemd does.
        ("Before", "as", "1", "supervisor.service"),
        *more,
    ]
    unit = f"carafe-supervised-{os.getpid()}-{time.monotonic_ns()}.scope"
    words = [str(len(properties)), *(word for words in properties for word in words), "0"]
    call = ["busctl", "--quiet", "--timeout=5", "call", MANAGER, *START, "ssa(sv)a(sa(sv))"]
    done = subprocess.run(
        [*call, unit, "fail", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        return done.stderr.strip()
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if unit in GROUPS.read_text():
            return ""
        time.sleep(0.002)
    return f"it is not there after {PATIENCE} s"


def enter(name, where):
    """Bring this process, which is to be a program, into a slice; it can do without."""
    try:
        # One process that the kernel ends for its memory is no reason to end the others. Debian
        # 12's systemd does not know that of scopes, and does so anyway.
        trouble = start_scope(name, where, [("OOMPolicy", "s", "continue")])
        trouble = trouble and start_scope(name, where, [])
    except OSError as error:
        trouble = str(error)
    if trouble:
        os.write(2, f"supervisord: it runs outside of {where}: {trouble}\n".encode())


def set_uid(self, become=Subprocess.set_uid):
    """Become the user of a program, in the process that is to be it."""
    if self.config.uid and (where := slice_of(self.config.uid)):
        enter(self.config.name, where)
    return become(self)


Subprocess.set_uid = set_uid
# As ps, pgrep and top have known it.
Path("/proc/self/comm").write_text("supervisord")
sys.exit(main())
