"""A proxy in front, whose word nginx takes: what it may say, and what it changes."""

import random

import pytest

PROXY = "127.0.0.1"


@pytest.fixture(scope="module")
def proxy(apply):
    """Let 127.0.0.1 be a proxy."""
    assert apply(nginx_real_ip_from=[PROXY])[0] is not None
    yield
    assert apply()[0] is not None


@pytest.fixture
def network():
    """An IPv6 network of 64 bits that no request has come from."""
    return "2001:db8:{:x}:{:x}".format(*(random.randrange(1, 0xFFFF) for _ in range(2)))


def test_the_word_of_who_is_no_proxy_counts_for_nothing(ask, proxy):
    forged = ["--header", "X-Forwarded-For: 6.6.6.6", "--header", "X-Forwarded-Proto: https"]
    seen = ask("app.test", "/", *forged, "--interface", "127.0.0.2")
    assert (seen.seen_header("X-Real-IP"), seen.seen_header("X-Forwarded-Proto")) == (
        ["127.0.0.2"],
        ["http"],
    )
    seen = ask("app.test", "/", *forged)
    assert (seen.seen_header("X-Real-IP"), seen.seen_header("X-Forwarded-Proto")) == (
        ["6.6.6.6"],
        ["https"],
    )


def test_headers_that_a_site_asks_for_come_from_the_proxy_alone(ask, proxy):
    said = ["--header", "Remote-User: ann", "--header", "X-Remote-User: ann"]
    assert ask("unbuffered.test", "/", *said).seen_header("Remote-User") == ["ann"]
    assert ask("unbuffered.test", "/", *said).seen_header("X-Remote-User") == []
    stranger = ask("unbuffered.test", "/", *said, "--interface", "127.0.0.2")
    assert stranger.seen_header("Remote-User") == []
    assert ask("app.test", "/", *said).seen_header("Remote-User") == []


# An app behind TLS sends who comes by http to https. Were that kept for all, nobody would arrive.
@pytest.mark.parametrize(("first", "second"), [("http", "https"), ("https", "http")])
def test_an_answer_to_one_scheme_is_none_to_the_other(ask, unique, proxy, first, second):
    path = f"{unique}?header=Cache-Control:max-age=60"
    for scheme in (first, second, first):
        answer = ask("cached.test", path, "--header", f"X-Forwarded-Proto: {scheme}")
        assert answer.seen_header("X-Forwarded-Proto") == [scheme]
    assert answer.header("X-Cache-Status") == "HIT"


def from_address(ask, address):
    return ask("limited.test", "/", "--header", f"X-Forwarded-For: {address}").status


def test_the_addresses_of_one_ipv6_network_count_as_one_visitor(ask, proxy, network):
    hosts = ["::1", "::2", ":ffff:0:0:9", "::1:0"]
    assert [from_address(ask, network + x) for x in hosts] == [200, 200, 200, 429]
    other = network[:-1] + ("1" if network[-1] != "1" else "2")
    assert from_address(ask, f"{other}::1") == 200


def test_ipv4_addresses_count_by_themselves_also_where_they_are_written_as_ipv6(ask, proxy):
    net = "198.{}.{}".format(*(random.randrange(1, 255) for _ in range(2)))
    mapped = f"::ffff:{net}"
    spellings = [f"{mapped}.7", f"{net}.7", f"{mapped}.7", f"{net}.7"]
    assert [from_address(ask, x) for x in spellings] == [200, 200, 200, 429]
    assert from_address(ask, f"{mapped}.8") == 200
