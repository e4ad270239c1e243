"""Whether the audit files are those that the store remembers: the line of the head is in them, as it was.

1. The head is written only after the files are synced, so a crash or a power cut never takes away its line.
2. A head of an earlier timeline says nothing: the store was restored, perhaps without its audit, and that was accepted.
3. Whoever can write the database can remove the head or put back an older one, and cannot make one.
"""

from nexus.access.audit.directory import ChainPosition
from nexus.access.audit.log import AuditLog
from nexus.keys.outbox import is_authentic_head, is_authentic_row, make_head
from nexus.keys.signer import AuditAuthenticator
from nexus.store.protocol import AuditHead, Store, Writer

_MOST_ROWS = 1_000  # of the outbox that are looked at


class Continuity:
    """Thread-safe."""

    def __init__(self, store: Store, audit: AuditLog) -> None:
        self._store = store
        self._audit = audit

    def find_gap(self, key: AuditAuthenticator) -> str:
        """Say what the files lack, empty: nothing.

        Raises:
            StoreUnavailableError, AuditUnavailableError: Store or files cannot be read.
        """
        with self._store.read() as reader:
            head, timeline = reader.load_audit_head(self._audit.nexus), reader.load_meta().timeline
        if head is None:
            return ""
        if not is_authentic_head(key, head):
            return "what the store says of the audit files was changed outside Shardhold"
        if head.timeline < timeline:
            return ""  # rule 2
        digest = self._audit.find_digest(head.timeline, head.seq)
        line = f"line {head.seq} of timeline {head.timeline}"
        if digest is None:
            return f"the audit files do not reach {line}, which the store remembers"
        return "" if digest == head.digest else f"{line} of the audit files is another one than the store remembers"

    def load_head(self) -> AuditHead | None:
        """Load how far the files had come; nothing proves it here.

        Raises:
            StoreUnavailableError: The store cannot be read.
        """
        with self._store.read() as reader:
            return reader.load_audit_head(self._audit.nexus)

    def save_head(self, writer: Writer, key: AuditAuthenticator, position: ChainPosition) -> None:
        """Save that the files begin anew and have come to *position*; what is in the outbox is still to come."""
        head = writer.load_audit_head(self._audit.nexus)
        if head is not None and is_authentic_head(key, head):
            revision = head.revision
        else:
            rows = writer.load_audit(self._audit.nexus, limit=_MOST_ROWS)
            timeline = writer.load_position().timeline
            revisions = [row.revision for row in rows if is_authentic_row(key, row, timeline)]
            revision = min(revisions, default=writer.revision) - 1
        writer.save_audit_head(make_head(key, self._audit.nexus, *position, revision=revision))
