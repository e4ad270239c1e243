"""An outbox with a key that tests hold: authentic entries, and rows that somebody without the key writes."""

import hmac
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from common.errors import SealedError
from common.forms.audit.entry import Entry
from nexus.keys.outbox import append_entry
from nexus.keys.signer import AuditAuthenticator
from nexus.store.protocol import OutboxRow, Store, Writer
from tests.kit.patience import at_most

NEXUS = "nexus-1"


def make_entry(path: str, *, detail: str = "") -> Entry:
    """Make an entry that its path tells apart."""
    return Entry(
        at=1_700_000_000_000_000, actor="spiffe://example.org/api", action="secret.get", path=path, detail=detail
    )


class FixedKey:
    """A key that is always the same, and may be away."""

    generation = 1

    def __init__(self) -> None:
        self.is_there = True

    def authenticate_audit(self, message: bytes) -> bytes:
        """Return the MAC of *message*."""
        return hmac.digest(bytes(range(32)), message, "sha256")

    @contextmanager
    def borrow(self) -> Iterator[AuditAuthenticator]:
        """Lend it, as a ready nexus does."""
        if not self.is_there:
            raise SealedError("the nexus is sealed")
        yield self


def append(writer: Writer, entry: bytes) -> OutboxRow:
    """Add an authentic entry to a change."""
    return append_entry(writer, FixedKey(), NEXUS, entry)


def change(store: Store, *paths: str) -> list[OutboxRow]:
    """Commit a change with an entry for each path."""
    return store.write(lambda writer: [append(writer, make_entry(path).encode()) for path in paths])


def load_outbox(store: Store) -> list[OutboxRow]:
    """Load what is in the outbox."""
    with store.read() as reader:
        return reader.load_audit(NEXUS, limit=1_000_000)


def write_rows(file: Path, sql: str, *parameters: object) -> int:
    """Change the database behind the program's back; return the number of rows."""
    with closing(sqlite3.connect(file, timeout=at_most(5), isolation_level=None)) as database:
        return database.execute(sql, parameters).rowcount


def forge(file: Path, revision: int, position: int = 0, *, path: str = "forged", mac: bytes | None = b"m" * 32) -> None:
    """Insert a row, as somebody without the key can; what is there stays."""
    sql = "INSERT OR IGNORE INTO audit_outbox (nexus, revision, position, entry, mac) VALUES (?, ?, ?, ?, ?)"
    assert write_rows(file, sql, NEXUS if mac else "", revision, position, make_entry(path).encode(), mac) == 1
