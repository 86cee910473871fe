"""Scanners look at a server as site.yml leaves it; bars.yml has their bars, and what is waived."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import BARS
from testinfra.host import Host

MOLECULE = Path(__file__).parents[2]
REPOSITORY = MOLECULE.parent
SLOW = (MOLECULE / "slow.py").read_text()
SEVERITIES = ("MEDIUM", "HIGH", "CRITICAL")


def test_testssl(scanner: Host, release: str, show: Callable[..., None]) -> None:
    bar = BARS["testssl"]
    scanner.run(
        "testssl --quiet --color 0 --warnings off --overwrite --add-ca /root/scan-%s.crt"
        " --jsonfile-pretty /root/testssl-%s.json https://scan-%s.test",
        *[release] * 3,
    )
    (result,) = json.loads(scanner.file(f"/root/testssl-{release}.json").content_string)[
        "scanResult"
    ]
    found = [x for value in result.values() if isinstance(value, list) for x in value if "id" in x]
    grade = next(x["finding"] for x in found if x["id"] == "overall_grade")
    serious = {x["id"]: x["finding"] for x in found if x["severity"] in SEVERITIES}
    open_ = {key: value for key, value in serious.items() if key not in bar["waived"]}
    waived = len(serious) - len(open_)
    show("testssl.sh: grade", grade, bar["grade"], grade == bar["grade"])
    show("testssl.sh: findings above LOW", len(open_), "0", not open_, waived)
    assert grade == bar["grade"]
    assert not open_


def test_sslyze(scanner: Host, release: str, show: Callable[..., None]) -> None:
    run = scanner.run(
        "/opt/scanners/bin/sslyze --mozilla_config %s --certinfo_ca_file /root/scan-%s.crt"
        " scan-%s.test",
        BARS["sslyze"],
        release,
        release,
    )
    compliant = run.rc == 0 and "OK - Compliant" in run.stdout
    show(
        f"sslyze: Mozilla's guideline, {BARS['sslyze']}",
        "compliant" if compliant else "not",
        "compliant",
        compliant,
    )
    assert compliant, run.stdout.rpartition("COMPLIANCE")[2]


def test_ssh_audit(scanner: Host, release: str, show: Callable[..., None]) -> None:
    policy = BARS["sshd"][int(release)]
    run = scanner.run("/opt/scanners/bin/ssh-audit --policy %s scan-%s.test", policy, release)
    show(f"ssh-audit: {policy}", "met" if run.rc == 0 else "not", "met", run.rc == 0)
    assert run.rc == 0, run.stdout


def is_waived_by_gixy(finding: dict[str, str]) -> bool:
    """Whether bars.yml has a reason for all that a finding is about."""
    waived = BARS["gixy"]["waived"].get(finding["plugin"])
    if not waived or finding["reason"] != waived["finding"]:
        return False
    directives = re.findall(r"^\s*(set .*);", finding["config"], re.MULTILINE)
    return bool(directives) and all(re.fullmatch(waived["only"], x) for x in directives)


def test_gixy(scanner: Host, docker_name: str, release: str, show: Callable[..., None]) -> None:
    # With what it includes, as it lies on the server.
    packed = subprocess.run(
        ["docker", "exec", docker_name, "tar", "-C", "/etc", "-c", "nginx"],
        capture_output=True,
        check=True,
    ).stdout
    scanner.check_output("rm -rf /root/scan-%s && mkdir /root/scan-%s", release, release)
    subprocess.run(
        ["docker", "exec", "-i", scanner.backend.name, "tar", "-C", f"/root/scan-{release}", "-x"],
        input=packed,
        check=True,
    )
    run = scanner.run("/opt/scanners/bin/gixy -f json /root/scan-%s/nginx/nginx.conf", release)
    found = json.loads(run.stdout)
    open_ = [x for x in found if not is_waived_by_gixy(x)]
    waived = len(found) - len(open_)
    show("gixy: findings in nginx's configuration", len(open_), "0", not open_, waived)
    assert not open_


def test_lynis(host: Host, show: Callable[..., None]) -> None:
    bar = BARS["lynis"]
    host.check_output("apt-get -qq update && apt-get -qq install -y --no-install-recommends lynis")
    profile = "\n".join(f"skip-test={name}" for name in bar["waived"])
    host.check_output(
        "echo %s >/etc/lynis/custom.prf && lynis audit system --quick --quiet", profile
    )
    report = host.file("/var/log/lynis-report.dat").content_string
    index = int(re.search(r"^hardening_index=(\d+)$", report, re.MULTILINE)[1])
    warnings = re.findall(r"^warning\[\]=(.*)$", report, re.MULTILINE)
    kept = index >= bar["index"]
    show("Lynis: hardening index", index, f">= {bar['index']}", kept, len(bar["waived"]))
    show("Lynis: warnings", len(warnings), "0", not warnings)
    assert index >= bar["index"], report
    assert not warnings


@pytest.mark.parametrize("unit", ["supervisor", "nginx", "postgresql"])
def test_systemd_analyze(host: Host, unit: str, show: Callable[..., None]) -> None:
    if unit == "postgresql":
        unit = f"postgresql@{host.check_output('ls /etc/postgresql')}-main"
    said = host.check_output("systemd-analyze security --no-pager %s", unit)
    points = float(re.search(r"Overall exposure level for .*: ([\d.]+)", said)[1])
    bar = BARS["systemd"]
    what = f"systemd-analyze security: {unit.partition('@')[0]}"
    show(what, points, f"<= {bar}", points <= bar)
    assert points <= bar, said


def test_openscap(
    host: Host, docker_name: str, scanner: Host, release: str, show: Callable[..., None]
) -> None:
    # Debian 13 brings the guide for 12, and none for 13 yet.
    guide = f"/usr/share/xml/scap/ssg/content/ssg-debian{release}-ds.xml"
    assert scanner.file(guide).exists == (release in BARS["openscap"]["releases"])
    if release not in BARS["openscap"]["releases"]:
        show("OpenSCAP: rules that fail", "no guide yet", "", kept=None)
        return
    text = subprocess.run(
        ["docker", "exec", scanner.backend.name, "cat", guide], capture_output=True, check=True
    ).stdout
    subprocess.run(
        ["docker", "exec", "-i", docker_name, "tee", "/root/guide.xml"],
        input=text,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    host.check_output(
        "apt-get -qq update && apt-get -qq install -y --no-install-recommends openscap-scanner"
    )
    for profile in BARS["openscap"]["profiles"]:
        said = host.run(
            "oscap xccdf eval --profile xccdf_org.ssgproject.content_profile_%s /root/guide.xml",
            profile,
        ).stdout
        results = re.findall(
            r"^Rule\s+\S+content_rule_(\S+)(?:\n\S.*)*?\nResult\s+(\S+)", said, re.M
        )
        passed = [rule for rule, result in results if result == "pass"]
        failed = [rule for rule, result in results if result in ("fail", "error", "unknown")]
        open_ = [rule for rule in failed if rule not in BARS["openscap"]["waived"]]
        show(
            f"OpenSCAP, {profile}: rules that fail of {len(passed) + len(failed)}",
            len(open_),
            "0",
            not open_,
            len(failed) - len(open_),
        )
        assert passed
        assert not open_


# What nginx does about them is the same on both releases.
@pytest.mark.either_release
@pytest.mark.parametrize("mode", ["headers", "body"])
def test_slow_clients(scanner: Host, release: str, mode: str, show: Callable[..., None]) -> None:
    bar, failures, added = BARS["slow_ms"], 0, []
    # What else the machine does only ever adds to it, and what slow clients do is there each time.
    while not added or (min(added) >= bar and len(added) < 3):
        run = scanner.check_output(
            "SSL_CERT_FILE=/root/scan-%s.crt python3 -c %s %s https://scan-%s.test/healthz 1000 8",
            release,
            SLOW,
            mode,
            release,
        )
        result = json.loads(run)
        assert result["slow"] >= 1000
        failures += result["failures"]
        added.append(round(result["worst_ms"] - result["worst_without_ms"], 1))
    waited = min(added)
    what = f"1,000 slow clients ({mode}): added to others' longest, ms"
    show(what, waited, f"< {bar}", waited < bar)
    show(f"1,000 slow clients ({mode}): failures of others", failures, "0", failures == 0)
    assert failures == 0
    assert waited < bar


def test_hostile_corpus(release: str, show: Callable[..., None]) -> None:
    """Each is sent by molecule/nginx; here they are counted."""
    cases = yaml.safe_load((MOLECULE / "nginx/files/hostile.yml").read_text())
    names = {(way, x["name"]) for way in ("cases", "http2") for x in cases[way]}
    bar = BARS["hostile"]
    what = "hostile requests, each refused or harmless in molecule/nginx"
    show(what, len(names), f">= {bar}", len(names) >= bar)
    assert len(names) >= bar


@pytest.mark.either_release
def test_pip_audit(scanner: Host, show: Callable[..., None]) -> None:
    """What is known to be wrong with the pinned packages, where the index of advisories answers."""
    files = ["requirements.txt", "sample_app/requirements.txt"]
    text = "".join((REPOSITORY / file).read_text() for file in files)
    # Advisories go by name and version.
    pins = "\n".join(re.findall(r"^\w[^ ]*", text, re.MULTILINE))
    options = "--disable-pip --no-deps --progress-spinner off --timeout 15 --format json"
    run = scanner.run(
        f"printf %s >/root/pins && /opt/scanners/bin/pip-audit {options} --requirement /root/pins",
        pins,
    )
    # Not every machine reaches it, and a copy of the index of packages may have no advisories.
    unreached = re.search(r"^requests\.exceptions\.|Could not connect", run.stderr, re.MULTILINE)
    found = [] if unreached else json.loads(run.stdout)["dependencies"]
    asked = [x for x in found if "vulns" in x]
    wrong = {x["name"]: [y["id"] for y in x["vulns"]] for x in asked if x["vulns"]}
    what = f"pip-audit: packages with known faults, of {len(asked)}"
    show(what, len(wrong) if asked else "no answer", "0", not wrong if asked else None)
    assert unreached or found, run.stderr
    assert not wrong
