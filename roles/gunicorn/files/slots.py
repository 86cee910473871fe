"""Start a gunicorn slot, or roll all slots of an app to what they should run.

    slots.py start CONFIG NUMBER    become slot NUMBER; supervisord runs this
    slots.py roll CONFIG            restart stale slots one at a time, each healthy before the next
    slots.py roll --check CONFIG    only say which slots are stale

CONFIG is the JSON file that the role gunicorn writes. A slot gets the app's listening socket from
supervisord as standard input. It adds a private socket, on which ``roll`` asks just this slot for
its health, and hands both to gunicorn as socket activation does, so that gunicorn never unlinks
the socket that the other slots accept on.
"""

import argparse
import fcntl
import hashlib
import http.client
import json
import os
import pathlib
import socket
import sys
import time
import xmlrpc.client  # nosec B411

FINGERPRINT = "GUNICORN_SLOT_FINGERPRINT"
SD_LISTEN_FDS_START = 3  # sd_listen_fds(3)
SUPERVISOR_SOCKET = "/run/supervisor.sock"
LOG_TAIL = 8000  # bytes of a slot's log that a failure shows at most
NOT_RUNNING = 70  # supervisor.xmlrpc.Faults
RUNNING = ("STARTING", "RUNNING", "BACKOFF")  # what supervisord can stop


def fingerprint(config):
    """Return a hash of all that a slot takes in at its start: code, configuration, environment."""
    digest = hashlib.sha256()
    for link in (config["directory"], config["venv"]):
        digest.update(os.path.realpath(link).encode() + b"\0")
    for path in map(pathlib.Path, config["files"]):
        content = path.read_bytes() if path.exists() else b""
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def private_socket(config, number):
    return pathlib.Path(config["private_directory"], f"slot-{number}.sock")


def listen_privately(path):
    """Return the slot's private socket, or None: a slot can serve without."""
    try:
        path.unlink(missing_ok=True)
        private = socket.socket(socket.AF_UNIX)
        private.bind(str(path))
        path.chmod(0o600)
        private.listen()
    except OSError as error:
        print(f"slots.py: no private socket, so roll cannot see this slot: {error}", flush=True)
        return None
    return private


def start(config, number):
    """Replace this process by gunicorn, with the shared and the private socket as 3 and 4."""
    private = listen_privately(private_socket(config, number))
    sockets = [0] if private is None else [0, private.fileno()]
    # Copies above 10 first, since 3 or 4 may be in use by the very sockets that move there.
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in sockets]
    for target, copy in enumerate(copies, SD_LISTEN_FDS_START):
        os.dup2(copy, target, inheritable=True)
        os.close(copy)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0, inheritable=True)
    environment = {
        "LISTEN_FDS": str(len(sockets)),
        "LISTEN_PID": str(os.getpid()),
        FINGERPRINT: fingerprint(config),
        # Otherwise setproctitle, where an app has it, writes over the environment that roll reads.
        "SPT_NOENV": "1",
    }
    # Followed once, so that what is imported later comes from the same release: gunicorn keeps PWD,
    # and Python the folder of its executable, as they are written.
    directory = os.path.realpath(config["directory"])
    os.chdir(directory)
    executable = pathlib.Path(config["command"][0])
    executable = executable.parent.resolve() / executable.name
    os.environ.update(environment, PWD=directory)
    os.execv(executable, [str(executable), *config["command"][1:]])


class UnixConnection(http.client.HTTPConnection):
    """HTTP to a unix socket."""

    def __init__(self, path, timeout=None):
        super().__init__("localhost", timeout=timeout)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class SupervisorTransport(xmlrpc.client.Transport):
    """XML-RPC to supervisord, without importing its slow package."""

    def make_connection(self, host):
        return UnixConnection(SUPERVISOR_SOCKET)


def health(config, number, timeout=10):
    """Ask a slot for its health; return '' when it is well, or what is wrong."""
    connection = UnixConnection(private_socket(config, number), timeout)
    headers = {"Host": config["health_host"], "X-Forwarded-Proto": "https"}
    try:
        connection.request("GET", config["health_path"], headers=headers)
        answer = connection.getresponse()
        status = answer.status
        answer.read(65536)  # else the app would log a broken pipe
    except (OSError, http.client.HTTPException) as error:
        return f"no answer to {config['health_path']}: {error}"
    finally:
        connection.close()
    return "" if status < 500 else f"{config['health_path']} answered {status}"


def running_fingerprint(pid):
    """Return what the slot with this process id was started with."""
    try:
        environment = pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    prefix = FINGERPRINT.encode() + b"="
    return next((x[len(prefix) :].decode() for x in environment if x.startswith(prefix)), "")


