"""The end of an operation, read from the rows themselves: it works without a readable `operation/current`.

1. A pending set says: before the flip. Everything numbered above what is current is taken back: the set is dead, the
   generation aborted, and their keyring, escrow and canary are gone. Their numbers stay used up.
2. A keyring older than the current generation says: flipped. Everything that only the replaced key opens is gone.
3. Neither: only the row of the operation is left to delete, as after the flip of a reshare.
4. Rows of sets that do not verify are deleted: keepers drop what has no row.
5. The change is a part of another one (abort, seal, unseal, accepting an older store, healing), which raises the epoch.
6. A seal keeps what is flipped as it is: the operation goes on after the unseal, or the unseal ends it.
"""

from collections.abc import Iterable

import msgspec

from nexus.keys import records
from nexus.keys.operation.change import Change
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.record import EndedRecord, Outcome, Step


def end_operation(facts: Facts, *, detail: str = "", at: int = 0, keeps_flipped: bool = False) -> Change:
    """Take back what is staged, or settle what is flipped; empty when there is neither. *keeps_flipped*: rule 6.

    *detail* says why it is taken back, *at* is in microseconds since 1970.
    """
    if keeps_flipped and is_flipped(facts):
        return Change(facts.current, raises_epoch=False)
    put, delete = _take_back(facts)
    delete |= find_replaced(facts)  # rule 2
    if records.OPERATION in facts.bodies.keys() | facts.damaged:
        delete.add(records.OPERATION)
    put |= make_ended(facts, Outcome.SETTLED if is_flipped(facts) else Outcome.ABORTED, detail, at)
    return Change(facts.current, put, frozenset(delete), raises_epoch=False)


def needs_healing(facts: Facts) -> bool:
    """Whether rows of an operation are left that nothing carries on, or that do not verify."""
    if records.OPERATION not in facts.damaged and facts.operation is not None:
        return False
    return not end_operation(facts).is_empty


def is_flipped(facts: Facts) -> bool:
    """Whether an operation is past its flip."""
    if facts.pending_sets:
        return False
    operation = facts.operation
    return bool(facts.older_keyrings) or (operation is not None and operation.step is Step.FLIPPED)


def make_ended(facts: Facts, outcome: Outcome, detail: str, at: int) -> dict[records.Key, bytes]:
    """Return the row that remembers the operation in progress as ended; none where none can be read."""
    record = facts.operation
    if record is None:
        return {}
    ended = EndedRecord(record.id, record.depth, outcome, detail, at, record.source, record.target)
    return {records.ENDED: records.encode(ended)}


def find_replaced(facts: Facts) -> set[records.Key]:
    """Return the rows that only root keys and KEKs before the current ones open, but for those in the keyring."""
    generations = _keys(records.KEYRING, facts, 0, facts.generation) | _keys(records.ESCROW, facts, 0, facts.generation)
    return generations | _keys(records.CANARY, facts, 0, facts.kek_id)


def _take_back(facts: Facts) -> tuple[dict[records.Key, bytes], set[records.Key]]:
    """Rule 1. A row that does not verify, or is of no known state, is deleted."""
    put = {}
    for shard_set in facts.pending_sets:
        dead = records.replace_state(shard_set, records.SetState.DEAD)
        put[records.SHARD_SET, str(shard_set.set_number)] = records.encode(dead)
    for number, record in facts.generations.items():
        if record.state is records.GenerationState.PENDING:
            aborted = msgspec.structs.replace(record, state=records.GenerationState.ABORTED)
            put[records.GENERATION, str(number)] = records.encode(aborted)
    delete = _keys(records.KEYRING, facts, facts.generation + 1) | _keys(records.ESCROW, facts, facts.generation + 1)
    delete |= _keys(records.CANARY, facts, facts.kek_id + 1)
    delete |= facts.damaged_sets
    delete |= _keys(records.GENERATION, facts, facts.generation + 1) & facts.damaged
    return put, delete


def _keys(kind: str, facts: Facts, start: int, stop: int | None = None) -> set[records.Key]:
    return {(kind, str(number)) for number in _between(facts.numbers(kind), start, stop)}


def _between(numbers: Iterable[int], start: int, stop: int | None) -> Iterable[int]:
    return (number for number in numbers if start <= number and (stop is None or number < stop))
