"""Rollback marks: how far a store had got, signed by its nexus and remembered by keepers.

A mark is trusted when its chain of generations (`common.forms.chain`) begins with the genesis record of the cluster and
leads to the audit key that signed it; it is of that generation, and of no earlier store than the change that began it.
Marks of one chain are ordered by (timeline, revision, audit timeline, audit seq). Nothing in a mark is secret.

The first format, which programs up to 0.1.0 sign, lacks what has a default below. It is still read.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from common.errors import ChainError, CorruptRowError, MarkError
from common.forms.chain import Chain, Link, verify_chain
from common.forms.codec import fields, parse_fields, u64

MAX_SIZE = 1024  # bytes of an encoded mark
SIGNATURE_SIZE = 64  # bytes, Ed25519

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
    chain_seq: int = 0  # number of the last record of its chain; 0: the genesis record
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
    chain: tuple[bytes, ...]  # its records, from genesis to the audit key

    def find_rest(self, known: bytes) -> tuple[bytes, tuple[bytes, ...]]:
        """Return what of the chain has to be sent to whoever verified it up to the record with the digest *known*.

        That is the digest of the record before the rest, and the rest: empty and the whole chain when no record of it
        has this digest.
        """
        if not known:
            return b"", self.chain
        for at in range(len(self.chain), 0, -1):
            if hashlib.sha256(self.chain[at - 1]).digest() == known:
                return known, self.chain[at:]
        return b"", self.chain


def verify_mark(signed: SignedMark, *, cluster_id: bytes, genesis: bytes) -> Mark:
    """Verify *signed* for the cluster whose genesis record has the fingerprint *genesis*, and return what it says.

    Raises:
        MarkError: It belongs to another cluster, its signature is broken, or it does not decode.
    """
    mark = open_mark(signed, verify_mark_chain(signed, genesis))
    if mark.cluster_id != cluster_id:
        raise MarkError("rollback mark is of another cluster")
    return mark


def verify_mark_chain(signed: SignedMark, genesis: bytes, *, verified: Chain | None = None) -> Chain:
    """Verify the chain of *signed* from the genesis record with the fingerprint *genesis* on.

    What it has in common with *verified*, a chain of that cluster, is not verified again.

    Raises:
        MarkError: It belongs to another cluster, or does not verify.
    """
    try:
        return verify_chain(signed.chain, genesis, verified=verified)
    except ChainError as exc:
        raise MarkError(f"rollback mark does not follow from genesis: {exc}") from exc


def open_mark(signed: SignedMark, chain: Chain) -> Mark:
    """Verify *signed* by the signer that *chain*, its own, leads to, and return what it says.

    Raises:
        MarkError: Its signature is broken, it does not decode, or it is not of this generation of this cluster.
    """
    try:
        Ed25519PublicKey.from_public_bytes(chain.audit_public_key).verify(signed.signature, signed.mark)
    except (InvalidSignature, ValueError) as exc:
        raise MarkError("rollback mark has a broken signature") from exc
    mark = decode_mark(signed.mark)
    if mark.cluster_id != chain.genesis.cluster_id:
        raise MarkError("rollback mark is of another cluster")
    if (mark.generation, mark.chain_seq) != (chain.generation, chain.seq):
        raise MarkError(f"rollback mark says generation {mark.generation}, its chain {chain.generation}")
    if chain.links and not _is_after(mark, chain.links[-1]):
        raise MarkError(f"rollback mark is of an earlier store than generation {mark.generation}")
    return mark


def decode_mark(encoded: bytes) -> Mark:
    """Return what an encoded mark says. Verifies no signature: for marks that were made or verified here.

    Raises:
        MarkError: It does not decode.
    """
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


def _is_after(mark: Mark, link: Link) -> bool:
    return mark.position >= link.position and mark.control_revision >= link.control_revision


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
