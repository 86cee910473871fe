"""Other places: another host by sftp, for files and for the copy, and a store that speaks S3."""

import os
import socket
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.newest_release
# Its key may do that and nothing else.
STORE = """
set -e
useradd --system --create-home --home-dir /srv/store store
test -f /root/store || ssh-keygen -q -t ed25519 -N '' -f /root/store
install -d -o store -g store -m 0700 /srv/store/.ssh /srv/store/backups
(printf 'restrict,command="internal-sftp" '; cat /root/store.pub) >/srv/store/.ssh/authorized_keys
chown store: /srv/store/.ssh/authorized_keys
"""


# A store that speaks S3: moto, under a gunicorn that speaks TLS, where the tests run.
NAME = "s3.carafe.test"
STORE_S3 = """
from moto.server import DomainDispatcherApplication, create_backend_app
app = DomainDispatcherApplication(create_backend_app)
"""
# By which it knows of which of Amazon's services it is asked.
SIGNED = "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host"
COPY_THERE = """
import json
path = "/etc/carafe/backup/setup.json"
setup = json.load(open(path))
setup["copy"] = {"repository": "s3://second", "is_mount": False, "s3": setup["s3"]}
json.dump(setup, open(path, "w"))
"""


@pytest.fixture(scope="module")
def store(host, tmp_path_factory, eventually):
    """Have the store, with two buckets; return how the role is told of it.

    It is there until nothing is stored in it any more: what cannot be archived holds up the rest.
    """
    folder = tmp_path_factory.mktemp("store")
    (folder / "store.py").write_text(STORE_S3)
    words = "{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}"
    gateway = subprocess.check_output(
        ["docker", "inspect", "--format", words, host.backend.name], text=True
    ).strip()
    with socket.create_server((gateway, 0)) as free:
        port = free.getsockname()[1]
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", f"/CN={NAME}", "-keyout", folder / "key.pem"),
            *("-addext", f"subjectAltName=DNS:{NAME},IP:{gateway}", "-out", folder / "s3.pem"),
        ],
        check=True,
        capture_output=True,
    )
    gunicorn = [Path(sys.executable).with_name("gunicorn"), f"--bind={gateway}:{port}"]
    gunicorn += ["--certfile=s3.pem", "--keyfile=key.pem", "--threads=8", "--no-control-socket"]
    host.check_output("echo %s >>/etc/hosts", f"{gateway} {NAME}")
    text = (folder / "s3.pem").read_text()
    host.check_output("echo %s >/etc/ssl/s3.pem && chmod 644 /etc/ssl/s3.pem", text)
    trusted = ssl.create_default_context(cafile=folder / "s3.pem")
    # Buckets are in the path, whatever it is called.
    words = {**os.environ, "S3_IGNORE_SUBDOMAIN_BUCKETNAME": "true"}
    with subprocess.Popen([*gunicorn, "store:app"], cwd=folder, env=words) as server:

        def made(bucket):
            request = urllib.request.Request(f"https://{gateway}:{port}/{bucket}", method="PUT")
            request.add_header("Authorization", f"{SIGNED}, Signature=0")
            try:
                return urllib.request.urlopen(request, context=trusted, timeout=5).status == 200
            except OSError:
                return False

        for bucket in ("first", "second"):
            eventually(lambda bucket=bucket: made(bucket), 30)
        there = {"s3_endpoint": f"{NAME}:{port}", "s3_ca": "/etc/ssl/s3.pem"}
        there |= {"s3_key": "key", "s3_secret": "only-for-this-test"}
        yield {"repository": "s3://first/shop", **there}
        server.terminate()


@pytest.fixture(scope="module")
def another_host(host, store, converge, first_stored):
    """Have everything stored by sftp, and afterwards as before."""
    host.check_output(STORE)
    known = host.check_output("ssh-keyscan 127.0.0.1 2>/dev/null")
    changed, said = converge(
        backup_database=False,
        backup_repository="sftp://store@127.0.0.1/srv/store/backups",
        backup_ssh_key=f"{host.check_output('cat /root/store')}\n",
        backup_ssh_known_hosts=known.splitlines(),
    )
    assert changed > 0, said
    first_stored()
    yield
    changed, said = converge()
    assert changed > 0, said
    first_stored()


def test_files_are_stored_there(host, another_host, converge, job):
    assert host.run("ls /srv/store/backups/files/shop/config").rc == 0
    assert job("files-shop")["result"] == "ok"


def test_nobody_else_reads_the_key(host, another_host):
    file = host.file("/etc/carafe/backup/root/id")
    assert (file.user, file.mode) == ("root", 0o600)


def test_no_database_is_stored_there(host, another_host, converge):
    changed, said = converge(backup_repository="sftp://store@127.0.0.1/srv/store/backups")
    assert changed == -1
    assert "pgBackRest of Debian cannot restore a database from there" in said


@pytest.fixture(scope="module")
def in_s3(host, another_host, store, converge, first_stored):
    """Have everything stored by S3, and copied by sftp."""
    changed, said = converge(
        **{f"backup_{name}": value for name, value in store.items()},
        backup_copy_repository="sftp://store@127.0.0.1/srv/store/copy",
        backup_copy_ssh_key=f"{host.check_output('cat /root/store')}\n",
        backup_copy_ssh_known_hosts=host.check_output(
            "ssh-keyscan 127.0.0.1 2>/dev/null"
        ).splitlines(),
    )
    assert changed > 0, said
    first_stored()


def test_a_database_is_archived_stored_and_restored_by_s3(in_s3, called, job, problems):
    called("backup_jobs.switch(backup_jobs.backup_repository.setup())")
    # Both look at all that is in the store, the second one by restoring it.
    for unit in ("incr", "drill"):
        left = job(unit)
        assert left["result"] == "ok", left


def test_all_is_copied_out_of_it_by_sftp_and_comes_back_by_a_folder(host, in_s3, job, called):
    left = job("copy")
    assert left["result"] == "ok", left
    wanted = ("shop", "", "copy")
    assert "backup fetch /mnt/copy" in called(f"backup_restore.plan{wanted}")["refused"]
    said = host.check_output("python3 -I /usr/local/lib/carafe/backup fetch /srv/fetched")
    assert "are in /srv/fetched" in said
    found = called("backup_restore.plan('shop', '', '/srv/fetched')")
    assert found["backups"]
    assert found["snapshots"]


def test_s3_is_good_for_the_copy_too(host, in_s3, job, called):
    host.check_output("python3 -c %s", COPY_THERE)
    left = job("copy")
    assert left["result"] == "ok", left
    assert left["details"]["parts"]["the database"]["bytes"] > 0
    assert called("backup_restore.plan('shop', '', 'copy')")["backups"]
