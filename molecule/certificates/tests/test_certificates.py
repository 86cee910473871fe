"""Certificates of each source, ordered from a real ACME directory where that is one."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from testinfra.backend.base import CommandResult
from testinfra.host import Host

FOLDER = "/var/lib/certificates"
NAMES = {
    "site": {"site.test", "www.site.test"},
    "internal": {"internal.test", "*.internal.test", "10.0.0.5"},
    "own": {"own.test"},
}
SITE = {"name": "site", "names": ["site.test", "www.site.test"]}


def names(host: Host, name: str) -> set[str]:
    text = host.check_output(f"openssl x509 -in {FOLDER}/{name}.pem -noout -ext subjectAltName")
    return set(re.findall(r"(?:DNS|IP Address):([^,\s]+)", text))


def fingerprint(host: Host, name: str = "site") -> str:
    return host.check_output(f"openssl x509 -in {FOLDER}/{name}.pem -noout -fingerprint -sha256")


def issuer(host: Host, name: str = "site") -> str:
    return host.check_output(f"openssl x509 -in {FOLDER}/{name}.pem -noout -issuer")


def served(host: Host) -> str:
    """Return the fingerprint of what the web server shows."""
    return host.check_output(
        "openssl s_client -connect 127.0.0.1:443 -servername site.test </dev/null 2>/dev/null"
        " | openssl x509 -noout -fingerprint -sha256"
    )


def nginx_workers(host: Host) -> set[str]:
    return set(host.check_output("pgrep -P $(cat /run/nginx.pid)").split())


def renew(host: Host) -> CommandResult:
    """Let the timer's service run now."""
    return host.run("systemctl start certificates.service")


@pytest.mark.parametrize("name", NAMES)
def test_certificate_has_its_names_and_its_key(host: Host, name: str) -> None:
    assert names(host, name) == NAMES[name]
    path = f"{FOLDER}/{name}.pem"
    public = host.check_output(f"openssl x509 -in {path} -noout -pubkey")
    assert host.check_output(f"openssl pkey -in {path} -pubout") == public


def test_only_root_reads_what_certbot_logs(host: Host) -> None:
    folder = "/var/log/certificates"
    assert host.check_output(f"ls {folder}")
    assert int(host.check_output(f"stat -c %a {folder}"), 8) & 0o027 == 0
    assert host.check_output(f"find {folder} -type f -perm /037") == ""


@pytest.mark.parametrize("path", ["site.pem", "internal.pem", "own.pem", "ca.key"])
def test_only_root_reads_a_key(host: Host, path: str) -> None:
    assert host.run(f"runuser -u www-data -- cat {FOLDER}/{path}").rc != 0
    assert host.run(f"cat {FOLDER}/{path}").rc == 0


def test_directory_has_signed_what_it_was_asked_for(host: Host) -> None:
    assert "Pebble Intermediate CA" in issuer(host)


def test_web_server_shows_the_issued_one_and_not_the_stand_in(host: Host) -> None:
    assert served(host) == fingerprint(host)


def test_root_of_the_private_ca_is_downloaded_and_vouches(host: Host) -> None:
    hostname = host.check_output("hostname")
    root = Path(os.environ["MOLECULE_INSTANCE_CONFIG"]).parent / f"{hostname}-ca.crt"
    assert root.read_text().strip() == host.check_output(f"cat {FOLDER}/ca.crt")
    verified = host.run(
        f"openssl verify -x509_strict -purpose sslserver -verify_hostname a.internal.test"
        f" -CAfile {FOLDER}/ca.crt {FOLDER}/internal.pem"
    )
    assert verified.rc == 0, verified.stderr


def test_timer_waits_for_its_time(host: Host) -> None:
    assert host.service("certificates.timer").is_running
    assert host.service("certificates.timer").is_enabled


def test_timer_leaves_alone_what_is_not_due(host: Host) -> None:
    before, workers = fingerprint(host), nginx_workers(host)
    assert renew(host).rc == 0
    assert (fingerprint(host), nginx_workers(host)) == (before, workers)


@pytest.fixture
def old(host: Host) -> None:
    """Give site and internal certificates of 61 days, of which one is left."""
    for name in ("site", "internal"):
        signer = f"-CA {FOLDER}/ca.crt -CAkey {FOLDER}/ca.key" if name == "internal" else ""
        alternative = ",".join(f"DNS:{x}" if "test" in x else f"IP:{x}" for x in NAMES[name])
        host.check_output(
            "cd /root && faketime -f -60d openssl req -x509 -newkey rsa:2048 -nodes -keyout old.key"
            f" -out old.crt {signer} -subj /CN={name} -days 61 -addext subjectAltName={alternative}"
            f" && cat old.crt old.key >{FOLDER}/{name}.pem"
        )
    host.check_output("systemctl reload nginx")


def test_what_runs_out_is_renewed_by_the_timer_and_loaded(
    host: Host, eventually: Callable[..., None], old: None
) -> None:
    before = {name: fingerprint(host, name) for name in NAMES}
    assert renew(host).rc == 0
    after = {name: fingerprint(host, name) for name in NAMES}
    assert {name for name in NAMES if before[name] != after[name]} == {"site", "internal"}
    eventually(lambda: served(host) == after["site"])


