"""What servers know each other by: who signs it, for which names, and who never gets which key."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.loader import action_loader
from ansible_collections.carafe.stack.plugins.module_utils import internal_tls
from ansible_collections.carafe.stack.plugins.module_utils.commands import Failure
from ansible_collections.carafe.stack.plugins.modules import internal_tls as module
from ansible_collections.carafe.stack.plugins.plugin_utils import authority as authorities
from ansible_collections.carafe.stack.plugins.plugin_utils.authority import Authority, certificates
from conftest import ROLES, ROOT, Role
from cryptography import x509
from inventories import SECRETS, Looked

NAMES = ["data", "10.0.0.10", "db.shop.internal"]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make()


@pytest.fixture(scope="module")
def another() -> Authority:
    return Authority.make()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a server has all of it, for the owner of these tests."""
    monkeypatch.setattr(internal_tls, "FOLDER", tmp_path / "internal-tls")
    return tmp_path / "internal-tls/shop"


@pytest.fixture
def server() -> Callable[..., dict[str, Any]]:
    """One trip to the server."""

    def trip(check: bool = False, **given: Any) -> dict[str, Any]:
        arguments = {"owner": "shop", "group": "root", "names": NAMES, "certificate": None}
        return module.keep(arguments | given, check)

    return trip


@pytest.fixture
def run(server: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """The action, whose module runs here; what each trip was given is in ``sent``."""
    sent: list[dict[str, Any]] = []

    def act(authority: Authority | str, check: bool = False, **given: Any) -> dict[str, Any]:
        text = authority if isinstance(authority, str) else authority.text()
        task = SimpleNamespace(
            args={"owner": "shop", "names": NAMES, "ca_key": text, **given},
            async_val=0,
            check_mode=check,
            environment=None,
        )
        action = action_loader.get(
            "carafe.stack.internal_tls",
            task=task,
            connection=SimpleNamespace(_shell=SimpleNamespace(tmpdir="")),
            play_context=None,
            loader=None,
            templar=None,
            shared_loader_obj=None,
        )

        def execute(module_args: dict[str, Any], **_: Any) -> dict[str, Any]:
            sent.append(module_args)
            return server(check, **module_args)

        action._execute_module = execute
        return action.run()

    act.sent = sent
    return act


def test_a_ca_is_read_as_it_was_written(authority: Authority) -> None:
    assert Authority.load(authority.text()).text() == authority.text()
    # As a lookup of a file, or a vault, may have it.
    assert Authority.load(f"\n{authority.text().strip()}").text() == authority.text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (lambda a, b: "", "0 certificates"),
        (lambda a, b: "hush-hush", "0 certificates"),
        (lambda a, b: authorities.pem(a.certificate), "no private key"),
        (lambda a, b: a.text() + b.text(), "2 certificates"),
        (lambda a, b: authorities.pem(a.certificate) + b.text().split("\n-----END CERT")[1], "key"),
        (lambda a, b: authorities.pem(a.certificate) + only_key(b), "not that of its certificate"),
        (lambda a, b: authorities.pem(a.certificate) + only_key(a)[:-40], "no private key"),
    ],
)
def test_what_is_no_ca_is_refused_and_not_shown(
    authority: Authority, another: Authority, text: Callable[..., str], said: str
) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        Authority.load(text(authority, another))
    assert "hush" not in str(raised.value)
    assert only_key(authority).split()[4][:20] not in str(raised.value)


def only_key(authority: Authority) -> str:
    return authorities.CERTIFICATE.sub("", authority.text())


def shake_hands(folder: Path, trusted: str, host: str, client_trusts: str = "") -> None:
    """Let a server with what lies in a folder, and a client that has the same, meet."""
    (folder / "trusted").write_text(client_trusts or trusted)
    (folder / "known").write_text(trusted)
    contexts = {}
    for side, file, purpose in (
        ("client", "trusted", ssl.PROTOCOL_TLS_CLIENT),
        ("server", "known", ssl.PROTOCOL_TLS_SERVER),
    ):
        context = contexts[side] = ssl.SSLContext(purpose)
        context.load_verify_locations(folder / file)
        context.load_cert_chain(folder / "server.pem")
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = contexts["client"].wrap_bio(to_client, to_server, server_hostname=host)
    server = contexts["server"].wrap_bio(to_server, to_client, server_side=True)
    done: set[Any] = set()
    for side in [client, server] * 4:
        try:
            side.do_handshake()
            done.add(side)
        except ssl.SSLWantReadError:
            continue
    assert done == {client, server}


