"""The chain of generations: how one root key followed another, from the genesis record on.

1. Record 0 is the genesis record. Each further record is a link, signed by the audit key of the generation before it.
2. A link names the digest of the record before it, whole and with its signature; it has the next number, a higher
   generation, a later position and control revision, an audit key that has signed nothing before, and the same cluster.
3. There are at most 1,024 links, each of at most 512 bytes.

The fingerprint of the genesis record is what a chain is held against. Nothing in a chain is secret.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from common.errors import ChainError, CorruptRowError
from common.forms.codec import fields, parse_fields, u64
from common.forms.genesis import Genesis, decode_genesis

MAX_LINKS: Final = 1024
MAX_RECORDS: Final = 1 + MAX_LINKS  # with the genesis record
MAX_LINK_SIZE: Final = 512  # bytes, with the signature
MAX_GENESIS_SIZE: Final = 8192  # bytes; the record has about 1,400

_LINK: Final = b"shardhold-link-v1"
_RECORD: Final = b"shardhold-link-record-v1"
_SIZES: Final = (16, 8, 32, 8, 8, 8, 8, 32, 32, 32, 32)  # bytes of the parts of a link after its purpose


@dataclass(frozen=True, slots=True)
class Link:
    """The change by which one generation followed another. Digests are SHA-256, 32 bytes."""

    cluster_id: bytes  # 16 bytes
    seq: int  # of this record, from 1
    before: bytes  # digest of the record before; the genesis fingerprint for the first link
    timeline: int  # of the change, as the two below
    revision: int
    control_revision: int
    generation: int  # of the new root key, as all that follows
    kcv: bytes  # 32 bytes
    audit_public_key: bytes  # 32 bytes, Ed25519
    recovery_digest: bytes  # of the recovery public key
    escrow_digest: bytes  # of the list of escrows

    @property
    def position(self) -> tuple[int, int]:
        """Timeline and revision of the change."""
        return self.timeline, self.revision

    def encode(self) -> bytes:
        """Return the bytes that are signed."""
        numbers = (self.timeline, self.revision, self.control_revision, self.generation)
        return fields(
            _LINK,
            self.cluster_id,
            u64(self.seq),
            self.before,
            *map(u64, numbers),
            self.kcv,
            self.audit_public_key,
            self.recovery_digest,
            self.escrow_digest,
        )

    def sign(self, sign: Callable[[bytes], bytes]) -> bytes:
        """Return the record, signed by the audit key of the generation before."""
        encoded = self.encode()
        return fields(_RECORD, encoded, sign(encoded))


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain that was verified."""

    genesis: Genesis
    links: tuple[Link, ...]
    records: tuple[bytes, ...]  # the genesis record and the links, as they are stored
    digests: tuple[bytes, ...]  # of the records

    @property
    def seq(self) -> int:
        """Number of the last record; 0: the genesis record."""
        return len(self.links)

    @property
    def digest(self) -> bytes:
        """Digest of the last record, which stands for the whole chain; 32 bytes."""
        return self.digests[-1]

    @property
    def generation(self) -> int:
        """The generation that is current, as the two below."""
        return self._last.generation

    @property
    def kcv(self) -> bytes:
        return self._last.kcv

    @property
    def audit_public_key(self) -> bytes:
        """Of the current signer, 32 bytes."""
        return self._last.audit_public_key

    @property
    def recovery_digest(self) -> bytes:
        """SHA-256 of the recovery public key, 32 bytes."""
        return self.links[-1].recovery_digest if self.links else _digest(self.genesis.recovery_public_key)

    @property
    def escrow_digest(self) -> bytes:
        """Digest of the list of escrows, 32 bytes; after genesis alone, that of the one sealed copy."""
        return self._last.escrow_digest

    def cut(self, seq: int) -> "Chain":
        """Return the chain up to record *seq*."""
        return Chain(self.genesis, self.links[:seq], self.records[: seq + 1], self.digests[: seq + 1])

    def count_common(self, other: "Chain") -> int:
        """Count the records that both begin with."""
        pairs = zip(self.digests, other.digests, strict=False)
        return next((at for at, (ours, theirs) in enumerate(pairs) if ours != theirs), min(self.seq, other.seq) + 1)

    def extends(self, other: "Chain") -> bool:
        """Say whether this is *other* and at least one record more."""
        return self.seq > other.seq and self.digests[other.seq] == other.digest

    @property
    def _last(self) -> Genesis | Link:
        return self.links[-1] if self.links else self.genesis


