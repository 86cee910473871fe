"""Limits of requests, connections and bodies, site by site."""

BUSY = """
import http.client, sys
name = "narrow.test"
slow = http.client.HTTPConnection("127.0.0.1", timeout=20)
slow.request("GET", "/?stream=1&header=X-Accel-Buffering:no", headers={"Host": name})
answer = slow.getresponse()
answer.readline()
def status(name, path):
    other = http.client.HTTPConnection("127.0.0.1", timeout=20)
    other.request("GET", path, headers={"Host": name})
    return other.getresponse().status
print(status(name, "/"))
print(status("app.test", "/go"))
answer.read()
slow.close()
print(status(name, "/"))
"""

OVERLOAD = """
import http.client
def ask(path):
    connection = http.client.HTTPConnection("127.0.0.1", timeout=20)
    connection.request("GET", path, headers={"Host": "busy.test"})
    return connection, connection.getresponse()
slow = [ask("/?stream=1&header=X-Accel-Buffering:no") for _ in range(2)]
for _, answer in slow:
    answer.readline()
_, refused = ask("/")
print(refused.status, refused.headers["Retry-After"], refused.headers["X-Content-Type-Options"])
other = http.client.HTTPConnection("127.0.0.1", timeout=20)
other.request("GET", "/go", headers={"Host": "app.test"})
other.getresponse().read()
for _, answer in slow:
    answer.read()
print(ask("/")[1].status)
"""


def test_requests_over_the_rate_get_429(ask, visitor):
    assert [ask("limited.test", "/", *visitor).status for _ in range(4)] == [200, 200, 200, 429]


def test_static_files_do_not_count_as_requests(ask, visitor):
    statuses = {ask("limited.test", "/static/release.txt", *visitor).status for _ in range(6)}
    assert statuses == {200}
    assert ask("limited.test", "/", *visitor).status == 200


def test_missing_static_files_count_as_requests(ask, visitor):
    assert ask("limited.test", "/static/x", *visitor).status == 200
    assert [ask("limited.test", "/", *visitor).status for _ in range(3)] == [200, 200, 429]


def test_the_rate_of_one_site_is_not_that_of_another(ask, visitor):
    assert {ask("app.test", "/", *visitor).status for _ in range(6)} == {200}


def test_requests_in_progress_over_the_limit_get_429(host):
    assert host.check_output("python3 -c %s", BUSY).split() == ["429", "200", "200"]


def test_where_all_sites_have_an_error_page_of_their_own_none_of_ours_ends_it(host, ask):
    assert host.check_output("python3 -c %s", OVERLOAD).splitlines()[0].startswith("502 None")
    assert "<h1>413" in ask("limited.test", "/", "--data", "x" * 1025).body


def test_an_app_that_is_down_is_no_busy_one(ask):
    answer = ask("down.test", "/")
    assert answer.status == 502
    assert answer.header("Retry-After") == ""


def test_a_body_over_the_sites_limit_gets_413(ask, visitor):
    assert ask("limited.test", "/", *visitor, "--data", "x" * 1025).status == 413
    assert ask("limited.test", "/", *visitor, "--data", "x" * 1024).status == 200
    assert ask("app.test", "/", "--data", "x" * 1025).status == 200