def test_a_dry_run_says_what_is_due_and_orders_nothing(
    host: Host, converge: Callable[..., tuple[int, str]], old: None
) -> None:
    before = fingerprint(host)
    changed, output = converge("--check", "--diff")
    # The playbook prepares twice, and in a dry run both find the same.
    assert changed == 3, output
    assert fingerprint(host) == before
    assert converge()[0] == 2
    assert fingerprint(host) != before


def test_added_name_is_ordered_and_loaded_without_a_restart(
    host: Host, converge: Callable[..., tuple[int, str]], eventually: Callable[..., None]
) -> None:
    pid = host.check_output("cat /run/nginx.pid")
    try:
        more = SITE | {"names": [*SITE["names"], "more.site.test"]}
        changed, output = converge(certificates_wanted=[more])
        assert changed == 2, output  # what the timer is to renew, and the order
        assert names(host, "site") == set(more["names"])
        eventually(lambda: served(host) == fingerprint(host))
        assert converge(certificates_wanted=[more])[0] == 0
    finally:
        assert converge()[0] == 2
    assert names(host, "site") == NAMES["site"]
    assert host.check_output("cat /run/nginx.pid") == pid


def test_account_that_the_directory_has_deactivated_is_replaced(host: Host, old: None) -> None:
    before = host.check_output(f"find {FOLDER}/acme/accounts -name regr.json -exec cat {{}} +")
    # By certbot, on a copy: what is here does not know of it.
    host.check_output(
        f"rm -rf /root/copy && cp -a {FOLDER}/acme /root/copy && REQUESTS_CA_BUNDLE=/etc/pebble.crt"
        " certbot unregister --non-interactive --server https://localhost:14000/dir"
        " --config-dir /root/copy --work-dir /root/copy/work --logs-dir /root/copy/logs"
    )
    run = renew(host)
    assert run.rc == 0, host.check_output("journalctl -u certificates -n 20 -o cat")
    assert "Pebble Intermediate CA" in issuer(host)
    after = host.check_output(f"find {FOLDER}/acme/accounts -name regr.json -exec cat {{}} +")
    assert after != before


def test_directory_that_has_forgotten_all_is_no_obstacle(
    host: Host, eventually: Callable[..., None], old: None
) -> None:
    host.check_output("systemctl restart pebble")
    directory = "curl -sS --cacert /etc/pebble.crt https://localhost:14000/dir"
    eventually(lambda: host.run(directory).rc == 0)
    assert renew(host).rc == 0, host.check_output("journalctl -u certificates -n 20 -o cat")
    assert "Pebble Intermediate CA" in issuer(host)


def hosts(host: Host, address: str, name: str) -> None:
    """Let a name point to an address. Docker has mounted the file, so it is not replaced."""
    host.check_output(
        f"sed '/ {name}$/d' /etc/hosts >/root/hosts && echo '{address} {name}' >>/root/hosts"
        " && cat /root/hosts >/etc/hosts"
    )


def test_name_that_points_elsewhere_is_told_and_not_tried_again_at_once(
    host: Host, converge: Callable[..., tuple[int, str]]
) -> None:
    # From an earlier verify, if there was one.
    host.check_output(f"rm -f {FOLDER}/attempts.json {FOLDER}/elsewhere.pem {FOLDER}/nowhere.pem")
    before = fingerprint(host)
    wanted = [
        {"name": "elsewhere", "names": ["elsewhere.test"]},
        {"name": "nowhere", "names": ["nowhere.invalid"]},
        SITE,
    ]
    try:
        changed, output = converge(certificates_wanted=wanted)
        output = " ".join(output.split())
        assert changed == -1
        assert "elsewhere.test points to 192.0.2.1, and port 80 of 192.0.2.1 gave" in output
        assert "there is no address for nowhere.invalid" in output
        assert fingerprint(host) == before

        again = " ".join(converge(certificates_wanted=wanted)[1].split())
        assert "the next is due at" in again
        assert "-e certificates_retry=true" in again
        # The timer waits without a word.
        assert renew(host).rc == 0

        hosts(host, "127.0.0.1", "elsewhere.test")
        assert converge(certificates_wanted=[wanted[0]])[0] == -1
        changed, output = converge(certificates_wanted=[wanted[0]], certificates_retry=True)
        assert changed == 1, output
        assert names(host, "elsewhere") == {"elsewhere.test"}
    finally:
        hosts(host, "192.0.2.1", "elsewhere.test")
        converge()


OWN = "{{ lookup('ansible.builtin.env', 'MOLECULE_EPHEMERAL_DIRECTORY') }}/own"


def test_key_of_another_certificate_is_refused_and_not_shown(
    host: Host, converge: Callable[..., tuple[int, str]]
) -> None:
    before = fingerprint(host, "own")
    other = (
        Path(os.environ["MOLECULE_INSTANCE_CONFIG"]).parent / f"{host.check_output('hostname')}.key"
    )
    other.write_text(host.check_output("openssl genrsa 2048 2>/dev/null"))
    pair = {"certificate_file": f"{OWN}.crt", "key_file": str(other)}
    changed, output = converge(
        "-vvv",
        "--diff",
        certificates_wanted=[{"name": "own", "source": "files", "names": ["own.test"]} | pair],
    )
    assert changed == -1
    assert "the files of own do not go together" in " ".join(output.split())
    assert "PRIVATE KEY" not in output
    assert fingerprint(host, "own") == before
    assert converge()[0] == 1
