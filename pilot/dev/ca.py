"""A certificate authority for development: its key lives in one process and dies with it."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import ConfigError
from shardhold.identity import Svid

BACKDATE = timedelta(seconds=10)  # as SPIRE does: the clocks of a cluster may differ a little
CA_LIFETIME = timedelta(days=365)
SHORTEST_LIFETIME = timedelta(seconds=5)  # certificates count in whole seconds: less leaves no time to rotate

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_PATH = re.compile(r"(/[A-Za-z0-9._-]+)+")


class DevelopmentCA:
    """Issues SVIDs shaped like SPIRE's: P-256, one URI SAN, at most one DNS SAN, short-lived."""

    def __init__(self, trust_domain: str) -> None:
        """Make a new key and a self-signed certificate.

        Raises:
            ConfigError: *trust_domain* is not a SPIFFE trust domain.
        """
        if not _TRUST_DOMAIN.fullmatch(trust_domain):
            raise ConfigError(f"trust domain: got {trust_domain!r}, want 1 to 255 of a-z 0-9 . - _")
        self.trust_domain = trust_domain
        self._key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Shardhold development")])
        self.certificate = (
            _start(name, name, self._key.public_key(), now - BACKDATE, now + CA_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )

    def __repr__(self) -> str:
        return f"DevelopmentCA({self.trust_domain!r})"

    @property
    def bundle_pem(self) -> bytes:
        """The authorities of this trust domain, PEM."""
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(self, spiffe_path: str, *, dns: str | None = None, lifetime: timedelta = timedelta(hours=1)) -> Svid:
        """Create a key and an SVID for it.

        *spiffe_path* begins with '/'; *lifetime* counts from now and is at least 5 s.

        Raises:
            ConfigError: The path or the lifetime is not usable.
        """
        if not _PATH.fullmatch(spiffe_path) or {".", ".."} & set(spiffe_path.split("/")):
            raise ConfigError(f"SPIFFE path: got {spiffe_path!r}, want segments of A-Z a-z 0-9 . - _, each after a '/'")
        check_lifetime(lifetime)
        now = datetime.now(UTC)
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"spiffe://{self.trust_domain}{spiffe_path}")]
        if dns:
            names.append(x509.DNSName(dns))
        leaf = self._certify(key.public_key(), names, now - BACKDATE, now + lifetime)
        return Svid.parse(
            leaf.public_bytes(Encoding.PEM),
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            self.bundle_pem,
        )

    def _certify(
        self,
        public_key: ec.EllipticCurvePublicKey,
        names: Sequence[x509.GeneralName],
        not_before: datetime,
        not_after: datetime,
    ) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Shardhold development")])
        return (
            _start(subject, self.certificate.subject, public_key, not_before, not_after)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )


def check_lifetime(lifetime: timedelta) -> None:
    """Refuse lifetimes that leave no time to rotate.

    Raises:
        ConfigError: Shorter than 5 s.
    """
    if lifetime < SHORTEST_LIFETIME:
        raise ConfigError(
            f"lifetime of SVIDs: got {lifetime.total_seconds():g} s, "
            f"want at least {SHORTEST_LIFETIME.total_seconds():g} s"
        )


def _start(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    not_before: datetime,
    not_after: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