class Slot:
    """One slot, as supervisord sees it."""

    def __init__(self, rpc, config, number):
        self.rpc, self.config, self.number = rpc, config, number
        self.process = f"{config['program']}:{config['program']}_{number}"

    def info(self):
        return self.rpc.getProcessInfo(self.process)

    def trouble(self, wanted):
        """Return '' when the slot runs what is wanted and is well, or why it must be restarted."""
        info = self.info()
        if info["statename"] not in RUNNING or not info["pid"]:
            return f"it is {info['statename']}"
        if running_fingerprint(info["pid"]) != wanted:
            return "it runs something else"
        # One that supervisord has just started may still be importing.
        if time.time() - info["start"] < self.config["health_timeout"]:
            return self.wait_until_healthy()
        return health(self.config, self.number)

    def wait_until_healthy(self):
        """Return '' once the slot is well, or what is wrong at its or the time's end."""
        deadline = time.monotonic() + self.config["health_timeout"]
        process, trouble, pause = None, "did not start", 0.1
        while (left := deadline - time.monotonic()) > 0:
            info = self.info()
            process = process or info["pid"]
            if info["statename"] not in ("STARTING", "RUNNING") or process != info["pid"]:
                return f"ended: {info['spawnerr'] or info['description'] or info['statename']}"
            trouble = health(self.config, self.number, timeout=left)
            if not trouble:
                return ""
            time.sleep(pause)
            pause = min(pause * 1.5, 1)  # each answer may fill the log with a traceback
        return trouble

    def stop(self):
        """Stop the slot, and return once it has ended."""
        again = time.monotonic() + 1
        try:
            self.rpc.stopProcess(self.process, False)
            while self.info()["statename"] == "STOPPING":
                if time.monotonic() > again:
                    # The first is lost when it meets a child of supervisord that is not the slot
                    # yet; for gunicorn, one more is no more.
                    self.rpc.signalProcess(self.process, "TERM")
                    again += 1
                time.sleep(0.05)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode != NOT_RUNNING:
                raise

    def restart(self):
        """Restart the slot; return '' once it is well, or what is wrong."""
        self.stop()
        try:
            self.rpc.startProcess(self.process, False)
        except xmlrpc.client.Fault as fault:
            return fault.faultString
        return self.wait_until_healthy()

    def log(self, length=0):
        """Return the end of the slot's log, and the log's size; there may be none yet."""
        try:
            return self.rpc.tailProcessStdoutLog(self.process, 0, length)[:2]
        except xmlrpc.client.Fault:
            return "", 0


def roll(config, check):
    """Restart each stale or ailing slot; stop at the first that does not become healthy."""
    wanted = fingerprint(config)
    rpc = xmlrpc.client.ServerProxy("http://localhost", transport=SupervisorTransport()).supervisor
    slots = [Slot(rpc, config, number) for number in range(config["slots"])]
    # Those that serve nothing first: supervisord closes the app's socket with its last slot.
    slots.sort(key=lambda slot: health(config, slot.number) == "")
    for slot in slots:
        if not (why := slot.trouble(wanted)):
            continue
        if check:
            print(f"slot {slot.number} would be restarted: {why}")
            continue
        began, (_, size) = time.monotonic(), slot.log()
        if trouble := slot.restart():
            written = slot.log()[1] - size  # less than nothing when the log was rotated
            log, _ = slot.log(min(written, LOG_TAIL) if written > 0 else LOG_TAIL)
            sys.exit(
                f"slot {slot.number} is not healthy ({trouble});"
                f" the slots after it were left alone.\n{log}"
            )
        took = time.monotonic() - began
        print(f"slot {slot.number} restarted in {took:.1f} s: {why}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    start_parser = commands.add_parser("start", help="become one slot")
    start_parser.add_argument("config", type=pathlib.Path)
    start_parser.add_argument("number", type=int)
    roll_parser = commands.add_parser("roll", help="restart stale slots one at a time")
    roll_parser.add_argument("--check", action="store_true", help="change nothing")
    roll_parser.add_argument("config", type=pathlib.Path)
    options = parser.parse_args()
    with options.config.open() as file:
        if options.command == "start":
            start(json.load(file), options.number)
        # Two at a time would stop two slots at once.
        fcntl.flock(file, fcntl.LOCK_EX)
        config = json.load(file)
        try:
            roll(config, options.check)
        except (OSError, xmlrpc.client.Fault) as error:
            message = (
                f"supervisord does not run {config['program']} as {options.config} says: {error}"
            )
            if not options.check:
                sys.exit(message)
            print(f"all slots would be restarted: {message}")


if __name__ == "__main__":
    main()
