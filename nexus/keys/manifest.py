"""Control rows under the manifest.

- A control row is (kind, name, body, digest); the digest binds body, kind, name and cluster.
- The manifest is a row too. Its body lists (kind, name, digest) of all others under a head; its digest is the HMAC of
  that body under the control key. It is made again in each change that touches a row.
- The head names cluster, timeline, control revision, the revision of the change that made it, the generation of the
  root key, the epoch, and the digest of the manifest before. A store whose revision or epoch is lower was put back.
- The first format has no generation, no epoch and no manifest before. It is read, and never written.
- With a new timeline, with a new root key, and when the first format ends, the rows of the audit's outbox are adopted;
  with a new root key, so are the heads of the audit files (`nexus.keys.outbox`).
- Nothing is changed but on top of what this nexus left (`nexus.keys.floor`).
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
from nexus.keys.floor import Floor, Standing
from nexus.keys.outbox import adopt_heads, adopt_rows
from nexus.keys.root_key import RootKey
from nexus.store.protocol import ControlRow, Meta, Writer

MANIFEST = ("manifest", "current")
NONE_BEFORE = bytes(32)  # in place of the digest of the manifest before the first one
_PURPOSES = (b"shardhold-manifest-v1", b"shardhold-manifest-v2")  # by format
_HEAD_PARTS = (5, 8)

Key = records.Key


@dataclass(frozen=True, slots=True)
class Head:
    """What a manifest says of the store."""

    cluster_id: bytes
    timeline: int
    control_revision: int
    revision: int  # of the change that made it
    generation: int = 0  # of the root key that authenticates it; 0 in the first format, as the epoch
    epoch: int = 0  # at which it was made
    before: bytes = NONE_BEFORE  # digest of the manifest before, 32 bytes
    format: int = 2  # 1 or 2

    def encode(self) -> list[bytes]:
        """Return its parts."""
        numbers = [u64(self.timeline), u64(self.control_revision), u64(self.revision)]
        parts = [_PURPOSES[self.format - 1], self.cluster_id, *numbers]
        return parts if self.format == 1 else [*parts, u64(self.generation), u64(self.epoch), self.before]


@dataclass(frozen=True, slots=True)
class Controls:
    """Verified control rows, and the names of those that do not verify."""

    bodies: Mapping[Key, bytes]
    damaged: frozenset[Key]
    head: Head
    standing: Standing  # what the manifest proves
    listed: frozenset[Key]  # the rows that it lists; a damaged row may be one that was added

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
    head, listed = _open_manifest(manifest, meta, root_key)
    good = {key: row.body for key, row in present.items() if _is_listed(row, listed, meta.cluster_id)}
    damaged = frozenset((present.keys() | listed.keys()) - good.keys())
    standing = Standing(meta.position, digest_manifest(manifest))
    return Controls(good, damaged, head, standing, frozenset(listed))


def find_current_set(cluster_id: bytes, rows: Sequence[ControlRow]) -> records.ShardSetRecord:
    """Find the current set among the rows that the manifest lists as they are. The manifest itself is not verified yet.

    A row that was added or edited is therefore left out, and once `verify` succeeds, the set found here is verified.

    Raises:
        CorruptRowError: There is no manifest, or not exactly one such set; the message names the rows left out.
    """
    listed = _find_listed(rows)
    sets = [row for row in rows if row.kind == records.SHARD_SET]
    good = [row for row in sets if _is_listed(row, listed, cluster_id)]
    try:
        return _choose_current(good)
    except CorruptRowError as exc:
        left_out = ", ".join(f"{row.kind}/{row.name}" for row in sets if row not in good)
        raise CorruptRowError(f"{exc}; does not verify: {left_out}" if left_out else str(exc)) from exc


def list_sets(cluster_id: bytes, rows: Sequence[ControlRow]) -> list[records.ShardSetRecord]:
    """Return the sets of every state that the manifest lists as they are. The manifest itself is not verified.

    Raises:
        CorruptRowError: There is no manifest, or a row that it lists does not decode.
    """
    listed = _find_listed(rows)
    good = (row for row in rows if row.kind == records.SHARD_SET and _is_listed(row, listed, cluster_id))
    return [records.decode(records.ShardSetRecord, row.body) for row in good]


def list_keys(rows: Sequence[ControlRow]) -> frozenset[Key]:
    """Return which rows the manifest among *rows* lists. Nothing has verified it yet.

    Raises:
        CorruptRowError: There is no manifest, or it does not decode.
    """
    return frozenset(_find_listed(rows))


def first_manifest(meta: Meta, bodies: Mapping[Key, bytes], root_key: RootKey, writer: Writer) -> Meta:
    """Save *bodies* as the first control rows of a cluster, under a new manifest; return the meta row to save."""
    return _save(meta, {}, bodies, (), root_key, writer, before=NONE_BEFORE)[0]


def compose(meta: Meta, bodies: Mapping[Key, bytes], root_key: RootKey) -> list[ControlRow]:
    """Return the rows of *bodies* under a manifest of *meta*, as they would be stored. Nothing is written."""
    digests = {key: row_digest(meta.cluster_id, *key, body) for key, body in bodies.items()}
    rows = [ControlRow(*key, body, digests[key]) for key, body in bodies.items()]
    return [*rows, _make_manifest(meta, digests, root_key, revision=meta.revision, before=NONE_BEFORE)]


def change(
    writer: Writer,
    root_key: RootKey,
    floor: Floor,
    *,
    put: Mapping[Key, bytes] | None = None,
    delete: Iterable[Key] = (),
    edit: Callable[[Meta], Meta] = lambda meta: meta,
    successor: RootKey | None = None,
) -> Standing:
    """Create, replace and delete control rows, and make the manifest again, within the change of *writer*.

    *edit* changes the meta row with them; its generation becomes that of the root key. With a *successor*, the root key
    of a later generation, the manifest and what the audit has in the store are its own from here on: further entries of
    this change are authenticated with it. The change is alone in its commit, and once it is committed, the floor is
    raised to the standing that this returns.

    Raises:
        StoreLostError: The store is not as *floor* says; nothing is changed on top of it.
        CorruptRowError: The manifest does not verify; nothing is changed on top of it.
    """
    meta = writer.load_meta()
    manifest = _load_manifest(writer, floor)
    before = digest_manifest(manifest)
    head, listed = _open_manifest(manifest, meta, root_key)
    edited = edit(meta)
    heir = successor or root_key
    if head.format == 1 or edited.timeline != meta.timeline or successor is not None:
        timelines = meta.timeline, edited.timeline
        adopt_rows(writer, root_key, heir, timelines=timelines, takes_unmarked=head.format == 1)
    if successor is not None:
        adopt_heads(writer, root_key, heir)
    meta, digest = _save(edited, listed, put or {}, delete, heir, writer, before=before)
    writer.save_meta(meta)
    return Standing(meta.position._replace(revision=writer.revision), digest)


def load(writer: Writer, root_key: RootKey, floor: Floor) -> Controls:
    """Load the rows as the change of *writer* finds them.

    Raises:
        StoreLostError: The store is not as *floor* says.
        CorruptRowError: The manifest does not verify.
    """
    _load_manifest(writer, floor)
    return verify(writer.load_meta(), writer.load_controls(), root_key)


def digest_manifest(manifest: ControlRow) -> bytes:
    """Return the digest of a manifest as it is stored, body and HMAC, 32 bytes."""
    return hashlib.sha256(fields(b"shardhold-manifest-digest-v1", manifest.body, manifest.digest)).digest()


def row_digest(cluster_id: bytes, kind: str, name: str, body: bytes) -> bytes:
    """Return the digest of one row, 32 bytes."""
    return hashlib.sha256(fields(b"shardhold-control-v1", cluster_id, kind.encode(), name.encode(), body)).digest()


def _load_manifest(writer: Writer, floor: Floor) -> ControlRow:
    """Load the manifest that a change begins with, if the store is as *floor* says."""
    floor.check_basis(writer.basis)
    manifest = writer.load_control(*MANIFEST)
    if manifest is None:
        raise CorruptRowError("control manifest is missing")
    floor.check_manifest(digest_manifest(manifest))
    return manifest


def _save(
    meta: Meta,
    listed: Mapping[Key, bytes],
    put: Mapping[Key, bytes],
    delete: Iterable[Key],
    root_key: RootKey,
    writer: Writer,
    *,
    before: bytes,
) -> tuple[Meta, bytes]:
    """Save the rows and a manifest; return the meta row to save with it, and the digest of the manifest."""
    meta = replace(meta, control_revision=meta.control_revision + 1, generation=root_key.generation)
    digests = dict(listed)
    for key in delete:
        writer.delete_control(*key)
        digests.pop(key, None)
    for (kind, name), body in put.items():
        digests[kind, name] = row_digest(meta.cluster_id, kind, name, body)
        writer.save_control(ControlRow(kind, name, body, digests[kind, name]))
    manifest = _make_manifest(meta, digests, root_key, revision=writer.revision, before=before)
    writer.save_control(manifest)
    return meta, digest_manifest(manifest)


def _make_manifest(
    meta: Meta, digests: Mapping[Key, bytes], root_key: RootKey, *, revision: int, before: bytes
) -> ControlRow:
    numbers = (meta.timeline, meta.control_revision, revision, root_key.generation, meta.epoch)
    body = _encode_manifest(Head(meta.cluster_id, *numbers, before), digests)
    return ControlRow(*MANIFEST, body, root_key.authenticate(body))


def _encode_manifest(head: Head, digests: Mapping[Key, bytes]) -> bytes:
    rows = (part for (kind, name), digest in sorted(digests.items()) for part in (kind.encode(), name.encode(), digest))
    return fields(*head.encode(), *rows)


def _open_manifest(manifest: ControlRow, meta: Meta, root_key: RootKey) -> tuple[Head, dict[Key, bytes]]:
    if not hmac.compare_digest(manifest.digest, root_key.authenticate(manifest.body)):
        raise CorruptRowError("control manifest does not verify under the control key")
    head, listed = _parse_manifest(manifest.body)
    if (head.cluster_id, head.timeline, head.control_revision) != (
        meta.cluster_id,
        meta.timeline,
        meta.control_revision,
    ):
        raise CorruptRowError("control manifest is of another cluster, timeline or control revision than the store")
    if head.revision > meta.revision:
        raise CorruptRowError("store is at an earlier revision than its control manifest: it was put back")
    if head.epoch > meta.epoch:
        raise CorruptRowError("store is at an earlier epoch than its control manifest: it was put back")
    if meta.generation not in (0, root_key.generation):
        raise CorruptRowError(f"store is of generation {meta.generation}, the root key of {root_key.generation}")
    if head.format > 1 and head.generation != root_key.generation:
        raise CorruptRowError(
            f"control manifest is of generation {head.generation}, the root key of {root_key.generation}"
        )
    return head, listed


def _find_listed(rows: Sequence[ControlRow]) -> dict[Key, bytes]:
    """Return what the manifest among *rows*, which nothing has verified yet, lists."""
    manifest = next((row for row in rows if (row.kind, row.name) == MANIFEST), None)
    if manifest is None:
        raise CorruptRowError("control manifest is missing")
    return _parse_manifest(manifest.body)[1]


def _parse_manifest(body: bytes) -> tuple[Head, dict[Key, bytes]]:
    """Return what a manifest says of the store, and the digests that it lists.

    Raises:
        CorruptRowError: It is not exactly what `_encode_manifest` makes.
    """
    parts = parse_fields(body)
    if not parts or parts[0] not in _PURPOSES:
        raise CorruptRowError("control manifest does not decode")
    number = _PURPOSES.index(parts[0]) + 1
    size = _HEAD_PARTS[number - 1]
    head, rows = parts[:size], parts[size:]
    if len(head) < size or len(rows) % 3 or any(len(part) != 8 for part in head[2:7]):
        raise CorruptRowError("control manifest does not decode")
    try:
        keys = [(kind.decode(), name.decode()) for kind, name in zip(rows[::3], rows[1::3], strict=True)]
    except UnicodeDecodeError as exc:
        raise CorruptRowError("control manifest does not decode") from exc
    timeline, control_revision, revision, *later = (int.from_bytes(part, "big") for part in head[2:7])
    generation, epoch = later or (0, 0)
    before = head[7] if number > 1 else NONE_BEFORE
    found = Head(head[1], timeline, control_revision, revision, generation, epoch, before, format=number)
    listed = dict(zip(keys, rows[2::3], strict=True))
    if len(before) != len(NONE_BEFORE) or _encode_manifest(found, listed) != body:
        raise CorruptRowError("control manifest does not decode")
    return found, listed


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
