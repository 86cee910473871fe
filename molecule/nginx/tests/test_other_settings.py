"""The same sites by another run of the role: behind a balancer, with other passwords.

The balancer begins each connection with who has made it. And no site has an error_page of its own.
"""

import json
import random

import pytest
from test_limits import OVERLOAD

BALANCER = "127.0.0.9"
# One request, after what a balancer says; prints the status, 0 where no answer comes, and the body.
CLIENT = r"""
import http.client, json, socket, ssl, struct, sys
wish = json.loads(sys.argv[1])
def v2(command, family, body):
    head = b"\r\n\r\n\0\r\nQUIT\n" + bytes([0x20 | command, family])
    return head + struct.pack("!H", len(body)) + body
def addresses(kind, *both):
    return b"".join(socket.inet_pton(kind, x) for x in both) + struct.pack("!HH", 5, 80)
def v4(more=b""):
    return v2(1, 0x11, addresses(socket.AF_INET, visitor, "192.0.2.1") + more)
visitor = wish["visitor"]
said = {
    "": lambda: b"",
    "v1": lambda: f"PROXY TCP4 {visitor} 192.0.2.1 5 80\r\n".encode(),
    "v1 of six": lambda: f"PROXY TCP6 {visitor} 2001:db8::1 5 80\r\n".encode(),
    "v1 unknown": lambda: b"PROXY UNKNOWN\r\n",
    "v1 of nobody": lambda: b"PROXY TCP4 192.0.2.256 192.0.2.1 5 80\r\n",
    "v1 broken": lambda: b"PROXY TCP4\r\n",
    "v2": lambda: v4(),
    "v2 of six": lambda: v2(1, 0x21, addresses(socket.AF_INET6, visitor, "2001:db8::1")),
    "v2 with more": lambda: v4(b"\4\0\1a"),
    "v2 of its own": lambda: v2(0, 0, b""),
}[wish["said"]]()
connection = http.client.HTTPConnection(wish["name"], timeout=10)
try:
    connection.sock = socket.create_connection((wish["at"], wish["port"]), 10, (wish["source"], 0))
    connection.sock.sendall(said)
    if wish["port"] == 8444:
        context = ssl._create_unverified_context()
        connection.sock = context.wrap_socket(connection.sock, server_hostname=wish["name"])
    connection.request("GET", wish["path"], headers=wish["headers"])
    answer = connection.getresponse()
    print(json.dumps([answer.status, answer.read().decode()]))
except (OSError, http.client.HTTPException):
    print(json.dumps([0, ""]))
"""


@pytest.fixture(scope="module")
def address(host):
    """The server's own, at which it asks for a header."""
    return host.check_output("hostname --ip-address").split()[0]


@pytest.fixture(scope="module", autouse=True)
def behind(host, converge):
    """Run it; return what it has printed."""
    changed, output = converge(
        "--diff",
        nginx_real_ip_from=[],
        nginx_proxy_protocol_from=[BALANCER],
        nginx_sources=[BALANCER],
        nginx_extra_http="",
        nginx_challenge_root="/srv/challenges",
        # Nobody, itself, and one that has what this one has not.
        nginx_challenge_peers=["127.0.0.1:9", "127.0.0.1:80", "127.0.0.1:8090"],
        nginx_htpasswd={"guarded": {"ann": "f0r-eyes-only"}, "app": "ann:$1$0$unknown"},
    )
    assert changed > 0, output
    host.check_output(
        "mkdir -p /srv/challenges/.well-known/acme-challenge"
        " && echo signed >/srv/challenges/.well-known/acme-challenge/token"
    )
    yield output
    assert converge()[0] > 0


@pytest.fixture
def asked(host, address):
    """Ask as a balancer does; return the status, 0 where no answer comes, and what the app saw."""

    def ask(
        said, visitor, name="app.test", path="/", source=BALANCER, at=address, port=80, **headers
    ):
        wish = {"said": said, "visitor": visitor, "name": name, "path": path, "source": source}
        wish |= {"at": at, "port": port, "headers": headers}
        status, body = json.loads(host.check_output("python3 -c %s %s", CLIENT, json.dumps(wish)))
        return status, dict(json.loads(body)["headers"]) if status == 200 else {}

    return ask


@pytest.fixture
def visitor():
    """An address that nobody has come from."""
    return "198.51.{}.{}".format(*(random.randrange(1, 255) for _ in range(2)))


@pytest.mark.parametrize("said", ["v1", "v2", "v2 with more"])
@pytest.mark.parametrize(("name", "port"), [("app.test", 80), ("bare.test", 8444)])
def test_the_app_sees_the_visitor_that_the_balancer_names(asked, visitor, said, name, port):
    status, seen = asked(said, visitor, name, port=port)
    assert status == 200
    assert seen["X-Real-IP"] == seen["X-Forwarded-For"] == visitor


def test_the_log_by_which_bans_go_sees_the_visitor_too(host, asked, visitor, eventually):
    assert asked("v1", visitor)[0] == 200
    eventually(lambda: f"{visitor} - - [" in host.file("/var/log/nginx/access.log").content_string)


@pytest.mark.parametrize("said", ["v1 of six", "v2 of six"])
def test_a_visitor_can_have_an_address_of_six(asked, said):
    assert asked(said, "2001:db8:7::9")[1]["X-Real-IP"] == "2001:db8:7::9"


