"""Sites and paths that only some may see."""

import pytest

SECRET = 'it\'s "§ecret":$1 \\'


@pytest.mark.parametrize("path", ["/", "/static/release.txt", "/static/missing", "/healthz/more"])
def test_a_guarded_site_is_for_those_who_know_a_password(ask, path):
    for user in (f"ann:{SECRET}", "bob:another"):
        assert ask("guarded.test", path, "--user", user).status == 200
    for options in ([], ["--user", "ann:another"], ["--user", "bob:"], ["--user", f"eve:{SECRET}"]):
        answer = ask("guarded.test", path, *options)
        assert answer.status == 401
        assert answer.header("WWW-Authenticate") == 'Basic realm="guarded"'
        assert answer.header("X-Content-Type-Options") == "nosniff"


def test_a_path_of_it_is_open_to_a_monitor(ask):
    assert ask("guarded.test", "/healthz").status == 200


def test_a_path_of_an_open_site_is_guarded_by_an_htpasswd_file_of_one_s_own(ask):
    assert ask("app.test", "/guarded/x").status == 401
    assert ask("app.test", "/guarded/x", "--user", "ann:secret").status == 200
    assert ask("app.test", "/").status == 200


def test_passwords_lie_on_the_server_as_hashes_that_nginx_alone_reads(host):
    file = host.file("/etc/nginx/sites-enabled/guarded.htpasswd")
    assert (file.user, file.group, file.mode) == ("root", "www-data", 0o640)
    assert "ann:$6$" in file.content_string
    assert "bob:$6$" in file.content_string
    assert "ecret" not in file.content_string
