"""Tell whether fail2ban would take its configuration, without a word to the one that runs.

    fail2ban-try.py         the configuration as it is; systemd runs this before a reload
    fail2ban-try.py FILE    with FILE in the place of jail.d/carafe.local

fail2ban's own test (``fail2ban-client -t``) reads files only. It passes a regular expression, a
journal match or a time that the server then refuses, half way through a reload that has put an end
to the jails before. Here a server of its own gets the same commands, all but those that start
something or open its log and database.
"""

import contextlib
import io
import ipaddress
import logging
import re
import shutil
import sys
import tempfile
from pathlib import Path

from fail2ban.client.configurator import Configurator
from fail2ban.server.server import Server
from fail2ban.server.transmitter import Transmitter

CONFIGURATION = Path("/etc/fail2ban")
# Settings of the whole server, which have no jail for their second word.
GLOBAL = (
    *("syslogsocket", "loglevel", "logtarget", "allowipv6"),
    *("dbfile", "dbmaxmatches", "dbpurgeage"),
)


def refused(folder):
    """Return what fail2ban would say against the configuration in a folder, or an empty text."""
    said = io.StringIO()
    logger = logging.getLogger("fail2ban")
    logger.addHandler(logging.StreamHandler(said))
    logger.setLevel(logging.ERROR)
    logger.propagate = False
    configurator = Configurator()
    configurator.setBaseDir(str(folder))
    try:
        configurator.readEarly()
        configurator.readAll()
        if not configurator.getOptions():
            return said.getvalue() or "it cannot be read"
        configurator.convertToProtocol()
    except Exception as error:  # whatever it is, fail2ban would not start
        return said.getvalue() + str(error)
    transmitter = Transmitter(Server())
    for command in configurator.getConfigStream():
        if command[0] == "config-error":
            return str(command[1])
        if command[0] == "start" or command[1] in GLOBAL:
            continue
        status, answer = transmitter.proceed(command)
        if status:
            return f"jail {command[1]}: {answer}"
        if command[2] == "addignoreip":
            wrong = [name for name in command[3:] if not is_network_or_name(name)]
            if wrong:
                return f"not an address, network or host name: {', '.join(wrong)}"
    return ""


def is_network_or_name(text):
    """Tell whether fail2ban could ignore this; it takes a mistyped network for a host name."""
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_network(text, strict=False))
    return bool(re.fullmatch(r"(?!-)[\w.-]*[A-Za-z][\w.-]*", text))


def main():
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "fail2ban")
        shutil.copytree(CONFIGURATION, copy)
        for file in sys.argv[1:]:
            shutil.copy(file, copy / "jail.d/carafe.local")
        # The library writes to standard output what it also logs.
        with contextlib.redirect_stdout(io.StringIO()):
            message = refused(copy)
    message = message.strip().replace(str(copy), str(CONFIGURATION))
    if message:
        hint = "Correct fail2ban_jails or fail2ban_ignore in group_vars and run the playbook again."
        sys.exit(f"fail2ban would not take this. {message}\n{hint if sys.argv[1:] else ''}".strip())


if __name__ == "__main__":
    main()
