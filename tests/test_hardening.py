"""What is due on a server: refused, stated by several owners, or not in force."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import claims, hardening
from conftest import Role

PROC = {
    "kernel/sysrq": "438\n",
    "kernel/printk": "4\t4\t1\t7\n",
    "net/core/somaxconn": "4096\n",
    "net/ipv4/conf/all/rp_filter": "0\n",
    "net/ipv4/conf/eth0/rp_filter": "2\n",
    "net/ipv4/conf/eth0.7/rp_filter": "2\n",
    "net/ipv4/ip_forward": "1\n",
}


@pytest.fixture
def proc(tmp_path: Path) -> str:
    for name, value in PROC.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("own", "others", "due"),
    [
        ("kernel.sysrq = 438", "", {}),
        ("kernel.sysrq=0", "", {"kernel/sysrq": "0"}),
        ("kernel.printk = 4 4 1 7", "", {}),
        ("# kernel.sysrq = 0\n; kernel.sysrq = 0\n\n", "", {}),
        ("kernel.sysrq = 0\nkernel.sysrq = 438", "", {}),
        ("kernel.sysrq = 0", "kernel.sysrq = 438", {}),
        ("kernel.sysrq = 0", "kernel/sysrq = 1", {"kernel/sysrq": "1"}),
        ("kernel.sysrq = 438", "net.ipv4.ip_forward = 0", {}),
        ("kernel.no_such = 1", "", {"kernel/no_such": "1"}),
        ("net.ipv4.conf.*.rp_filter = 2", "", {"net/ipv4/conf/all/rp_filter": "2"}),
        ("net.ipv4.conf.*.rp_filter = 2", "net.ipv4.conf.all.rp_filter = 0", {}),
        ("net.ipv4.conf.*.rp_filter = 2", "-net.ipv4.conf.all.rp_filter", {}),
        ("net.ipv4.conf.*.rp_filter = 2", "-net.ipv4.conf.all.rp_filter = 0", {}),
        (
            "net.ipv4.conf.eth0/7.rp_filter = 1",
            "",
            {"net/ipv4/conf/eth0.7/rp_filter": "1"},
        ),
        (
            "net.ipv4.conf.*.rp_filter = 2",
            "net.ipv4.conf.eth*.rp_filter = 1",
            {
                "net/ipv4/conf/all/rp_filter": "2",
                "net/ipv4/conf/eth0/rp_filter": "1",
                "net/ipv4/conf/eth0.7/rp_filter": "1",
            },
        ),
    ],
)
def test_only_what_is_not_in_force_is_due(
    proc: str, own: str, others: str, due: dict[str, str]
) -> None:
    found = hardening.unlike(own, f"{own}\n{others}\n", proc)
    assert found == {f"{proc}/{name}": value for name, value in due.items()}


WANTED = {**hardening.DEFAULTS, "sysctl": {}}


def test_what_states_nothing_is_what_the_role_does_by_itself() -> None:
    role = Role("hardening")
    assert {k: role.defaults[f"hardening_{k}"] for k in WANTED} == WANTED
    assert hardening.claim(WANTED) == {}
    upgrades = (role.path / "files/root/etc/apt/apt.conf.d/60carafe").read_text()
    assert re.findall(r'"(origin=.*)";', upgrades) == hardening.DEFAULTS["upgrade_origins"]
    assert hardening.kernel_file(WANTED) is None
    assert hardening.upgrade_file(WANTED) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reboot_time", "25:00"),
        # 03:30 without its quotes is this number for some readers of YAML.
        ("reboot_time", "12600"),
        ("reboot_time", "3:30"),
        ("timezone", "Mars/Olympus"),
        ("timezone", "../../../etc/passwd"),
        ("timezone", "Etc"),
        ("hostname", "-shop"),
        ("hostname", "the shop"),
        ("hostname", "a" * 65),
    ],
)
def test_what_no_server_could_be_given_is_refused(name: str, value: str) -> None:
    hardening.check(WANTED)
    with pytest.raises(hardening.Failure) as failure:
        hardening.check({**WANTED, name: value})
    assert str(failure.value).startswith(f'hardening_{name} is "{value}"')
    assert "run the playbook again" in str(failure.value)


def test_owners_add_to_each_other(tmp_path: Path) -> None:
    shop = {**WANTED, "reboot_time": "03:30", "sysctl": {"net.core.somaxconn": 8192}}
    blog = {**WANTED, "timezone": "Europe/Berlin", "sysctl": {"kernel.sysrq": "1"}}
    said = {"shop": hardening.claim(shop), "blog": hardening.claim(blog)}
    assert not list(claims.conflicts(said, tmp_path))
    settings = hardening.composed(said)
    assert (settings["reboot_time"], settings["timezone"]) == ("03:30", "Europe/Berlin")
    assert settings["sysctl"] == {"net.core.somaxconn": "8192", "kernel.sysrq": "1"}


def test_owners_that_contradict_each_other_are_both_named(tmp_path: Path) -> None:
    said = {
        owner: hardening.claim({**WANTED, "sysctl": {"net.core.somaxconn": value}})
        for owner, value in (("shop", 8192), ("blog", 1024), ("wiki", "8192"))
    }
    (problem,) = claims.conflicts(said, tmp_path)
    assert "hardening_sysctl.net.core.somaxconn is '8192' for shop and '1024' for blog" in problem
    del said["blog"]
    assert not list(claims.conflicts(said, tmp_path))


@pytest.fixture
def server(tmp_path: Path) -> hardening.Server:
    return hardening.Server(WANTED, dry=False)


def test_a_dry_run_shows_a_file_and_writes_none(tmp_path: Path) -> None:
    server = hardening.Server(WANTED, dry=True)
    server.file(tmp_path / "new", "text\n")
    assert server.diff[0]["after"] == "text\n"
    assert server.done == [f"wrote {tmp_path / 'new'}"]
    assert not list(tmp_path.iterdir())


def test_a_file_is_written_once_and_removed(server: hardening.Server, tmp_path: Path) -> None:
    for text in ("text\n", "text\n", None, None):
        server.file(tmp_path / "file", text)
    assert server.done == [f"wrote {tmp_path / 'file'}", f"removed {tmp_path / 'file'}"]
    assert not list(tmp_path.iterdir())


def test_a_file_that_apt_cannot_read_never_gets_there(
    server: hardening.Server, tmp_path: Path
) -> None:
    with pytest.raises(hardening.Refused, match="nothing was written"):
        server.file(tmp_path / "file", "text", "false %s")
    assert not list(tmp_path.iterdir())