def test_servers_meet_by_what_the_ca_has_signed(
    run: Callable[..., dict[str, Any]], authority: Authority, another: Authority, folder: Path
) -> None:
    done = run(authority)
    assert done["changed"]
    trusted = (folder / "ca.pem").read_text()
    for host in NAMES:
        shake_hands(folder, trusted, host)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(folder, trusted, "web.shop.internal")
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        shake_hands(folder, trusted, "data", authorities.pem(another.certificate))


def test_a_run_with_nothing_to_do_is_one_trip(
    run: Callable[..., dict[str, Any]], authority: Authority, folder: Path
) -> None:
    first = run(authority)
    assert first["changes"] == [
        "make a key",
        "have a certificate signed: there is none",
        f"write {folder}/ca.pem",
        f"write {folder}/server.pem",
    ]
    assert len(run.sent) == 2
    assert not run(authority)["changed"]
    assert len(run.sent) == 3


def test_no_key_travels(
    run: Callable[..., dict[str, Any]], authority: Authority, another: Authority, folder: Path
) -> None:
    done = run(authority, trusted=[another.text(), authority.text()])
    assert "PRIVATE" not in str(run.sent)
    assert "PRIVATE" not in str(done)
    assert (folder / "ca.pem").read_text() == "".join(
        authorities.pem(x.certificate) for x in (authority, another)
    )


@pytest.mark.parametrize(("name", "mode"), [("key", 0o600), ("server", 0o640), ("ca", 0o644)])
def test_others_read_no_key(
    run: Callable[..., dict[str, Any]], authority: Authority, folder: Path, name: str, mode: int
) -> None:
    run(authority)
    file = folder / f"{name}.pem"
    assert file.stat().st_mode & 0o777 == mode
    file.chmod(0o666)
    assert name == "key" or run(authority)["changed"]
    assert name == "key" or file.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"names": [*NAMES, "app.shop.internal"]}, "its names are others"),
        ({"names": ["data", "10.0.0.11"]}, "its names are others"),
        ({"authority": "another"}, "the CA is another"),
    ],
)
def test_another_certificate_is_signed_for_the_same_key(
    run: Callable[..., dict[str, Any]],
    authority: Authority,
    another: Authority,
    folder: Path,
    given: dict[str, Any],
    why: str,
) -> None:
    run(authority)
    key, pair = (folder / "key.pem").read_text(), (folder / "server.pem").read_text()
    given = dict(given)
    signer = another if given.pop("authority", None) else authority
    done = run(signer, **given)
    assert f"have a certificate signed: {why}" in done["changes"]
    assert (folder / "key.pem").read_text() == key
    assert (folder / "server.pem").read_text() != pair
    assert not run(signer, **given)["changed"]


def test_whoever_looks_at_the_certificate_alone_sees_that_another_ca_is_trusted(
    run: Callable[..., dict[str, Any]],
    server: Callable[..., dict[str, Any]],
    authority: Authority,
    another: Authority,
    folder: Path,
) -> None:
    """As Patroni does, which reads both anew then. Both come at once, or a later run signs."""
    run(authority)
    before = [(folder / x).read_text() for x in ("ca.pem", "server.pem", "key.pem")]
    both = [authorities.pem(x.certificate) for x in (authority, another)]
    cut = server(authority=both[0], trusted=both)
    assert "request" in cut
    assert [(folder / x).read_text() for x in ("ca.pem", "server.pem", "key.pem")] == before
    dry = run(authority, check=True, trusted=[another.text()])
    assert f"write {folder}/ca.pem" in dry["changes"]
    done = run(authority, trusted=[another.text()])
    assert "have a certificate signed: whom it trusts has changed" in done["changes"]
    after = [(folder / x).read_text() for x in ("ca.pem", "server.pem", "key.pem")]
    assert after[0] == "".join(both)
    assert after[1] != before[1]
    assert after[2] == before[2]
    assert not run(authority, trusted=[another.text()])["changed"]


@pytest.mark.parametrize("file", ["key.pem", "server.pem"])
def test_what_is_broken_is_made_anew(
    run: Callable[..., dict[str, Any]], authority: Authority, folder: Path, file: str
) -> None:
    run(authority)
    (folder / "server.pem").write_text("\n")
    (folder / file).write_text("")
    assert run(authority)["changed"]
    shake_hands(folder, (folder / "ca.pem").read_text(), "data")


