"""What the MACs of the audit in the store cover: the rows of the outbox, and the head of the files.

Both are made with the outbox key, which only a nexus with the root key has. Whoever writes the database can therefore
neither add an entry nor replace one. A row belongs to one timeline: rows that were kept of a history that was given up
are none of the next one. What waits in the outbox when a timeline begins, or a root key follows another, is adopted in
the same change; so are the heads when a root key follows another.
"""

import hmac
from collections.abc import Callable
from dataclasses import replace

from common.forms.codec import fields, u64
from nexus.keys.root_key import RootKey
from nexus.keys.signer import AuditAuthenticator
from nexus.store.protocol import MAX_ENTRY, AuditHead, OutboxRow, Writer

# Writes the audit entry of the change that it is called in, authenticated with the root key.
WriteEntry = Callable[[Writer, RootKey], None]


def append_entry(writer: Writer, key: AuditAuthenticator, nexus: str, entry: bytes) -> OutboxRow:
    """Add an encoded audit entry to a change, for the files of *nexus*, and return its row."""

    timeline = writer.load_position().timeline

    def authenticate(revision: int, position: int) -> bytes:
        return _authenticate_row(key, OutboxRow(nexus, revision, position, entry, None), timeline)

    return writer.append_audit(nexus, entry, authenticate)


def adopt_rows(
    writer: Writer,
    key: AuditAuthenticator,
    heir: AuditAuthenticator,
    *,
    timelines: tuple[int, int],
    takes_unmarked: bool,
) -> None:
    """Let the rows that are true by *key*, in the first of *timelines*, be rows of *heir* in the second.

    *takes_unmarked*: an older program wrote the store, whose rows have no MAC and name no nexus. They are true then.
    """
    before, now = timelines

    def make_mac(row: OutboxRow) -> bytes | None:
        is_unmarked = takes_unmarked and row.mac is None and not row.nexus and _is_sound(row)
        is_true = is_unmarked or is_authentic_row(key, row, before)
        return _authenticate_row(heir, row, now) if is_true and row.revision <= writer.basis.revision else None

    writer.adopt_audit(make_mac)


def adopt_heads(writer: Writer, key: AuditAuthenticator, heir: AuditAuthenticator) -> None:
    """Let the heads of every nexus that are true by *key* be heads of *heir*. Another one stays, and is a gap."""
    for head in writer.load_audit_heads():
        if is_authentic_head(key, head):
            mac = _authenticate_head(heir, head.nexus, head.timeline, head.seq, head.digest, head.revision)
            writer.save_audit_head(replace(head, mac=mac))


def is_authentic_row(key: AuditAuthenticator, row: OutboxRow, timeline: int) -> bool:
    """Say whether a nexus with the root key wrote *row* where it is, in *timeline*."""
    if row.mac is None or not _is_sound(row):
        return False
    return hmac.compare_digest(_authenticate_row(key, row, timeline), row.mac)


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


def _is_sound(row: OutboxRow) -> bool:
    return row.revision >= 0 and row.position >= 0 and len(row.entry) <= MAX_ENTRY


def _authenticate_row(key: AuditAuthenticator, row: OutboxRow, timeline: int) -> bytes:
    place = u64(timeline), u64(row.revision), u64(row.position)
    return key.authenticate_audit(fields(b"shardhold-outbox-v1", row.nexus.encode(), *place, row.entry))


def _authenticate_head(
    key: AuditAuthenticator, nexus: str, timeline: int, seq: int, digest: bytes, revision: int
) -> bytes:
    purpose = b"shardhold-audit-head-v1"
    return key.authenticate_audit(fields(purpose, nexus.encode(), u64(timeline), u64(seq), digest, u64(revision)))
