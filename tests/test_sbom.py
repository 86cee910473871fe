"""A bill of materials: what a server says is on it, and the object of CycloneDX that it makes."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.carafe.stack.plugins.filter.cyclonedx import cyclonedx
from ansible_collections.carafe.stack.plugins.module_utils import sandbox
from ansible_collections.carafe.stack.plugins.module_utils.commands import Failure
from ansible_collections.carafe.stack.plugins.modules import sbom_info
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

INSPECTED = {
    "installed": [
        {
            "metadata": {
                "name": "Flask-WTF",
                "version": "1.3.0",
                "license_expression": "BSD-3-Clause",
                "requires_dist": [
                    "flask",
                    "itsdangerous (>=2)",
                    "email-validator; extra == 'email'",
                ],
            },
            "requested": True,
        },
        {"metadata": {"name": "flask", "version": "3.1.3+local", "license": "a\nwhole text"}},
        {
            "metadata": {
                "name": "itsdangerous",
                "version": "2.2.0",
                "classifier": ["License :: OSI Approved :: BSD License"],
            }
        },
    ]
}
DEBIAN = {"name": "libc++1", "version": "1:2.3-4+b1", "architecture": "amd64", "source": "llvm"}


def server(**more: Any) -> dict[str, Any]:
    return {
        **{"release": "a1-b2", "revision": "v1", "distribution": "debian-13", "debian": [DEBIAN]},
        "python": sbom_info.python(json.dumps(INSPECTED)),
        **more,
    }


def faults(bill: dict[str, Any]) -> object:
    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill))


@pytest.mark.parametrize(
    "servers",
    [
        [server()],
        [server(), server(distribution="debian-12")],
        [server(release="", revision="", python=[])],
        [server(release="", python=[]), server()],
        [],
    ],
    ids=["one", "several", "nothing serves", "database first", "no server"],
)
def test_it_keeps_to_the_schema(servers: list[dict[str, Any]]) -> None:
    bill = cyclonedx(servers, "a shop/€")
    assert faults(bill) is None
    refs = [x["bom-ref"] for x in bill["components"]]
    assert len(refs) == len(set(refs))
    known = {*refs, bill["metadata"]["component"]["bom-ref"]}
    for entry in bill["dependencies"]:
        assert {entry["ref"], *entry.get("dependsOn", [])} <= known


def test_the_schema_finds_fault() -> None:
    assert faults(cyclonedx([server()], "shop") | {"serialNumber": "1"}) is not None


def test_the_same_software_gives_the_same_file() -> None:
    first, again = cyclonedx([server()], "shop"), cyclonedx([server()], "shop")
    assert first == again
    other = cyclonedx([server(debian=[])], "shop")
    assert other["serialNumber"] != first["serialNumber"]


def test_each_package_is_named_as_its_index_has_it() -> None:
    bill = cyclonedx([server()], "shop")
    found = {x["purl"]: x for x in bill["components"]}
    assert found["pkg:pypi/flask-wtf@1.3.0"]["licenses"] == [{"license": {"name": "BSD-3-Clause"}}]
    assert "licenses" not in found["pkg:pypi/flask@3.1.3%2Blocal"]
    debian = "pkg:deb/debian/libc%2B%2B1@1%3A2.3-4%2Bb1?arch=amd64&distro=debian-13&upstream=llvm"
    assert found[debian]["name"] == "libc++1"
    needs = {x["ref"]: x.get("dependsOn", []) for x in bill["dependencies"]}
    assert needs["pkg:generic/shop@a1-b2"] == ["pkg:pypi/flask-wtf@1.3.0"]
    assert needs["pkg:pypi/flask-wtf@1.3.0"] == [
        "pkg:pypi/flask@3.1.3%2Blocal",
        "pkg:pypi/itsdangerous@2.2.0",
    ]


def test_licences_are_those_that_a_package_states() -> None:
    found = {x["name"]: x["licence"] for x in server()["python"]}
    assert found == {"Flask-WTF": "BSD-3-Clause", "flask": "", "itsdangerous": "BSD License"}


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(sbom_info, "debian", lambda: [DEBIAN])
    (tmp_path / "state").mkdir()
    (tmp_path / "state/releases.json").write_text(json.dumps({"a1-b2": {"revision": "v1"}}))
    (tmp_path / "serving").symlink_to("settings/a1-b2")
    monkeypatch.setattr(sandbox, "RUN", tmp_path)
    # Stands in for systemd, of which it notes what it was asked for.
    script = 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"'
    (tmp_path / "systemd-run").write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/asked\n{script}\n')
    (tmp_path / "systemd-run").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    place = {"root": tmp_path, "run_command": str(tmp_path / "run")}
    return {"name": "shop", "user": "shop", **place, "timeout": 2}


def says(shop: dict[str, Any], script: str) -> None:
    run = Path(shop["run_command"])
    run.write_text(f"#!/bin/sh\n{script}\n")
    run.chmod(run.stat().st_mode | stat.S_IXUSR)


def test_what_serves_is_asked(shop: dict[str, Any]) -> None:
    says(shop, f"cat <<'END'\n{json.dumps(INSPECTED)}\nEND")
    found = sbom_info.look(shop)
    assert (found["release"], found["revision"]) == ("a1-b2", "v1")
    assert [x["name"] for x in found["python"]] == ["Flask-WTF", "flask", "itsdangerous"]
    # What it has installed is its code as well.
    asked = (shop["root"] / "asked").read_text().split()
    wanted = {
        f"--property={x}" for x in ("User=shop", "NoNewPrivileges=yes", "LockPersonality=yes")
    }
    assert wanted <= set(asked)


def test_where_nothing_serves_nobody_is_asked(shop: dict[str, Any]) -> None:
    (shop["root"] / "serving").unlink()
    assert sbom_info.look(shop)["python"] == []


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo no module named pip >&2; exit 1", "no module named pip"),
        ("echo hello", "JSONDecodeError"),
        ("echo '{}'", "KeyError"),
        ("echo '[]'", "TypeError"),
        ("""echo '{"installed": [1]}'""", "TypeError"),
        ("""echo '{"installed": [{"metadata": {"name": null, "version": 3}}]}'""", "TypeError"),
        ("sleep 30", "longer than 2 s"),
    ],
)
def test_an_answer_that_is_none_is_one_line(shop: dict[str, Any], script: str, why: str) -> None:
    says(shop, script)
    with pytest.raises(Failure, match=why) as failure:
        sbom_info.look(shop)
    assert "\n" not in str(failure.value)
    assert "shop python -m pip inspect" in str(failure.value)
