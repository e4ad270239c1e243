"""Certificates in every shape that a peer could show: as SPIRE issues them, and as nobody should."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shardhold.identity import Svid

NOW = datetime(2030, 6, 1, tzinfo=UTC)  # leaves are valid from a minute before to an hour after
KEEPER = "spiffe://example.org/shardhold/keeper/one"
NEXUS = "spiffe://example.org/shardhold/nexus/main"


@cache
def make_key(kind: str) -> Any:
    """Return one key of each kind, made only once: RSA keys take long to make."""
    match kind:
        case "p256":
            return ec.generate_private_key(ec.SECP256R1())
        case "p384":
            return ec.generate_private_key(ec.SECP384R1())
        case "p521":
            return ec.generate_private_key(ec.SECP521R1())
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate()
        case _:
            return rsa.generate_private_key(65537, 2048)


class Authority:
    """A SPIRE-shaped certificate authority; an intermediate if another authority is given."""

    def __init__(self, above: "Authority | None" = None, *, domain: str = "example.org") -> None:
        self.key = ec.generate_private_key(ec.SECP384R1())
        self.above = above
        self.name = x509.Name(
            [
                x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "SPIFFE"),
                x509.NameAttribute(NameOID.SERIAL_NUMBER, str(x509.random_serial_number())),
            ]
        )
        signer = above or self
        builder = self._start(self.name, self.key.public_key(), signer.name, timedelta(days=30))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        builder = builder.add_extension(usage("key_cert_sign", "crl_sign"), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), False)
        if above:
            issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(above.key.public_key())
            builder = builder.add_extension(issuer, critical=False)
        san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{domain}")])
        self.certificate = builder.add_extension(san, critical=False).sign(signer.key, SHA384())

    @staticmethod
    def _start(subject: x509.Name, key: Any, issuer: x509.Name, lifetime: timedelta) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(minutes=1))
            .not_valid_after(NOW + lifetime)
        )

    def certify(
        self,
        key: CertificateIssuerPrivateKeyTypes,
        *uris: str,
        san_critical: bool = False,
        subject: x509.Name | None = None,
        key_usage: x509.KeyUsage | None = None,
        ca: bool = False,
        purposes: Sequence[x509.ObjectIdentifier] = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH),
        dns: Sequence[str] = (),
    ) -> x509.Certificate:
        """Issue a leaf; by default as SPIRE does: no CN, a subject that all leaves share, one URI SAN."""
        if subject is None:
            spire = [(NameOID.COUNTRY_NAME, "US"), (NameOID.ORGANIZATION_NAME, "SPIRE")]
            subject = x509.Name([x509.NameAttribute(oid, value) for oid, value in spire])
        names = [*map(x509.UniformResourceIdentifier, uris), *map(x509.DNSName, dns)]
        builder = (
            self._start(subject, key.public_key(), self.name, timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(key_usage or usage("digital_signature"), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if purposes:
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=san_critical)
        return builder.sign(self.key, SHA384())

    def chain(self) -> list[x509.Certificate]:
        """Intermediates from here up, without the root."""
        return [self.certificate, *self.above.chain()] if self.above else []

    def issue(self, kind: str = "p256", *uris: str, **shape: Any) -> Svid:
        """Issue an SVID, by default the keeper's, without checking that it is valid."""
        key = make_key(kind)
        uris = uris or (KEEPER,)
        leaf = self.certify(key, *uris, **shape)
        return Svid(
            spiffe_id=uris[0],
            trust_domain="example.org",
            certificates_pem=b"".join(each.public_bytes(Encoding.PEM) for each in (leaf, *self.chain())),
            key_pem=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            bundle_pem=b"",
            not_before=leaf.not_valid_before_utc,
            expires_at=leaf.not_valid_after_utc,
        )


def usage(*what: str) -> x509.KeyUsage:
    names = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement "
        "key_cert_sign crl_sign encipher_only decipher_only"
    )
    return x509.KeyUsage(**{name: name in what for name in names.split()})
