"""Replace the current shard set by a new one of the same root key, in one change together with what that ends.

Custodians know no points, and an accepted store may have lost its set. The new set's shards are delivered afterwards.
An operation on the root key that is in progress ends in the same change (`nexus.keys.operation.ending`).
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from common.clock import Clock, to_micros
from common.failpoint import around
from common.keys.protected import ProtectedMemory
from nexus.keys import manifest, records
from nexus.keys.floor import Standing
from nexus.keys.manifest import Key
from nexus.keys.opened import OtherSets, PolicyView, Serving, load_view
from nexus.keys.operation.ending import end_operation
from nexus.keys.outbox import WriteEntry
from nexus.keys.ruled_change import load_facts
from nexus.keys.shard_set import Member, ShardSet, draw_set
from nexus.store.protocol import Meta, Store, Writer

_NOTHING: Mapping[Key, bytes] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class SetReplacement:
    """Thread-safe."""

    store: Store
    memory: ProtectedMemory
    clock: Clock

    def commit(
        self,
        serving: Serving,
        write_entry: WriteEntry,
        edit: Callable[[Meta], Meta],
        *,
        beside: Mapping[Key, bytes] = _NOTHING,
    ) -> None:
        """Draw a new set for the root key of *serving*, commit it, and let *serving* have it from here on.

        The set before is dead from then on, and the policies that the change leaves are in force. *edit* changes the
        meta row with it; *beside* are other control rows of the change. On failure nothing has changed.

        Raises:
            StoreUnavailableError: Not committed.
            StoreLostError: The store is not as *serving* was proved on it; not committed.
            CorruptRowError: The manifest does not verify; not committed.
        """
        drawn: list[ShardSet] = []

        def change(writer: Writer) -> tuple[Standing, PolicyView]:
            shard_set, standing = self._write(writer, serving, write_entry, edit, beside)
            drawn.append(shard_set)
            return standing, load_view(writer, serving.root_key)

        with around("unseal.end"):
            try:
                self.store.write(change, alone=True, on_commit=lambda left: serving.follow(*left))
            except BaseException:
                for shard_set in drawn:
                    shard_set.release()
                raise
            old, pending = serving.shard_set, serving.others.pending
            serving.root = replace(serving.root, shard_set=drawn[0])
            serving.others = OtherSets()
        old.release()
        if pending is not None:
            pending.release()

    def _write(
        self,
        writer: Writer,
        serving: Serving,
        write_entry: WriteEntry,
        edit: Callable[[Meta], Meta],
        beside: Mapping[Key, bytes],
    ) -> tuple[ShardSet, Standing]:
        old, now = serving.shard_set.record, to_micros(self.clock.now())
        ended = end_operation(load_facts(writer, serving.root_key), detail="the shard set was replaced", at=now)
        meta = edit(writer.load_meta())
        record, points = draw_set(
            serving.root_key.view,
            [Member(member.name, member.spiffe_id, member.address) for member in old.members],
            threshold=old.threshold,
            generation=old.generation,
            set_number=max(meta.last_set_number, old.set_number) + 1,  # no manifest covers the first of the two
            timeline=meta.timeline,
            cluster_id=serving.cluster_id,
            memory=self.memory,
            drawn_at=now,
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
                put=dict(ended.put) | put | dict(beside),
                delete=ended.delete,
                edit=lambda meta: replace(edit(meta), last_set_number=record.set_number),
            )
            write_entry(writer, serving.root_key)
            on_failure.pop_all()
        return ShardSet(record, record.label(serving.cluster_id, serving.genesis.fingerprint), points), standing
