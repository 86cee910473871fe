"""The facts that the roles go by, held against what ansible.builtin.setup says."""

import time
from pathlib import Path

import pytest
from ansible.module_utils.facts.hardware.linux import LinuxHardware
from ansible.module_utils.facts.system.distribution import Distribution
from ansible_collections.carafe.stack.plugins.modules import server_facts


class Asker:
    """As much of a module as the collectors of setup ask for."""

    def get_bin_path(self, *_: object, **__: object) -> None:
        return None

    def run_command(self, *_: object, **__: object) -> tuple[int, str, str]:
        return 1, "", ""


@pytest.fixture
def apps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(server_facts, "APPS", tmp_path)
    return tmp_path


def test_they_are_those_of_setup(apps: Path) -> None:
    hardware = LinuxHardware(Asker())
    theirs = {
        **Distribution(Asker()).get_distribution_facts(),
        **hardware.get_memory_facts(),
        **hardware.get_cpu_facts(),
    }
    names = ("distribution", "distribution_major_version", "distribution_release")
    wanted = {f"ansible_{x}": theirs[x] for x in (*names, "memtotal_mb", "processor_vcpus")}
    facts = server_facts.look()
    assert time.time() - facts.pop("ansible_clock") < 60
    assert facts.pop("ansible_found")["users"]["root"]["uid"] == 0
    # Of its words for a network, the one that is needed.
    assert facts.pop("ansible_default_ipv4").keys() <= {"interface"}
    assert facts == {**wanted, "ansible_local": {}}


def test_each_app_tells_of_itself(apps: Path) -> None:
    (apps / "shop.fact").write_text('{"environment": "prod", "memory_mb": 512}')
    (apps / "blog.fact").write_text('{"environment": "pr')
    (apps / "nginx.d").mkdir()
    kept = server_facts.look()["ansible_local"]
    assert kept["shop"] == {"environment": "prod", "memory_mb": 512}
    assert kept["blog"].startswith(f"{apps}/blog.fact cannot be read: ")
    assert kept.keys() == {"shop", "blog"}


def test_a_container_goes_by_its_share(
    apps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:        1048576 kB\nMemFree: 1 kB\n")
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: x\n\nprocessor\t: 1\n")
    monkeypatch.setattr(server_facts, "PROC", tmp_path)
    facts = server_facts.look()
    assert (facts["ansible_memtotal_mb"], facts["ansible_processor_vcpus"]) == (1024, 2)


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (
            [
                "eth1 0000A8C0 00000000 0001 0 0 0 00FFFFFF",
                "ens3 00000000 0101A8C0 0003 0 0 0 00000000",
            ],
            {"interface": "ens3"},
        ),
        (["eth1 0000A8C0 00000000 0001 0 0 0 00FFFFFF"], {}),
        (None, {}),
    ],
    ids=["one", "none", "no such file"],
)
def test_the_default_route_is_the_one_to_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str] | None, found: dict[str, str]
) -> None:
    monkeypatch.setattr(server_facts, "PROC", tmp_path)
    (tmp_path / "net").mkdir()
    if lines is not None:
        head = "Iface Destination Gateway Flags RefCnt Use Metric Mask"
        (tmp_path / "net/route").write_text("\n".join([head, *lines]))
    assert server_facts.default_route() == found
