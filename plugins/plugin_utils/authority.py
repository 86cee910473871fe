"""A private CA that lives on the control machine: what makes it, and what it signs for servers."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from ansible_collections.carafe.stack.plugins.module_utils.internal_tls import units

# ansible-core brings it; the sanity tests import this without.
with contextlib.suppress(ImportError):
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

# No timer can renew without the CA, so that a stack is to live long with nobody running site.yml.
CA_DAYS = 7300
DAYS = 1825
CERTIFICATE = re.compile(
    r"-----BEGIN CERTIFICATE-----\n.*?\n-----END CERTIFICATE-----(?:\n|$)", re.DOTALL
)
# Servers whose clock is behind take it all the same.
BEFORE = datetime.timedelta(days=1)
USES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
    *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def usage(*uses: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{use: use in uses for use in USES})


def general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def certificates(text: str) -> list[str]:
    """Return the certificates of a text in PEM, and no key that it may have besides."""
    return [f"{found.strip()}\n" for found in CERTIFICATE.findall(text)]


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


@dataclass
class Authority:
    """The CA: its certificate, and the key with which it signs."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def make(cls, days: int = CA_DAYS) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        # Told from that of any other stack, and of the one before it.
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Internal CA"),
                x509.NameAttribute(NameOID.COMMON_NAME, f"Internal CA {secrets.token_hex(4)}"),
            ]
        )
        builder = build(name, name, key.public_key(), key.public_key(), now(), days)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        builder = builder.add_extension(usage("key_cert_sign", "crl_sign"), True)
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, text: str) -> Authority:
        """Read what text() has written; ValueError says what is wrong with it."""
        found = certificates(text)
        if len(found) != 1:
            raise ValueError(f"has {len(found)} certificates in it instead of one")
        certificate = x509.load_pem_x509_certificate(found[0].encode())
        try:
            key = serialization.load_pem_private_key(
                CERTIFICATE.sub("", text).encode(), password=None
            )
        except (ValueError, TypeError):
            # Its own message may hold some of the text.
            raise ValueError("has no private key that can be read") from None
        if key.public_key() != certificate.public_key():
            raise ValueError("has a key that is not that of its certificate")
        return cls(certificate, key)

    def text(self) -> str:
        key = self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return pem(self.certificate) + key.decode()

    def sign(self, request: str, names: Iterable[str], days: int = DAYS) -> str:
        """Return a certificate for the key of a request, and for names that we say, not it."""
        asked = x509.load_pem_x509_csr(request.encode())
        if not asked.is_signature_valid:
            raise InvalidSignature("the request is not signed by its own key")
        names = list(names)
        # What it is for is said once more where HAProxy looks.
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64]),
                *(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, x) for x in units(names)),
            ]
        )
        builder = build(
            *(subject, self.certificate.subject, asked.public_key(), self.key.public_key()),
            *(now(), days, self.certificate.not_valid_after_utc),
        )
        for extension, critical in (
            (x509.SubjectAlternativeName([general_name(name) for name in names]), False),
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (usage("digital_signature"), True),
            (
                x509.ExtendedKeyUsage(
                    [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
                ),
                False,
            ),
        ):
            builder = builder.add_extension(extension, critical)
        return pem(builder.sign(self.key, hashes.SHA256()))


def build(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePublicKey,
    start: datetime.datetime,
    days: int,
    until: datetime.datetime | None = None,
) -> x509.CertificateBuilder:
    """Return what all of these certificates have; none lives longer than who signs it."""
    end = start + datetime.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - BEFORE)
        .not_valid_after(min(end, until or end))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), False)
    )
