"""What somebody had configured by hand goes on beside the role's sites."""

import pytest

HAND_MADE = "/root/nginx.conf"


@pytest.fixture(autouse=True)
def _by_hand(host):
    if not host.file(HAND_MADE).exists:
        pytest.skip("nobody has configured this server's nginx before")


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("byhand.test", "mapped"),  # a file of sites-enabled with no .conf, and a map of nginx.conf
        ("more.test", "more"),  # a file of conf.d
    ],
)
def test_a_site_of_theirs_is_served(ask, name, body):
    answer = ask(name, "/")
    assert (answer.status, answer.body) == (200, body)


def test_a_site_in_nginx_conf_itself_and_its_upstream_go_on(ask):
    assert ask("inline.test", "/").status == 200
    assert ask("app.test", "/").status == 200


def test_they_write_their_log_where_they_did(ask, host, eventually):
    ask("byhand.test", "/logged")
    eventually(lambda: "GET /logged" in host.file("/srv/byhand/access.log").content_string)


def test_a_copy_of_the_file_stays(host):
    copy = host.file("/var/backups/carafe/etc/nginx/nginx.conf")
    assert copy.content == host.file(HAND_MADE).content
    assert copy.mode == 0o600


def test_what_goes_on_is_theirs_to_change(host):
    text = host.file("/etc/nginx/conf.d/adopted.conf").content_string
    assert "client_max_body_size 3m;" in text
    assert "gzip" not in text
