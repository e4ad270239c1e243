"""The lines of the audit: JSON, one record each, chained by hashes.

- A line is a record with one more field at its end, `"hash"`: SHA-256 over the hash of the line before and the record's
  bytes as they stand in the line. So nothing has to be encoded again to check it.
- Numbers (`seq`) go up by one from line to line, from 1 at the first line of a chain.
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
    previous: str  # hash of the line before, hex; of the first segment: of the timeline before, or zeros


class EntryLine(msgspec.Struct, frozen=True, tag_field="kind", tag="entry"):
    seq: int
    entry: Entry


class ChangeLine(msgspec.Struct, frozen=True, tag_field="kind", tag="change"):
    """The entry of a change, as the store held it."""

    seq: int
    revision: int
    entry: msgspec.Raw


class TornTailLine(msgspec.Struct, frozen=True, tag_field="kind", tag="torn-tail"):
    """Says how an earlier segment ends: behind its last whole line are bytes that a crash left there. They are kept."""

    seq: int
    entry: Entry  # action audit.torn-tail
    file: str
    offset: int  # bytes
    size: int  # bytes
    sha256: str  # hex


class CheckpointLine(msgspec.Struct, frozen=True, tag_field="kind", tag="checkpoint"):
    """A mark that everybody can check who has the public key. Signed, unless the nexus had no key then."""

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
    """Decode a line, with its newline, that has to follow the one whose hash is *previous*; return it and its hash.

    Raises:
        CorruptRowError: It is not whole, not a record, or its hash is another.
    """
    body, tail = encoded[: -_TAIL_SIZE - 1], encoded[-_TAIL_SIZE - 1 :]
    if not tail.endswith(b'"}\n') or not tail.startswith(_OPEN):
        raise CorruptRowError("line is not whole")
    digest = _hash(previous, body + b"}")
    if tail[len(_OPEN) : -3] != digest.hex().encode():
        raise CorruptRowError("hash does not follow from the line before and this one")
    return decode_document(_DECODER.decode, body + b"}", refusal="line is no record"), digest


def decode_first_line(encoded: bytes, *, is_header: bool) -> tuple[Line, bytes]:
    """Decode a line, with its newline, without the hash of the line before; return it and its hash.

    A header repeats that hash, and is checked against it; of another line the hash is what it says.

    Raises:
        CorruptRowError: It is not whole, not a record, or not a header where one has to be.
    """
    line = decode_document(_DECODER.decode, encoded, refusal="line is no record")  # which leaves out the hash
    try:
        if isinstance(line, SegmentLine):
            return decode_line(encoded, bytes.fromhex(line.previous))
        if not is_header and encoded.endswith(b'"}\n'):
            return line, bytes.fromhex(encoded[-67:-3].decode("ascii"))
    except ValueError as exc:
        raise CorruptRowError("line has a hash that is no hex") from exc
    raise CorruptRowError("first line does not say which segment this is")


def checkpoint_message(nexus: str, timeline: int, seq: int, previous: bytes, chain: list[bytes]) -> bytes:
    """Return what a checkpoint signs: the hash of the line before it, and where it stands."""
    return fields(_CHECKPOINT, nexus.encode(), u64(timeline), u64(seq), previous, *chain)


def _hash(previous: bytes, record: bytes) -> bytes:
    return hashlib.sha256(fields(_PURPOSE, previous, record)).digest()