@pytest.mark.parametrize("said", ["v1 unknown", "v1 of nobody", "v2 of its own"])
def test_what_names_no_visitor_comes_from_the_balancer(asked, visitor, said):
    assert asked(said, visitor)[1]["X-Real-IP"] == BALANCER


@pytest.mark.parametrize("said", ["", "v1 broken"])
@pytest.mark.parametrize(("name", "port"), [("app.test", 80), ("bare.test", 8444)])
def test_a_connection_that_does_not_say_whose_it_is_gets_no_answer(
    asked, visitor, said, name, port
):
    assert asked(said, visitor, name, port=port)[0] in (0, 400)


def test_nobody_else_is_believed_and_who_walks_around_the_balancer_gets_no_answer(
    asked, visitor, address
):
    # Such as a program on the server.
    assert asked("v1", visitor, source="127.0.0.8")[1]["X-Real-IP"] == "127.0.0.8"
    assert asked("v1", visitor, source=address)[0] == 0


def test_what_a_visitor_says_of_himself_behind_the_balancer_counts_for_nothing(asked, visitor):
    forged = {"X-Forwarded-For": "6.6.6.6", "X-Real-IP": "6.6.6.6", "X-Forwarded-Proto": "https"}
    seen = asked("v1", visitor, **forged)[1]
    assert seen["X-Forwarded-For"] == seen["X-Real-IP"] == visitor
    assert seen["X-Forwarded-Proto"] == "http"


def test_limits_count_visitors_and_not_the_balancer(asked, visitor):
    statuses = [asked("v1", visitor, "limited.test")[0] for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    assert asked("v2", "203.0.113.9", "limited.test")[0] == 200


def test_the_server_itself_asks_as_ever(ask):
    assert ask("app.test").seen_header("X-Real-IP") == ["127.0.0.1"]


def test_what_is_too_much_for_the_app_is_refused_at_once_and_the_rest_answered(host):
    assert host.check_output("python3 -c %s", OVERLOAD).splitlines() == ["503 1 nosniff", "200"]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("name", "path", "size", "limit"),
    [
        ("limited.test", "/", 1025, "1 KB"),
        ("limited.test", "/films/a", 1536 * 1024 + 1, "1.5 MB"),
        ("limited.test", "/static/x", 1025, "1 KB"),
        ("app.test", "/uploads/x", 10 * 1024**2 + 1, "10 MB"),
        ("guarded.test", "/", 10 * 1024**2 + 1, "10 MB"),
    ],
)
def test_what_is_too_large_gets_a_page_that_says_the_limit(
    host, ask, visitor, name, path, size, limit, chunked
):
    host.check_output("head -c %s /dev/zero >/tmp/upload", str(size))
    chunks = ["--header", "Transfer-Encoding: chunked"] if chunked else []
    # curl waits for a word before it sends so much, where a browser does not.
    body = ["--header", "Expect:", "--data-binary", "@/tmp/upload"]
    nobody_else = ["--interface", visitor.replace("198", "127")]
    answer = ask(name, path, *body, *chunks, *nobody_else, "--user", "ann:f0r-eyes-only")
    assert answer.status == 413
    assert f"more than {limit}," in answer.body
    assert answer.header("Content-Type") == "text/html; charset=utf-8"
    assert answer.header("X-Content-Type-Options") == "nosniff"
    assert answer.header("Connection") == "close"


def test_what_signs_certificates_asks_for_no_password(ask):
    answer = ask("guarded.test", "/.well-known/acme-challenge/token")
    assert (answer.status, answer.body) == (200, "signed\n")


@pytest.fixture
def peer(host):
    """Another server, with a challenge; what it has been asked for is in its log."""
    folder = "/srv/peer/.well-known/acme-challenge"
    host.check_output(f"mkdir -p {folder} && echo signed there >{folder}/another")
    serve = "python3 -m http.server --bind 127.0.0.1 --directory /srv/peer 8090"
    host.check_output(f"systemd-run --quiet --collect --unit=peer {serve}")
    host.check_output("timeout 20 sh -c 'until ss -Hltn | grep -q :8090; do sleep 0.1; done'")
    yield lambda: host.check_output("journalctl --unit=peer --output=cat")
    host.check_output("systemctl stop peer && rm -r /srv/peer")


def test_a_challenge_that_is_another_server_s_is_asked_of_it_and_nothing_else_is(ask, peer):
    place = "/.well-known/acme-challenge"
    for site in ("guarded.test", "app.test"):
        answer = ask(site, f"{place}/another")
        assert (answer.status, answer.body) == (200, "signed there\n")
    assert ask("app.test", f"{place}/nobodys").status == 404
    # Whom another server asks, asks no further.
    assert ask("app.test", f"{place}/another", "--header", "X-Challenge-Asked: 1").status == 404
    for path in (f"{place}/../../secret", f"{place}/%2e%2e/%2e%2e/secret", "/secret"):
        ask("guarded.test", path, "--path-as-is")
    said = peer()
    assert "nobodys" in said
    assert "secret" not in said
    assert said.count("/another ") == 2


def test_a_changed_password_is_shown_to_nobody_and_one_that_is_gone_opens_nothing(ask, behind):
    assert "guarded.htpasswd" in behind
    assert "f0r-eyes-only" not in behind
    assert "$6$" not in behind
    assert ask("guarded.test", "/", "--user", "ann:f0r-eyes-only").status == 200
    assert ask("guarded.test", "/", "--user", "bob:another").status == 401
    assert ask("app.test", "/guarded", "--user", "ann:secret").status == 401
