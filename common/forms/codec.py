"""The one encoding under every key derivation, AAD, digest and signed statement.

`fields(a, b, …)` writes each part as its length, a big-endian u32, followed by its bytes. Parts therefore never run
into each other: two different lists of parts have different encodings. The first part names format and purpose.
"""

import struct

from common.errors import CorruptRowError

_LENGTH = struct.Struct(">I")
_pack_length = _LENGTH.pack
_unpack_length = _LENGTH.unpack_from


def fields(*parts: bytes | bytearray | memoryview) -> bytes:
    """Encode *parts*, each at most 2**32 - 1 bytes."""
    pieces: list[bytes | bytearray | memoryview] = []
    for part in parts:
        pieces += (_pack_length(len(part)), part)
    return b"".join(pieces)


def parse_fields(encoded: bytes | memoryview) -> list[bytes]:
    """Decode what `fields` encoded.

    Raises:
        CorruptRowError: A length points past the end.
    """
    parts: list[bytes] = []
    at, end = 0, len(encoded)
    while at < end:
        if end - at < _LENGTH.size:
            raise CorruptRowError(f"{end - at} bytes left, want {_LENGTH.size} for a length")
        (length,) = _unpack_length(encoded, at)
        at += _LENGTH.size
        if end - at < length:
            raise CorruptRowError(f"{end - at} bytes left, want {length}")
        parts.append(bytes(encoded[at : at + length]))
        at += length
    return parts


def u32(number: int) -> bytes:
    """Encode a number in 4 bytes, big-endian."""
    return number.to_bytes(4, "big")


def u64(number: int) -> bytes:
    """Encode a number in 8 bytes, big-endian."""
    return number.to_bytes(8, "big")
