"""A store that speaks S3: moto, under a gunicorn that speaks TLS, where the tests run."""

import contextlib
import os
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from testinfra.host import Host

APP = """
from moto.server import DomainDispatcherApplication, create_backend_app
app = DomainDispatcherApplication(create_backend_app)
"""
# By which it knows of which of Amazon's services it is asked.
SIGNED = "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host"
TRUSTED = "/etc/ssl/s3.pem"


@dataclass
class Store:
    """Where it is, and by what it is known."""

    address: str
    port: int
    name: str
    authority: str

    def told(self, host: Host) -> dict[str, str]:
        """Have a server trust it; return how the role is told of it."""
        if self.name != self.address:
            host.check_output("echo %s >>/etc/hosts", f"{self.address} {self.name}")
        host.check_output("echo %s >%s && chmod 644 %s", self.authority, TRUSTED, TRUSTED)
        there = {"s3_endpoint": f"{self.name}:{self.port}", "s3_ca": TRUSTED}
        return there | {"s3_key": "key", "s3_secret": "only-for-this-test"}


@contextlib.contextmanager
def serving(
    container: str, folder: Path, eventually: Callable[..., None], name: str = ""
) -> Iterator[Store]:
    """Have the store, with the buckets first and second, for the containers of a network.

    By a name, which their /etc/hosts forgets when they lose their power, or by its address.
    """
    (folder / "store.py").write_text(APP)
    words = "{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}"
    gateway = subprocess.check_output(
        ["docker", "inspect", "--format", words, container], text=True
    ).strip()
    with socket.create_server((gateway, 0)) as free:
        port = free.getsockname()[1]
    names = f"DNS:{name},IP:{gateway}" if name else f"IP:{gateway}"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", f"/CN={name or gateway}"),
            *("-keyout", folder / "key.pem"),
            *("-addext", f"subjectAltName={names}", "-out", folder / "s3.pem"),
        ],
        check=True,
        capture_output=True,
    )
    gunicorn = [Path(sys.executable).with_name("gunicorn"), f"--bind={gateway}:{port}"]
    gunicorn += ["--certfile=s3.pem", "--keyfile=key.pem", "--threads=8", "--no-control-socket"]
    trusted = ssl.create_default_context(cafile=folder / "s3.pem")
    # Buckets are in the path, whatever it is called.
    environment = {**os.environ, "S3_IGNORE_SUBDOMAIN_BUCKETNAME": "true"}
    with subprocess.Popen([*gunicorn, "store:app"], cwd=folder, env=environment) as server:

        def made(bucket: str) -> bool:
            request = urllib.request.Request(f"https://{gateway}:{port}/{bucket}", method="PUT")
            request.add_header("Authorization", f"{SIGNED}, Signature=0")
            try:
                return urllib.request.urlopen(request, context=trusted, timeout=5).status == 200
            except OSError:
                return False

        try:
            for bucket in ("first", "second"):
                eventually(lambda bucket=bucket: made(bucket), 30)
            yield Store(gateway, port, name or gateway, (folder / "s3.pem").read_text())
        finally:
            server.terminate()