def verify_chain(records: Sequence[bytes], genesis: bytes, *, verified: Chain | None = None) -> Chain:
    """Verify *records* for the cluster whose genesis record has the fingerprint *genesis*.

    What *records* have in common with *verified*, a chain of that cluster, is not verified again.

    Raises:
        ChainError: They begin with another record, one does not follow from those before it, or there are too many.
    """
    if not 1 <= len(records) <= MAX_RECORDS:
        raise ChainError(f"chain has {len(records)} records, want 1 to {MAX_RECORDS}")
    chain = _begin(records[0], genesis)
    if verified is not None and verified.digests[0] == genesis:
        common = zip(records, verified.records, strict=False)
        first = next((at for at, (given, known) in enumerate(common) if given != known), len(verified.records))
        chain = verified.cut(min(first, len(records)) - 1)
    return extend_chain(chain, records[chain.seq + 1 :])


def extend_chain(chain: Chain, records: Sequence[bytes]) -> Chain:
    """Verify *records*, which follow the last one of *chain*.

    Raises:
        ChainError: One does not follow from those before it, or there are too many.
    """
    if chain.seq + len(records) > MAX_LINKS:
        raise ChainError(f"chain has {chain.seq + len(records)} links, want at most {MAX_LINKS}")
    if not records:
        return chain
    signers = {chain.genesis.audit_public_key, *(link.audit_public_key for link in chain.links)}
    links, digests = list(chain.links), list(chain.digests)
    last: Genesis | Link = links[-1] if links else chain.genesis
    for record in records:
        link = _follow(last, digests[-1], len(links) + 1, record)
        if link.audit_public_key in signers:
            raise ChainError(f"link {link.seq} names an audit key that was one before")
        signers.add(link.audit_public_key)
        links.append(link)
        digests.append(_digest(record))
        last = link
    return Chain(chain.genesis, tuple(links), (*chain.records, *records), tuple(digests))


def begin_chain(genesis: Genesis) -> Chain:
    """Return the chain of a cluster that has its first root key."""
    record = genesis.encode()
    return Chain(genesis, (), (record,), (_digest(record),))


def decode_link(record: bytes) -> tuple[Link, bytes]:
    """Decode a link; return it and its signature, which nothing has verified.

    Raises:
        ChainError: *record* is no link.
    """
    if len(record) > MAX_LINK_SIZE:
        raise ChainError(f"link is {len(record)} bytes, want at most {MAX_LINK_SIZE}")
    try:
        purpose, encoded, signature = parse_fields(record)
        parts = parse_fields(encoded)
    except (CorruptRowError, ValueError) as exc:
        raise ChainError("link does not decode") from exc
    if tuple(map(len, parts[1:])) != _SIZES:
        raise ChainError("link does not decode")
    cluster_id, seq, before = parts[1:4]
    timeline, revision, control_revision, generation = (int.from_bytes(part, "big") for part in parts[4:8])
    link = Link(
        cluster_id, int.from_bytes(seq, "big"), before, timeline, revision, control_revision, generation, *parts[8:]
    )
    if purpose != _RECORD or link.encode() != encoded or fields(_RECORD, encoded, signature) != record:
        raise ChainError("link does not decode")
    return link, signature


def _begin(record: bytes, genesis: bytes) -> Chain:
    if len(record) > MAX_GENESIS_SIZE:
        raise ChainError(f"genesis record is {len(record)} bytes, want at most {MAX_GENESIS_SIZE}")
    try:
        chain = begin_chain(decode_genesis(record))
    except CorruptRowError as exc:
        raise ChainError("chain begins with no genesis record") from exc
    if chain.digest != genesis:
        raise ChainError("chain begins with the genesis record of another cluster")
    return chain


def _follow(last: Genesis | Link, before: bytes, seq: int, record: bytes) -> Link:
    """Verify one link on top of the record *last*, whose digest is *before* (rule 2)."""
    link, signature = decode_link(record)
    if (link.cluster_id, link.seq, link.before) != (last.cluster_id, seq, before):
        raise ChainError(f"link {link.seq} does not follow from the record before it")
    if link.generation <= last.generation or not _is_later(link, last):
        raise ChainError(f"link {link.seq} is not later than the record before it")
    try:
        Ed25519PublicKey.from_public_bytes(last.audit_public_key).verify(signature, link.encode())
    except (InvalidSignature, ValueError) as exc:
        raise ChainError(f"link {link.seq} has a broken signature") from exc
    return link


def _is_later(link: Link, last: Genesis | Link) -> bool:
    if isinstance(last, Genesis):
        return True
    return link.position > last.position and link.control_revision > last.control_revision


def _digest(record: bytes) -> bytes:
    return hashlib.sha256(record).digest()
