"""The transitions of an operation, with all their guards. Each returns what to change, or why nothing is changed.

    idle ─prepare─▶ prepared ─distribute─▶ distributed ─flip─▶ flipped ─settle─▶ idle
                       └────────abort──────────┘

1. Every transition is a compare-and-swap on operation, step and fence, which its ticket names; it raises the epoch, and
   the epoch that it leaves is the next fence. Whoever missed one is refused by the store, and by the keepers.
2. Only the process in the record goes on. Another one takes over first, and never at `prepared`: the new key and points
   died with their maker, and what keepers hold of them is not known to be enough.
3. From `prepare` to `settle` the keyrings are frozen: the keyring job changes no KEK meanwhile.
4. `distribute` and `flip` want the proof of the driver of now, and a quorum of holders: min(n, max(t + 1, n − 1)). On
   the operator's word t are enough, fewer never. At the flip they proved themselves at most 5 s before.
5. The flip is one function of the rows: the rehearsal proves its result in memory, and the same one is committed.
6. The set that a flip replaces is dead with the flip. Keepers may drop it once the operation is settled.
7. Nothing falls back from `flipped`. It is settled when the recovery way brought the new set back since the flip, or on
   the word of a superuser, while the key is in memory.
8. An operation that cannot be read is not carried on. `heal` ends it, and deletes what one has left: nothing ever
   falls back, so what was replaced is of no use.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from nexus.keys import records
from nexus.keys.operation.change import Change
from nexus.keys.operation.ending import end_operation, find_replaced, make_ended, needs_healing
from nexus.keys.operation.evidence import Holding, Order, Preflight, Proof, Staged
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.guards import (
    BEFORE_FLIP,
    check_holders,
    check_keyrings,
    check_link,
    check_ordered,
    check_proof,
    check_target,
    count_wanted,
    find_driven,
    find_operation,
)
from nexus.keys.operation.preflight import check_all, find_refusals
from nexus.keys.operation.record import (
    Acknowledgement,
    Depth,
    Driver,
    OperationRecord,
    Outcome,
    Step,
    Ticket,
    Waiver,
    WaiverKind,
)
from nexus.keys.operation.refusal import Reason, Refused
from nexus.keys.operation.staging import check_staged, find_target, given_out, make_key_rows

MAX_AGE = 5.0  # seconds since a holder proved itself, at the flip
_WAIVED_AT = {
    WaiverKind.BACKUP: (),  # part of the order
    WaiverKind.THRESHOLD: BEFORE_FLIP,
    WaiverKind.PROOF: (Step.FLIPPED,),
}


def prepare(
    facts: Facts,
    order: Order,
    staged: Staged,
    preflight: Preflight,
    *,
    operation_id: bytes,
    driver: Driver,
    at: int,
) -> Change | Refused:
    """Begin an operation: use up its numbers, and put the rows of what is new beside what is current."""
    if refused := next(find_refusals(check_all(facts, order, preflight)), None):
        return refused
    if refused := check_ordered(facts, order, staged) or check_staged(facts, staged):
        return refused
    record = OperationRecord(
        operation_id,
        order.depth,
        Step.PREPARED,
        facts.meta.epoch + 1,
        driver,
        order.reason,
        order.actor,
        started_at=at,
        stepped_at=at,
        source=facts.current,
        target=find_target(staged),
        quorum=staged.shard_set.quorum,
        waivers=order.waivers,
        link=b"" if staged.key is None else staged.key.link,
        suspected_at=order.suspected_at,
    )
    put = {
        records.OPERATION: records.encode(record),
        (records.SHARD_SET, str(staged.shard_set.set_number)): records.encode(staged.shard_set),
    }
    if staged.key is not None:
        is_emergency = order.depth is Depth.EMERGENCY
        generation = records.GenerationRecord(
            records.GenerationState.PENDING,
            staged.key.kcv,
            created_at=at,
            actor=order.actor,
            reason=order.reason,
            is_emergency=is_emergency,
            without_backup=order.without_backup,
        )
        put |= make_key_rows(facts, staged, staged.key, generation, taints=is_emergency, at=at)
    return Change(facts.current, put, given_out=given_out(staged))


def distribute(
    facts: Facts, ticket: Ticket, *, driver: Driver, proof: Proof | None, holders: Mapping[str, Holding], at: int
) -> Change | Refused:
    """Record that keepers hold the new set, and that the rehearsal passed."""
    record = find_driven(facts, ticket, driver, Step.PREPARED)
    if isinstance(record, Refused):
        return record
    refused = check_proof(record, proof, BEFORE_FLIP) or check_target(facts, record)
    if refused := refused or check_holders(facts, record, holders, count_wanted(facts, record)):
        return refused
    acknowledged = tuple(Acknowledgement(name, holding.boot_id) for name, holding in sorted(holders.items()))
    return _step(facts, record, at, step=Step.DISTRIBUTED, acknowledgements=acknowledged)


def flip(
    facts: Facts,
    ticket: Ticket,
    *,
    driver: Driver,
    proof: Proof | None,
    holders: Mapping[str, Holding],
    link: bytes,
    revision: int,
    at: int,
) -> Change | Refused:
    """Make what is new current. *link* is the signed record of the chain, *revision* that of the change."""
    record = find_driven(facts, ticket, driver, Step.DISTRIBUTED)
    if isinstance(record, Refused):
        return record
    if refused := check_proof(record, proof, BEFORE_FLIP) or check_target(facts, record):
        return refused
    fresh = {name: holding for name, holding in holders.items() if holding.age <= MAX_AGE}
    if refused := check_holders(facts, record, fresh, count_wanted(facts, record)):
        return refused
    return make_flip(facts, record, link=link, revision=revision, at=at)


def make_flip(facts: Facts, record: OperationRecord, *, link: bytes, revision: int, at: int) -> Change | Refused:
    """Return the flip alone, without its guards: what the rehearsal proves, and `flip` commits (rule 5)."""
    if refused := check_target(facts, record) or check_link(facts, record, link):
        return refused
    new, old = facts.sets[record.target.set_number], facts.current_set
    change = _step(facts, record, at, step=Step.FLIPPED)
    put = dict(change.put)
    for shard_set, state in ((old, records.SetState.DEAD), (new, records.SetState.CURRENT)):
        put[records.SHARD_SET, str(shard_set.set_number)] = records.encode(records.replace_state(shard_set, state))
    if record.depth.renews_key:
        put[records.LINK, str(facts.chain_length + 1)] = records.encode(records.LinkRecord(link))
        put |= _replace_generation(facts, record, revision=revision, at=at)
    return Change(record.target, put)


def settle(facts: Facts, ticket: Ticket, *, driver: Driver, proof: Proof | None, at: int) -> Change | Refused:
    """End an operation that is flipped: what only the replaced key opens is deleted."""
    record = find_driven(facts, ticket, driver, Step.FLIPPED)
    if isinstance(record, Refused):
        return record
    refused = check_proof(record, proof, (Step.FLIPPED,))
    if refused and not record.waives(WaiverKind.PROOF):
        return refused
    if refused := check_keyrings(facts):
        return refused
    ended = make_ended(facts, Outcome.SETTLED, "", at)
    return Change(facts.current, ended, frozenset(find_replaced(facts) | {records.OPERATION}))


def abort(facts: Facts, ticket: Ticket, *, detail: str = "", at: int = 0) -> Change | Refused:
    """Take back an operation that is not flipped; *detail* says why."""
    record = find_operation(facts, ticket)
    if isinstance(record, Refused):
        return record
    if record.step is Step.FLIPPED:
        text = f"set {record.target.set_number} of generation {record.target.generation} is current: no way back"
        return Refused(Reason.OPERATION_FLIPPED, text)
    return replace(end_operation(facts, detail=detail, at=at), raises_epoch=True)


def heal(facts: Facts) -> Change | Refused:
    """End what cannot be carried on (rule 8)."""
    if facts.meta.sealed:
        return Refused(Reason.SEALED, "the cluster is sealed")
    if not needs_healing(facts):
        return Refused(Reason.NO_OPERATION, "nothing is left to end")
    return replace(end_operation(facts), raises_epoch=True)


def take_over(facts: Facts, ticket: Ticket, *, driver: Driver, at: int) -> Change | Refused:
    """Let another process carry the operation on (rule 2)."""
    record = find_operation(facts, ticket)
    if isinstance(record, Refused):
        return record
    if record.step is Step.PREPARED:
        return Refused(Reason.KEY_LOST, "the key or points of the operation died with their maker: abort it")
    if record.driver == driver:
        return Refused(Reason.OPERATION_MOVED, "this process carries the operation out already")
    return _step(facts, record, at, driver=driver)


def waive(facts: Facts, ticket: Ticket, waiver: Waiver, *, at: int) -> Change | Refused:
    """Take the word of an operator into the record."""
    record = find_operation(facts, ticket)
    if isinstance(record, Refused):
        return record
    if not waiver.reason:
        return Refused(Reason.REASON_MISSING, f"{waiver.kind} needs a reason")
    if record.step not in _WAIVED_AT[waiver.kind]:
        return Refused(Reason.WAIVER_INVALID, f"{waiver.kind} changes nothing at {record.step}")
    return _step(facts, record, at, waivers=(*record.waivers, waiver))


def _step(facts: Facts, record: OperationRecord, at: int, **changes: Any) -> Change:
    """Return the change of the record alone; the fence goes up (rule 1)."""
    stepped = msgspec.structs.replace(record, fence=facts.meta.epoch + 1, stepped_at=at, **changes)
    return Change(facts.current, {records.OPERATION: records.encode(stepped)})


def _replace_generation(facts: Facts, record: OperationRecord, *, revision: int, at: int) -> dict[records.Key, bytes]:
    new = facts.generations[record.target.generation]
    rows = {
        (records.GENERATION, str(record.target.generation)): records.encode(
            msgspec.structs.replace(new, state=records.GenerationState.ACTIVE, activated_at=at, flip_revision=revision)
        )
    }
    old = facts.generations.get(record.source.generation)
    if old is None:  # its row does not verify; there is nothing to tell of it
        return rows
    changes: dict[str, Any] = {"state": records.GenerationState.DECRYPT_ONLY}
    if record.depth is Depth.EMERGENCY:
        changes = {
            "state": records.GenerationState.COMPROMISED,
            "suspected_at": record.suspected_at,
            "found_at": record.started_at,
        }
    replaced = msgspec.structs.replace(old, **changes)
    return rows | {(records.GENERATION, str(record.source.generation)): records.encode(replaced)}
