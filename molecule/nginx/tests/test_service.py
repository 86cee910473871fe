"""What nginx survives, and what never becomes its configuration."""

from pathlib import Path

import pytest
import yaml

(PLAY,) = yaml.safe_load((Path(__file__).parents[1] / "converge.yml").read_text())
STREAMS = PLAY["vars"]["nginx_streams"]
SITES = "/etc/nginx/sites-enabled"
BAD = {"name": "bad", "server_names": ["bad.test"], "extra": "no_such on;"}


def test_what_is_kept_by_other_hands_is_served_and_what_is_absent_is_gone(host, ask):
    assert ask("stranger.test").body == "stranger"
    assert ask("gone.test").status == 0
    assert not host.file(f"{SITES}/gone.stream").exists
    assert not host.file("/var/lib/nginx/cache-gone").exists


def test_nginx_has_nothing_to_say_about_its_configuration(host):
    assert host.run("nginx -t -q").stderr == ""


@pytest.mark.parametrize(
    ("variables", "file", "message"),
    [
        (
            {"nginx_sites": [BAD]},
            "bad.conf",
            'unknown directive "no_such"',
        ),
        ({"nginx_sites": [], "nginx_extra_http": "no_such on;"}, "", 'unknown directive "no_such"'),
    ],
    ids=["site", "nginx.conf"],
)
def test_a_broken_file_never_lands(host, ask, apply, variables, file, message, service, eventually):
    changed, output = apply(**variables)
    assert changed is None
    assert message in " ".join(output.replace('\\"', '"').split())
    assert not file or not host.file(f"{SITES}/{file}").exists
    assert ask("app.test").status == 200
    service("restart", "nginx")
    eventually(lambda: ask("app.test").status == 200)


def test_a_port_that_another_service_has_on_another_address_is_free(host, ask, apply):
    address = host.check_output("hostname -I").split()[0]
    stream = {"name": "beside", "listen": f"{address}:9001", "upstreams": ["127.0.0.1:9001"]}
    try:
        assert apply(nginx_streams=[*STREAMS, stream])[0] == 2
        assert ask("any", at=f"{address}:9001").seen["port"] == 9001
    finally:
        # It is not listed any more.
        assert apply()[0] == 2
    assert not host.file(f"{SITES}/beside.stream").exists


def test_two_owners_share_nginx_and_each_has_sites_of_its_own(host, ask, apply, eventually):
    site = {"name": "theirs", "server_names": ["theirs.test"], "upstreams": ["127.0.0.1:9001"]}
    blog = {"nginx_owner": "blog", "nginx_streams": []}
    try:
        assert apply(**blog, nginx_sites=[site])[0] == 2
        eventually(lambda: ask("theirs.test").status == 200)
        assert ask("app.test").status == 200
        # What the one has set on the server, the other does not undo.
        assert apply()[0] == 0
        changed, output = apply(**blog, nginx_sites=[site | {"server_names": ["app.test"]}])
        assert changed is None
        told = " ".join(output.split())
        assert all(x in told for x in ("both serve app.test", "blog", "default")), told
    finally:
        assert apply(**blog, nginx_sites=[])[0] == 2
    eventually(lambda: ask("theirs.test").status == 0)
    assert ask("app.test").status == 200
    host.check_output("rm /etc/carafe/nginx.d/blog.json")


def test_a_file_broken_by_hand_is_not_loaded_and_the_next_run_says_why(host, ask, apply):
    host.check_output("echo 'no_such on;' >%s", f"{SITES}/hand.conf")
    try:
        assert host.run("systemctl reload nginx").rc != 0
        assert ask("app.test").status == 200
        changed, output = apply()
        assert changed is None
        assert 'unknown directive "no_such"' in " ".join(output.replace('\\"', '"').split())
    finally:
        host.check_output("rm %s", f"{SITES}/hand.conf")
    assert ask("app.test").status == 200


# nginx -t takes any port in use for nginx's own.
def test_a_reload_that_nginx_refuses_after_its_test_fails(host, ask):
    site = "server { listen 127.0.0.1:9001; return 200; }"
    host.check_output("echo %s >%s", site, f"{SITES}/hand.conf")
    try:
        assert host.run("nginx -t").rc == 0
        assert host.run("systemctl reload nginx").rc != 0
        assert ask("app.test").status == 200
    finally:
        host.check_output("rm %s", f"{SITES}/hand.conf")
    host.check_output("systemctl reload nginx")


# For a tenth of a second after a reload, the old workers accept connections too.
def test_a_run_makes_up_for_a_reload_that_was_lost(host, ask, apply, eventually):
    host.check_output("mv %s/app.conf /root/", SITES)
    try:
        host.check_output("systemctl reload nginx")
        eventually(lambda: ask("app.test").status == 0)
    finally:
        # As a run leaves it that was cut short between the file and the reload.
        host.check_output("cp /root/app.conf %s/", SITES)
    assert apply()[0] == 1
    eventually(lambda: ask("app.test").status == 200)


def test_a_killed_master_is_replaced_and_its_workers_go_with_it(host, ask, eventually):
    old = host.check_output("cat /run/nginx.pid")
    host.check_output("kill -9 %s", old)
    eventually(lambda: host.run("cat /run/nginx.pid").stdout.strip() not in ("", old))
    eventually(lambda: ask("app.test").status == 200)
    new = host.check_output("cat /run/nginx.pid")
    parents = {process.ppid for process in host.process.filter(comm="nginx", user="www-data")}
    assert parents == {int(new)}


def test_a_killed_worker_is_replaced(host, ask, eventually):
    old = host.process.filter(comm="nginx", user="www-data")[0].pid
    host.check_output("kill -9 %s", str(old))

    def is_replaced():
        workers = [process.pid for process in host.process.filter(comm="nginx", user="www-data")]
        return old not in workers and ask("app.test").status == 200

    eventually(is_replaced)


def test_a_rotated_log_is_written_anew(host, ask, unique, eventually):
    ask("app.test")
    eventually(lambda: host.file("/var/log/nginx/access.log").size > 0)
    host.check_output("logrotate --force /etc/logrotate.d/nginx")
    ask("app.test", unique)
    eventually(lambda: host.file("/var/log/nginx/access.log").contains(unique))


def test_who_asks_for_no_site_is_in_the_log(host, ask, unique, eventually):
    ask("unknown.test", unique)
    eventually(lambda: host.file("/var/log/nginx/access.log").contains(unique))


def test_every_site_is_back_after_a_restart_of_the_server(restart_server, ask, eventually):
    restart_server()
    eventually(lambda: ask("app.test").status == 200)
    assert ask("any", "/echo", at="127.0.0.1:6380").status == 200
    assert ask("app.test", "/static/release.txt").body == "one\n"
