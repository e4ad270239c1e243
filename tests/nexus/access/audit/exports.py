"""What an exporter has done: the entries in the files, the alarms, and the head."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from common.forms.audit.entry import Entry, decode_entry
from common.forms.audit.line import ChangeLine, EntryLine
from nexus.access.audit.exporter import Exporter
from nexus.store.protocol import AuditHead
from nexus.store.sqlite.store import SqliteStore
from tests.nexus.access.audit.keyed import (
    NEXUS,
    make_entry,
)
from tests.nexus.access.audit.test_log import load_lines

WaitUntil = Callable[..., None]

MakeExporter = Callable[..., Exporter]


def list_alarms(directory: Path) -> list[Entry]:
    """List what the audit says of the outbox."""
    lines = [line.entry for line in load_lines(directory) if isinstance(line, EntryLine)]
    return [entry for entry in lines if entry.action.startswith("audit.")]


def make_digest(path: str) -> str:
    """Return what an alarm calls the entry with this path."""
    return hashlib.sha256(make_entry(path).encode()).hexdigest()


def load_head(store: SqliteStore) -> AuditHead | None:
    """Load the head of the files."""
    with store.read() as reader:
        return reader.load_audit_head(NEXUS)


def list_exported(directory: Path) -> list[tuple[int, str]]:
    """List revision and path of all exported entries."""
    changes = [line for line in load_lines(directory) if isinstance(line, ChangeLine)]
    return [(line.revision, decode_entry(bytes(line.entry)).path) for line in changes]
