"""Certificates in every shape that a peer could show: as SPIRE issues them, and as nobody should."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes, PublicKeyTypes
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shardhold.identity import Svid

NOW = datetime(2030, 6, 1, tzinfo=UTC)  # for authorities whose certificates are of no use to a real process
KEEPER = "spiffe://example.org/shardhold/keeper/one"
NEXUS = "spiffe://example.org/shardhold/nexus/main"
# From and until when a leaf is valid.
USUAL = (timedelta(minutes=-1), timedelta(hours=1))
EXPIRED = (timedelta(hours=-2), timedelta(hours=-1))
NOT_YET = (timedelta(hours=1), timedelta(hours=2))
LIFETIME = timedelta(days=30)


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
    """A SPIRE-shaped certificate authority of *trust_domain*; with *above* one below another, of the same domain.

    Dates count from *at*, or from the time of the machine without it. All roots have the same name.
    """

    def __init__(
        self, trust_domain: str = "example.org", *, above: "Authority | None" = None, at: datetime | None = None
    ) -> None:
        self.trust_domain: str = above.trust_domain if above else trust_domain
        self.key = ec.generate_private_key(ec.SECP384R1())
        self.above = above
        self._at: datetime | None = above._at if above else at
        spiffe = [(NameOID.COUNTRY_NAME, "US"), (NameOID.ORGANIZATION_NAME, "SPIFFE")]
        if above:
            spiffe.append((NameOID.SERIAL_NUMBER, str(x509.random_serial_number())))
        self.name = make_name(*spiffe)
        signer = above or self
        builder = self._start(self.name, self.key.public_key(), signer.name, (USUAL[0], LIFETIME))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        builder = builder.add_extension(usage("key_cert_sign", "crl_sign"), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), False)
        if above:
            issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(above.key.public_key())
            builder = builder.add_extension(issuer, critical=False)
        san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{self.trust_domain}")])
        self.certificate = builder.add_extension(san, critical=False).sign(signer.key, SHA384())

    @property
    def bundle_pem(self) -> bytes:
        """The root, PEM."""
        return self.above.bundle_pem if self.above else self.certificate.public_bytes(Encoding.PEM)

    def chain(self) -> list[x509.Certificate]:
        """Intermediates from here up, without the root."""
        return [self.certificate, *self.above.chain()] if self.above else []

    def issue(self, spiffe_path: str, *, dns: str | None = None, lifetime: timedelta = USUAL[1]) -> Svid:
        """Issue an SVID with a new key, as SPIRE would."""
        key = ec.generate_private_key(ec.SECP256R1())
        uri = f"spiffe://{self.trust_domain}{spiffe_path}"
        leaf = self.certify(key, uri, dns=[dns] if dns else [], valid=(USUAL[0], lifetime))
        return Svid.parse(self.to_pem(leaf), key_pem(key), self.bundle_pem)

    def forge(self, kind: str = "p256", *uris: str, **shape: Any) -> Svid:
        """Issue an SVID, by default the keeper's, without checking that it is a good one; *shape* as in `certify`."""
        key = make_key(kind)
        uris = uris or (KEEPER,)
        leaf = self.certify(key, *uris, **shape)
        return Svid(
            spiffe_id=uris[0],
            trust_domain=self.trust_domain,
            certificates_pem=self.to_pem(leaf),
            key_pem=key_pem(key),
            bundle_pem=self.bundle_pem,
            not_before=leaf.not_valid_before_utc,
            expires_at=leaf.not_valid_after_utc,
        )

    def certify(
        self,
        key: CertificateIssuerPrivateKeyTypes,
        *uris: str,
        dns: Sequence[str] = (),
        valid: tuple[timedelta, timedelta] = USUAL,
        san_critical: bool = False,
        subject: x509.Name | None = None,
        key_usage: x509.KeyUsage | None = None,
        ca: bool = False,
        purposes: Sequence[x509.ObjectIdentifier] = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH),
    ) -> x509.Certificate:
        """Issue a leaf; by default as SPIRE does: no CN, a subject that all leaves share, one URI SAN."""
        subject = subject or make_name((NameOID.COUNTRY_NAME, "US"), (NameOID.ORGANIZATION_NAME, "SPIRE"))
        names = [*map(x509.UniformResourceIdentifier, uris), *map(x509.DNSName, dns)]
        builder = (
            self._start(subject, key.public_key(), self.name, valid)
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

    def to_pem(self, leaf: x509.Certificate) -> bytes:
        """Return a leaf with the intermediates that lead to it, PEM."""
        return b"".join(each.public_bytes(Encoding.PEM) for each in (leaf, *self.chain()))

    def _start(
        self, subject: x509.Name, key: PublicKeyTypes, issuer: x509.Name, valid: tuple[timedelta, timedelta]
    ) -> x509.CertificateBuilder:
        now = self._at or datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)  # type: ignore[arg-type]
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + valid[0])
            .not_valid_after(now + valid[1])
        )


def make_name(*parts: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts])


def key_pem(key: CertificateIssuerPrivateKeyTypes) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def usage(*what: str) -> x509.KeyUsage:
    names = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement "
        "key_cert_sign crl_sign encipher_only decipher_only"
    )
    return x509.KeyUsage(**{name: name in what for name in names.split()})
