"""What surrounds the current set: the pending one, those that are dead, and who may hold a shard of them yet."""

from nexus.keepers.plan import list_leaving
from nexus.keepers.pool import KeeperPool
from nexus.keys.opened import OtherSets
from nexus.keys.operation.dead_sets import find_droppable
from nexus.keys.operation.facts import Facts
from nexus.keys.records import SetState, ShardSetRecord
from nexus.keys.successor import Successor


def find_others(facts: Facts, pending: Successor | None) -> OtherSets:
    """Return the sets beside the current one. *pending* is one that may have ended meanwhile."""
    target = None if facts.operation is None else facts.sets.get(facts.operation.target.set_number)
    is_pending = target is not None and target.state is SetState.PENDING
    kept = pending if is_pending and pending is not None and target is not None and _is_same(pending, target) else None
    droppable = frozenset(one.set_id for one in find_droppable(facts).values())
    return OtherSets(
        pending=kept,
        droppable=droppable,
        kept=frozenset(one.set_id for one in facts.sets.values()) - droppable - {facts.current_set.set_id},
        newest=(0, 0) if facts.needed_damaged else (facts.meta.timeline, facts.meta.last_set_number),
        leaving=list_leaving(facts.sets.values()),
    )


def list_gone(facts: Facts, pool: KeeperPool) -> dict[int, frozenset[str]]:
    """Return by set number the members of dead sets that hold no shard of it any more, or are given up."""
    reported = {seat.member.identity: seat.status.reported for seat in pool.seats}
    return {
        number: frozenset(
            member.name
            for member in one.members
            if member.name in one.given_up
            or ((held := reported.get((member.name, member.spiffe_id))) is not None and one.set_id not in held)
        )
        for number, one in find_droppable(facts).items()
    }


def _is_same(pending: Successor, record: ShardSetRecord) -> bool:
    return pending.shard_set.record.set_id == record.set_id
