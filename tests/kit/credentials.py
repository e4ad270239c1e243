"""What somebody shows a server and trusts, in whatever shape."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from shardhold.identity import BUNDLE_FILE, KEY_FILE, SVID_FILE, Svid
from tests.kit.authority import USUAL, Authority, key_pem

ALL_FILES = (SVID_FILE, KEY_FILE, BUNDLE_FILE)


@dataclass(frozen=True)
class Credentials:
    """A certificate with its key, in whatever shape, and the authorities that its owner trusts; PEM."""

    certificate: bytes
    key: bytes = field(repr=False)
    roots: bytes

    def parse(self, bundle: bytes | None = None) -> Svid:
        """Read it as an SVID, with another bundle if one is given."""
        return Svid.parse(self.certificate, self.key, self.roots if bundle is None else bundle)


def certify(
    ca: Authority,
    *,
    uris: Sequence[str] = (),
    dns: Sequence[str] = (),
    roots: Authority | None = None,
    valid: tuple[timedelta, timedelta] = USUAL,
) -> Credentials:
    """Issue a leaf with exactly these names, valid from and until these distances from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = ca.certify(key, *uris, dns=dns, valid=valid)
    return Credentials(ca.to_pem(leaf), key_pem(key), (roots or ca).bundle_pem)


def write_svid(folder: Path, svid: Svid | Credentials, *names: str) -> Path:
    """Write the files with these names, all three by default, in their order and each in place; return *folder*."""
    if isinstance(svid, Svid):
        svid = Credentials(svid.certificates_pem, svid.key_pem, svid.bundle_pem)
    parts = {SVID_FILE: svid.certificate, KEY_FILE: svid.key, BUNDLE_FILE: svid.roots}
    folder.mkdir(mode=0o700, exist_ok=True)
    for name in names or ALL_FILES:
        file = folder / name
        file.touch(mode=0o600)
        file.write_bytes(parts[name])
    return folder


def make_unnamed_authority() -> bytes:
    """Make the certificate of an authority without any SAN, as upstream authorities are."""
    key, now, name = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC), x509.Name([])
    return (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
