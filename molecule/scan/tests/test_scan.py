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
    show("testssl.sh: grade", grade, bar["grade"])
    show("testssl.sh: findings above LOW", len(open_), 0, len(serious) - len(open_))
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
    )
    assert compliant, run.stdout.rpartition("COMPLIANCE")[2]


def test_ssh_audit(scanner: Host, release: str, show: Callable[..., None]) -> None:
    policy = BARS["sshd"][int(release)]
    run = scanner.run("/opt/scanners/bin/ssh-audit --policy %s scan-%s.test", policy, release)
    show(f"ssh-audit: {policy}", "passed" if run.rc == 0 else "failed", "passed")
    assert run.rc == 0, run.stdout


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
    open_ = [x for x in found if x["plugin"] not in BARS["gixy"]["waived"]]
    show("gixy: findings in nginx's configuration", len(open_), 0, len(found) - len(open_))
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
    show("Lynis: hardening index", index, f">= {bar['index']}", len(bar["waived"]))
    show("Lynis: warnings", len(warnings), 0)
    assert index >= bar["index"], report
    assert not warnings


@pytest.mark.parametrize("unit", ["supervisor", "nginx", "postgresql"])
def test_systemd_analyze(host: Host, unit: str, show: Callable[..., None]) -> None:
    if unit == "postgresql":
        unit = f"postgresql@{host.check_output('ls /etc/postgresql')}-main"
    said = host.check_output("systemd-analyze security --no-pager %s", unit)
    points = float(re.search(r"Overall exposure level for .*: ([\d.]+)", said)[1])
    show(f"systemd-analyze security: {unit.partition('@')[0]}", points, f"<= {BARS['systemd']}")
    assert points <= BARS["systemd"], said


def test_openscap(
    host: Host, docker_name: str, scanner: Host, release: str, show: Callable[..., None]
) -> None:
    # Debian 13 brings the guide for 12, and none for 13 yet.
    guide = f"/usr/share/xml/scap/ssg/content/ssg-debian{release}-ds.xml"
    assert scanner.file(guide).exists == (release in BARS["openscap"]["releases"])
    if release not in BARS["openscap"]["releases"]:
        show("OpenSCAP: rules that fail", "no guide yet", "")
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
            0,
            len(failed) - len(open_),
        )
        assert passed
        assert not open_


@pytest.mark.parametrize("mode", ["headers", "body"])
def test_slow_clients(scanner: Host, release: str, mode: str, show: Callable[..., None]) -> None:
    run = scanner.check_output(
        "SSL_CERT_FILE=/root/scan-%s.crt python3 -c %s %s https://scan-%s.test/healthz 1000 8",
        release,
        SLOW,
        mode,
        release,
    )
    result = json.loads(run)
    show(f"1,000 slow clients ({mode}): p99 of others, ms", result["p99_ms"], "< 500")
    show(f"1,000 slow clients ({mode}): failures of others", result["failures"], 0)
    assert result["slow"] >= 1000
    assert result["failures"] == 0
    assert result["p99_ms"] < BARS["slow_ms"]


def test_hostile_corpus(release: str, show: Callable[..., None]) -> None:
    """Each is sent by molecule/nginx; here they are counted."""
    cases = yaml.safe_load((MOLECULE / "nginx/files/hostile.yml").read_text())
    names = {x["name"] for x in cases["cases"]}
    show("hostile requests, each refused or harmless in molecule/nginx", len(names), ">= 60")
    assert len(names) >= 60
