"""One row as bytes: for each column a tag, then the value.

i ‖ signed64            t ‖ length32 ‖ UTF-8            b ‖ length32 ‖ bytes            n
"""

import struct
from collections.abc import Sequence
from typing import Final

from common.errors import BackupError
from common.forms.backup.tables import Column, Kind, Row, Table, Value

_INTEGER: Final = struct.Struct(">cq")
_LENGTH: Final = struct.Struct(">cI")
_NULL: Final = b"n"


def encode_row(table: Table, values: Sequence[Value]) -> bytes:
    """Encode the values of a row of *table*.

    Raises:
        BackupError: They are not what its columns hold.
    """
    if len(values) != len(table.columns):
        raise BackupError(f"row of {table.name} has {len(values)} values, want {len(table.columns)}")
    try:
        return b"".join(map(_encode, table.columns, values))
    except (TypeError, struct.error, UnicodeEncodeError) as exc:
        raise BackupError(f"row of {table.name} holds a value of another kind than its column") from exc


def decode_row(table: Table, encoded: bytes) -> Row:
    """Decode what `encode_row` encoded.

    Raises:
        BackupError: It is no row of *table*.
    """
    values: list[Value] = []
    at = 0
    try:
        for column in table.columns:
            value, at = _decode(column, encoded, at)
            values.append(value)
    except (TypeError, struct.error, UnicodeDecodeError) as exc:
        raise BackupError(f"row of {table.name} does not decode") from exc
    if at != len(encoded):
        raise BackupError(f"row of {table.name} is {len(encoded)} bytes, want {at}")
    return tuple(values)


def _encode(column: Column, value: Value) -> bytes:
    if value is None and column.is_nullable:
        return _NULL
    if type(value) is not column.kind.value:
        raise TypeError(column.name)
    match value:
        case int():
            return _INTEGER.pack(b"i", value)
        case str():
            text = value.encode()
            return _LENGTH.pack(b"t", len(text)) + text
        case _:
            data = bytes(value or b"")
            return _LENGTH.pack(b"b", len(data)) + data


def _decode(column: Column, encoded: bytes, at: int) -> tuple[Value, int]:
    """Decode one value; return it and where the next one begins."""
    tag = encoded[at : at + 1]
    if tag == _NULL and column.is_nullable:
        return None, at + 1
    if column.kind is Kind.INTEGER:
        found, number = _INTEGER.unpack_from(encoded, at)
        if found != b"i":
            raise TypeError(column.name)
        return number, at + _INTEGER.size
    found, length = _LENGTH.unpack_from(encoded, at)
    start, end = at + _LENGTH.size, at + _LENGTH.size + length
    if found != (b"t" if column.kind is Kind.TEXT else b"b") or end > len(encoded):
        raise TypeError(column.name)
    data = encoded[start:end]
    return (data.decode() if column.kind is Kind.TEXT else data), end
