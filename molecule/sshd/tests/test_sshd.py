"""Who gets in, what sshd speaks, and that no run locks anybody out."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DROP_IN, PENDING

POLICIES = {"12": "Hardened Debian 12 (version 3)", "13": "Hardened Debian 13 (version 1)"}
# As a run that was cut short leaves it: settings that nobody has confirmed, and the way back.
CUT_SHORT = (
    "sshd.CHANGE.arm('default', 3600, sshd.DROP_IN.read_text(), claim={}, session=None);"
    " sshd.DROP_IN.write_text('PasswordAuthentication yes'); sshd.load()"
)
OTHERS = "/etc/ssh/sshd_config.d"
# ssh names all ways in that the server offers.
ONLY_KEYS = "Permission denied (publickey)."
# sshd takes it, and nobody who has a key of another kind gets in.
MISTAKE = {"PubkeyAcceptedAlgorithms": "rsa-sha2-512"}


@pytest.fixture
def state(host):
    """Tell what a run that is refused must leave alone."""

    def look():
        return host.check_output(
            f"cat {DROP_IN}; stat -c %.9Z {DROP_IN} /etc/ssh/*key* /var/lib/carafe-sshd;"
            " systemctl show --property=StateChangeTimestampMonotonic,MainPID ssh.service"
        )

    return look


def test_the_hardened_policy_of_the_release_is_met(release, port):
    audit = Path(sys.executable).with_name("ssh-audit")
    command = [audit, "--policy", POLICIES[release], "--port", port, "127.0.0.1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout


def test_a_key_opens(login):
    assert login().returncode == 0


# Another file of sshd's allows them.
@pytest.mark.parametrize("way", ["password", "keyboard-interactive"])
def test_nothing_but_a_key_opens(login, way):
    tried = login(PubkeyAuthentication="no", PreferredAuthentications=way)
    assert ONLY_KEYS in tried.stderr


def test_a_third_session_of_a_shared_connection_logs_in_anew(ssh, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("s") / "c")
    options = {"ControlMaster": "auto", "ControlPath": path}
    command = ssh("echo $SSH_CONNECTION; cat", **options)
    sessions, ports = [], []
    try:
        for _ in range(3):
            sessions.append(subprocess.Popen(command, text=True, stdin=-1, stdout=-1))
            ports.append(sessions[-1].stdout.readline().split()[1])
    finally:
        # The first one's is the connection that they share.
        for session in reversed(sessions):
            session.communicate()
    assert ports[0] == ports[1] != ports[2]


def test_root_stays_out_once_another_user_became_root(login):
    assert ONLY_KEYS in login(user="root").stderr


def test_the_server_is_known_by_the_key_that_it_had(host, port):
    scan = ["ssh-keyscan", "-t", "ed25519", "-p", port, "127.0.0.1"]
    key = subprocess.run(scan, capture_output=True, text=True, check=True).stdout.split()[1:3]
    assert key == host.file("/root/known.pub").content_string.split()[:2]


def test_a_restart_of_the_server_changes_nothing(restart_server, login, eventually):
    restart_server()
    eventually(lambda: login().returncode == 0)
    assert ONLY_KEYS in login(user="root").stderr


def test_root_keeps_its_key_while_it_is_the_one_who_connects(host, role, login, look):
    host.check_output(f"rm {DROP_IN} && systemctl restart ssh")
    changed, output = role(ansible_user="root")
    assert changed > 0, output
    assert login(user="root").returncode == 0
    tried = login(user="root", PubkeyAuthentication="no", PreferredAuthentications="password")
    assert ONLY_KEYS in tried.stderr
    (problem,) = look(user="root", permit_root_login="never")["problems"]
    assert "connected as root" in problem
    changed, output = role()
    assert changed > 0, output
    assert ONLY_KEYS in login(user="root").stderr


def test_what_would_go_wrong_is_refused_before_anything_changes(role, state, login):
    before = state()
    changed, output = role(sshd_ports=[2222])
    assert changed == -1
    assert "Have both in sshd_ports" in " ".join(output.split())
    assert state() == before
    assert login().returncode == 0


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"settings": {"Nonsense": True}}, "Bad configuration option: Nonsense"),
        ({"settings": {"MaxSessions": "many"}}, "MaxSessions"),
        ({"settings": {"Match": "user nobody"}}, "a file of its own"),
        ({"settings": {"AuthorizedKeysFile": "/nowhere/%u"}}, "no key in /nowhere/deploy"),
        ({"allow_users": ["somebody", "deploy@192.0.2.0/24"]}, "Add deploy to sshd_allow_users"),
        ({"allow_groups": ["games"]}, "Add deploy or sudo to sshd_allow_groups"),
    ],
    ids=["keyword", "value", "match", "no-key", "user", "group"],
)
def test_what_sshd_would_not_take_and_whom_it_would_lock_out_is_told(look, params, told):
    (problem,) = look(**params)["problems"]
    assert told in problem


@pytest.mark.parametrize(
    ("command", "undo", "told"),
    [
        (
            f"echo PasswordAuthentication yes >{OTHERS}/00-before.conf",
            f"rm {OTHERS}/00-before.conf",
            f"Remove passwordauthentication from {OTHERS}/00-before.conf",
        ),
        (
            "echo Port 2022 >>/etc/ssh/sshd_config",
            "sed -i '/^Port 2022$/d' /etc/ssh/sshd_config",
            "Remove port from /etc/ssh/sshd_config",
        ),
        (
            "sed -i 's/^Include/#&/' /etc/ssh/sshd_config",
            "sed -i 's/^#Include/Include/' /etc/ssh/sshd_config",
            "Make this its first line",
        ),
    ],
    ids=["earlier-file", "another-port", "not-included"],
)
def test_another_file_that_overrules_the_settings_is_named(host, look, command, undo, told):
    host.check_output(command)
    try:
        found = look()
    finally:
        host.check_output(undo)
    assert told in " ".join(found["problems"])


@pytest.mark.parametrize("strategy", ["linear", "mitogen_linear"])
def test_settings_under_which_nobody_gets_in_are_taken_back_at_once(
    host, role, login, monkeypatch, strategy
):
    # Its connections are its own, and it keeps them.
    monkeypatch.setenv("ANSIBLE_STRATEGY", strategy)
    before = host.file(DROP_IN).content_string
    changed, output = role(sshd_settings=MISTAKE, sshd_confirm_seconds=3600)
    assert changed == -1
    assert "sshd has its old settings back" in output
    assert host.file(DROP_IN).content_string == before
    assert login().returncode == 0
    assert not host.file(PENDING).exists
    assert not host.service("carafe-sshd-revert.timer").is_running


def test_with_no_connection_left_the_server_takes_them_back_itself(host, role, login, eventually):
    before = host.file(DROP_IN).content_string
    # Without ControlPersist, every task comes by a new connection.
    options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    changed, output = role(
        sshd_settings=MISTAKE,
        sshd_confirm_seconds=45,
        ansible_ssh_args="",
        ansible_ssh_common_args=options,
    )
    assert changed == -1
    assert "in 45 seconds at the latest" in output
    eventually(lambda: login().returncode == 0, seconds=120)
    assert host.file(DROP_IN).content_string == before
    eventually(lambda: not host.file(PENDING).exists)


def test_a_restart_of_the_server_takes_back_what_was_not_confirmed(
    host, library, restart_server, login, eventually
):
    before = host.file(DROP_IN).content_string
    library(CUT_SHORT)
    restart_server()
    eventually(lambda: login().returncode == 0)
    assert host.file(DROP_IN).content_string == before
    tried = login(PubkeyAuthentication="no", PreferredAuthentications="password")
    assert ONLY_KEYS in tried.stderr
    assert not host.file(PENDING).exists


def test_what_was_changed_by_hand_and_what_was_cut_short_is_mended(
    host, library, role, login, look
):
    before = host.file(DROP_IN).content_string
    library(CUT_SHORT)
    host.check_output(
        f"chmod 0644 {DROP_IN}; rm /etc/ssh/ssh_host_rsa_carafe_key; systemctl disable ssh.service"
    )
    changed, output = role()
    assert changed > 0, output
    drop_in = host.file(DROP_IN)
    assert (drop_in.content_string, drop_in.mode, drop_in.user) == (before, 0o600, "root")
    assert host.file("/etc/ssh/ssh_host_rsa_carafe_key").exists
    assert host.service("ssh.service").is_enabled
    assert host.service("ssh.service").is_running
    tried = login(PubkeyAuthentication="no", PreferredAuthentications="password")
    assert ONLY_KEYS in tried.stderr
    assert not host.service("carafe-sshd-revert.timer").is_running
    assert look() == {"problems": [], "due": []}


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (f"sed -i s/^Password/#Password/ {DROP_IN}; systemctl restart ssh", "is another"),
        (f"rm {DROP_IN}; systemctl restart ssh", "is not there"),
        # The file is as it was, and sshd runs with another.
        (
            f"echo PasswordAuthentication yes >{DROP_IN}; systemctl restart ssh;"
            f" cp -p /root/kept {DROP_IN}",
            "has not loaded",
        ),
        (f"chmod 0644 {DROP_IN}; systemctl restart ssh", "is another"),
        ("mv /etc/ssh/ssh_host_rsa_carafe_key /root/key", "host key"),
        ("systemctl disable ssh.service", "disabled"),
    ],
    ids=["edited", "removed", "not-loaded", "mode", "host-key", "disabled"],
)
def test_what_was_changed_by_hand_is_due(host, look, command, told):
    # One restart after the other would be too many for systemd.
    again = "systemctl reset-failed ssh.service"
    host.check_output(f"cp -p {DROP_IN} /root/kept; {again}; {command}")
    try:
        (reason,) = look()["due"]
        assert told in reason
    finally:
        host.check_output(
            f"cp -p /root/kept {DROP_IN}; cd /root; [ ! -e key ] ||"
            " mv key /etc/ssh/ssh_host_rsa_carafe_key; systemctl stop ssh.service;"
            f" {again}; systemctl enable --now ssh.service"
        )
    assert look() == {"problems": [], "due": []}


def test_an_sshd_that_systemd_does_not_know_is_told(host, look, restart_server, eventually, login):
    host.check_output("systemctl stop ssh.service && mkdir /run/sshd && /usr/sbin/sshd")
    try:
        # It is in the background before it listens.
        eventually(lambda: login().returncode == 0)
        assert "Reboot the server" in " ".join(look()["problems"])
    finally:
        restart_server()
    eventually(lambda: login().returncode == 0)
    assert look() == {"problems": [], "due": []}


def test_debians_own_rsa_key_can_stay(host, library, look):
    key = "/etc/ssh/ssh_host_rsa_carafe_key"
    host.check_output(f"rm {key} {key}.pub")
    library("sshd.prepare(3072)")
    assert host.file(key).linked_to == "/etc/ssh/ssh_host_rsa_key"
    assert look(rsa_host_key_bits=3072)["due"] == []
    assert look()["due"] == ["a host key is missing"]
    library("sshd.prepare(4096)")
    assert look()["due"] == []


def test_what_is_closed_can_be_opened_and_sessions_live_on(ssh, login, role, host, bring_back):
    def through():
        """Reach the server's own sshd through the server."""
        command = ssh()
        command[1:1] = ["-W", "127.0.0.1:22"]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )
        return done.stdout.startswith("SSH-2.0-")

    assert not through()
    with subprocess.Popen(
        ssh("echo began; cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as session:
        assert session.stdout.readline() == "began\n"
        changed, output = role(
            sshd_allow_tcp_forwarding=True,
            sshd_ports=[22, 2222],
            sshd_allow_users=["deploy@0.0.0.0/0", "root"],
            sshd_allow_groups=["sud*"],
            sshd_settings={"AcceptEnv": ["ONE", "TWO"], "PermitUserRC": False},
        )
        assert changed > 0, output
        assert session.communicate("still here\n", timeout=60)[0] == "still here\n"
    assert through()
    assert host.socket("tcp://0.0.0.0:2222").is_listening
    assert host.socket("tcp://0.0.0.0:22").is_listening
    settings = host.check_output("sshd -T").splitlines()
    assert {"acceptenv ONE", "acceptenv TWO", "permituserrc no"} <= set(settings)
    assert login().returncode == 0


def test_a_socket_in_place_of_sshd_is_respected(host, role, login, look, bring_back):
    bring_back(
        "systemctl stop ssh.socket ssh.service; systemctl disable ssh.socket;"
        " systemctl enable --now ssh.service"
    )
    host.check_output("systemctl disable --now ssh.service && systemctl enable --now ssh.socket")
    assert login().returncode == 0
    changed, output = role(sshd_max_auth_tries=4)
    assert changed > 0, output
    assert login().returncode == 0
    assert host.service("ssh.socket").is_running
    assert not host.service("ssh.service").is_enabled
    assert look(max_auth_tries=4) == {"problems": [], "due": []}
    (problem,) = look(max_auth_tries=4, ports=[22, 2222])["problems"]
    assert "ssh.socket listens on 22" in problem
