"""The one encoding under every key derivation, AAD, digest and signed statement.

`fields(a, b, …)` is, for each part, its length as u32 big-endian and then its bytes. Parts can therefore never run into
each other: two different lists of parts have different encodings. The first part names format and purpose.
"""

import struct
from collections.abc import Iterator

from common.errors import CorruptRowError

_LENGTH = struct.Struct(">I")
_pack_length = _LENGTH.pack


def fields(*parts: bytes | bytearray | memoryview) -> bytes:
    """Encode *parts*, each at most 2**32 - 1 bytes."""
    return b"".join([piece for part in parts for piece in (_pack_length(len(part)), part)])


def parse_fields(encoded: bytes | memoryview) -> list[bytes]:
    """Decode what `fields` encoded.

    Raises:
        CorruptRowError: A length points past the end.
    """
    return list(_parts(memoryview(encoded)))


def _parts(rest: memoryview) -> Iterator[bytes]:
    while rest:
        if len(rest) < _LENGTH.size:
            raise CorruptRowError(f"{len(rest)} bytes left, want {_LENGTH.size} for a length")
        (length,) = _LENGTH.unpack(rest[: _LENGTH.size])
        rest = rest[_LENGTH.size :]
        if len(rest) < length:
            raise CorruptRowError(f"{len(rest)} bytes left, want {length}")
        yield bytes(rest[:length])
        rest = rest[length:]


def u32(number: int) -> bytes:
    """Encode a number in 4 bytes, big-endian."""
    return number.to_bytes(4, "big")


def u64(number: int) -> bytes:
    """Encode a number in 8 bytes, big-endian."""
    return number.to_bytes(8, "big")
