"""Whether the audit files are those that the store and the keepers remember: the lines are in them, as they were.

1. The head in the store and the end in a mark are made only of lines that are synced, so a crash or a power cut never
   takes those lines away.
2. What belongs to an earlier timeline says nothing: the store was restored, perhaps without its audit, and that was
   accepted.
3. Whoever can write the database can remove the head or put back an older one, and cannot make one. Once the audit has
   begun (`nexus.keys.audit_chain`), a head that is missing is a gap. Against an older one there are the marks.
"""

from common.forms.mark import AuditEnd
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

    @property
    def nexus(self) -> str:
        """Name of the nexus whose audit it is."""
        return self._audit.nexus

    def find_end(self) -> AuditEnd:
        """Say how far the files have come for good (rule 1). Waits for nothing."""
        return AuditEnd(self._audit.nexus, *self._audit.synced_position)

    def find_gap(self, key: AuditAuthenticator, *, has_begun: bool, remembered: AuditEnd | None) -> str:
        """Say what the files lack, empty: nothing.

        *has_begun* says that the store must have a head, *remembered* is how far keepers saw the files come.

        Raises:
            StoreUnavailableError, AuditUnavailableError: Store or files cannot be read.
        """
        with self._store.read() as reader:
            head, timeline = reader.load_audit_head(self._audit.nexus), reader.load_meta().timeline
        if head is None:
            gap = "the store does not say any more how far the audit files had come" if has_begun else ""
        elif not is_authentic_head(key, head):
            gap = "what the store says of the audit files was changed outside Shardhold"
        else:
            gap = self._find_line(ChainPosition(head.timeline, head.seq, head.digest), timeline, "the store remembers")
        if gap or remembered is None:
            return gap
        return self._find_line(ChainPosition(*remembered[1:]), timeline, "keepers remember")

    def _find_line(self, position: ChainPosition, timeline: int, who: str) -> str:
        if position.timeline < timeline or not position.seq:
            return ""  # rule 2, or there was no line
        digest = self._audit.find_digest(position.timeline, position.seq)
        line = f"line {position.seq} of timeline {position.timeline}"
        if digest is None:
            return f"the audit files do not reach {line}, which {who}"
        return "" if digest == position.digest else f"{line} of the audit files is another one than {who}"

    def begin(self, writer: Writer, key: AuditAuthenticator) -> None:
        """Save a head of the files as they are now, in the change that says that the audit has begun."""
        self.save_head(writer, key, self._audit.synced_position)

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
