"""A site with a certificate: who gets in, by which protocols, and what its answers say."""

import pytest
from testinfra.host import Host

CURL = "curl -sS --cacert /etc/ssl/hostile.crt --resolve hostile.test:443:127.0.0.1"
URL = "https://hostile.test"


def handshake(host: Host, *options: str, name: str = "hostile.test") -> str:
    """Return what openssl says of a handshake."""
    client = f"openssl s_client -connect 127.0.0.1:443 -servername {name} {' '.join(options)}"
    return host.run(f"echo | {client} 2>&1").stdout


@pytest.mark.parametrize(
    ("option", "accepted"),
    [
        ("-tls1_3", True),
        ("-tls1_2", True),
        ("-tls1_1 -cipher DEFAULT@SECLEVEL=0", False),
        ("-tls1_2 -cipher AES128-GCM-SHA256", False),  # with no forward secrecy
        ("-tls1_2 -cipher ECDHE-ECDSA-AES128-SHA256@SECLEVEL=0", False),  # CBC
    ],
)
def test_only_what_mozilla_recommends_is_spoken(host: Host, option: str, accepted: bool) -> None:
    said = handshake(host, option)
    assert ("BEGIN CERTIFICATE" in said) is accepted, said


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_session_is_resumed(host: Host, version: str) -> None:
    session = f"/root/session{version}"
    # -quiet goes on until nginx has answered and closes the connection.
    request = r"printf 'HEAD / HTTP/1.0\r\nHost: hostile.test\r\n\r\n'"
    client = "openssl s_client -connect 127.0.0.1:443 -servername hostile.test -quiet"
    host.check_output(f"{request} | {client} {version} -sess_out {session}")
    assert "Reused, TLS" in handshake(host, version, f"-sess_in {session}")


def test_unknown_name_is_refused_in_the_handshake(host: Host) -> None:
    said = handshake(host, name="elsewhere.test")
    assert "unrecognized name" in said
    assert "BEGIN CERTIFICATE" not in said


def test_an_address_is_sent_to_the_name_that_the_certificate_is_for(host: Host) -> None:
    head = host.check_output("curl -sS -o /dev/null -D - 'http://127.0.0.3:8082/a?b=c'")
    assert "Location: https://hostile.test/a?b=c" in head
    assert host.run("curl -sS --insecure https://127.0.0.3/").rc == 35


@pytest.mark.parametrize(("name", "ends"), [("127.0.0.4", {0}), ("127.0.0.5", {52, 56})])
def test_an_address_has_a_certificate_where_that_is_said(
    host: Host, name: str, ends: set[int]
) -> None:
    # The connection is closed, or reset, for an address of no site.
    assert host.run(f"curl -sS --insecure --http1.1 https://{name}:8444/").rc in ends


def test_http_2_is_spoken(host: Host) -> None:
    version = f"{CURL} -o /dev/null -w '%{{http_version}}' {URL}/static/release.txt"
    assert host.check_output(version) == "2"


@pytest.mark.parametrize("path", ["/static/release.txt", "/static/missing.css", "/", "/%zz"])
def test_every_answer_has_the_headers_of_the_site(host: Host, path: str) -> None:
    head = host.check_output(f"{CURL} -o /dev/null -D - {URL}{path}").lower().splitlines()
    assert [x for x in head if x.startswith("strict-transport-security")] == [
        "strict-transport-security: max-age=31536000"
    ]
    assert "content-security-policy: default-src 'self'" in head
    assert "x-content-type-options: nosniff" in head
    # Left out by an empty value.
    assert not [x for x in head if x.startswith("x-frame-options")]


def test_plain_port_sends_to_tls(host: Host) -> None:
    head = host.check_output(
        "curl -sS -o /dev/null -D - --request POST -H 'Host: hostile.test' 'http://127.0.0.1:8082/a?b=c'"
    )
    assert "308" in head.splitlines()[0]
    assert "Location: https://hostile.test/a?b=c" in head


def test_a_younger_certificate_is_loaded_by_the_next_run(host: Host, apply) -> None:
    def serial() -> str:
        return host.check_output(
            "echo | openssl s_client -connect 127.0.0.1:443 -servername hostile.test 2>/dev/null"
            " | openssl x509 -noout -serial"
        )

    before = serial()
    host.check_output(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
        " -subj /CN=hostile.test -addext subjectAltName=DNS:hostile.test -days 2"
        " -keyout /etc/ssl/hostile.key -out /etc/ssl/hostile.crt"
        " && cat /etc/ssl/hostile.crt /etc/ssl/hostile.key >/etc/ssl/hostile.pem"
    )
    assert serial() == before
    assert apply()[0] == 1
    assert serial() != before
