"""A command that is run as another user, at a terminal that it gets nothing into."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import terminal

# As the program, but for that whoever runs the tests need not be root.
RUN = f"""#!{sys.executable} -I
import sys
sys.path.insert(0, {str(Path(terminal.__file__).parent)!r})
import terminal
terminal.change_user = lambda user: None
terminal.main()
"""
# What an app does that has it in for whoever runs its commands.
TYPE = """
import fcntl, os, termios
for fd in (0, 1, 2, "/dev/tty"):
    try:
        fd = os.open(fd, os.O_RDWR) if fd == "/dev/tty" else fd
        for letter in "echo ty''ped\\n":
            fcntl.ioctl(fd, termios.TIOCSTI, letter.encode())
    except OSError:
        pass
"""
PROMPT = "ready> "


class Shell:
    """An operator's shell at a terminal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fd, slave = pty.openpty()
        # The first terminal that the leader of a session opens is the session's.
        script = 'exec bash --norc --noprofile --noediting -i <>"$0" >&0 2>&0'
        self.process = subprocess.Popen(
            # Whoever runs the tests in the background has them ignore Ctrl-C.
            ["env", "--default-signal=INT,QUIT", "sh", "-c", script, os.ttyname(slave)],
            env={"PS1": PROMPT, "PATH": os.environ["PATH"], "TERM": "dumb"},
            cwd=folder,
            start_new_session=True,
        )
        self.shown = ""
        self.wait_for(PROMPT)
        os.close(slave)

    def wait_for(self, pattern: str, seconds: float = 20) -> str:
        """Return what is shown up to and with the pattern."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.shown)):
            ready = select.select([self.fd], [], [], max(deadline - time.monotonic(), 0))[0]
            assert ready, f"no {pattern!r} in {self.shown!r}"
            self.shown += os.read(self.fd, 65536).decode()
        before, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return before

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def run(self, command: str) -> list[str]:
        """Return the lines that a command shows."""
        self.type(f"{command}\n")
        self.wait_for(r"\r\n")
        return self.wait_for(PROMPT).removesuffix(PROMPT).splitlines()

    def close(self) -> None:
        os.close(self.fd)
        self.process.kill()
        self.process.wait()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A shell in a folder with ``app``, which runs a command as the app's user."""
    import pwd

    program = tmp_path / "relay"
    program.write_text(RUN)
    program.chmod(0o755)
    app = tmp_path / "app"
    app.write_text(f'#!/bin/sh\nexec ./relay {pwd.getpwuid(os.getuid()).pw_name} "$@"\n')
    app.chmod(0o755)
    (tmp_path / "type.py").write_text(TYPE)
    (tmp_path / "lines").write_text("one\ntwo\n")
    found = Shell(tmp_path)
    yield found
    found.close()


WAYS = ["", "</dev/null", ">/dev/null", "2>/dev/null", "| cat", ">&- 2>&-", "</dev/null >x 2>&1"]


LEGACY = Path("/proc/sys/dev/tty/legacy_tiocsti")
FORBIDDEN = LEGACY.exists() and LEGACY.read_text() != "1\n"


@pytest.mark.skipif(FORBIDDEN, reason="this kernel lets nobody type into a terminal")
@pytest.mark.parametrize("way", WAYS)
def test_with_nothing_in_between_the_command_types(shell: Shell, way: str) -> None:
    shell.type(f"{sys.executable} type.py {way}\n")
    shell.wait_for("typed\r\n")


@pytest.mark.parametrize("way", WAYS)
def test_the_command_types_nothing_into_the_terminal(shell: Shell, way: str) -> None:
    shell.run(f"./app {sys.executable} type.py {way}; sleep 0.2")
    assert "typed" not in "".join(shell.run("echo done"))


def test_what_it_leaves_behind_does_not_read_on(shell: Shell) -> None:
    thief = (
        "nohup sh -c 'sleep 0.3; while read -r x </dev/tty; do echo $x >>stolen; done' >&- 2>&- &"
    )
    shell.run(f'./app sh -c "{thief} exec sleep 0.1"')
    time.sleep(0.5)
    assert shell.run("echo secret") == ["secret"]
    assert not (shell.folder / "stolen").exists()


