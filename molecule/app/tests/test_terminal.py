"""What an app's code can do to the terminal of the operator who runs one of its commands."""

import os
import pty
import select
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
from testinfra.host import Host

# Types into each terminal that it can get hold of, as if the operator did.
TYPE = """
import fcntl, os, termios
for fd in (0, 1, 2, "/dev/tty"):
    try:
        fd = os.open(fd, os.O_RDWR) if fd == "/dev/tty" else fd
        for letter in "id -un >>/root/typed\\n":
            fcntl.ioctl(fd, termios.TIOCSTI, letter.encode())
    except OSError:
        pass
"""
WAYS = ["", "</dev/null", "| cat", ">/dev/null 2>&1"]


@pytest.fixture
def operate(host: Host, docker_name: str) -> Iterator[Callable[[str], str]]:
    """Type a line into root's shell at a terminal, and return all that is shown."""

    def run(line: str) -> str:
        master, slave = pty.openpty()
        shell = subprocess.Popen(
            ["docker", "exec", "-it", docker_name, "bash", "--norc", "-i"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        shown, deadline = "", time.monotonic() + 20
        os.write(master, f"{line}; sleep 0.3; echo o''ver $?\n".encode())
        typed = False
        while select.select([master], [], [], max(deadline - time.monotonic(), 0))[0]:
            try:
                shown += os.read(master, 65536).decode()
            except OSError:
                break
            if "over" in shown and not typed:
                typed = True
                os.write(master, b"exit\n")
        shell.wait(20)
        os.close(master)
        return shown

    host.check_output("printf %%s %s >/tmp/type.py", TYPE)
    host.check_output("rm -f /root/typed")
    yield run
    host.check_output("rm -f /root/typed /tmp/type.py")


def test_with_nothing_in_between_it_would_act_as_root(
    host: Host, operate: Callable[[str], str]
) -> None:
    if host.run("grep -qx 0 /proc/sys/dev/tty/legacy_tiocsti").rc == 0:
        pytest.skip("this kernel lets nobody type")
    operate("runuser -u tiny -- python3 /tmp/type.py")
    assert host.check_output("sort -u /root/typed") == "root"


@pytest.mark.parametrize("command", ["tiny", "tiny -m", "sudo -u tiny"])
@pytest.mark.parametrize("way", WAYS)
def test_the_app_types_nothing_into_the_terminal_of_root(
    host: Host, operate: Callable[[str], str], command: str, way: str
) -> None:
    operate(f"{command} python3 /tmp/type.py {way}")
    assert not host.file("/root/typed").exists


def test_the_command_runs_as_the_app_at_a_terminal(operate: Callable[[str], str]) -> None:
    shown = operate("""tiny sh -c 'id -un; echo "$HOME"; test -t 0 && tty; exit 3'""")
    assert "tiny\r\n/srv/tiny/home\r\n/dev/pts/" in shown
    assert "over 0" in shown
    assert "failed 3" in operate("tiny sh -c 'exit 3' || echo failed $?")


def test_without_a_terminal_it_is_as_it_was(host: Host) -> None:
    script = 'test ! -t 0; id -un; echo "$HOME"; cat; exit 3'
    done = host.run("echo x | tiny sh -c %s", script)
    assert (done.rc, done.stdout) == (3, "tiny\n/srv/tiny/home\nx\n")
