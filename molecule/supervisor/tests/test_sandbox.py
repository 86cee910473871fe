"""What programs of supervisord cannot do, whoever they run as, and what they still can."""

import errno

import pytest

UNIT = "supervisor.service"
ALLOWED = {
    "folders": "for d in /srv /opt /home /var/lib /tmp; do touch $d/probe && rm $d/probe; done",
    "machine code": "python3 -c 'import mmap; mmap.mmap(-1, 9, prot=7)'",
    "locks": "python3 -c 'import multiprocessing; multiprocessing.Lock()'",
    "groups of folders": "mkdir /tmp/probe && chmod 2755 /tmp/probe && rmdir /tmp/probe",
    "connections": "python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 22))'",
    "addresses": "ip address show",
    "memory": "grep MemTotal /proc/meminfo",
    "processors": "test $(nproc) -gt 0",
    "other users": "runuser -u nobody true",
}


@pytest.fixture(scope="module")
def service_unit():
    return UNIT


@pytest.fixture
def program(host):
    """The process id of a program that runs all the time."""
    return host.check_output("supervisorctl pid worker:worker_0")


def test_its_exposure_is_low(host):
    host.check_output(f"systemd-analyze security --no-pager --threshold=40 {UNIT}")


def test_the_sandbox_forbids(inside, forbidden):
    succeeded, output = inside(forbidden)
    assert not succeeded, output


def test_the_sandbox_forbids_io_uring_whatever_the_kernel_says(inside):
    ask = "c.CDLL(None, use_errno=True).syscall(425, 1, None); print(c.get_errno())"
    assert inside(f"python3 -c 'import ctypes as c; {ask}'") == (True, str(errno.EPERM))


@pytest.mark.parametrize("command", ALLOWED.values(), ids=ALLOWED)
def test_the_sandbox_allows(inside, command):
    succeeded, output = inside(command)
    assert succeeded, output


def test_a_program_lives_in_it(host, program):
    assert "Read-only" in host.run(f"nsenter --target {program} --mount touch /etc/probe").stderr
    status = host.check_output(f"cat /proc/{program}/status")
    assert "Seccomp:\t2" in status
    assert "CapEff:\t0000000000000000" in status


def test_no_program_becomes_another_user(host, inside):
    become = "setpriv --reuid nobody --clear-groups /opt/become -u"
    host.check_output("install -m 4755 /usr/bin/id /opt/become")
    try:
        assert host.check_output(become) == "0"
        assert inside(become)[1] == host.check_output("id -u nobody")
    finally:
        host.check_output("rm /opt/become")


def test_the_processes_of_others_are_not_seen(host, inside):
    # Not hidden from the group root, which is that of the file system.
    others = "setpriv --reuid nobody --regid nogroup --clear-groups ls -d /proc/1"
    host.check_output(others)
    assert not inside(others)[0]


@pytest.mark.usefixtures("without_mounts")
def test_where_nothing_can_be_mounted_it_runs_without(host, program, eventually):
    eventually(lambda: host.run("supervisorctl status worker:*").rc == 0)
    host.check_output(f"nsenter --target {program} --mount touch /etc/probe && rm /etc/probe")
    assert "NoNewPrivs:\t1" in host.check_output(f"cat /proc/{program}/status")
