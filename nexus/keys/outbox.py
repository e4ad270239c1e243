"""What the MACs of the audit in the store cover: the rows of the outbox, and the head of the files.

Both are made with the outbox key, which only a nexus with the root key has. Whoever writes the database can therefore
neither add an entry nor replace one.
"""

import hmac

from common.forms.codec import fields, u64
from nexus.keys.signer import AuditAuthenticator
from nexus.store.protocol import MAX_ENTRY, AuditHead, OutboxRow, Writer


def append_entry(writer: Writer, key: AuditAuthenticator, nexus: str, entry: bytes) -> OutboxRow:
    """Add an encoded audit entry to a change, for the files of *nexus*, and return its row."""

    def authenticate(revision: int, position: int) -> bytes:
        return authenticate_row(key, nexus, revision, position, entry)

    return writer.append_audit(nexus, entry, authenticate)


def authenticate_row(key: AuditAuthenticator, nexus: str, revision: int, position: int, entry: bytes) -> bytes:
    """Return the MAC of a row, 32 bytes."""
    return key.authenticate_audit(fields(b"shardhold-outbox-v1", nexus.encode(), u64(revision), u64(position), entry))


def is_authentic_row(key: AuditAuthenticator, row: OutboxRow) -> bool:
    """Say whether a nexus with the root key wrote *row* where it is."""
    if row.mac is None or row.revision < 0 or row.position < 0 or len(row.entry) > MAX_ENTRY:
        return False
    return hmac.compare_digest(authenticate_row(key, row.nexus, row.revision, row.position, row.entry), row.mac)


def make_head(
    key: AuditAuthenticator, nexus: str, timeline: int, seq: int, digest: bytes, *, revision: int
) -> AuditHead:
    """Make the head of files whose last line has *seq* and *digest*, with the entries of changes up to *revision*."""
    mac = _authenticate_head(key, nexus, timeline, seq, digest, revision)
    return AuditHead(nexus, timeline, seq, digest, revision, mac)


def is_authentic_head(key: AuditAuthenticator, head: AuditHead) -> bool:
    """Say whether a nexus with the root key wrote *head*."""
    if min(head.timeline, head.seq, head.revision) < 0:
        return False
    mac = _authenticate_head(key, head.nexus, head.timeline, head.seq, head.digest, head.revision)
    return hmac.compare_digest(mac, head.mac)


def _authenticate_head(
    key: AuditAuthenticator, nexus: str, timeline: int, seq: int, digest: bytes, revision: int
) -> bytes:
    purpose = b"shardhold-audit-head-v1"
    return key.authenticate_audit(fields(purpose, nexus.encode(), u64(timeline), u64(seq), digest, u64(revision)))
