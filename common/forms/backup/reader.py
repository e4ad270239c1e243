"""Read a backup's stream as it comes, in the memory of one row, and believe nothing of it before it is whole.

1. It is exactly what `write_stream` writes, or wrote: the tables of its version in their order, with their columns.
2. Rows ascend where their table says so; their number and digest are those that follow them.
3. The one row of `meta` stands where the header says.
4. The digest is that of everything before it, and nothing follows the signature.

Who made it, `common.forms.backup.header.check_signature` says.
"""

import hashlib
from collections.abc import Callable
from typing import Any

from common.errors import BackupError
from common.forms.backup.header import Contents, Header, Proof, decode_header
from common.forms.backup.rows import decode_row
from common.forms.backup.tables import META, TABLES_BY_VERSION, Row, Table
from common.forms.backup.writer import (
    END,
    FRAME,
    HEADER,
    MAGIC,
    MAGICS,
    MAX_FRAME,
    ROW,
    SIGNATURE,
    TABLE,
    TRAILER,
    name_table,
)
from common.forms.codec import fields, u64

_BEGINNING = MAGIC.rstrip(b"0123456789\n")  # of every version
_VERSIONS = {magic: version for version, magic in MAGICS.items()}
_SIGNATURE_SIZE = 64


class StreamReader:
    """Reads one stream. Not thread-safe; of no more use once it raised."""

    def __init__(self, on_row: Callable[[Table, Row], None] = lambda table, row: None) -> None:
        """*on_row* hears of each row; what it hears may yet turn out not to be whole."""
        self._on_row = on_row
        self._buffer = bytearray()
        self._digest = hashlib.sha256()
        self._rows: dict[str, int] = {}
        self._header: Header | None = None
        self._table: Table | None = None
        self._table_digest = hashlib.sha256()
        self._last_key: Row = ()
        self._trailer: bytes | None = None
        self._signature: bytes | None = None
        self._tables: tuple[Table, ...] = ()  # of its version; empty: it has not begun

    def feed(self, data: bytes) -> None:
        """Read on.

        Raises:
            BackupError: This is no backup, or a damaged one.
        """
        self._buffer += data
        if not self._tables and not self._take_magic():
            return
        at, size = 0, len(self._buffer)
        while size - at >= FRAME.size:
            kind, length = FRAME.unpack_from(self._buffer, at)
            if length > MAX_FRAME:
                raise BackupError(f"frame of the backup is {length} bytes, want at most {MAX_FRAME}")
            end = at + FRAME.size + length
            if end > size:
                break
            self._take(kind, bytes(self._buffer[at:end]))
            at = end
        del self._buffer[:at]

    def finish(self) -> Contents:
        """Say that nothing follows; return what it was.

        Raises:
            BackupError: It is cut off.
        """
        if self._header is None or self._trailer is None or self._signature is None or self._buffer:
            raise BackupError("backup is cut off")
        return Contents(self._header, self._rows, Proof(self._trailer, self._signature))

    def _take_magic(self) -> bool:
        start = bytes(self._buffer[: len(MAGIC)])
        if len(start) < len(MAGIC):
            return False
        if start not in _VERSIONS:
            what = "of a newer program" if start.startswith(_BEGINNING) else "no backup of Shardhold"
            raise BackupError(f"this is {what}: it begins with another line than {MAGIC.decode().strip()!r}")
        self._digest.update(start)
        del self._buffer[: len(MAGIC)]
        self._tables = TABLES_BY_VERSION[_VERSIONS[start]]
        return True

    def _take(self, kind: bytes, whole: bytes) -> None:
        """Take one frame, head and body."""
        body = whole[FRAME.size :]
        if self._signature is not None:
            raise BackupError("something follows the end of the backup")
        if self._trailer is not None:
            self._take_signature(kind, body)
            return
        if kind == TRAILER:
            self._take_trailer(body)
            return
        self._digest.update(whole)
        if self._header is None:
            if kind != HEADER:
                raise BackupError("backup does not begin with its header")
            self._header = decode_header(body)
        elif self._table is None:
            self._begin_table(kind, body)
        elif kind == ROW:
            self._table_digest.update(whole)
            self._take_row(self._table, body)
        else:
            self._end_table(self._table, kind, body)

    def _begin_table(self, kind: bytes, body: bytes) -> None:
        wanted = self._tables[len(self._rows)] if len(self._rows) < len(self._tables) else None
        if wanted is None or kind != TABLE or body != name_table(wanted):
            raise BackupError(f"backup does not go on with {wanted.name if wanted else 'its end'}")
        self._table, self._table_digest, self._last_key = wanted, hashlib.sha256(), ()
        self._rows[wanted.name] = 0

    def _take_row(self, table: Table, body: bytes) -> None:
        row = decode_row(table, body)
        key: Any = row[: table.key]
        if table.key and self._rows[table.name] and not self._last_key < key:
            raise BackupError(f"rows of {table.name} are not in their order")
        self._last_key = key
        self._rows[table.name] += 1
        if table is META:
            self._check_meta(row)
        self._on_row(table, row)

    def _end_table(self, table: Table, kind: bytes, body: bytes) -> None:
        if kind != END or body != fields(u64(self._rows[table.name]), self._table_digest.digest()):
            raise BackupError(f"rows of {table.name} are not those that were written")
        if table is META and self._rows[table.name] != 1:
            raise BackupError("backup has no meta row")
        self._table = None

    def _take_trailer(self, body: bytes) -> None:
        if self._table is not None or len(self._rows) != len(self._tables):
            raise BackupError("backup ends before its last table")
        if body != self._digest.digest():
            raise BackupError("digest of the backup is that of another one")
        self._trailer = body

    def _take_signature(self, kind: bytes, body: bytes) -> None:
        if kind != SIGNATURE or len(body) != _SIGNATURE_SIZE:
            raise BackupError("backup has no signature")
        self._signature = body

    def _check_meta(self, row: Row) -> None:
        """Hold the meta row against the header (rule 3)."""
        header = self._header
        named = dict(zip((column.name for column in META.columns), row, strict=True))
        if header is None or any(
            named[name] != getattr(header, name)
            for name in ("cluster_id", "timeline", "revision", "control_revision", "epoch", "generation", "kek_id")
        ):
            raise BackupError("backup's header is of another state than its rows")
