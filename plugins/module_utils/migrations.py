"""What there is to say of a migration, or of an app that is loaded, that failed."""

from __future__ import annotations

import re

from .commands import CommandFailed, run
from .database_questions import QUESTIONS, said

# The pause between two tries of a migration that waits for a lock, in seconds. Meanwhile the site
# goes on: a lock that is waited for is waited for by whoever comes after, too.
PAUSE = 10
LOCK_TIMEOUT = "3s"
# The last is SQLite's.
WAITED = re.compile(
    r"due to lock timeout|\bLockNotAvailable|\b55P03\b|database (?:table )?is locked"
)
# What the end of a log means, and what to do about it. The first that is found is told.
HINTS = (
    # Of what the role gunicorn loads an app with, in one line.
    *(
        (
            {"load"},
            rf"(?m)^gunicorn_interface is \w+, and \S+ is an app of {name.upper()}$",
            f"The app speaks {name.upper()}: write app_interface: {name} beside app_wsgi in the"
            " app's variables, and run this again.",
        )
        for name in ("wsgi", "asgi")
    ),
    (
        {"load"},
        r"(?m)^gunicorn_wsgi is \S+, which makes an app and is none: \S+\(\) calls it$",
        "app_wsgi names what makes the app: write () after it, and run this again.",
    ),
    (
        {"load", "probe", "switch", "slots"},
        r"permission denied for (?:schema|database)|must be owner of|InsufficientPrivilege",
        "Whoever runs the app may not change its tables. If the app makes or migrates them itself"
        " when it is loaded, set app_user_migrates: true. docs/how-to/an-app-of-your-own.md says"
        " what that gives away.",
    ),
    (
        {"migrate", "setup"},
        r"attempt to write a readonly database|unable to open database file",
        "What is in app_shared belongs to the user that runs the app. For a database in there, set"
        " app_user_migrates: true.",
    ),
    (
        {"build"},
        r"[Rr]equires-[Pp]ython|requires a different Python|requires Python [<>=!~]"
        r"|current Python version|does not satisfy Python",
        "The app is for another Python than this server's own. Name it: app_python: '3.12'",
    ),
    (
        {"build"},
        r"[Uu]nknown compiler"
        r"|\b(?:gcc|g\+\+|cc|c\+\+|clang|rustc|cargo|gfortran)'?:? (?:failed|not found)"
        r"|No such file or directory: '[^']*(?:gcc|g\+\+|cc|clang|cargo)'"
        r"|can't find Rust compiler|[Cc]ompiler .{0,60}(?:not found|cannot be found)",
        "{package} has no wheel for this server's Python, and no compiler is here to build it. Pin"
        " a version of it that has one, by app_requirements_override, or run the app with a Python"
        " that it has one for, by app_python; or install what builds it: app_extra_packages, for"
        " instance [gcc, libc6-dev, python3-dev].",
    ),
    (
        {"build"},
        r"\w+[-_]config\b.{0,40}(?:not found|No such file)|fatal error: \S+: No such file"
        r"|cannot find -l\w+|[Pp]ackage '?[\w.+-]+'?,? .{0,60}not found\b.{0,40}pkg-config"
        r"|pkg-config .{0,60}(?:not found|could not be found)",
        "{package} has no wheel for this server's Python, and what it is built from is not here."
        " Pin a version of it that has one, or have another package in its place, by"
        " app_requirements_override; or install what builds it: app_extra_packages, for instance"
        " [gcc, libc6-dev, python3-dev, libpq-dev].",
    ),
)
PACKAGE = re.compile(
    r"(?:Failed (?:to build|building wheel for|to build wheel for)|Could not build wheels for)"
    r" (?!installable )[`'\"]?"
    r"([A-Za-z0-9._-]+(?:==[^\s`'\"]+)?)"
)


def hint(step: str, output: bytes) -> str:
    """Return what to do about a step that ended with this output, or ''."""
    log = output.decode(errors="replace")
    for steps, pattern, text in HINTS:
        if step in steps and re.search(pattern, log):
            found = PACKAGE.findall(log)
            return text.format(package=found[-1] if found else "One of the packages")
    return ""


def waited(output: bytes) -> bool:
    """Tell whether a migration has ended since it waited too long for a lock."""
    return bool(WAITED.search(output.decode(errors="replace")))


def ask(database: str, question: str) -> str:
    """Ask PostgreSQL on this server, as its superuser, and return what there is to say."""
    # By the catalogs' own names alone, whatever the owner has the database look at first.
    only = ["env", "PGOPTIONS=-c search_path=pg_catalog"]
    words = ["psql", "-XAtqd", database, "-v", "ON_ERROR_STOP=1", "-c", QUESTIONS[question]]
    try:
        answer = run("runuser", "-u", "postgres", "--", *only, *words).splitlines()
    except CommandFailed:
        # It is what helps, and no reason of its own.
        answer = "The database does not answer."
    return said(question, answer)
