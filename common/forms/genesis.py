"""The genesis record: what a cluster was when it began. Keepers pin its fingerprint; share cards carry it."""

import hashlib
from dataclasses import dataclass

from common.errors import CorruptRowError
from common.forms.codec import fields, parse_fields, u64

_PURPOSE = b"shardhold-genesis-v1"


@dataclass(frozen=True, slots=True)
class Genesis:
    cluster_id: bytes  # 16 bytes
    generation: int  # of the first root key; above 1 when attempts to initialise were voided
    kcv: bytes  # 32 bytes
    audit_public_key: bytes  # 32 bytes, Ed25519
    recovery_public_key: bytes  # 1216 bytes
    escrow_digest: bytes  # SHA-256 of the escrow, 32 bytes

    def encode(self) -> bytes:
        """Encode the record; this is what is stored and fingerprinted."""
        return fields(
            _PURPOSE,
            self.cluster_id,
            u64(0),  # seq of the chain that later changes of root or recovery key continue
            u64(self.generation),
            self.kcv,
            self.audit_public_key,
            self.recovery_public_key,
            self.escrow_digest,
        )

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the record, 32 bytes."""
        return hashlib.sha256(self.encode()).digest()


def decode_genesis(encoded: bytes) -> Genesis:
    """Decode a stored record.

    Raises:
        CorruptRowError: *encoded* is not a genesis record.
    """
    try:
        parts = parse_fields(encoded)
    except CorruptRowError as exc:
        raise CorruptRowError(f"genesis record does not decode: {exc}") from exc
    match parts:
        case [_, cluster_id, _, generation, kcv, audit, recovery, escrow]:
            genesis = Genesis(cluster_id, int.from_bytes(generation, "big"), kcv, audit, recovery, escrow)
            if len(generation) == 8 and genesis.encode() == encoded:  # compares purpose and seq 0 too
                return genesis
    raise CorruptRowError("genesis record does not decode")
