"""Certificates: what is refused, whose they are, and what is due, with openssl and no server."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.carafe.stack.plugins.module_utils import certificates
from ansible_collections.carafe.stack.plugins.modules import certificates as module
from conftest import Role

SITE = {"name": "site", "names": ["site.test"], "source": "acme"}
INTERNAL = {"name": "internal", "names": ["a.test", "*.a.test", "10.0.0.5"], "source": "ca"}
OWN = {"name": "own", "names": ["own.test"], "source": "files"}
WANTED = {
    "certificates": [SITE, INTERNAL],
    "directory": "https://acme.test",
    "staging_directory": "",
    "email": "",
    "ca_bundle": "",
    "key_type": "ecdsa",
    "check_names": True,
    "reload": [],
}


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("FOLDER", "LOGS", "CONFIGURATIONS"):
        monkeypatch.setattr(certificates, name, tmp_path / name.lower())
    monkeypatch.setattr(certificates, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(certificates.Keeper, "keep_renewing", lambda self: None)
    return tmp_path


@pytest.fixture
def keeper() -> Callable[..., certificates.Keeper]:
    """Return a keeper of some certificates; what it tells is in its list ``told``."""

    def make(check: bool = False, **wanted: Any) -> certificates.Keeper:
        told: list[str] = []
        keeper = certificates.Keeper({**WANTED, **wanted}, check, told.append)
        keeper.told = told
        return keeper

    return make


@pytest.mark.parametrize(
    ("certificate", "problem"),
    [
        ({"names": ["*.site.test"]}, "*.site.test cannot be had by HTTP-01"),
        ({"names": ["192.0.2.7"]}, "192.0.2.7 cannot be had by HTTP-01"),
        ({"names": ["2001:db8::1"]}, "2001:db8::1 cannot be had by HTTP-01"),
        ({"names": []}, "x has no names."),
        ({"names": None}, "x has no names."),
        ({"source": "files"}, "x is of your own files: it needs certificate_file and key_file."),
        ({"source": "files", "key_file": "k"}, "x is of your own files: it needs"),
    ],
)
def test_what_cannot_be_had_is_refused(certificate: dict[str, Any], problem: str) -> None:
    wanted = {"name": "x", "names": ["x.test"], "source": "acme"}
    assert not list(certificates.problems([wanted, INTERNAL]))
    (found,) = certificates.problems([wanted | certificate])
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([], [("shop", ["shop.test"], "acme")]),
        (
            [{"name": "shop", "names": ["www.shop.test"]}],
            [("shop", ["shop.test", "www.shop.test"], "acme")],
        ),
        (
            [{"name": "more", "names": ["more.test"], "source": "ca"}],
            [("shop", ["shop.test"], "acme"), ("more", ["more.test"], "ca")],
        ),
        ([{"name": "shop", "source": "files"}], [("shop", ["shop.test"], "files")]),
    ],
)
def test_an_entry_adds_to_what_the_playbook_wants(
    wanted: list[dict[str, Any]], expected: list[tuple]
) -> None:
    default = [{"name": "shop", "names": ["shop.test"]}]
    found = Role("certificates").value(
        "__certificates_all", certificates_default_wanted=default, certificates_wanted=wanted
    )
    assert [(x["name"], x["names"], x["source"]) for x in found] == expected


def write(owner: str, items: list[dict[str, Any]], dry: bool = False) -> list[str]:
    done: list[str] = []
    listed = {**WANTED, "certificates": items}
    module.write({"owner": owner, "units": {}}, listed, dry, done, [])
    return done


@pytest.fixture
def without_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.programs, "install", lambda *_: [])


@pytest.mark.usefixtures("without_program")
def test_each_owner_has_a_list_and_none_takes_the_others_name() -> None:
    folder = certificates.CONFIGURATIONS
    assert write("shop", [SITE], dry=True)
    assert not folder.exists()
    assert write("shop", [SITE]) == [f"{folder}/shop.json: written"]
    assert write("shop", [SITE]) == []
    assert write("blog", [SITE, INTERNAL])
    with pytest.raises(certificates.Failure, match=r"certificates_wanted\.site is .* for wiki"):
        write("wiki", [SITE | {"names": ["other.test"]}])
    assert write("shop", []) == [f"{folder}/shop.json: removed"]
    assert write("shop", []) == []


@pytest.mark.usefixtures("without_program")
def test_the_units_are_written_once_and_shown(tmp_path: Path) -> None:
    path = tmp_path / "x.timer"
    for expected in ([f"{path}: written"], []):
        done: list[str] = []
        module.write({"owner": "a", "units": {str(path): "[Timer]\n"}}, WANTED, False, done, [])
        assert done[-1:] == expected
    assert path.read_text() == "[Timer]\n"


def test_what_a_web_server_needs_is_made_once(keeper) -> None:
    dry = keeper(check=True)
    dry.prepare()
    assert not certificates.FOLDER.exists()
    first = keeper()
    first.prepare()
    assert first.told == dry.told
    assert first.changed == {"site", "internal"}
    internal = certificates.read_certificate(certificates.FOLDER / "internal.pem")
    assert internal.names == set(INTERNAL["names"])
    assert certificates.read_certificate(certificates.FOLDER / "site.pem").stands_in
    assert (certificates.FOLDER / "internal.pem").stat().st_mode & 0o777 == 0o600
    again = keeper()
    again.prepare()
    assert not again.told


def test_other_names_are_signed_anew_by_the_same_authority(keeper) -> None:
    keeper().prepare()
    root = (certificates.FOLDER / "ca.crt").read_text()
    keeper(certificates=[INTERNAL | {"names": ["b.test"]}]).prepare()
    assert certificates.read_certificate(certificates.FOLDER / "internal.pem").names == {"b.test"}
    assert (certificates.FOLDER / "ca.crt").read_text() == root


@pytest.fixture
def pairs(tmp_path: Path) -> list[tuple[str, str]]:
    """Two certificates with their keys."""
    found = []
    for name in ("a", "b"):
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"]
        command += ["ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}"]
        command += ["-keyout", tmp_path / "key", "-out", tmp_path / "crt"]
        subprocess.run(command, check=True, capture_output=True)
        found.append(((tmp_path / "crt").read_text(), (tmp_path / "key").read_text()))
    return found


def test_files_of_ones_own_are_brought_once(keeper, pairs: list[tuple[str, str]]) -> None:
    (certificate, key), _ = pairs
    own = module.with_pairs([SITE, OWN], [certificate], [key])
    for expected in (["own: brought"], []):
        one = keeper(certificates=own[1:])
        one.prepare()
        assert one.told[-1:] == expected
    assert (certificates.FOLDER / "own.pem").read_text() == certificate + key
    # The timer's list has no texts, and leaves the file as it is.
    keeper(certificates=[OWN]).prepare()


def test_files_that_do_not_go_together_are_refused_and_not_shown(
    keeper, pairs: list[tuple[str, str]]
) -> None:
    (certificate, _), (_, key) = pairs
    for texts in (([certificate], [key]), ([certificate], []), (["nonsense"], [key])):
        one = keeper(certificates=[*module.with_pairs([OWN], *texts), INTERNAL])
        with pytest.raises(certificates.Failure) as failure:
            one.prepare()
        assert "the files of own do not go together, or cannot be read" in str(failure.value)
        assert "PRIVATE" not in str(failure.value)
        assert not (certificates.FOLDER / "own.pem").exists()


def attempts(**changes: Any) -> None:
    later = certificates.now() + datetime.timedelta(minutes=15)
    attempt = {"failures": 1, "not_before": later.isoformat(), "names": ["site.test"], "said": "X."}
    certificates.FOLDER.mkdir(exist_ok=True)
    path = certificates.FOLDER / "attempts.json"
    path.write_text(json.dumps({"site": attempt | changes}))


def test_a_failed_order_waits_for_its_time(keeper) -> None:
    attempts()
    with pytest.raises(certificates.Failure, match=r"the last of 1 failed attempts said: X\. .*"):
        keeper().may_try(SITE)
    patient = keeper()
    patient.patient = True
    assert not patient.may_try(SITE)
    assert keeper(retry=True).may_try(SITE)
    assert keeper().may_try(SITE | {"names": ["other.test"]})
    attempts(not_before="2020-01-01T00:00:00+00:00")
    assert keeper().may_try(SITE)


@pytest.mark.parametrize("text", ["", "{", "garbage"])
def test_a_note_of_attempts_that_cannot_be_read_is_no_obstacle(keeper, text: str) -> None:
    attempts()
    (certificates.FOLDER / "attempts.json").write_text(text)
    assert keeper().may_try(SITE)


def test_a_certbot_that_does_not_come_to_its_log_is_heard(
    keeper, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    certbot = tmp_path / "bin/certbot"
    certbot.parent.mkdir()
    certbot.write_text("#!/bin/sh\necho 'No module named acme' >&2\nexit 1\n")
    certbot.chmod(0o755)
    monkeypatch.setenv("PATH", f"{certbot.parent}:{os.environ['PATH']}")
    with pytest.raises(certificates.Failure, match=r"^No module named acme "):
        keeper(webroot=str(tmp_path / "webroot")).certbot(SITE, "https://acme.test", "acme")


def test_each_failure_doubles_the_pause_and_changes_nothing(
    keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise certificates.Failure("no address.")

    monkeypatch.setattr(certificates.Keeper, "reach", fail)
    minutes = []
    for _ in range(3):
        one = keeper(certificates=[SITE], retry=True)
        certificates.FOLDER.mkdir(exist_ok=True)
        with pytest.raises(certificates.Failure, match=r"^site: no address\.$"):
            one.issue()
        assert not one.changed
        until = json.loads(one.attempts_file.read_text())["site"]["not_before"]
        left = datetime.datetime.fromisoformat(until) - certificates.now()
        minutes.append(round(left.total_seconds() / 60))
    assert minutes == [15, 30, 60]


def test_the_timer_goes_on_after_a_list_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = certificates.CONFIGURATIONS
    folder.mkdir()
    (folder / "broken.json").write_text("{")
    (folder / "shop.json").write_text(json.dumps({**WANTED, "certificates": [INTERNAL]}))
    monkeypatch.setattr(certificates.sys, "argv", ["certificates", "renew"])
    message = certificates.main()
    assert message == f"{folder}/broken.json cannot be read. Run the playbook of broken again."
    assert certificates.read_certificate(certificates.FOLDER / "internal.pem")
