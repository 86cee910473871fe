"""Requests that are sent to do harm: files/hostile.yml says what becomes of each of them.

What nginx passes on is read twice: strictly, as RFC 9112 says, and as gunicorn does.
"""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from gunicorn.config import Config
from gunicorn.http.errors import ParseException
from gunicorn.http.parser import RequestParser

FILES = Path(__file__).parents[1] / "files"
CORPUS = yaml.safe_load((FILES / "hostile.yml").read_text())
PORTS = {"http": 80, "https": 443}
GET = {":method": "GET", ":scheme": "https", ":authority": "hostile.test", ":path": "/"}
GIVEN = re.compile("^(X-Request-ID: )[0-9a-f]{32}$")
REFUSALS = {400, 403, 404, 405, 411, 413, 414, 416, 421, 431, 501, 505}
REPEATED = re.compile(r"\{([^{}]*)\*(\d+)\}")
REQUEST_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+ [!-~\x80-\xff]+) HTTP/1\.1")
# Spaces around a value are none of it.
HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+): *((?:[!-~\x80-\xff](?:.*[!-~\x80-\xff])?)?) *")


def expanded(text):
    """Repeat what is to be repeated, the innermost first."""
    while REPEATED.search(text):
        text = REPEATED.sub(lambda found: found[1] * int(found[2]), text)
    return text


def wanted(case, scheme):
    """Return what the app is to see: for each request its line, its headers and its body."""
    for request in case.get("seen", []):
        own = expanded("\n".join(request.get("headers", []))).splitlines()
        names = {header.partition(":")[0] for header in own}
        always = [
            header.format(scheme=scheme, port=PORTS[scheme])
            for header in CORPUS["always"]
            if header.partition(":")[0] not in names
        ]
        yield expanded(request["request"]), sorted(always + own), request.get("body", "")


def strictly(data):
    """Read requests as the standard says, and accept nothing else."""
    while data:
        head, end, rest = data.partition("\r\n\r\n")
        assert end, f"no end of the headers: {data!r}"
        first, *lines = head.split("\r\n")
        assert REQUEST_LINE.fullmatch(first), first
        headers = [HEADER.fullmatch(line) for line in lines]
        assert all(headers), lines
        lengths = [header[2] for header in headers if header[1].lower() == "content-length"]
        assert len(lengths) <= 1
        assert not [header for header in headers if header[1].lower() == "transfer-encoding"]
        size = int(lengths[0]) if lengths else 0
        assert len(rest) >= size, f"a body too short: {rest!r}"
        fields = [GIVEN.sub(r"\1given", f"{header[1]}: {header[2]}") for header in headers]
        others = [field for field in fields if not field.lower().startswith("content-length:")]
        yield REQUEST_LINE.fullmatch(first)[1], sorted(others), rest[:size]
        data = rest[size:]


def as_gunicorn(data):
    """Read requests as gunicorn does: of each its method, target and body."""
    parser = RequestParser(Config(), iter([data.encode("latin-1")]), ("", 0))
    for request in parser:
        yield f"{request.method} {request.uri}", request.body.read().decode("latin-1")


def send(host, way, cases):
    """Send all cases, one after another, from the server itself."""
    sender = (FILES / "hostile.py").read_text()
    run = subprocess.run(
        ["docker", "exec", "--interactive", host.backend.name, "python3", "-c", sender, way],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return json.loads(run.stdout)


@pytest.fixture(scope="module", params=PORTS)
def scheme(request):
    return request.param


@pytest.fixture(scope="module")
def outcomes(host, scheme):
    cases = [
        {
            "name": case["name"],
            "raw": expanded(case["raw"]),
            "answers": len(case.get("answers", [1])),
            "shut": case.get("shut", False),
        }
        for case in CORPUS["cases"]
    ]
    return send(host, scheme, cases)


def fields(case):
    """Return the header fields of a case of HTTP/2: those of a plain GET, with its own instead."""
    first = [[name, value] for name, value in GET.items() if name not in case.get("without", [])]
    own = [[expanded(part) for part in field] for field in case.get("fields", [])]
    return [field for field in first if field[0] not in {name for name, _ in own}] + own


@pytest.fixture(scope="module")
def http2_outcomes(host):
    cases = [
        {
            "name": case["name"],
            "fields": fields(case),
            "data": case.get("data", []),
            "trailers": case.get("trailers", []),
        }
        for case in CORPUS["http2"]
    ]
    return send(host, "http2", cases)


def judge(case, scheme, outcome):
    """Compare what became of a request with what the corpus says."""
    answers = outcome["answers"]
    statuses = [answer["status"] for answer in answers]
    if case.get("refused"):
        assert outcome["closed"] or statuses
        assert len(statuses) <= 1
        assert set(statuses) <= REFUSALS
    else:
        assert statuses == case["answers"]
    assert "secret\n" not in "".join(answer["body"] for answer in answers)
    heads = "\r\n".join(answer["head"] for answer in answers)
    where = [case["location"]] if "location" in case else []
    assert re.findall(r"(?i)\r\nLocation: (.*)\r", heads) == where
    assert "\r\nx-injected:" not in heads.lower()

    seen = list(wanted(case, scheme))
    assert [request for data in outcome["app"] for request in strictly(data)] == seen
    try:
        by_gunicorn = [request for data in outcome["app"] for request in as_gunicorn(data)]
    except ParseException:
        assert case["gunicorn"] == "refuses"
    else:
        assert by_gunicorn == [(line, body) for line, _, body in seen]


@pytest.mark.parametrize("case", CORPUS["cases"], ids=lambda case: case["name"])
def test_a_hostile_request_is_refused_or_harmless(outcomes, scheme, case):
    if scheme == "https":
        case = case | case.get("tls", {})
    judge(case, scheme, outcomes[case["name"]])


@pytest.mark.parametrize("case", CORPUS["http2"], ids=lambda case: case["name"])
def test_a_hostile_request_over_http2_is_refused_or_harmless(http2_outcomes, case):
    judge(case, "https", http2_outcomes[case["name"]])
