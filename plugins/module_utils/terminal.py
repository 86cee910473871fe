"""Run a command as another user, who gets nothing into the terminal that it is given at.

    terminal USER COMMAND [ARGUMENT ...]        as root

Whoever shares a terminal may type into it (TIOCSTI, which a kernel before 6.2 cannot forbid), and
may read on when the command has ended: root's shell would take in what an app wrote. So the command
has a session and a terminal of its own. What the caller has open besides, pipes and files, stays
as it is.

There are three processes. The relay is what the caller sees: it copies between the two terminals,
and stops and ends as the command does. The leader of the new session, which is root's too, starts
the command and tells the relay how it fares. A command that has all of the caller's terminal has
the keyboard at once. Any other one, in a pipe or in the background, gets it when it reads: until
then the keyboard is that of the others, a pager for instance.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import resource
import select
import signal
import socket
import sys
import termios
import tty
from pathlib import Path
from typing import Any

FORWARDED = ("SIGINT", "SIGQUIT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGTSTP")
# What Python ignores, and nobody else.
OF_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
FOREGROUND, BACKGROUND = b"f", b"b"
OPOST, SIZE = 1, 65536


def callers() -> int | None:
    """Return the terminal of the caller's session, or one that it has open; None without any."""
    with contextlib.suppress(OSError):
        return os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        if os.isatty(fd):
            return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
    return None


def change_user(user: pwd.struct_passwd) -> None:
    os.initgroups(user.pw_name, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)


