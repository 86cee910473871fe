"""Who is connected by ssh is found, whatever stands between sshd and this process."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import ssh_peer

SSH = "SSH_CONNECTION=203.0.113.7 40022 192.0.2.1 22"
SSH_V6 = "SSH_CONNECTION=2001:db8::7 40022 2001:db8::1 2222"
V4 = ("203.0.113.7", "192.0.2.1", 22)


@pytest.fixture
def started_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write what /proc says of this process and of those that started it, the nearest first.

    Each is the name of a program and its environment.
    """
    monkeypatch.setattr(ssh_peer, "PROC", tmp_path)

    def write(*processes: tuple[str, str]) -> None:
        for number, (name, environ) in enumerate(processes):
            folder = tmp_path / (str(100 - number) if number else "self")
            folder.mkdir()
            parent = 99 - number if number < len(processes) - 1 else 0
            rest = " ".join(map(str, range(2, 19)))
            (folder / "stat").write_text(f"{100 - number} ({name}) S {parent} {rest} 9{number} 0")
            (folder / "environ").write_bytes(environ.encode())

    return write


@pytest.mark.parametrize(
    ("environs", "expected"),
    [
        ([SSH], V4),
        ([SSH_V6], ("2001:db8::7", "2001:db8::1", 2222)),
        (["SSH_CONNECTION=::ffff:203.0.113.7 1 ::ffff:192.0.2.1 22"], V4),
        (["SSH_CONNECTION=fe80::9%eth0 1 fe80::1%eth0 22"], ("fe80::9", "fe80::1", 22)),
        # sudo has dropped it.
        (["SUDO_USER=deploy", "A=b", f"A=b\0{SSH}\0C=d"], V4),
        # From one server on to the next: the nearest is how this one was reached.
        (["A=b", SSH, SSH_V6], V4),
        # Not by ssh, or by no network.
        (["A=b"], None),
        (["MY_SSH_CONNECTION=203.0.113.7 1 192.0.2.1 22"], None),
        (["SSH_CONNECTION=UNKNOWN 65535 UNKNOWN 65535"], None),
        ([], None),
    ],
)
def test_the_connection_is_found(started_by, environs: list[str], expected: tuple | None) -> None:
    started_by(*(("sh", environ) for environ in environs))
    found = ssh_peer.peer()
    assert (found and (found.client, found.server, found.port)) == expected
    # Below no sshd, nobody knows who it is, and no connection is told from another.
    assert not found or found.user is None
    assert ssh_peer.session() is None


@pytest.mark.parametrize("sshd", ["sshd", "sshd-session", "sshd: (x) y"])
def test_the_user_is_who_logged_in(started_by, sshd: str) -> None:
    started_by(
        ("python3 (deleted)", "LOGNAME=root\0SUDO_USER=deploy"),
        ("sudo", f"LOGNAME=other\0{SSH}"),
        ("sh", f"LOGNAME=deploy\0{SSH}"),
        (sshd, "LOGNAME=root"),
        ("systemd", "LOGNAME=root"),
    )
    assert ssh_peer.peer() == ssh_peer.Peer("deploy", *V4)
    assert ssh_peer.session() == "97 93"


def test_what_started_sshd_itself_does_not_count(started_by) -> None:
    started_by(("sh", "LOGNAME=deploy"), ("sshd", SSH_V6), ("sh", SSH_V6))
    assert ssh_peer.peer() is None
