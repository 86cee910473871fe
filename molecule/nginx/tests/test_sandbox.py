"""What nginx cannot do, not even as root, and what it still can."""

import pytest

UNIT = "nginx.service"
OWN = {
    "files of apps": "touch /srv/media/probe && rm /srv/media/probe",
    "homes": "touch /home/probe && rm /home/probe",
    "temporary files": "touch /tmp/probe && rm /tmp/probe",
    "data of others": "touch /var/lib/probe && rm /var/lib/probe",
    "files with the rights of others": "install -m 4755 /usr/bin/id /run/probe && rm /run/probe",
}
ALLOWED = {
    "logs and data": "cd /var; touch log/nginx/probe lib/nginx/probe && rm l*/nginx/probe",
    "machine code": "python3 -c 'import mmap; mmap.mmap(-1, 9, prot=7)'",
    "addresses": "ip address show",
    "processors": "test $(nproc) -gt 0",
}


@pytest.fixture(scope="module")
def service_unit():
    return UNIT


def test_its_exposure_is_low(host):
    host.check_output(f"systemd-analyze security --no-pager --threshold=40 {UNIT}")


def test_the_sandbox_forbids(inside, forbidden):
    succeeded, output = inside(forbidden)
    assert not succeeded, output


@pytest.mark.parametrize("command", OWN.values(), ids=OWN)
def test_nginx_writes_nowhere_else(host, inside, command):
    host.check_output(command)
    succeeded, output = inside(command)
    assert not succeeded, output


@pytest.mark.parametrize("command", ALLOWED.values(), ids=ALLOWED)
def test_the_sandbox_allows(inside, command):
    succeeded, output = inside(command)
    assert succeeded, output


@pytest.mark.parametrize("folder", ["/root", "/home", "/etc/ssl/private"])
def test_root_reads_keys(host, inside, folder):
    host.check_output(f"install -m 600 /etc/hostname {folder}/probe.key")
    try:
        assert inside(f"cat {folder}/probe.key") == (True, host.check_output("hostname"))
    finally:
        host.check_output(f"rm {folder}/probe.key")


def test_a_socket_in_tmp_can_be_reached(host, inside):
    listen = (
        "import socket, time; s = socket.socket(socket.AF_UNIX);"
        " s.bind('/tmp/probe.sock'); s.listen(); time.sleep(60)"
    )
    connect = "import socket; socket.socket(socket.AF_UNIX).connect('/tmp/probe.sock')"
    host.check_output(f'systemd-run --unit probe python3 -c "{listen}"')
    try:
        host.check_output("until test -e /tmp/probe.sock; do sleep 0.1; done")
        succeeded, output = inside(f'python3 -c "{connect}"')
        assert succeeded, output
    finally:
        host.check_output("systemctl stop probe; rm /tmp/probe.sock")


@pytest.mark.usefixtures("without_mounts")
def test_where_nothing_can_be_mounted_it_runs_without(host, ask):
    assert ask("app.test").status == 200
    master = host.check_output("cat /run/nginx.pid")
    host.check_output(f"nsenter --target {master} --mount touch /etc/probe && rm /etc/probe")
    assert "NoNewPrivs:\t1" in host.check_output(f"cat /proc/{master}/status")


def test_a_folder_is_opened_by_a_drop_in_of_one_s_own(host, inside):
    drop_in = f"/etc/systemd/system/{UNIT}.d/override.conf"
    host.check_output(f"printf '[Service]\\nReadWritePaths=/srv/media\\n' >{drop_in}")
    host.check_output("systemctl daemon-reload")
    try:
        succeeded, output = inside(OWN["files of apps"])
        assert succeeded, output
    finally:
        host.check_output(f"rm {drop_in} && systemctl daemon-reload")
