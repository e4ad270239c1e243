"""The lines of the audit: JSON, one record each, chained by hashes.

- A line is a record with one more field at its end, `"hash"`: SHA-256 over the hash of the line before and the record's
  bytes as they appear in the line. Checking a hash therefore needs no re-encoding.
- Numbers (`seq`) start at 1 on the first line of a chain and go up by one from line to line.
- The first line of a segment says which chain it belongs to and repeats the hash that it follows.
"""

import hashlib
from typing import Final

import msgspec

from common.errors import CorruptRowError
from common.forms.audit.entry import Entry
from common.forms.codec import fields, u64
from common.forms.documents import decode_document

NO_HASH: Final = bytes(32)  # before the first line of the first chain
FORMAT: Final = 1

_PURPOSE: Final = b"shardhold-audit-line-v1"
_CHECKPOINT: Final = b"shardhold-audit-checkpoint-v1"
_OPEN: Final = b',"hash":"'
_TAIL_SIZE: Final = len(_OPEN) + 64 + len(b'"}')


class SegmentLine(msgspec.Struct, frozen=True, tag_field="kind", tag="segment"):
    """First line of each segment."""

    seq: int
    format: int
    nexus: str
    timeline: int
    segment: int
    previous: str  # hash of the line before, hex; in a first segment that of the previous timeline, or zeros


class EntryLine(msgspec.Struct, frozen=True, tag_field="kind", tag="entry"):
    seq: int
    entry: Entry


class ChangeLine(msgspec.Struct, frozen=True, tag_field="kind", tag="change"):
    """The entry of a change, as the store held it."""

    seq: int
    revision: int
    entry: msgspec.Raw


class TornTailLine(msgspec.Struct, frozen=True, tag_field="kind", tag="torn-tail"):
    """Records that an earlier segment ends in bytes that a crash left after its last whole line. They are kept."""

    seq: int
    entry: Entry  # action audit.torn-tail
    file: str
    offset: int  # bytes
    size: int  # bytes
    sha256: str  # hex


class CheckpointLine(msgspec.Struct, frozen=True, tag_field="kind", tag="checkpoint"):
    """A mark that anyone with the public key can check. Signed, unless the nexus had no key at that time."""

    seq: int
    at: int  # microseconds since 1970
    public_key: bytes  # 32 bytes, Ed25519; empty: not signed
    signature: bytes  # 64 bytes, over `checkpoint_message`
    chain: list[bytes]  # links from the genesis record to the public key


Line = SegmentLine | EntryLine | ChangeLine | TornTailLine | CheckpointLine

_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final[msgspec.json.Decoder[Line]] = msgspec.json.Decoder(Line)


def encode_line(line: Line, previous: bytes) -> tuple[bytes, bytes]:
    """Encode *line* to follow the line whose hash is *previous*; return it, with its newline, and its hash."""
    record = _ENCODER.encode(line)
    digest = _hash(previous, record)
    return b'%b,"hash":"%b"}\n' % (record[:-1], digest.hex().encode()), digest


def decode_line(encoded: bytes, previous: bytes) -> tuple[Line, bytes]:
    """Decode a line, with its newline, that must follow the one whose hash is *previous*; return it and its hash.

    Raises:
        CorruptRowError: The line is not whole, is not a record, or its hash does not match.
    """
    body, tail = encoded[: -_TAIL_SIZE - 1], encoded[-_TAIL_SIZE - 1 :]
    if not tail.endswith(b'"}\n') or not tail.startswith(_OPEN):
        raise CorruptRowError("line is not whole")
    digest = _hash(previous, body + b"}")
    if tail[len(_OPEN) : -3] != digest.hex().encode():
        raise CorruptRowError("hash does not match this line and the one before")
    return decode_document(_DECODER.decode, body + b"}", refusal="line is not a record"), digest


def decode_first_line(encoded: bytes, *, is_header: bool) -> tuple[Line, bytes]:
    """Decode a line, with its newline, without the hash of the line before; return it and its hash.

    A header repeats that hash and is checked against it; the hash of any other line is taken as it stands.

    Raises:
        CorruptRowError: The line is not whole, is not a record, or is not a header where one is required.
    """
    line = decode_document(_DECODER.decode, encoded, refusal="line is not a record")  # ignores the hash
    try:
        if isinstance(line, SegmentLine):
            return decode_line(encoded, bytes.fromhex(line.previous))
        if not is_header and encoded.endswith(b'"}\n'):
            return line, bytes.fromhex(encoded[-67:-3].decode("ascii"))
    except ValueError as exc:
        raise CorruptRowError("line has a hash that is not hex") from exc
    raise CorruptRowError("first line does not say which segment this is")


def checkpoint_message(nexus: str, timeline: int, seq: int, previous: bytes, chain: list[bytes]) -> bytes:
    """Return what a checkpoint signs: the hash of the line before it, and its own position."""
    return fields(_CHECKPOINT, nexus.encode(), u64(timeline), u64(seq), previous, *chain)


def _hash(previous: bytes, record: bytes) -> bytes:
    return hashlib.sha256(fields(_PURPOSE, previous, record)).digest()
