"""Replace the current shard set by a new one of the same root key, in one change together with what that ends.

Custodians know no points, and an accepted store may have lost its set. The new set's shards are delivered afterwards.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from common.keys.protected import ProtectedMemory
from nexus.keys import manifest, records
from nexus.keys.floor import Standing
from nexus.keys.manifest import Key
from nexus.keys.opened import PolicyView, Serving, load_view
from nexus.keys.root_key import RootKey
from nexus.keys.shard_set import Member, ShardSet, draw_set
from nexus.store.protocol import Meta, Store, Writer

# Writes the audit entry of the change that it is called in, authenticated with the root key.
WriteEntry = Callable[[Writer, RootKey], None]

_NOTHING: Mapping[Key, bytes] = MappingProxyType({})


def replace_set(
    store: Store,
    serving: Serving,
    write_entry: WriteEntry,
    edit: Callable[[Meta], Meta],
    memory: ProtectedMemory,
    *,
    beside: Mapping[Key, bytes] = _NOTHING,
) -> None:
    """Draw a new set for the root key of *serving*, commit it, and let *serving* have it from here on.

    The set before is dead from then on, and the policies that the change leaves are in force. *edit* changes the meta
    row with it; *beside* are other control rows of the change. On failure nothing has changed.

    Raises:
        StoreUnavailableError: Not committed.
        StoreLostError: The store is not as *serving* was proved on it; not committed.
        CorruptRowError: The manifest does not verify; not committed.
    """
    drawn: list[ShardSet] = []

    def change(writer: Writer) -> tuple[Standing, PolicyView]:
        shard_set, standing = _write(writer, serving, write_entry, edit, memory, beside)
        drawn.append(shard_set)
        return standing, load_view(writer, serving.root_key)

    try:
        store.write(change, alone=True, on_commit=lambda left: serving.follow(*left))
    except BaseException:
        for shard_set in drawn:
            shard_set.release()
        raise
    old = serving.shard_set
    serving.root = replace(serving.root, shard_set=drawn[0])
    old.release()


def _write(
    writer: Writer,
    serving: Serving,
    write_entry: WriteEntry,
    edit: Callable[[Meta], Meta],
    memory: ProtectedMemory,
    beside: Mapping[Key, bytes],
) -> tuple[ShardSet, Standing]:
    old = serving.shard_set.record
    meta = edit(writer.load_meta())
    record, points = draw_set(
        serving.root_key.view,
        [Member(member.name, member.spiffe_id, member.address) for member in old.members],
        threshold=old.threshold,
        generation=old.generation,
        set_number=max(meta.last_set_number, old.set_number) + 1,  # no manifest covers the first of the two
        timeline=meta.timeline,
        cluster_id=serving.cluster_id,
        memory=memory,
    )
    with contextlib.ExitStack() as on_failure:
        for point in points:
            on_failure.callback(point.release)
        dead = records.replace_state(old, records.SetState.DEAD)
        put = {(records.SHARD_SET, str(one.set_number)): records.encode(one) for one in (dead, record)}
        standing = manifest.change(
            writer,
            serving.root_key,
            serving.floor,
            put=put | dict(beside),
            edit=lambda meta: replace(edit(meta), last_set_number=record.set_number),
        )
        write_entry(writer, serving.root_key)
        on_failure.pop_all()
    return ShardSet(record, record.label(serving.cluster_id, serving.genesis.fingerprint), points), standing
