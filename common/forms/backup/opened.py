"""A backup that was opened and read through, as the process that did so answers."""

from dataclasses import dataclass

from common.errors import BackupError, CorruptRowError
from common.forms.backup.header import Contents, decode_contents
from common.forms.backup.rows import decode_row, encode_row
from common.forms.backup.tables import CONTROL, META, Row, Table, Value
from common.forms.codec import fields, parse_fields


@dataclass(frozen=True, slots=True)
class OpenedBackup:
    """Whole, as its digests say; who made it is not checked yet."""

    contents: Contents
    meta: Row  # the one row of META
    controls: tuple[tuple[str, str, bytes, bytes], ...]  # kind, name, body and digest of each control row


class OpenedRows:
    """Collects, from a stream that is read, the rows that somebody wants to look at."""

    def __init__(self) -> None:
        self._meta = b""
        self._controls: list[bytes] = []

    def take(self, table: Table, row: Row) -> None:
        """Take a row; those of other tables are let go."""
        if table is META:
            self._meta = encode_row(META, row)
        elif table is CONTROL:
            self._controls += (_to_bytes(value) for value in row)

    def encode(self, contents: Contents) -> bytes:
        """Encode them with what else is known of the stream."""
        return fields(contents.encode(), self._meta, fields(*self._controls))


def _to_bytes(value: Value) -> bytes:
    return value.encode() if isinstance(value, str) else value if isinstance(value, bytes) else b""


def decode_opened(encoded: bytes) -> OpenedBackup:
    """Decode the answer of `common.keys.opener.read_backup`.

    Raises:
        BackupError: It is something else.
    """
    try:
        contents, meta, rows = parse_fields(encoded)
        kinds, names, bodies, digests = (parse_fields(rows)[at::4] for at in range(4))
        controls = zip((one.decode() for one in kinds), (one.decode() for one in names), bodies, digests, strict=True)
        return OpenedBackup(decode_contents(contents), decode_row(META, meta), tuple(controls))
    except (CorruptRowError, ValueError) as exc:
        raise BackupError("what was read of the backup does not decode") from exc
