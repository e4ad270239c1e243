"""Leaves with shapes and dates that no provider hands out."""

from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from pilot.dev.ca import DevelopmentCA


def certify(
    ca: DevelopmentCA,
    *,
    uris: tuple[str, ...] = ("spiffe://example.org/team/app",),
    lifetime: timedelta = timedelta(hours=1),
) -> tuple[bytes, bytes]:
    """Return a leaf of *ca* and its key, PEM; it expires *lifetime* from now, which may be negative."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    leaf = ca.certify(
        key.public_key(),
        uris=uris,
        not_before=now - timedelta(hours=2),
        not_after=now + lifetime,
    )
    return leaf.public_bytes(Encoding.PEM), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
