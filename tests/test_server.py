"""What base takes for a kernel setting that is not in force, among the files of others."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT, load_module

PROC = {
    "kernel/sysrq": "438\n",
    "kernel/printk": "4\t4\t1\t7\n",
    "net/core/somaxconn": "4096\n",
    "net/ipv4/conf/all/rp_filter": "0\n",
    "net/ipv4/conf/eth0/rp_filter": "2\n",
    "net/ipv4/conf/eth0.7/rp_filter": "2\n",
    "net/ipv4/ip_forward": "1\n",
}


@pytest.fixture(scope="module")
def server() -> ModuleType:
    return load_module(ROOT / "roles/hardening/files/server.py", "server")


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
    server: ModuleType, proc: str, own: str, others: str, due: dict[str, str]
) -> None:
    found = server.unlike(own, f"{own}\n{others}\n", proc)
    assert found == {f"{proc}/{name}": value for name, value in due.items()}
