"""What the rules look at: the meta row, and the control rows that the manifest proves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from common.errors import CorruptRowError
from nexus.keys import records
from nexus.keys.operation.change import Change
from nexus.keys.operation.record import EndedRecord, Numbers, OperationRecord
from nexus.store.protocol import Meta

T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Facts:
    """One committed state. Rows that do not verify or do not decode are named in *damaged* only."""

    meta: Meta
    bodies: Mapping[records.Key, bytes]  # verified, without the manifest
    damaged: frozenset[records.Key]
    current_set: records.ShardSetRecord
    sets: Mapping[int, records.ShardSetRecord]  # by set number, of every state
    generations: Mapping[int, records.GenerationRecord]
    keyrings: Mapping[int, records.KeyringRecord]  # by generation
    operation: OperationRecord | None
    ended: EndedRecord | None = None  # the last one

    @property
    def generation(self) -> int:
        """The current generation: that of the current set."""
        return self.current_set.generation

    @property
    def keyring(self) -> records.KeyringRecord:
        """The keyring of the current generation."""
        return self.keyrings[self.generation]

    @property
    def kek_id(self) -> int:
        """The current KEK."""
        return self.keyring.current_kek_id

    @property
    def current(self) -> Numbers:
        """What is current."""
        return Numbers(self.generation, self.current_set.set_number, self.kek_id)

    @property
    def pending_sets(self) -> list[records.ShardSetRecord]:
        """Sets that an operation has staged, by number; more than one only after damage."""
        return [one for _, one in sorted(self.sets.items()) if one.state is records.SetState.PENDING]

    @property
    def older_keyrings(self) -> list[int]:
        """Generations before the current one whose keyrings are still there: a flip is not settled."""
        return [number for number in self.numbers(records.KEYRING) if number < self.generation]

    @property
    def chain_length(self) -> int:
        """How many links follow the genesis record."""
        return len(self.numbers(records.LINK))

    @property
    def needed_damaged(self) -> list[str]:
        """Rows that do not verify and that an operation or the way back needs, as kind/name, sorted."""
        generation = str(self.generation)
        needed = {records.GENESIS, records.RECOVERY_KEY, records.OPERATION, (records.CANARY, str(self.kek_id))}
        needed |= {(kind, generation) for kind in (records.GENERATION, records.KEYRING, records.ESCROW)}
        needed |= {(records.LINK, str(seq)) for seq in self.numbers(records.LINK)}
        return sorted(f"{kind}/{name}" for kind, name in self.damaged & needed)

    @property
    def damaged_sets(self) -> set[records.Key]:
        """Rows of sets that do not verify; the current set is not among them."""
        return {key for key in self.damaged if key[0] == records.SHARD_SET}

    @property
    def damaged_links(self) -> list[str]:
        """Rows of the chain that do not verify, as kind/name: its next link has no certain number meanwhile."""
        return sorted(f"{kind}/{name}" for kind, name in self.damaged if kind == records.LINK)

    def numbers(self, kind: str) -> list[int]:
        """Return the numbers that rows of one kind are named by, ascending; those of damaged rows are among them."""
        keys = self.bodies.keys() | self.damaged
        return sorted(int(name) for row_kind, name in keys if row_kind == kind and name.isdecimal())

    def after(self, change: Change) -> "Facts":
        """Return the facts as *change* leaves them, all but the revisions, which the store counts.

        Raises:
            CorruptRowError: No nexus could be ready with them.
        """
        damaged = self.damaged - change.delete - change.put.keys()
        return read_facts(change.edit(self.meta), change.apply(self.bodies), damaged)


def read_facts(meta: Meta, bodies: Mapping[records.Key, bytes], damaged: frozenset[records.Key] = frozenset()) -> Facts:
    """Decode the rows that the rules look at. *bodies* and *damaged* are those of `manifest.Controls`.

    Raises:
        CorruptRowError: There is not exactly one current set, or the keyring of its generation is missing: no nexus
            is ready then.
    """
    undecoded: set[records.Key] = set()
    sets = _decode_kind(records.ShardSetRecord, records.SHARD_SET, bodies, undecoded)
    generations = _decode_kind(records.GenerationRecord, records.GENERATION, bodies, undecoded)
    keyrings = _decode_kind(records.KeyringRecord, records.KEYRING, bodies, undecoded)
    operation = None
    if (body := bodies.get(records.OPERATION)) is not None:
        operation = _decode(OperationRecord, records.OPERATION, body, undecoded)
    ended = None
    if (body := bodies.get(records.ENDED)) is not None:
        ended = _decode(EndedRecord, records.ENDED, body, undecoded)
    current = [one for one in sets.values() if one.state is records.SetState.CURRENT]
    if len(current) != 1:
        raise CorruptRowError(f"{len(current)} shard sets are current, want 1")
    if current[0].generation not in keyrings:
        raise CorruptRowError(f"control row {records.KEYRING}/{current[0].generation} does not verify")
    good = {key: body for key, body in bodies.items() if key not in undecoded}
    return Facts(meta, good, damaged | undecoded, current[0], sets, generations, keyrings, operation, ended)


def _decode_kind(
    kind: type[T], row_kind: str, bodies: Mapping[records.Key, bytes], undecoded: set[records.Key]
) -> dict[int, T]:
    found = {}
    for key, body in bodies.items():
        if key[0] == row_kind:
            record = _decode(kind, key, body, undecoded) if key[1].isdecimal() else None
            if record is not None:
                found[int(key[1])] = record
    return found


def _decode(kind: type[T], key: records.Key, body: bytes, undecoded: set[records.Key]) -> T | None:
    try:
        return records.decode(kind, body)
    except CorruptRowError:
        undecoded.add(key)
        return None
