"""What several apps claim of one server: kept apart, read together, refused where they differ."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import claims
from ansible_collections.carafe.stack.plugins.module_utils.commands import Failure, Refused


def test_an_owner_reads_the_others_and_its_own_new_claim(tmp_path: Path) -> None:
    claims.claim(tmp_path, "shop", {"seconds": 1})
    claims.claim(tmp_path, "blog", {"seconds": 2})
    found = claims.read(tmp_path, "shop", {"seconds": 3})
    assert found == {"blog": {"seconds": 2}, "shop": {"seconds": 3}}


def test_a_claim_is_written_once_and_removed_by_none(tmp_path: Path) -> None:
    assert claims.claim(tmp_path, "shop", {"a": 1})
    assert not claims.claim(tmp_path, "shop", {"a": 1})
    assert claims.claim(tmp_path, "shop", None)
    assert not claims.claim(tmp_path, "shop", None)
    assert claims.read(tmp_path, "shop", None) == {}


def test_a_dry_run_writes_and_makes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "none"
    with claims.locked(folder, check=True):
        assert claims.claim(folder, "shop", {"a": 1}, check=True)
        assert claims.read(folder, "shop", {"a": 1}) == {"shop": {"a": 1}}
    assert not folder.exists()


@pytest.mark.parametrize("text", ["", "{", '{"a": 1'])
def test_a_broken_claim_is_named_and_heals_by_its_owner(tmp_path: Path, text: str) -> None:
    (tmp_path / "shop.json").write_text(text)
    with pytest.raises(Failure, match=r"shop\.json .*Run the playbook of shop"):
        claims.read(tmp_path, "blog", {})
    assert claims.read(tmp_path, "shop", {"a": 1}) == {"shop": {"a": 1}}
    assert claims.claim(tmp_path, "shop", {"a": 1})


def test_only_what_two_state_differently_is_a_conflict(tmp_path: Path) -> None:
    stated = {
        "a": {"hardening_timezone": "Etc/UTC", "hardening_hostname": "x", "list": [1]},
        "b": {"hardening_timezone": "Europe/Berlin", "list": [2]},
        "c": {"hardening_hostname": "x"},
    }
    problem, _ = claims.conflicts(stated, tmp_path)
    assert problem.startswith(
        "hardening_timezone is 'Etc/UTC' for a and 'Europe/Berlin' for b, and this server has it"
    )


def test_owners_agree_on_what_the_server_has_once(tmp_path: Path) -> None:
    claims.claim(tmp_path, "shop", {"zone": "Etc/UTC", "jails": [1]})
    with pytest.raises(Refused, match=r"^zone is .* for blog and .* for shop, .*jails is"):
        claims.agreed(tmp_path, "blog", {"zone": "Europe/Berlin", "jails": [2]})
    mine = {"zone": "Etc/UTC", "jails": [2]}
    everybody = claims.agreed(tmp_path, "blog", mine, lambda x: {"zone": x["zone"]})
    assert claims.merged(everybody.values()) == {"zone": "Etc/UTC", "jails": [1]}


def test_a_default_states_nothing_in_whatever_order_it_is() -> None:
    defaults = {"ports": [22, 23], "rate": 10}
    assert claims.stated({"ports": [23, 22], "rate": 10}, defaults) == {}
    found = claims.stated({"ports": [24, 22, 24], "rate": 9}, defaults, "ssh_")
    assert found == {"ssh_ports": [22, 24], "ssh_rate": 9}


def test_the_lock_keeps_others_out_until_all_is_applied(tmp_path: Path) -> None:
    with claims.locked(tmp_path):
        other = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)
