"""Rollback marks: how far a store had got, signed by its nexus and remembered by keepers.

A mark is trusted when its chain begins with the genesis record of the cluster and leads to the audit key that signed
it. Marks are ordered by (timeline, revision, audit timeline, audit seq). Nothing in a mark is secret.

The first format, which programs up to 0.1.0 sign, lacks what has a default below. It is still read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from common.errors import CorruptRowError, MarkError
from common.forms.codec import fields, parse_fields, u64
from common.forms.genesis import Genesis, decode_genesis

MAX_SIZE = 1024  # bytes of an encoded mark
SIGNATURE_SIZE = 64  # bytes, Ed25519
MAX_CHAIN = 64  # records
MAX_RECORD_SIZE = 8192  # bytes; the genesis record has about 1,400

_PURPOSES = (b"shardhold-mark-v1", b"shardhold-mark-v2")  # by format
_PARTS = (8, 17)
_HASH_SIZE = 32
_MAX_NAME = 64  # bytes of the name of a nexus


class AuditEnd(NamedTuple):
    """How far the audit of one nexus had come."""

    nexus: str = ""  # its name
    timeline: int = 0
    seq: int = 0  # of the last line
    digest: bytes = bytes(_HASH_SIZE)  # hash of the last line


NO_AUDIT = AuditEnd()


@dataclass(frozen=True, slots=True)
class Mark:
    cluster_id: bytes  # 16 bytes
    timeline: int
    revision: int
    control_revision: int  # of the control manifest, which authenticates it
    generation: int
    set_number: int
    made_at: int  # microseconds since 1970, by the clock of the nexus
    epoch: int = 0
    last_generation: int = 0  # the highest that was ever given out, as the two below
    last_set_number: int = 0
    last_kek_id: int = 0
    chain_seq: int = 0  # seq of the last record of the chain; 0: the genesis record
    audit: AuditEnd = NO_AUDIT
    format: int = 2  # 1 or 2

    @property
    def position(self) -> tuple[int, int]:
        """Timeline and revision, which say in short how far the store had come."""
        return self.timeline, self.revision

    @property
    def order(self) -> tuple[int, int, int, int]:
        """Sort key by which marks are compared."""
        return self.timeline, self.revision, self.audit.timeline, self.audit.seq

    def encode(self) -> bytes:
        """Return the bytes that are signed."""
        if self.format == 1:
            first = (
                self.timeline,
                self.revision,
                self.control_revision,
                self.generation,
                self.set_number,
                self.made_at,
            )
            return fields(_PURPOSES[0], self.cluster_id, *map(u64, first))
        numbers = (
            self.timeline,
            self.revision,
            self.control_revision,
            self.epoch,
            self.generation,
            self.set_number,
            self.last_generation,
            self.last_set_number,
            self.last_kek_id,
            self.chain_seq,
            self.audit.timeline,
            self.audit.seq,
            self.made_at,
        )
        nexus = self.audit.nexus.encode()
        return fields(_PURPOSES[1], self.cluster_id, *map(u64, numbers), nexus, self.audit.digest)


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
    mark = _read(parts)
    if mark is None or mark.encode() != encoded:
        raise MarkError("rollback mark does not decode")
    return mark


def _read(parts: Sequence[bytes]) -> Mark | None:
    """Return the mark that has these parts, None when there is none."""
    if not parts or parts[0] not in _PURPOSES:
        return None
    number = _PURPOSES.index(parts[0]) + 1
    if len(parts) != _PARTS[number - 1]:
        return None
    cluster_id, last = parts[1], 8 if number == 1 else 15
    if any(len(part) != 8 for part in parts[2:last]):
        return None
    numbers = [int.from_bytes(part, "big") for part in parts[2:last]]
    if number == 1:
        timeline, revision, control_revision, generation, set_number, made_at = numbers
        return Mark(cluster_id, timeline, revision, control_revision, generation, set_number, made_at, format=1)
    timeline, revision, control_revision, epoch, generation, set_number = numbers[:6]
    last_generation, last_set_number, last_kek_id, chain_seq, audit_timeline, audit_seq, made_at = numbers[6:]
    nexus, digest = parts[15:]
    if len(nexus) > _MAX_NAME or not nexus.isascii() or len(digest) != _HASH_SIZE:
        return None
    return Mark(
        cluster_id,
        timeline,
        revision,
        control_revision,
        generation,
        set_number,
        made_at,
        epoch,
        last_generation,
        last_set_number,
        last_kek_id,
        chain_seq,
        AuditEnd(nexus.decode(), audit_timeline, audit_seq, digest),
    )
