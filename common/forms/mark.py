"""Rollback marks: how far a store had got, signed by its nexus and remembered by keepers.

A mark is trusted when its chain begins with the genesis record of the cluster and leads to the audit key that signed
it. Marks are ordered by (timeline, revision). Nothing in a mark is secret.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from common.errors import CorruptRowError, MarkError
from common.forms.codec import fields, parse_fields, u64
from common.forms.genesis import Genesis, decode_genesis

MAX_SIZE = 1024  # bytes of an encoded mark
SIGNATURE_SIZE = 64  # bytes, Ed25519
MAX_CHAIN = 64  # records
MAX_RECORD_SIZE = 8192  # bytes; the genesis record has about 1,400

_PURPOSE = b"shardhold-mark-v1"


@dataclass(frozen=True, slots=True)
class Mark:
    cluster_id: bytes  # 16 bytes
    timeline: int
    revision: int
    control_revision: int  # of the control manifest, which authenticates it
    generation: int
    set_number: int
    made_at: int  # microseconds since 1970, by the clock of the nexus

    @property
    def order(self) -> tuple[int, int]:
        """Sort key by which marks and stores are compared."""
        return self.timeline, self.revision

    def encode(self) -> bytes:
        """Return the bytes that are signed."""
        numbers = (
            self.timeline,
            self.revision,
            self.control_revision,
            self.generation,
            self.set_number,
            self.made_at,
        )
        return fields(_PURPOSE, self.cluster_id, *map(u64, numbers))


@dataclass(frozen=True, slots=True)
class SignedMark:
    """A mark as it travels."""

    mark: bytes  # encoded
    signature: bytes  # Ed25519, 64 bytes
    chain: tuple[bytes, ...]  # records from genesis to the audit key


def verify_mark(signed: SignedMark, *, cluster_id: bytes, genesis: bytes) -> Mark:
    """Verify *signed* for the cluster whose genesis record has the fingerprint *genesis*, and return what it says.

    Raises:
        MarkError: It belongs to another cluster, its signature is broken, or it does not decode.
    """
    signer = _verify_chain(signed.chain, genesis)
    try:
        Ed25519PublicKey.from_public_bytes(signer.audit_public_key).verify(signed.signature, signed.mark)
    except (InvalidSignature, ValueError) as exc:
        raise MarkError("rollback mark has a broken signature") from exc
    mark = _decode(signed.mark)
    if mark.cluster_id != cluster_id:
        raise MarkError("rollback mark is of another cluster")
    return mark


def _verify_chain(chain: Sequence[bytes], genesis: bytes) -> Genesis:
    # One record: further ones come with changes of generation, which do not exist yet.
    if len(chain) != 1 or len(chain[0]) > MAX_RECORD_SIZE:
        raise MarkError(f"rollback mark has a chain of {len(chain)} records, want 1")
    try:
        record = decode_genesis(chain[0])
    except CorruptRowError as exc:
        raise MarkError("rollback mark has a chain that does not decode") from exc
    if record.fingerprint != genesis:
        raise MarkError("rollback mark is of another cluster")
    return record


def _decode(encoded: bytes) -> Mark:
    if len(encoded) > MAX_SIZE:
        raise MarkError(f"rollback mark is {len(encoded)} bytes, want at most {MAX_SIZE}")
    try:
        parts = parse_fields(encoded)
    except CorruptRowError as exc:
        raise MarkError("rollback mark does not decode") from exc
    if len(parts) != 8 or parts[0] != _PURPOSE or any(len(number) != 8 for number in parts[2:]):
        raise MarkError("rollback mark does not decode")
    return Mark(parts[1], *(int.from_bytes(number, "big") for number in parts[2:]))