@pytest.mark.parametrize(("days", "due"), [(1300, True), (1150, False)])
def test_a_certificate_is_renewed_in_the_last_third_of_its_life(
    run: Callable[..., dict[str, Any]],
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    days: int,
    due: bool,
) -> None:
    then = authorities.now() - datetime.timedelta(days=days)
    with monkeypatch.context() as patch:
        patch.setattr(authorities, "now", lambda: then)
        old = Authority.make()
        run(old)
    assert run(old)["changed"] is due
    assert not run(old)["changed"]


def test_nothing_outlives_its_ca(run: Callable[..., dict[str, Any]], folder: Path) -> None:
    short = Authority.make(days=400)
    run(short)
    (text,) = certificates((folder / "server.pem").read_text())
    signed = x509.load_pem_x509_certificate(text.encode())
    assert signed.not_valid_after_utc == short.certificate.not_valid_after_utc


def test_what_was_signed_with_no_word_of_what_it_is_for_is_signed_again(
    run: Callable[..., dict[str, Any]], authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HAProxy knows a web server by that word."""
    with monkeypatch.context() as patch:
        patch.setattr(authorities, "units", lambda names: [])
        run(authority)
    assert run(authority)["changes"][0].endswith("its names are others")
    assert not run(authority)["changed"]


def test_names_are_those_of_the_playbook_and_not_of_the_request(authority: Authority) -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding

    wanted = x509.SubjectAlternativeName([x509.DNSName("web.shop.internal")])
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(wanted, False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    )
    text = authority.sign(request.public_bytes(Encoding.PEM).decode(), ["data"])
    signed = x509.load_pem_x509_certificate(text.encode())
    names = signed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["data"]
    assert not signed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_dry_run_makes_nothing(
    run: Callable[..., dict[str, Any]], authority: Authority, folder: Path
) -> None:
    done = run(authority, check=True)
    assert done["changed"]
    assert done["changes"][-1] == "have a certificate signed: there is none"
    assert not folder.exists()
    run(authority)
    assert not run(authority, check=True)["changed"]
    before = (folder / "server.pem").read_text()
    assert run(authority, check=True, names=["other"])["changed"]
    assert (folder / "server.pem").read_text() == before


def test_a_certificate_for_another_key_is_not_taken(
    run: Callable[..., dict[str, Any]], server: Callable[..., Any], authority: Authority
) -> None:
    run(authority)
    (own,) = certificates(authorities.pem(authority.certificate))
    foreign = {"authority": own, "trusted": [own], "names": ["other"], "certificate": own}
    with pytest.raises(Failure, match="not for this server's key"):
        server(**foreign)


def test_a_ca_that_is_none_is_told_of_in_one_sentence(run: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(AnsibleActionFail, match=r"internal_tls_ca_key has 0 certificates") as said:
        run("hush-hush")
    assert "hush" not in str(said.value)


HOSTS = {name: {"private_address": f"10.0.0.{i}"} for i, name in enumerate(["data", "one"], 10)}
STACK = {
    "prod": {"hosts": HOSTS, "vars": {"ansible_group_priority": 10}},
    "guestbook": {"children": {"prod": {}}},
    "db": {"hosts": {"data": {}}},
    "app": {"hosts": {"one": {}}},
    "web": {"hosts": {"one": {}}},
}


@pytest.fixture
def stack(tmp_path: Path) -> Callable[..., Looked]:
    """What the preflight makes of two servers, one of which is the database."""

    def look(limit: str | None = None, **variables: Any) -> Looked:
        place = tmp_path / "inventory/prod"
        (place / "group_vars/prod").mkdir(parents=True)
        (place / "group_vars/guestbook").symlink_to(ROOT / "group_vars/guestbook")
        (place / "hosts.yml").write_text(yaml.safe_dump(STACK))
        values = {"app_domains": ["example.com"], **variables}
        (place / "group_vars/prod/main.yml").write_text(yaml.safe_dump(values))
        return Looked(place, limit=limit)

    return look


def test_each_server_of_several_has_the_role_and_the_names(stack: Callable[..., Looked]) -> None:
    looked = stack(**SECRETS)
    assert looked.said == ""
    roles = looked.value("stack_host_roles")
    assert roles.count("internal_tls") == 1
    assert looked.value("internal_tls_names") == ["data", "10.0.0.10", "db.guestbook.internal"]
    assert looked.value("internal_tls_group") == "postgres"


@pytest.mark.parametrize("old", ["", "as it was"])
def test_the_key_of_the_ca_is_no_argument_of_any_role(
    stack: Callable[..., Looked], old: str
) -> None:
    """Whatever else the vault has goes to the app's servers, which tell by it what is secret."""
    former = {"vault_internal_ca_old": Authority.make().text()} if old else {}
    looked = stack(**SECRETS, **former)
    for name in (name for role in ROLES for name in Role(role).options):
        if name not in ("internal_tls_ca_key", "internal_tls_trusted"):
            with contextlib.suppress(AnsibleError):
                assert "PRIVATE KEY" not in str(looked.value(name)), name
    assert "hush-hush" in looked.value("app_secrets")


def test_no_password_goes_to_a_server_that_proves_nothing(stack: Callable[..., Looked]) -> None:
    looked = stack(**SECRETS)
    ends = "sslmode=verify-full&sslrootcert=/etc/internal-tls/guestbook/ca.pem"
    for url in ("stack_database_url", "stack_database_migrate_url"):
        assert looked.value(url).endswith(f"@10.0.0.10/guestbook?{ends}")


@pytest.mark.parametrize(("tls", "word"), [(True, "verify-full"), (False, "require")])
def test_sqlalchemy_s_asyncpg_gets_the_words_that_it_takes(
    stack: Callable[..., Looked], tls: bool, word: str
) -> None:
    looked = stack(**SECRETS, stack_database="postgresql+asyncpg", stack_internal_tls=tls)
    environment = looked.value("app_default_environment")
    assert environment["DATABASE_URL"].endswith(f"@10.0.0.10/guestbook?ssl={word}")
    ca = "/etc/internal-tls/guestbook/ca.pem" if tls else None
    assert environment.get("PGSSLROOTCERT") == ca


def test_without_a_ca_the_password_is_proved_and_not_sent(stack: Callable[..., Looked]) -> None:
    secrets = {k: v for k, v in SECRETS.items() if "internal" not in k}
    looked = stack(**secrets, stack_internal_tls=False)
    assert looked.said == ""
    assert looked.value("stack_database_url").endswith("?sslmode=require&channel_binding=require")
    assert "internal_tls" not in looked.value("stack_host_roles")


def test_several_servers_without_a_ca_are_told_to_make_one(stack: Callable[..., Looked]) -> None:
    said = stack(**{k: v for k, v in SECRETS.items() if "internal" not in k}).said
    assert "vault_internal_ca_key is not set, and internal_tls_ca_key needs it" in said
    assert "playbooks/vault.yml" in said


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (lambda: "hush-hush", "has 0 certificates in it"),
        # Its last day is over when a second has gone by.
        (lambda: Authority.make(days=500).text(), "holds a CA that ends in (499|500) days"),
    ],
)
def test_a_ca_that_cannot_sign_is_refused_beforehand(
    stack: Callable[..., Looked], text: Callable[[], str], what: str
) -> None:
    said = stack(**SECRETS | {"vault_internal_ca_key": text()}).said
    assert re.search(f"internal_tls_ca_key {what}", said), said
    assert "hush-hush;" not in said


