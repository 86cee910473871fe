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

FINGERPRINT = "GUNICORN_SLOT_FINGERPRINT"
SD_LISTEN_FDS_START = 3  # sd_listen_fds(3)
LOG_TAIL = 4000  # characters of a slot's log that a failure shows


def fingerprint(config):
    """Return a hash of all that a slot takes in at its start: code, configuration, environment."""
    digest = hashlib.sha256()
    for link in (config["directory"], config["venv"]):
        digest.update(os.path.realpath(link).encode() + b"\0")
    for path in config["files"]:
        digest.update(hashlib.sha256(pathlib.Path(path).read_bytes()).digest())
    return digest.hexdigest()


def private_socket(config, number):
    return pathlib.Path(config["private_directory"], f"slot-{number}.sock")


def start(config, number):
    """Replace this process by gunicorn, with the shared and the private socket as 3 and 4."""
    path = private_socket(config, number)
    path.unlink(missing_ok=True)
    private = socket.socket(socket.AF_UNIX)
    private.bind(str(path))
    path.chmod(0o600)
    private.listen()
    # Copies above 10 first, since 3 or 4 may be in use by the very sockets that move there.
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (0, private.fileno())]
    for target, copy in enumerate(copies, SD_LISTEN_FDS_START):
        os.dup2(copy, target, inheritable=True)
        os.close(copy)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0, inheritable=True)
    os.environ.update(
        {
            "LISTEN_FDS": str(len(copies)),
            "LISTEN_PID": str(os.getpid()),
            FINGERPRINT: fingerprint(config),
        }
    )
    os.execv(config["command"][0], config["command"])


class SlotConnection(http.client.HTTPConnection):
    """HTTP to one slot's private socket."""

    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def health(config, number, timeout=10):
    """Ask a slot for its health; return '' when it is well, or what is wrong."""
    connection = SlotConnection(private_socket(config, number), timeout)
    headers = {"Host": config["health_host"], "X-Forwarded-Proto": "https"}
    try:
        connection.request("GET", config["health_path"], headers=headers)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"no answer: {error}"
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


def supervisor():
    """Return the RPC interface of the running supervisord."""
    import xmlrpc.client

    from supervisor.xmlrpc import SupervisorTransport  # Debian's python3, with the package supervisor

    transport = SupervisorTransport(None, None, "unix:///run/supervisor.sock")
    return xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport).supervisor


def wait_until_healthy(rpc, config, number, process):
    """Return '' once the slot runs what it should and is well, or what is wrong at the end."""
    deadline = time.monotonic() + config["health_timeout"]
    trouble = "did not start"
    while time.monotonic() < deadline:
        info = rpc.getProcessInfo(process)
        if info["statename"] in ("FATAL", "EXITED", "STOPPED", "UNKNOWN"):
            return f"{info['statename']}: {info['spawnerr'] or info['description']}"
        trouble = health(config, number, timeout=max(1, deadline - time.monotonic()))
        if not trouble:
            return ""
        time.sleep(0.1)
    return trouble


def roll(config, check):
    """Restart each stale or ailing slot; stop at the first that does not become healthy."""
    wanted, rpc = fingerprint(config), supervisor()
    for number in range(config["slots"]):
        process = f"{config['program']}:{config['program']}_{number}"
        info = rpc.getProcessInfo(process)
        began = time.monotonic()
        starting = info["statename"] in ("STARTING", "RUNNING", "BACKOFF")
        if starting and running_fingerprint(info["pid"]) == wanted:
            fresh = time.time() - info["start"] < config["health_timeout"]
            if not (wait_until_healthy(rpc, config, number, process) if fresh else health(config, number)):
                continue
        if check:
            print(f"slot {number} would be restarted")
            continue
        if info["statename"] in ("RUNNING", "STARTING", "BACKOFF"):
            rpc.stopProcess(process)
        rpc.startProcess(process, False)
        if trouble := wait_until_healthy(rpc, config, number, process):
            log = rpc.tailProcessStdoutLog(process, 0, LOG_TAIL)[0]
            sys.exit(f"slot {number} is not healthy ({trouble}); the slots after it were left alone.\n{log}")
        print(f"slot {number} restarted in {time.monotonic() - began:.1f} s")


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
    config = json.loads(options.config.read_text())
    if options.command == "start":
        start(config, options.number)
    else:
        roll(config, options.check)


if __name__ == "__main__":
    main()
