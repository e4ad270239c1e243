"""Control rows under the manifest.

- A control row is (kind, name, body, digest); the digest binds body, kind, name and cluster.
- The manifest is a row too. Its body lists (kind, name, digest) of all others, with cluster, timeline and control
  revision; its digest is the HMAC of that body under the control key. It is made again in each change that touches a
  row.
- The manifest names the revision of the change that made it: a store that is at an earlier one was put back.
- Without the control key, nobody can add, edit or remove a row unnoticed: `verify` names each row that is bad, missing
  or extra. Only that row is refused; the rest keeps working, unless recovery itself needs the row.
"""

import contextlib
import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from common.errors import CorruptRowError
from common.forms.codec import fields, parse_fields, u64
from nexus.keys import records
from nexus.keys.root_key import RootKey
from nexus.store.protocol import ControlRow, Meta, Writer

MANIFEST = ("manifest", "current")
_PURPOSE = b"shardhold-manifest-v1"

Key = tuple[str, str]  # kind and name


@dataclass(frozen=True, slots=True)
class Controls:
    """Verified control rows, and the names of those that do not verify."""

    bodies: Mapping[Key, bytes]
    damaged: frozenset[Key]

    def need(self, kind: str, name: str) -> bytes:
        """Return the body of a row that nothing works without.

        Raises:
            CorruptRowError: It does not verify, or is not there.
        """
        body = self.bodies.get((kind, name))
        if body is None:
            raise CorruptRowError(f"control row {kind}/{name} does not verify")
        return body

    def of_kind(self, kind: str) -> dict[str, bytes]:
        """Return the verified bodies of one kind, by name."""
        return {name: body for (row_kind, name), body in self.bodies.items() if row_kind == kind}

    def damaged_of_kind(self, kind: str) -> list[str]:
        """Return the names of one kind that do not verify, sorted."""
        return sorted(name for row_kind, name in self.damaged if row_kind == kind)


def verify(meta: Meta, rows: Iterable[ControlRow], root_key: RootKey) -> Controls:
    """Hold *rows* against their manifest.

    Raises:
        CorruptRowError: The manifest itself is missing, edited, or of another timeline or control revision.
    """
    present = {(row.kind, row.name): row for row in rows}
    manifest = present.pop(MANIFEST, None)
    if manifest is None:
        raise CorruptRowError("control manifest is missing")
    listed = _open_manifest(manifest, meta, root_key)
    good = {key: row.body for key, row in present.items() if _is_listed(row, listed, meta.cluster_id)}
    return Controls(good, frozenset((present.keys() | listed.keys()) - good.keys()))


def find_current_set(cluster_id: bytes, rows: Sequence[ControlRow]) -> records.ShardSetRecord:
    """Find the current set among the rows that the manifest lists as they are. The manifest itself is not verified yet.

    A row that was added or edited is therefore left out, and once `verify` succeeds, the set found here is verified.

    Raises:
        CorruptRowError: There is no manifest, or not exactly one such set; the message names the rows left out.
    """
    manifest = next((row for row in rows if (row.kind, row.name) == MANIFEST), None)
    if manifest is None:
        raise CorruptRowError("control manifest is missing")
    listed = _parse_manifest(manifest.body)[1]
    sets = [row for row in rows if row.kind == records.SHARD_SET]
    good = [row for row in sets if _is_listed(row, listed, cluster_id)]
    try:
        return _choose_current(good)
    except CorruptRowError as exc:
        left_out = ", ".join(f"{row.kind}/{row.name}" for row in sets if row not in good)
        raise CorruptRowError(f"{exc}; does not verify: {left_out}" if left_out else str(exc)) from exc


def is_first_format(rows: Iterable[ControlRow]) -> bool:
    """Say whether the manifest among *rows* is of the first format: the outbox of its time had no MACs."""
    manifest = next((row for row in rows if (row.kind, row.name) == MANIFEST), None)
    return manifest is not None and parse_fields(manifest.body)[:1] == [b"shardhold-manifest-v1"]


def first_manifest(meta: Meta, bodies: Mapping[Key, bytes], root_key: RootKey, writer: Writer) -> Meta:
    """Save *bodies* as the first control rows of a cluster, under a new manifest; return the meta row to save."""
    return _save(meta, {}, bodies, (), root_key, writer)