def become(user: pwd.struct_passwd, command: list[str]) -> None:
    """Replace this process by the command."""
    for number in OF_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    change_user(user)
    os.environ.update(HOME=user.pw_dir, USER=user.pw_name, LOGNAME=user.pw_name)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def start(user: pwd.struct_passwd, command: list[str], slave: int, at_once: bool) -> int:
    """Start the command in a group of processes of its own; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    os.setpgid(0, 0)
    if at_once:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
        os.tcsetpgrp(slave, os.getpid())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTTOU])
    # The list has one of its own, which is closed by then.
    for fd in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        with contextlib.suppress(OSError):
            if os.isatty(fd) and os.get_inheritable(fd):
                os.dup2(slave, fd)
    become(user, command)
    raise AssertionError


def lead(
    user: pwd.struct_passwd, command: list[str], slave: int, relay: socket.socket, at_once: bool
) -> None:
    """Lead the session of the command: tell the relay when it stops, and how it ends."""
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    pid = start(user, command, slave, at_once)
    for name in ("SIGINT", "SIGQUIT", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGTERM"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)

    def kill(number: int) -> None:
        with contextlib.suppress(OSError):
            os.killpg(os.getpgid(pid), number)

    # The relay was killed, so that the terminal is gone.
    signal.signal(signal.SIGHUP, lambda *_: kill(signal.SIGHUP))
    relay.send(b"%d" % pid)
    while True:
        _, status = os.waitpid(pid, os.WUNTRACED)
        with contextlib.suppress(OSError):
            relay.send(b"%d" % status)
            answer = relay.recv(1)
        if not os.WIFSTOPPED(status):
            # The relay has read what the command wrote last.
            return
        with contextlib.suppress(OSError):
            os.tcsetpgrp(slave, os.getpgid(pid) if answer == FOREGROUND else os.getpgrp())
        kill(signal.SIGCONT)


class Relay:
    """Copies between the caller's terminal and that of the command."""

    def __init__(self, terminal: int, master: int, leader: socket.socket, whole: bool) -> None:
        self.terminal, self.master, self.leader = terminal, master, leader
        self.whole = whole
        self.attributes: list[Any] = termios.tcgetattr(terminal)
        self.forwards = False
        self.pending = b""
        self.signals, writes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(master, False)
        for name in (*FORWARDED, "SIGWINCH"):
            number = getattr(signal, name)
            # Whoever ignores one, as nohup does, wants the command to.
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
        self.pid = int(leader.recv(SIZE) or b"0")

    def is_in_the_foreground(self) -> bool:
        try:
            return os.tcgetpgrp(self.terminal) == os.getpgrp()
        except OSError:
            return True

    def take_keyboard(self) -> None:
        """Pass on each key as it is, Ctrl-C too. From the background, this stops the relay."""
        tty.setraw(self.terminal, termios.TCSADRAIN)
        if not self.whole:
            raw = termios.tcgetattr(self.terminal)
            raw[OPOST] = self.attributes[OPOST]
            termios.tcsetattr(self.terminal, termios.TCSADRAIN, raw)
        self.forwards = True

    def give_keyboard_back(self) -> None:
        if self.forwards:
            self.forwards = False
            before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            with contextlib.suppress(OSError, termios.error):
                termios.tcsetattr(self.terminal, termios.TCSADRAIN, self.attributes)
            signal.signal(signal.SIGTTOU, before)

    def fit(self) -> None:
        """Give the command's terminal the size of the caller's."""
        with contextlib.suppress(OSError):
            size = fcntl.ioctl(self.terminal, termios.TIOCGWINSZ, bytes(8))
            fcntl.ioctl(self.master, termios.TIOCSWINSZ, size)

    def kill(self, number: int) -> None:
        with contextlib.suppress(OSError):
            os.killpg(os.getpgid(self.pid), number)

    def output(self) -> bool:
        """Show what the command has written; return whether there was something."""
        try:
            data = os.read(self.master, SIZE)
        except OSError:
            return False
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(self.terminal, data) :]
        return True

    def input(self) -> None:
        try:
            data = os.read(self.terminal, SIZE)
        except OSError:
            data = b""
        if not data:
            self.forwards = False
            self.kill(signal.SIGHUP)
        self.pending += data

    def stopped(self, number: int) -> None:
        """The command has stopped: because it wants the keyboard, or as the caller wished."""
        if number not in (signal.SIGTTIN, signal.SIGTTOU):
            had = self.forwards
            self.give_keyboard_back()
            before = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            # With those that share a pipe with it; nothing happens where nobody could continue it.
            os.kill(0, signal.SIGTSTP)
            signal.signal(signal.SIGTSTP, before)
            # Here the caller has continued it.
            self.fit()
            if not (had and self.is_in_the_foreground()):
                self.leader.send(BACKGROUND)
                return
        self.take_keyboard()
        self.leader.send(FOREGROUND)

    def run(self) -> int:
        """Copy until the command has ended; return its status as waitpid() has it."""
        while True:
            reads = [self.master, self.leader.fileno(), self.signals]
            ready, writes, _ = select.select(
                [*reads, *([self.terminal] if self.forwards and not self.pending else [])],
                [self.master] if self.pending else [],
                [],
            )
            if self.signals in ready:
                for number in os.read(self.signals, SIZE):
                    if number == signal.SIGWINCH:
                        self.fit()
                    elif signal.Signals(number).name in FORWARDED:
                        self.kill(number)
            if self.master in ready:
                self.output()
            if self.terminal in ready:
                self.input()
            if writes:
                with contextlib.suppress(BlockingIOError):
                    self.pending = self.pending[os.write(self.master, self.pending) :]
            if self.leader.fileno() in ready:
                status = int(self.leader.recv(SIZE) or b"9")
                if os.WIFSTOPPED(status):
                    self.stopped(os.WSTOPSIG(status))
                    continue
                while self.output():
                    pass
                return status


def end(status: int) -> None:
    """End as the command did."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        os._exit(128 + number)
    os._exit(os.WEXITSTATUS(status))


def main() -> None:
    user, command = pwd.getpwnam(sys.argv[1]), sys.argv[2:]
    terminal = callers()
    if terminal is None:
        become(user, command)
        return
    whole = all(map(os.isatty, (0, 1, 2)))
    master, slave = os.openpty()
    os.fchown(slave, user.pw_uid, -1)
    attributes = termios.tcgetattr(terminal)
    if not whole:
        # Where others write to the terminal as well, it is the caller's that has \n become \r\n.
        attributes[OPOST] &= ~termios.OPOST
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    mine, leaders = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # A moment without, in which the size changed, is made up for.
    size = fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8))
    fcntl.ioctl(slave, termios.TIOCSWINSZ, size)
    try:
        at_once = whole and os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        at_once = whole
    if os.fork() == 0:
        mine.close()
        os.close(master)
        try:
            lead(user, command, slave, leaders, at_once)
        finally:
            os._exit(0)
    leaders.close()
    os.close(slave)
    relay = Relay(terminal, master, mine, whole)
    relay.fit()
    try:
        if at_once:
            relay.take_keyboard()
        status = relay.run()
    finally:
        relay.give_keyboard_back()
    end(status)
