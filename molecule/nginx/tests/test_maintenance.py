"""The maintenance page: playbooks/maintenance.yml, run as an operator runs it, over ssh."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from testinfra.host import Host

SCENARIO = Path(__file__).parents[1]
PLAYBOOK = SCENARIO.parents[1] / "playbooks/maintenance.yml"
(PLAY,) = yaml.safe_load((SCENARIO / "converge.yml").read_text())
SITES = PLAY["vars"]["nginx_sites"]
IPV6 = "2001:db8:0:0:1::7"
# Each of nginx's workers remembers for two seconds that a file was there; by default, for sixty.
SECONDS = 30


@pytest.fixture(scope="module")
def switch(host: Host) -> Callable[..., tuple[int | None, str]]:
    """Switch maintenance on this server; return the number of changes, None for a failed run."""

    def run(state: str | None, *options: str, **variables) -> tuple[int | None, str]:
        variables = {
            # What the playbook's own variables make of an app that is not here.
            "app_name": "app",
            "nginx_owner": "default",
            "nginx_default_sites": [],
            "nginx_sites": SITES,
            "nginx_maintenance_sites": ["app"],
        } | variables
        process = subprocess.run(
            [
                "ansible-playbook",
                *("--inventory", Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent),
                *("--limit", host.check_output("hostname")),
                *("--extra-vars", json.dumps(variables)),
                *(["--extra-vars", f"state={state}"] if state else []),
                *options,
                PLAYBOOK,
            ],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"},
        )
        changed = process.stdout.rpartition("changed=")[2].split()[:1]
        # Ansible folds long messages.
        output = " ".join((process.stdout + process.stderr).split())
        return (None if process.returncode else int(changed[0])), output

    return run


def pids(host: Host) -> set[int]:
    # The cache loader ends by itself, a minute after a start.
    processes = host.process.filter(comm="nginx")
    return {process.pid for process in processes if "cache loader" not in process.args}


@pytest.fixture(scope="module")
def own_address(host: Host) -> str:
    """The server's address in the containers' network, from which it asks itself."""
    return host.check_output("hostname -I").split()[0]


@pytest.fixture(scope="module")
def maintained(host, switch, own_address):
    """The sites app, limited and public in maintenance; gives the processes of nginx before it."""
    before = pids(host)
    sites = {"nginx_maintenance_sites": ["app", "limited", "public"]}
    changed, output = switch("on", **sites, nginx_maintenance_allow=[own_address, IPV6.upper()])
    assert changed == 1, output
    yield before
    assert switch("off", **sites)[0] is not None


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", ["/", "/page?status=200", "/static/missing.css", "/other/page"])
def test_every_request_gets_the_page_and_when_to_come_again(ask, maintained, method, path):
    option = ["--head"] if method == "HEAD" else ["--request", method]
    answer = ask("app.test", path, *option)
    assert (answer.status, answer.header("Retry-After")) == (503, "300")
    assert answer.header("Cache-Control") == "no-store"
    assert answer.header("Content-Type") == "text/html; charset=utf-8"
    assert ("Down for maintenance" in answer.body) is (method != "HEAD")


@pytest.mark.parametrize(("size", "status"), [(1024, 503), (1025, 413)])
def test_an_upload_gets_the_page_unless_it_is_too_large_anyway(ask, host, maintained, size, status):
    host.check_output("head -c %s /dev/zero >/tmp/upload", str(size))
    assert ask("limited.test", "/", "--data-binary", "@/tmp/upload").status == status


def test_static_files_are_served_as_ever(ask, maintained):
    assert ask("app.test", "/static/release.txt").body == "one\n"
    assert ask("app.test", "/static/release.txt", "--data", "x").status == 503


def test_a_path_that_is_to_answer_all_the_same_does(ask, maintained):
    assert ask("app.test", "/quick").status == 200


def test_a_websocket_gets_the_page_too(ask, maintained):
    upgrade = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
    headers = [word for header in upgrade for word in ("--header", header)]
    assert "Down for maintenance" in ask("app.test", "/websocket/", *headers).body


@pytest.mark.parametrize("name", ["www.app.test", "public.test"])
def test_each_name_and_port_of_the_site_is_covered(ask, maintained, name):
    port = 8081 if name == "public.test" else 80
    assert ask(name, "/robots.txt", at=f"127.0.0.1:{port}").status == 503


def test_who_is_let_in_sees_the_site(ask, maintained, own_address):
    at = f"{own_address}:80"
    assert ask("app.test", "/page?status=200", at=at).status == 200
    assert ask("app.test", "/other/page", "--data", "x", at=at).seen["path"] == "/moved/page"
    # Whoever claims to come from there is not.
    forged = ["--header", f"X-Forwarded-For: {own_address}"]
    assert ask("app.test", "/", *forged).status == 503


def test_who_is_let_in_by_ipv6_sees_the_site(host, ask, maintained):
    disabled = host.check_output("sysctl -n net.ipv6.conf.lo.disable_ipv6")
    host.check_output("sysctl -w net.ipv6.conf.lo.disable_ipv6=0")
    host.check_output("ip address replace %s/128 dev lo", IPV6)
    try:
        for source, status in ((IPV6, 200), ("::1", 503)):
            answer = ask("app.test", "/", "--interface", source, at=f"[{IPV6}]:80")
            assert answer.status == status
    finally:
        host.check_output("ip address delete %s/128 dev lo", IPV6)
        host.check_output("sysctl -w net.ipv6.conf.lo.disable_ipv6=%s", disabled)


def test_the_address_of_the_operators_ssh_is_let_in(site, maintained):
    assert site("/", host="app.test").status_code == 200


@pytest.mark.parametrize("name", ["balanced.test", "cached.test", "leaflet.test"])
def test_no_other_site_of_the_server_is_touched(ask, maintained, name):
    path = "/media/picture.txt" if name == "leaflet.test" else "/"
    assert ask(name, path).status == 200


def test_another_503_is_not_taken_for_maintenance(ask, maintained, own_address):
    own = ask("app.test", "/?status=503", at=f"{own_address}:80")
    assert (own.status, own.seen["port"], own.header("Retry-After")) == (503, 9001, "")
    assert "503 Service Temporarily Unavailable" in ask("leaflet.test", "/own-503").body


def test_an_error_page_of_all_sites_is_kept(ask):
    answer = ask("leaflet.test", "/own-410")
    assert (answer.status, answer.body) == (410, "extra")


def test_a_second_run_changes_nothing_and_a_dry_run_only_says_what_it_would(
    ask, switch, maintained
):
    assert switch("on")[0] == 0
    changed, output = switch("off", "--check", "--diff")
    assert changed == 1, output
    assert ask("app.test").status == 503


def test_a_run_of_the_role_neither_ends_it_nor_reloads(ask, host, apply, maintained):
    assert apply()[0] == 0
    assert ask("app.test").status == 503
    assert pids(host) == maintained


def test_off_is_as_it_was_before_and_nginx_has_not_been_reloaded(
    host, ask, switch, maintained, eventually
):
    assert switch("off")[0] == 1
    assert switch("off")[0] == 0
    eventually(lambda: ask("app.test").status == 200, SECONDS)
    answer = ask("app.test", "/other/page")
    assert (answer.status, answer.header("X-Maintenance")) == (200, "")
    assert ask("limited.test").status == 503
    assert not host.file("/var/lib/nginx/maintenance-app").exists
    assert pids(host) == maintained
    assert host.run("nginx -t -q").stderr == ""


def test_a_dry_run_on_a_site_in_service_only_says_what_it_would_do(host, ask, switch):
    changed, output = switch("on", "--check", "--diff", nginx_maintenance_sites=["unbuffered"])
    assert changed == 1, output
    assert not host.file("/var/lib/nginx/maintenance-unbuffered").exists
    assert ask("unbuffered.test").status == 200


def test_a_page_of_ones_own_of_any_size_is_shown(ask, switch, tmp_path, eventually):
    text = "<p>Zurück um 12&nbsp;Uhr: it's $5 \\ {{ }}</p>" + "x" * 100_000
    page = tmp_path / "own.html"
    page.write_text(text)
    site = {"nginx_maintenance_sites": ["leaflet"]}
    try:
        assert switch("on", **site, nginx_maintenance_page=str(page))[0] == 1
        assert ask("leaflet.test", "/", "--request", "POST").body == text
    finally:
        assert switch("off", **site)[0] == 1
    eventually(lambda: ask("leaflet.test").status == 404, SECONDS)


def test_without_a_state_it_says_what_to_add_and_does_nothing(host, switch):
    changed, output = switch(None, nginx_maintenance_sites=[])
    assert changed is None
    assert "Add -e state=on or -e state=off" in output
    assert not host.file("/var/lib/nginx/maintenance-app").exists


def test_nginx_that_does_not_answer_as_asked_is_an_error(host, ask, switch, service, eventually):
    service("stop", "nginx")
    try:
        changed, output = switch("on")
        assert changed is None
        assert "does not answer so for app. Does it run" in output
    finally:
        service("start", "nginx")
        assert switch("off")[0] == 1
    eventually(lambda: ask("app.test").status == 200, SECONDS)


def test_a_site_that_is_removed_takes_its_maintenance_along(host, apply, switch):
    late = {"name": "late", "server_names": ["late.test"], "upstreams": ["127.0.0.1:9001"]}
    assert apply(nginx_sites=[*SITES, late])[0] == 2
    assert switch("on", nginx_sites=[late], nginx_maintenance_sites=[])[0] == 1
    assert apply()[0] == 2
    assert not host.file("/var/lib/nginx/maintenance-late").exists