def change(
    writer: Writer,
    root_key: RootKey,
    *,
    put: Mapping[Key, bytes] | None = None,
    delete: Iterable[Key] = (),
    edit: Callable[[Meta], Meta] = lambda meta: meta,
) -> None:
    """Create, replace and delete control rows, and make the manifest again, within the change of *writer*.

    *edit* changes the meta row with them.

    Raises:
        CorruptRowError: The manifest does not verify; nothing is changed on top of it.
    """
    meta = writer.load_meta()
    manifest = writer.load_control(*MANIFEST)
    if manifest is None:
        raise CorruptRowError("control manifest is missing")
    listed = _open_manifest(manifest, meta, root_key)
    writer.save_meta(_save(edit(meta), listed, put or {}, delete, root_key, writer))


def row_digest(cluster_id: bytes, kind: str, name: str, body: bytes) -> bytes:
    """Return the digest of one row, 32 bytes."""
    return hashlib.sha256(fields(b"shardhold-control-v1", cluster_id, kind.encode(), name.encode(), body)).digest()


def _save(
    meta: Meta,
    listed: Mapping[Key, bytes],
    put: Mapping[Key, bytes],
    delete: Iterable[Key],
    root_key: RootKey,
    writer: Writer,
) -> Meta:
    meta = replace(meta, control_revision=meta.control_revision + 1)
    digests = dict(listed)
    for key in delete:
        writer.delete_control(*key)
        digests.pop(key, None)
    for (kind, name), body in put.items():
        digests[kind, name] = row_digest(meta.cluster_id, kind, name, body)
        writer.save_control(ControlRow(kind, name, body, digests[kind, name]))
    body = _encode_manifest(meta, writer.revision, digests)
    writer.save_control(ControlRow(*MANIFEST, body, root_key.authenticate(body)))
    return meta


def _encode_manifest(meta: Meta, revision: int, digests: Mapping[Key, bytes]) -> bytes:
    rows = (part for (kind, name), digest in sorted(digests.items()) for part in (kind.encode(), name.encode(), digest))
    return fields(*_manifest_head(meta), u64(revision), *rows)


def _manifest_head(meta: Meta) -> list[bytes]:
    return [_PURPOSE, meta.cluster_id, u64(meta.timeline), u64(meta.control_revision)]


def _open_manifest(manifest: ControlRow, meta: Meta, root_key: RootKey) -> dict[Key, bytes]:
    if not hmac.compare_digest(manifest.digest, root_key.authenticate(manifest.body)):
        raise CorruptRowError("control manifest does not verify under the control key")
    head, listed = _parse_manifest(manifest.body)
    if head[:-1] != _manifest_head(meta):
        raise CorruptRowError("control manifest is of another cluster, timeline or control revision than the store")
    if int.from_bytes(head[-1], "big") > meta.revision:
        raise CorruptRowError("store is at an earlier revision than its control manifest: it was put back")
    return listed


def _parse_manifest(body: bytes) -> tuple[list[bytes], dict[Key, bytes]]:
    """Return what a manifest says of the store, its revision last, and the digests that it lists."""
    parts = parse_fields(body)
    head, rows = parts[:5], parts[5:]
    if len(head) < 5 or len(rows) % 3:
        raise CorruptRowError("control manifest does not decode")
    try:
        keys = [(kind.decode(), name.decode()) for kind, name in zip(rows[::3], rows[1::3], strict=True)]
    except UnicodeDecodeError as exc:
        raise CorruptRowError("control manifest does not decode") from exc
    return head, dict(zip(keys, rows[2::3], strict=True))


def _choose_current(rows: Iterable[ControlRow]) -> records.ShardSetRecord:
    current = []
    for row in rows:
        with contextlib.suppress(CorruptRowError):  # no record of a set: left out
            record = records.decode(records.ShardSetRecord, row.body)
            if record.state is records.SetState.CURRENT:
                current.append(record)
    if len(current) != 1:
        raise CorruptRowError(f"{len(current)} shard sets are current, want 1")
    return current[0]


def _is_listed(row: ControlRow, listed: Mapping[Key, bytes], cluster_id: bytes) -> bool:
    return row.digest == listed.get((row.kind, row.name)) == row_digest(cluster_id, row.kind, row.name, row.body)
