"""Static files, and compression."""

import pytest


@pytest.mark.parametrize(
    ("path", "kept_for"),
    [
        ("/static/app.0123abcd.css", "public, max-age=31536000, immutable"),
        ("/static/release.txt", "public, max-age=3600"),
        ("/static/report-20240131.txt", "public, max-age=3600"),
        ("/media/picture.txt", "public, max-age=3600"),
        ("/static/missing.0123abcd.css", ""),
        ("/", ""),
    ],
)
def test_a_file_is_kept_for_ever_only_when_its_name_is_a_hash(ask, path, kept_for):
    assert ask("app.test", path).header("Cache-Control") == kept_for


def test_a_missing_hashed_file_is_not_kept_where_no_app_is_asked(ask):
    answer = ask("leaflet.test", "/media/missing.0123abcd.css")
    assert (answer.status, answer.header("Cache-Control")) == (404, "")


@pytest.mark.parametrize(
    "path", ["/static/../secret.txt", "/static../secret.txt", "/media../secret.txt"]
)
def test_nothing_beside_a_static_folder_is_served(ask, path):
    assert "secret\n" not in ask("app.test", path).body


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/static/module.mjs", "text/javascript; charset=utf-8"),
        ("/static/plain.css", "text/css; charset=utf-8"),
        ("/static/release.txt", "text/plain; charset=utf-8"),
    ],
)
def test_a_file_has_the_type_that_browsers_ask_for(ask, path, kind):
    answer = ask("app.test", path)
    assert answer.header("Content-Type") == kind
    assert answer.header("X-Content-Type-Options") == "nosniff"


@pytest.mark.parametrize(
    ("accepted", "body"),
    [("", "plain"), ("gzip", "gzip"), ("gzip, deflate, br", "brotli"), ("identity", "plain")],
)
def test_a_compressed_copy_is_sent_to_who_accepts_it(ask, accepted, body):
    answer = ask("app.test", "/static/packed.css", "--header", f"Accept-Encoding: {accepted}")
    assert answer.body.strip() == body
    assert "Accept-Encoding" in answer.header("Vary")


@pytest.mark.parametrize("path", ["/static/plain.css", "/?size=2000"])
@pytest.mark.parametrize("encoding", ["gzip", "br"])
def test_what_has_no_compressed_copy_is_compressed_on_the_way(ask, path, encoding):
    # The body is no text.
    only_head = ["--output", "/dev/null", "--dump-header", "-"]
    answer = ask("app.test", path, "--header", f"Accept-Encoding: {encoding}", *only_head)
    assert answer.header("Content-Encoding") == encoding
    assert "Accept-Encoding" in answer.header("Vary")


def test_a_folder_leads_to_its_slash_on_whatever_port_the_client_uses(ask):
    answer = ask("app.test:8080", "/static/folder")
    assert (answer.status, answer.header("Location")) == (301, "/static/folder/")


# By itself, nginx would remember for a minute where the link led.
def test_a_switched_link_is_followed_within_seconds(host, ask, eventually):
    assert ask("app.test", "/static/release.txt").body == "one\n"
    try:
        host.check_output("ln -sfn two /srv/current")
        eventually(lambda: ask("app.test", "/static/release.txt").body == "two\n", seconds=30)
    finally:
        host.check_output("ln -sfn one /srv/current")
    eventually(lambda: ask("app.test", "/static/release.txt").body == "one\n", seconds=30)


@pytest.mark.parametrize(("path", "body"), [("/robots.txt", "robots\n"), ("/extra", "extra")])
def test_what_lies_at_the_root_is_served(ask, path, body):
    name, port = ("public.test", 8081) if path == "/robots.txt" else ("leaflet.test", 80)
    assert ask(name, path, at=f"127.0.0.1:{port}").body == body


@pytest.mark.parametrize("path", ["/", "/page"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_app_answers_for_what_does_not(ask, path, method):
    answer = ask("public.test", path, "--request", method, at="127.0.0.1:8081")
    assert (answer.seen["path"], answer.seen["method"]) == (path, method)


def test_a_site_with_no_app_serves_nothing_else(ask):
    assert ask("leaflet.test").status == 404
