"""Rollback marks for tests, signed as a nexus would: by the audit key of a cluster that exists nowhere else."""

from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.forms.genesis import Genesis
from common.forms.mark import Mark, SignedMark


class MarkMaker:
    """The audit key of one cluster and its genesis record, the same for the same *seed*."""

    def __init__(self, *, cluster_id: bytes = b"c" * 16, seed: bytes = b"a" * 32) -> None:
        self.key = Ed25519PrivateKey.from_private_bytes(seed)
        self.record = Genesis(
            cluster_id, 1, b"k" * 32, self.key.public_key().public_bytes_raw(), b"r" * 1216, b"e" * 32
        )
        self.genesis = self.record.fingerprint
        self.mark = Mark(
            cluster_id,
            timeline=1,
            revision=10,
            control_revision=4,
            generation=1,
            set_number=7,
            made_at=1_700_000_000_000_000,
        )

    def make(self, *, chain: tuple[bytes, ...] | None = None, **parts: object) -> SignedMark:
        """Sign the usual mark with these parts changed."""
        changed: Mark = replace(self.mark, **parts)  # type: ignore[arg-type]
        return self.sign(changed.encode(), chain=chain)

    def sign(self, encoded: bytes, *, chain: tuple[bytes, ...] | None = None) -> SignedMark:
        """Sign whatever it is."""
        return SignedMark(encoded, self.key.sign(encoded), (self.record.encode(),) if chain is None else chain)
