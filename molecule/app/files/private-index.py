"""A package index that asks for a password, and looks whether anybody could read it meanwhile."""

import base64
import hashlib
import http.server
import io
import pathlib
import zipfile

PASSWORD = "only-the-index-knows-this"
ASKED = "Basic " + base64.b64encode(f"ann:{PASSWORD}".encode()).decode()
NAME, INFO = "house-2.1-py3-none-any.whl", "house-2.1.dist-info"
SEEN = pathlib.Path("/run/private-index.seen")  # command lines that have the password in them


def wheel():
    """Return the only wheel, the same at each start, since a lock has its hash."""
    files = {
        "house.py": "",
        f"{INFO}/METADATA": "Metadata-Version: 2.1\nName: house\nVersion: 2.1\n",
        f"{INFO}/WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any\n",
        f"{INFO}/RECORD": "",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name, text in files.items():
            packed.writestr(zipfile.ZipInfo(name), text)
    return buffer.getvalue()


def look():
    """Note who shows the password in the list of processes."""
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if PASSWORD.encode() in line or ASKED.split()[1].encode() in line:
            with SEEN.open("ab") as file:
                file.write(line.replace(b"\0", b" ") + b"\n")


class Index(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        look()
        if self.headers.get("Authorization") != ASKED:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="house"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        known = hashlib.sha256(WHEEL).hexdigest()
        page = f'<a href="/{NAME}#sha256={known}">{NAME}</a>'.encode()
        pages = {"/simple/house/": (page, "text/html"), f"/{NAME}": (WHEEL, "application/zip")}
        body, kind = pages.get(self.path, (b"", "text/html"))
        self.send_response(200 if body else 404)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET


WHEEL = wheel()
if __name__ == "__main__":
    SEEN.touch()
    http.server.ThreadingHTTPServer(("127.0.0.1", 8099), Index).serve_forever()
