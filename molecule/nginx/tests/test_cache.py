"""The cache of dynamic responses: what it keeps, and what it never keeps."""

import pytest

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