@pytest.mark.parametrize(
    ("encrypted", "upstream", "socket", "asks"),
    [
        (True, "10.0.0.11:8443", "unix:///run/guestbook.sock", "app.guestbook.internal"),
        (False, "10.0.0.11:8000", "tcp://10.0.0.11:8000", None),
    ],
)
def test_nginx_asks_the_app_over_tls_unless_told(
    stack: Callable[..., Looked], encrypted: bool, upstream: str, socket: str, asks: str | None
) -> None:
    looked = stack("one", **SECRETS, stack_internal_tls=encrypted)
    assert looked.said == ""
    (site,) = looked.value("nginx_default_sites")
    assert site["upstreams"] == [upstream]
    assert site["upstreams_tls"].get("name") == asks
    assert looked.value("gunicorn_socket") == socket
    assert [x["listen"] for x in looked.value("internal_tls_tunnels")] == [upstream][:encrypted]
    (rule,) = looked.value("stack_firewall_app")
    assert rule["ports"] == [upstream.partition(":")[2]]


TUNNEL = {
    "name": "shop",
    "listen": "10.0.0.11:8443",
    "connect": "unix:///run/shop.sock",
    "clients": ["web.shop.internal", "other.web"],
}


def test_who_is_let_in_is_known_by_a_whole_name(authority: Authority) -> None:
    text = Role("internal_tls").render("haproxy.cfg.j2", internal_tls_tunnels=[TUNNEL])
    assert "server it unix@/run/shop.sock check" in text
    (pattern,) = re.findall(r"ssl_c_s_dn -m reg (\S+) }", text)
    for names, let_in in (
        (["front", "10.0.0.2", "web.shop.internal"], True),
        (["front", "app.shop.internal", "other.web"], True),
        (["web.shop.internal"], False),
        (["front", "web.shop.internal.example", "a-web.shop.internal", "webxshop.internal"], False),
        (["front", "db.shop.internal"], False),
    ):
        assert bool(re.search(pattern, subject(authority, names))) is let_in


