"""The cache of dynamic responses: what it keeps, and what it never keeps."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

ROLE = Path(__file__).parents[3] / "roles/nginx"
DROPPED = yaml.safe_load((ROLE / "vars/main.yml").read_text())["__nginx_dropped"]
# What a request may have that an app could answer by.
WORDS = """
    A-IM Accept Accept-Charset Accept-Encoding Accept-Language Access-Control-Request-Headers
    Access-Control-Request-Method Alt-Used Authorization Baggage Cache-Control Cookie
    Correlation-ID DNT Date Device-Memory Downlink From HX-Boosted HX-Current-URL HX-Request
    HX-Target Idempotency-Key If-Match If-None-Match If-Range Max-Forwards Origin Pragma Prefer
    Priority Proxy-Authorization Purpose RTT Range Referer Save-Data Sec-CH-UA Sec-CH-UA-Mobile
    Sec-Fetch-Mode Sec-Fetch-Site Sec-GPC TE Traceparent Turbo-Frame User-Agent Via Viewport-Width
    Warning Width X-API-Key X-Auth-Token X-Bar X-CSRF-Token X-Forwarded-Anything X-Device
    X-Forwarded-For X-Forwarded-Host X-Forwarded-Port X-Forwarded-Proto X-Locale X-PJAX X-Real-IP
    X-Request-ID X-Requested-With X-Tenant X-Theme X-Version
"""
SAID = dict.fromkeys([*WORDS.split(), *" ".join(DROPPED.values()).split()], "poison") | {
    "Accept-Encoding": "gzip, br",
    "If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT",
    "If-Unmodified-Since": "Sat, 01 Jan 2000 00:00:00 GMT",
    "If-Range": "Fri, 01 Jan 2100 00:00:00 GMT",
    "Range": "bytes=0-1",
    "Upgrade": "websocket",
    "Expect": "poison-100",
    "Content-Length": "0",
}
POISON = """
import http.client, json, sys
given = json.load(sys.stdin)
def ask(method, path, headers, source="127.0.0.1", host="cached.test"):
    connection = http.client.HTTPConnection("127.0.0.1", 80, 20, (source, 0))
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    connection.putheader("Host", host)
    for name, value in headers:
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read().decode("latin-1")
    return {"status": answer.status, "headers": answer.getheaders(), "body": body}