@pytest.mark.parametrize("status", [0, 1, 42, 255])
def test_its_exit_status_is_that_of_the_command(shell: Shell, status: int) -> None:
    assert shell.run(f"./app sh -c 'exit {status}'; echo $?") == [str(status)]
    assert shell.run(f"./app sh -c 'exit {status}' | cat; echo ${{PIPESTATUS[0]}}") == [str(status)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_it_ends_by_the_signal_that_ends_the_command(shell: Shell, number: int) -> None:
    lines = shell.run(f"./app sh -c 'kill -{number:d} $$'; echo $?")
    assert lines[-1] == str(128 + number)


def test_a_command_that_is_not_there_is_said(shell: Shell) -> None:
    assert shell.run("./app no-such-command; echo $?") == [
        "no-such-command: No such file or directory",
        "127",
    ]


@pytest.mark.parametrize(
    ("command", "lines"),
    [
        ("./app printf 'a\\nb\\n' | od -An -c", ["   a  \\n   b  \\n"]),
        ("./app printf 'a\\nb\\n' >out; od -An -c out", ["   a  \\n   b  \\n"]),
        ("./app cat <lines", ["one", "two"]),
        ("cat lines | ./app cat", ["one", "two"]),
        ("./app cat <lines | tr a-z A-Z", ["ONE", "TWO"]),
        ("echo x | ./app sh -c 'cat; echo err >&2' 2>&1 | sort", ["err", "x"]),
        ("./app sh -c 'echo out; echo err >&2' 2>/dev/null", ["out"]),
        ("./app cat <(echo other)", ["other"]),
        ("./app sh -c 'cat <&5' 5<lines", ["one", "two"]),
        ("head -c 300000 /dev/zero | ./app wc -c", ["300000"]),
        ("./app head -c 300000 /dev/zero | wc -c", ["300000"]),
        ("./app sh -c 'test -t 0 && test -t 1 && test -t 2 && echo all'", ["all"]),
        ("./app sh -c 'test -t 0 && ! test -t 1 && echo some >&2' >/dev/null", ["some"]),
        ("./app yes | head -n 1", ["y"]),
        ("timeout 5 ./app echo timed", ["timed"]),
        ("timeout -s INT 0.5 ./app sleep 30; echo $?", ["124"]),
        ("echo $(./app echo substituted)", ["substituted"]),
    ],
)
def test_pipes_and_files_stay_as_they_are(shell: Shell, command: str, lines: list[str]) -> None:
    assert shell.run(command) == lines


def test_all_that_it_writes_is_shown(shell: Shell) -> None:
    wanted = [str(number) for number in range(1, 20001)]
    assert shell.run("./app seq 20000") == wanted
    # Where the terminal is not the command's alone, too.
    assert shell.run("./app seq 20000 </dev/null") == wanted


def test_it_reads_what_is_typed(shell: Shell) -> None:
    shell.type("./app sh -c 'echo who; read -r name; echo hello $name'\n")
    shell.wait_for("who\r\n")
    shell.type("Ann\n")
    assert "hello Ann\r\n" in shell.wait_for(PROMPT)
    # In a pipe as well, where it gets the keyboard when it reads.
    shell.type("./app sh -c 'echo who >&2; read -r name; echo hello $name' | cat\n")
    shell.wait_for("who\r\n")
    shell.type("Bob\n")
    assert "hello Bob\r\n" in shell.wait_for(PROMPT)


def test_a_password_is_not_shown(shell: Shell) -> None:
    ask = "import getpass; print(len(getpass.getpass()))"
    for way in ("", " | cat", " </dev/null"):
        shell.type(f"./app {sys.executable} -c '{ask}'{way}\n")
        shell.wait_for("Password: ")
        shell.type("secret\n")
        assert "secret" not in (shown := shell.wait_for(PROMPT))
        assert "6\r\n" in shown


def test_a_pager_beside_it_has_the_keyboard(shell: Shell) -> None:
    pager = "sh -c 'read -r key </dev/tty; echo key $key; cat >/dev/null'"
    shell.type(f"./app sh -c 'echo begun >&2; sleep 1' | {pager}\n")
    shell.wait_for("begun\r\n")
    shell.type("q\n")
    assert "key q\r\n" in shell.wait_for(PROMPT)


@pytest.mark.parametrize("way", ["", " | cat", " </dev/null"])
def test_ctrl_c_ends_the_command(shell: Shell, way: str) -> None:
    began = time.monotonic()
    shell.type(f"./app sh -c 'echo begun >&2; exec sleep 30'{way}; echo ${{PIPESTATUS[0]}}\n")
    shell.wait_for("begun\r\n")
    time.sleep(0.2)
    shell.type("\x03")
    shell.wait_for(PROMPT)
    assert time.monotonic() - began < 10
    # As bash has it for a command that a signal has ended.
    assert shell.run("echo again") == ["again"]


def test_a_command_may_go_on_after_ctrl_c(shell: Shell) -> None:
    (shell.folder / "wait.py").write_text(
        "import time\n"
        "try: print(1, flush=True); time.sleep(30)\n"
        "except KeyboardInterrupt: print(2)\n"
    )
    shell.type(f"./app {sys.executable} wait.py; echo $?\n")
    shell.wait_for("1\r\n")
    shell.type("\x03")
    assert "2\r\n0\r\n" in shell.wait_for(PROMPT)


def test_ctrl_z_stops_it_and_fg_goes_on(shell: Shell) -> None:
    shell.type("./app sh -c 'echo begun; read -r line; echo got $line'\n")
    shell.wait_for("begun\r\n")
    shell.type("\x1a")
    shell.wait_for("Stopped")
    shell.wait_for(PROMPT)
    assert shell.run("echo between") == ["between"]
    shell.type("fg\n")
    shell.wait_for(r"begun.*\r\n")
    shell.type("more\n")
    assert "got more\r\n" in shell.wait_for(PROMPT)


def test_in_the_background_it_waits_until_it_may_read(shell: Shell) -> None:
    shell.type("./app sh -c 'read -r line; echo got $line' &\n")
    shell.wait_for(PROMPT)
    time.sleep(0.5)
    assert "Stopped" in "".join(shell.run("jobs"))
    shell.type("fg\n")
    shell.wait_for(r"read.*\r\n")
    shell.type("now\n")
    assert "got now\r\n" in shell.wait_for(PROMPT)


def test_its_terminal_has_the_size_of_the_caller_s_and_follows_it(shell: Shell) -> None:
    def resize(rows: int, columns: int) -> None:
        fcntl.ioctl(shell.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    resize(33, 99)
    assert shell.run("./app stty size") == ["33 99"]
    (shell.folder / "wait.py").write_text(
        "import os, signal\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])\n"
        "print('begun', flush=True)\n"
        "signal.sigwait([signal.SIGWINCH])\n"
        "os.execvp('stty', ['stty', 'size'])\n"
    )
    shell.type(f"./app {sys.executable} wait.py\n")
    shell.wait_for("begun\r\n")
    resize(44, 111)
    assert "44 111\r\n" in shell.wait_for(PROMPT)


def test_the_terminal_is_as_before_when_it_has_ended(shell: Shell) -> None:
    before = shell.run("stty -a")
    shell.run("./app true")
    shell.run("./app sh -c 'kill -9 $$'")
    assert shell.run("stty -a") == before


def test_when_the_terminal_is_gone_the_command_is_told(shell: Shell) -> None:
    trap = "trap 'echo hung >hung; exit' HUP; echo begun; while :; do sleep 0.1; done"
    shell.type(f'./app sh -c "{trap}"\n')
    shell.wait_for("begun\r\n")
    os.close(shell.fd)
    shell.fd = os.open(os.devnull, os.O_RDONLY)
    deadline = time.monotonic() + 10
    while not (shell.folder / "hung").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
