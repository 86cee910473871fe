"""What the app gets to see, and what it sends."""

from pathlib import Path

import pytest
import yaml

ROLE = Path(__file__).parents[3] / "roles/nginx"
DROPPED = " ".join(
    yaml.safe_load((ROLE / "vars/main.yml").read_text())["__nginx_dropped"].values()
).split()
STREAM = """
import http.client, sys
name, path = sys.argv[1:]
slow = http.client.HTTPConnection("127.0.0.1", timeout=20)
slow.request("GET", path, headers={"Host": name})
answer = slow.getresponse()
print(answer.readline().decode().strip())
other = http.client.HTTPConnection("127.0.0.1", timeout=20)
other.request("GET", "/go", headers={"Host": "app.test"})
other.getresponse().read()
print(answer.read().decode().strip())
"""
TICKS = """
import http.client, time
connection = http.client.HTTPConnection("127.0.0.1", timeout=20)
connection.request("GET", "/ticks?events=6", headers={"Host": "app.test"})
answer = connection.getresponse()
begin = time.monotonic()
times = []
while line := answer.readline():
    if line.startswith(b"data: "):
        times.append(time.monotonic() - begin)
print(*times)
"""
IDLE = """
import asyncio, websockets
async def main():
    def connect(path):
        url = f"ws://app.test/{path}/"
        return websockets.connect(url, host="127.0.0.1", port=80, ping_interval=None)
    async with connect("impatient") as cut, connect("websocket") as kept:
        await cut.wait_closed()
        await kept.send("carafe")
        print(cut.close_code, await kept.recv())
asyncio.run(main())
"""
WEBSOCKET = """
import asyncio, websockets
async def main():
    url = "ws://app.test/websocket/"
    async with websockets.connect(url, host="127.0.0.1", port=80) as connection:
        await connection.send("carafe")
        print(await connection.recv())
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Host", "app.test"),
        ("X-Forwarded-For", "127.0.0.1"),
        ("X-Real-IP", "127.0.0.1"),
        ("X-Forwarded-Proto", "http"),
        ("X-Forwarded-Host", "app.test"),
        ("X-Forwarded-Port", "80"),
        ("Forwarded", None),
        ("X-Forwarded-Ssl", None),
        ("X-Forwarded-Prefix", None),
        ("X-Forwarded-Scheme", None),
        ("X-Script-Name", None),
        ("Proxy", None),
        ("X_Forwarded_For", None),
    ],
)
def test_the_app_sees_no_header_that_the_client_forged(ask, header, value):
    forged = [] if header == "Host" else ["--header", f"{header}: forged"]
    assert ask("app.test", "/", *forged).seen_header(header) == ([value] if value else [])


def test_a_request_has_one_id_in_the_log_and_for_the_app(ask, host, unique, eventually):
    forged = "0123456789abcdef0123456789abcdef"
    (given,) = ask("app.test", unique, "--header", f"X-Request-ID: {forged}").seen_header(
        "X-Request-ID"
    )
    assert given != forged
    # nginx writes its log every few seconds.
    line = f"grep -F '{unique}' /var/log/nginx/access.log"
    eventually(lambda: host.run(line).stdout.strip().endswith(f" {given}"))


# The site unbuffered asks for two of them, and every path of it gets them.
@pytest.mark.parametrize(
    ("name", "path", "asked"),
    [
        ("app.test", "/", set()),
        ("app.test", "/other/page", set()),
        ("app.test", "/static/missing", set()),
        ("cached.test", "/", {"remote-user", "x-forwarded-prefix"}),
        ("cached.test", "/static/missing", {"remote-user", "x-forwarded-prefix"}),
        ("unbuffered.test", "/", {"remote-user", "x-http-method-override"}),
    ],
)
def test_no_header_that_is_for_proxies_reaches_the_app_unless_the_site_asks(
    ask, as_proxy, name, path, asked
):
    seen = set()
    # nginx takes 32 KiB of headers, and the app's library a hundred.
    for start in range(0, len(DROPPED), 80):
        forged = [
            x for name in DROPPED[start : start + 80] for x in ("--header", f"{name}: forged")
        ]
        answer = ask(name, path, *forged, *as_proxy)
        assert answer.status == 200
        seen |= {key.lower() for key, value in answer.seen["headers"] if "forged" in value}
    assert seen == asked


# A router, or the lab, sends visitors on to a port that they do not know.
@pytest.mark.parametrize("port", ["8443", "80", "65535"])
@pytest.mark.parametrize("path", ["/", "/static/missing", "/quick"])
def test_the_app_sees_the_port_by_which_visitors_come(ask, port, path):
    answer = ask(f"app.test:{port}", path)
    for header in ("Host", "X-Forwarded-Host"):
        assert answer.seen_header(header) == [f"app.test:{port}"]
    assert answer.seen_header("X-Forwarded-Port") == [port]


@pytest.mark.parametrize(
    "name", ["app.test:", "app.test:a", "app.test:1 x", "app.test:8443@evil.test", "app.test:666"]
)
def test_a_port_that_is_none_or_not_the_site_s_never_reaches_the_app(ask, name):
    answer = ask(name)
    assert answer.status in (0, 400) or answer.seen_header("Host") == ["app.test"]


def test_behind_a_proxy_the_port_follows_the_scheme_that_visitors_use(ask, as_proxy):
    answer = ask("app.test", "/", "--header", "X-Forwarded-Proto: https", *as_proxy)
    assert answer.seen_header("X-Forwarded-Port") == ["443"]
    answer = ask("app.test:8443", "/", "--header", "X-Forwarded-Proto: https", *as_proxy)
    assert answer.seen_header("X-Forwarded-Port") == ["8443"]


@pytest.mark.parametrize("path", ["/", "/static/missing", "/quick", "/other/page"])
def test_a_site_s_own_request_headers_take_nothing_away(ask, path):
    forged = ["X-Site: forged", "X-Path: forged", "Accept-Charset: x", "Remote-User: root"]
    seen = ask("app.test", path, *(x for header in forged for x in ("--header", header)))
    assert seen.seen_header("X-Site") == ['app.test "of" this']
    assert seen.seen_header("X-Path") == ["quick" if path == "/quick" else "forged"]
    assert seen.seen_header("Host") == ["other.test" if path.startswith("/other") else "app.test"]
    assert seen.seen_header("X-Forwarded-Host") == ["app.test"]
    assert seen.seen_header("X-Real-IP") == ["127.0.0.1"]
    assert not seen.seen_header("Accept-Charset")
    assert not seen.seen_header("Remote-User")


def test_a_path_of_the_app_has_a_time_limit_of_its_own(ask):
    assert ask("app.test", "/quick/page?delay=2").status == 504
    assert ask("app.test", "/?delay=2").status == 200


def test_visitors_of_another_name_are_sent_to_the_first(ask):
    answer = ask("old.app.test:8443", "/page?a=b", "--data", "x")
    assert (answer.status, answer.header("Location")) == (308, "http://app.test:8443/page?a=b")
    assert answer.header("X-Content-Type-Options") == "nosniff"


def test_other_headers_reach_the_app(ask):
    answer = ask("app.test", "/", "--header", "X-Own: kept", "--user", "me:secret")
    assert answer.seen_header("X-Own") == ["kept"]
    assert answer.seen_header("Authorization")


def test_the_request_line_decides_which_host_the_app_sees(ask):
    answer = ask("evil.test", "/", "--request-target", "http://app.test/path")
    assert (answer.seen_header("Host"), answer.seen["path"]) == (["app.test"], "/path")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
@pytest.mark.parametrize("path", ["/some/page", "/static/not-there", "/media/"])
def test_method_query_and_body_reach_the_app(ask, method, path):
    answer = ask("app.test", f"{path}?a=%20b", "--request", method, "--data", "c=d")
    seen = answer.seen
    assert (seen["method"], seen["path"], seen["body"]) == (method, f"{path}?a=%20b", "c=d")


@pytest.mark.parametrize("status", [201, 302, 404, 500, 503])
def test_the_apps_own_status_and_page_are_kept(ask, status):
    answer = ask("app.test", f"/?status={status}")
    assert (answer.status, answer.seen["method"]) == (status, "GET")


def test_a_session_cookie_of_four_kilobytes_fits(ask):
    cookie = "session=" + "x" * 4085
    answer = ask("app.test", f"/?header=Set-Cookie:{cookie}&header=Set-Cookie:more=y")
    assert (answer.status, len(answer.header("Set-Cookie"))) == (200, 4093 + len(", more=y"))


# A policy, or all the cookies of a domain.
def test_headers_of_sixteen_kilobytes_come_through_and_cookies_of_eight_go(ask):
    answer = ask("app.test", "/?policy=16384", "--header", "Cookie: " + "x" * 8192)
    assert (answer.status, len(answer.header("X-Policy"))) == (200, 16384)
    assert answer.seen_header("Cookie") == ["x" * 8192]


def test_a_pass_through_location_reaches_the_other_service(ask):
    seen = ask("app.test", "/other/page?x=1", "--data", "y").seen
    assert (seen["port"], seen["method"], seen["path"]) == (9002, "POST", "/moved/page?x=1")


def test_a_stream_reaches_the_service_behind_it(ask):
    assert ask("any", "/echo", at="127.0.0.1:6380").seen["port"] == 9002


def test_a_websocket_stays_open_in_both_directions(host):
    assert host.check_output("python3 -c %s", WEBSOCKET) == "CARAFE"


def test_how_long_nothing_may_be_said_in_a_websocket_is_the_path_s(host):
    assert host.check_output("python3 -c %s", IDLE) == "1006 CARAFE"


def test_a_stream_of_events_arrives_one_by_one_for_longer_than_the_pause_between_two_may_be(host):
    times = [float(x) for x in host.check_output("python3 -c %s", TICKS).split()]
    assert len(times) == 6
    assert times[0] < 1
    assert times[-1] > 2.4


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("app.test", "/?stream=1&header=X-Accel-Buffering:no"),
        ("unbuffered.test", "/?stream=1"),
        ("app.test", "/events?stream=1"),
    ],
)
def test_the_first_part_of_a_streamed_response_arrives_before_the_last_is_sent(host, name, path):
    assert host.check_output("python3 -c %s %s %s", STREAM, name, path) == "first\nlast"


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("unknown.test", "127.0.0.1:80"),
        ("", "127.0.0.1:80"),
        ("127.0.0.1", "127.0.0.1:80"),
        ("_", "127.0.0.1:80"),
        ("unknown.test", "127.0.0.1:8081"),
        ("", "127.0.0.1:8081"),
        ("127.0.0.1:8081", "127.0.0.1:8081"),
    ],
)
@pytest.mark.parametrize("option", ["--http1.0", "--http1.1"])
def test_a_request_for_no_site_gets_no_answer(ask, name, at, option):
    assert ask(name, "/", option, at=at).status == 0


def test_an_absolute_request_line_for_no_site_gets_no_answer(ask):
    assert ask("app.test", "/", "--request-target", "http://unknown.test/").status == 0


def test_a_site_answers_over_ipv6(host, ask):
    disabled = host.check_output("sysctl -n net.ipv6.conf.lo.disable_ipv6")
    host.check_output("sysctl -w net.ipv6.conf.lo.disable_ipv6=0")
    try:
        assert ask("app.test", at="[::1]:80").status == 200
    finally:
        host.check_output("sysctl -w net.ipv6.conf.lo.disable_ipv6=%s", disabled)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_upstream_that_is_down_costs_no_request(ask, service, eventually, method):
    eventually(lambda: len({ask("balanced.test").seen["port"] for _ in range(6)}) == 2)
    service("stop", "upstream@9002")
    try:
        answers = [ask("balanced.test", "/", "--request", method) for _ in range(12)]
        assert {(answer.status, answer.seen["port"]) for answer in answers} == {(200, 9001)}
    finally:
        service("start", "upstream@9002")


def test_an_upstream_that_is_up_again_is_used_again(ask, service, eventually):
    eventually(lambda: ask("balanced.test").seen["port"] == 9002)
    service("stop", "upstream@9001")
    assert {ask("balanced.test").seen["port"] for _ in range(12)} == {9002}
    service("start", "upstream@9001")
    eventually(lambda: ask("balanced.test").seen["port"] == 9001)


def test_an_app_that_is_down_is_a_bad_gateway_until_it_is_up(ask, service, eventually):
    service("stop", "upstream@9001")
    assert ask("app.test").status == 502
    service("start", "upstream@9001")
    eventually(lambda: ask("app.test").status == 200)
