"""A proxy in front, whose word nginx takes: what it may say, and what it changes."""

import random

import pytest


@pytest.fixture
def network():
    """An IPv6 network of 64 bits that no request has come from."""
    return "2001:db8:{:x}:{:x}".format(*(random.randrange(1, 0xFFFF) for _ in range(2)))


@pytest.mark.parametrize("header", ["X-Real-IP", "X-Forwarded-For", "X-Forwarded-Proto"])
def test_the_word_of_a_proxy_counts_and_nobody_elses(ask, as_proxy, header):
    said = ["--header", "X-Forwarded-For: 6.6.6.6", "--header", "X-Forwarded-Proto: https"]
    believed, own = ("https", "http") if header.endswith("Proto") else ("6.6.6.6", "127.0.0.1")
    assert ask("app.test", "/", *said, *as_proxy).seen_header(header) == [believed]
    assert ask("app.test", "/", *said).seen_header(header) == [own]


@pytest.mark.parametrize(
    ("said", "counts"), [("9f.a_1-Z", True), ("a b", False), ("x" * 65, False)]
)
def test_a_request_has_the_id_that_the_proxy_gives_it(ask, as_proxy, said, counts):
    header = ["--header", f"X-Request-ID: {said}"]
    (seen,) = ask("app.test", "/", *header, *as_proxy).seen_header("X-Request-ID")
    (own,) = ask("app.test", "/", *header).seen_header("X-Request-ID")
    assert (seen == said) is counts
    assert own != said
    assert len(own) == 32


@pytest.mark.parametrize("path", ["/", "/?status=404"])
def test_headers_that_a_site_asks_for_come_from_the_proxy_alone(ask, as_proxy, path):
    said = ["--header", "Remote-User: ann", "--header", "X-Remote-User: ann"]
    for name in ("unbuffered.test", "cached.test"):
        answer = ask(name, path, *said, *as_proxy)
        assert answer.seen_header("Remote-User") == ["ann"]
        assert answer.seen_header("X-Remote-User") == []
        assert ask(name, path, *said).seen_header("Remote-User") == []
    assert ask("app.test", path, *said, *as_proxy).seen_header("Remote-User") == []


# An app behind TLS sends who comes by http to https. Were that kept for all, nobody would arrive.
@pytest.mark.parametrize(("first", "second"), [("http", "https"), ("https", "http")])
def test_an_answer_to_one_scheme_is_none_to_the_other(ask, unique, as_proxy, first, second):
    path = f"{unique}?header=Cache-Control:max-age=60"
    for scheme in (first, second, first):
        said = ["--header", f"X-Forwarded-Proto: {scheme}"]
        answer = ask("cached.test", path, *said, *as_proxy)
        assert answer.seen_header("X-Forwarded-Proto") == [scheme]
    assert answer.header("X-Cache-Status") == "HIT"


@pytest.fixture
def status_for(ask, as_proxy):
    """Ask the site that limits requests for somebody; return the status of the answer."""

    def status(address):
        said = ["--header", f"X-Forwarded-For: {address}"]
        return ask("limited.test", "/", *said, *as_proxy).status

    return status


def test_the_addresses_of_one_ipv6_network_count_as_one_visitor(status_for, network):
    hosts = ["::1", "::2", ":ffff:0:0:9", "::1:0"]
    assert [status_for(network + x) for x in hosts] == [200, 200, 200, 429]
    other = network[:-1] + ("1" if network[-1] != "1" else "2")
    assert status_for(f"{other}::1") == 200


def test_ipv4_addresses_count_by_themselves_also_where_they_are_written_as_ipv6(status_for):
    net = "198.{}.{}".format(*(random.randrange(1, 255) for _ in range(2)))
    mapped = f"::ffff:{net}"
    spellings = [f"{mapped}.7", f"{net}.7", f"{mapped}.7", f"{net}.7"]
    assert [status_for(x) for x in spellings] == [200, 200, 200, 429]
    assert status_for(f"{mapped}.8") == 200
