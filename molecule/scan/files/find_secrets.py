"""Look for secrets: at processes until standard input ends, and then into files.

Arguments: seconds since the epoch, before which no file had a secret, and folders. Of / what
everybody may read is searched, of others all. The first line of standard input has the secrets by
name, in JSON. Prints which was found where.
"""

import json
import os
import pathlib
import stat
import subprocess
import sys
import threading

secrets = {name: value.encode() for name, value in json.loads(sys.stdin.readline()).items()}
began, folders = float(sys.argv[1]), sys.argv[2:]
found = set()
# journalctl reads the last one.
SKIPPED = ("/proc", "/sys", "/dev", "/var/log/journal")
over = threading.Event()


def look(where, data):
    found.update((name, where) for name, value in secrets.items() if value in data)


def watch():
    last = False
    while not last:
        # Once more when it is over, or what began just before would be missed.
        last = over.wait(0.02)
        for process in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = process.read_bytes()
            except OSError:
                continue
            look(f"the arguments of {words.split(bytes(1))[0].decode(errors='replace')}", words)


def search(folder, everything):
    for root, names, files in os.walk(folder):
        path = pathlib.Path(root)
        names[:] = [name for name in names if str(path / name) not in SKIPPED]
        for name in files:
            try:
                status = (path / name).lstat()
                # A file's time may be set; when it was changed may not.
                if not stat.S_ISREG(status.st_mode) or status.st_ctime < began:
                    continue
                if everything or status.st_mode & stat.S_IROTH:
                    look(str(path / name), (path / name).read_bytes())
            except OSError:
                continue


watcher = threading.Thread(target=watch)
watcher.start()
sys.stdin.read()
over.set()
watcher.join()
if pathlib.Path("/run/systemd/system").exists():
    journal = ["journalctl", "--no-pager", "--output=export", f"--since=@{int(began)}"]
    look("the journal", subprocess.run(journal, capture_output=True, check=True).stdout)
for folder in folders:
    search(folder, everything=folder != "/")
print(json.dumps(sorted(found)))
