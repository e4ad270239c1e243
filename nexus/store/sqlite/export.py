"""`python -m nexus.store.sqlite.export FD`: write a copy of a store as a backup, encrypted, to the descriptor.

A child of the nexus that knows no key: the copy holds ciphertext. It talks to its parent in lines of JSON:

    parent   what to do (`Request`)
    child    {"digest": …}       of the stream, to be signed
    parent   {"signature": …}
    child    {"rows": {…}} or {"error": …}
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from common.errors import BackupError, ShardholdError
from common.forms.backup.export import Answer, Request, Signature
from common.forms.backup.header import decode_header
from common.forms.backup.tables import Row, Table
from common.forms.backup.writer import write_stream
from common.keys.age import encrypt
from nexus.store.sqlite.connection import SQLITE_ERRORS, translate
from nexus.store.sqlite.reader import SqliteReader
from nexus.store.sqlite.snapshot import open_copy

# In the order that the stream asks for. Where a column has another name here, it is said.
_QUERIES: Final = {
    "meta": "SELECT {} FROM meta",
    "control": "SELECT {} FROM control ORDER BY kind, name",
    "secrets": "SELECT {} FROM secrets ORDER BY path",
    "versions": "SELECT {} FROM versions ORDER BY path, version",
    "deletions": "SELECT {} FROM deletions ORDER BY path, version",
    "destroyed": "SELECT {} FROM destroyed ORDER BY path, version",
    "requests": "SELECT {} FROM requests ORDER BY id",
    "quarantine": "SELECT {} FROM quarantine ORDER BY path, incarnation, version",
    "audit_head": "SELECT {} FROM audit_head ORDER BY nexus",
}
_OTHER_NAMES: Final = {("audit_head", "digest"): "hash"}


def load_rows(reader: SqliteReader, table: Table) -> Iterator[Row]:
    """Yield the rows of *table* as a backup has them.

    Raises:
        StoreUnavailableError, CorruptRowError: The copy cannot be read.
    """
    columns = ", ".join(_OTHER_NAMES.get((table.name, column.name), column.name) for column in table.columns)
    try:
        yield from reader.connection.execute(_QUERIES[table.name].format(columns))
    except SQLITE_ERRORS as exc:
        raise translate(exc, "read its copy") from exc


def main() -> None:
    """Answer one request."""
    os.nice(10)  # callers come first
    try:
        answer = Answer(rows=_export(msgspec.json.decode(sys.stdin.buffer.readline(), type=Request), int(sys.argv[1])))
    except ShardholdError as exc:
        answer = Answer(error=str(exc), is_damaged=isinstance(exc, BackupError) or exc.reason == "CORRUPT_ROW")
    except OSError as exc:
        answer = Answer(error=exc.strerror or "the disk refuses")
    _say(answer)


def _export(request: Request, fd: int) -> dict[str, int]:
    counts: dict[str, int] = {}
    with os.fdopen(fd, "wb") as file, open_copy(Path(request.copy)) as reader:

        def load(table: Table) -> Iterator[Row]:
            counts[table.name] = 0
            for row in load_rows(reader, table):
                counts[table.name] += 1
                yield row

        encrypt(write_stream(decode_header(request.header), load, _ask_signature), file, request.recipients)
        file.flush()
        os.fsync(fd)
    return counts


def _ask_signature(digest: bytes) -> bytes:
    _say(Answer(digest=digest))
    return msgspec.json.decode(sys.stdin.buffer.readline(), type=Signature).signature


def _say(answer: Answer) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
