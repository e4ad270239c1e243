"""What a backup says of itself before its rows, and what it proves after them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from common.errors import BackupError, ChainError, CorruptRowError
from common.forms.chain import Chain, verify_chain
from common.forms.codec import fields, parse_fields, u64
from common.forms.genesis import decode_genesis

CLUSTER_ID_SIZE: Final = 16  # bytes
_PURPOSE: Final = b"shardhold-backup-header-v1"
_SIGNED: Final = b"shardhold-backup-signature-v1"
_MAX_PROGRAM: Final = 64  # bytes


@dataclass(frozen=True, slots=True)
class Header:
    """Where the store stood when its rows were copied."""

    cluster_id: bytes  # 16 bytes
    timeline: int
    revision: int
    control_revision: int
    epoch: int
    generation: int  # of the root key that the rows depend on, and that signs
    kek_id: int
    created_at: int  # microseconds since 1970
    program: str  # version of the program that made it
    chain: tuple[bytes, ...]  # records of the chain of generations, from genesis on

    def encode(self) -> bytes:
        """Encode it."""
        numbers = (self.timeline, self.revision, self.control_revision, self.epoch, self.generation, self.kek_id)
        return fields(
            _PURPOSE,
            self.cluster_id,
            *map(u64, (*numbers, self.created_at)),
            self.program.encode(),
            *self.chain,
        )

    @property
    def position(self) -> tuple[int, int]:
        """Timeline and revision."""
        return self.timeline, self.revision


def decode_header(encoded: bytes) -> Header:
    """Decode what `Header.encode` encoded.

    Raises:
        BackupError: It is no header.
    """
    try:
        parts = parse_fields(encoded)
        numbers = tuple(int.from_bytes(part, "big") for part in parts[2:8])
        created_at = int.from_bytes(parts[8], "big")
        header = _make_header(parts[1], numbers, created_at, parts[9].decode(), tuple(parts[10:]))
        is_exact = header.encode() == encoded
    except (CorruptRowError, IndexError, ValueError, OverflowError) as exc:
        raise BackupError("header of the backup does not decode") from exc
    if not is_exact or len(header.cluster_id) != CLUSTER_ID_SIZE or len(header.program) > _MAX_PROGRAM:
        raise BackupError("header of the backup does not decode")
    return header


def _make_header(
    cluster_id: bytes, numbers: tuple[int, ...], created_at: int, program: str, chain: tuple[bytes, ...]
) -> Header:
    timeline, revision, control_revision, epoch, generation, kek_id = numbers
    return Header(
        cluster_id, timeline, revision, control_revision, epoch, generation, kek_id, created_at, program, chain
    )


@dataclass(frozen=True, slots=True)
class Proof:
    """What ends a backup."""

    digest: bytes  # SHA-256 of everything before it, 32 bytes
    signature: bytes  # 64 bytes, Ed25519, by the audit key of the generation that the header names


@dataclass(frozen=True, slots=True)
class Contents:
    """What was in a stream that is whole."""

    header: Header
    rows: Mapping[str, int]  # by table
    proof: Proof

    def encode(self) -> bytes:
        """Encode it, for whoever asked another process to read the backup."""
        counts = (part for name, count in self.rows.items() for part in (name.encode(), u64(count)))
        return fields(self.header.encode(), self.proof.digest, self.proof.signature, *counts)


def decode_contents(encoded: bytes) -> Contents:
    """Decode what `Contents.encode` encoded.

    Raises:
        BackupError: It is something else.
    """
    try:
        header, digest, signature, *counts = parse_fields(encoded)
        names = [name.decode() for name in counts[::2]]
        rows = dict(zip(names, (int.from_bytes(count, "big") for count in counts[1::2]), strict=True))
        contents = Contents(decode_header(header), rows, Proof(digest, signature))
        is_exact = contents.encode() == encoded
    except (CorruptRowError, ValueError, OverflowError) as exc:
        raise BackupError("contents of the backup do not decode") from exc
    if not is_exact:
        raise BackupError("contents of the backup do not decode")
    return contents


def sign_digest(digest: bytes, sign: Callable[[bytes], bytes]) -> bytes:
    """Sign the digest of a stream with the audit key that *sign* uses; 64 bytes."""
    return sign(fields(_SIGNED, digest))


def check_signature(contents: Contents, *, genesis: bytes = b"") -> Chain:
    """Check that the nexus of the cluster made this backup; return its chain.

    *genesis* is the fingerprint that the chain has to begin with, 32 bytes; empty: the backup's own claim counts.

    Raises:
        BackupError: Somebody else made it, or it is of another cluster.
    """
    header = contents.header
    chain = _read_chain(header.chain, genesis)
    if (chain.genesis.cluster_id, chain.generation) != (header.cluster_id, header.generation):
        raise BackupError("chain of the backup leads to another cluster or generation than its header names")
    try:
        key = Ed25519PublicKey.from_public_bytes(chain.audit_public_key)
        key.verify(contents.proof.signature, fields(_SIGNED, contents.proof.digest))
    except (InvalidSignature, ValueError) as exc:
        raise BackupError("signature of the backup does not verify: no nexus of this cluster made it") from exc
    return chain


def _read_chain(records: Sequence[bytes], genesis: bytes) -> Chain:
    if not records:
        raise BackupError("backup has no chain")
    try:
        return verify_chain(records, genesis or decode_genesis(records[0]).fingerprint)
    except (ChainError, CorruptRowError) as exc:
        raise BackupError(f"backup is of another cluster, or its chain is broken: {exc}") from exc
