"""Sets that are dead: when keepers may drop them, and when their rows go.

1. A set may be dropped once it is dead, and is not what an operation at `flipped` has replaced.
   A set without a row, numbered no higher than what was given out, is dead too: a row comes before every delivery. Its
   row was forgotten before a late delivery came, or it is of a timeline that was abandoned.
2. The row of a dead set stays until each of its members dropped it, started anew, or was given up by an operator: until
   then the nexus knows whom to tell.
"""

from collections.abc import Collection, Mapping

import msgspec

from nexus.keys import records
from nexus.keys.operation.change import Change
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.record import Step


def find_droppable(facts: Facts) -> dict[int, records.ShardSetRecord]:
    """Return the sets that keepers may drop, by number (rule 1). None while it cannot be read what is in progress."""
    if records.OPERATION in facts.damaged:
        return {}
    kept = 0
    if facts.operation is not None and facts.operation.step is Step.FLIPPED:
        kept = facts.operation.source.set_number
    return {
        number: one
        for number, one in sorted(facts.sets.items())
        if one.state is records.SetState.DEAD and number != kept
    }


def is_droppable(facts: Facts, set_id: bytes, order: tuple[int, int]) -> bool:
    """Whether a keeper that reports to hold this set may drop it (rule 1). *order*: timeline and set number."""
    if any(one.set_id == set_id for one in facts.sets.values()):
        return any(one.set_id == set_id for one in find_droppable(facts).values())
    if facts.damaged_sets or records.OPERATION in facts.damaged:
        return False  # its row may be the one that does not verify
    return order <= (facts.meta.timeline, facts.meta.last_set_number)


def find_forgettable(facts: Facts, gone: Mapping[int, frozenset[str]]) -> list[int]:
    """Return the dead sets of which no member holds a shard any more (rule 2).

    *gone* names by set number the members that dropped it, started anew, or were given up.
    """
    return [
        number
        for number, one in find_droppable(facts).items()
        if all(member.name in gone.get(number, ()) for member in one.members)
    ]


def give_up(facts: Facts, names: Collection[str]) -> Change:
    """Wait no more for keepers of these *names* to drop the sets that are current or dead. No epoch is raised."""
    put = {}
    for number, one in facts.sets.items():
        lost = {member.name for member in one.members}.intersection(names).difference(one.given_up)
        if lost and one.state is not records.SetState.PENDING:
            given_up = msgspec.structs.replace(one, given_up=tuple(sorted({*one.given_up, *lost})))
            put[records.SHARD_SET, str(number)] = records.encode(given_up)
    return Change(facts.current, put, raises_epoch=False)


def forget_sets(facts: Facts, gone: Mapping[int, frozenset[str]]) -> Change:
    """Delete the rows of the sets that `find_forgettable` names; empty when there is none. No epoch is raised."""
    delete = frozenset((records.SHARD_SET, str(number)) for number in find_forgettable(facts, gone))
    return Change(facts.current, delete=delete, raises_epoch=False)