def subject(authority: Authority, names: list[str]) -> str:
    """Return the subject of a certificate for these names, as HAProxy writes it."""
    request = internal_tls.openssl(
        *("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-keyout", "/dev/null", "-subj", "/CN=x"),
    )
    signed = x509.load_pem_x509_certificate(authority.sign(request, names).encode())
    short = {"commonName": "CN", "organizationalUnitName": "OU"}
    return "".join(f"/{short[x.oid._name]}={x.value}" for x in signed.subject)


class Units:
    """What systemd would do, and whether the service runs."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.state = {"ActiveState": "inactive", "UnitFileState": "", "NeedDaemonReload": "no"}

    def act(self, unit: str, verbs: Iterable[str]) -> None:
        self.did += [f"{verb} {unit}" for verb in verbs]
        self.state |= {"ActiveState": "active", "UnitFileState": "enabled"}
        (internal_tls.RUN / "internal-tls-shop.loaded").touch()


@pytest.fixture
def units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Units:
    found = Units()
    monkeypatch.setattr(internal_tls, "UNITS", tmp_path)
    monkeypatch.setattr(internal_tls, "RUN", tmp_path)
    monkeypatch.setattr(internal_tls, "quiet_package", lambda: found.did.append("quiet"))
    monkeypatch.setattr(module.services, "state", lambda unit: found.state)
    monkeypatch.setattr(module.services, "act", found.act)
    monkeypatch.setattr(module, "run", lambda *words: found.did.append(" ".join(words[1:])))
    (internal_tls.FOLDER / "shop").mkdir(parents=True)
    (internal_tls.FOLDER / "shop/ca.pem").touch()
    return found


SERVED = {"owner": "shop", "program": "a", "unit": "b"}
NAME = "internal-tls-shop.service"


def test_a_tunnel_runs_and_loads_what_is_new(units: Units, folder: Path) -> None:
    # With no server.pem, so that there is nothing to check it by.
    (folder / "server.pem").unlink(missing_ok=True)
    first = module.serve(SERVED, False)
    assert first["changes"][-2:] == [f"enable {NAME}", f"start {NAME}"]
    assert units.did[0] == "quiet"
    (folder / "server.pem").touch()
    os.utime(folder / "server.pem", (2, 2))
    loaded = internal_tls.RUN / "internal-tls-shop.loaded"
    assert not module.serve(SERVED, True)["changed"]
    os.utime(loaded, (1, 1))
    units.did.clear()
    assert module.serve(SERVED, False)["changes"] == [f"reload {NAME}"]
    assert units.did == [f"daemon-reload {NAME}", f"reload {NAME}"]
    assert not module.serve(SERVED, False)["changed"]


def test_a_dry_run_starts_no_tunnel(units: Units, folder: Path) -> None:
    assert module.serve(SERVED, True)["changed"]
    assert units.did == []
    assert not (folder / "haproxy.cfg").exists()


def test_a_tunnel_that_is_not_wanted_is_stopped(units: Units, folder: Path) -> None:
    module.serve(SERVED, False)
    units.did.clear()
    gone = SERVED | {"program": "", "unit": ""}
    assert module.serve(gone, True)["changed"]
    assert units.did == []
    assert module.serve(gone, False)["changed"]
    assert units.did == [f"disable --now {NAME}", "daemon-reload"]
    assert not (folder / "haproxy.cfg").exists()
    assert not module.serve(gone, False)["changed"]


@pytest.mark.parametrize("tls", [{"name": "x"}, {"name": "x", "trusted": "a", "certificate": ""}])
def test_a_site_with_half_of_what_tls_takes_is_refused(
    stack: Callable[..., Looked], tls: dict[str, str]
) -> None:
    other = {"name": "other", "server_names": ["x.test"], "certificate": "", "upstreams_tls": tls}
    said = stack("one", **SECRETS, nginx_sites=[other]).said
    assert "has upstreams_tls of 'other' with " in said
    assert "it is to have certificate, name, trusted" in said


def test_a_tunnel_for_nobody_is_refused(stack: Callable[..., Looked]) -> None:
    said = stack("one", **SECRETS, internal_tls_tunnels=[TUNNEL | {"clients": []}]).said
    assert "internal_tls_tunnels has the service 'shop' for no clients" in said
