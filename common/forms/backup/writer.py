"""Write a backup's stream, piece by piece, in the memory of one row.

stream = magic ‖ frame …        frame = kind1 ‖ length32 ‖ body

H                 header
T R … E           for each table: its name and columns, its rows, their number and digest
Z                 digest of everything before it
S                 signature over that digest
"""

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from common.errors import BackupError
from common.forms.backup.header import Header
from common.forms.backup.rows import encode_row
from common.forms.backup.tables import TABLES, TABLES_BY_VERSION, VERSION, Table, Value
from common.forms.codec import fields, u64

MAGICS: Final = {version: b"shardhold backup %d\n" % version for version in TABLES_BY_VERSION}
MAGIC: Final = MAGICS[VERSION]
FRAME: Final = struct.Struct(">cI")
MAX_FRAME: Final = 16 << 20  # bytes of a body

HEADER, TABLE, ROW, END, TRAILER, SIGNATURE = b"H", b"T", b"R", b"E", b"Z", b"S"


def write_stream(
    header: Header, load: Callable[[Table], Iterable[Sequence[Value]]], sign: Callable[[bytes], bytes]
) -> Iterator[bytes]:
    """Yield the stream. *load* gives the rows of a table, in its order; *sign* signs the digest of what was written.

    Raises:
        BackupError: A row is none of its table.
    """
    digest = hashlib.sha256()
    for piece in _write_content(header, load):
        digest.update(piece)
        yield piece
    yield frame(TRAILER, digest.digest())
    yield frame(SIGNATURE, sign(digest.digest()))


def frame(kind: bytes, body: bytes) -> bytes:
    """Return one frame.

    Raises:
        BackupError: The body is too large.
    """
    if len(body) > MAX_FRAME:
        raise BackupError(f"frame of a backup is {len(body)} bytes, want at most {MAX_FRAME}")
    return FRAME.pack(kind, len(body)) + body


def name_table(table: Table) -> bytes:
    """Return the body of the frame that begins *table*."""
    columns = (f"{column.name}:{column.kind.name.lower()}{'?' * column.is_nullable}" for column in table.columns)
    return fields(table.name.encode(), *(column.encode() for column in columns))


def _write_content(header: Header, load: Callable[[Table], Iterable[Sequence[Value]]]) -> Iterator[bytes]:
    yield MAGIC
    yield frame(HEADER, header.encode())
    for table in TABLES:
        yield frame(TABLE, name_table(table))
        count, rows = 0, hashlib.sha256()
        for values in load(table):
            piece = frame(ROW, encode_row(table, values))
            rows.update(piece)
            count += 1
            yield piece
        yield frame(END, fields(u64(count), rows.digest()))