print(json.dumps({name: [ask(*one) for one in asked] for name, asked in given.items()}))
"""
AGE = "header=Cache-Control:max-age=60"


@pytest.mark.parametrize(
    ("query", "is_kept"),
    [
        (AGE, True),
        ("header=Expires:Fri,%2001%20Jan%202100%2000:00:00%20GMT", True),
        ("", False),
        ("header=Cache-Control:private,max-age=60", False),
        ("header=Cache-Control:no-store,max-age=60", False),
        ("header=Cache-Control:no-cache,max-age=60", False),
        (f"{AGE}&header=Set-Cookie:a=b", False),
        (f"{AGE}&header=Vary:*", False),
    ],
)
def test_a_response_is_kept_only_when_it_says_so_and_is_nobodys_own(ask, unique, query, is_kept):
    first, second = (ask("cached.test", f"{unique}?{query}").seen["requests"] for _ in range(2))
    assert (first == second) is is_kept


@pytest.mark.parametrize(
    ("query", "is_kept"),
    [
        ("", True),
        ("header=Cache-Control:private", False),
        ("header=Set-Cookie:a=b", False),
        ("status=500", False),
    ],
)
def test_a_site_can_keep_what_says_nothing(ask, unique, query, is_kept):
    first, second = (ask("kept.test", f"{unique}?{query}").seen["requests"] for _ in range(2))
    assert (first == second) is is_kept


@pytest.mark.parametrize("header", ["Cookie: a=b", "Authorization: Basic eDp5"])
def test_a_visitor_who_is_known_gets_an_answer_of_their_own(ask, unique, header):
    path = f"{unique}?{AGE}"
    anonymous = ask("cached.test", path).seen["requests"]
    known = ask("cached.test", path, "--header", header).seen
    assert known["requests"] > anonymous
    assert ask("cached.test", path).seen["requests"] == anonymous


@pytest.mark.parametrize("header", ["Cookie: a=b", "Authorization: Basic eDp5"])
def test_the_answer_to_a_visitor_who_is_known_is_not_kept(ask, unique, header):
    path = f"{unique}?{AGE}"
    known = ask("cached.test", path, "--header", header).seen["requests"]
    assert ask("cached.test", path).seen["requests"] > known


# The key of the cache does not hold it, but the answer may.
@pytest.mark.parametrize("header", ["X-Own: a", "Transfer-Encoding: chunked"])
def test_what_a_get_has_in_its_body_is_for_nobody_else(ask, unique, header):
    path = f"{unique}?{AGE}"
    body = ["--request", "GET", "--data", "poison", "--header", header]
    assert ask("cached.test", path, *body).seen["body"] == "poison"
    assert ask("cached.test", path).seen["body"] == ""
    assert ask("cached.test", path, *body).seen["body"] == "poison"


def test_a_post_always_reaches_the_app(ask, unique):
    path = f"{unique}?{AGE}"
    kept = ask("cached.test", path).seen["requests"]
    assert ask("cached.test", path, "--data", "x").seen["requests"] > kept


@pytest.mark.parametrize("query", ["a=1", "a=2&b"])
def test_each_query_is_kept_by_itself(ask, unique, query):
    other = ask("cached.test", f"{unique}?{AGE}").seen["requests"]
    assert ask("cached.test", f"{unique}?{AGE}&{query}").seen["requests"] > other


def test_an_expired_response_is_served_while_the_app_is_down(ask, unique, service, eventually):
    path = f"{unique}?header=Cache-Control:max-age=1"
    kept = ask("cached.test", path).seen["requests"]
    service("stop", "upstream@9003")
    try:
        eventually(lambda: ask("cached.test", path).header("X-Cache-Status") != "HIT")
        stale = ask("cached.test", path)
        assert (stale.status, stale.seen["requests"]) == (200, kept)
        assert ask("cached.test", path, "--header", "Cookie: a=b").status == 502
    finally:
        service("start", "upstream@9003")
        eventually(lambda: ask("cached.test", f"{unique}/up").status == 200)


@pytest.fixture(scope="module")
def poison(host):
    """Ask several times each: poison({name: [(method, path, headers, source, host), ...]})."""

    def run(given):
        process = subprocess.run(
            ["docker", "exec", "--interactive", host.backend.name, "python3", "-c", POISON],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return json.loads(process.stdout)

    return run


def is_clean(answer):
    """Whether an answer shows nothing of what another visitor has sent."""
    headers = {name.lower(): value for name, value in answer["headers"]}
    return (
        answer["status"] == 200
        and "poison" not in answer["body"].lower()
        and "6.6.6.6" not in answer["body"]
        and "content-encoding" not in headers
        and "content-range" not in headers
        and json.loads(answer["body"])["method"] == "GET"
    )


@pytest.mark.parametrize("site", ["cached.test", "kept.test"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
def test_nothing_that_a_visitor_says_is_in_the_answer_of_the_next(poison, unique, method, site):
    given = {}
    for name, value in SAID.items():
        path = f"{unique}/{name}?{AGE}"
        once, twice = [(name, value)], [(name, value), (name, f"{value}-2")]
        given[name] = [
            (method, path, once, "127.0.0.1", site),
            ("GET", path, [], "127.0.0.1", site),
        ]
        if name not in ("Content-Length", "Host", "If-Modified-Since", "If-Unmodified-Since"):
            path = f"{unique}/twice/{name}?{AGE}"
            given[f"{name} twice"] = [
                (method, path, twice, "127.0.0.1", site),
                ("GET", path, [], "127.0.0.1", site),
            ]
    answers = poison(given)
    assert len(answers) > 800
    assert not [name for name, (_, after) in answers.items() if not is_clean(after)]


@pytest.mark.parametrize(
    "name",
    [
        "Accept",
        "Accept-Encoding",
        "Accept-Language",
        "Cookie",
        "Host",
        "Origin",
        "User-Agent",
        "X-Bar",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "X-Real-IP",
        "Remote-User",
    ],
)
def test_nor_where_the_app_says_by_what_its_answer_varies(poison, unique, name):
    header = (name, "other.cached.test" if name == "Host" else SAID.get(name, "poison"))
    path = f"{unique}?{AGE}&header=Vary:{name}"
    headers = [] if name == "Host" else [header]
    host = header[1] if name == "Host" else "cached.test"
    asked = [("GET", path, headers, "127.0.0.1", host), ("GET", path, [])]
    _, after = poison({name: asked})[name]
    assert is_clean(after)
    assert json.loads(after["body"])["path"] == path
    assert ["Host", "cached.test"] in json.loads(after["body"])["headers"]


def test_nor_by_a_combination_of_headers_that_only_reads_like_another(poison, unique):
    pairs = {
        sign: [
            [("Accept", "a"), ("Accept-Language", f"b{sign}poison")],
            [("Accept", f"a{sign}b"), ("Accept-Language", "poison")],
        ]
        for sign in ["|", ":", " ", ",", "", "/", "\t", "$", "%0a", "\\n"]
    }
    answers = poison(
        {
            sign: [("GET", f"{unique}/{number}?{AGE}", headers) for headers in pair]
            for number, (sign, pair) in enumerate(pairs.items())
        }
    )
    for sign, (_, after) in answers.items():
        seen = dict(json.loads(after["body"])["headers"])
        seen = {name.lower(): value for name, value in seen.items()}
        assert seen["accept"] == f"a{sign}b".strip(), sign


def test_nor_by_the_name_or_the_address_by_which_one_asks(poison, unique):
    path = f"{unique}?{AGE}"
    by = {
        "address": ("GET", path, [], "127.6.6.6"),
        "name": ("GET", path, [], "127.0.0.1", "poison.cached.test"),
        "port": ("GET", path, [], "127.0.0.1", "CACHED.test:6666"),
        "absolute": ("GET", f"http://poison.cached.test{path}", []),
    }
    after = poison({"all": [*by.values(), ("GET", path, [])]})["all"][-1]
    assert is_clean(after)
    seen = dict(json.loads(after["body"])["headers"])
    assert (seen["Host"], seen["X-Forwarded-Host"], seen["X-Forwarded-Port"]) == (
        "cached.test",
        "cached.test",
        "80",
    )
    assert "127." not in after["body"]


# Otherwise the cache would be safe, and of no use.
@pytest.mark.parametrize(
    "name",
    [
        "User-Agent",
        "Referer",
        "X-Bar",
        "Accept-Encoding",
        "Range",
        "X-Forwarded-For",
        "Cache-Control",
    ],
)
def test_what_no_answer_may_depend_on_keeps_nobody_from_the_cache(poison, unique, name):
    path = f"{unique}?{AGE}"
    _, after = poison({name: [("GET", path, []), ("GET", path, [(name, SAID[name])])]})[name]
    assert ["X-Cache-Status", "HIT"] in after["headers"]


def test_what_a_site_names_reaches_the_app_and_has_an_answer_of_its_own(ask, unique, as_proxy):
    path = f"{unique}?{AGE}"
    for value in ("de", "fr", "de"):
        answer = ask("cached.test", path, "--header", f"Accept-Language: {value}")
        assert answer.seen_header("Accept-Language") == [value]
    assert answer.header("X-Cache-Status") == "HIT"
    # It is dropped from the requests to other sites, and this one asks for it.
    for value in ("/a", "/b", "/a"):
        answer = ask("cached.test", path, "--header", f"X-Forwarded-Prefix: {value}", *as_proxy)
        assert answer.seen_header("X-Forwarded-Prefix") == [value]
    assert answer.header("X-Cache-Status") == "HIT"


@pytest.mark.parametrize(
    "header",
    ["Remote-User: ann", "X-API-Key: k", "X-Auth-Token: t", "Cookie: 0", "Authorization: 0"],
)
def test_who_is_known_by_another_header_gets_an_answer_of_their_own_too(
    ask, unique, as_proxy, header
):
    path = f"{unique}?{AGE}"
    name, value = header.split(": ")
    anonymous = ask("cached.test", path).seen["requests"]
    known = ask("cached.test", path, "--header", header, "--header", "X-Own: kept", *as_proxy)
    assert known.seen["requests"] > anonymous
    assert known.header("X-Cache-Status") == "BYPASS"
    assert known.seen_header(name) == [value]
    assert known.seen_header("X-Own") == ["kept"]
    assert known.seen_header("X-Real-IP") == ["127.0.0.9"]
    assert ask("cached.test", path).seen["requests"] == anonymous


def test_a_range_is_cut_from_what_is_kept(ask, unique):
    path = f"{unique}?{AGE}&header=Accept-Ranges:bytes"
    part = ask("cached.test", path, "--header", "Range: bytes=0-1")
    assert (part.status, len(part.body)) == (206, 2)
    assert ask("cached.test", path).header("X-Cache-Status") == "HIT"


@pytest.mark.parametrize("path", ["/a%2fb", "/a//b/../c", "/a?b=%0d%0ac", "/%7Ea;b=c"])
def test_the_path_reaches_the_app_as_it_was_sent(ask, path):
    assert ask("cached.test", path).seen["path"] == path
